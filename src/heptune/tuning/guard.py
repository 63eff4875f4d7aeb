"""What a round forgot: it and its parent on the held-out data of every earlier round, compared example by example.

Each round's data is judged by that round's own task and exam: where answers are right or wrong by the share of right
ones, else by the loss per supervised token. Examples that a later round trained on are left out, as they would flatter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from heptune import tasks
from heptune.core.errors import HeptuneError, RunError, UsageError
from heptune.core.events import Listener, Note
from heptune.data.record import Record
from heptune.data.splits import content_key, sample
from heptune.engine.memory import give_back
from heptune.runs import lineage
from heptune.runs.run import Run
from heptune.scoring.exams import exam_of
from heptune.scoring.statistics import Interval, bootstrap
from heptune.tuning import problem as problems
from heptune.tuning import rounds
from heptune.tuning.problem import Problem
from heptune.tuning.use import Bare

# Most held-out examples of a round that are scored: an accuracy of 0.9 is then known to about 0.02.
EXAMPLES = 1000
# Differences of shares are exact up to the rounding of a mean.
_ROUNDING = 1e-9


def check(limit: float | None) -> None:
    """Refuses a limit that nothing could keep."""
    if limit is not None and not (math.isfinite(limit) and limit >= 0):
        raise UsageError(f"guard is {limit}; it is the most that may be lost on an earlier round, e.g. 0.02")


def earlier_problems(parent: Run, needed: str, listener: Listener) -> list[Problem]:
    """What the rounds up to `parent` learned, to be read again: the first one first.

    Data that is gone is told; where it is `needed` for something, in words, `RunError`.
    """
    found = []
    for number, run in enumerate(lineage.chain(parent), 1):
        try:
            found.append(problems.again(run.manifest))
        except RunError as error:
            if needed:
                raise RunError(f"round {number} ({run.folder}): {error}; {needed} needs it") from None
            listener(Note(f"what is forgotten of round {number} ({run.folder}) cannot be measured: {error}", "warning"))
    return found


@dataclass(frozen=True)
class HeldOut:
    """What one round is judged on. `why` says why there is nothing, where `records` are none."""

    number: int
    run: Run
    task: tasks.Task | None
    part: str
    records: list[Record]
    why: str = ""


def is_due(run: Run) -> bool:
    """Whether a run is a finished round that was not compared with its parent yet."""
    return "round" in run.manifest and run.manifest["status"] == "finished" and "guarded" not in run.manifest


def examine(run: Run, listener: Listener) -> Run:
    """Compares a finished round with its parent and keeps what was found in its manifest (`guarded`). Any other run is
    returned as it is."""
    if not is_due(run):
        return run
    with run.locked():
        rounds = lineage.chain(run)
        held = _held_out(rounds)
        was = _outcomes(rounds[-2], held, f"round {len(rounds) - 1}", listener)
        give_back()  # one model at a time: a technique and its model hold each other
        now = _outcomes(run, held, f"round {len(rounds)}", listener)
        limit = run.manifest["round"]["guard"]
        seed = run.manifest["settings"]["seed"]
        found = [
            compared(each, before, after, limit if each.number < len(rounds) else None, seed)
            for each, before, after in zip(held, was, now, strict=True)
        ]
        run.update(guarded={"limit": limit, "rounds": found, "refused": any(each["refused"] for each in found)})
    return run


def _held_out(rounds: Sequence[Run]) -> list[HeldOut]:
    """What each round is judged on, without what a later one trained on."""
    trained: set[Any] = set()
    held: list[HeldOut] = []
    for number in range(len(rounds), 0, -1):
        run = rounds[number - 1]
        try:
            problem = problems.again(run.manifest)
        except RunError as error:
            held.insert(0, HeldOut(number, run, None, "its held-out data", [], str(error)))
            continue
        part, records = problem.parts.held_out()
        fresh = [record for record in records if content_key(record) not in trained]
        why = "" if fresh else "a later round trained on all of it" if records else "it has no held-out data"
        if len(fresh) < len(records):
            part = f"{part} ({len(records) - len(fresh)} left out that a later round trained on)"
        if fresh:
            seed = run.manifest["settings"]["seed"]
            fresh = [fresh[i] for i in sample(fresh, range(len(fresh)), EXAMPLES, seed)]
        held.insert(0, HeldOut(number, run, problem.task, part, fresh, why))
        trained |= {content_key(record) for record in problem.parts.train}
    return held


def _outcomes(run: Run, held: Sequence[HeldOut], name: str, listener: Listener) -> list[dict[str, Any]]:
    """Every example's outcome under a run's model, for each round; empty where a round has nothing to score."""
    bare = Bare.of(run, listener)
    bare.restore(run.artifact, listener)
    found: list[dict[str, Any]] = []
    for each in held:
        if each.task is None or not each.records:
            found.append({})
            continue
        scorer = replace(bare.scorer, max_length=each.run.manifest["settings"]["max_length"])
        # A head sees its own classes only: this run's where it learned the very same, else that of the round itself.
        owner = run if rounds.same_head(run.manifest["task"], each.run.manifest["task"]) else each.run
        scorer.forward.readout = rounds.head_of(owner, bare.anatomy, owner.artifact)
        what = f"scoring {name} on what round {each.number} holds out"
        try:
            found.append(exam_of(each.task).outcomes(scorer, each.records, what, listener))
        except HeptuneError as error:
            listener(Note(f"{name} cannot be scored on round {each.number}: {error}", "warning"))
            found.append({"why": str(error)})
    return found


def compared(held: HeldOut, was: dict[str, Any], now: dict[str, Any], limit: float | None, seed: int) -> dict[str, Any]:
    """A round minus its parent on the same examples. `lost` is above zero where it became worse."""
    about = {
        "round": held.number,
        "run": str(held.run.folder.resolve()),
        "data": Path(held.run.manifest["data"]["train"]["path"]).name,
        "part": held.part,
        "examples": len(held.records),
    }
    if not was.get("log_p") or not now.get("log_p"):
        why = held.why or was.get("why") or now.get("why") or "nothing of it can be scored"
        return {**about, "examples": 0, "difference": None, "lost": 0.0, "refused": False, "why": why}
    if "correct" in was:
        metric, values, difference = "accuracy", *_of_answers(was["correct"], now["correct"], seed)
    else:
        metric, values, difference = "loss", *_of_losses(was, now, seed)
    lost = -difference.value if metric == "accuracy" else difference.value
    return {
        **about,
        "metric": metric,
        "parent": values[0],
        "now": values[1],
        "difference": {k: v if math.isfinite(v) else None for k, v in asdict(difference).items()},
        "lost": lost,
        "refused": limit is not None and lost > limit + _ROUNDING,
    }


def _of_answers(was: Sequence[float], now: Sequence[float], seed: int) -> tuple[tuple[float, float], Interval]:
    """Both shares of right answers, and their difference on the same examples."""
    before, after = np.asarray(was, float), np.asarray(now, float)
    return (float(before.mean()), float(after.mean())), bootstrap(np.mean, after - before, seed=seed)


def _of_losses(was: dict[str, Any], now: dict[str, Any], seed: int) -> tuple[tuple[float, float], Interval]:
    """Both losses per supervised token, and their difference on the same examples."""
    before, after = -np.asarray(was["log_p"]), -np.asarray(now["log_p"])
    tokens = np.asarray(was.get("weights", np.ones(len(before))), float)

    def per_token(difference: Any, tokens: Any, axis: int = -1) -> Any:
        return difference.sum(axis) / tokens.sum(axis)

    values = (float(per_token(before, tokens)), float(per_token(after, tokens)))
    return values, bootstrap(per_token, after - before, tokens, seed=seed)
