"""What a race found, or has found so far."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from heptune.core.errors import RunError
from heptune.core.units import format_count
from heptune.reporting import training as trainings
from heptune.reporting.findings import (
    LESS_IS_BETTER,
    Confusion,
    Contender,
    Cost,
    Curve,
    Difference,
    Example,
    Findings,
    Rung,
    Seed,
    Standing,
)
from heptune.reporting.numbers import duration, finite, memory, score
from heptune.reporting.of_run import cost_of
from heptune.reporting.reading import (
    counts,
    estimate,
    estimates,
    inner,
    mapping,
    objects,
    optional_json,
    strings,
    text,
    whole,
)
from heptune.reporting.training import Training
from heptune.runs.files import read_json

FORMAT = 1


def findings_of_race(folder: Path) -> Findings:
    """Reads a race directory, finished or not. Raises `RunError` for one that another version wrote."""
    race = mapping(read_json(folder / "race.json"))
    if race.get("format") != FORMAT:
        raise RunError(
            f"{folder} has race format {race.get('format')!r}, this version reads {FORMAT}; "
            f"it was written by heptune {race.get('heptune')}: use that version"
        )
    verdict = optional_json(folder / "verdict.json")
    candidates = {text(c.get("name")): c for c in objects(race.get("candidates"))}
    runs = {name: Training.read(inner(folder, c.get("run"))) for name, c in candidates.items()}
    rungs = _rungs(race, candidates)
    metric = text(verdict.get("metric")) or next((run.metric for run in runs.values() if run.metric), "")
    contenders = tuple(_contender(c, verdict) for c in objects(verdict.get("contenders")))
    labels = strings(verdict.get("labels"))
    curve_metric = _curve_metric(metric, runs)
    rung_metric = _rung_metric(race, curve_metric)
    base = trainings.near(text(mapping(race.get("base")).get("name")))
    data = trainings.near(text(mapping(mapping(race.get("data")).get("train")).get("path")))
    higher = verdict.get("higher_is_better")
    found = Findings(
        kind="race",
        folder=trainings.near(str(folder)),
        title=f"Which technique fits {_data_name(data)}?",
        subtitle=f"{_several(candidates)} on {Path(base).name}, task {text(mapping(race.get('task')).get('name'))}",
        status=text(race.get("status")),
        interim=_interim(race, rungs, candidates, folder, bool(contenders)),
        words=strings(verdict.get("words")),
        metric=metric,
        higher_is_better=higher if isinstance(higher, bool) else metric not in LESS_IS_BETTER,
        level=finite(verdict.get("level")) or 0.95,
        part=text(verdict.get("part")),
        examples=whole(verdict.get("examples")),
        contenders=contenders,
        differences=tuple(filter(None, map(_difference, objects(verdict.get("comparisons"))))),
        curves=_curves(race, candidates, runs, rungs, (curve_metric, rung_metric), folder),
        curve_metric=curve_metric,
        costs=_costs(candidates, runs, rungs),
        ladder=tuple(filter(None, (whole(rung.get("step")) for rung in objects(race.get("ladder"))))),
        rungs=rungs,
        rung_metric=rung_metric,
        effort=_effort(race),
        labels=labels,
        confusions=_confusions(verdict, labels),
        differing=tuple(_example(shown, [c.name for c in contenders]) for shown in objects(verdict.get("differing"))),
        data=tuple(trainings.data_files(race)),
        facts=tuple(trainings.facts(race)),
        settings=_settings(race, candidates, contenders),
        notes=tuple(dict.fromkeys(warning for run in runs.values() for warning in run.warnings)),
    )
    return replace(found, key_figures=_key_figures(found), commands=_commands(race, found))


def _data_name(path: str) -> str:
    """The file's name; of a folder with a file for each part, the folder's."""
    name = Path(path).parent.name if Path(path).stem in ("train", "training") else ""
    return name or Path(path).name or "the data"


def _several(candidates: dict[str, Any]) -> str:
    techniques = {text(c.get("technique")) for c in candidates.values()}
    some = "candidate" if len(candidates) == 1 else "candidates"
    return f"{len(candidates)} {some} of {len(techniques)} technique{'s' * (len(techniques) != 1)}"


def _rungs(race: dict[str, Any], candidates: dict[str, Any]) -> tuple[Rung, ...]:
    rungs = []
    for rung in objects(race.get("rungs")):
        standings = [
            Standing(
                candidate=text(s.get("candidate")),
                technique=text(mapping(candidates.get(text(s.get("candidate")))).get("technique")),
                score=finite(s.get("score")),
                trend=finite(s.get("trend")),
                time_s=finite(s.get("time_s")),
                memory_bytes=finite(s.get("memory_bytes")),
                kept=s.get("kept") is not False,
                why=text(s.get("why")),
            )
            for s in objects(rung.get("standings"))
        ]
        rungs.append(Rung(whole(rung.get("step")) or 0, tuple(standings)))
    return tuple(sorted(rungs, key=lambda rung: rung.step))


def _rung_metric(race: dict[str, Any], otherwise: str) -> str:
    """Which of a standing's metrics its score is: the one that has the score's value in every standing."""
    scored = [s for rung in objects(race.get("rungs")) for s in objects(rung.get("standings"))]
    scored = [s for s in scored if finite(s.get("score")) is not None]
    names = dict.fromkeys(name for s in scored for name in mapping(s.get("metrics")))
    same = (n for n in names if all(mapping(s.get("metrics")).get(n) == s.get("score") for s in scored))
    return next(same, otherwise)


def _dropped(rungs: tuple[Rung, ...]) -> dict[str, int]:
    """Candidate -> the step at which it was dropped."""
    return {s.candidate: rung.step for rung in rungs for s in rung.standings if not s.kept}


def _interim(
    race: dict[str, Any], rungs: tuple[Rung, ...], candidates: dict[str, Any], folder: Path, judged: bool
) -> str:
    status = text(race.get("status"))
    if status == "finished" and judged:
        return ""
    left = len(candidates) - len(_dropped(rungs))
    ladder = len(objects(race.get("ladder"))) or len(rungs)
    where = trainings.near(str(folder))
    begin = {
        "interrupted": f"This race was interrupted; go on with heptune resume {where}.",
        "failed": "This race failed.",
        "finished": "This race is finished, but its verdict is missing.",
    }.get(status, "This race is still under way.")
    if not rungs:
        return f"{begin} No rung is done yet; {len(candidates)} candidates are in it."
    best = next((s for s in rungs[-1].standings if s.kept and s.score is not None), None)
    ahead = "" if best is None else f" Ahead at step {rungs[-1].step}: {best.candidate} with {score(best.score)}."
    return f"{begin} {len(rungs)} of {ladder} rungs are done, {left} of {len(candidates)} candidates are left.{ahead}"


def _contender(value: dict[str, Any], verdict: dict[str, Any]) -> Contender:
    name = text(value.get("name"))
    baseline = value.get("kind") == "baseline"
    candidate = value.get("candidate")
    seeds = [(whole(s.get("seed")), finite(s.get("score")), text(s.get("run"))) for s in objects(value.get("seeds"))]
    metrics = estimates(value.get("metrics"))
    return Contender(
        name=name,
        technique=None if baseline else name,
        candidate=text(mapping(candidate).get("name") if isinstance(candidate, dict) else candidate) or None,
        score=estimate(value.get("score")) or metrics.get(text(verdict.get("metric"))),
        metrics=metrics,
        seeds=tuple(Seed(seed, found, run) for seed, found, run in seeds if found is not None),
        time_s=finite(value.get("time_s")),
        memory_bytes=finite(value.get("memory_bytes")),
        artifact_bytes=finite(value.get("artifact_bytes")),
        serving=_serving(mapping(value.get("serving"))),
        tied=value.get("tied_with_best") is True,
        pareto=value.get("pareto") is True,
        winner=name == text(verdict.get("winner")),
        cost_rank=whole(value.get("cost_rank")),
    )


def _serving(serving: dict[str, Any]) -> str:
    if words := text(serving.get("words")):
        return words
    positions, parameters = finite(serving.get("positions")), finite(serving.get("parameters"))
    told = [f"{format_count(positions)} more positions"] if positions else []
    told += [f"{format_count(parameters)} more parameters"] if parameters else []
    return ", ".join(told)


def _difference(value: dict[str, Any]) -> Difference | None:
    difference = estimate(value.get("difference"))
    if difference is None:
        return None
    tie = value.get("tie")
    return Difference(
        text(value.get("a")),
        text(value.get("b")),
        difference,
        finite(value.get("p_value")),
        finite(value.get("p_adjusted")),
        finite(value.get("mcnemar")),
        tie if isinstance(tie, bool) else None,
    )


def _curve_metric(metric: str, runs: dict[str, Training]) -> str:
    """The verdict's metric where the runs were validated by it, else the one they were validated by."""
    if any(run.validation(metric) for run in runs.values()):
        return metric
    return next((run.metric for run in runs.values() if run.metric), metric)


def _curves(
    race: dict[str, Any],
    candidates: dict[str, Any],
    runs: dict[str, Training],
    rungs: tuple[Rung, ...],
    metrics: tuple[str, str],
    folder: Path,
) -> tuple[Curve, ...]:
    dropped, finals = _dropped(rungs), objects(race.get("finals"))
    finalists = {text(final.get("candidate")) for final in finals}
    curves = []
    for name, candidate in candidates.items():
        state = "finalist" if name in finalists else "dropped" if name in dropped else "running"
        curve = _curve(name, text(candidate.get("technique")), state, runs[name], metrics)
        curves.append(_ended(replace(curve, dropped_at=dropped.get(name))) if state == "dropped" else curve)
    for final in finals:
        name = text(final.get("candidate"))
        technique = text(mapping(candidates.get(name)).get("technique"))
        own = mapping(candidates.get(name)).get("run")
        for run in objects(final.get("runs")):
            if run.get("run") != own:
                trained = Training.read(inner(folder, run.get("run")))
                curve = _curve(name, technique, "finalist", trained, metrics)
                curves.append(replace(curve, seed=whole(run.get("seed")) or 0))
    return tuple(curve for curve in curves if curve.loss or curve.validation)


def _curve(name: str, technique: str, state: str, run: Training, metrics: tuple[str, str]) -> Curve:
    shown, deciding = (run.validation(metric) for metric in metrics)
    return Curve(name, technique, state, run.loss, shown, deciding, best_step=run.best_step)


def _ended(curve: Curve) -> Curve:
    """A dropped candidate's curve ends at its last rung, even where its run took a few steps more."""
    if curve.dropped_at is None:
        return curve
    loss = tuple(point for point in curve.loss if point[0] <= curve.dropped_at)
    validation = tuple(point for point in curve.validation if point[0] <= curve.dropped_at)
    return replace(curve, loss=loss, validation=validation)


def _costs(candidates: dict[str, Any], runs: dict[str, Training], rungs: tuple[Rung, ...]) -> tuple[Cost, ...]:
    """Of candidates with a prediction, those that were trained longest first.

    What a run directory does not tell, its last rung may.
    """
    peaks = {s.candidate: s.memory_bytes for rung in rungs for s in rung.standings if s.memory_bytes is not None}
    costs = []
    for name, candidate in candidates.items():
        predicted = mapping(candidate.get("predicted")) or runs[name].predicted
        if predicted:
            cost = cost_of(name, runs[name], predicted)
            peak = peaks.get(name) if cost.memory_bytes is None else cost.memory_bytes
            costs.append(replace(cost, technique=text(candidate.get("technique")), memory_bytes=peak))
    reached = {name: run.loss[-1][0] if run.loss else 0.0 for name, run in runs.items()}
    return tuple(sorted(costs, key=lambda cost: -reached[cost.name]))


def _effort(race: dict[str, Any]) -> str:
    """What the race cost, beside what training every candidate in full would have cost."""
    cost, full = mapping(race.get("cost")), mapping(race.get("exhaustive_cost_estimate"))
    time, tokens, exhaustive = finite(cost.get("time_s")), finite(cost.get("tokens")), finite(full.get("time_s"))
    if time is None:
        return ""
    begin = "The race took" if race.get("status") == "finished" else "So far the race took"
    spent = f"{begin} {duration(time)}" + (f" and {format_count(tokens)} tokens" if tokens else "")
    if exhaustive is None or not time:
        return spent + "."
    compared = f"training every candidate in full would take about {duration(exhaustive)}"
    return f"{spent}; {compared} ({exhaustive / time:.1f} times as long)."


def _confusions(verdict: dict[str, Any], labels: tuple[str, ...]) -> tuple[Confusion, ...]:
    """The winner's matrix first."""
    found = {name: counts(value, len(labels)) for name, value in mapping(verdict.get("confusion")).items()}
    winner = text(verdict.get("winner"))
    order = sorted(found, key=lambda name: name != winner)
    return tuple(Confusion(name, found[name]) for name in order if found[name])


def _example(value: dict[str, Any], ranking: list[str]) -> Example:
    """The answers of the two best that gave one."""
    truth, said = text(value.get("truth")), mapping(value.get("answers"))
    order = sorted(said, key=lambda name: ranking.index(name) if name in ranking else len(ranking))
    answers = [(name, text(said[name])) for name in order[:2]]
    # Free replies are never word for word the true one; then right and wrong would be claims without a ground.
    comparable = any(answer == truth for _, answer in answers)
    told = tuple((name, answer, answer == truth if comparable else None) for name, answer in answers)
    return Example(text(value.get("text")), truth, told)


def _key_figures(found: Findings) -> tuple[tuple[str, str], ...]:
    winner = found.winner
    if winner is None:
        return ()
    figures = [
        ("winner", winner.name),
        (found.metric, score(winner.score.value) if winner.score else ""),
        ("training", duration(winner.time_s) if winner.time_s is not None else ""),
        ("peak memory", memory(winner.memory_bytes) if winner.memory_bytes is not None else ""),
        ("artifact", memory(winner.artifact_bytes) if winner.artifact_bytes is not None else ""),
    ]
    return tuple((name, value) for name, value in figures if value)


def _settings(
    race: dict[str, Any], candidates: dict[str, Any], contenders: tuple[Contender, ...]
) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    """The race's, then those of the candidates that went furthest (of all where there is no verdict yet)."""
    shown = [c.candidate for c in contenders if c.candidate] or list(candidates)
    parts = [("budget", mapping(race.get("budget"))), ("training", mapping(race.get("settings")))]
    for name in shown:
        candidate = mapping(candidates.get(name))
        rate = {"learning_rate": candidate["learning_rate"]} if "learning_rate" in candidate else {}
        parts.append((f"candidate: {name}", mapping(candidate.get("settings")) | rate))
    return tuple((title, trainings.shown_settings(values)) for title, values in parts if values)


def _best_run(race: dict[str, Any], found: Findings) -> str:
    """The winner's best training; '' where a baseline has won."""
    winner = found.winner
    if winner is None or winner.candidate is None:
        return ""
    own = (text(c.get("run")) for c in objects(race.get("candidates")) if c.get("name") == winner.candidate)
    sign = 1 if found.higher_is_better else -1
    best = max(winner.seeds, key=lambda seed: sign * seed.score, default=None)
    return (best.run if best else "") or next(own, "")


def _commands(race: dict[str, Any], found: Findings) -> tuple[tuple[str, str], ...]:
    again = strings(race.get("command"))
    commands = [("race again", trainings.command_line(*again))] if again else []
    run = _best_run(race, found)
    if run:
        where = f"{found.folder}/{run}"
        commands.append(("score the winner on other data", trainings.command_line("heptune", "eval", where)))
        commands.append(("use the winner", trainings.command_line("heptune", "chat", where)))
    commands.append(("make this report", trainings.command_line("heptune", "report", found.folder)))
    return tuple(commands)
