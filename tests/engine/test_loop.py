"""The loop's decisions: when it ends, what it keeps, what it tells."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import heptune
from heptune.core.errors import UsageError
from heptune.core.events import Event, Note, Progress, StepDone, TrainingEnded, TrainingStarted, Validated
from heptune.engine.batches import Batches
from heptune.engine.loop import Validation
from heptune.engine.optimizer import learning_rate


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    rows = [{"text": f"river book {i}", "label": ["yes", "no"][i % 2]} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def tuned(base: Path, data: Path, out: Path, **settings: Any) -> tuple[heptune.Run, list[Event]]:
    seen: list[Event] = []
    run = heptune.tune(str(base), data, out=out, listener=seen.append, **{"max_length": 256, **settings})
    return run, seen


def test_a_time_limit_fits_the_schedule_and_ends_the_run(base: Path, data: Path, tmp_path: Path) -> None:
    def slow(event: Event) -> None:
        seen.append(event)
        if isinstance(event, StepDone):
            time.sleep(0.5)  # slower than what was measured: the limit has to end the run

    seen: list[Event] = []
    settings: dict[str, Any] = {"epochs": 500, "max_minutes": 0.05, "max_length": 256}
    run = heptune.tune(str(base), data, out=tmp_path / "run", listener=slow, **settings)
    assert run.manifest["result"]["reason"] == "time"
    assert run.manifest["result"]["steps"] < run.manifest["steps"] < 500 * 2
    assert any(isinstance(e, Validated) and e.step == run.manifest["result"]["steps"] for e in seen)


def test_early_stopping_and_the_best_step(base: Path, data: Path, tmp_path: Path) -> None:
    """With a learning rate of almost nothing no validation is better than the first."""
    settings: dict[str, Any] = {"epochs": 40, "learning_rate": 1e-12, "validate_every": 1, "patience": 3}
    run, seen = tuned(base, data, tmp_path / "run", **settings)
    best = [e.step for e in seen if isinstance(e, Validated) and e.best]
    assert run.manifest["result"]["reason"] == "early stopping"
    assert run.manifest["result"]["steps"] == best[-1] + 3 and run.manifest["result"]["best_step"] == best[-1]
    assert [p.name for p in run.folder.glob("best-*")] == [f"best-{best[-1]:06d}"]


def test_the_events_of_a_run(base: Path, data: Path, tmp_path: Path) -> None:
    run, seen = tuned(base, data, tmp_path / "run", epochs=2, batch_size=8)
    steps = [e for e in seen if isinstance(e, StepDone)]
    assert [e.step for e in steps] == list(range(1, run.manifest["steps"] + 1))
    assert sum(e.supervised_tokens for e in steps) == run.manifest["result"]["supervised_tokens"]
    assert all(e.rows < e.tokens for e in steps)  # the shared instruction is computed once
    told = [e for e in seen if not isinstance(e, Note | Progress)]  # behind the end calibration is told
    assert any(isinstance(e, TrainingStarted) for e in told) and isinstance(told[-1], TrainingEnded)
    logged = [e for e in run.events if e["event"] == "StepDone"]
    assert [e["loss"] for e in logged] == [e.loss for e in steps]


def test_without_validation_the_last_step_is_kept(base: Path, data: Path, tmp_path: Path) -> None:
    options = heptune.DataOptions(validation=0, test=0)
    run, seen = tuned(base, data, tmp_path / "run", max_steps=2, options=options)
    assert run.manifest["result"]["best_step"] is None and (run.artifact / "adapter_model.safetensors").is_file()
    assert not any(isinstance(e, Validated) for e in seen)


def test_accumulation_changes_nothing(base: Path, data: Path, tmp_path: Path) -> None:
    whole, _ = tuned(base, data, tmp_path / "whole", max_steps=4, batch_size=12)
    parts, _ = tuned(base, data, tmp_path / "parts", max_steps=4, batch_size=12, micro_tokens=60)
    a, b = ([e["loss"] for e in run.events if e["event"] == "StepDone"] for run in (whole, parts))
    assert a == pytest.approx(b, rel=1e-5)


def test_an_unknown_setting_names_the_nearest(base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean batch_size"):
        tuned(base, data, tmp_path / "run", batchsize=3)
    assert not (tmp_path / "run").exists()


def test_batches_are_a_function_of_seed_and_step() -> None:
    lengths = np.random.default_rng(0).integers(5, 90, 57)
    batches = Batches(lengths, seed=3, tokens=200)
    first = [batches.step(step) for step in range(batches.steps(2))]
    again = Batches(lengths, seed=3, tokens=200)
    for step in reversed(range(len(first))):  # in any order
        assert np.array_equal(again.step(step), first[step])
    for epoch in (0, 1):
        steps = batches.epoch(epoch)
        assert sorted(np.concatenate(steps)) == list(range(57))
        assert all(lengths[s].sum() <= 200 for s in steps)
    assert not np.array_equal(np.concatenate(batches.epoch(0)), np.concatenate(batches.epoch(1)))
    assert not np.array_equal(first[0], Batches(lengths, seed=4, tokens=200).step(0))


def test_one_example_above_the_budget_is_a_step_of_its_own() -> None:
    steps = Batches([10, 999, 10], seed=0, tokens=50).epoch(0)
    assert sorted(len(s) for s in steps if 1 in s) == [1]


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(step, 100, 1.0, 0.1, "cosine") for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == rates[10] == 1.0 and rates[99] < 0.001
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert learning_rate(55, 100, 1.0, 0.1, "linear") == 0.5
    assert learning_rate(99, 100, 1.0, 0.1, "constant") == learning_rate(0, 1, 1.0, 0.0, "cosine") == 1.0


def test_equal_scores_are_decided_by_the_loss() -> None:
    validation = Validation(dict, "accuracy", True)
    assert validation.better({"accuracy": 0.5, "loss": 1.0}, {"accuracy": 0.5, "loss": 1.1})
    assert not validation.better({"accuracy": 0.4, "loss": 0.1}, {"accuracy": 0.5, "loss": 1.1})
    assert Validation(dict, "loss", False).better({"loss": 0.9}, {"loss": 1.0})
