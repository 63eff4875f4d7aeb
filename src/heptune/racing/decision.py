"""Who wins: the contenders, what they cost, and the rules.

1. The best is the contender with the highest score on the test examples (of equal ones the cheapest).
2. Tied with it are those that cannot be told apart from it (`scoring/comparison.py`: over examples and training seeds,
   corrected for all the pairs that are looked at).
3. A tied contender stays in the running unless it is dominated: another one scores no worse and costs no more in every
   respect, and is strictly better in one.
4. Technique against baseline: a technique has to be shown to beat the best baseline. Those in the running that are
   stay in it alone; where none is, the verdict is a baseline.
5. A tie goes to the cheapest of those left whose score is within one standard error of the best of them (the rule of
   Breiman et al. 1984, "CART", section 3.4.3). Not told apart is not equal: on few examples a contender may be far
   behind and still not be told apart.

What is cheapest: four costs (`AXES`), each in its own unit, are made one number by their geometric mean,

    cost = ((time + 10 s) (memory + 64 MiB) (artifact + 16 MiB) (1.01 + extra share of a request's FLOPs)) ^ (1/4)

so that "twice as long" weighs the same as "twice the memory", and which of two is cheaper does not depend on a third.
The summands are what nobody notices (waiting ten seconds, a file of a few megabytes): below them more and less is the
same. Equal costs are ordered by the four costs in turn, then by score, then by name. Cost is told as a multiple of the
cheapest contender's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from heptune.scoring.statistics import Interval

KINDS = ("technique", "baseline")
AXES = ("time", "memory", "artifact", "serving")
# What nobody notices, in each axis' unit: seconds, bytes, bytes, requests to the untouched base. One hundredth of a
# request stands for a contender that does not need the base at all.
UNNOTICED = {"time": 10.0, "memory": 64.0 * 2**20, "artifact": 16.0 * 2**20, "serving": 0.01}


@dataclass(frozen=True)
class Serving:
    """What a request costs beyond the untouched base's.

    - `positions`: tokens or key/value positions that stand before every request
    - `parameters`: parameters that are computed with beside the base's
    - `flops_share`: extra FLOPs of a typical request as a share of the untouched base's (0.05 = 5 % more); -1 for what
      does without the base
    - `words`: the same for people
    """

    positions: int
    parameters: int
    flops_share: float
    words: str


@dataclass(frozen=True)
class Contender:
    """One way to do the task, as it went into the final.

    - `outcomes` [k, n]: one row for each training seed, higher is better (minus the loss where lower is better)
    - `seeds`, `runs`: of each row, where it was trained; empty for a baseline
    - `metrics`: further scores that are told, not judged
    - `time_s`: what was paid for one training; `memory_bytes`: its peak; `artifact_bytes`: what is kept
    - `candidate`: its settings, as JSON values
    """

    name: str
    kind: str
    outcomes: np.ndarray
    time_s: float
    memory_bytes: int
    artifact_bytes: int
    serving: Serving
    candidate: Any = None
    metrics: Mapping[str, Interval] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    runs: tuple[str, ...] = ()

    @property
    def costs(self) -> dict[str, float]:
        """Its four costs, each in its unit."""
        values = (self.time_s, self.memory_bytes, self.artifact_bytes, 1 + max(-1.0, self.serving.flops_share))
        return dict(zip(AXES, map(float, values), strict=True))

    @property
    def cost(self) -> float:
        """The four costs as one number; only its ratio to another contender's means anything."""
        return math.exp(sum(math.log(value + UNNOTICED[axis]) for axis, value in self.costs.items()) / len(AXES))


@dataclass(frozen=True)
class Decision:
    """`ranking`: from the best score to the worst. `tied`: with the best, itself among them. `front`: not dominated.

    `baseline` is the best baseline, `beaten` whether a technique in the running is shown to be better than it.
    """

    winner: str
    ranking: tuple[str, ...]
    tied: tuple[str, ...]
    front: tuple[str, ...]
    baseline: str | None
    beaten: bool


def decide(
    contenders: Sequence[Contender],
    scores: Mapping[str, float],
    ties: Mapping[tuple[str, str], bool],
    near: Mapping[tuple[str, str], bool],
) -> Decision:
    """The rules of this module's head, from scores (higher is better), from which pairs are ties, and from which are
    within one standard error of each other."""

    def tie(a: str, b: str) -> bool:
        return _given(ties, a, b)

    by_cost = sorted(contenders, key=lambda c: cost_key(c, scores))
    ranked = sorted(by_cost, key=lambda c: -scores[c.name])
    best = ranked[0].name
    tied = tuple(c.name for c in ranked if tie(c.name, best))
    undominated = front(contenders, scores, AXES)
    running = [c for c in by_cost if c.name in tied and c.name in undominated]
    baseline = next((c.name for c in ranked if c.kind == "baseline"), None)
    proven = [
        c
        for c in running
        if baseline is not None
        and c.kind == "technique"
        and scores[c.name] > scores[baseline]
        and not tie(c.name, baseline)
    ]
    # No baseline is left where a technique dominates it: it is better and costs less, and needs no other proof.
    running = proven or [c for c in running if c.kind == "baseline"] or running
    top = max(running, key=lambda c: scores[c.name])  # of equal ones the first, which is the cheapest
    running = [c for c in running if _given(near, c.name, top.name)]
    return Decision(running[0].name, tuple(c.name for c in ranked), tied, undominated, baseline, bool(proven))


def _given(pairs: Mapping[tuple[str, str], bool], a: str, b: str) -> bool:
    return a == b or pairs.get((a, b), pairs.get((b, a), False))


def cost_key(c: Contender, scores: Mapping[str, float]) -> tuple[Any, ...]:
    """Sorts contenders from the cheapest on."""
    return (c.cost, *c.costs.values(), -scores[c.name], c.name)


def front(contenders: Sequence[Contender], scores: Mapping[str, float], axes: Sequence[str]) -> tuple[str, ...]:
    """Who is not dominated in score and these costs, by name."""

    def dominates(a: Contender, b: Contender) -> bool:
        cheaper = [b.costs[axis] - a.costs[axis] for axis in axes]
        gain = [scores[a.name] - scores[b.name], *cheaper]
        return min(gain) >= 0 and max(gain) > 0

    return tuple(sorted(c.name for c in contenders if not any(dominates(other, c) for other in contenders)))
