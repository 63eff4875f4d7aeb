"""JSON lines read in blocks say the same as read whole; a check that keeps no record says the same as one that does.

Two references stand here: reading as it would be written with all of the file in memory, and counting with dictionaries
of whole records.
"""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heptune.core.errors import DataError
from heptune.core.events import Event, Progress
from heptune.data import encoding, readers, stream, tally
from heptune.data.check import CheckReport, Lengths, check
from heptune.data.json_rows import json_row
from heptune.data.readers import Dataset, read, scan
from heptune.data.record import Record
from heptune.data.shapes import agree, convert
from heptune.data.splits import content_key

QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 7 bytes: every line and many characters are cut by one."""
    monkeypatch.setattr(encoding, "BLOCK", 7)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def jsonl(*rows: object) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def whole(path: Path) -> tuple[list[Record], list[tuple[int | None, str]]]:
    """The records and the bad lines of a file of JSON lines, with everything in memory at once."""
    text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    rows, bad, records = [], [], []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            if line.strip():
                rows.append((number, json_row(line)))
        except DataError as error:
            bad.append((number, error.problem))
    shape = agree([row for _, row in rows], {})
    for number, row in rows:
        try:
            records.append(convert(row, shape, {}, number))
        except DataError as error:
            bad.append((number, error.problem))
    return records, sorted(bad)


def same_as_whole(path: Path) -> None:
    records, bad = whole(path)
    if not records:
        for reader in (read, scan):
            with pytest.raises(DataError, match=f"no usable record is left: all {len(bad)} are bad"):
                reader(path, skip_bad=True)
        return
    for dataset in (read(path, skip_bad=True), scan(path, skip_bad=True)):
        assert list(dataset.records) == records
        assert [(error.line, error.problem) for error in dataset.skipped] == bad
        assert all(error.path == path for error in dataset.skipped)
        assert dataset.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


GOOD = [{"text": f"Straße {n} 日本 😀", "label": "ab"[n % 2], "id": n} for n in range(30)]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r", "\n\n \t\n", "\r\n\r\n"], ids=repr)
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["no mark", "mark"])
@pytest.mark.parametrize("end", ["", "newline", '{"text": "broken o'], ids=["no end", "end", "truncated"])
@pytest.mark.usefixtures("small_blocks")
def test_newlines_marks_and_blank_lines(tmp_path: Path, newline: str, mark: str, end: str) -> None:
    text = mark + newline.join(jsonl(row).strip() for row in GOOD)
    path = write(tmp_path / "a.jsonl", text + (newline + end if end != "newline" else newline))
    same_as_whole(path)
    assert len(read(path, skip_bad=True).records) == 30


LINES = ['{"text": "a", "label": "x"}', '{"text": "é", "label": 1}', '{"text": "only"}', '{"text": "😀", "label": ']
LINES += ['{"prompt": "p", "completion": "c"}', '{"messages": []}', '{"a": 1}', "5", "\x0b", "word", "", " ", "\u3000"]
LINES += ["[]", '{"text": "b\\ud83d", "label": "x"}', '{"text": "b\\ud83d\\ude00", "label": "y"}']


@QUIET
@given(
    lines=st.lists(
        st.sampled_from(LINES),
        min_size=2,
        max_size=12,
    ),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    block=st.integers(7, 40),
)
def test_any_lines_read_as_they_would_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], newline: str, block: int
) -> None:
    path = write(tmp_path / "a.jsonl", newline.join(['{"text": "first", "label": "x"}', *lines]) + newline)
    monkeypatch.setattr(encoding, "BLOCK", block)
    if any(line.strip() for line in lines):
        assert stream.is_json_lines(path)
    same_as_whole(path)


def test_the_shape_is_that_of_all_rows_and_not_of_the_first_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": "p", "completion": "c"}] * 5 + [{"text": "t", "label": "x", "note": 1}] * 50
    path = write(tmp_path / "a.jsonl", jsonl(*rows))
    monkeypatch.setattr(encoding, "BLOCK", 64)
    gone = []
    found = stream.survey(path, {}, lambda records: gone.append(1) or list(records))  # type: ignore[func-returns-value]
    assert len(gone) == 2, "the first block misleads, so the file is gone through twice"
    assert len(found.made) == 50 and found.all_bad == 5
    assert found.ignored == ("prompt", "completion", "note")
    same_as_whole(path)


@pytest.mark.usefixtures("small_blocks")
def test_rows_of_no_shape_at_the_beginning_are_not_the_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", jsonl(*[{"x": 1}] * 20, *[{"text": "t", "label": "x"}] * 3))
    same_as_whole(path)
    with pytest.raises(DataError, match="not recognised; columns found: 'x'"):
        read(write(tmp_path / "b.jsonl", jsonl(*[{"x": 1}] * 20)))


KINDS: dict[str, list[object]] = {
    "several labels": [{"text": f"t{n}", "labels": ["a", "b"][: n % 3]} for n in range(9)],
    "one or several": [{"text": "t", "label": []}, {"text": "t", "label": ["a"]}, {"text": "t", "label": "b"}],
    "spans": [{"text": "Ada met Al", "spans": [[0, 3, "PER"], [8, 10, "PER"]][: n % 3]} for n in range(9)],
    "pairs": [["Ada met Al", {"entities": [[0, 3, "PER"]]}], ["nobody", {"entities": []}], ["x", {"entities": 1}]],
    "questions": [{"question": f"{n}?", "context": "It is 1.", "answers": {"text": ["1"]}} for n in range(3)],
    "options": [{"question": f"{n}?", "options": ["a", "b"], "answer": n % 3} for n in range(6)],
    "letters": [{"question": f"{n}?", "A": "x", "B": "y", "answer": "AB?"[n % 3]} for n in range(6)],
    "tools": [
        {
            "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
            "tools": [{"name": "f", "parameters": {"type": "object", "properties": {}}}],
        }
    ]
    * 3,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [7, 1 << 18])
def test_every_kind_of_record_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, block: int) -> None:
    monkeypatch.setattr(encoding, "BLOCK", block)
    path = write(tmp_path / "a.jsonl", jsonl(*KINDS[kind]))
    assert isinstance(scan(path, skip_bad=True).records, stream.Records)
    same_as_whole(path)
    assert check(scan(path, skip_bad=True)) == check(read(path, skip_bad=True))


TAGGED = [{"tokens": ["Ada", "Byron", "met", "Al"], "tags": ["I-PER", "I-PER", "O", "I-PER"]}] * 5


@pytest.mark.parametrize("before", [[], [{"text": "t", "label": "x"}] * 4], ids=["at once", "at the end"])
@pytest.mark.parametrize("block", [64, 1 << 18])
def test_tagged_tokens_are_read_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: list[object], block: int
) -> None:
    """B directly behind an entity of its type is what tells IOB1 from IOB2, and it stands in the last row."""
    monkeypatch.setattr(encoding, "BLOCK", block)
    last = {"tokens": ["Ada", "Al"], "tags": ["I-PER", "B-PER"]}
    path = write(tmp_path / "a.jsonl", jsonl(*before, *TAGGED, last))
    for reader in (read, scan):
        dataset = reader(path, skip_bad=True)
        assert dataset.format == "JSON lines, tokens + tags (IOB1)"
        assert isinstance(dataset.records, tuple) and len(dataset.records) == 6
        assert [len(record.spans or ()) for record in dataset.records] == [2] * 6
        assert len(dataset.skipped) == len(before)


def test_a_first_block_that_could_be_several_kinds_does_not_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "BLOCK", 64)
    unclear = {"text": "Ada", "spans": [[0, 3, "PER"]], "label": "x"}
    path = write(tmp_path / "a.jsonl", jsonl(unclear, unclear, *[{"text": "Ada", "label": "x"}] * 5))
    same_as_whole(path)
    with pytest.raises(DataError, match="could be read in several ways"):
        scan(write(tmp_path / "b.jsonl", jsonl(*[unclear] * 5, {"text": "Ada", "label": "x"})))


def damaged(content: bytes, path: Path) -> str:
    """The error for content that is in memory, by the plain rules on all of its bytes."""
    with pytest.raises(DataError) as caught:
        encoding.decode(content, path)
    return str(caught.value)


ROWS = jsonl(*GOOD).encode()
DAMAGES = {
    "UTF-16": ROWS.decode().encode("utf-16"),
    "UTF-16 unmarked": jsonl({"text": "plain", "label": "x"}).encode("utf-16-le"),
    "UTF-32": ROWS.decode().encode("utf-32"),
    "gzip": b"\x1f\x8b\x08\x00" + ROWS,
    "NUL late": ROWS + b'{"text": "a\0b"}\n',
    "Latin-1 late": ROWS + '{"text": "naïve", "label": "x"}\n'.encode("latin-1") + ROWS,
    "Latin-1 in the first line": b'\xef\xbb\xbf{"text": "na\xefve"}\n' + ROWS,
    "Latin-1 and later NUL": ROWS + b'{"text": "na\xefve"}\n' + ROWS + b"\0",
    "Latin-1 and later control": ROWS + b'{"text": "na\xefve"}\n' + ROWS + b"\x02",
    "cut in a character": ROWS + '{"text": "é'.encode()[:-1],
    "stray continuation": ROWS + b"\x80\n",
}


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("block", [7, 8, 64, 1 << 18])
def test_damage_is_told_as_if_all_bytes_were_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, block: int
) -> None:
    path = write(tmp_path / "a.jsonl", DAMAGES[name])
    expected = damaged(DAMAGES[name], path)
    monkeypatch.setattr(encoding, "BLOCK", block)
    for reader in (read, scan):
        with pytest.raises(DataError) as caught:
            reader(path, skip_bad=True)
        assert str(caught.value) == expected


@QUIET
@given(data=st.binary(min_size=1, max_size=60), block=st.integers(7, 16))
def test_where_bytes_stop_being_text(data: bytes, block: int) -> None:
    """Line and column against Python's decoder on all of the bytes."""
    path = Path("a.jsonl")
    plain = bytes(b for b in data if b >= 0x20 or b in b"\n\r\t")
    try:
        plain.removeprefix(b"\xef\xbb\xbf").decode()
        return
    except UnicodeDecodeError as error:
        text, start = plain.removeprefix(b"\xef\xbb\xbf"), error.start
    if encoding.is_foreign(plain):
        return
    found = encoding.damage((plain[at : at + block] for at in range(0, len(plain), block)), path)
    column = start - text.rfind(b"\n", 0, start)
    assert found.line == text.count(b"\n", 0, start) + 1
    assert f"0x{text[start]:02X} (byte {column} of the line)" in str(found)


def test_one_line_of_ten_megabytes(tmp_path: Path) -> None:
    long = "word " * 2_000_000
    path = write(tmp_path / "a.jsonl", jsonl({"text": "short", "label": "x"}, {"text": long, "label": "y"}))
    assert [record.text for record in scan(path).records] == ["short", long]
    first = write(tmp_path / "b.jsonl", jsonl({"text": long, "label": "y"}, {"text": "short", "label": "x"}))
    assert stream.is_json_lines(first)
    assert [len(record.text or "") for record in read(first).records] == [len(long), 5]


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("a.jsonl", jsonl({"text": "a"}, {"text": "b"}), True),
        ("a.txt", jsonl({"text": "a"}, {"text": "b"}), True),
        ("a.csv", '{"text": "a}\n{"text": "b"}\n{"text": "c"}', True),
        ("a.jsonl", "no JSON\nat all\n", True),
        ("a.jsonl", '{"text": "broken\n{"text": "b"}\n', True),
        ("a.jsonl", json.dumps([{"text": "a"}, {"text": "b"}], indent=1), False),
        ("a.json", json.dumps({"data": [{"text": "a"}]}, indent=1), False),
        ("a.csv", "text,label\na,x\n", False),
        ("a.txt", "words\n\nwords\n", False),
        ("a.txt", jsonl(["a", {"entities": []}], ["b", {"entities": []}]), True),
        ("a.jsonl", jsonl(["a", {"entities": []}], ["b", {"entities": []}]), True),
        ("a.jsonl", jsonl(["a", {"entities": []}]), False),
        ("a.txt", "[ O\nAda B-PER\n] O\n", False),
        ("a.conll", "{ O\nAda B-PER\n} O\n", False),
        ("a.jsonl", "", False),
    ],
)
@pytest.mark.parametrize("block", [4, 1 << 18])
def test_what_is_a_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, lines: bool, block: int
) -> None:
    monkeypatch.setattr(encoding, "BLOCK", block)
    assert stream.is_json_lines(write(tmp_path / name, content)) is lines


def test_a_json_document_over_many_blocks_is_none(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps([{"text": "a" * 50, "label": "x"}] * 20_000, indent=1))
    assert path.stat().st_size > 4 * encoding.BLOCK
    assert not stream.is_json_lines(path)
    assert len(scan(path).records) == 20_000


def test_records_in_a_file_are_a_sequence(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", jsonl(*GOOD[:10], {"text": "no label"}, *GOOD[10:]))
    kept, lazy = read(path, skip_bad=True).records, scan(path, skip_bad=True).records
    assert isinstance(lazy, stream.Records) and len(lazy) == 30
    assert (lazy[0], lazy[-1], lazy[12]) == (kept[0], kept[-1], kept[12])
    assert tuple(lazy[5:20:4]) == kept[5:20:4] and tuple(lazy[::-1]) == kept[::-1] and lazy[40:] == []
    with pytest.raises(IndexError):
        lazy[30]
    path.write_text(jsonl(*GOOD[:29], {"text": "another", "label": "a"}))
    with pytest.raises(DataError, match="changed while it was read"):
        list(lazy)


def test_only_the_first_bad_lines_of_a_scan_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BAD_LINES_KEPT", 3)
    path = write(tmp_path / "a.jsonl", jsonl(*GOOD, *[{"text": "no label"}] * 8))
    dataset = scan(path, skip_bad=True)
    assert (len(dataset.skipped), dataset.all_skipped) == (3, 8)
    report = check(dataset)
    assert report.bad_lines == 8
    assert any("8 bad lines left out; the first" in finding.text for finding in report.findings)
    with pytest.raises(DataError, match="7 more are bad"):
        scan(path)


def test_reading_a_large_file_is_told_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "LARGE", 1000)
    monkeypatch.setattr(stream, "TOLD_EVERY", 500)
    monkeypatch.setattr(encoding, "BLOCK", 100)
    path = write(tmp_path / "a.jsonl", jsonl(*GOOD))
    events: list[Event] = []
    read(path, listener=events.append)
    size = path.stat().st_size
    assert [e.done for e in events if isinstance(e, Progress)] == sorted({*range(500, size, 500), size})
    assert all(e == Progress("reading a.jsonl", e.done, size, "bytes") for e in events if isinstance(e, Progress))
    seen: list[Event] = []
    assert len(list(stream.told(scan(path).records, "posing", seen.append))) == 30
    assert seen[-1] == Progress("posing", size, size, "bytes")
    quiet: list[Event] = []
    monkeypatch.setattr(stream, "LARGE", size + 1)
    read(path, listener=quiet.append)
    assert quiet == []


def test_memory_is_that_of_the_records_or_of_none(tmp_path: Path) -> None:
    size = 20_000_000
    row = {"text": "x" * 980, "label": "a"}
    path = write(tmp_path / "a.jsonl", "".join(jsonl({**row, "id": n}) for n in range(size // 1000)))

    def peak_of(reader: object) -> tuple[int, int]:
        tracemalloc.start()
        dataset = reader(path)  # type: ignore[operator]
        kept, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(dataset.records) == size // 1000
        return kept, peak

    kept, peak = peak_of(read)
    assert peak < kept + 4e6
    kept, peak = peak_of(scan)
    assert kept < 1e6 and peak < 4e6


# ---- the check


def reference(dataset: Dataset, evaluation: Dataset | None, lengths: dict[int, list[Lengths]]) -> dict[str, object]:
    """What the report must hold, counted with whole records in dictionaries."""

    def by_content(records: Sequence[Record]) -> dict[Hashable, list[Record]]:
        groups: dict[Hashable, list[Record]] = {}
        for record in records:
            groups.setdefault(content_key(record), []).append(record)
        return groups

    def lines(groups: list[list[Record]]) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(record.line for record in same) for same in groups)

    records = list(dataset.records)
    known = {record.label for record in records if record.label is not None}
    judged = [] if evaluation is None else list(evaluation.records)
    groups, others = by_content(records), by_content(judged)
    repeated = [same for same in groups.values() if len(same) > 1]
    mixed = [same for same in repeated if len({(r.label, r.labels, r.spans) for r in same}) > 1]
    leaked = [(r.line, others[key][0].line) for key, same in groups.items() if key in others for r in same]
    every = [length for record in records for length in lengths[record.line]]
    tokens = [length.tokens for length in every]
    nothing = [r.line for r in records if not lengths[r.line] or not all(x.supervised for x in lengths[r.line])]
    cut = [r.line for r in records if any(x.cut for x in lengths[r.line])]
    return {
        "records": len(records),
        "labels": Counter(r.label for r in records if r.label is not None),
        "duplicates": sum(len(same) - 1 for same in repeated),
        "duplicate_lines": lines(repeated),
        "conflicts": len(mixed),
        "conflict_lines": lines(mixed),
        "leaked": len(leaked),
        "leaked_lines": tuple(leaked[:5]),
        "unknown_labels": Counter(r.label for r in judged if known and r.label is not None and r.label not in known),
        "unsupervised": len(nothing),
        "unsupervised_lines": tuple(nothing),
        "cut": len(cut),
        "cut_lines": tuple(cut),
        "lengths": None
        if not tokens
        else (
            len(tokens),
            min(tokens),
            int(np.quantile(tokens, 0.5, method="lower")),
            int(np.quantile(tokens, 0.95, method="higher")),
            max(tokens),
            sum(tokens),
            sum(length.supervised for length in every),
        ),
    }


def reported(report: CheckReport, names: dict[str, object]) -> dict[str, object]:
    found = {name: getattr(report, name) for name in names}
    if report.lengths is not None:
        found["lengths"] = tuple(getattr(report.lengths, name) for name in report.lengths.__dataclass_fields__)
    return found


ROW = st.fixed_dictionaries(
    {"text": st.sampled_from(["one", "ONE", "two", "two ", "three", "four five", "Four  Five", "é"])},
    optional={"label": st.sampled_from(["a", "b", "A", 3])},
)
LENGTHS = st.lists(st.builds(Lengths, st.integers(1, 9), st.integers(0, 2), st.integers(0, 1)), max_size=2)


@QUIET
@given(rows=st.lists(ROW, min_size=1, max_size=40), others=st.lists(ROW, max_size=15), data=st.data())
def test_the_check_of_a_stream_counts_what_dictionaries_of_records_do(
    tmp_path: Path, rows: list[dict[str, object]], others: list[dict[str, object]], data: st.DataObject
) -> None:
    gaps = data.draw(st.lists(st.sampled_from(["", "\n", "{\n"]), min_size=len(rows), max_size=len(rows)))
    path = write(tmp_path / "a.jsonl", "".join(jsonl(row) + gap for row, gap in zip(rows, gaps, strict=True)))
    judged = write(tmp_path / "b.jsonl", jsonl(*others, {"text": "last", "label": "a"}))
    kept, lazy = read(path, skip_bad=True), scan(path, skip_bad=True)
    lengths = {record.line: data.draw(LENGTHS) for record in kept.records}
    reports = [
        check(dataset, evaluation=other, measure=lambda some: [lengths[record.line] for record in some], max_length=9)
        for dataset, other in ((kept, read(judged, skip_bad=True)), (lazy, scan(judged, skip_bad=True)))
    ]
    assert reports[0] == reports[1]
    expected = reference(kept, read(judged, skip_bad=True), lengths)
    assert reported(reports[1], expected) == expected


@pytest.mark.parametrize("listed", [2, 7, 50])
def test_a_report_names_the_first_lines_of_many(monkeypatch: pytest.MonkeyPatch, listed: int) -> None:
    """Against the reference, with the lists cut by hand."""
    monkeypatch.setattr(tally, "LISTED", listed)
    chance = np.random.default_rng(listed)
    texts = chance.integers(0, 60, 400)
    records = tuple(Record(2 * n + 1, text=f"t{text}", label=str(n % 3)) for n, text in enumerate(texts))
    dataset = Dataset(Path("a"), "f", records, (), "0" * 64)
    report = check(dataset, measure=lambda some: [[Lengths(3, 0, 1)] for _ in some])
    expected = reference(dataset, None, {record.line: [Lengths(3, 0, 1)] for record in records})
    for name in ("duplicate_lines", "conflict_lines"):
        left, groups = listed, []
        for same in expected[name]:  # type: ignore[attr-defined]
            if left < 2:
                break
            groups.append(same[:left])
            left -= len(same[:left])
        assert getattr(report, name) == tuple(groups), name
    for name in ("cut_lines", "unsupervised_lines"):
        assert getattr(report, name) == expected[name][:listed]  # type: ignore[index]
    for name in ("duplicates", "conflicts", "cut", "unsupervised"):
        assert getattr(report, name) == expected[name]


def test_five_million_records_leave_sixty_megabytes() -> None:
    """Of 200,000 records; it grows in proportion."""
    tracemalloc.start()
    counted = tally.Tally()
    for n in range(200_000):
        counted.add(Record(n + 1, text=f"text {n // 2}", label=str(n % 5)))
    kept, _ = tracemalloc.get_traced_memory()
    found = counted.repetitions()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.duplicates == found.conflicts == 100_000
    assert kept < 200_000 * 14
    assert peak < 200_000 * 14 + 6e6  # what is listed, and a sixteenth of the records being sorted


def test_a_hash_is_the_same_in_every_process() -> None:
    assert tally.key_of(Record(1, text="Some  TEXT")) == tally.key_of(Record(9, text="some text", label="x"))
    assert tally.key_of(Record(1, text="some text")) == 0x1A3B8E68377256AF
