"""The benchmark of serving: that requests are dealt fairly, figures are right, and a server is asked as it says."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

import heptune
from tiny import tiny_model, tiny_tokenizer


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("serving")


def test_every_client_asks_another_model_each_time(serving: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "chitchat").mkdir()
    rows = "".join(
        f'{{"messages": [{{"role": "user", "content": "What is the number {n}, please?"}}, '
        f'{{"role": "assistant", "content": "{n}"}}]}}\n'
        for n in range(50)
    )
    (tmp_path / "chitchat" / "test.jsonl").write_text(rows, "utf-8")
    asked = serving.requests(tmp_path, 4, 3, ("a", "b", "c"))
    assert len(asked) == 12 and len({each.question for each in asked}) == 12
    for client in range(4):
        assert {each.model for each in asked if each.client == client} == {"a", "b", "c"}


def test_figures_of_a_round(serving: ModuleType) -> None:
    answers = [serving.Answered(n, "m", float(n + 1), 10, "x") for n in range(20)]
    found = serving.summary(answers, 4.0, 7)
    assert found["requests_per_s"] == 5 and found["tokens_per_s"] == 50
    assert found["p50_s"] == 10.5 and found["p95_s"] == 19.0
    other = [serving.Answered(n, "m", 1.0, 10, "x" if n else "y") for n in range(20)]
    assert serving.same(answers, other) == 19


def test_a_server_is_asked_by_all_clients_and_stopped(serving: ModuleType, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f'{{"prompt": "a {n}", "completion": "b"}}\n' for n in range(30)), "utf-8")
    run = heptune.tune(tmp_path / "base", data, technique="prompt", out=tmp_path / "run", max_steps=1)
    asked = [serving.Asked(client, "own", "What?") for client in range(3)]
    found, answers = serving.measured(lambda: serving.ours({"own": run.folder}, 1), asked, 3)
    assert len(answers) == 3 and found["requests"] == 3 and found["peak_memory_bytes"] > 2**20
