"""Rounds from the command line: going on from a run, what serves, and how a refusal reaches a person."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def first(base: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from heptune.cli.main import main

    folder = tmp_path_factory.mktemp("rounds") / "runs" / "one"
    words = ["--rank", "4", "--learning-rate", "0.01", "--max-steps", "12", "--epochs", "50", "--threads", "1"]
    assert main(["tune", str(base), str(reviews), *words, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def flipped(reviews: Path, tmp_path: Path) -> Path:
    """The labels the other way round."""
    lines = [json.loads(line) for line in reviews.read_text("utf-8").splitlines()]
    other = {"positive": "negative", "negative": "positive"}
    path = tmp_path / "flipped.jsonl"
    turned = [{"text": f"{line['text']} too", "label": other[line["label"]]} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in turned), "utf-8")
    return path


def test_a_round_is_tuned_compared_promoted_and_rolled_back(heptune, first: Path, reviews: Path, flipped: Path) -> None:
    second = first.parent / "two"
    said = heptune("tune", first, flipped, "--max-steps", 1, "--dropout", 0.1, "--onto", "continue", "--out", second)
    assert said.code == 2 and "dropout is 0.1" in said.err and not second.exists()
    said = heptune("tune", first, flipped, "--max-steps", 2, "--replay", 0.25, "--out", second)
    assert said.code == 0, said.err
    assert "Round 2 beside the one before" in said.out
    assert re.search(r"round 1 \(reviews.jsonl, 8 examples of the test part\): accuracy \d\.\d{4} -> ", said.out)
    assert f"heptune promote {second}" in said.out
    manifest = json.loads((second / "manifest.json").read_text("utf-8"))
    assert manifest["technique"]["settings"]["rank"] == 4, "the technique is the parent's"

    listed = heptune("runs", first.parent)
    assert listed.code == 0 and re.search(r"^one .*\* serves", listed.out, re.M)
    assert re.search(r"^└ two +lora \(round 2, continue\).*finished", listed.out, re.M)

    assert heptune("promote", second).code == 0
    listed = heptune("runs", first.parent)
    assert re.search(r"^└ two .*\* serves", listed.out, re.M)
    assert len(re.findall(r"\* serves *$", listed.out, re.M)) == 1
    asked = ("chat", first, "--once", "great 3")
    assert heptune(*asked, "--serving").out == heptune("chat", second, "--once", "great 3").out
    assert heptune(*asked, "--serving").out != heptune(*asked).out
    evaluated = heptune("eval", first, "--serving", "--json")
    assert evaluated.code == 0 and list((second / "evaluations").glob("*.json"))

    back = heptune("rollback", second)
    assert back.code == 0 and f"{first} serves again (round 1)" in back.out
    again = heptune("rollback", second)
    assert again.code == 1 and "nothing served before" in again.err

    report = heptune("report", second, "--markdown")
    assert report.code == 0 and "Round 1 (reviews.jsonl" in report.out


def test_a_round_that_its_guard_refuses_says_so(
    heptune, base: Path, reviews: Path, flipped: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--learning-rate", 0.01, "--max-steps", 60, "--epochs", 50, "--batch-size", 12, "--out"]
    assert heptune("tune", base, reviews, "--technique", "full", *words, "runs/one").code == 0
    said = heptune("tune", "runs/one", flipped, "--guard", 0.05, *words, "runs/two")
    assert said.code == 3, said.out + said.err
    assert "Refused: it lost 0." in said.out and "heptune promote runs/two --force" in said.out
    assert re.search(r"two .*finished, refused", heptune("runs").out, re.S)
    refused = heptune("promote", "runs/two")
    assert refused.code == 1 and "is not promoted" in refused.err
    assert heptune("promote", "runs/two", "--force").code == 0
    assert "* serves" in heptune("runs").out
    assert heptune("rollback").code == 0, "the only lineage with a promoted round"


def test_errors(heptune, base: Path, reviews: Path, first: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words, code, message in (
        (["tune", first, reviews, "--technique", "prompt"], 2, "choose --onto merge"),
        (["tune", first, reviews, "--onto", "melt"], 2, "did you mean merge?"),
        (["tune", first, reviews, "--guard", "-1"], 2, "--guard"),
        (["tune", base, reviews, "--replay", "0.1"], 2, "is no run directory"),
        (["tune", first, reviews, "--virtual-tokens", "3"], 2, "there is no setting of lora"),
        (["runs", tmp_path / "nothing"], 1, "there is no folder"),
        (["rollback"], 2, "no round was promoted below runs/"),
        (["promote", tmp_path], 1, "is no run directory"),
    ):
        said = heptune(*words)
        assert said.code == code and message in said.err and "Traceback" not in said.err, (words, said)
    assert not (tmp_path / "runs").exists()
