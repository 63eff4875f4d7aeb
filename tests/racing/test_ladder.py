"""Who goes on: the rules of the ladder, one by one, and whether whole races find the best candidate."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heptune.racing.ladder import SHARES, Form, decide, full_trainings, rungs

STEPS = 800
TECHNIQUES = ("adapter", "freeze", "full", "lora", "prefix", "prompt")
SLOW = {"prefix", "prompt"}


def form(name: str, *losses: float, technique: str = "", slow: bool = False, steps: int = STEPS, **more: Any) -> Form:
    at = rungs(steps)[: len(losses)]
    return Form(name, technique or name, slow, tuple(zip(at, losses, strict=True)), **more)


@st.composite
def fields(draw: st.DrawFn, rung: int) -> list[Form]:
    """Candidates after a rung: any losses, some not finite, some that failed."""
    loss = st.one_of(st.floats(0.0, 9.0), st.sampled_from([math.nan, math.inf, 1.0]))
    found = []
    for number in range(draw(st.integers(1, 9))):
        technique = draw(st.sampled_from(TECHNIQUES))
        losses = draw(st.lists(loss, min_size=rung + 1, max_size=rung + 1))
        failed = draw(st.sampled_from(["", "", "", "the loss is nan at step 3"]))
        name = f"{technique}-{number}"
        shown = () if failed else losses
        found.append(form(name, *shown, technique=technique, slow=technique in SLOW, failed=failed))
    return found


RUNGS = st.integers(0, 2)


@given(st.data(), RUNGS, st.integers(1, 4))
def test_whoever_can_go_on(data: st.DataObject, rung: int, finalists: int) -> None:
    """Somebody is kept if anybody is able; who failed or has no finite loss never is, and is told why."""
    forms = data.draw(fields(rung))
    standings = {s.candidate: s for s in decide(forms, rung, STEPS, finalists)}
    assert standings.keys() == {f.candidate for f in forms}
    able = {f.candidate for f in forms if not f.failed and math.isfinite(f.losses[-1][1])}
    kept = {name for name, standing in standings.items() if standing.kept}
    assert kept <= able and bool(kept) == bool(able)
    assert all(standing.why for standing in standings.values())
    for each in forms:
        if each.failed:
            assert standings[each.candidate].why == each.failed
            assert standings[each.candidate].score is None and standings[each.candidate].trend is None


@given(st.data(), RUNGS, st.integers(1, 4), st.randoms(use_true_random=False))
def test_the_order_of_the_candidates_changes_nothing(
    data: st.DataObject, rung: int, finalists: int, draw: random.Random
) -> None:
    forms = data.draw(fields(rung))
    shuffled = draw.sample(forms, len(forms))
    assert repr(decide(forms, rung, STEPS, finalists)) == repr(decide(shuffled, rung, STEPS, finalists))


@given(st.data(), st.integers(1, 4))
def test_the_first_rung_keeps_the_best_two_of_every_technique(data: st.DataObject, finalists: int) -> None:
    forms = data.draw(fields(0))
    standings = decide(forms, 0, STEPS, finalists)
    for technique in {f.technique for f in forms}:
        own = sorted(
            (f.trend(STEPS), f.candidate) for f in forms if f.technique == technique and math.isfinite(f.trend(STEPS))
        )
        chosen = [s.candidate for s in standings if s.kept and s.candidate.startswith(technique)]
        assert chosen == [name for _, name in own[:2]]


def test_the_second_rung_keeps_the_better_of_two_and_names_it() -> None:
    forms = [
        form("lora-low", 1.0, 0.9, technique="lora"),
        form("lora-high", 1.5, 0.95, technique="lora"),  # behind, and heading lower
        form("full-low", 1.1, 1.0, technique="full"),
        form("full-high", 1.1, 1.05, technique="full"),
    ]
    standings = {s.candidate: s for s in decide(forms, 1, STEPS, 1)}
    assert [name for name, s in standings.items() if s.kept] == ["lora-high"]
    assert standings["lora-low"].why == "lora goes on with lora-high"
    assert standings["full-low"].why == "not among the best 1 by where the loss is heading"


def test_the_first_rung_judges_no_technique_even_where_each_has_one_rate() -> None:
    """After an eighth nobody has a trend yet: a slow starter would be out before it could show one."""
    forms = [form("lora", 1.0), form("full", 1.1), form("adapter", 1.2), form("prompt", 3.0, slow=True)]
    standings = decide(forms, 0, STEPS, 2)
    assert all(s.kept for s in standings)
    assert {s.candidate: s.why for s in standings}["prompt"] == "all of prompt"


@given(st.data(), st.integers(1, 2), st.integers(1, 4))
def test_who_is_behind_in_everything_displaces_nobody(data: st.DataObject, rung: int, finalists: int) -> None:
    """A candidate whose trend is worse than another's is kept only beside it or beside a better one of the other's
    technique, unless it starts slowly."""
    forms = data.draw(fields(rung))
    kept = {s.candidate: s.kept for s in decide(forms, rung, STEPS, finalists)}
    leaders = {f.technique for f in forms if kept[f.candidate]}
    for worse in forms:
        for better in forms:
            if better.trend(STEPS) < worse.trend(STEPS) and kept[worse.candidate] and better.technique not in leaders:
                assert worse.slow_start and rung < 2


@given(st.data(), st.integers(1, 2), st.integers(1, 4))
def test_after_the_second_rung_a_technique_has_one_candidate_its_best(
    data: st.DataObject, rung: int, finalists: int
) -> None:
    forms = data.draw(fields(rung))
    kept = [f for s in decide(forms, rung, STEPS, finalists) for f in forms if s.kept and f.candidate == s.candidate]
    assert len({f.technique for f in kept}) == len(kept)
    for each in kept:
        assert each.trend(STEPS) == min(f.trend(STEPS) for f in forms if f.technique == each.technique)


@given(st.data(), st.integers(1, 4))
def test_the_last_cut_keeps_the_finalists_and_no_one_else(data: st.DataObject, finalists: int) -> None:
    forms = data.draw(fields(2))
    able = {f.technique for f in forms if math.isfinite(f.trend(STEPS))}
    assert sum(s.kept for s in decide(forms, 2, STEPS, finalists)) == min(finalists, len(able))


def test_trend_and_hope_by_hand() -> None:
    """N = 800, at N/4: 3.0 after 100, 2.0 after 200: a doubling brought 1.0, two are left."""
    each = form("lora", 3.0, 2.0)
    assert each.trend(STEPS) == pytest.approx(2.0 - 1.0 * (1 / 2 + 1 / 4))
    assert each.hope(STEPS) == pytest.approx(2.0 - 1.0 * 2)
    assert form("lora", 3.0, 2.0, 1.5).trend(STEPS) == pytest.approx(1.5 - 0.5 * (1 / 2))
    assert form("lora", 3.0, 2.0, 1.5, 1.4).trend(STEPS) == 1.4
    assert form("lora", 3.0).trend(STEPS) == form("lora", 3.0).hope(STEPS) == 3.0
    assert form("lora", 2.0, 2.5).trend(STEPS) == 2.5  # who gets worse is promised nothing, and not punished
    # 12 steps: rungs 2, 3, 6, 12. From 2 to 3 is log2(1.5) doublings.
    assert form("lora", 3.0, 2.0, steps=12).trend(12) == pytest.approx(2.0 - 1.0 / math.log2(1.5) * 0.75)
    # 20 steps: rungs 2, 5, 10, 20; from 3 of them 2.74 doublings are left
    uneven = Form("lora", "lora", False, ((2, 3.0), (3, 2.0)))
    gain, left = 1.0 / math.log2(1.5), math.log2(20 / 3)
    assert uneven.trend(20) == pytest.approx(2.0 - gain * (1 / 2 + 1 / 4 + (left - 2) / 8))


@given(st.lists(st.floats(0.01, 9.0), min_size=1, max_size=4))
def test_hope_is_never_worse_than_trend_nor_trend_than_where_it_stands(losses: list[float]) -> None:
    each = form("lora", *losses)
    assert each.hope(STEPS) <= each.trend(STEPS) + 1e-12 <= losses[-1] + 2e-12


@pytest.mark.parametrize("before", [math.nan, math.inf])
def test_a_loss_that_was_not_finite_on_the_way_is_no_gain(before: float) -> None:
    """Whoever has recovered stands where it stands."""
    assert form("lora", before, 2.0).trend(STEPS) == 2.0
    assert form("lora", 3.0, before, 1.0).trend(STEPS) == pytest.approx(1.0 - (2.0 / 2) * (1 / 2))
    assert decide([form("lora", before, 2.0), form("full", 3.0, 2.9)], 1, STEPS, 1)[0].candidate == "lora"


def test_a_slow_starter_is_kept_to_the_half_and_no_further() -> None:
    fast = [form(name, 1.0 + i / 10, 0.9 + i / 10) for i, name in enumerate(["a", "b", "c", "d"])]
    falling = form("prompt", 4.0, 2.4, slow=True)  # another doubling like the last would bring 0.8, two -0.8
    assert falling.trend(STEPS) > fast[1].trend(STEPS) > falling.hope(STEPS)
    standings = {s.candidate: s for s in decide([*fast, falling], 1, STEPS, 2)}
    assert standings["prompt"].kept and standings["prompt"].why == "starts slowly and could still come"
    # It comes on top of those that are kept anyway: the better half of five.
    assert [name for name, s in standings.items() if s.kept and name != "prompt"] == ["a", "b", "c"]
    # The same curve of a technique that is not known for it is out.
    quick = form("adapter", 4.0, 2.4)
    assert not {s.candidate: s for s in decide([*fast, quick], 1, STEPS, 2)}["adapter"].kept
    # At the half it has come or not.
    half = [form(f.candidate, *(loss for _, loss in f.losses), 0.8 + i / 10) for i, f in enumerate(fast)]
    late = form("prompt", 4.0, 2.4, 1.9, slow=True)
    standings = {s.candidate: s for s in decide([*half, late], 2, STEPS, 2)}
    assert (
        not standings["prompt"].kept and standings["prompt"].why == "not among the best 2 by where the loss is heading"
    )


def test_a_slow_starter_that_cannot_come_is_out() -> None:
    fast = [form(name, 1.0, 0.9) for name in ("a", "b")]
    flat = form("prompt", 4.0, 3.9, slow=True)
    assert not {s.candidate: s for s in decide([*fast, flat], 1, STEPS, 2)}["prompt"].kept


@given(st.integers(1, 5000))
def test_rungs(steps: int) -> None:
    at = rungs(steps)
    assert at[-1] == steps and min(at) >= 1 and all(a < b for a, b in pairwise(at))
    if steps >= 8:
        assert len(at) == len(SHARES)
        assert all(abs(found - steps * share) <= 0.5 for found, share in zip(at, SHARES, strict=True))


@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.integers(2, 4))
@settings(max_examples=60, deadline=None)
def test_what_a_race_costs_is_what_it_trains(kinds: int, rates: int, finalists: int, seeds: int) -> None:
    """`full_trainings` against a race that is gone through; with every technique a slow starter it is the most."""
    finalists = min(finalists, kinds)
    for slow in (False, True):
        curves = {
            f"t{k}-{r}": Curve(f"t{k}", slow, 1.0 + k / 10, 1.0 + r, 0.5 if not slow else 0.1)
            for k in range(kinds)
            for r in range(rates)
        }
        told = full_trainings([rates] * kinds, finalists, seeds, kinds if slow else 0)
        raced = Raced.of(curves, finalists)
        cost = raced.cost + len(raced.finalists) * (seeds - 1)
        assert cost <= told + 1e-9
        if not slow:
            assert cost == pytest.approx(told)


# Whole races on made-up loss curves: what falls as a power of the steps, from different heights, at different speeds.


@dataclass(frozen=True)
class Curve:
    """loss(t) = floor + scale (t^-power - 1) at t, the share of the full length; before `onset` little happens."""

    technique: str
    slow: bool
    floor: float
    scale: float
    power: float
    onset: float = 0.0
    noise: float = 0.0
    seed: int = 0

    def at(self, share: float) -> float:
        """The validation loss."""
        t = max(0.02, share - self.onset) / (1 - self.onset)
        return (
            self.floor
            + self.scale * (t**-self.power - 1)
            + self.noise * random.Random(f"{self.seed}{share}").gauss(0, 1)
        )


@dataclass(frozen=True)
class Raced:
    finalists: tuple[str, ...]
    cost: float

    @classmethod
    def of(cls, curves: dict[str, Curve], finalists: int = 2) -> Raced:
        """Up the ladder; `cost` is what was trained, in full trainings with one seed."""
        alive, taken, cost = list(curves), 0.0, 0.0
        for rung, share in enumerate(SHARES):
            cost += len(alive) * (share - taken)
            taken = share
            if rung == len(SHARES) - 1:
                break
            forms = [
                form(
                    n,
                    *(curves[n].at(s) for s in SHARES[: rung + 1]),
                    technique=curves[n].technique,
                    slow=curves[n].slow,
                )
                for n in alive
            ]
            alive = [s.candidate for s in decide(forms, rung, STEPS, finalists) if s.kept]
        return cls(tuple(alive), cost)


def field_of(seed: int) -> dict[str, Curve]:
    """Nine techniques at three rates, four of them slow and tried from a text too: they begin high, fall late and may
    end lowest. Noise as between two validations of 200 records."""
    draw = random.Random(seed)
    curves = {}
    for number in range(9):
        slow = number >= 5
        floor = draw.uniform(0.25, 0.55)
        scale = draw.uniform(0.25, 0.6) if slow else draw.uniform(0.03, 0.2)
        power = draw.uniform(0.4, 0.8) if slow else draw.uniform(0.3, 0.6)
        for rate in ("low", "own", "high", *(["text"] if slow else [])):
            worse = 0.0 if rate == "own" else draw.uniform(0.0, 0.3)
            curves[f"t{number}-{rate}"] = Curve(
                f"t{number}",
                slow,
                floor + worse,
                scale * (2 if rate == "low" else 1),
                power,
                onset=draw.uniform(0.0, 0.1) if slow else 0.0,
                noise=0.01,
                seed=draw.randrange(10**6),
            )
    return curves


def test_simulated_races_find_the_best_at_a_third_of_the_price(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured over these 300 races (the seeds are fixed: only a change of the rules can move it): the finals have the
    best of 31 candidates in 77 % of the races, those that start slowly in 52 % where they are the best; the best
    finalist is 0.005 nats from the best of all; 30 % of what it costs to train everyone. Judged by where candidates
    stand instead of where they are going it is 63 %, 13 % and 0.012; with one candidate of a technique kept at N/8
    73 %, 39 % and 0.007."""
    fields_of = [field_of(seed) for seed in range(300)]

    def measured() -> tuple[float, float, float, float]:
        races = [(curves, Raced.of(curves)) for curves in fields_of]
        best = [min(curves, key=lambda name: curves[name].floor) for curves, _ in races]
        found = [(c[name].slow, name in raced.finalists) for name, (c, raced) in zip(best, races, strict=True)]
        lost = [min(c[n].floor for n in raced.finalists) - min(x.floor for x in c.values()) for c, raced in races]
        share = max(raced.cost / len(curves) for curves, raced in races)
        return mean([yes for _, yes in found]), mean([yes for slow, yes in found if slow]), mean(lost), share

    found, slow_found, lost, share = measured()
    assert found >= 0.72 and slow_found >= 0.42 and lost <= 0.007 and share <= 0.35
    monkeypatch.setattr(Form, "trend", lambda form, steps: form._ahead(steps, 0.0))
    by_place, slow_by_place, lost_by_place, _ = measured()
    assert by_place <= found - 0.08 and slow_by_place <= slow_found - 0.2 and lost_by_place >= lost + 0.003
