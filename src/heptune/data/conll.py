"""CoNLL files: a token a line, its tag in the last column, a blank line between sentences.

Columns are separated by tabs where most lines have one, else by blanks. The token is the first column; where that
only counts the tokens of each sentence, it is the second. `-DOCSTART-` lines end a sentence and are no token. A line
that begins with '# ' is a comment where it has no tag column like the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from heptune.data.tags import BARE_TAG, OUTSIDE, is_tag
from heptune.data.values import shown

EXTENSIONS = (".conll", ".bio", ".iob", ".iob2", ".bioes")
DOCUMENT = "-DOCSTART-"
LOOKED_AT = 2000  # lines, for telling whether a file is CoNLL
SHARE = 0.9  # of those that must have a tag


@dataclass(frozen=True)
class Sentence:
    """The tokens and tags of one sentence, and the line of each."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]
    lines: tuple[int, ...]


def recognised(text: str) -> bool:
    """Whether this is CoNLL by its content alone: nearly all lines have as many columns and a tag in the last."""
    lines = [line for line in text[: LOOKED_AT * 200].split("\n")[:LOOKED_AT] if line.strip()]
    layout = _Layout.of(lines)
    rows = [row for line in lines if (row := layout.row(line)) is not None]
    marked = any(layout.ends_document(line) for line in lines)  # then even a file without any entity is CoNLL
    if layout.width < 2 or len(rows) < (1 if marked else 2):
        return False
    typed = [len(row) == layout.width and is_tag(row[-1]) for row in rows]
    tags = {row[-1] for row, has in zip(rows, typed, strict=True) if has}
    if OUTSIDE in tags and (marked or len(tags) > 1):
        return typed[0] and sum(typed) >= SHARE * len(rows)
    bare = [len(row) == layout.width and (is_tag(row[-1]) or bool(BARE_TAG.fullmatch(row[-1]))) for row in rows]
    return layout.tabs and any(has and row[-1] != OUTSIDE for row, has in zip(rows, bare, strict=True)) and all(bare)


def parse(text: str) -> tuple[list[Sentence], list[tuple[int, str]]]:
    """The sentences, and (line, problem) of each line that cannot be read; its sentence is left out."""
    lines = text.split("\n")
    layout = _Layout.of([line for line in lines if line.strip()])
    blocks: list[list[tuple[int, list[str]]]] = [[]]
    for number, line in enumerate(lines, 1):
        row = layout.row(line)
        if row is not None:
            blocks[-1].append((number, row))
        elif not line.strip() or layout.ends_document(line):
            blocks.append([])
    blocks = [block for block in blocks if block]
    column = 1 if layout.width > 2 and all(_counts(block) for block in blocks) else 0
    sentences, problems = [], []
    for block in blocks:
        wrong = [(number, problem) for number, row in block if (problem := layout.problem(row, column))]
        problems += wrong
        if not wrong:
            numbers, rows = zip(*block, strict=True)
            sentences.append(Sentence(tuple(row[column] for row in rows), tuple(row[-1] for row in rows), numbers))
    return sentences, problems


@dataclass(frozen=True)
class _Layout:
    """How a file's lines are cut: at tabs or at blanks, and into how many columns most of them."""

    tabs: bool
    width: int

    @classmethod
    def of(cls, filled: Sequence[str]) -> _Layout:
        tokens = [line for line in filled if not line.startswith(("# ", DOCUMENT))] or filled
        tabs = 2 * sum("\t" in line for line in tokens) > len(tokens)
        widths = Counter(len(cls(tabs, 0).cut(line)) for line in tokens)
        return cls(tabs, widths.most_common(1)[0][0] if widths else 0)

    def cut(self, line: str) -> list[str]:
        if self.tabs:
            return [field.strip(" ") for field in line.rstrip(" ").split("\t")]
        return [field for field in line.replace("\t", " ").split(" ") if field]

    def row(self, line: str) -> list[str] | None:
        """The columns of a token's line; None for a blank line, a comment and the beginning of a document."""
        if not line.strip() or self.ends_document(line):
            return None
        row = self.cut(line)
        comment = line.startswith("# ") and (len(row) != self.width or not is_tag(row[-1]))
        return None if comment else row

    def ends_document(self, line: str) -> bool:
        return line.startswith(DOCUMENT)

    def problem(self, row: Sequence[str], column: int) -> str:
        if self.width < 2 or len(row) < 2:
            return f"the line {shown(' '.join(row))} has only one column; a line is a token, then its tag"
        if len(row) != self.width:
            return f"the line has {len(row)} columns, but most have {self.width} (token first, tag last); correct it"
        if not row[column]:
            return f"there is no token before the tag {shown(row[-1])}; write it, or take the line out"
        return ""


def _counts(block: Sequence[tuple[int, Sequence[str]]]) -> bool:
    return [row[0] for _, row in block] == [str(number) for number in range(1, len(block) + 1)]
