"""JSON lines read block by block, so that a file need not fit into memory.

`survey` goes through a file once and finds out all that there is to know of it; `Records` are its records, read anew
whenever they are iterated over. What takes memory is a block and the longest line.

The shape of a file is that of most of its rows (`shapes.agree`), which is only known at the end. So the rows of the
first block say what to read the file as, all rows are counted on the way, and where they come to another shape in the
end, the file is gone through once more. The result is that of counting first; no answer depends on the block.

Tagged tokens are the exception: their scheme takes the tags of all rows before the first can become a record, so such a
file is left to whoever holds all of it.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

from heptune.core.errors import DataError
from heptune.core.events import Listener, Progress, ignore
from heptune.data import conll
from heptune.data.encoding import blocks, damage, is_foreign, plain_newlines, unreadable
from heptune.data.json_rows import is_pair, json_row, loads
from heptune.data.record import OnDisk, Record
from heptune.data.shapes import TAGGED, Seen, Shape, check_columns, convert, used_columns
from heptune.data.values import Row

EXTENSIONS = (".jsonl", ".ndjson")
NEVER_CONLL = (*EXTENSIONS, ".json", ".csv")  # files that are not looked at for whether they are CoNLL
LARGE = 20 << 20  # bytes of a file whose reading is told
TOLD_EVERY = 4 << 20

T = TypeVar("T")


# ---- lines


@dataclass
class _Watch:
    """What is seen of a file while its bytes pass: their number and SHA-256. Of a large file a listener is told."""

    what: str = ""
    listener: Listener = ignore
    total: int = 0
    done: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def add(self, block: bytes) -> None:
        """Takes in the next block."""
        self.digest.update(block)
        before, self.done = self.done, self.done + len(block)
        if self.total >= LARGE and (before // TOLD_EVERY < self.done // TOLD_EVERY or self.done >= self.total):
            self.listener(Progress(self.what, min(self.done, self.total), self.total, "bytes"))


def texts(path: Path, watch: Callable[[bytes], None] = lambda block: None) -> Iterator[str]:
    """The file's text in pieces of whole lines, with plain newlines and without a byte order mark; every block of bytes
    is first shown to `watch`. Raises DataError for what is not UTF-8 text, as `encoding.decode` does."""
    rest: list[bytes] = []
    first = True
    for block in blocks(path):
        watch(block)
        if b"\0" in block or (first and is_foreign(block)):
            raise damage(blocks(path), path)
        if first:
            first, block = False, block.removeprefix(codecs.BOM_UTF8)
        # A \r at the very end may be the first half of \r\n.
        end = max(block.rfind(b"\n"), block.rfind(b"\r", 0, max(len(block) - 1, 0))) + 1
        if end:
            yield _text(b"".join([*rest, block[:end]]), path)
            rest = []
        rest.append(block[end:])
    if last := b"".join(rest):
        yield _text(last, path)


def _text(data: bytes, path: Path) -> str:
    try:
        return plain_newlines(data.decode())
    except UnicodeDecodeError:
        raise damage(blocks(path), path) from None


def _rows(path: Path, watch: Callable[[bytes], None] = lambda block: None) -> Iterator[tuple[int, Row | DataError]]:
    """(line, row) of each line that is not blank; the error instead of the row where there is none."""
    line = 0
    for text in texts(path, watch):
        for content in text.removesuffix("\n").split("\n"):
            line += 1
            if content.strip():
                try:
                    yield line, json_row(content)
                except DataError as error:
                    yield line, error


# ---- is it JSON lines?


def is_json_lines(path: Path) -> bool:
    """Whether a file is one JSON object (or pair) a line, by its first block (and, until that holds two lines, more).

    True for .jsonl and .ndjson, and for other files that begin with { where the first line is an object or most lines
    of the first block stand between { and }, or that begin with a pair; not for CoNLL. Not where the file may be one
    JSON value, such as a list of records over many lines: only a look at all of it tells. Raises DataError for what is
    not UTF-8 text.
    """
    head, whole = _head(path)
    body, suffix = head.strip(), path.suffix.lower()
    if not body or (suffix not in EXTENSIONS and (body[0] not in "{[" or suffix in conll.EXTENSIONS)):
        return False
    if _may_be_one_value(body, whole):
        return False
    if suffix in EXTENSIONS:
        return True
    return looks_like_lines(body) and (suffix in NEVER_CONLL or not conll.recognised(head))


def _head(path: Path) -> tuple[str, bool]:
    """The first pieces of a file's text, up to its second line that is not blank, and whether that is all of it."""
    pieces = texts(path)
    head: list[str] = []
    filled = 0
    for piece in pieces:
        head.append(piece)
        filled += sum(1 for line in islice((x for x in piece.split("\n") if x.strip()), 2))
        if filled > 1:
            return "".join(head), next(pieces, None) is None
    return "".join(head), True


def _may_be_one_value(body: str, whole: bool) -> bool:
    """Whether a file that begins with `body` may as a whole be one JSON value."""
    _, problem = loads(body)
    if problem is None:
        return True
    # A parser reads from left to right: what is wrong before the end of the lines that were read stays wrong.
    return not whole and isinstance(problem, json.JSONDecodeError) and problem.pos >= len(body)


def looks_like_lines(body: str) -> bool:
    """Whether a file that begins with { or [ is one object (or pair) a line, perhaps with damaged lines, and not one
    large object or list."""
    lines = [line.strip() for line in body.split("\n") if line.strip()]
    if body[0] != "{":
        return is_pair(loads(lines[0])[0])
    return isinstance(loads(lines[0])[0], dict) or sum(x[0] == "{" and x[-1] == "}" for x in lines) * 2 > len(lines)


# ---- records


class Records(OnDisk):
    """The records of a JSON lines file, read anew whenever they are iterated over; bad lines are left out.

    Raises DataError at the end of an iteration when the file is no longer what it was when it was surveyed.
    """

    def __init__(self, path: Path, columns: Mapping[str, str], shape: Shape, count: int, sha256: str) -> None:
        self.path, self.columns, self.shape, self.sha256 = path, dict(columns), shape, sha256
        self._count = count
        self._watch = _Watch()

    def told(self, what: str, listener: Listener) -> Records:
        """The same records, which tell the listener how far an iteration is."""
        other = Records(self.path, self.columns, self.shape, self._count, self.sha256)
        other._watch = _Watch(what, listener, _size(self.path))
        return other

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Record]:
        watch = replace(self._watch, digest=hashlib.sha256())
        for line, row in _rows(self.path, watch.add):
            if not isinstance(row, DataError):
                try:
                    yield convert(row, self.shape, self.columns, line)
                except DataError:
                    continue
        if watch.digest.hexdigest() != self.sha256:
            raise DataError("the file changed while it was read; wait until whatever writes it is done", path=self.path)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        """One record or some, found by reading the file up to the last of them."""
        places = range(self._count)[index]
        if isinstance(places, int):
            return next(islice(self, places, None))
        if not places:
            return []
        low, high = min(places[0], places[-1]), max(places[0], places[-1])
        read = list(islice(self, low, high + 1))
        return [read[place - low] for place in places]


def told(records: Sequence[Record], what: str, listener: Listener) -> Sequence[Record]:
    """The records; those that are read from a file tell the listener how far an iteration is."""
    return records.told(what, listener) if isinstance(records, Records) else records


# ---- all that there is to know


@dataclass(frozen=True)
class Survey(Generic[T]):
    """What a file holds. `shape` is None where no row can be parsed. `bad` are the first bad lines, `all_bad` counts
    them all. `ignored` are the columns that nothing is read from. `made` is what was made of the records."""

    shape: Shape | None
    ignored: tuple[str, ...]
    bad: tuple[DataError, ...]
    all_bad: int
    sha256: str
    made: T


def survey(
    path: Path,
    columns: Mapping[str, str],
    make: Callable[[Iterable[Record]], T],
    *,
    most_bad: int | None = None,
    listener: Listener = ignore,
) -> Survey[T] | None:
    """Go through a JSON lines file once, or, if its first block misleads, twice; `make` is given all records.

    None for tagged tokens. `most_bad` is how many bad lines are kept. Raises DataError for what is not UTF-8 text, for
    rows of no known shape and for missing columns, UsageError for an unknown role in `columns`.
    """
    shape = _first_shape(path, columns)
    while shape is None or shape.name != TAGGED:
        going = _Going(path, columns, shape, most_bad, _Watch(f"reading {path.name}", listener, _size(path)))
        made = make(going.records())
        found = going.agreed()
        if found == shape or found is None:
            return Survey(found, going.ignored(), tuple(going.bad), going.all_bad, going.watch.digest.hexdigest(), made)
        shape = found
    return None


def _first_shape(path: Path, columns: Mapping[str, str]) -> Shape | None:
    """The shape that the rows of the first piece agree on; None where they have none."""
    seen = Seen(columns)
    for content in _head(path)[0].split("\n"):
        if content.strip():
            with contextlib.suppress(DataError):
                seen.add(json_row(content))
    try:
        return seen.agreed() if seen.first is not None else None
    except DataError:
        return None


class _Going:
    """One way through a file: its rows become records of `shape`, and what they should have become is counted."""

    def __init__(
        self, path: Path, columns: Mapping[str, str], shape: Shape | None, most_bad: int | None, watch: _Watch
    ) -> None:
        self.path, self.columns, self.shape, self.most_bad, self.watch = path, columns, shape, most_bad, watch
        self.bad: list[DataError] = []
        self.all_bad = 0
        self._seen = Seen(columns)
        self._names: dict[str, None] = {}

    def records(self) -> Iterator[Record]:
        """The records; without a shape there are none."""
        for line, row in _rows(self.path, self.watch.add):
            if isinstance(row, DataError):
                self._add_bad(row, line)
                continue
            self._seen.add(row)
            for name in row:
                if name not in self._names:
                    self._names[name] = None
            if self.shape is not None:
                try:
                    yield convert(row, self.shape, self.columns, line)
                except DataError as error:
                    self._add_bad(error, line)

    def _add_bad(self, error: DataError, line: int) -> None:
        self.all_bad += 1
        if self.most_bad is None or len(self.bad) < self.most_bad:
            self.bad.append(DataError(error.problem, path=self.path, line=line))

    def agreed(self) -> Shape | None:
        """The shape of all rows; None without a row."""
        if self._seen.first is None:
            return None
        try:
            check_columns(self.columns, self._names)
            return self._seen.agreed()
        except DataError as error:
            raise DataError(error.problem, path=self.path) from None

    def ignored(self) -> tuple[str, ...]:
        """The columns that nothing is read from."""
        if self.shape is None:
            return ()
        used = used_columns(self.shape, dict.fromkeys(self._names, ""), self.columns)
        return tuple(name for name in self._names if name not in used)


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise unreadable(error, path) from None
