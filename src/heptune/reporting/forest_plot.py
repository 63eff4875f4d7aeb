"""Scores with their intervals, one row for each contender."""

from __future__ import annotations

from heptune.reporting import numbers
from heptune.reporting.drawing import TEXT, box, dot, drawing, fitted_text, hue, line, text_width, write
from heptune.reporting.findings import Contender, Estimate, Findings
from heptune.reporting.markup import Markup
from heptune.reporting.scale import Scale, fitted

ROW = 34
GAP = 18  # between techniques and baselines


def forest_plot(found: Findings, width: int, form: str) -> Markup:
    """Techniques from the best, baselines below them; a band over all rows shows the winner's interval."""
    rows = [(c, c.score) for c in found.ranked if c.score is not None]
    narrow = form == "narrow"
    texts = [estimate_text(score) for _, score in rows]
    right = 4.0 if narrow else max(map(text_width, texts)) + 16
    left = 4.0 if narrow else min(max(text_width(c.name) for c, _ in rows) + 34, 0.3 * width)
    row = ROW + 12 if narrow else ROW
    values = [v for c, s in rows for v in (s.value, s.low, s.high, *(x.score for x in c.seeds)) if v is not None]
    share = all(0 <= v <= 1 for v in values)
    scale = fitted(values, left + 8, width - right - 8, within=(0.0, 1.0) if share else (-1e300, 1e300))
    places, y = [], 14.0
    for number, (contender, _) in enumerate(rows):
        if number and contender.is_baseline != rows[number - 1][0].is_baseline:
            y += GAP
        places.append(y + row / 2)
        y += row
    marks: list[object] = [_grid(scale, y, found), _band(found.winner, scale, y)]
    for (contender, score), text, at in zip(rows, texts, places, strict=True):
        marks.append(_row(contender, score, text, at, scale, (left, width, narrow), found))
    for number in range(1, len(rows)):
        if rows[number][0].is_baseline and not rows[number - 1][0].is_baseline:
            between = (places[number - 1] + places[number]) / 2
            marks.append(line(0, between, width, between, "rule"))
    level = f"{found.level:.0%}"
    description = f"One row for each of {len(rows)} contenders: the score as a point, its {level} interval as a line."
    return drawing(f"{found.metric} of every contender", description, width, y + 40, *marks, form=form)


def estimate_text(estimate: Estimate | None) -> str:
    """'0.913 [0.882, 0.936]'."""
    if estimate is None:
        return numbers.MISSING
    if estimate.low is None:
        return numbers.score(estimate.value)
    return f"{numbers.score(estimate.value)} [{numbers.score(estimate.low)}, {numbers.score(estimate.high)}]"


def _grid(scale: Scale, bottom: float, found: Findings) -> list[Markup]:
    marks = []
    for value in scale.ticks(max(2, int((scale.end - scale.start) / 70))):
        at = scale(value)
        marks += [line(at, 8, at, bottom + 4, "grid"), write(at, bottom + 19, numbers.plain(value), "tick", "middle")]
    better = "more is better →" if found.higher_is_better else "← less is better"
    middle = (scale.start + scale.end) / 2
    return [*marks, write(middle, bottom + 36, f"{found.metric}, {better}", "name", "middle")]


def _band(winner: Contender | None, scale: Scale, bottom: float) -> Markup | None:
    if winner is None or winner.score is None or winner.score.low is None or winner.score.high is None:
        return None
    low, high = scale(winner.score.low), scale(winner.score.high)
    return box(low, 8, high - low, bottom - 4, "band")


def _row(
    contender: Contender,
    score: Estimate,
    text: str,
    at: float,
    scale: Scale,
    room: tuple[float, float, bool],
    found: Findings,
) -> list[object]:
    left, width, narrow = room
    colour = "baseline" if contender.is_baseline else hue(found.hues[contender.technique or ""])
    strong = " strong" if contender.winner else " soft" if contender.is_baseline else ""
    mark = " ★" if contender.winner and found.kind == "race" else ""
    told = f"{contender.name}: {text}" + (", tied with the best" if contender.tied and not contender.winner else "")
    if narrow:
        name = write(
            4, at - 9, fitted_text(contender.name, width - text_width(text) - 36) + mark, f"label halo{strong}"
        )
        line_at, text_at = at + 9, at - 9
    else:
        name = write(
            left - 12, at + 4, fitted_text(contender.name, left - 16 - text_width(mark)) + mark, f"label{strong}", "end"
        )
        line_at, text_at = at, at + 4
    marks: list[object] = [name, write(width - 2, text_at, text, f"number{strong}", "end")]
    if score.low is not None and score.high is not None:
        low, high = scale(score.low), scale(score.high)
        marks.append(line(low, line_at, high, line_at, f"whisker {colour}"))
        marks += [line(end, line_at - 4, end, line_at + 4, f"whisker {colour}") for end in (low, high)]
    if len(contender.seeds) > 1:
        marks += [
            dot(scale(s.score), line_at + 9, 2, f"seed {colour}", f"seed {s.seed}: {numbers.score(s.score)}")
            for s in contender.seeds
        ]
    if contender.is_baseline:
        side = TEXT - 3
        marks.append(box(scale(score.value) - side / 2, line_at - side / 2, side, side, f"hollow {colour}", told))
    else:
        marks.append(dot(scale(score.value), line_at, 6.5 if contender.winner else 5, f"mark {colour}", told))
    return marks
