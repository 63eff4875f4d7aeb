"""What a run learned does not matter to its formats; its held-out records are scored as the task answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import heptune
from questions import about_things, with_options
from questions import write as write_questions
from shipping.conftest import FEW, small, write

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def choose(path: Path) -> Path:
    return write_questions(path, with_options(40))


def answer(path: Path) -> Path:
    return write_questions(path, about_things(40))


def extract(path: Path) -> Path:
    return write(path, [{"tokens": ["in", "Rome", str(i)], "ner_tags": ["O", "B-L", "O"]} for i in range(40)])


def complete(path: Path) -> Path:
    text = path.with_suffix(".txt")
    text.write_text("\n\n".join(f"It was a dark and stormy night, number {n}." for n in range(80)), "utf-8")
    return text


@pytest.mark.parametrize(("technique", "to"), [("lora", "hf"), ("prefix", "peft")])
@pytest.mark.parametrize("made", [choose, answer, extract, complete], ids=lambda made: made.__name__)
def test_it_is_exported(made: Callable[[Path], Path], technique: str, to: str, bases: Any, tmp_path: Path) -> None:
    data = made(tmp_path / "data.jsonl")
    run = heptune.tune(
        bases("llama"), data, task=made.__name__, technique=small(technique), out=tmp_path / "run", **FEW
    )
    (parity,) = heptune.export(run.folder, to, out=tmp_path / "out").parities
    assert parity.records > 0 and parity.before is not None and parity.after is not None
    assert parity.problems == [] and parity.before.loss == pytest.approx(parity.after.loss, rel=1e-5)
    if made is choose:  # one of the options; else a share of many tokens
        assert (parity.before.score * parity.records).is_integer()
