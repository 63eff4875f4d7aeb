"""Learning curves: the training loss, smoothed, and the validation metric over the steps."""

from __future__ import annotations

from statistics import fmean

from heptune.reporting import numbers
from heptune.reporting.drawing import (
    PANEL,
    Frame,
    cross,
    dot,
    drawing,
    fitted_text,
    hue,
    path,
    spread,
    text_width,
    write,
)
from heptune.reporting.findings import Curve, Findings, Points
from heptune.reporting.markup import Markup
from heptune.reporting.scale import Scale, fitted

HEIGHT = 290
MOST_POINTS = 300  # of one line: more than the pixels a line is wide tell nothing
LABELS = 8  # names beside the lines; more do not fit the height


def smoothed(points: Points, share: float = 0.05) -> Points:
    """A straight line through each point and its neighbours within `share` of the points on either side, at the point.

    That is local regression (Cleveland 1979) with equal weights. Unlike a running mean it is true at both ends, where
    the loss falls fastest and where its last value is read. No value leaves the range of its neighbours.
    """
    points = averaged(points)
    reach = max(int(len(points) * share), min(3, len(points) // 6))
    result = []
    for i, (step, _) in enumerate(points):
        near = points[max(i - reach, 0) : i + reach + 1]
        mean_x, mean_y = fmean(x for x, _ in near), fmean(y for _, y in near)
        spread_x = sum((x - mean_x) ** 2 for x, _ in near)
        slope = sum((x - mean_x) * (y - mean_y) for x, y in near) / spread_x if spread_x else 0.0
        value = mean_y + slope * (step - mean_x)
        result.append((step, min(max(value, min(y for _, y in near)), max(y for _, y in near))))
    return tuple(result)


def averaged(points: Points, most: int = 2 * MOST_POINTS) -> Points:
    """At most `most` points: the means of so many neighbours."""
    stride = -(-len(points) // most) or 1
    groups = [points[i : i + stride] for i in range(0, len(points), stride)]
    return tuple((fmean(x for x, _ in group), fmean(y for _, y in group)) for group in groups)


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """At most about `most` points, evenly, the last one always among them."""
    stride = -(-len(points) // most) or 1
    return points if stride == 1 else (*points[:-1:stride], points[-1])


def loss_panel(found: Findings) -> Markup | None:
    """The smoothed training loss; for a single run the raw one stands faintly behind it."""
    curves = [curve for curve in found.curves if curve.loss]
    if not curves:
        return None
    alone = len(curves) == 1
    lines = {id(curve): smoothed(curve.loss) for curve in curves}
    behind = curves[0].loss if alone else ()
    title = "Training loss over the steps"
    label = "training loss, nats per supervised token"
    return _panel(found, curves, lines, title, label, "loss", behind)


def validation_panel(found: Findings) -> Markup | None:
    """The validation metric; the kept step is marked."""
    curves = [curve for curve in found.curves if curve.validation]
    if not curves:
        return None
    lines = {id(curve): curve.validation for curve in curves}
    title = f"Validation {found.curve_metric} over the steps"
    return _panel(found, curves, lines, title, f"validation {found.curve_metric}", "validation", ())


def _panel(
    found: Findings,
    curves: list[Curve],
    lines: dict[int, Points],
    title: str,
    label: str,
    kind: str,
    behind: Points,
) -> Markup:
    named = _to_name(curves)
    alone = len(curves) == 1
    room = 14.0 if alone else min(1.1 * max((text_width(curve.name) for curve in named), default=0) + 14, 0.3 * PANEL)
    frame = _frame(found, lines, behind, room, kind)
    marks: list[object] = [*frame.drawn("step", label)]
    if behind:
        faint = f"raw {hue(found.hues[curves[0].technique])}"
        marks.append(path([(frame.x(x), frame.y(y)) for x, y in thinned(behind)], faint))
    # Dropped ones first, so that finalists are drawn over them.
    for curve in sorted(curves, key=lambda curve: ("dropped", "running", "finalist").index(curve.state)):
        marks += _curve(curve, lines[id(curve)], frame, hue(found.hues[curve.technique]), kind, len(curves) <= 3)
    if not alone:
        marks += _names(named, lines, frame, found, room)
    count = f"{len(curves)} trainings, {sum(curve.state == 'dropped' for curve in curves)} of them dropped on the way"
    description = f"{'One training' if alone else count}; the numbers stand in the table below."
    return drawing(title, description, PANEL, HEIGHT, *marks)


def _frame(found: Findings, lines: dict[int, Points], behind: Points, room: float, kind: str) -> Frame:
    points = [point for line in lines.values() for point in line]
    values = [y for _, y in points]
    if behind:  # a single wild step must not press the rest flat
        ordered = sorted(y for _, y in behind)
        values += [ordered[len(ordered) // 50], ordered[-1 - len(ordered) // 50]]
    share = kind == "validation" and all(0 <= value <= 1 for value in values)
    y = fitted(values, HEIGHT - 48.0, 34.0, within=(0.0, 1.0) if share else (-1e300, 1e300), ratio=40)
    left = 20 + max(text_width(numbers.plain(tick)) for tick in y.ticks(5) or [0.0])
    steps = [x for x, _ in points]
    end = max(steps) if max(steps) > min(steps) else min(steps) + 1
    start = 0.0 if min(steps) >= 0 else min(steps)
    return Frame(Scale(start, max(end, start + 1), left, PANEL - room), y, numbers.plain, numbers.plain)


def _curve(curve: Curve, line: Points, frame: Frame, colour: str, kind: str, few: bool) -> list[object]:
    places = [(frame.x(x), frame.y(y)) for x, y in thinned(line)]
    weight = "fine" if curve.seed is not None else curve.state
    marks: list[object] = [path(places, f"curve {weight} {colour}")]
    x, y = places[-1]
    if curve.state == "dropped":
        last = f"{curve.name}: dropped at step {curve.dropped_at}"
        marks.append(cross(x, y, 3, f"end dropped {colour}", last))
    if kind == "validation" and curve.state != "dropped":
        for step, value in line:
            best = step == curve.best_step
            if best or few:
                seed = "" if curve.seed is None else f", seed {curve.seed}"
                told = f"{curve.name}{seed}, step {step:g}: {numbers.score(value)}" + (", kept" if best else "")
                size, form = (4.5, "mark") if best else (2.5, "point")
                marks.append(dot(frame.x(step), frame.y(value), size, f"{form} {colour}", told))
    return marks


def _to_name(curves: list[Curve]) -> list[Curve]:
    """The lines that get their name written: finalists, else those still running, as many as there is room for."""
    own = [curve for curve in curves if curve.seed is None]
    strong = [c for c in own if c.state == "finalist"] or [c for c in own if c.state == "running"] or own
    return strong[:LABELS]


def _names(named: list[Curve], lines: dict[int, Points], frame: Frame, found: Findings, room: float) -> list[Markup]:
    ends = [frame.y(lines[id(curve)][-1][1]) for curve in named]
    places = spread(ends, 14, frame.y.end + 4, frame.y.start - 2)
    x = frame.x.end + 8
    return [
        write(x, at + 4, fitted_text(curve.name, (room - 8) / 1.08), f"label {hue(found.hues[curve.technique])} ink")
        for curve, at in zip(named, places, strict=True)
    ]
