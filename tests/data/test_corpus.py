"""Corpora: documents that stay on disk are found, checked, cut into parts and read back exactly."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heptune.core.errors import DataError, RunError, UsageError
from heptune.core.events import ignore
from heptune.data.corpus import STRETCH, CorpusSplit, Documents, cut, opened
from heptune.data.parts import DataOptions, read_again, read_files
from heptune.data.splits import sample

WORDS = ("the", "river", "ran", "under", "an", "old", "stone", "bridge", "and", "nobody", "crossed", "it")


def prose(count: int, seed: int = 0) -> str:
    """Paragraphs of random words, about `count` bytes."""
    draw = random.Random(seed)
    text = ""
    while len(text) < count:
        text += " ".join(draw.choices(WORDS, k=draw.randint(5, 40))) + ("\n\n" if draw.random() < 0.5 else "\n")
    return text


def documents(path: Path, **options: object) -> Documents:
    found = opened(path, **options).records  # type: ignore[arg-type]
    assert isinstance(found, Documents)
    return found


def joined(found: Documents) -> list[str]:
    """The documents put together from their stretches."""
    texts: list[str] = []
    goes_on = False
    for record in found:
        texts[len(texts) - goes_on :] = [(texts[-1] if goes_on else "") + (record.text or "")]
        goes_on = record.continued
    assert not goes_on, "the last stretch closes its document"
    return texts


def test_a_text_file_is_one_document_in_stretches_at_the_ends_of_paragraphs(tmp_path: Path) -> None:
    text = prose(60 * STRETCH)
    (tmp_path / "book.txt").write_text(text, "utf-8")
    found = documents(tmp_path / "book.txt")
    assert joined(found) == [text]
    assert len(found) > 55 and max(found.sizes) <= STRETCH * 1.25
    assert all((record.text or "").endswith("\n\n") for record in found if record.continued)
    for number in (0, len(found) // 2, len(found) - 1):
        line = found[number].line
        assert text.split("\n")[line - 1] == (found[number].text or "").split("\n")[0]
    assert found[-1] == found[len(found) - 1] and found[3:5][1] == found[4]


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\ufeff"), min_size=1, max_size=4000)
)
def test_no_character_is_torn_or_lost(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("corpus") / "book.md"
    path.write_text("a" + text, "utf-8", newline="")
    read_back = "".join(record.text or "" for record in documents(path))
    assert "".join(read_back.split()) == "".join(("a" + text).split())


def test_small_files_have_small_stretches(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(prose(20_000), "utf-8")
    assert len(documents(tmp_path / "book.txt")) >= 30


def test_windows_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert joined(documents(tmp_path / "book.txt")) == ["one\ntwo\n"]


def test_json_lines_with_text_alone(tmp_path: Path) -> None:
    path = tmp_path / "tales.jsonl"
    rows = [{"title": f"T{n}", "text": f"Tale {n}: äöü\n{prose(300, n)}"} for n in range(30)]
    path.write_text("".join(json.dumps(row) + "\n\n" for row in rows), "utf-8")
    found = opened(path)
    assert isinstance(found.records, Documents) and found.format == "JSON lines, text" and found.ignored == ("title",)
    assert [record.text for record in found.records] == [row["text"] for row in rows]
    assert [record.line for record in found.records] == list(range(1, 60, 2))
    assert not any(record.continued for record in found.records)
    assert documents(path, columns={"text": "title"})[3].text == "T3"


def test_labelled_lines_and_tables_are_no_corpus(tmp_path: Path) -> None:
    path = tmp_path / "reviews.jsonl"
    path.write_text('{"text": "good", "label": "a"}\n{"text": "bad", "label": "b"}\n', "utf-8")
    assert isinstance(opened(path).records, tuple) and opened(path).kind == "labelled text"
    table = tmp_path / "table.txt"
    table.write_text("text,label\ngood,a\nbad,b\n", "utf-8")
    assert opened(table).kind == "labelled text"


def test_labels_behind_the_first_of_a_file_make_it_no_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heptune.data.readers.HEAD", 20)
    path = tmp_path / "reviews.jsonl"
    labelled = "".join(json.dumps({"text": f"good {n}", "label": "ab"[n % 2]}) + "\n" for n in range(40))
    path.write_text('{"text": "good"}\n' + labelled, "utf-8")
    found = opened(path, skip_bad=True)
    assert found.kind == "labelled text" and len(found.records) == 40 and len(found.skipped) == 1


def test_a_folder_of_text_files(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name, text in {"b.txt": "Second.", "a.md": "First.", "sub/c.txt": "Third.", "empty.txt": "\n"}.items():
        (tmp_path / name).write_text(text, "utf-8")
    (tmp_path / ".hidden/d.txt").write_text("Never.", "utf-8")
    found = opened(tmp_path)
    assert [record.text for record in found.records] == ["First.", "Second.", "Third."]
    assert found.format == "a folder of text files"
    assert isinstance(found.records, Documents) and found.records.place(2) == f"{tmp_path / 'sub/c.txt'}:1"
    before = found.sha256
    (tmp_path / "b.txt").rename(tmp_path / "bb.txt")
    assert opened(tmp_path).sha256 != before
    with pytest.raises(DataError, match="no columns"):
        opened(tmp_path, columns={"text": "a"})


def test_a_folder_with_tables_or_a_training_file_is_no_corpus(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("About.", "utf-8")
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n', "utf-8")
    with pytest.raises(DataError, match="no training file"):
        read_files(tmp_path, DataOptions(), ignore)
    (tmp_path / "rows.jsonl").rename(tmp_path / "train.jsonl")
    assert read_files(tmp_path, DataOptions(), ignore).train.path.name == "train.jsonl"


@pytest.mark.parametrize(
    ("content", "line", "said"),
    [
        (b"good\n" * 400 + b"caf\xe9\n", 401, "Windows-1252"),
        (b"good\n" * 400 + b"\0\1\2\n", 401, "binary"),
        (b"%PDF-1.4", None, "a PDF"),
        (b" \n\n", None, "the file is empty"),
    ],
)
def test_bad_text_is_refused_with_its_line(tmp_path: Path, content: bytes, line: int | None, said: str) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        opened(path)
    if said == "Windows-1252":
        assert f"book.txt:{line}:" in str(caught.value)
    (tmp_path / "other.txt").write_text("Fine.", "utf-8")
    if said != "the file is empty":
        with pytest.raises(DataError, match=said):
            opened(tmp_path)
    assert [record.text for record in opened(tmp_path, skip_bad=True).records] == ["Fine."]


def test_bad_lines_are_refused_or_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heptune.data.readers.HEAD", 20)  # what is behind it is seen in the pass over the lines
    path = tmp_path / "tales.jsonl"
    path.write_bytes(b'{"text": "one"}\n{"text": 3}\n{"text": "caf\xe9"}\n{"text": "two"}\n' * 2)
    with pytest.raises(DataError, match=r"tales.jsonl:2: .*3 more are bad"):
        opened(path)
    found = opened(path, skip_bad=True)
    assert [record.text for record in found.records] == ["one", "two"] * 2 and len(found.skipped) == 4


def test_marks_of_other_formats_inside_a_text_are_text(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(("x" * 511 + "\n") + ("PAR1" + "y" * 507 + "\n") * 3, "utf-8")
    assert any((record.text or "").startswith("PAR1") for record in documents(tmp_path / "book.txt"))


class TestParts:
    def test_shares_of_the_text_without_leaks(self, tmp_path: Path) -> None:
        path = tmp_path / "tales.jsonl"
        texts = [prose(400, n % 90) for n in range(100)]  # ten say what others say
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
        options = DataOptions(validation=0.2, test=0.1)
        parts = read_files(path, options, ignore).cut(options, seed=1)
        counts = [len(parts.train), len(parts.validation), len(parts.test)]
        assert sum(counts) == 100 and 15 <= counts[1] <= 22 and 7 <= counts[2] <= 12
        assert parts.leaked() == {"validation": 0, "test": 0}
        said = [{record.text for record in part} for part in (parts.train, parts.validation, parts.test)]
        assert not said[0] & said[1] and not said[0] & said[2] and not said[1] & said[2]
        again = read_files(path, options, ignore).cut(options, seed=1)
        assert [r.line for r in again.train] == [r.line for r in parts.train]
        other = read_files(path, options, ignore).cut(options, seed=2)
        assert [r.line for r in other.train] != [r.line for r in parts.train]

    def test_stretches_of_one_document_stay_together_where_there_are_many(self, tmp_path: Path) -> None:
        for number in range(24):
            (tmp_path / f"{number:02}.txt").write_text(f"Number {number}. {prose(3000, number)}", "utf-8")
        found = documents(tmp_path)
        _, parts = cut(found, {"validation": 0.2, "test": 0.2}, None, seed=0)
        of = [set(part.documents.tolist()) for part in parts.values()]
        assert len(found) > 40 and sum(map(len, of)) == 24 and len(set.union(*of)) == 24

    def test_one_book_gives_parts_too(self, tmp_path: Path) -> None:
        (tmp_path / "book.txt").write_text(prose(40_000), "utf-8")
        _, parts = cut(documents(tmp_path / "book.txt"), {"validation": None, "test": None}, 10, seed=0)
        assert len(parts["train"]) == 10 and len(parts["validation"]) >= 2 and len(parts["test"]) >= 2

    def test_the_default_share_has_a_ceiling(self, tmp_path: Path) -> None:
        (tmp_path / "book.txt").write_text(prose(12 << 20), "utf-8")
        _, parts = cut(documents(tmp_path / "book.txt"), {"validation": None, "test": 0.2}, None, seed=0)
        assert (1 << 20) - STRETCH <= parts["validation"].sizes.sum() <= 1 << 20
        assert abs(parts["test"].sizes.sum() / (12 << 20) - 0.2) < 0.01

    def test_wrong_shares_and_too_little_text(self, tmp_path: Path) -> None:
        (tmp_path / "book.txt").write_text("One line.", "utf-8")
        found = documents(tmp_path / "book.txt")
        with pytest.raises(UsageError, match="below 1"):
            cut(found, {"validation": 0.5, "test": 0.5}, None, 0)
        with pytest.raises(DataError, match="too few for a validation part"):
            cut(found, {"validation": None, "test": None}, None, 0)
        assert len(cut(found, {"validation": 0.0, "test": 0.0}, None, 0)[1]["train"]) == 1

    def test_the_same_parts_come_out_of_the_manifest(self, tmp_path: Path) -> None:
        path = tmp_path / "book.txt"
        path.write_text(prose(30_000), "utf-8")
        other = tmp_path / "other.txt"
        other.write_text(prose(3_000, seed=5), "utf-8")
        options = DataOptions(validation=str(other), limit=20)
        parts = read_files(path, options, ignore).cut(options, seed=3)
        source, chosen = json.loads(json.dumps([parts.source, parts.split.to_json()]))
        again = read_again(source, chosen)
        for part in ("train", "validation", "test"):
            assert [r.text for r in getattr(again, part)] == [r.text for r in getattr(parts, part)]
        assert CorpusSplit.from_json(chosen) == parts.split and len(parts.train) == 20
        assert [r.text for r in parts.validation] == [r.text for r in documents(other)]
        path.write_text(prose(30_000, seed=1), "utf-8")
        with pytest.raises(RunError, match="has changed"):
            read_again(source, chosen)


def test_a_sample_of_documents_reads_nothing(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text(prose(40_000), "utf-8")
    found = documents(path)
    path.unlink()
    chosen = sample(found, range(len(found)), 5, seed=0)
    assert len(set(chosen)) == 5 and chosen == tuple(sorted(chosen)) == sample(found, range(len(found)), 5, seed=0)
    assert np.all(np.diff(chosen) > 0)
