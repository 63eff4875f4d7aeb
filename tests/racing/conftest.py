"""A tiny base, data that it learns from in moments, and races on them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from heptune import techniques
from heptune.core.events import Listener, ignore
from heptune.data.parts import DataOptions
from heptune.engine.settings import Settings
from heptune.racing.entry import Terms, enter
from heptune.racing.race import Race
from heptune.tasks.options import TaskOptions
from heptune.tuning import problem as problems
from tiny import tiny_model, tiny_tokenizer

Enter = Callable[..., Race]


def write_lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def labelled(folder: Path, count: int = 120) -> Path:
    draw = random.Random(0)
    words = {"positive": ["good", "great", "lovely"], "negative": ["bad", "awful", "dull"]}
    rows: list[dict[str, object]] = [
        {"text": f"{draw.choice(words[label])} thing {number}", "label": label}
        for number, label in enumerate(["positive", "negative"] * (count // 2))
    ]
    return write_lines(folder / "reviews.jsonl", rows)


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without and with a system message, of one turn and of two."""
    rows: list[dict[str, object]] = []
    for number in range(60):
        turns = [("user", f"What is {number}?"), ("assistant", f"It is the number {number}.")]
        turns += [("user", "And then?"), ("assistant", f"Then comes {number + 1}.")] if number % 3 == 0 else []
        turns = [("system", "Answer."), *turns] if number % 5 == 0 else turns
        rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    return write_lines(tmp_path_factory.mktemp("data") / "conversations.jsonl", rows)


@pytest.fixture(scope="session")
def entered(base: Path) -> Enter:
    """Makes a race directory."""

    def make(
        folder: Path,
        data: Path,
        names: Sequence[Any] = ("lora", "prompt"),
        *,
        terms: Terms | None = None,
        metric: str | None = None,
        listener: Listener = ignore,
        validation: float = 0.2,
        test: float = 0.2,
        **settings: Any,
    ) -> Race:
        knobs = Settings(**{"epochs": 1, "batch_size": 4, "max_length": 128, **settings})
        options = DataOptions(validation=validation, test=test)
        problem = problems.pose(data, None, options, TaskOptions(), knobs.seed, listener)
        chosen = [techniques.build(name) if isinstance(name, str) else name for name in names]
        command = ["heptune", "race", str(base), str(data)]
        return enter(folder, str(base), problem, chosen, knobs, terms or Terms(), metric, "here", command, listener)

    return make
