"""An encoder from the data to its use, through the verbs, with every technique; and several labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from heptune import techniques
from heptune.core.events import ignore
from heptune.data.parts import DataOptions
from heptune.engine.settings import Settings
from heptune.runs.run import Run
from heptune.tasks.options import TaskOptions
from heptune.tuning import base as bases
from heptune.tuning import problem as problems
from heptune.tuning import training
from tiny import tiny_encoder, tiny_encoder_tokenizer

SMALL: dict[str, list[Any]] = {
    "lora": ["--rank", 2],
    "qlora": ["--rank", 2],
    "adapter": ["--reduction", 4],
    "freeze": ["--layers", 1],
    "prompt": ["--virtual-tokens", 3],
    "p_tuning": ["--virtual-tokens", 3, "--encoder-hidden", 6],
    "prefix": ["--virtual-tokens", 3, "--encoder-hidden", 6],
    "p_tuning_v2": ["--virtual-tokens", 3],
}


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "tiny"
    tiny_encoder("bert").save_pretrained(folder)
    tiny_encoder_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", techniques.names())
def test_it_is_tuned_scored_and_used(heptune: Any, name: str, encoder: Path, reviews: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    few = ["--max-steps", 4, "--batch-size", 8, "--limit", 24]
    said = heptune("tune", encoder, reviews, "--technique", name, *SMALL.get(name, []), "--out", run, *few)
    assert said.code == 0, said.err
    manifest = Run(run).manifest
    assert manifest["task"]["name"] == "label" and manifest["predicted"]["memory_bytes"] > 0
    said = heptune("eval", run, "--json")
    assert said.code == 0, said.err
    rows = json.loads(said.out)["rows"]
    assert [row["name"] for row in rows][:2] == ["tuned", "base, linear probe"]
    said = heptune("chat", run, "--once", "It was good.")
    assert said.code == 0 and "%" in said.out, said.err


@pytest.mark.parametrize("base_name", ["encoder", "base"])
def test_several_labels(heptune: Any, base_name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    base, data = request.getfixturevalue(base_name), tmp_path / "train.jsonl"
    rows = [
        {"text": f"Text number {i} is {'warm' if i % 2 else 'cold'} and {'near' if i % 3 else 'far'}", "labels": labels}
        for i in range(60)
        for labels in [[*(["warm"] if i % 2 else []), *(["near"] if i % 3 else [])]]
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    run = tmp_path / "run"
    said = heptune("tune", base, data, "--rank", 2, "--max-steps", 4, "--batch-size", 8, "--out", run)
    assert said.code == 0, said.err
    task = Run(run).manifest["task"]
    assert task["name"] == "label" and task["several"] and task["labels"] == ["near", "warm"]
    said = heptune("eval", run, "--json")
    assert said.code == 0, said.err
    assert set(json.loads(said.out)["rows"][0]["metrics"]) == {"accuracy", "micro-F1", "macro-F1"}
    said = heptune("chat", run, "--once", "Text number 7 is warm and near")
    assert said.code == 0 and "warm" in said.out, said.err


def test_a_run_that_paused_goes_on_to_the_same_bits(encoder: Path, reviews: Path, tmp_path: Path) -> None:
    settings = Settings(max_steps=6, batch_size=8)
    technique = techniques.build("lora", {"rank": 2})
    problem = problems.pose(reviews, "label", DataOptions(), TaskOptions(class_weights="balanced"), 0, ignore)
    runs = []
    for name, stops in (("whole", [None]), ("halves", [3, None])):
        base = bases.load(str(encoder), technique, ignore)
        run = training.begin(tmp_path / name, str(encoder), base, technique, problem, settings, ignore)
        for stop in stops:
            run = training.go_on(run.folder, ignore, until=stop)
        runs.append(run)
    for file in ("readout.safetensors", "adapter_model.safetensors"):
        whole, halves = ((run.artifact / file).read_bytes() for run in runs)
        assert whole == halves


def test_check_poses_the_task_that_tune_would(heptune: Any, encoder: Path, reviews: Path) -> None:
    said = heptune("check", reviews, "--base", encoder)
    assert said.code == 0 and "label" in said.out.split("task", 1)[1].split("\n")[0], said.out + said.err


def test_several_labels_are_no_test_of_one(heptune: Any, encoder: Path, reviews: Path, tmp_path: Path) -> None:
    run, other, talk = tmp_path / "run", tmp_path / "other.jsonl", tmp_path / "talk.jsonl"
    said = heptune("tune", encoder, reviews, "--rank", 2, "--max-steps", 2, "--limit", 24, "--out", run)
    assert said.code == 0, said.err
    other.write_text('{"text": "good", "labels": ["positive", "negative"]}\n', "utf-8")
    said = heptune("eval", run, other)
    assert said.code == 1 and "other.jsonl:1" in said.err and "several labels" in said.err
    talk.write_text('{"prompt": "good?", "completion": "yes"}\n', "utf-8")
    said = heptune("eval", run, talk)
    assert said.code == 1 and "talk.jsonl:1" in said.err and "label learns from" in said.err


def test_replay_is_refused_where_a_head_has_other_classes(
    heptune: Any, encoder: Path, reviews: Path, tmp_path: Path
) -> None:
    few = ["--rank", 2, "--max-steps", 2, "--limit", 24]
    assert heptune("tune", encoder, reviews, *few, "--out", tmp_path / "one").code == 0
    other = tmp_path / "other.jsonl"
    other.write_text(reviews.read_text("utf-8").replace('"positive"', '"warm"'), "utf-8")
    said = heptune("tune", tmp_path / "one", other, "--max-steps", 2, "--replay", 0.5, "--out", tmp_path / "two")
    assert said.code == 2 and "leave --replay out" in said.err and not (tmp_path / "two").exists()
    said = heptune("tune", tmp_path / "one", reviews, "--max-steps", 2, "--replay", 0.5, "--out", tmp_path / "two")
    assert said.code == 0, said.err


def test_words_are_refused(heptune: Any, encoder: Path, reviews: Path, tmp_path: Path) -> None:
    said = heptune("tune", encoder, reviews, "--task", "classify", "--out", tmp_path / "run")
    assert said.code == 1 and "this base is an encoder" in said.err and "--task label" in said.err
    assert not (tmp_path / "run").exists()
    for data in ([], [reviews]):
        said = heptune("plan", encoder, *data, "--task", "classify", "--gpu", "RTX 4090")
        assert said.code == 2 and "an encoder cannot answer in words, so it cannot learn classify" in said.err


def test_plan(heptune: Any, encoder: Path, reviews: Path, tmp_path: Path) -> None:
    def planned(base: Path, *words: Any) -> dict[str, Any]:
        said = heptune(
            "plan", base, *words, "--gpu", "RTX 4090", "--technique", "lora", "--technique", "full", "--json"
        )
        assert said.code == 0, said.err
        return json.loads(said.out)

    found = planned(encoder, reviews)
    labels, hidden = 2, found["base"]["hidden"]
    assert found["workload"]["task"] == "label" and found["command"][:3] == ["tune", str(encoder), str(reviews)]
    lora, full = found["techniques"]
    assert full["trainable"] == found["base"]["parameters"] + labels * (hidden + 1)
    assert lora["fits"] and 0 < lora["estimate"]["peak_bytes"] < full["estimate"]["peak_bytes"]
    largest = found["workload"]["largest_pass"]
    assert largest["targets"] < largest["rows"]  # one mark for each text
    assert planned(encoder)["workload"]["task"] == "label"
    every = planned(encoder, "--task", "tag", "--examples", 40, "--length", 30)["workload"]
    assert every["largest_pass"]["targets"] == every["largest_pass"]["rows"]
    deberta = tmp_path / "deberta"
    tiny_encoder("deberta-v2").save_pretrained(deberta)
    tiny_encoder_tokenizer().save_pretrained(deberta)
    said = heptune("plan", deberta, reviews, "--gpu", "RTX 4090")
    assert said.code == 1 and "cannot be told who sees whom" in said.err and "`heptune race` take it" in said.err
