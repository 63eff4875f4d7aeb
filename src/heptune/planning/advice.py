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
from heptune.planning.fit import LENGTH, QUANTIZE

if TYPE_CHECKING:
    from heptune.planning.plan import TechniquePlan

# Priors (means of tiers) that differ by less are equal: with a dozen comparisons each they are not known better.
_SAME_PRIOR = 0.25
# What the changes that cost quality add to a prior: 4 bits half a tier, cut examples more than all tiers.
_FOUR_BITS, _CUT = 0.5, 3.0
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
    best, equal = order[0], _equals(fitting)
    reasons = [_fits(best), _prior(best, task, examples)]
    others = [plan for plan in order[1:] if plan in equal]
    if others:
        names = " and ".join(plan.technique for plan in others)
        reasons.append(
            f"{names} would be expected to do as well; {best.technique} costs less{_price(best, others[0])}."
        )
    reasons.append(DECIDES)
    return Advice(best.technique, tuple(reasons), tuple(_cautions(best)), tuple(plan.technique for plan in order))


def ranked(fitting: Sequence[TechniquePlan]) -> list[TechniquePlan]:
    """Best prior first; among priors that are as good as equal the cheapest."""
    left = sorted(fitting, key=_standing)
    found: list[TechniquePlan] = []
    while left:
        chosen = _cheapest(_equals(left))
        found.append(chosen)
        left.remove(chosen)
    return found


def _equals(plans: Sequence[TechniquePlan]) -> list[TechniquePlan]:
    """Those whose standing is that of the best, or as good as equal."""
    best = min(_standing(plan) for plan in plans)
    return [plan for plan in plans if _standing(plan) - best <= _SAME_PRIOR]


def _cheapest(plans: Sequence[TechniquePlan]) -> TechniquePlan:
    """The fastest; times that are nearly the same leave it to what a change costs, to what use costs, to memory."""
    fastest = min(_time(plan) for plan in plans)
    alike = [plan for plan in plans if _time(plan) <= _SAME_TIME * fastest]
    return min(alike, key=lambda plan: (plan.price, not _merges(plan), plan.peak_bytes, plan.trainable))


def _standing(plan: TechniquePlan) -> float:
    """The prior's score, 1 (best) to 3, worse where a change costs quality; nothing known counts as somewhat behind."""
    score = plan.prior.score if plan.prior.score is not None else 2.0
    return score + (_CUT if plan.price >= LENGTH else _FOUR_BITS if plan.price >= QUANTIZE else 0.0)


def _merges(plan: TechniquePlan) -> bool:
    return plan.serving is not None and plan.serving.merged


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
    if _merges(best) and not _merges(other):
        return f" (it merges into the base; {other.technique} is paid for at every use)"
    if best.peak_bytes < other.peak_bytes:
        return f" ({format_bytes(best.peak_bytes)} instead of {format_bytes(other.peak_bytes)} for {other.technique})"
    return ""


def _cautions(plan: TechniquePlan) -> list[str]:
    found = [] if plan.prior.caution is None else [f"{plan.technique}: {plan.prior.caution}."]
    assert plan.chosen is not None
    if plan.steps < _FEW_STEPS:
        found.append(
            f"{plan.steps} optimizer steps are few: techniques that start slowly may look worse than they are."
        )
    merge = plan.chosen.phases.get("merge")
    if merge is not None and merge > plan.chosen.room_bytes:
        found.append(
            f"Merging it into the base needs {format_bytes(merge)}, which is not here: merge on another machine, or "
            "use it unmerged."
        )
    return found


def _what_would_help(plans: Sequence[TechniquePlan]) -> list[str]:
    able = [plan for plan in plans if plan.estimate is not None]
    if not able:
        return ["None of the techniques can be run on this base."]
    near = min(able, key=lambda plan: plan.least_bytes)
    words = [
        f"Nothing fits. {near.technique} comes nearest: with every saving it needs {format_bytes(near.least_bytes)}."
    ]
    wide = [plan for plan in able if plan.devices_needed is not None]
    if wide:
        few = min(wide, key=lambda plan: (plan.devices_needed or 0, plan.peak_bytes))
        words.append(f"{few.technique} would fit on {few.devices_needed} such devices, fully sharded.")
    return words
