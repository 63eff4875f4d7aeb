"""The parts of a data set: from files or shares, put together again from a manifest, refused when a file changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heptune.core.errors import RunError
from heptune.core.events import Event, Note, ignore
from heptune.data.parts import DataOptions, read_again, read_files


def write(path: Path, numbers: range, bad: str = "") -> Path:
    rows = [json.dumps({"text": f"text {i}", "label": "ab"[i % 2]}) for i in numbers]
    path.write_text("\n".join([*rows, bad]), "utf-8")
    return path


def test_shares_are_cut_from_the_training_file(tmp_path: Path) -> None:
    options = DataOptions(validation=0.2, test=0.1, limit=21)
    parts = read_files(write(tmp_path / "all.jsonl", range(60)), options, ignore).cut(options, seed=1)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (21, 12, 6)
    assert parts.held_out() == ("the test part", parts.test) and parts.leaked() == {"validation": 0, "test": 0}
    assert parts.path("test") is None
    assert parts.place(0) == f"{tmp_path / 'all.jsonl'}:{parts.train[0].line}"


def test_a_folder_brings_its_own_parts(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", range(30))
    write(tmp_path / "dev.jsonl", range(28, 34))
    options = DataOptions(test=0)
    parts = read_files(tmp_path, options, ignore).cut(options, seed=0)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (30, 6, 0)
    assert parts.leaked() == {"validation": 2, "test": 0}
    assert parts.held_out()[0].startswith("the validation part")


@pytest.mark.parametrize("ending", [".txt", ".md"])
def test_parts_that_are_plain_text_stay_apart(tmp_path: Path, ending: str) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}{ending}").write_text(f"What stands in {name}. " * 200, "utf-8")
    parts = read_files(tmp_path, DataOptions(), ignore).cut(DataOptions(), seed=0)
    assert all("train" in (record.text or "") and "test" not in (record.text or "") for record in parts.train)
    assert parts.path("test") == str(tmp_path / f"test{ending}")


def test_the_same_parts_come_out_of_the_manifest(tmp_path: Path) -> None:
    path = write(tmp_path / "all.jsonl", range(40), bad="{broken")
    options = DataOptions(skip_bad=True, limit=20)
    seen: list[Event] = []
    parts = read_files(path, options, seen.append).cut(options, seed=0)
    assert any(isinstance(e, Note) and "1 bad lines left out" in e.text for e in seen)
    source, chosen = json.loads(json.dumps([parts.source, parts.split.to_json()]))
    assert read_again(source, chosen) == parts
    path.write_text(path.read_text("utf-8").replace("text 3", "TEXT 3"), "utf-8")
    with pytest.raises(RunError, match="has changed since"):
        read_again(source, chosen)
    path.unlink()
    with pytest.raises(RunError, match="is gone"):
        read_again(source, chosen)
