"""The verdict: who won, what could not be told apart, what everything costs, and the sentences that say so.

The rules stand in `racing/decision.py`, the statistics in `scoring/comparison.py`, the sentences in `racing/words.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from heptune.core.errors import UsageError
from heptune.racing.decision import AXES, KINDS, Contender, Serving, cost_key, decide, front
from heptune.racing.words import sentences
from heptune.scoring.comparison import LEVEL, Pair, compare
from heptune.scoring.statistics import Interval


@dataclass(frozen=True)
class Training:
    """One training of a contender: its seed, its score on the test examples, its run."""

    seed: int
    score: float
    run: str | None


@dataclass(frozen=True)
class Judged:
    """A contender in the verdict. `pareto`: no other scores no worse and costs no more in every respect.

    `cost_rank` is 1 for the cheapest; `cost` is the multiple of the cheapest's.
    """

    name: str
    kind: str
    candidate: Any
    score: Interval
    metrics: dict[str, Interval]
    seeds: tuple[Training, ...]
    time_s: float
    memory_bytes: int
    artifact_bytes: int
    serving: Serving
    tied_with_best: bool
    pareto: bool
    cost_rank: int
    cost: float


@dataclass(frozen=True)
class Verdict:
    """What the race concludes. Contenders stand from the best score to the worst.

    Scores and differences (a minus b) are in the metric's own unit: where `higher_is_better` is False, less is better.
    `fronts`: of each cost axis, the contenders that no other beats in score and this cost together.
    """

    metric: str
    higher_is_better: bool
    part: str
    examples: int
    level: float
    winner: str
    words: tuple[str, ...]
    contenders: tuple[Judged, ...]
    comparisons: tuple[Pair, ...]
    fronts: dict[str, tuple[str, ...]]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values; `from_json` reads them back."""
        return _listed(asdict(self))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Verdict:
        """The verdict that `to_json` wrote."""
        contenders = tuple(
            Judged(
                **{
                    **c,
                    "score": Interval(**c["score"]),
                    "metrics": {name: Interval(**metric) for name, metric in c["metrics"].items()},
                    "seeds": tuple(Training(**training) for training in c["seeds"]),
                    "serving": Serving(**c["serving"]),
                }
            )
            for c in values["contenders"]
        )
        pairs = tuple(Pair(**{**p, "difference": Interval(**p["difference"])}) for p in values["comparisons"])
        fronts = {axis: tuple(names) for axis, names in values["fronts"].items()}
        rest = {"words": tuple(values["words"]), "contenders": contenders, "comparisons": pairs, "fronts": fronts}
        return cls(**{**values, **rest})


def judge(
    contenders: Sequence[Contender],
    *,
    metric: str,
    higher_is_better: bool,
    part: str,
    weights: np.ndarray | None = None,
    level: float = LEVEL,
    seed: int = 0,
) -> Verdict:
    """The verdict on contenders that answered the same examples of `part`.

    `weights` [n] are the supervised tokens where outcomes are per token. Raises UsageError for contenders that cannot
    stand in one race, DataError for fewer than two examples. The order of the contenders changes nothing.
    """
    _check(contenders)
    by_name = {c.name: c for c in contenders}
    trained = {c.name for c in contenders if c.kind == "technique" or len(c.outcomes) > 1}
    outcomes = {c.name: c.outcomes for c in contenders}
    result = compare(outcomes, weights, trained=trained, level=level, seed=seed)
    scores = {name: interval.value for name, interval in result.scores.items()}
    near = {(p.a, p.b): result.near(p.a, p.b) for p in result.pairs}
    decision = decide(list(by_name.values()), scores, {(p.a, p.b): p.tie for p in result.pairs}, near)
    sign = 1 if higher_is_better else -1
    costs = sorted(by_name.values(), key=lambda c: cost_key(c, scores))
    judged = tuple(
        Judged(
            name=name,
            kind=(c := by_name[name]).kind,
            candidate=c.candidate,
            score=_signed(result.scores[name], sign),
            metrics=dict(c.metrics),
            seeds=_trainings(c, weights, sign),
            time_s=c.time_s,
            memory_bytes=c.memory_bytes,
            artifact_bytes=c.artifact_bytes,
            serving=c.serving,
            tied_with_best=name in decision.tied,
            pareto=name in decision.front,
            cost_rank=1 + costs.index(c),
            cost=c.cost / costs[0].cost,
        )
        for name in decision.ranking
    )
    return Verdict(
        metric=metric,
        higher_is_better=higher_is_better,
        part=part,
        examples=result.components.examples,
        level=level,
        winner=decision.winner,
        words=sentences(by_name, result, decision, metric=metric, higher_is_better=higher_is_better, part=part),
        contenders=judged,
        comparisons=tuple(_signed_pair(result.pair(a, b), sign) for a, b in _pairs(decision.ranking)),
        fronts={axis: front(list(by_name.values()), scores, (axis,)) for axis in AXES},
    )


def _check(contenders: Sequence[Contender]) -> None:
    names = [c.name for c in contenders]
    twice = {name for name in names if names.count(name) > 1}
    if not names or twice:
        raise UsageError(
            f"contenders need different names, but {sorted(twice)[0]!r} occurs twice; name them apart"
            if twice
            else "there is nobody to judge: no contender reached the final; give at least one"
        )
    for c in contenders:
        if c.kind not in KINDS:
            raise UsageError(f"{c.name} is a {c.kind!r}; a contender is one of {', '.join(KINDS)}")
        for what, values in (("seeds", c.seeds), ("runs", c.runs)):
            if values and len(values) != len(np.atleast_2d(c.outcomes)):
                raise UsageError(f"{c.name} has {len(values)} {what} for {len(c.outcomes)} rows of outcomes; one each")


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    return [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]


def _trainings(c: Contender, weights: np.ndarray | None, sign: int) -> tuple[Training, ...]:
    rows = np.average(np.atleast_2d(c.outcomes), axis=1, weights=weights)
    runs: Sequence[str | None] = c.runs or [None] * len(c.seeds)
    return tuple(Training(s, sign * float(rows[i]), runs[i]) for i, s in enumerate(c.seeds))


def _signed(interval: Interval, sign: int) -> Interval:
    if sign > 0:
        return interval
    return Interval(-interval.value, -interval.high, -interval.low, interval.level)


def _signed_pair(pair: Pair, sign: int) -> Pair:
    difference = _signed(pair.difference, sign)
    return Pair(pair.a, pair.b, difference, pair.p_value, pair.p_adjusted, pair.tie, pair.mcnemar)


def _listed(value: Any) -> Any:
    """Tuples as lists, as JSON has them."""
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_listed(item) for item in value]
    return value
