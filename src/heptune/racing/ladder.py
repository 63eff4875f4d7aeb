"""The ladder of a race: how far everyone trains before it is decided who goes on, and who does. Imports no torch.

All candidates are trained with the schedule of the full length, N steps, and pause at its rungs:

    N/8    every candidate                                  -> of each technique its two best learning rates and starts
    N/4    two of each technique                            -> its better one, of the better half of the techniques
    N/2    the better half, and slow starters that can come -> the finalists
    N      the finalists, each with several seeds           -> the verdict, on data that nobody has seen

That is successive halving (Jamieson and Talwalkar 2016; Li et al. 2018, "Hyperband", section 3), with two changes. A
candidate goes on from its checkpoint instead of starting again: a finalist costs what its training costs anyway. And
what decides is not where a candidate stands but where it is going: techniques begin at different speeds, and one that
is behind at N/4 may lead at N. Two rates are kept at N/8 because the schedule's own rate is still rising there, which
makes the high ones look worst (docs/log.md has a race that lost its best rates so).

Where a candidate is going, its `trend`, is its validation loss at N if every doubling of the steps brings half of what
the last one brought (loss curves of fine-tuning flatten at least that fast, so that it is no promise to anyone):

    trend = loss - g (1/2 + 1/4 + ... + 1/2^h),   g: gain of the last doubling, h: doublings left

A technique whose card says that it starts slowly keeps one candidate until N/2 as long as it could still come: as long
as its loss, if every doubling brought as much as the last, would be below the worst that is kept.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

# Each rung as a share of the full length.
SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0)
# How many candidates of a technique go on after the first.
KEPT = 2
# What decides, for who is ahead now and yet out.
_BY = "by where the loss is heading"


@dataclass(frozen=True)
class Form:
    """How a candidate stands after a rung. `losses` are its validation losses at this rung and those before, oldest
    first, each with its step. `failed` says why there is none."""

    candidate: str
    technique: str
    slow_start: bool
    losses: tuple[tuple[int, float], ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    time_s: float = 0.0
    memory_bytes: int = 0
    failed: str = ""

    def trend(self, steps: int) -> float:
        """The loss that it is heading for at the full length, infinite where it failed."""
        return self._ahead(steps, 0.5)

    def hope(self, steps: int) -> float:
        """The loss at the full length if every doubling brought as much as the last one."""
        return self._ahead(steps, 1.0)

    def _ahead(self, steps: int, fading: float) -> float:
        if self.failed or not self.losses or not math.isfinite(self.losses[-1][1]):
            return math.inf
        step, loss = self.losses[-1]
        earlier = [(at, value) for at, value in self.losses[:-1] if math.isfinite(value)]
        if not earlier:
            return loss
        before_step, before = earlier[-1]
        gain = max(0.0, before - loss) / math.log2(step / before_step)
        doublings = math.log2(max(1.0, steps / step))
        whole = int(doublings)
        weights = [fading ** (i + 1) for i in range(whole)] + [(doublings - whole) * fading ** (whole + 1)]
        return loss - gain * sum(weights)


@dataclass(frozen=True)
class Standing:
    """What a rung decided about one candidate, and why. `score` is its validation loss, `trend` where it is heading."""

    candidate: str
    metrics: dict[str, float]
    score: float | None
    trend: float | None
    time_s: float
    memory_bytes: int
    kept: bool
    why: str

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def rungs(steps: int) -> tuple[int, ...]:
    """The steps after which the candidates are compared, ascending; the last is `steps`."""
    return tuple(sorted({max(1, round(steps * share)) for share in SHARES}))


def decide(forms: Sequence[Form], rung: int, steps: int, finalists: int) -> list[Standing]:
    """Who goes on after rung number `rung` (from 0) of `rungs(steps)`; best first. At least one goes on, if any can."""
    ranked = sorted(forms, key=lambda form: (form.trend(steps), form.candidate))
    able: dict[str, list[Form]] = {}
    for form in ranked:
        if math.isfinite(form.trend(steps)):
            able.setdefault(form.technique, []).append(form)
    last_cut = rung >= len(rungs(steps)) - 2
    places = finalists if last_cut else max(finalists, math.ceil(len(able) / 2))
    if rung == 0 and not last_cut:
        kept = {f.candidate: f"among the best {KEPT} of {name}" for name, own in able.items() for f in own[:KEPT]}
        entered = Counter(form.technique for form in forms)
        kept |= {
            f.candidate: f"all of {f.technique}" for f in forms if f.candidate in kept and entered[f.technique] <= KEPT
        }
    else:
        leaders = [own[0] for own in able.values()]
        kept = {form.candidate: f"among the best {places} {_BY}" for form in leaders[:places]}
        if not last_cut and len(leaders) > places:
            limit = leaders[places - 1].trend(steps)
            for form in leaders[places:]:
                if form.slow_start and form.hope(steps) < limit:
                    kept[form.candidate] = "starts slowly and could still come"
    going_on = {name: [f.candidate for f in own if f.candidate in kept] for name, own in able.items()}
    reasons = {f.candidate: _why(f, kept, going_on.get(f.technique, []), places) for f in ranked}
    return [_standing(form, steps, form.candidate in kept, reasons[form.candidate]) for form in ranked]


def _why(form: Form, kept: Mapping[str, str], of_its_technique: Sequence[str], places: int) -> str:
    if form.candidate in kept:
        return kept[form.candidate]
    if form.failed or not form.losses or not math.isfinite(form.losses[-1][1]):
        return form.failed or "its validation loss is not finite"
    if of_its_technique:
        return f"{form.technique} goes on with {' and '.join(of_its_technique)}"
    return f"not among the best {places} {_BY}"


def _standing(form: Form, steps: int, kept: bool, why: str) -> Standing:
    score = form.losses[-1][1] if form.losses and math.isfinite(form.losses[-1][1]) else None
    trend = form.trend(steps) if math.isfinite(form.trend(steps)) else None
    return Standing(form.candidate, form.metrics, score, trend, form.time_s, form.memory_bytes, kept, why)


def survivors(entered: Sequence[int], finalists: int, slow: int = 0) -> tuple[int, int, int, int]:
    """How many candidates train towards each rung, if so many of each technique enter and `slow` slow starters are
    kept beyond the better half."""
    finalists = min(finalists, len(entered))
    half = min(len(entered), max(finalists, math.ceil(len(entered) / 2)) + slow)
    return sum(entered), sum(min(KEPT, count) for count in entered), half, finalists


def full_trainings(entered: Sequence[int], finalists: int, seeds: int, slow: int = 0) -> float:
    """How many trainings of the full length a race costs."""
    towards = survivors(entered, finalists, slow)
    stretches = (share - before for share, before in zip(SHARES, (0.0, *SHARES), strict=False))
    return sum(n * stretch for n, stretch in zip(towards, stretches, strict=True)) + towards[-1] * (seeds - 1)
