from __future__ import annotations

import math
import random
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import heptune.reporting
from heptune.reporting.costs import error
from heptune.reporting.curves import averaged, smoothed, thinned
from heptune.reporting.drawing import fitted_text, spread, text_width
from heptune.reporting.findings import Confusion, Contender
from heptune.reporting.heat_map import confused
from heptune.reporting.pareto import front
from heptune.reporting.scale import Scale, fitted, round_step

NUMBER = st.floats(-1e12, 1e12, allow_nan=False)


@given(st.lists(NUMBER, max_size=8), st.sampled_from([1.5, 40.0, math.inf]))
@example([1.0, 5e-324], 1.5)
@example([0.0, 5e-324], 1.5)
@example([1.0, 2.3e-308], 1.5)
@example([2.2250738585072014e-308], 1.5)
@example([1.5e-290, 1.6e-290], 1.5)
def test_a_fitted_scale_holds_its_values_in_order_with_round_ticks(values: list[float], ratio: float) -> None:
    scale = fitted(values, 50.0, 400.0, ratio=ratio)
    places = [scale(value) for value in sorted(values)]
    assert places == sorted(places) and all(50 <= place <= 400 for place in places)
    ticks = scale.ticks(5)
    assert ticks == sorted(ticks) and len(ticks) <= 7
    assert all(scale.low - 1e-6 * abs(scale.low) <= tick <= scale.high + 1e-6 * abs(scale.high) for tick in ticks)


def test_ticks_are_the_round_numbers_within() -> None:
    assert Scale(0.17, 0.93, 0, 1).ticks(4) == [0.2, 0.4, 0.6, 0.8]
    assert Scale(0, 10, 0, 1).ticks(4) == [0, 2.5, 5, 7.5, 10]
    assert Scale(0.9, 600, 0, 1, logarithmic=True).ticks(4) == [1, 10, 100]
    assert [round_step(x) for x in (0.19, 0.21, 3.0, 7.0)] == pytest.approx([0.2, 0.25, 5, 10])


def test_a_logarithmic_scale_gives_equal_ratios_equal_room() -> None:
    scale = fitted([1, 100], 0, 1, ratio=10)
    assert scale.logarithmic and not fitted([1, 100], 0, 1, ratio=1000).logarithmic
    assert not fitted([-1, 100], 0, 1, ratio=10).logarithmic
    assert scale(10) - scale(1) == pytest.approx(scale(100) - scale(10))


def test_a_share_never_gets_an_axis_beyond_one() -> None:
    scale = fitted([0.5, 1.0], 0, 1, within=(0.0, 1.0))
    assert scale.high == 1.0 and scale.low < 0.5
    assert fitted([1.0, 1.0], 0, 1, within=(0.0, 1.0))(1.0) == 1


def test_smoothing_keeps_straight_lines_and_takes_noise_away_to_the_ends() -> None:
    straight = tuple((float(n), 3.0 - 0.1 * n) for n in range(200))
    assert [y for _, y in smoothed(straight)] == pytest.approx([y for _, y in straight])
    rough = tuple((float(n), float(n % 2)) for n in range(200))
    assert all(abs(y - 0.5) < 0.2 for _, y in smoothed(rough))
    draw = random.Random(0)
    noisy = tuple((float(n), 2 * math.exp(-n / 60) + draw.gauss(0, 0.1)) for n in range(300))
    off = [abs(y - 2 * math.exp(-x / 60)) for x, y in smoothed(noisy)]
    assert sum(off) / len(off) < 0.03 and max(off) < 0.15
    assert smoothed(((1.0, 2.0),)) == ((1.0, 2.0),) and smoothed(()) == ()


def test_long_trainings_are_averaged_before_they_are_smoothed() -> None:
    points = tuple((float(n), float(n % 3)) for n in range(30_000))
    few = averaged(points)
    assert len(few) == 600 and sum(y for _, y in few) / 600 == pytest.approx(1.0, abs=0.01)
    assert averaged(points[:600]) == points[:600]


@pytest.mark.parametrize("count", [1, 2, 299, 300, 301, 12_345])
def test_thinning_keeps_first_and_last(count: int) -> None:
    points = tuple((float(n), 0.0) for n in range(count))
    kept = thinned(points)
    assert len(kept) <= 301 and kept[0] == points[0] and kept[-1] == points[-1]


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 1)), min_size=1, max_size=9), st.booleans())
def test_the_front_is_what_no_other_beats(points: list[tuple[float, float]], higher: bool) -> None:
    given = [(Contender(str(n), "t"), cost, score) for n, (cost, score) in enumerate(points)]

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        score = (a[1], b[1]) if higher else (-a[1], -b[1])
        return a[0] <= b[0] and score[0] >= score[1] and a != b

    best = {(cost, score) for _, cost, score in front(given, higher)}
    assert best == {b for b in points if not any(beats(a, b) for a in points)}


@given(st.lists(st.floats(0, 100), max_size=8))
def test_spread_places_stand_apart_in_their_order(places: list[float]) -> None:
    moved = spread(places, 12, 0, 100)
    order = sorted(range(len(places)), key=lambda i: places[i])
    assert all(moved[b] - moved[a] >= 12 - 1e-6 for a, b in pairwise(order))
    assert all(-1e-6 <= place <= 100 + 1e-6 for place in moved)


@given(st.text(max_size=60), st.floats(20, 200))
def test_fitted_text_fits(text: str, room: float) -> None:
    assert text_width(fitted_text(text, room)) <= room + 1e-6


def test_errors_of_predictions_and_of_answers() -> None:
    assert error(110, 100) == pytest.approx(0.1) and error(None, 1.0) is None and error(1.0, 0.0) is None
    matrix = Confusion("x", ((5, 1, 0), (3, 4, 1), (0, 0, 0)))
    assert confused(matrix, ("a", "b", "c")) == [("b", "a", 3, 8), ("a", "b", 1, 6), ("b", "c", 1, 8)]


def _schemes() -> list[dict[str, str]]:
    style = Path(heptune.reporting.__file__).with_name("style.css").read_text("utf-8")
    blocks = re.findall(r":root \{(.*?)\}", style, re.S)
    return [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6});", block)) for block in blocks]


def _luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_colour_that_is_written_in_can_be_read_on_paper() -> None:
    light, dark, paper = _schemes()
    for scheme in (light, dark, paper):
        for name in ("ink", "soft", "accent", "right", "wrong", "baseline", *(f"h{n}" for n in range(1, 10))):
            bright, deep = sorted((_luminance(scheme[name]), _luminance(scheme["paper"])), reverse=True)
            assert (bright + 0.05) / (deep + 0.05) >= 4.5, (name, scheme[name])  # what WCAG 2.1 asks of text
