"""What one run found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from heptune.reporting import training as trainings
from heptune.reporting.findings import (
    LESS_IS_BETTER,
    Confusion,
    Contender,
    Cost,
    Curve,
    Difference,
    EntityType,
    Estimate,
    Example,
    Findings,
)
from heptune.reporting.numbers import duration, finite, memory, score
from heptune.reporting.reading import counts, estimate, estimates, mapping, objects, optional_json, strings, text, whole
from heptune.reporting.training import Training
from heptune.reporting.words import evaluation_words
from heptune.runs.lineage import guard_words
from heptune.runs.run import Run


def findings_of_run(folder: Path) -> Findings:
    """Reads a run directory. Raises `RunError` where there is none; what it does not hold yet is left out."""
    manifest = Run(folder).manifest
    run = Training.read(folder)
    evaluation = _newest_evaluation(folder)
    rows = objects(evaluation.get("rows"))
    names = list(mapping(rows[0].get("metrics"))) if rows else []
    metric = names[0] if names else run.metric
    labels = strings(evaluation.get("labels"))
    matrix = counts(evaluation.get("confusion"), len(labels))
    task = text(mapping(manifest.get("task")).get("name"))
    base = trainings.near(text(mapping(manifest.get("base")).get("name")))
    status = text(manifest.get("status"))
    rival = text(rows[1].get("name")) if len(rows) > 1 else ""
    return Findings(
        kind="run",
        folder=trainings.near(str(folder)),
        title=f"{run.technique} on {Path(base).name}",
        subtitle=f"task {task}, run {trainings.near(str(folder))}",
        status=status,
        interim=_interim(status, text(manifest.get("error")), folder, bool(evaluation)),
        words=(*_words(run, evaluation), *_forgotten(manifest)),
        key_figures=_key_figures(run, evaluation, metric),
        metric=metric,
        higher_is_better=metric not in LESS_IS_BETTER,
        level=_level(rows),
        part=text(evaluation.get("part")),
        examples=whole(evaluation.get("examples")),
        contenders=tuple(_contender(row, number, metric, run) for number, row in enumerate(rows)),
        differences=_differences(evaluation),
        curves=_curves(run, status),
        curve_metric=run.metric,
        costs=_costs(run),
        labels=labels,
        confusions=(Confusion("tuned", matrix),) if matrix else (),
        entity_types=_entity_types(evaluation),
        differing=tuple(_example(shown, rival) for shown in objects(evaluation.get("shown"))),
        commands=_commands(manifest, folder),
        data=tuple(trainings.data_files(manifest)),
        facts=tuple(trainings.facts(manifest)),
        settings=(
            (f"technique: {run.technique}", trainings.shown_settings(mapping(run_settings(manifest)))),
            ("training", trainings.shown_settings(mapping(manifest.get("settings")))),
        ),
        notes=run.warnings,
    )


def run_settings(manifest: dict[str, Any]) -> dict[str, Any]:
    """The technique's own settings."""
    return mapping(mapping(manifest.get("technique")).get("settings"))


def _newest_evaluation(folder: Path) -> dict[str, Any]:
    """The evaluation that was made last; its name is its time."""
    for path in sorted((folder / "evaluations").glob("*.json"), reverse=True):
        if found := optional_json(path):
            return found
    return {}


def _level(rows: list[dict[str, Any]]) -> float:
    levels = (finite(mapping(value).get("level")) for row in rows for value in mapping(row.get("metrics")).values())
    return next((level for level in levels if level is not None), 0.95)


def _interim(status: str, error: str, folder: Path, evaluated: bool) -> str:
    where = trainings.near(str(folder))
    if status == "failed":
        return f"This run failed: {error or 'no reason is kept'}."
    if status == "interrupted":
        return f"This run was interrupted; go on with heptune resume {where}. What follows is what there is so far."
    if status != "finished":
        return "This run is still under way. What follows is what there is so far."
    if not evaluated:
        return f"This run has not been scored on held-out data yet: heptune eval {where}."
    return ""


def _words(run: Training, evaluation: dict[str, Any]) -> list[str]:
    if words := evaluation_words(evaluation):
        return [word[0].upper() + word[1:] for word in words]
    before, after = mapping(run.result.get("first_validation")), mapping(run.result.get("best_validation"))
    first, best = finite(before.get(run.metric)), finite(after.get(run.metric))
    if first is None or best is None:
        return []
    change = f"from {score(first)} to {score(best)} (step {run.best_step})"
    return [f"On the validation part, {run.metric} went {change}; validation chose that step, so this flatters."]


def _forgotten(manifest: dict[str, Any]) -> list[str]:
    """What a round forgot, beside the one before it."""
    guarded = mapping(manifest.get("guarded"))
    return [line[0].upper() + line[1:] for line in guard_words(guarded)] if guarded else []


def _key_figures(run: Training, evaluation: dict[str, Any], metric: str) -> tuple[tuple[str, str], ...]:
    rows = objects(evaluation.get("rows"))
    tuned = estimates(rows[0].get("metrics")).get(metric) if rows else None
    figures = [
        (metric, score(tuned.value) if tuned else ""),
        ("training", _known(run.result.get("time_s"), duration)),
        ("peak memory", _known(run.result.get("peak_memory_bytes"), memory)),
        ("artifact", _known(run.result.get("artifact_bytes"), memory)),
    ]
    return tuple((name, value) for name, value in figures if value)


def _known(value: Any, write: Any) -> str:
    number = finite(value)
    return "" if number is None else str(write(number))


def _contender(row: dict[str, Any], number: int, metric: str, run: Training) -> Contender:
    metrics = estimates(row.get("metrics"))
    if number:
        return Contender(text(row.get("name")), None, score=metrics.get(metric), metrics=metrics)
    return Contender(
        text(row.get("name")),
        run.technique or "tuned",
        score=metrics.get(metric),
        metrics=metrics,
        time_s=finite(run.result.get("time_s")),
        memory_bytes=finite(run.result.get("peak_memory_bytes")),
        artifact_bytes=finite(run.result.get("artifact_bytes")),
        winner=True,
    )


def _entity_types(evaluation: dict[str, Any]) -> tuple[EntityType, ...]:
    """The types of entities, the most frequent first."""
    found = [
        EntityType(text(row.get("type")), whole(row.get("count")), estimates(row.get("metrics")))
        for row in objects(evaluation.get("per_type"))
    ]
    return tuple(sorted(found, key=lambda one: -(one.count or 0)))


def _differences(evaluation: dict[str, Any]) -> tuple[Difference, ...]:
    comparison = mapping(evaluation.get("comparison"))
    rows = [text(row.get("name")) for row in objects(evaluation.get("rows"))]
    difference = estimate(comparison.get("difference"))
    if difference is None or len(rows) < 2:
        return ()
    return (Difference(rows[0], rows[1], difference, None, None, finite(comparison.get("p_value")), _tie(difference)),)


def _tie(difference: Estimate) -> bool | None:
    return None if difference.low is None or difference.high is None else difference.low <= 0 <= difference.high


def _curves(run: Training, status: str) -> tuple[Curve, ...]:
    state = "finalist" if status == "finished" else "running"
    curve = Curve(run.technique, run.technique, state, run.loss, run.validation(run.metric), best_step=run.best_step)
    return (curve,) if curve.loss or curve.validation else ()


def _costs(run: Training) -> tuple[Cost, ...]:
    cost = cost_of(run.technique, run)
    return (cost,) if run.predicted else ()


def cost_of(name: str, run: Training, predicted: dict[str, Any] | None = None) -> Cost:
    """Predicted beside measured. The whole time counts only where the run went to its planned end.

    A run measures the memory of its process, which is `resident_bytes` in a prediction.
    """
    foreseen = predicted or run.predicted
    steps, planned = whole(run.result.get("steps")), whole(run.manifest.get("steps"))
    whole_run = steps is not None and (planned is None or steps == planned)
    return Cost(
        name,
        run.technique,
        predicted_time_s=finite(foreseen.get("time_s")),
        time_s=finite(run.result.get("time_s")) if whole_run else None,
        predicted_memory_bytes=finite(foreseen.get("resident_bytes", foreseen.get("memory_bytes"))),
        memory_bytes=run.memory_bytes,
        predicted_step_s=finite(foreseen.get("step_s")),
        step_s=run.step_s,
    )


def _example(shown: dict[str, Any], rival: str) -> Example:
    better = shown.get("better")
    known = isinstance(better, bool)
    base, tuned, truth = text(shown.get("base")), text(shown.get("tuned")), text(shown.get("truth"))
    answers = (("tuned", tuned, better if known else None), (rival, base, base == truth if known else None))
    return Example(text(shown.get("text")), truth, answers)


def _commands(manifest: dict[str, Any], folder: Path) -> tuple[tuple[str, str], ...]:
    where = trainings.near(str(folder))
    again = trainings.tune_command(manifest, folder)
    after = (
        ("score it", trainings.command_line("heptune", "eval", where)),
        ("use it", trainings.command_line("heptune", "chat", where)),
        ("make this report", trainings.command_line("heptune", "report", where)),
    )
    return (("train it again", again), *after)
