"""A corpus: plain text that stays on disk, whatever its size; only an index of it is in memory.

What is a corpus:

- a text file (.txt, .md). It is one document, cut into stretches of about 16 KiB (shorter ones where the file is
  small) at the ends of paragraphs; a stretch that is not the last one goes on in the next (`Record.continued`)
- JSON lines with a `text` and no label: every line is a document
- a folder of text files, those below it included: every file is a document, cut into stretches as above

One pass reads everything once: it checks the encoding, finds the documents, and takes the SHA-256. A record is read
from its file when it is asked for. The index takes 33 bytes a record. Imports no torch.
"""

from __future__ import annotations

import codecs
import hashlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np

from heptune.core.errors import DataError, UsageError
from heptune.core.events import Listener, Progress, ignore
from heptune.core.seeds import generator
from heptune.data.encoding import decode, plain_newlines
from heptune.data.json_rows import json_row
from heptune.data.readers import Dataset, check_file, documents_in, first_bad, glance, is_folder, read, scan
from heptune.data.record import OnDisk, Record
from heptune.data.shapes import PLAIN, Seen, Shape, convert, used_columns

# A stretch of a text: so many bytes, or this part of the corpus where it is small, but never less than the last.
STRETCH, STRETCHES, SHORTEST = 16 * 1024, 50, 512
# With fewer documents than this, parts are made of stretches and a document may stand in several.
FEW_DOCUMENTS = 20
# Where nobody says how much: this share of the text for each of the two, and not more than this many bytes.
DEFAULT_SHARE, DEFAULT_BYTES = 0.1, 1 << 20

_INDEX = np.dtype(
    [
        *(("file", "u4"), ("start", "u8"), ("size", "u4"), ("line", "u4")),
        *(("document", "u4"), ("continued", "?"), ("key", "u8")),
    ]
)
_CODES = {"u4": "I", "u8": "Q", "b1": "B"}


@dataclass(frozen=True)
class _Place:
    """The files of a corpus, and how their lines are read: None for plain text."""

    files: tuple[Path, ...]
    shape: Shape | None
    columns: Mapping[str, str]


class Documents(OnDisk):
    """Records that are read from their files when they are asked for.

    `keys` [n] are equal for records that say the same, `sizes` [n] are their bytes.
    """

    def __init__(self, place: _Place, index: np.ndarray) -> None:
        self._place, self._index = place, index

    def __len__(self) -> int:
        return len(self._index)

    @overload
    def __getitem__(self, at: int) -> Record: ...
    @overload
    def __getitem__(self, at: slice) -> Documents: ...
    def __getitem__(self, at: int | slice) -> Record | Documents:
        if isinstance(at, slice):
            return Documents(self._place, self._index[at])
        entry = self._index[at]
        with self._place.files[entry["file"]].open("rb") as file:
            file.seek(int(entry["start"]))
            data = file.read(int(entry["size"]))
        line, text = int(entry["line"]), _plain(data)
        if self._place.shape is not None:
            return convert(json_row(text), self._place.shape, self._place.columns, line)
        return Record(line, text=text, continued=bool(entry["continued"]))

    def take(self, indices: Sequence[int] | np.ndarray) -> Documents:
        """Those with these numbers."""
        return Documents(self._place, self._index[np.asarray(indices, dtype=np.int64)])

    @property
    def keys(self) -> np.ndarray:
        """A hash of what each record says, without case and white space."""
        return self._index["key"]

    @property
    def sizes(self) -> np.ndarray:
        """Each record's bytes in its file."""
        return self._index["size"]

    @property
    def documents(self) -> np.ndarray:
        """The number of the document that each record belongs to."""
        return self._index["document"]

    def place(self, at: int) -> str:
        """File and line of a record."""
        return f"{self._place.files[self._index[at]['file']]}:{self._index[at]['line']}"

    def some(self, count: int, seed: int, *keys: str | int) -> tuple[int, ...]:
        """At most `count` record numbers, drawn without reading anything, ascending."""
        if len(self) <= count:
            return tuple(range(len(self)))
        drawn = generator(seed, *keys).choice(len(self), count, replace=False)
        return tuple(sorted(map(int, drawn)))


def opened(
    path: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    listener: Listener = ignore,
    into_memory: bool = True,
) -> Dataset:
    """The data set at `path`: the documents of a corpus stay on disk, everything else is read (`readers.read`).

    Not `into_memory`, the records of JSON lines stay in their file, too (`readers.scan`). Raises as `readers.read`
    does: DataError for the first bad line (with `skip_bad` when nothing is left).
    """
    path, columns = Path(path), dict(columns or {})
    folder = is_folder(path)
    if folder and columns:
        raise DataError("this is a folder of plain text, it has no columns; leave --column away", path=path)
    if not folder:
        check_file(path)
    found = ("a folder of text files", None) if folder else _corpus_format(path, columns)
    if found is None:
        return (read if into_memory else scan)(path, columns=columns, skip_bad=skip_bad, listener=listener)
    name, shape = found
    files = tuple(sorted(documents_in(path))) if folder else (path,)
    index = _Index(files, sum(file.stat().st_size for file in files), listener, columns)
    digest = hashlib.sha256()
    for file in files:
        if folder:
            digest.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0".encode())
        if shape is None:
            index.add_text(file, digest)
        else:
            index.add_lines(file, shape, digest)
    if shape is not None and not index.agrees(shape):  # the first of the file misled: most of it is something else
        return (read if into_memory else scan)(path, columns=columns, skip_bad=skip_bad, listener=listener)
    if index.bad and not (skip_bad and len(index)):
        raise first_bad(index.bad, path, nothing_left=skip_bad)
    if not len(index):
        raise DataError("there is no text in it; it must hold at least one document", path=path)
    documents = Documents(_Place(files, shape, columns), index.table())
    ignored = () if shape is None else index.unread(shape)
    return Dataset(path, name, documents, tuple(index.bad), digest.hexdigest(), ignored)


def _corpus_format(path: Path, columns: Mapping[str, str]) -> tuple[str, Shape | None] | None:
    """The format's name and the rows' shape where a file is a corpus."""
    seen = glance(path, columns)
    if seen is None or (seen[1] is None and columns):
        return None
    container, shape = seen
    if shape is None:
        return "text file", None
    return (f"{container}, {shape.describe()}", shape) if container == "JSON lines" and shape.name == PLAIN else None


def _plain(data: bytes) -> str:
    """The text of bytes that are known to be UTF-8."""
    return plain_newlines(data.removeprefix(codecs.BOM_UTF8).decode())


def _key(text: str) -> int:
    """Equal for texts that differ in case and white space only."""
    return int.from_bytes(hashlib.blake2b(" ".join(text.split()).casefold().encode(), digest_size=8).digest(), "big")


@dataclass
class _Index:
    """The index while it is made."""

    files: Sequence[Path]
    total: int
    listener: Listener
    columns: Mapping[str, str]
    bad: list[DataError] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._columns = {name: array(_CODES[_INDEX[name].str[1:]]) for name in _INDEX.names or ()}
        self._numbers = {file: number for number, file in enumerate(self.files)}
        self._names: dict[str, None] = {}
        self._seen = Seen(self.columns)
        self._documents, self._done, self._told = 0, 0, 0
        self._stretch = max(SHORTEST, min(STRETCH, self.total // STRETCHES))

    def __len__(self) -> int:
        return len(self._columns["key"])

    def table(self) -> np.ndarray:
        """The index as an array."""
        table = np.empty(len(self), _INDEX)
        for name, values in self._columns.items():
            table[name] = np.frombuffer(values, dtype=values.typecode) if len(values) else 0
        return table

    def agrees(self, shape: Shape) -> bool:
        """Whether the rows of all lines come to this shape."""
        try:
            return self._seen.first is None or self._seen.agreed() == shape
        except DataError:
            return False

    def unread(self, shape: Shape) -> tuple[str, ...]:
        """The columns that nothing is read from."""
        used = used_columns(shape, self._names, self.columns)
        return tuple(name for name in self._names if name not in used)

    def add_text(self, path: Path, digest: Any) -> None:
        """A file as one document in stretches. One that is bad is left out as a whole."""
        stretches, start, line = list[tuple[int, int, int, int]](), 0, 1
        with _readable(path).open("rb") as file:
            for data in _stretches(file, self._stretch):
                digest.update(data)
                self._tell(len(data))
                if data.removeprefix(codecs.BOM_UTF8).strip():
                    try:  # behind a space nothing is taken for the mark that a file of another kind begins with
                        text = decode(data if start == 0 else b" " + data, path)
                    except DataError as error:
                        self.bad.append(DataError(error.problem, path=path, line=line + (error.line or 1) - 1))
                        for rest in iter(lambda: file.read(1 << 20), b""):
                            digest.update(rest)
                            self._tell(len(rest))
                        return
                    stretches.append((start, len(data), line, _key(text)))
                start, line = start + len(data), line + data.count(b"\n")
        for number, (start, size, line, key) in enumerate(stretches, 1):
            self._add(path, start, size, line, number < len(stretches), key)
        self._documents += bool(stretches)

    def add_lines(self, path: Path, shape: Shape, digest: Any) -> None:
        """Every line as a document."""
        start = 0
        with _readable(path).open("rb") as file:
            for number, data in enumerate(file, 1):
                digest.update(data)
                self._tell(len(data))
                if data.strip():
                    try:
                        row = json_row(_decoded_line(data))
                        self._seen.add(row)
                        text = convert(row, shape, self.columns, number).text or ""
                        self._names.update(dict.fromkeys(row))
                        self._add(path, start, len(data), number, False, _key(text))
                        self._documents += 1
                    except DataError as error:
                        self.bad.append(DataError(error.problem, path=path, line=number))
                start += len(data)

    def _add(self, path: Path, start: int, size: int, line: int, continued: bool, key: int) -> None:
        values = (self._numbers[path], start, size, line, self._documents, continued, key)
        for column, value in zip(self._columns.values(), values, strict=True):
            column.append(value)

    def _tell(self, count: int) -> None:
        self._done += count
        if self._done - self._told >= 1 << 24 or (self._done == self.total and self._told):
            self._told = self._done
            self.listener(Progress("reading the corpus", self._done >> 20, self.total >> 20, "MiB"))


def _readable(path: Path) -> Path:
    try:
        path.open("rb").close()
    except OSError as error:
        raise DataError(
            f"the file cannot be read: {error.strerror or error}; check name and permissions", path=path
        ) from None
    return path


def _decoded_line(data: bytes) -> str:
    try:
        return _plain(data)
    except UnicodeDecodeError as error:
        raise DataError(
            f"byte 0x{data[error.start]:02X} (byte {error.start + 1} of the line) is no UTF-8; convert the file"
        ) from None


def _stretches(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The file in pieces of at most `size` bytes; the last one may have a quarter more."""
    rest, limit = b"", size + size // 4
    while True:
        rest += file.read(limit + 1 - len(rest))
        if len(rest) <= limit:
            yield rest
            return
        cut = _cut(rest[:size])
        yield rest[:cut]
        rest = rest[cut:]


def _cut(data: bytes) -> int:
    """Where a stretch ends: after the last paragraph in its second half, else after a line, a word, a character."""
    half = len(data) // 2
    for mark in (b"\n\n", b"\n", b" "):
        at = data.rfind(mark, half)
        if at >= 0:
            return at + len(mark)
    end = len(data)
    while end > half and data[end - 1] & 0xC0 == 0x80:
        end -= 1
    return end - 1 if data[end - 1] >= 0xC0 else len(data)


@dataclass(frozen=True)
class CorpusSplit:
    """How a corpus is cut into parts: a function of its records and of these numbers. `train`, `validation` and `test`
    count records. `shares` are those of the text that were asked for, None where nobody asked."""

    seed: int
    shares: Mapping[str, float | None]
    limit: int | None
    train: int
    validation: int
    test: int

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CorpusSplit:
        """The split that `to_json` wrote."""
        return cls(**value)


def cut(
    documents: Documents, shares: Mapping[str, float | None], limit: int | None, seed: int
) -> tuple[CorpusSplit, dict[str, Documents]]:
    """The parts of a corpus. `shares` are those of validation and test (0: none; None: a tenth of the text, at most
    1 MiB); they are met within one document. `limit` is the most training records.

    What says the same, and the stretches of one document, stay together; in a corpus of fewer than 20 documents the
    stretches of a document may be divided. Raises UsageError for shares out of range, DataError where a part would
    stay empty.
    """
    asked = [share for share in shares.values() if share is not None]
    if any(not 0 <= share < 1 for share in asked) or sum(asked) >= 1:
        raise UsageError(
            f"the shares {', '.join(map(str, asked))} leave nothing to train on; their sum must be below 1"
        )
    group, sizes = _groups(documents)
    total = int(sizes.sum())
    order = generator(seed, "split").permutation(len(sizes))
    part_of = np.zeros(len(sizes), dtype=np.int8)
    for number, (part, share) in enumerate(shares.items(), 1):
        wanted = share * total if share is not None else min(DEFAULT_SHARE * total, DEFAULT_BYTES)
        if share == 0:
            continue
        free = order[part_of[order] == 0]
        small = free[sizes[free] <= max(wanted, sizes[free].min(initial=total))]
        filled = np.cumsum(sizes[small])
        chosen = small[: max(1, int(np.searchsorted(filled, wanted, "right")))]
        if len(chosen) >= len(free):
            raise DataError(
                f"the corpus has {len(documents)} stretches of text, {len(sizes)} that may be parted, too few for a "
                f"{part} part; add text, give a {part} file, or set its share to 0"
            )
        part_of[chosen] = number
    places = {name: np.flatnonzero(part_of[group] == n) for n, name in enumerate(("train", *shares))}
    if limit is not None and limit < len(places["train"]):
        places["train"] = np.sort(generator(seed, "sample").permutation(places["train"])[:limit])
    parts = {name: documents.take(indices) for name, indices in places.items()}
    return CorpusSplit(seed, dict(shares), limit, **{name: len(part) for name, part in parts.items()}), parts


def _groups(documents: Documents) -> tuple[np.ndarray, np.ndarray]:
    """What has to stay together: each record's group [n], and every group's bytes."""
    unit = documents.keys
    if len(documents.documents) and int(documents.documents[-1]) + 1 >= FEW_DOCUMENTS:
        # A document says the same as another where the hashes of its stretches add up to the same.
        same = np.zeros(int(documents.documents[-1]) + 1, dtype=np.uint64)
        np.add.at(same, documents.documents, documents.keys)
        unit = same[documents.documents]
    _, first, group = np.unique(unit, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))  # groups in the order of their first record, not of their hashes
    group = rank[group]
    return group, np.bincount(group, weights=documents.sizes).astype(np.int64)


def keys_of(records: Sequence[Record]) -> np.ndarray:
    """A hash of what each record says, as `Documents.keys`."""
    if isinstance(records, Documents):
        return records.keys
    return np.array([_key(record.text or "") for record in records], dtype=np.uint64)
