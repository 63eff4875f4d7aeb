"""Questions built by hand, in files that a test's reader takes as they are. `from questions import write, reading`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from heptune.data import parts
from heptune.data.readers import Dataset
from heptune.data.record import Record

_LISTS = ("answers", "options")


def write(path: Path, records: Sequence[Record]) -> Path:
    path.write_text("".join(json.dumps(asdict(record)) + "\n" for record in records), "utf-8")
    return path


def reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sets are read as what `write` wrote."""
    monkeypatch.setattr(parts, "read", _read)


def _read(path: str | Path, **_: Any) -> Dataset:
    data = Path(path).read_bytes()
    rows = [json.loads(line) for line in data.decode().splitlines()]
    kept = ("line", "text", "passage", *_LISTS)
    records = [Record(**{k: tuple(row[k]) if k in _LISTS else row[k] for k in kept}) for row in rows]
    return Dataset(Path(path), "questions", tuple(records), (), hashlib.sha256(data).hexdigest())


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
