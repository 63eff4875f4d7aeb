"""What the benchmark programs decide and compute; what they measure is measured by hand."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def train_cpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("train_cpu")


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("techniques")


def measured(name: str, number: int, speed: float, losses: list[float], same_order: bool = True) -> dict[str, Any]:
    return {
        "workload": "short",
        "contender": name,
        "round": number,
        "tokens_per_second": speed,
        "peak_memory_bytes": 2**20,
        "tokens": [10, 10],
        "supervised": [2, 2],
        "losses": losses,
        "same_order": same_order,
    }


def test_ratios_and_loss_differences_refer_to_the_trainer_with_the_same_technique(train_cpu: ModuleType) -> None:
    runs = [
        measured("trainer", 0, 100, [5.0, 4.0]),
        measured("trl", 0, 80, [5.0, 4.5]),
        measured("heptune", 0, 300, [5.0, 4.25]),
        measured("heptune-prompt", 0, 90, [7.0, 6.5]),
        measured("trainer-prompt", 0, 30, [7.0, 6.0]),
        measured("trainer-prompt", 1, 10, [7.0, 6.0]),
        measured("heptune-prompt", 1, 50, [7.0, 6.5]),
        measured("heptune-prefix", 0, 70, [9.0, 8.0]),
    ]
    found = train_cpu.summary(runs, "short")
    assert found["heptune"]["ratio_to_trainer"]["median"] == 3
    assert found["heptune"]["ratio_to_best_trl"]["median"] == 300 / 80
    assert found["heptune"]["largest_loss_difference"] == 0.25
    prompt = found["heptune-prompt"]
    assert prompt["baseline"] == "trainer-prompt"
    assert prompt["ratio_to_trainer"] == {"median": 4, "min": 3, "max": 5}
    assert prompt["largest_loss_difference"] == 0.5
    assert prompt["ratio_to_best_trl"] is None, "TRL trained something else"
    assert found["heptune-prefix"]["ratio_to_trainer"] is None, "its Trainer was not measured"
    assert found["heptune-prefix"]["largest_loss_difference"] is None


def test_every_contender_has_a_baseline_and_a_default_workload(train_cpu: ModuleType) -> None:
    assert all(
        train_cpu.CONTENDERS[entry.baseline].baseline == entry.baseline for entry in train_cpu.CONTENDERS.values()
    )
    assert train_cpu.BY_DEFAULT.keys() == train_cpu.WORKLOADS.keys()
    assert {name for chosen in train_cpu.BY_DEFAULT.values() for name in chosen} == train_cpu.CONTENDERS.keys()


def test_the_short_workload_shares_nothing_and_keeps_its_lengths(train_cpu: ModuleType) -> None:
    pool = train_cpu.WORKLOADS["short"]().pool
    assert {len(sequence) for sequence in pool} <= set(range(20, 61))
    assert {int(sequence.supervised.sum()) for sequence in pool} == {2, 3}
    assert len({tuple(sequence.tokens[:3].tolist()) for sequence in pool}) == len(pool)


def trials(**losses: float | None) -> list[dict[str, Any]]:
    """trials(r1=0.5, r3=None): at rate 1 the loss was 0.5, at rate 3 the run failed."""
    return [
        {"learning_rate": float(name[1:]), **({"error": "x"} if loss is None else {"loss": loss, "accuracy": 0.5})}
        for name, loss in losses.items()
    ]


@pytest.mark.parametrize(
    ("found", "beyond"),
    [
        (trials(r1=0.5, r3=0.4, r9=0.6), None),
        (trials(r1=0.3, r3=0.4, r9=0.6), 0.333),
        (trials(r1=0.5, r3=0.4, r9=0.2), 27.0),
        (trials(r1=0.5, r3=0.4, r9=None), None),
        (trials(r1=0.5), None),
    ],
)
def test_the_grid_is_extended_beyond_a_best_rate_at_its_edge(
    compared: ModuleType, found: list[dict[str, Any]], beyond: float | None
) -> None:
    assert compared.beyond_the_edge(found) == beyond


def test_the_loss_chooses_the_rate_and_accuracy_between_equal_losses(compared: ModuleType) -> None:
    found = trials(r1=0.5, r3=0.4, r9=0.4)
    found[0]["accuracy"], found[2]["accuracy"] = 0.9, 0.6
    assert compared.best(found)["learning_rate"] == 9


def settings(compared: ModuleType, **changed: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"name": "sst2", "again": False, **dict.fromkeys(compared.SETTINGS, 1), **changed})


def test_results_under_other_settings_do_not_mix(compared: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "techniques_sst2.json"
    report = compared.opened(path, settings(compared))
    report["techniques"]["lora"] = {"metrics": {}}
    path.write_text(json.dumps(report), "utf-8")
    assert compared.opened(path, settings(compared)) == report
    with pytest.raises(SystemExit, match="--steps 1 -> 2"):
        compared.opened(path, settings(compared, steps=2))
    assert compared.opened(path, settings(compared, again=True))["techniques"].keys() == {"lora"}
    assert compared.opened(path, settings(compared, again=True, steps=2))["techniques"] == {}


def test_a_technique_that_learned_from_other_tokens_is_refused(compared: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "train.jsonl").write_text("", "utf-8")
    budget = {"steps": 75, "tokens": 100, "supervised_tokens": 10}
    report = {"techniques": {"lora": budget, "full": {"error": "x"}}}
    arguments = argparse.Namespace(name="sst2", data=tmp_path, runs=tmp_path)
    bench = compared.Bench(arguments, report)
    bench.check_budget("freeze", budget)
    with pytest.raises(compared.Failed, match="9 supervised_tokens, but lora took 10"):
        bench.check_budget("freeze", budget | {"supervised_tokens": 9})
