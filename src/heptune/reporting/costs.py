"""Costs as predicted and as measured, side by side."""

from __future__ import annotations

from collections.abc import Callable

from heptune.reporting import numbers
from heptune.reporting.drawing import PANEL, dot, drawing, fitted_text, hue, line, text_width, write
from heptune.reporting.findings import Cost, Findings
from heptune.reporting.markup import Markup
from heptune.reporting.scale import fitted

ROW = 26
MOST_ROWS = 16  # more would fill the page
Pair = Callable[[Cost], tuple[float | None, float | None]]
QUANTITIES: tuple[tuple[str, Pair, tuple[tuple[float, str], ...]], ...] = (
    ("peak memory", lambda c: (c.predicted_memory_bytes, c.memory_bytes), numbers.BYTE_UNITS),
    ("training time", lambda c: (c.predicted_time_s, c.time_s), numbers.TIME_UNITS),
    ("time of a step", lambda c: (c.predicted_step_s, c.step_s), numbers.TIME_UNITS),
)


def error(predicted: float | None, measured: float | None) -> float | None:
    """How far the prediction is off, as a share of what was measured: +0.1 is a tenth too much."""
    return None if predicted is None or not measured else predicted / measured - 1


def cost_panels(found: Findings) -> list[Markup]:
    """Memory, and the whole time or that of a step, whichever is known of more trainings; the table has all three."""
    memory, whole, step = ((name, _known(found, pair), units) for name, pair, units in QUANTITIES)
    time = whole if len(whole[1]) >= len(step[1]) else step
    return [_panel(found, name, rows, units) for name, rows, units in (memory, time) if rows]


def _known(found: Findings, pair: Pair) -> list[tuple[Cost, float, float]]:
    """The trainings of which both sides are known, of those that come first."""
    both = ((cost, *pair(cost)) for cost in found.costs[:MOST_ROWS])
    return [(cost, a, b) for cost, a, b in both if a is not None and b is not None]


def _panel(
    found: Findings, name: str, rows: list[tuple[Cost, float, float]], units: tuple[tuple[float, str], ...]
) -> Markup:
    divisor, unit = numbers.unit_for([value for _, *both in rows for value in both], units)
    left = min(max(text_width(cost.name) for cost, *_ in rows) + 18, 0.34 * PANEL)
    values = [value / divisor for _, *both in rows for value in both]
    # From zero, so that a distance reads as a share of the whole; in ratios where the sizes are too different.
    logarithmic = min(values) > 0 and max(values) / min(values) > 30
    scale = fitted(values if logarithmic else [0.0, *values], left, PANEL - 64.0, within=(0.0, 1e300), ratio=30)
    bottom = 30.0 + ROW * len(rows)
    marks: list[object] = [write(left, 16, f"{name}, {unit}", "name"), write(PANEL - 2, 16, "off by", "name", "end")]
    for tick in scale.ticks(4):
        at = scale(tick)
        marks += [line(at, 26, at, bottom, "grid"), write(at, bottom + 16, numbers.plain(tick), "tick", "middle")]
    for number, (cost, predicted, measured) in enumerate(rows):
        y = 30 + ROW * (number + 0.5)
        colour = hue(found.hues[cost.technique])
        a, b = scale(predicted / divisor), scale(measured / divisor)
        off = numbers.percent(error(predicted, measured))
        told = (
            f"{cost.name}: predicted {predicted / divisor:.3g} {unit}, measured {measured / divisor:.3g} {unit}, {off}"
        )
        marks += [
            write(left - 10, y + 4, fitted_text(cost.name, left - 14), "label", "end"),
            line(a, y, b, y, f"whisker {colour}"),
            dot(b, y, 4.5, f"mark {colour}", told),
            dot(a, y, 4.5, f"hollow {colour}", told),
            write(PANEL - 2, y + 4, off, "number", "end"),
        ]
    description = f"{len(rows)} rows: a ring where the prediction stood, a disc where the measurement stands."
    return drawing(f"{name}: predicted and measured", description, PANEL, bottom + 26, *marks)
