"""Questions made up for tests, and files of them. `from questions import about_things, with_options, write`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from heptune.data.record import Record


def write(path: Path, records: Sequence[Record]) -> Path:
    """The records as JSON lines, as people have them."""
    rows = [
        {"question": r.text, "options": r.options, "answer": r.answers[0]}
        if r.options
        else {"question": r.text, "context": r.passage, "answers": [a for a in r.answers if a]}
        for r in records
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def about_things(count: int) -> list[Record]:
    """Questions about passages, every fifth without an answer."""
    things, colours = ("book", "river", "house", "label"), ("red", "green", "blue")
    records = []
    for n in range(count):
        thing, colour = things[n % 4], colours[n % 3]
        passage = f"Number {n} is here. The {thing} is {colour}. That is all."
        answers = ("",) if n % 5 == 4 else (colour, f"it is {colour}")
        asked = "Who wrote it?" if n % 5 == 4 else f"What colour is the {thing}?"
        records.append(Record(n + 1, text=asked, passage=passage, answers=answers))
    return records


def with_options(count: int) -> list[Record]:
    """The right option is the one with the word "good"; two or three options, at any place."""
    records = []
    for n in range(count):
        wrong = [f"a bad thing {n}", f"an awful thing {n}"][: 1 + n % 2]
        options = [*wrong[: n % 3], f"a good thing {n}", *wrong[n % 3 :]]
        records.append(
            Record(n + 1, text=f"Which is best, {n}?", options=tuple(options), answers=(f"a good thing {n}",))
        )
    return records
