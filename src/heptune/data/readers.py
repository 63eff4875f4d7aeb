"""Readers of every supported file format: bytes in, records out, or an error that says where and what to do.

The format is found by looking at the content; the file's extension only decides where the content leaves a doubt:

- JSON lines: one object a line
- JSON: a list of objects, or an object that holds exactly one such list
- SQuAD: the JSON of articles, paragraphs and questions (qas)
- CSV and TSV with a header; the separator is a comma, a semicolon or a tab
- CoNLL: a token and its tag a line, a blank line between sentences
- plain text (.txt, .md): each block of lines between blank lines is one record

What the rows may look like stands in `shapes`.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heptune.core.errors import DataError
from heptune.core.events import Listener, ignore
from heptune.core.registry import nearest
from heptune.data import conll, stream
from heptune.data.encoding import decode, unreadable
from heptune.data.json_rows import as_row, is_pair, json_problem, json_row, loads
from heptune.data.questions import is_article, questions_of
from heptune.data.record import Record
from heptune.data.shapes import Shape, agree, candidates, check_columns, convert, recognise, used_columns
from heptune.data.tags import TagError
from heptune.data.values import Row, listed, shown

TABLES, PLAIN = (".csv", ".tsv"), (".txt", ".md")
EXTENSIONS = (".jsonl", ".json", *TABLES, *PLAIN, ".ndjson", *conll.EXTENSIONS)
HEAD = 1 << 20  # bytes from which a file's shape is told where it is not read whole
BAD_LINES_KEPT = 10_000  # of a file that is not held in memory


@dataclass(frozen=True)
class Dataset:
    """A file as read. `records` are all of one kind; `skipped` the bad lines that were left out; `more_skipped` counts
    further ones.

    `format` names what was found, e.g. 'CSV, text + label'; `sha256` is that of the file's bytes; `ignored` are the
    columns that nothing was read from.
    """

    path: Path
    format: str
    records: Sequence[Record]
    skipped: tuple[DataError, ...]
    sha256: str
    ignored: tuple[str, ...] = ()
    more_skipped: int = 0

    @property
    def kind(self) -> str:
        """The kind of all records, as `Record.kind` names it; 'no records' when there are none."""
        return self.records[0].kind if self.records else "no records"

    @property
    def all_skipped(self) -> int:
        """How many bad lines were left out."""
        return len(self.skipped) + self.more_skipped


def read(
    path: str | Path, *, columns: Mapping[str, str] | None = None, skip_bad: bool = False, listener: Listener = ignore
) -> Dataset:
    """Read a data file of any supported format into memory.

    `columns` names columns by hand: role (one of `shapes.NAMED_BY_HAND`) -> the file's column.
    The first bad line raises DataError, with file and line. With `skip_bad` bad lines are collected in
    `Dataset.skipped` instead; DataError is raised only when nothing is left. Raises UsageError for an unknown role.
    Of JSON lines nothing but the records is held; the listener is told how far a large file is read.
    """
    path, columns = Path(path), dict(columns or {})
    check_file(path)
    if stream.is_json_lines(path):
        found = stream.survey(path, columns, tuple, most_bad=None if skip_bad else 1, listener=listener)
        if found is not None:
            return _dataset(path, found, found.made, len(found.made), skip_bad)
    return _read_whole(path, columns, skip_bad)


def scan(
    path: str | Path, *, columns: Mapping[str, str] | None = None, skip_bad: bool = False, listener: Listener = ignore
) -> Dataset:
    """The same as `read`, but the records of JSON lines stay in the file (`stream.Records`), however large it is.

    Files of other formats are read into memory: their rows cannot be told apart before the end is known. So are tagged
    tokens, whose scheme takes the tags of all rows.
    """
    path, columns = Path(path), dict(columns or {})
    check_file(path)
    found = None
    if stream.is_json_lines(path):
        found = stream.survey(path, columns, _count, most_bad=BAD_LINES_KEPT, listener=listener)
    if found is None:
        return _read_whole(path, columns, skip_bad)
    shape = found.shape
    records = () if shape is None else stream.Records(path, columns, shape, found.made, found.sha256)
    return _dataset(path, found, records, found.made, skip_bad)


def _count(records: Iterable[Record]) -> int:
    return sum(1 for _ in records)


def _dataset(path: Path, found: stream.Survey[Any], records: Sequence[Record], count: int, skip_bad: bool) -> Dataset:
    if found.shape is None or (found.bad and not (skip_bad and count)):
        nothing_left = skip_bad or found.shape is None
        raise first_bad(found.bad, path, nothing_left=nothing_left, count=found.all_bad)
    more = found.all_bad - len(found.bad)
    return Dataset(path, f"JSON lines, {found.shape.describe()}", records, found.bad, found.sha256, found.ignored, more)


def _read_whole(path: Path, columns: Mapping[str, str], skip_bad: bool) -> Dataset:
    data = _bytes(path)
    text, sha256 = decode(data, path), hashlib.sha256(data).hexdigest()
    del data
    source = _parse(text, path, columns)
    records: list[Record]
    ignored: tuple[str, ...] = ()
    bad = list(source.bad)
    if columns and source.container in ("plain text", "CoNLL"):
        raise DataError(f"this is {source.container}, it has no columns with names; leave --column away", path=path)
    if source.is_text:
        records, name = _blocks(text), "plain text"
    else:
        records, name, ignored = _records(source, path, columns, bad)
    if bad and not (skip_bad and records):
        raise first_bad(bad, path, nothing_left=skip_bad)
    return Dataset(path, name, tuple(records), tuple(bad), sha256, ignored)


def glance(path: Path, columns: Mapping[str, str]) -> tuple[str, Shape | None] | None:
    """What the first MiB of a file shows: the container's name and, unless that is 'plain text', the rows' shape. None
    where it shows nothing; `read` then says why."""
    try:
        with path.open("rb") as file:
            data = file.read(HEAD)
            if file.read(1):
                data = data[: data.rfind(b"\n") + 1] or data
        source = _parse(decode(data, path), path, columns)
        if source.is_text:
            return source.container, None
        return (source.container, agree([row for _, row in source.rows], columns)) if source.rows else None
    except (OSError, DataError):
        return None


@dataclass(frozen=True)
class _Source:
    """A parsed file: its rows with their line (or element) numbers, and the lines that could not be parsed.

    `token_lines` are those of each token, under the line of its row, where a row stands in several lines.
    """

    container: str
    rows: Sequence[tuple[int, Row]] = ()
    bad: Sequence[DataError] = ()
    place: str = ""
    token_lines: Mapping[int, Sequence[int]] = field(default_factory=dict)

    @property
    def is_text(self) -> bool:
        return self.container == "plain text"


def _records(
    source: _Source, path: Path, columns: Mapping[str, str], bad: list[DataError]
) -> tuple[list[Record], str, tuple[str, ...]]:
    """The records of all rows that fit the file's shape, its format's name and the unread columns; appends to `bad`."""
    if not source.rows:
        raise first_bad(bad, path, nothing_left=True)
    names = dict.fromkeys(name for _, row in source.rows for name in row)
    try:
        check_columns(columns, names)
        shape = agree([row for _, row in source.rows], columns)
    except DataError as error:
        raise DataError(error.problem, path=path) from None
    records = []
    for line, row in source.rows:
        try:
            records.append(convert(row, shape, columns, line))
        except TagError as error:
            at = source.token_lines[line][error.token] if line in source.token_lines else line
            bad.append(DataError(source.place.format(line) + error.problem, path=path, line=at))
        except DataError as error:
            bad.append(DataError(source.place.format(line) + error.problem, path=path, line=line))
    bad.sort(key=lambda error: error.line or 0)
    used = used_columns(shape, dict.fromkeys(names, ""), columns)
    return records, f"{source.container}, {shape.describe()}", tuple(n for n in names if n not in used)


def first_bad(bad: Sequence[DataError], path: Path, *, nothing_left: bool, count: int | None = None) -> DataError:
    """The error for `count` bad lines (None: those given): the first one in full, and how many more there are."""
    count = len(bad) if count is None else count
    first = bad[0]
    if nothing_left:
        return DataError(
            f"no usable record is left: all {count} are bad, the first: {first.problem}", path=path, line=first.line
        )
    more = f" ({count - 1} more are bad; --skip-bad leaves them out)" if count > 1 else " (or use --skip-bad)"
    return DataError(first.problem + more, path=path, line=first.line)


def is_folder(path: Path) -> bool:
    """Whether a path is a folder; DataError where the system cannot tell."""
    try:
        return path.is_dir()
    except OSError as error:
        raise unreadable(error, path) from None


def check_file(path: Path) -> None:
    """Raises DataError for what is no file: a folder, a pipe, a device, nothing."""
    try:
        if path.is_dir():
            raise DataError(f"this is a folder; name a file in it: {listed(_names(path))}", path=path)
        if not path.exists():
            raise _missing(path)
        if not path.is_file():
            raise DataError("this is not a regular file; save the data to a file first", path=path)
    except OSError as error:
        raise unreadable(error, path) from None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(error, path) from None


def _missing(path: Path) -> DataError:
    if not path.parent.is_dir():
        return DataError(f"there is no such file, nor a folder {str(path.parent)!r}; check the path", path=path)
    names = _names(path.parent)
    close = nearest(path.name, names)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    return DataError(f"there is no such file; {hint}files in that folder: {listed(names)}", path=path)


def _names(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir() if child.is_file() and not child.name.startswith("."))


def _parse(text: str, path: Path, columns: Mapping[str, str]) -> _Source:
    """Find the container by content, with the extension as the tie-breaker."""
    suffix, body = path.suffix.lower(), text.strip()
    if suffix in conll.EXTENSIONS or (suffix not in stream.NEVER_CONLL and conll.recognised(text)):
        return _conll(text, path)
    if body[0] in "[{" or suffix in (*stream.EXTENSIONS, ".json"):
        value, problem = loads(body)
        if problem is None and isinstance(value, list):
            return _elements([value] if is_pair(value) else value, path)
        if problem is None and isinstance(value, dict):
            return _object(value, text, path, columns)
        if suffix in stream.EXTENSIONS or stream.looks_like_lines(body):
            return _json_lines(text, path)
        if suffix not in (*TABLES, *PLAIN):
            if problem is None:
                raise DataError(f"the file holds {shown(value)}; a list of objects is needed", path=path)
            before = len(text) - len(text.lstrip())
            line = text[:before].count("\n") + (problem.lineno if isinstance(problem, json.JSONDecodeError) else 1)
            raise DataError(json_problem(body, problem), path=path, line=line)
    table = _table(text, path, columns) if suffix in TABLES else _unnamed_table(text, path, columns)
    if table is not None:
        return table
    if suffix in PLAIN:
        return _Source("plain text")
    raise DataError(
        f"what this file holds is not recognised; it begins with {shown(body.split(chr(10))[0])}. "
        "Known: JSON lines, JSON, CSV and TSV with column names in the first line, "
        f"CoNLL ({', '.join(conll.EXTENSIONS)}), plain text ({', '.join(PLAIN)}); "
        "rename the file if it is one of these",
        path=path,
    )


def _json_lines(text: str, path: Path) -> _Source:
    rows, bad = [], []
    for line, content in enumerate(text.split("\n"), 1):
        try:
            if content.strip():
                rows.append((line, json_row(content)))
        except DataError as error:
            bad.append(DataError(error.problem, path=path, line=line))
    return _Source("JSON lines", rows, bad)


def _elements(values: list[Any], path: Path) -> _Source:
    if not values:
        raise DataError("the list is empty; it must hold at least one record", path=path)
    if any(is_article(value) for value in values):
        return _squad(values, path)
    rows, bad = [], []
    for number, value in enumerate(values, 1):
        try:
            rows.append((number, as_row(value)))
        except DataError as error:
            bad.append(DataError(f"element {number} of the list: {error.problem}", path=path, line=number))
    return _Source("JSON", rows, bad, place="element {} of the list: ")


def _squad(articles: list[Any], path: Path) -> _Source:
    rows, bad, place = [], [], "question {}: "
    for number, found in questions_of(articles):
        try:
            if isinstance(found, DataError):
                raise found
            rows.append((number, as_row(found)))
        except DataError as error:
            bad.append(DataError(place.format(number) + error.problem, path=path, line=number))
    return _Source("SQuAD", rows, bad, place)


def _conll(text: str, path: Path) -> _Source:
    sentences, problems = conll.parse(text)
    rows = [(s.lines[0], {"tokens": list(s.tokens), "tags": list(s.tags)}) for s in sentences]
    bad = [DataError(problem, path=path, line=line) for line, problem in problems]
    if not rows and not bad:
        raise DataError("there is no sentence, only comments and the beginnings of documents", path=path)
    return _Source("CoNLL", rows, bad, token_lines={s.lines[0]: s.lines for s in sentences})


def _object(value: dict[str, Any], text: str, path: Path, columns: Mapping[str, str]) -> _Source:
    """A file that is one object: a single record, or the wrapping of a list of records."""
    if not candidates(value, columns):
        lists = [k for k, v in value.items() if isinstance(v, list) and v and all(isinstance(row, dict) for row in v)]
        if len(lists) == 1:
            return _elements(value[lists[0]], path)
        if lists:
            raise DataError(
                f"the object holds {len(lists)} lists of records ({listed(lists)}); save each to a file of its own",
                path=path,
            )
    if text.strip().count("\n") == 0:
        return _json_lines(text, path)
    return _elements([value], path)


def _table(text: str, path: Path, columns: Mapping[str, str]) -> _Source:
    """CSV or TSV: the first separator whose header is recognised, else the one that gives most columns."""
    order = ("\t", ",", ";") if path.suffix.lower() == ".tsv" else (",", ";", "\t")
    headers = {separator: _header(text, separator) for separator in order}
    known = [s for s in order if recognise(dict.fromkeys(headers[s], ""), columns) is not None]
    separator = known[0] if known else max(order, key=lambda s: len(headers[s]))
    header = headers[separator]
    if not header:
        raise DataError("the quotes in the first line (the column names) do not pair up; close them", path=path, line=1)
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise DataError(f"the column {listed(twice)} stands twice in the first line; rename one", path=path, line=1)
    rows, bad = [], []
    for line, fields, problem in _table_rows(text, separator):
        if problem is None and len(fields) != len(header):
            name = {",": "comma", ";": "semicolon", "\t": "tab"}[separator]
            problem = (
                f"the row has {len(fields)} fields, but the first line names {len(header)} columns ({listed(header)}); "
                f"put double quotes around a field that contains a {name}"
            )
        if problem is None:
            rows.append((line, dict(zip(header, fields, strict=True))))
        else:
            bad.append(DataError(problem, path=path, line=line))
    if not rows and not bad:
        raise DataError(f"there is only one line, read as column names ({listed(header)}); rows are missing", path=path)
    return _Source("TSV" if separator == "\t" else "CSV", rows, bad)


def _unnamed_table(text: str, path: Path, columns: Mapping[str, str]) -> _Source | None:
    """A table whose extension does not say so: the header is recognised and the next line has as many fields."""
    for separator in ("\t", ",", ";"):
        header = _header(text, separator)
        if len(header) > 1 and recognise(dict.fromkeys(header, ""), columns) is not None:
            second = next((fields for _, fields, problem in _table_rows(text, separator) if problem is None), [])
            if len(second) == len(header):
                return _table(text, path, columns)
    return None


def _header(text: str, separator: str) -> list[str]:
    """The fields of the first line that is not blank; none when its quotes are damaged."""
    first = next(line for line in text.split("\n") if line.strip())
    return [name.strip() for _, fields, _ in _fields([first], separator, csv.QUOTE_MINIMAL) for name in fields]


def _table_rows(text: str, separator: str) -> Iterator[tuple[int, list[str], str | None]]:
    """(line, fields, problem) of each row below the header; blank lines are skipped."""
    lines = text.split("\n")
    quoting = csv.QUOTE_MINIMAL
    filled = [line for line in lines if line.strip()]
    one_row_a_line = separator == "\t" and len({line.count("\t") for line in filled}) == 1
    if one_row_a_line and any(problem for line in filled for _, _, problem in _fields([line], separator, quoting)):
        # Quotes that do not pair up within a row are part of the text, as in most published TSV files.
        quoting = csv.QUOTE_NONE
    rows = _fields(lines, separator, quoting)
    next(rows, None)
    yield from rows


def _fields(lines: Sequence[str], separator: str, quoting: int) -> Iterator[tuple[int, list[str], str | None]]:
    # The limit is the csv module's own global one (131,072 characters a field by default), so it is put back.
    before = csv.field_size_limit(sum(map(len, lines)) + len(lines) + 1)
    try:
        rows = list(_parse_fields(lines, separator, quoting))
    finally:
        csv.field_size_limit(before)
    yield from rows


def _parse_fields(lines: Sequence[str], separator: str, quoting: Any) -> Iterable[tuple[int, list[str], str | None]]:
    reader = csv.reader((line + "\n" for line in lines), delimiter=separator, quoting=quoting, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "end of data" in str(error):
                rest = f"the {len(lines) - line + 1} lines from here to the end belong to one field"
                yield line, [], f"a double quote opened here is never closed, so {rest}; close it, or write it twice"
            else:
                yield line, [], f"damaged quoting ({error}); inside quotes a double quote is written twice"
            continue
        if len(fields) > 1 or (fields and fields[0].strip()):
            yield line, fields, None


def _blocks(text: str) -> list[Record]:
    """Plain text: each block between blank lines is one record."""
    records, block, start = [], list[str](), 0
    for line, content in enumerate([*text.split("\n"), ""], 1):
        if content.strip():
            start = start if block else line
            block.append(content.rstrip())
        elif block:
            records.append(Record(start, text="\n".join(block)))
            block = []
    return records


@dataclass(frozen=True)
class Parts:
    """The files of a data set."""

    train: Path
    validation: Path | None
    test: Path | None


NAMES = {"train": ("train",), "validation": ("dev", "val", "valid", "validation"), "test": ("test",)}


def locate(data: str | Path, validation: str | Path | None = None, test: str | Path | None = None) -> Parts:
    """The files of a data set: one file, or a folder with train.* and, if there are any, dev.* (val, valid,
    validation) and test.*. A folder without train.* is a training part itself where its files are documents
    (`is_document_folder`).

    `validation` and `test` name files by hand and win over the folder's. Raises DataError when a file is missing,
    when there is no train file, or when there are several candidates.
    """
    data = Path(data)
    by_hand = {"validation": validation, "test": test}
    found: dict[str, Path | None] = {part: None if name is None else Path(name) for part, name in by_hand.items()}
    found["train"] = _only_candidate(data, "train") if is_folder(data) else data
    if found["train"] is None and is_document_folder(data):
        found["train"] = data
    elif data.is_dir():
        for part in by_hand:
            found[part] = found[part] or _only_candidate(data, part)
    for path in found.values():
        if path is not None and not path.exists():
            raise _missing(path)
        if path is not None and path.is_dir() and not is_document_folder(path):
            raise DataError(f"this is a folder; name a file in it: {listed(_names(path))}", path=path)
    train = found["train"]
    if train is None:
        raise DataError(
            f"the folder has no training file (train{', train'.join(EXTENSIONS)}); it holds: {listed(_names(data))}. "
            "Name the file itself instead of the folder",
            path=data,
        )
    return Parts(train, found["validation"], found["test"])


def is_document_folder(folder: Path) -> bool:
    """Whether a folder is a corpus: text files in it or below, and beside them no table or JSON that might be meant."""
    others = (*stream.EXTENSIONS, *TABLES, ".json")
    if not folder.is_dir() or any(Path(n).suffix.lower() in others for n in _names(folder)):
        return False
    return next(documents_in(folder), None) is not None


def documents_in(folder: Path) -> Iterator[Path]:
    """The text files of a folder and those below it, hidden ones left out."""
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in PLAIN and not hidden and path.is_file():
            yield path


def _only_candidate(folder: Path, part: str) -> Path | None:
    paths = sorted(folder / n for n in _names(folder) if Path(n).suffix.lower() in EXTENSIONS)
    paths = [path for path in paths if path.stem.lower() in NAMES[part]]
    if len(paths) > 1:
        raise DataError(
            f"several files could be the {part} part: {listed(p.name for p in paths)}; name the one to use by hand",
            path=folder,
        )
    return paths[0] if paths else None
