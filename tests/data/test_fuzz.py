"""Whatever a file holds, reading it gives records or an error made for people; and what is written is read back.

HEPTUNE_FUZZ sets the examples of each test (40 without it).
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heptune.core.errors import DataError, UsageError
from heptune.data import conll
from heptune.data.check import check
from heptune.data.readers import Dataset, read
from heptune.data.record import Message, Record, Span
from heptune.data.shapes import ALIASES, NAMED_BY_HAND

FUZZ = settings(
    deadline=None,
    max_examples=int(os.environ.get("HEPTUNE_FUZZ", "120")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SUFFIXES = st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".txt", "", *conll.EXTENSIONS])


def write(folder: Path, suffix: str, content: str | bytes) -> Path:
    path = folder / f"fuzz{suffix}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read_or_refuse(path: Path) -> Dataset | None:
    """The data set with at least one record, or None for an error made for people; nothing else may happen."""
    try:
        dataset = read(path, skip_bad=True)
    except DataError as problem:
        check_place(problem, path)
        return None
    assert dataset.records
    assert {record.kind for record in dataset.records} == {dataset.kind}
    for problem in dataset.skipped:
        check_place(problem, path)
    for record in dataset.records:
        check_record(record)
    check(dataset, evaluation=dataset)
    try:
        assert read(path).records == dataset.records
        assert not dataset.skipped
    except DataError as problem:
        assert str(dataset.skipped[0]) == f"{path}:{problem.line}: {dataset.skipped[0].problem}"
        assert problem.problem.startswith(dataset.skipped[0].problem)
    return dataset


def check_place(problem: DataError, path: Path) -> None:
    """The error names the file, and a line only if there is such a line (or element of a list)."""
    assert problem.problem.strip()
    str(problem).encode()
    assert problem.path == path
    content = path.read_bytes()
    if problem.line is not None:
        assert problem.line >= 1
        lines = 1 + content.count(b"\n") + content.count(b"\r")
        assert problem.line <= lines or content.removeprefix(b"\xef\xbb\xbf").decode().lstrip()[0] in "[{"


def check_record(record: Record) -> None:
    """What `Record` promises holds."""
    if record.spans is not None:
        ends = [0, *(span.end for span in record.spans)]
        for before, span in zip(ends, record.spans, strict=False):
            assert before <= span.start < span.end <= len(record.text or "")
            assert span.type.strip()
    if record.options:
        assert len(record.answers) == 1 and record.options.count(record.answers[0]) == 1
    for text in (record.text, record.label, *(record.labels or ()), *record.options):
        assert text is None or text.strip()


@FUZZ
@given(content=st.binary(max_size=80), suffix=SUFFIXES)
def test_any_bytes(tmp_path: Path, content: bytes, suffix: str) -> None:
    read_or_refuse(write(tmp_path, suffix, content))


HEADERS = [
    "",
    "text,label\n",
    "text\tlabel\n",
    "question,A,B,answer\n",
    "question;context;answer\n",
    "-DOCSTART- O\n\n",
]
SYNTAX = [
    ",",
    ";",
    "\t",
    " ",
    "\n",
    "\n\n",
    "\r",
    '"',
    '""',
    "{",
    "}",
    "[",
    "]",
    ":",
    "# ",
    "#",
    "\\ud800",
    "é",
    "\x1c",
    "\xa0",
]
TAGGING = ["O", "B-X", "I-X", "E-X", " O\n", " B-X\n", "\tI-X\n", "\tO\n", "A", "0"]
PIECES = st.sampled_from([*SYNTAX, *TAGGING, "text", "label", '{"text": "a"}'])


@FUZZ
@given(pieces=st.lists(PIECES, max_size=25), header=st.sampled_from(HEADERS), suffix=SUFFIXES)
def test_any_arrangement_of_syntax(tmp_path: Path, pieces: list[str], header: str, suffix: str) -> None:
    read_or_refuse(write(tmp_path, suffix, header + "".join(pieces)))


COLUMNS = dict.fromkeys(name for names in ALIASES.values() for name in names)
OTHERS = [
    "A",
    "B",
    "C",
    "premise",
    "hypothesis",
    "choice1",
    "choice2",
    "userInput",
    "is_impossible",
    "paragraphs",
    "data",
    "x",
]
NAMES = st.sampled_from([*COLUMNS, *OTHERS])
LEAF = (
    st.none()
    | st.booleans()
    | st.integers(-1, 4)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["O", "B-X", "I-X", "A", "cause", "0", ""])
)
SPAN_KEYS = ["start", "end", "label", "type", "text", "slot", "valueSpan", "endIndex", "entities"]
OTHER_KEYS = ["role", "content", "from", "value", "answer_start", "question", "context", "qas", "paragraphs", "answers"]
KEYS = st.sampled_from([*SPAN_KEYS, *OTHER_KEYS])
VALUES = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)
ROWS = st.dictionaries(NAMES, VALUES, max_size=5)
# Rows with the columns that a shape needs, whatever they hold.
NEARLY = st.sampled_from(
    [
        ("text", "labels"),
        ("text", "spans"),
        ("tokens", "tags"),
        ("question", "context", "answers"),
        ("question", "choices", "answer"),
        ("question", "A", "B", "answer"),
        ("premise", "choice1", "choice2", "label", "question"),
        ("userInput", "labels"),
    ]
).flatmap(lambda names: st.fixed_dictionaries(dict.fromkeys(names, VALUES)))


def encoded(rows: Sequence[Any], array: bool) -> str:
    return json.dumps(list(rows)) if array else "".join(json.dumps(row) + "\n" for row in rows)


@FUZZ
@given(rows=st.lists(ROWS | NEARLY | LEAF, max_size=4), suffix=SUFFIXES, array=st.booleans())
def test_any_rows(tmp_path: Path, rows: list[Any], suffix: str, array: bool) -> None:
    dataset = read_or_refuse(write(tmp_path, suffix, encoded(rows, array)))
    if dataset is not None and dataset.format.startswith("JSON"):
        assert len(dataset.records) + len(dataset.skipped) == len(rows)


@FUZZ
@given(
    rows=st.lists(ROWS | NEARLY, min_size=1, max_size=3), columns=st.dictionaries(st.sampled_from(NAMED_BY_HAND), NAMES)
)
def test_any_columns_named_by_hand(tmp_path: Path, rows: list[Any], columns: dict[str, str]) -> None:
    try:
        assert read(write(tmp_path, ".jsonl", encoded(rows, False)), columns=columns).records
    except (DataError, UsageError) as problem:
        assert str(problem)


CHARACTERS = st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufeff")
TEXT = st.text(st.sampled_from('ab é,;:"\\\n\t[]{}#-') | CHARACTERS, min_size=1, max_size=12).filter(str.strip)
LINE = TEXT.map(lambda text: " ".join(text.split()))
WORD = TEXT.map(lambda text: "".join(text.split()))
TYPE = st.sampled_from(["PER", "creative-work", "Ort"])


@st.composite
def tagged_records(draw: st.DrawFn) -> tuple[list[str], list[tuple[int, int, str]], Record]:
    """Tokens, the entities as (first token, after the last, type), and the record that they make."""
    words = draw(st.lists(WORD, min_size=1, max_size=8))
    found, token = [], draw(st.integers(0, 2))
    while token < len(words):
        end = min(token + draw(st.integers(1, 3)), len(words))
        found.append((token, end, draw(TYPE)))
        token = end + draw(st.integers(0, 2))
    spans = tuple(Span(len(" ".join([*words[:a], ""])), len(" ".join(words[:b])), kind) for a, b, kind in found)
    return words, found, Record(0, text=" ".join(words), spans=spans)


@st.composite
def spanned_records(draw: st.DrawFn) -> Record:
    text = draw(TEXT)
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=6)))
    pairs = zip(cuts[::2], cuts[1::2], strict=False)
    return Record(0, text=text, spans=tuple(Span(a, b, draw(TYPE)) for a, b in pairs))


ANSWERS = st.lists(TEXT, unique=True, max_size=3).map(lambda found: tuple(found) or ("",))
QUESTIONS = st.builds(Record, st.just(0), text=TEXT, passage=TEXT, answers=ANSWERS)
# Letters and digits would name another option than the one whose text they are.
OPTIONS = st.lists(TEXT.filter(lambda text: len(text.strip()) > 3), min_size=2, max_size=5, unique=True)


@st.composite
def choices(draw: st.DrawFn) -> Record:
    options = draw(OPTIONS)
    return Record(0, text=draw(TEXT), options=tuple(options), answers=(draw(st.sampled_from(options)),))


LABELLED = st.builds(Record, st.just(0), text=TEXT, label=TEXT)
SEVERAL = st.builds(Record, st.just(0), text=TEXT, labels=st.lists(TEXT, unique=True, max_size=3).map(tuple))
TURNS = st.tuples(
    st.builds(Message, st.just("user"), TEXT),
    st.builds(Message, st.just("assistant"), TEXT),
    st.builds(Message, st.sampled_from(["user", "tool", "assistant"]), TEXT),
)
TALKS = st.builds(Record, st.just(0), messages=TURNS)
ROWS_OF: dict[str, tuple[st.SearchStrategy[Record], Callable[[Record], Any]]] = {
    "text + label": (LABELLED, lambda r: {"text": r.text, "label": r.label}),
    "text + labels": (SEVERAL, lambda r: {"text": r.text, "labels": r.labels}),
    "spans as objects": (
        spanned_records(),
        lambda r: {"text": r.text, "spans": [{"start": s.start, "end": s.end, "label": s.type} for s in r.spans]},
    ),
    "spans as lists": (
        spanned_records(),
        lambda r: {"text": r.text, "entities": [(s.start, s.end, s.type) for s in reversed(r.spans or ())]},
    ),
    "doccano": (
        spanned_records().filter(lambda r: bool(r.spans)),
        lambda r: {"text": r.text, "label": [(s.start, s.end, s.type) for s in r.spans or ()]},
    ),
    "pairs": (
        spanned_records(),
        lambda r: [r.text, {"entities": [(s.start, s.end, s.type) for s in r.spans or ()]}],
    ),
    "answers": (QUESTIONS, lambda r: {"question": r.text, "context": r.passage, "answers": r.answers}),
    "SQuAD's answers": (
        QUESTIONS,
        lambda r: {
            "question": r.text,
            "context": r.passage,
            "answers": {"text": [] if r.answers == ("",) else r.answers, "answer_start": []},
        },
    ),
    "option's text": (choices(), lambda r: {"question": r.text, "options": r.options, "answer": r.answers[0]}),
    "option's index": (
        choices(),
        lambda r: {"question": r.text, "options": r.options, "answer": r.options.index(r.answers[0])},
    ),
    "option's letter": (
        choices(),
        lambda r: {"question": r.text, "options": r.options, "answer": "ABCDE"[r.options.index(r.answers[0])]},
    ),
    "ARC": (
        choices(),
        lambda r: {
            "question": r.text,
            "choices": {"text": r.options, "label": [str(n) for n in range(1, len(r.options) + 1)]},
            "answerKey": str(r.options.index(r.answers[0]) + 1),
        },
    ),
    "A, B, C": (
        choices(),
        lambda r: {"question": r.text, **dict(zip("ABCDE", r.options, strict=False)), "answer": r.answers[0]},
    ),
    "messages": (TALKS, lambda r: {"messages": [{"role": m.role, "content": m.content} for m in r.messages]}),
    "plain": (st.builds(Record, st.just(0), text=TEXT), lambda r: {"text": r.text}),
}


def without_lines(dataset: Dataset) -> list[Record]:
    return [replace(record, line=0) for record in dataset.records]


@FUZZ
@given(data=st.data(), array=st.booleans())
@pytest.mark.parametrize("form", ROWS_OF)
def test_json_is_read_back(tmp_path: Path, form: str, data: st.DataObject, array: bool) -> None:
    strategy, row = ROWS_OF[form]
    records = data.draw(st.lists(strategy, min_size=1, max_size=4))
    dataset = read(write(tmp_path, ".json" if array else ".jsonl", encoded([row(r) for r in records], array)))
    assert without_lines(dataset) == records
    assert [r.line for r in dataset.records] == list(range(1, len(records) + 1))


@FUZZ
@given(questions=st.lists(QUESTIONS, min_size=1, max_size=4), version=st.sampled_from([1, 2]))
def test_squad_is_read_back(tmp_path: Path, questions: list[Record], version: int) -> None:
    paragraphs = []
    for number, question in enumerate(questions):
        none = question.answers == ("",)
        answers = [] if none else [{"text": text, "answer_start": 0} for text in question.answers]
        entry = {"id": str(number), "question": question.text, "answers": answers}
        entry |= {"is_impossible": none} if version == 2 else {}
        paragraphs.append({"context": question.passage, "qas": [entry]})
    articles = [{"title": "a", "paragraphs": paragraphs[:1]}, {"title": "b", "paragraphs": paragraphs[1:]}]
    file = json.dumps({"version": str(version), "data": articles})
    assert without_lines(read(write(tmp_path, ".json", file))) == questions


# A tab-separated file with line breaks inside of quotes can be read in two ways.
CELLS = {".csv": (TEXT, ","), ".tsv": (LINE, "\t")}


def table(rows: Sequence[Sequence[str | None]], separator: str) -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator="\n").writerows(rows)
    return text.getvalue()


@FUZZ
@given(data=st.data(), suffix=st.sampled_from([".csv", ".tsv"]))
def test_tables_are_read_back(tmp_path: Path, data: st.DataObject, suffix: str) -> None:
    cell, separator = CELLS[suffix]
    labelled = data.draw(st.lists(st.builds(Record, st.just(0), text=cell, label=cell), min_size=1, max_size=4))
    rows = [["text", "label"], *([r.text, r.label] for r in labelled)]
    assert without_lines(read(write(tmp_path, suffix, table(rows, separator)))) == labelled
    answers = cell.map(lambda text: (text,))
    asked = st.builds(Record, st.just(0), text=cell, passage=cell, answers=answers)
    questions = data.draw(st.lists(asked, min_size=1, max_size=4))
    rows = [["question", "context", "answer"], *([r.text, r.passage, r.answers[0]] for r in questions)]
    assert without_lines(read(write(tmp_path, suffix, table(rows, separator)))) == questions


def tags_of(length: int, entities: Sequence[tuple[int, int, str]], scheme: str) -> list[str]:
    tags, before = ["O"] * length, (-1, -1, "")
    for first, end, kind in entities:
        letters = ["I"] * (end - first)
        if scheme != "IOB1" or before[1:] == (first, kind):
            letters[0] = "B"
        if scheme == "IOBES":
            letters[-1] = "E" if end - first > 1 else "S"
        tags[first:end] = [f"{letter}-{kind}" for letter in letters]
        before = (first, end, kind)
    return tags


SENTENCES = st.lists(tagged_records(), min_size=1, max_size=4)
SCHEMES = st.sampled_from(["IOB1", "IOB2", "IOBES"])


def conll_file(sentences: Sequence[tuple[list[str], Any, Record]], scheme: str, separator: str, middle: str) -> str:
    lines = ["-DOCSTART-" + separator + "O", ""]
    for words, entities, _ in sentences:
        tags = tags_of(len(words), entities, scheme)
        lines += [separator.join([w, *middle, t]) for w, t in zip(words, tags, strict=True)]
        lines.append("")
    return "\n".join(lines)


@FUZZ
@given(
    sentences=SENTENCES,
    scheme=SCHEMES,
    separator=st.sampled_from(["\t", " "]),
    suffix=st.sampled_from(conll.EXTENSIONS),
    middle=st.sampled_from(["", "x"]),
)
def test_conll_is_read_back(
    tmp_path: Path, sentences: list[Any], scheme: str, separator: str, suffix: str, middle: str
) -> None:
    path = write(tmp_path, suffix, conll_file(sentences, scheme, separator, middle))
    assert without_lines(read(path)) == [record for _, _, record in sentences]
    rows = [{"tokens": words, "tags": tags_of(len(words), found, scheme)} for words, found, _ in sentences]
    assert without_lines(read(write(tmp_path, ".jsonl", encoded(rows, False)))) == [
        record for _, _, record in sentences
    ]


@FUZZ
@given(blocks=st.lists(st.lists(LINE, min_size=1, max_size=3), min_size=1, max_size=4))
def test_plain_text_is_read_back(tmp_path: Path, blocks: list[list[str]]) -> None:
    texts = ["Plain words", *("\n".join(lines) for lines in blocks)]
    assert [r.text for r in read(write(tmp_path, ".txt", "\n\n".join(texts))).records] == texts


@st.composite
def files(draw: st.DrawFn) -> tuple[str, str]:
    """The suffix and the content of a valid file of any format."""
    kind = draw(st.sampled_from(["json", "json", "json", "conll", "conll", "squad", "csv", "tsv"]))
    if kind == "json":
        strategy, row = ROWS_OF[draw(st.sampled_from(list(ROWS_OF)))]
        array = draw(st.booleans())
        rows = [row(record) for record in draw(st.lists(strategy, min_size=1, max_size=4))]
        return draw(st.sampled_from([".json", ".jsonl"])), encoded(rows, array)
    if kind == "conll":
        suffix = draw(st.sampled_from([".conll", ".tsv", ".txt"]))
        separator = draw(st.sampled_from(["\t", " "]))
        # By its content alone a file is CoNLL only where some token is outside of an entity.
        sentences = [(["Plain"], [], Record(0, text="Plain", spans=())), *draw(SENTENCES)]
        return suffix, conll_file(sentences, draw(SCHEMES), separator, "")
    if kind == "squad":
        questions = draw(st.lists(QUESTIONS, min_size=1, max_size=3))
        qas = [{"question": r.text, "answers": [{"text": text} for text in r.answers]} for r in questions]
        return ".json", json.dumps({"data": [{"paragraphs": [{"context": "c", "qas": qas}]}]})
    cell, separator = CELLS[f".{kind}"]
    cells = draw(st.lists(st.tuples(cell, cell, cell), min_size=1, max_size=3))
    return f".{kind}", table([("question", "context", "answer"), *cells], separator)


PATCHES = st.binary(max_size=3) | st.sampled_from(
    [b'"', b"\n", b"\t", b" ", b",", b"{", b"]", b"null", b"[]", b"-1", b"99", b"B-X", b"I-X", b"O", b"\\", b"\0"]
)


def damaged(content: bytes, edits: Sequence[tuple[str, int, int, bytes]]) -> bytes:
    for edit, at, length, patch in edits:
        place = at % (len(content) + 1)
        if edit == "insert":
            content = content[:place] + patch + content[place:]
        elif edit == "replace":
            content = content[:place] + patch + content[place + length :]
        elif edit == "repeat":
            content = content[: place + length] + content[place:]
        elif edit == "cut":
            content = content[:place]
        else:
            lines = content.split(b"\n")
            first, second = at % len(lines), length % len(lines)
            lines[first], lines[second] = lines[second], lines[first]
            content = b"\n".join(lines)
    return content


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["insert", "replace", "replace", "repeat", "cut", "swap"]),
        st.integers(0, 2000),
        st.integers(0, 12),
        PATCHES,
    ),
    min_size=1,
    max_size=4,
)


@settings(FUZZ, max_examples=3 * FUZZ.max_examples)
@given(file=files(), edits=EDITS)
def test_damaged_files(tmp_path: Path, file: tuple[str, str], edits: list[tuple[str, int, int, bytes]]) -> None:
    suffix, content = file
    assert read(write(tmp_path, suffix, content)).records
    read_or_refuse(write(tmp_path, suffix, damaged(content.encode(), edits)))
