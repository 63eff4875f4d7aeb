"""From what the finalists and the baselines answered on the test part to verdict.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from heptune import tasks, techniques
from heptune.data.record import Record
from heptune.planning.forms import virtual_tokens
from heptune.racing.decision import Contender, Serving
from heptune.racing.outcomes import kept_outcomes, tested_on
from heptune.racing.race import Race
from heptune.racing.verdict import judge
from heptune.runs.files import read_json
from heptune.runs.run import Run
from heptune.scoring import statistics
from heptune.tasks.classify import Classify

# Examples in the report on which winner and runner-up differ.
SHOWN = 6


def conclude(race: Race) -> dict[str, Any]:
    """The verdict of a race whose finalists and baselines have answered, as JSON values."""
    values = race.values
    task = tasks.from_json(values["task"])
    records = tested_on(values, values["test_limit"], values["settings"]["seed"])
    answers = {
        final["contender"]: [kept_outcomes(race.folder / run["run"]) for run in final["runs"]]
        for final in values["finals"]
    }
    baselines = read_json(race.folder / "baselines.json")
    outcome = "log_p" if values["metric"] == "loss" else "correct"
    weights = None
    first = next(iter(answers.values()))[0]
    if outcome == "log_p" and "weights" in first:
        weights = np.array(first["weights"], dtype=float)
    contenders = [_technique(race, final, answers[final["contender"]], outcome, weights) for final in values["finals"]]
    contenders += [_baseline(name, b, outcome, weights) for name, b in baselines.items() if outcome in b]
    verdict = judge(
        [c for c in contenders if c is not None],
        metric=values["metric"],
        higher_is_better=values["metric"] != "loss",
        part="the test part",
        weights=weights,
        seed=values["settings"]["seed"],
    )
    extra: dict[str, Any] = {}
    if isinstance(task, Classify):
        said = {name: [row["chosen"] for row in rows] for name, rows in answers.items()}
        said |= {name: [b["chosen"]] for name, b in baselines.items()}
        extra = _answered(task, records, said, [judged.name for judged in verdict.contenders])
    return {**verdict.to_json(), **extra}


def _technique(
    race: Race, final: dict[str, Any], rows: list[dict[str, Any]], outcome: str, weights: np.ndarray | None
) -> Contender:
    entry = race.entry(final["candidate"])
    runs = [Run(race.folder / run["run"]) for run in final["runs"]]
    results = [run.manifest["result"] for run in runs]
    return Contender(
        name=final["contender"],
        kind="technique",
        outcomes=_matrix(rows, outcome, weights),
        time_s=float(np.mean([result["time_s"] for result in results])),
        memory_bytes=max(result["peak_memory_bytes"] for result in results),
        artifact_bytes=max(result["artifact_bytes"] for result in results),
        serving=serving(entry, runs[0].manifest["trainable"], race.values["base"].get("parameters")),
        candidate=final["candidate"],
        metrics=_metrics(rows, weights),
        seeds=tuple(run["seed"] for run in final["runs"]),
        runs=tuple(run["run"] for run in final["runs"]),
    )


def serving(entry: dict[str, Any], trainable: int, parameters: int | None) -> Serving:
    """What a request costs beyond the untouched base's: nothing where the technique merges into the weights."""
    kind = techniques.get(entry["technique"])
    tokens = virtual_tokens(entry["settings"])
    if "mergeable" in kind.capabilities:
        return Serving(0, 0, 0.0, "merged into the base's weights: nothing extra")
    if kind.capabilities & {"virtual_tokens", "kv_prefix"}:
        # Their keys and values are computed once and kept; what stays is attention over them.
        return Serving(tokens, 0, 0.0, f"{tokens} positions before every request, computed once and kept")
    share = trainable / parameters if parameters else 0.0
    return Serving(0, trainable, share, f"{share:.1%} more parameters to compute with")


def _baseline(name: str, found: dict[str, Any], outcome: str, weights: np.ndarray | None) -> Contender:
    return Contender(
        name=name,
        kind="baseline",
        outcomes=_matrix([found], outcome, weights),
        time_s=found["time_s"],
        memory_bytes=found["memory_bytes"],
        artifact_bytes=0,
        serving=Serving(**found["serving"]),
        metrics=_metrics([found], weights),
    )


def _matrix(rows: list[dict[str, Any]], outcome: str, weights: np.ndarray | None) -> np.ndarray:
    """[k, n], higher is better; per supervised token where examples have several."""
    matrix = np.array([row[outcome] for row in rows], dtype=float)
    return matrix if weights is None else matrix / weights


def _metrics(rows: list[dict[str, Any]], weights: np.ndarray | None) -> dict[str, statistics.Interval]:
    """What is told beside the score, of all seeds together."""
    if weights is not None:
        mean = np.mean([row["log_p"] for row in rows], axis=0)
        return {"perplexity": statistics.perplexity(-mean, weights)}
    if any("log_p" not in row for row in rows):
        return {}
    return {"loss": statistics.bootstrap(np.mean, -np.mean([row["log_p"] for row in rows], axis=0))}


def _answered(
    task: Classify, records: Sequence[Record], said: dict[str, list[list[int]]], ranking: list[str]
) -> dict[str, Any]:
    """What classifiers said: each contender's confusion matrix over its seeds, and examples on which the best two
    techniques differ (of each the first seed's answers)."""
    labels = list(task.labels)
    truth = [record.label or "" for record in records]
    confusion = {
        name: sum(statistics.confusion(truth, [labels[i] for i in row], labels) for row in rows).tolist()  # type: ignore[union-attr]
        for name, rows in said.items()
    }
    first, second = (*[name for name in ranking if name in said][:2], None, None)[:2]
    differing: list[dict[str, Any]] = []
    if first is not None and second is not None:
        for i, (a, b) in enumerate(zip(said[first][0], said[second][0], strict=True)):
            if a != b and truth[i] in (labels[a], labels[b]) and len(differing) < SHOWN:
                found = {name: labels[rows[0][i]] for name, rows in said.items()}
                differing.append({"text": records[i].text or "", "truth": truth[i], "answers": found})
    return {"labels": labels, "confusion": confusion, "differing": differing}
