"""A run of every technique on one tiny base, trained so far that each says something else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from heptune import api
from heptune.service.engine import Room
from heptune.service.fleet import Fleet
from served import SEVEN, Make, technique_of
from tiny import tiny_encoder, tiny_encoder_tokenizer, tiny_model, tiny_tokenizer


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "bert"
    tiny_encoder("bert").save_pretrained(folder)
    tiny_encoder_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows: list[dict[str, object]] = [
        {"prompt": f"What is {number}?", "completion": f"It is the number {number}."} for number in range(30)
    ]
    return write_lines(tmp_path_factory.mktemp("data") / "conversations.jsonl", rows)


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows: list[dict[str, object]] = [
        {"text": f"{word} book {number}", "label": label}
        for number, (word, label) in enumerate([("good", "positive"), ("bad", "negative")] * 40)
    ]
    return write_lines(tmp_path_factory.mktemp("data") / "reviews.jsonl", rows)


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows: list[dict[str, object]] = []
    for number in range(40):
        name, place = ("Ada", "London") if number % 2 else ("Grace", "Paris")
        text = f"{name} lives in {place} with {number} cats."
        at = text.index(place)
        spans = [[0, len(name), "PER"], [at, at + len(place), "LOC"]]
        rows.append({"text": text, "entities": spans})
    return write_lines(tmp_path_factory.mktemp("data") / "people.jsonl", rows)


@pytest.fixture(scope="session")
def make(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Tunes a run; the same words give the same run."""
    made: dict[str, Path] = {}
    folder = tmp_path_factory.mktemp("runs")

    def tuned(name: str, start: Path, data: Path, technique: object, **settings: object) -> Path:
        if name not in made:
            known = {"max_steps": 6, "batch_tokens": 512, "warmup": 0, "seed": 3, **settings}
            made[name] = api.tune(start, data, technique=technique, out=folder / name, **known).folder  # type: ignore[arg-type]
        return made[name]

    return tuned


@pytest.fixture(scope="session")
def runs(base: Path, conversations: Path, make: Make) -> dict[str, Path]:
    """A conversing run of each of the seven."""
    return {name: make(name, base, conversations, technique_of(name)) for name in SEVEN}


@pytest.fixture
def fleet_of() -> Iterator[Callable[..., Fleet]]:
    """Fleets that do not outlive the test."""
    made: list[Fleet] = []

    def fleet(runs: dict[str, Path], **room: int) -> Fleet:
        found = Fleet(Room(**room))
        made.append(found)
        found.load_all(runs)
        return found

    yield fleet
    for each in made:
        each.stop()
