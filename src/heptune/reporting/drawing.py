"""The marks that every drawing is made of. Colours and weights are classes of style.css, so that they follow light and
dark; sizes are in the drawing's own units, about a pixel each.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from heptune.reporting.markup import Markup, tag
from heptune.reporting.scale import Scale

WIDE, NARROW = 860, 380  # a column of text on a screen, and a phone
PANEL = 420  # two beside each other on a screen, one on a phone
TEXT = 12.0  # size of writing
HUES = 9  # colours in style.css


def drawing(title: str, description: str, width: float, height: float, *marks: object, form: str = "") -> Markup:
    """An SVG with its title and description for those who do not see it."""
    return tag(
        "svg",
        tag("title", title),
        tag("desc", description),
        marks,
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        class_=f"drawing {form}".strip(),
        role="img",
        aria_label=f"{title}. {description}",
    )


def both(draw: Callable[[int, str], Markup]) -> Markup:
    """A drawing made twice, for wide screens and for phones; the style sheet shows the one that fits."""
    return Markup(draw(WIDE, "wide") + draw(NARROW, "narrow"))


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """A straight line."""
    return tag("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=kind)


def path(points: Iterable[tuple[float, float]], kind: str) -> Markup:
    """A line through points."""
    written = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return tag("polyline", points=written, class_=kind)


def dot(x: float, y: float, radius: float, kind: str, told: str = "") -> Markup:
    """A point; `told` appears when it is pointed at."""
    return tag("circle", tag("title", told) if told else None, cx=float(x), cy=float(y), r=float(radius), class_=kind)


def box(x: float, y: float, width: float, height: float, kind: str, told: str = "", opacity: float = 1.0) -> Markup:
    """A filled rectangle."""
    shade = None if opacity >= 1 else float(opacity)
    hint = tag("title", told) if told else None
    size = {"width": float(width), "height": float(height)}
    return tag("rect", hint, x=float(x), y=float(y), **size, class_=kind, fill_opacity=shade)


def cross(x: float, y: float, size: float, kind: str, told: str = "") -> Markup:
    """An x: here something ended."""
    ends = (
        f"M{x - size:.1f} {y - size:.1f}l{2 * size:.1f} {2 * size:.1f}m0 {-2 * size:.1f}l{-2 * size:.1f} {2 * size:.1f}"
    )
    return tag("path", tag("title", told) if told else None, d=ends, class_=kind)


def write(x: float, y: float, text: str, kind: str = "", anchor: str = "start", turned: float = 0.0) -> Markup:
    """Text whose base line starts, is centred or ends at (x, y)."""
    turn = f"rotate({turned:.0f} {x:.1f} {y:.1f})" if turned else None
    at = None if anchor == "start" else anchor
    return tag("text", text, x=float(x), y=float(y), class_=kind or None, text_anchor=at, transform=turn)


def text_width(text: str, size: float = TEXT) -> float:
    """About how wide a text is set: no font is at hand to measure it."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    thin = sum(letter in "iljtf.,:;|!'()[] -" for letter in text)
    return size * (0.6 * (len(text) - wide) + wide - 0.26 * thin)


def fitted_text(text: str, room: float, size: float = TEXT) -> str:
    """The text, or as much of its start as fits, with an ellipsis."""
    line = " ".join(text.split())
    if text_width(line, size) <= room:
        return line
    while line and text_width(line + "…", size) > room:
        line = line[:-1]
    return line.rstrip() + "…"


def shortened(text: str, length: int) -> str:
    """The text, or its first `length` characters with an ellipsis."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def hue(number: int) -> str:
    """The class of the colour with this number; after the last one they begin anew."""
    return f"h{(number - 1) % HUES + 1}"


@dataclass(frozen=True)
class Frame:
    """A plot's two scales and how the numbers on them are written."""

    x: Scale
    y: Scale
    write_x: Callable[[float], str]
    write_y: Callable[[float], str]
    inset: float = 0.0  # room between the axis and where the scale begins

    def drawn(self, label_x: str, label_y: str) -> list[Markup]:
        """Faint lines at round values, their numbers, and what is measured."""
        left, right, bottom, top = self.x.start - self.inset, self.x.end, self.y.start, self.y.end
        marks = []
        for value in self.y.ticks(5):
            at = self.y(value)
            marks += [line(left, at, right, at, "grid"), write(left - 7, at + 4, self.write_y(value), "tick", "end")]
        room = (right - left) / 62  # a number with its space takes about this much
        for value in self.x.ticks(max(2, int(room))):
            at = self.x(value)
            marks += [
                line(at, bottom, at, bottom + 4, "axis"),
                write(at, bottom + 17, self.write_x(value), "tick", "middle"),
            ]
        marks.append(line(left, bottom, right, bottom, "axis"))
        marks.append(write(left, top - 12, label_y, "name"))
        marks.append(write(right, bottom + 34, label_x, "name", "end"))
        return marks


def spread(places: list[float], apart: float, low: float, high: float) -> list[float]:
    """Places moved as little as needed to stand `apart`, in their order, within [low, high] as far as there is room."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = [places[i] for i in order]
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + apart)
    if moved and moved[-1] > high:
        moved[-1] = high
        for i in range(len(moved) - 2, -1, -1):
            moved[i] = min(moved[i], moved[i + 1] - apart)
    if moved and moved[0] < low:
        moved = [max(place, low + n * apart) for n, place in enumerate(moved)]
    result = [0.0] * len(places)
    for place, i in zip(moved, order, strict=True):
        result[i] = place
    return result
