"""Rows with entities as records: tagged tokens, or a text with the characters where each entity stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from heptune.core.errors import DataError
from heptune.data.record import Record, Span
from heptune.data.tags import Scheme, chunks
from heptune.data.values import Row, listed, shown, string

# How annotation tools call the parts of a span; doccano's exports have both forms.
START, END, TYPE = ("start", "start_offset"), ("end", "end_offset"), ("label", "type")


def tagged(row: Row, tokens: str, tags: str, scheme: Scheme, line: int) -> Record:
    """Tagged tokens: the text is the tokens with single blanks between them. Raises `TagError` for invalid tags."""
    words, names = _strings(row, tokens), _tags(row, tags)
    if len(words) != len(names):
        raise DataError(
            f"there are {len(words)} tokens (column {tokens!r}), but {len(names)} tags (column {tags!r}); "
            "each token needs one tag"
        )
    empty = next((number for number, word in enumerate(words, 1) if not word), None)
    if empty is not None:
        raise DataError(f"token {empty} of column {tokens!r} is empty; take it and its tag out")
    text = " ".join(words)
    if not text.strip():
        raise DataError(f"column {tokens!r} holds no text; fill it or take the row out")
    starts, position = [], 0
    for word in words:
        starts.append(position)
        position += len(word) + 1
    spans = tuple(
        Span(starts[chunk.first], starts[chunk.end - 1] + len(words[chunk.end - 1]), chunk.type)
        for chunk in chunks(names, scheme)
    )
    return Record(line, text=text, spans=spans)


def _tags(row: Row, name: str) -> Sequence[str]:
    value = row[name]
    if isinstance(value, list) and any(type(tag) is int for tag in value):
        raise DataError(
            f"column {name!r} holds numbers; write the tags themselves, e.g. 'B-PER', which the numbers stand for"
        )
    return _strings(row, name)


def spanned(row: Row, text: str, spans: str, line: int) -> Record:
    """A text and its spans: objects {start, end, label} or lists [start, end, label], in any order."""
    value = row[spans]
    if not isinstance(value, list):
        raise DataError(
            f"column {spans!r} is {shown(value)}; it must be a list of spans, each {{start, end, label}} or "
            "[start, end, label]"
        )
    content = string(row, text)
    return Record(line, text=content, spans=_in_order(content, [_span(item, n) for n, item in enumerate(value, 1)]))


def slots(row: Row, turn: str, labels: str | None, line: int) -> Record:
    """A user's turn with slots, as in Restaurant8k: {slot, valueSpan: {startIndex, endIndex}}.

    Its files leave an index of 0 out, and the list where there is no slot.
    """
    value = row.get(labels) if labels else None
    if not isinstance(value, list | None):
        raise DataError(f"column {labels!r} is {shown(value)}; it must be a list of slots")
    inner = row[turn]
    if not (isinstance(inner, Mapping) and "text" in inner):
        raise DataError(f"column {turn!r} is {shown(inner)}; it must be an object with the text")
    text = string(inner, "text")
    found = []
    for number, item in enumerate(value or (), 1):
        where = item.get("valueSpan") if isinstance(item, Mapping) else None
        if not isinstance(where, Mapping):
            raise DataError(f"slot {number} is {shown(item)}; it must be an object with slot and valueSpan")
        found.append(_checked(number, where.get("startIndex", 0), where.get("endIndex", 0), item.get("slot")))
    return Record(line, text=text, spans=_in_order(text, found))


def _strings(row: Row, name: str) -> Sequence[str]:
    value = row[name]
    if not isinstance(value, list):
        raise DataError(f"column {name!r} is {shown(value)}; it must be a list of strings")
    for number, item in enumerate(value, 1):
        if not isinstance(item, str):
            raise DataError(f"entry {number} of column {name!r} is {shown(item)}; it must be a string")
    return value


def _span(item: Any, number: int) -> Span:
    if isinstance(item, list):
        if len(item) != 3:
            raise DataError(f"span {number} is {shown(item)}; it must be [start, end, label]")
        return _checked(number, *item)
    if not isinstance(item, dict):
        raise DataError(f"span {number} is {shown(item)}; it must be {{start, end, label}} or [start, end, label]")
    parts = []
    for names in (START, END, TYPE):
        found = [name for name in names if name in item]
        if not found:
            raise DataError(
                f"span {number} has no {' or '.join(map(repr, names))} (it has {listed(item)}); "
                "it needs start, end and label"
            )
        parts.append(item[found[0]])
    return _checked(number, *parts)


def _checked(number: int, start: Any, end: Any, kind: Any) -> Span:
    for name, value in (("start", start), ("end", end)):
        if type(value) is not int:
            raise DataError(f"the {name} of span {number} is {shown(value)}; it must be a whole number of characters")
    if not isinstance(kind, str) or not kind.strip():
        raise DataError(f"the label of span {number} is {shown(kind)}; it must name the entity's type")
    return Span(start, end, kind)


def _in_order(text: str, spans: Sequence[Span]) -> tuple[Span, ...]:
    """The spans by their start. Raises DataError when one is empty or outside of the text, or when two overlap."""
    for span in spans:
        if span.start >= span.end:
            raise DataError(f"the span {_at(span)} is empty ({_around(text, span)}); its end must be after its start")
        if span.start < 0 or span.end > len(text):
            raise DataError(
                f"the span {_at(span)} is outside of the text, which has {len(text)} characters "
                f"({_around(text, span)}); count characters from 0, the end is the first one after the entity"
            )
    ordered = sorted(spans, key=lambda span: (span.start, span.end))
    for first, second in pairwise(ordered):
        if second.start < first.end:
            raise DataError(
                f"the spans {_at(first)}, {shown(text[first.start : first.end])}, and {_at(second)}, "
                f"{shown(text[second.start : second.end])}, overlap; a token can be of one entity only, so keep one"
            )
    return tuple(ordered)


def _at(span: Span) -> str:
    return f"[{span.start}, {span.end}) {shown(span.type)}"


def _around(text: str, span: Span) -> str:
    """The text where a span begins, for a message."""
    start = min(max(span.start, 0), len(text))
    return f"the text there: {shown(text[max(start - 20, 0) : start + 20])}"
