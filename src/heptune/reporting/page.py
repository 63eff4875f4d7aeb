"""The page: one HTML file with its style and drawings inside. Nothing is loaded, nothing is executed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import heptune
from heptune.reporting import numbers
from heptune.reporting.by_type import by_type
from heptune.reporting.costs import MOST_ROWS, cost_panels, error
from heptune.reporting.curves import loss_panel, validation_panel
from heptune.reporting.drawing import both, hue, shortened
from heptune.reporting.findings import Confusion, Contender, Curve, Estimate, Example, Findings
from heptune.reporting.forest_plot import estimate_text, forest_plot
from heptune.reporting.heat_map import confused, heat_map
from heptune.reporting.ladder import ladder
from heptune.reporting.markup import Markup, join, tag
from heptune.reporting.pareto import pareto_panels

LONGEST_TEXT = 600  # characters of an example that are shown
LONGEST_VALUE = 300  # of a setting: the labels of a large task would fill the page
LONGEST_LABEL = 60  # in a sentence
FULL_MATRIX = 12  # labels up to which all counts stand in a table
POINTS_TOLD = 8  # rows of a curve's table
EXAMPLES = 8
WARNINGS = 12


def page(found: Findings) -> str:
    """The whole page."""
    sections = [section for section in (build(found) for build in _SECTIONS) if section is not None]
    style = Path(__file__).with_name("style.css").read_text("utf-8")
    kind = "Race report" if found.kind == "race" else "Run report"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content=f"heptune {heptune.__version__}"),
        tag("title", f"{found.title} – {kind}"),
        tag("style", Markup(style)),
    )
    links = [tag("a", name.capitalize(), href=f"#{name}") for name, _, _ in sections]
    body = tag(
        "body",
        tag(
            "main",
            tag(
                "header",
                tag("p", kind, class_="kind"),
                tag("h1", found.title, dir="auto"),
                tag("p", found.subtitle, class_="subtitle", dir="auto"),
                tag("p", found.interim, class_="interim", role="status") if found.interim else None,
            ),
            _verdict(found),
            tag("nav", links, aria_label="Sections") if len(links) > 2 else None,
            [_section(*section) for section in sections],
            tag(
                "footer", f"Made by heptune {heptune.__version__} from {found.folder}. This file is complete in itself."
            ),
        ),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _section(name: str, title: str, parts: Markup) -> Markup:
    return tag("section", tag("h2", title, id=f"{name}-title"), parts, id=name, aria_labelledby=f"{name}-title")


def _verdict(found: Findings) -> Markup:
    if found.words:
        lead, *others = found.words
        told = [tag("p", lead, class_="lead", dir="auto"), [tag("p", word, dir="auto") for word in others]]
    else:
        told = [tag("p", "There is no verdict yet.", class_="lead")]
    figures = [tag("div", tag("dt", name), tag("dd", value)) for name, value in found.key_figures]
    warnings = [tag("li", shortened(note, LONGEST_VALUE), dir="auto") for note in found.notes[:WARNINGS]]
    if more := len(found.notes) - WARNINGS:
        warnings += [tag("li", f"and {more} more")] if more > 0 else []
    return tag(
        "section",
        tag("h2", "Verdict", id="verdict-title", class_="unseen"),
        told,
        tag("dl", figures, class_="figures") if figures else None,
        details("Warnings", tag("ul", warnings)) if warnings else None,
        id="verdict",
        aria_labelledby="verdict-title",
    )


Section = tuple[str, str, Markup] | None


def _scores(found: Findings) -> Section:
    if not any(contender.score for contender in found.contenders):
        return None
    over = f" on {found.examples} examples of {found.part}" if found.examples and found.part else ""
    caption = (
        f"{_capital(found.metric)}{over}, with {found.level:.0%} intervals. Discs: tuned; squares: baselines. "
        f"The band is {'the winner' if found.kind == 'race' else 'the tuned model'}'s interval"
    )
    seeds = any(len(contender.seeds) > 1 for contender in found.contenders)
    caption += "; the small dots below a line are its single seeds." if seeds else "."
    plot = figure(both(lambda width, form: forest_plot(found, width, form)), caption)
    return "scores", "Scores", join([plot, _score_table(found), _difference_table(found), _type_table(found)])


def _score_table(found: Findings) -> Markup:
    columns: list[tuple[str, list[str]]] = [
        ("", [_name(contender, found) for contender in found.ranked]),
        *((metric, [_metric_text(c, metric, found) for c in found.ranked]) for metric in found.metrics),
        ("seeds", [", ".join(numbers.score(s.score) for s in c.seeds) for c in found.ranked]),
        ("", [_standing(c, found) for c in found.ranked]),
    ]
    kept = [(head, cells) for head, cells in columns if any(cell not in ("", numbers.MISSING) for cell in cells)]
    rows = zip(*(cells for _, cells in kept), strict=True)
    flush = [n for n, (head, _) in enumerate(kept) if head]
    return details("All numbers", table([head for head, _ in kept], rows, flush), opened=True)


def _metric_text(contender: Contender, metric: str, found: Findings) -> str:
    fallback = contender.score if metric == found.metric else None
    return estimate_text(contender.metrics.get(metric, fallback))


def _name(contender: Contender, found: Findings) -> Markup:
    if contender.is_baseline:
        swatch = tag("span", class_="swatch baseline")
    else:
        swatch = tag("span", class_=f"swatch {hue(found.hues[contender.technique or ''])}")
    own = contender.candidate and contender.candidate != contender.name
    below = tag("small", contender.candidate) if own else None
    return tag("span", swatch, contender.name, below, class_="who")


def _standing(contender: Contender, found: Findings) -> str:
    if found.kind == "run":
        return ""  # one training alone wins nothing
    told = ["winner" if contender.winner else "tied with the best" if contender.tied else ""]
    told += ["on the front" if contender.pareto else ""]
    return ", ".join(word for word in told if word)


def _difference_table(found: Findings) -> Markup | None:
    if not found.differences:
        return None
    columns = [
        ("", [f"{d.a} {numbers.MINUS} {d.b}" for d in found.differences]),
        ("difference", [_signed_estimate(d.difference) for d in found.differences]),
        ("p", [numbers.p_value(d.p_value) for d in found.differences]),
        ("p, adjusted", [numbers.p_value(d.p_adjusted) for d in found.differences]),
        ("McNemar p", [numbers.p_value(d.mcnemar) for d in found.differences]),
        ("", ["" if d.tie is None else "no difference shown" if d.tie else "different" for d in found.differences]),
    ]
    kept = [(head, cells) for head, cells in columns if any(cell not in ("", numbers.MISSING) for cell in cells)]
    rows = list(zip(*(cells for _, cells in kept), strict=True))
    flush = [n for n, (head, _) in enumerate(kept) if head]
    return details("Pair by pair, on the same examples", table([head for head, _ in kept], rows, flush))


def _type_table(found: Findings) -> Markup | None:
    if not found.entity_types:
        return None
    heads, rows = by_type(found)
    return details("The tuned model, type by type", table(heads, rows, range(1, len(heads))), opened=True)


def _signed_estimate(estimate: Estimate) -> str:
    interval = f" [{numbers.signed(estimate.low)}, {numbers.signed(estimate.high)}]" if estimate.low is not None else ""
    return numbers.signed(estimate.value) + interval


def _learning(found: Findings) -> Section:
    panels = [panel for panel in (loss_panel(found), validation_panel(found)) if panel is not None]
    if not panels:
        return None
    caption = "Training loss, smoothed, and the validation metric."
    states = {curve.state for curve in found.curves}
    caption += " Faint lines end with a cross where a candidate was dropped." if "dropped" in states else ""
    caption += (
        " The fine lines are a finalist's further seeds." if any(c.seed is not None for c in found.curves) else ""
    )
    caption += " A large disc is the step whose weights were kept." if any(c.best_step for c in found.curves) else ""
    heads = ("training", "", "steps", "first loss", "last loss", f"validation {found.curve_metric}: step and value")
    rows = [_curve_row(curve) for curve in found.curves]
    told = details("The numbers", table(heads, rows, (2, 3, 4)))
    return "learning", "Learning", join([figure(tag("div", panels, class_="panels"), caption), told])


def _curve_row(curve: Curve) -> tuple[str, ...]:
    state = f"dropped at step {curve.dropped_at}" if curve.dropped_at is not None else curve.state
    seed = "" if curve.seed is None else f", seed {curve.seed}"
    last = (curve.loss or curve.validation)[-1][0]
    first_loss = numbers.score(curve.loss[0][1]) if curve.loss else numbers.MISSING
    last_loss = numbers.score(curve.loss[-1][1]) if curve.loss else numbers.MISSING
    stride = -(-len(curve.validation) // POINTS_TOLD) or 1
    told = curve.validation[::-1][::stride][::-1]  # the last one is always told
    points = ", ".join(f"{step:g}: {numbers.score(value)}" for step, value in told)
    return curve.name + seed, state, f"{last:g}", first_loss, last_loss, points


def _trade(found: Findings) -> Section:
    panels = pareto_panels(found)
    if not panels:
        return None
    caption = (
        f"{_capital(found.metric)} against three costs. The stepped line is the front of its panel: what lies off it "
        "costs more than another contender that scores at least as well. Filled discs are on the front of all costs "
        "taken together."
    )
    heads = ("", found.metric, "training", "peak memory", "artifact", "rank by cost", "on the front", "in service")
    rows = [
        (
            _name(c, found),
            estimate_text(c.score),
            numbers.duration(c.time_s),
            numbers.memory(c.memory_bytes),
            numbers.memory(c.artifact_bytes),
            numbers.MISSING if c.cost_rank is None else str(c.cost_rank),
            "yes" if c.pareto else "no",
            c.serving,
        )
        for c in found.ranked
    ]
    told = details("The numbers", table(heads, rows, range(1, 6)))
    return "trade-offs", "Score against cost", join([figure(tag("div", panels, class_="panels three"), caption), told])


def _costs(found: Findings) -> Section:
    if not found.costs:
        return None
    panels = cost_panels(found)
    caption = "Rings: predicted before the training; discs: measured. At the right, how far the prediction is off."
    if len(found.costs) > MOST_ROWS:
        caption += f" Drawn are the {MOST_ROWS} that were trained longest; the table has all."
    if any(cost.time_s is None for cost in found.costs) and found.kind == "race":
        caption += " Most trainings did not go to their end, so steps are compared; whole times stand in the table."
    heads = [
        "",
        *(f"{name}: {side}" for name in ("memory", "time", "step") for side in ("predicted", "measured", "off")),
    ]
    rows = []
    for c in found.costs:
        cells = [c.name]
        for predicted, measured, write in (
            (c.predicted_memory_bytes, c.memory_bytes, numbers.memory),
            (c.predicted_time_s, c.time_s, numbers.duration),
            (c.predicted_step_s, c.step_s, numbers.duration),
        ):
            cells += [write(predicted), write(measured), numbers.percent(error(predicted, measured))]
        rows.append(cells)
    told = details("The numbers", table(heads, rows, range(1, 10)), opened=not panels)
    drawn = figure(tag("div", panels, class_="panels"), caption) if panels else None
    return "costs", "Costs, predicted and measured", join([drawn, told])


def _race(found: Findings) -> Section:
    if not found.rungs:
        return None
    caption = f"The candidates' {found.rung_metric or 'scores'} on the validation part at each rung, the best above. "
    caption += "A cross: dropped." if any(not s.kept for rung in found.rungs for s in rung.standings) else ""
    caption += (
        " Strong lines went on to the finals, to the last step."
        if any(c.state == "finalist" for c in found.curves)
        else ""
    )
    parts = [figure(both(lambda width, form: ladder(found, width, form)), caption)]
    if found.effort:
        parts.append(tag("p", found.effort))
    dropped = [(rung, s) for rung in found.rungs for s in rung.standings if not s.kept]
    if dropped:
        gone = [
            (s.candidate, str(rung.step), numbers.score(s.score), numbers.signed(s.trend), s.why) for rung, s in dropped
        ]
        left = ("dropped", "at step", "score", "trend", "why")
        parts.append(details("Who was dropped, and why", table(left, gone, (1, 2, 3)), opened=len(gone) <= 12))
    every = [
        (
            str(rung.step),
            s.candidate,
            numbers.score(s.score),
            numbers.signed(s.trend),
            numbers.duration(s.time_s),
            numbers.memory(s.memory_bytes),
            "kept" if s.kept else "dropped",
            s.why,
        )
        for rung in found.rungs
        for s in rung.standings
    ]
    heads = ("step", "candidate", "score", "trend", "time", "memory", "", "why")
    parts.append(details("Every rung", table(heads, every, (0, 2, 3, 4, 5))))
    return "race", "The race", join(parts)


def _confusion(found: Findings) -> Section:
    if not found.confusions:
        return None
    parts = []
    for number, matrix in enumerate(found.confusions):
        drawn = _matrix(matrix, found.labels)
        parts.append(drawn if number == 0 else details(f"The same for {matrix.name}", drawn))
    return "confusions", "Which labels are mistaken", join(parts)


def _matrix(matrix: Confusion, labels: tuple[str, ...]) -> Markup:
    errors = confused(matrix, labels)
    caption = (
        f"{matrix.name}: rows are the true labels, columns the answers; the deeper, the larger the share of its row."
    )
    if errors:
        truth, answer, count, total = errors[0]
        worst = f"{shortened(truth, LONGEST_LABEL)} answered with {shortened(answer, LONGEST_LABEL)}"
        caption += f" Most often: {worst} ({count} of {total})."
    else:
        caption += " No answer is wrong."
    plot = figure(both(lambda width, form: heat_map(matrix, labels, width, form)), caption)
    if len(labels) <= FULL_MATRIX:
        rows = [(label, *map(str, row)) for label, row in zip(labels, matrix.counts, strict=True)]
        return join([plot, details("All counts", table(("true label", *labels), rows, range(1, len(labels) + 1)))])
    rows = [(truth, answer, str(count), f"{count / total:.0%}") for truth, answer, count, total in errors]
    heads = ("true label", "answered", "times", "share of the label")
    return join([plot, details(f"The {len(rows)} most frequent errors", table(heads, rows, (2, 3)))])


def _examples(found: Findings) -> Section:
    if not found.differing:
        return None
    shown = [_example(example) for example in found.differing[:EXAMPLES]]
    parts = [tag("div", shown, class_="examples")]
    if others := found.differing[EXAMPLES:]:
        parts.append(details(f"{len(others)} more", tag("div", map(_example, others), class_="examples")))
    title = "Where the two best differ" if found.kind == "race" else "Examples, before and after"
    return "examples", title, join(parts)


def _example(example: Example) -> Markup:
    answers = []
    for name, answer, right in example.answers:
        mark = {True: ("right", "✓ "), False: ("wrong", "✗ "), None: ("", "")}[right]
        said = {True: "right: ", False: "wrong: ", None: ""}[right]
        answers += [
            tag("dt", name),
            tag(
                "dd",
                tag("span", mark[1], aria_hidden="true") if mark[1] else None,
                tag("span", said, class_="unseen") if said else None,
                tag("span", shortened(answer, LONGEST_TEXT), dir="auto"),
                class_=mark[0] or None,
            ),
        ]
    truth = [tag("dt", "truth"), tag("dd", shortened(example.truth, LONGEST_TEXT), dir="auto")]
    quote = tag("blockquote", shortened(example.text, LONGEST_TEXT), dir="auto")
    return tag("article", quote, tag("dl", truth, answers))


def _again(found: Findings) -> Section:
    commands = [
        tag("div", tag("p", what, class_="what"), tag("pre", tag("code", line), tabindex="0"))
        for what, line in found.commands
    ]
    parts = [tag("div", commands, class_="commands")]
    for title, rows in (("Data", found.data), ("Made with", found.facts)):
        if rows:
            pairs = [(tag("dt", name), tag("dd", shortened(value, LONGEST_VALUE))) for name, value in rows]
            parts += [tag("h3", title), tag("dl", pairs, class_="pairs")]
    for title, rows in found.settings:
        shown = [(name, shortened(value, LONGEST_VALUE)) for name, value in rows]
        parts.append(details(f"Settings, {title}", table(("setting", "value"), shown)))
    return "repeat", "To do it again", join(parts)


_SECTIONS = (_scores, _learning, _trade, _costs, _race, _confusion, _examples, _again)


def figure(content: Markup, caption: str) -> Markup:
    """A drawing with its caption; the style sheet numbers it."""
    return tag("figure", content, tag("figcaption", caption, dir="auto"))


def details(title: str, content: object, opened: bool = False) -> Markup:
    """What a reader may fold out."""
    return tag("details", tag("summary", title), content, open="open" if opened else None)


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], flush_right: Iterable[int] = ()) -> Markup:
    """A table; the first cell of a row is its heading, the columns `flush_right` hold numbers."""
    right = set(flush_right)

    def cell(column: int, content: object) -> Markup:
        name = "number" if column in right else None
        if column == 0:
            return tag("th", content, scope="row", class_=name, dir="auto")
        return tag("td", content, class_=name, dir="auto" if isinstance(content, str) else None)

    head = [tag("th", text, scope="col", class_="number" if n in right else None) for n, text in enumerate(heads)]
    body = [tag("tr", [cell(n, content) for n, content in enumerate(row)]) for row in rows]
    return tag("div", tag("table", tag("thead", tag("tr", head)), tag("tbody", body)), class_="scroll", tabindex="0")


def _capital(text: str) -> str:
    """The first letter large, the others as they are: macro-F1 stays what it is."""
    return re.sub(r"^[a-z]", lambda first: first[0].upper(), text)
