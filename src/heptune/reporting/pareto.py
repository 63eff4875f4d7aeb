"""Score against what it costs, one panel for each kind of cost."""

from __future__ import annotations

from collections.abc import Callable

from heptune.reporting import numbers
from heptune.reporting.drawing import Frame, box, dot, drawing, hue, path, text_width, write
from heptune.reporting.findings import Contender, Findings
from heptune.reporting.markup import Markup
from heptune.reporting.scale import fitted

WIDTH, HEIGHT = 300, 270
INSET = 8  # room left of the least
NOTHING = 10_000  # what costs so many times less than the dearest
RATIO = 12  # costs that differ by more stand on a logarithmic scale
Units = tuple[tuple[float, str], ...]
COSTS: tuple[tuple[str, Callable[[Contender], float | None], Units], ...] = (
    ("peak memory", lambda c: c.memory_bytes, numbers.BYTE_UNITS),
    ("training time", lambda c: c.time_s, numbers.TIME_UNITS),
    ("artifact size", lambda c: c.artifact_bytes, numbers.BYTE_UNITS),
)
Point = tuple[Contender, float, float]


def pareto_panels(found: Findings) -> list[Markup]:
    """A panel for each cost that at least two contenders have."""
    panels = []
    for name, cost, units in COSTS:
        points: list[Point] = []
        for contender in found.contenders:
            value = cost(contender)
            if value is not None and contender.score is not None:
                points.append((contender, value, contender.score.value))
        if len(points) > 1:
            panels.append(_panel(found, name, points, units))
    return panels


def front(points: list[Point], higher_is_better: bool) -> list[Point]:
    """Those that no other beats in cost without losing in score, from the cheapest."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p[1], -p[2] if higher_is_better else p[2])):
        if not best or (point[2] > best[-1][2] if higher_is_better else point[2] < best[-1][2]):
            best.append(point)
    return best


def _panel(found: Findings, name: str, points: list[Point], units: Units) -> Markup:
    greatest = max(cost for _, cost, _ in points)
    # What costs next to nothing beside the rest stands at the left end: on no scale would it be told from nothing.
    paid = [cost for _, cost, _ in points if cost > greatest / NOTHING]
    divisor, unit = numbers.unit_for(paid, units)
    scores = [score for _, _, score in points]
    share = all(0 <= score <= 1 for score in scores)
    y = fitted(scores, HEIGHT - 48.0, 34.0, margin=0.1, within=(0.0, 1.0) if share else (-1e300, 1e300))
    left = 20 + max(text_width(numbers.plain(tick)) for tick in y.ticks(5) or [0.0])
    costs = [cost / divisor for _, cost, _ in points]
    x = fitted([cost / divisor for cost in paid], left + INSET, WIDTH - 10.0, margin=0.12, ratio=RATIO)
    if not x.logarithmic:
        x = fitted(costs, left + INSET, WIDTH - 10.0, margin=0.12)
    frame = Frame(x, y, numbers.plain, numbers.plain, INSET)
    places = [(x(cost / divisor), y(score)) for _, cost, score in points]
    marks: list[object] = [*frame.drawn(f"{name}, {unit}", found.metric), _front(found, points, frame, divisor)]
    for (contender, cost, score), (at_x, at_y) in zip(points, places, strict=True):
        told = f"{contender.name}: {numbers.score(score)}, {cost / divisor:.3g} {unit}"
        marks.append(_mark(contender, at_x, at_y, found, told))
    marks += _labels(points, places, frame, found)
    best = ", ".join(point[0].name for point in front(points, found.higher_is_better))
    return drawing(f"{found.metric} against {name}", f"On the front: {best}.", WIDTH, HEIGHT, *marks)


def _front(found: Findings, points: list[Point], frame: Frame, divisor: float) -> Markup:
    """The front as steps: at this cost, no better score was found."""
    steps: list[tuple[float, float]] = []
    for _, cost, score in front(points, found.higher_is_better):
        x, y = frame.x(cost / divisor), frame.y(score)
        steps += [(x, steps[-1][1]), (x, y)] if steps else [(x, y)]
    steps.append((frame.x.end, steps[-1][1]))
    return path(steps, "front")


def _mark(contender: Contender, x: float, y: float, found: Findings, told: str) -> Markup:
    if contender.is_baseline:
        return box(x - 4.5, y - 4.5, 9, 9, "hollow baseline", told)
    colour = hue(found.hues[contender.technique or ""])
    return dot(x, y, 6 if contender.winner else 5, f"{'mark' if contender.pareto else 'hollow'} {colour}", told)


def _labels(points: list[Point], places: list[tuple[float, float]], frame: Frame, found: Findings) -> list[Markup]:
    """Names beside the points where they cover nothing; those on the front choose first. The table has them all."""
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    order = sorted(range(len(points)), key=lambda i: (not points[i][0].winner, not points[i][0].pareto))
    marks = []
    for i in order:
        contender, (x, y) = points[i][0], places[i]
        wide = 1.1 * text_width(contender.name, 11)  # they are set bold
        beside = ((x + 9, y + 4), (x - 9 - wide, y + 4), (x - wide / 2, y - 10), (x - wide / 2, y + 19))
        aslant = ((x + 6, y - 8), (x + 6, y + 17), (x - 6 - wide, y - 8), (x - 6 - wide, y + 17))
        for left, base in (*beside, *aslant):
            area = (left, base - 10, left + wide, base + 3)
            inside = area[0] > frame.x.start + 1 and area[2] < WIDTH and area[1] > 22 and area[3] < frame.y.start
            if inside and not any(_overlap(area, other) for other in taken):
                taken.append(area)
                colour = "baseline" if contender.is_baseline else f"{hue(found.hues[contender.technique or ''])} ink"
                marks.append(write(left, base, contender.name, f"small halo label {colour}"))
                break
    return marks


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
