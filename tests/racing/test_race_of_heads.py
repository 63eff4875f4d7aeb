"""Races of linear heads, on encoders and on a decoder. No formula covers a padded encoder: steps are tried instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from heptune import api
from heptune.core.events import ignore
from heptune.racing import course
from heptune.racing import forecast as forecasts
from heptune.racing.places import Here
from heptune.racing.race import Race
from heptune.reporting.report import report
from heptune.runs.files import read_json
from tiny import tiny_encoder, tiny_encoder_tokenizer


def saved(family: str, folder: Path) -> Path:
    tiny_encoder(family).save_pretrained(folder)
    tiny_encoder_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("bert", tmp_path_factory.mktemp("encoder") / "tiny")


def raced(base: Path, data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, task: str | None = None) -> Race:
    torch.set_num_threads(1)
    monkeypatch.setattr(course, "place_of", lambda race: Here())
    terms = api.Terms(rates=(1.0,), words=False)
    return api.race(
        str(base),
        data,
        techniques=("lora", "prompt"),
        task=task,
        out=folder,
        terms=terms,
        max_steps=8,
        batch_size=8,
        max_length=128,
        listener=ignore,
    )


@pytest.mark.parametrize("kind", ["encoder", "padded", "decoder"])
def test_labels(
    kind: str, encoder: Path, base: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []
    if kind == "padded":
        own = forecasts._measured
        monkeypatch.setattr(forecasts, "_measured", lambda *all: begun.append(kind) or own(*all))  # type: ignore[func-returns-value]
        encoder = saved("deberta-v2", tmp_path / "deberta")
    chosen, task = (base, "label") if kind == "decoder" else (encoder, None)
    race = raced(chosen, reviews, tmp_path / "race", monkeypatch, task)
    assert begun == ([kind] if kind == "padded" else [])
    assert race.values["task"]["name"] == "label" and race.verdict["metric"] == "accuracy"
    names = {each["name"] for each in race.verdict["contenders"]}
    rivals = {"base, linear probe", "TF-IDF + logistic regression", "most frequent label"}
    assert names == {"lora", "prompt", *rivals}
    assert all(entry["predicted"]["step_s"] > 0 for entry in race.values["candidates"])
    assert "linear probe" in report(race.folder).read_text("utf-8")


def test_entities_are_raced_by_the_loss(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"tokens": ["Ada", "met", name, "in", place], "tags": ["B-PER", "O", "B-PER", "O", "B-LOC"]}
        for name in ("Bob", "Eve", "Max", "Ida", "Jo", "Kim", "Lea", "Tom")
        for place in ("Rome", "Bonn", "York", "Lima", "Oslo", "Nice")
    ]
    data = tmp_path / "entities.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    race = raced(encoder, data, tmp_path / "race", monkeypatch)
    assert race.values["task"]["name"] == "tag" and race.values["metric"] == "loss"
    assert {each["name"] for each in race.verdict["contenders"]} == {"lora", "prompt", "base, linear probe"}
    found = read_json(race.folder / "baselines.json")["base, linear probe"]
    assert len(found["log_p"]) == len(found["weights"]) > 1
