from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from heptune.cli.main import main
from tiny import tiny_model, tiny_tokenizer


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


Heptune = Callable[..., Said]


@pytest.fixture(autouse=True)
def _as_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("FORCE_COLOR", "COLUMNS", "GITHUB_ACTIONS", "PY_COLORS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def heptune(capsys: pytest.CaptureFixture[str]) -> Heptune:
    """Runs a command in this process."""

    def run(*words: object) -> Said:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return run


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
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled text that a tiny model learns in seconds. Brackets and :words: must come out as they are."""
    draw = random.Random(0)
    words = {"positive": ["good", "great", "lovely"], "negative": ["bad", "awful", "dull"]}
    rows: list[dict[str, object]] = [
        {"text": f"{draw.choice(words[label])} [book] :smile: {number}", "label": label}
        for number, label in enumerate(["positive", "negative"] * 40)
    ]
    return write_lines(tmp_path_factory.mktemp("data") / "reviews.jsonl", rows)


@pytest.fixture(scope="session")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows: list[dict[str, object]] = [
        {"prompt": f"What is {number}?", "completion": f"It is the number {number}."} for number in range(30)
    ]
    return write_lines(tmp_path_factory.mktemp("data") / "conversations.jsonl", rows)
