"""The confusion matrix as a heat map, from two labels to hundreds."""

from __future__ import annotations

import math

from heptune.reporting.drawing import box, drawing, fitted_text, line, text_width, write
from heptune.reporting.findings import Confusion
from heptune.reporting.markup import Markup

CELL, SIDE = 46.0, 230.0  # a cell's greatest side, but the whole matrix gets at least this one
NUMBERS_FROM = 24.0  # side of a cell in which a count can be read
LABEL_EVERY = 13.0  # least distance of two labels


def heat_map(matrix: Confusion, labels: tuple[str, ...], width: int, form: str) -> Markup:
    """Rows: the true label; columns: the answer. A cell's depth is its share of the row. Empty cells are not drawn."""
    size = len(labels)
    left = min(max(text_width(label) for label in labels) + 14, 0.34 * width)
    cell = min(max(CELL, SIDE / size), (width - left - 16) / size)
    across = cell >= max(text_width(label, 11) for label in labels) + 6
    top = 40.0 if across else min(max(text_width(label, 11) for label in labels), 130.0) + 34
    every = math.ceil(LABEL_EVERY / cell)
    side = cell * size
    marks: list[object] = [write(left, 12, "answered →", "name"), write(left - 10, top - 8, "true ↓", "name", "end")]
    for i in range(0, size, every):
        middle = cell * (i + 0.5)
        marks.append(write(left - 7, top + middle + 4, fitted_text(labels[i], left - 10), "small label", "end"))
        if across:
            marks.append(write(left + middle, top - 8, labels[i], "small label", "middle"))
        else:
            short = fitted_text(labels[i], top - 33, 11)
            marks.append(write(left + middle + 4, top - 6, short, "small label", turned=-90))
    marks.append(box(left, top, side, side, "ground"))
    for i, row in enumerate(matrix.counts):
        total = sum(row)
        for j, count in enumerate(row):
            if count:
                marks += _cell((left + cell * j, top + cell * i, cell), labels[i], labels[j], count, total, i == j)
    if cell >= 12:
        for i in range(1, size):
            marks.append(line(left, top + cell * i, left + side, top + cell * i, "lattice"))
            marks.append(line(left + cell * i, top, left + cell * i, top + side, "lattice"))
    right = sum(row[i] for i, row in enumerate(matrix.counts))
    description = f"{size} labels; {right} of {sum(map(sum, matrix.counts))} answers are right (on the diagonal)."
    return drawing(f"Confusion matrix of {matrix.name}", description, width, top + side + 10, *marks, form=form)


def _cell(
    place: tuple[float, float, float], truth: str, answer: str, count: int, total: int, right: bool
) -> list[Markup]:
    x, y, side = place
    share = count / total
    told = f"{truth} answered with {answer}: {count} of {total} ({share:.0%})"
    # The root lifts single errors out of the ground; the least depth is visible beside an empty cell.
    depth = 0.06 + 0.94 * math.sqrt(share)
    marks = [box(x, y, side, side, "right" if right else "wrong", told, depth)]
    if side >= NUMBERS_FROM:
        deep = " deep" if depth > 0.6 else ""
        marks.append(write(x + side / 2, y + side / 2 + 4, str(count), f"count{deep}", "middle"))
    return marks


def confused(matrix: Confusion, labels: tuple[str, ...], most: int = 20) -> list[tuple[str, str, int, int]]:
    """The most frequent errors: (true label, answer, how often, examples of that label)."""
    errors = [
        (labels[i], labels[j], count, sum(row))
        for i, row in enumerate(matrix.counts)
        for j, count in enumerate(row)
        if count and i != j
    ]
    return sorted(errors, key=lambda error: (-error[2], error[0], error[1]))[:most]
