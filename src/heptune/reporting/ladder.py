"""The course of a race: who stood at each rung, with which score, and who went on."""

from __future__ import annotations

from heptune.reporting import numbers
from heptune.reporting.drawing import box, cross, dot, drawing, fitted_text, hue, line, text_width, write
from heptune.reporting.findings import Findings, Standing
from heptune.reporting.markup import Markup

ROW, TALL_ROW = 26, 40
NUMBER = 46  # room of a score


def ladder(found: Findings, width: int, form: str) -> Markup:
    """A row for each candidate, a column for each rung; the row ends where the candidate was dropped."""
    courses = _courses(found)
    narrow = form == "narrow"
    left = 4.0 if narrow else min(max(text_width(name) for name in courses) + 26, 0.3 * width)
    steps = sorted({*found.ladder, *(rung.step for rung in found.rungs)})
    column = (width - left - 18) / max(len(steps), 1)
    at = {step: left + column * (number + 0.5) + 9 for number, step in enumerate(steps)}
    row = TALL_ROW if narrow else ROW
    bottom = 34.0 + row * len(courses)
    finalists = {curve.name for curve in found.curves if curve.state == "finalist"}
    finalists |= {c.candidate for c in found.contenders if c.candidate}
    marks: list[object] = [write(left + 8 if not narrow else 4, 14, "step", "name", "end" if not narrow else "start")]
    for number, step in enumerate(steps):
        if column > NUMBER * 0.6 or number % 2 == 0:
            marks.append(write(at[step], 14, f"{step}", "tick", "middle"))
        marks.append(line(at[step], 22, at[step], bottom, "grid"))
    for number, (name, course) in enumerate(courses.items()):
        y = 34 + row * number + (row - 12 if narrow else row / 2)
        colour = hue(found.hues[next(iter(course.values())).technique])
        marks += _course(name, course, y, at, colour, column, name in finalists)
        if narrow:
            marks.append(write(4, y - 13, fitted_text(name, width - 8), "label halo"))
        else:
            marks.append(write(left - 8, y + 4, fitted_text(name, left - 14), "label", "end"))
    dropped = sum(any(not s.kept for s in course.values()) for course in courses.values())
    description = f"{len(courses)} candidates over {len(found.rungs)} rungs; {dropped} were dropped on the way."
    return drawing("The course of the race", description, width, bottom + 8, *marks, form=form)


def _courses(found: Findings) -> dict[str, dict[int, Standing]]:
    """Candidate -> its standing at each rung; who stayed longest and stood best comes first."""
    courses: dict[str, dict[int, Standing]] = {}
    places: dict[str, tuple[int, bool, int]] = {}
    for rung in found.rungs:
        for place, standing in enumerate(rung.standings):
            courses.setdefault(standing.candidate, {})[rung.step] = standing
            places[standing.candidate] = (-rung.step, not standing.kept, place)
    for name, course in courses.items():
        end = _end(found, name, course)
        if end is not None:
            course[found.ladder[-1]] = end
    return {name: courses[name] for name in sorted(courses, key=places.__getitem__)}


def _end(found: Findings, name: str, course: dict[int, Standing]) -> Standing | None:
    """Where a finalist stood at the last step, after which nobody is dropped any more."""
    if not found.ladder or found.ladder[-1] in course or any(not standing.kept for standing in course.values()):
        return None
    own = (dict(curve.rung_validation) for curve in found.curves if curve.name == name and curve.seed is None)
    score = next(own, {}).get(float(found.ladder[-1]))
    technique = next(iter(course.values())).technique
    return None if score is None else Standing(name, technique, score, None, None, None, True, "")


def _course(
    name: str, course: dict[int, Standing], y: float, at: dict[int, float], colour: str, column: float, finalist: bool
) -> list[object]:
    steps = sorted(course)
    alive = all(standing.kept for standing in course.values())
    weight = "finalist" if finalist else "running" if alive else "dropped"
    start, end = at[steps[0]], at[steps[-1]]
    marks: list[object] = [line(start, y, end, y, f"curve {weight} {colour}")] if end > start else []
    written = column >= NUMBER
    for step in steps:
        standing = course[step]
        score = numbers.score(standing.score)
        told = f"{name} at step {step}: {score}, " + ("kept" if standing.kept else f"dropped: {standing.why}")
        x = at[step]
        if not written:
            marks.append(dot(x, y, 3.5, f"mark {weight} {colour}", told))
        else:
            half = text_width(score) / 2 + 3
            marks.append(_on_paper(x - half, y - 9, 2 * half, 18))
            marks.append(write(x, y + 4, score, f"number {'' if finalist or alive else 'soft'}".strip(), "middle"))
        if not standing.kept:
            beside = x + (text_width(score) / 2 + 8 if written else 10)
            marks.append(cross(beside, y, 3, f"end {colour}", told))
    return marks


def _on_paper(x: float, y: float, width: float, height: float) -> Markup:
    """The line is interrupted where a number stands."""
    return box(x, y, width, height, "paper")
