"""The recommendation: which technique to begin with, and why, in plain words. Imports no torch.

Among the techniques that fit, changed as little as possible, the one with the best prior for this kind of task and this
many examples; equal priors are decided by what the training costs. A prior is no result: what decides is a race on the
person's own data, and the advice always says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heptune.core.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from heptune.planning.plan import TechniquePlan

# A change that costs at least this much (see planning/fit.py) costs quality, not only time.
_COSTS_QUALITY = 10
# Times that differ by less decide nothing; they are not known better.
_SAME_TIME = 1.25
# With fewer optimizer steps than this, what starts slowly has not learned yet.
_FEW_STEPS = 200

DECIDES = "Only a race on your own data decides: these are priors from other bases and other data, not predictions."


@dataclass(frozen=True)
class Advice:
    """`technique` is None where nothing fits. `reasons` and `cautions` are sentences; `order` ranks all that fit."""

    technique: str | None
    reasons: tuple[str, ...]
    cautions: tuple[str, ...]
    order: tuple[str, ...]


def advise(plans: Sequence[TechniquePlan], task: str, examples: int) -> Advice:
    """The advice for techniques that were planned alike."""
    fitting = [plan for plan in plans if plan.chosen is not None]
    if not fitting:
        return Advice(None, (*_what_would_help(plans), DECIDES), (), ())
    order = ranked(fitting)
    best = order[0]
    reasons = [_fits(best), _prior(best, task, examples)]
    equals = [plan for plan in order[1:] if _standing(plan) == _standing(best)]
    if equals:
        names = ", ".join(plan.technique for plan in equals)
        reasons.append(f"{names} would be expected to do as well; {best.technique} costs less{_price(best, equals[0])}.")
    reasons.append(DECIDES)
    return Advice(best.technique, tuple(reasons), tuple(_cautions(best)), tuple(plan.technique for plan in order))


def ranked(fitting: Sequence[TechniquePlan]) -> list[TechniquePlan]:
    """Best prior first; within a tier the cheapest. Times that are nearly the same leave it to memory."""
    found: list[TechniquePlan] = []
    for standing in sorted({_standing(plan) for plan in fitting}):
        group = [plan for plan in fitting if _standing(plan) == standing]
        while group:
            fastest = min(_time(plan) for plan in group)
            alike = [plan for plan in group if _time(plan) <= _SAME_TIME * fastest]
            chosen = min(alike, key=lambda plan: (plan.price, plan.peak_bytes, plan.trainable))
            found.append(chosen)
            group.remove(chosen)
    return found


def _standing(plan: TechniquePlan) -> tuple[int, float]:
    """Whether a change costs quality, then the prior's tier; nothing known counts as somewhat behind."""
    tier = plan.prior.tier if plan.prior.tier is not None else 2
    costly = plan.price // _COSTS_QUALITY
    return (1 if costly >= 4 else 0), tier + (0.5 if costly else 0)


def _time(plan: TechniquePlan) -> float:
    timing = plan.chosen.timing if plan.chosen is not None else None
    return timing.total_s if timing is not None else 0.0


def _fits(plan: TechniquePlan) -> str:
    assert plan.chosen is not None
    peak, room = format_bytes(plan.chosen.peak_bytes), format_bytes(plan.chosen.room_bytes)
    how = f" with {' '.join(plan.change.options)}" if plan.change is not None else ""
    many = "" if plan.chosen.strategy == "one device" else f" on each device ({plan.chosen.strategy})"
    timing = plan.chosen.timing
    time = f", and takes about {format_seconds(timing.total_s)}" if timing is not None else ""
    return f"It fits{how}: at most {peak} of {room}{many}{time}."


def _prior(plan: TechniquePlan, task: str, examples: int) -> str:
    if plan.prior.tier is None:
        return "Nothing is known of its quality from earlier comparisons."
    first = "; ".join(plan.prior.evidence[:2])
    return f"Prior for {task} with {examples} examples: {plan.prior.words}. {first[0].upper()}{first[1:]}."


def _price(best: TechniquePlan, other: TechniquePlan) -> str:
    mine, theirs = _time(best), _time(other)
    if mine and theirs > _SAME_TIME * mine:
        return f" ({format_seconds(mine)} instead of {format_seconds(theirs)} for {other.technique})"
    if best.peak_bytes < other.peak_bytes:
        return f" ({format_bytes(best.peak_bytes)} instead of {format_bytes(other.peak_bytes)} for {other.technique})"
    return ""


def _cautions(plan: TechniquePlan) -> list[str]:
    found = [] if plan.prior.caution is None else [f"{plan.technique}: {plan.prior.caution}."]
    assert plan.chosen is not None
    if plan.steps < _FEW_STEPS:
        found.append(f"{plan.steps} optimizer steps are few: techniques that start slowly may look worse than they are.")
    merge = plan.chosen.phases.get("merge")
    if merge is not None and merge > plan.chosen.room_bytes:
        found.append(
            f"Merging it into the base needs {format_bytes(merge)}, which is not here: merge on another machine, or use "
            "it unmerged."
        )
    return found


def _what_would_help(plans: Sequence[TechniquePlan]) -> list[str]:
    able = [plan for plan in plans if plan.estimate is not None]
    if not able:
        return ["None of the techniques can be run on this base."]
    near = min(able, key=lambda plan: plan.least_bytes)
    words = [f"Nothing fits. {near.technique} comes nearest: with every saving it needs {format_bytes(near.least_bytes)}."]
    wide = [plan for plan in able if plan.devices_needed is not None]
    if wide:
        few = min(wide, key=lambda plan: (plan.devices_needed or 0, plan.peak_bytes))
        words.append(f"{few.technique} would fit on {few.devices_needed} such devices, fully sharded.")
    return words
