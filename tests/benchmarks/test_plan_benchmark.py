"""What the planner's benchmark chooses, keeps and tells; what it measures is measured by hand."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from heptune import techniques
from heptune.engine.forest import plant

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("plan")


def test_forty_combinations_or_more_cover_every_technique_and_model(bench: ModuleType) -> None:
    chosen = [name.split() for name in bench.combinations()]
    assert len(chosen) >= 40 and len({*map(tuple, chosen)}) == len(chosen)
    assert {technique for _, technique, _ in chosen} == set(techniques.names())
    assert {model for model, *_ in chosen} == set(bench.MODELS)
    assert {batch for *_, batch in chosen} == set(bench.BATCHES)


def test_a_batch_shares_what_it_says(bench: ModuleType) -> None:
    batch = bench.Batch(examples=4, own=10, supervised=3, shared=20)
    examples = batch.make(1000)
    assert [example.targets for example in examples] == [3] * 4
    assert plant(examples).rows == 20 + 4 * 9  # the last token is only a target


@pytest.fixture
def pretended(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Measures nothing; a list of what it was asked to measure."""
    asked: list[str] = []

    def measure(options: list[str]) -> dict[str, Any]:
        name = options[-1]
        asked.append(name)
        if name == "machine":
            return {"name": "a processor", "threads": 2}
        if " p_tuning " in name and asked.count(name) == 1:
            raise KeyboardInterrupt
        kinds = options[options.index("--only") + 1 : -2] if "--only" in options else ["memory", "time"]
        quantities = {q: 2.0 for kind in kinds for q in bench.QUANTITIES[kind]}
        return {"measured": quantities, "rows": 7, "passes": []}

    monkeypatch.setattr(bench, "_in_own_process", measure)
    monkeypatch.setattr(bench, "predicted", lambda *_: {"live": 2.2, "resident": 1.8, "time": 3.0})
    return asked


def run(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["plan.py", *options])
    return bench.main()


def test_an_interrupted_run_goes_on_where_it_was(
    bench: ModuleType, pretended: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = ("--out", str(tmp_path / "plan.json"), "--match", "glm4.*labels")
    with pytest.raises(KeyboardInterrupt):
        run(bench, monkeypatch, *options)
    assert run(bench, monkeypatch, *options) == 0
    done = [name for name in pretended if name != "machine"]
    assert len(done) == 5 and len(set(done)) == 4, "the one that was interrupted alone is measured again"
    report = json.loads((tmp_path / "plan.json").read_text())
    machines = sorted({n for row in report["rows"].values() for n in row["machines"]})
    assert machines == list(range(len(report["machines"]))), "no machine is kept that no row has"
    assert all(len(set(row["machines"])) == 2 for row in report["rows"].values()), "timed before and after each"
    assert len(machines) < 2 * len(report["rows"]), "what is timed after one is what is timed before the next"
    before = len(pretended)
    assert run(bench, monkeypatch, *options) == 0 and len(pretended) == before


def test_one_kind_is_added_to_the_other(
    bench: ModuleType, pretended: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = ("--out", str(tmp_path / "plan.json"), "--match", "glm4.* prefix")
    assert run(bench, monkeypatch, *options, "--only", "time") == 0
    assert run(bench, monkeypatch, *options) == 0
    (row,) = json.loads((tmp_path / "plan.json").read_text())["rows"].values()
    assert set(row["measured"]) == {"live", "resident", "time"}


def test_a_disturbed_measurement_is_made_again_and_the_least_disturbed_kept(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = iter([0.5, 0.3, 0.05, 0.0])
    count = iter(range(9))

    def others(run: Any) -> tuple[Any, float]:
        found = run()
        return found, 0.0 if found is None else next(taken)

    monkeypatch.setattr(bench, "_others", others)
    monkeypatch.setattr(bench.time, "sleep", lambda _: None)
    monkeypatch.setattr(bench, "_in_own_process", lambda options: {"measured": {"time": next(count)}})
    assert bench._undisturbed([], 0.1) == {"measured": {"time": 2}, "others": 0.05}
    taken = iter([0.5, 0.3])
    assert bench._undisturbed([], None)["others"] == 0.5, "without --quiet nothing is measured again"


def test_the_page_tells_errors_relative_to_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "docs/generate.py")
    assert spec is not None and spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)

    def row(live: float, time: float | None) -> dict[str, Any]:
        predicted = {"live": live * 2**30, "resident": 1.0, "time": 1.0}
        return {"measured": {"live": 2.0**30, "resident": None, "time": time}, "predicted": predicted, "rows": 9}

    rows = {"m lora chat": row(0.9, 1.25), "m full chat": row(1.2, 1.0), "m qlora chat": row(1.0, None)}
    report = {"rows": rows, "machines": [{"name": "a processor", "threads": 2}]}
    monkeypatch.setattr(generator, "_report", lambda name: report)
    errors = generator.plan_errors("")
    assert "| live memory | 3 | 10.0% | 20.0% | -10.0% | 20.0% | 2 |" in errors
    assert "| time of a step | 2 | 10.0% | 20.0% | -20.0% | 0.0% | 1 |" in errors and "resident" not in errors
    table = generator.plan_rows("")
    assert "| `m` | `lora` | `chat` | 9 | 1.0 GiB (-10%) |  | 1.25 s (-20%) |" in table
    assert "| `m` | `qlora` | `chat` | 9 | 1.0 GiB (0%) |  |  |" in table
