"""The short report for a pull request: verdict, scores, what lies on the front, commands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from heptune.reporting import numbers
from heptune.reporting.by_type import by_type
from heptune.reporting.drawing import shortened
from heptune.reporting.findings import Findings
from heptune.reporting.forest_plot import estimate_text
from heptune.reporting.markup import cleaned

LONGEST_CELL = 120
LONGEST_WORDS = 500


def markdown(found: Findings) -> str:
    """The report as Markdown of GitHub's kind; every text of a person is escaped."""
    title = "Race" if found.kind == "race" else "Run"
    parts = [f"### {title}: {plain(found.title)}", plain(found.subtitle)]
    parts += [f"**{plain(found.interim)}**"] if found.interim else []
    parts += [plain(word, LONGEST_WORDS) for word in found.words]
    parts += _scores(found)
    parts += ["The tuned model, type by type:", table(*by_type(found))] if found.entity_types else []
    parts += _front(found)
    parts += [plain(found.effort)] if found.effort else []
    lines = [line for what, line in found.commands for line in (f"# {what}", cleaned(line))]
    parts.append(fenced("\n".join(lines)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _scores(found: Findings) -> list[str]:
    if not any(c.score for c in found.contenders):
        return []
    rows = []
    for contender in found.ranked:
        fallback = {found.metric: contender.score} if contender.score else {}
        values = {**fallback, **contender.metrics}
        note = "winner" if contender.winner and found.kind == "race" else "tied" if contender.tied else ""
        note = note or ("baseline" if contender.is_baseline else "")
        rows.append([contender.name, *(estimate_text(values.get(m)) for m in found.metrics), note])
    over = f"{found.examples} examples of {found.part}; " if found.examples and found.part else ""
    below = f"{over}in brackets the {found.level:.0%} interval."
    return [table(["", *found.metrics, ""], rows), plain(below)]


def _front(found: Findings) -> list[str]:
    """Only contenders whose cost is known; those on the front are marked."""
    tuned = [
        c for c in found.ranked if c.memory_bytes is not None or c.time_s is not None or c.artifact_bytes is not None
    ]
    if len(tuned) < 2:
        return []
    rows = [
        (
            c.name,
            numbers.score(c.score.value) if c.score else numbers.MISSING,
            numbers.duration(c.time_s),
            numbers.memory(c.memory_bytes),
            numbers.memory(c.artifact_bytes),
            "yes" if c.pareto else "",
        )
        for c in tuned
    ]
    heads = ("", found.metric, "training", "peak memory", "artifact", "on the front")
    return ["Score against cost:", table(heads, rows)]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; what is in the cells cannot break it."""
    lines = [[plain(cell, LONGEST_CELL) for cell in line] for line in (heads, *rows)]
    lines.insert(1, ["---"] * len(heads))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str, longest: int = 1000) -> str:
    """The text in one line and without any meaning for Markdown, HTML or mentions."""
    line = shortened(" ".join(cleaned(text).split()), longest)
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "&#64;")
    line = re.sub(r"(?<!&)#", r"\\#", line)
    line = re.sub(r"([a-z])://", r"\1&#58;//", line, flags=re.I)
    return re.sub(r"([\\`*_{}\[\]|~!$])", r"\\\1", line.replace("\\#", "&#35;"))


def fenced(code: str) -> str:
    """A block of code; its fence is longer than any run of back-ticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{code}\n{fence}"
