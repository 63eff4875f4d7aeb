"""Timing the machine: what is fitted to timings, and that what was timed once is kept. No timing is asserted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from heptune.core.events import Note
from heptune.engine.forward import Forward
from heptune.models.anatomy import dissect
from heptune.planning import calibration
from heptune.planning.calibration import TimedStep, TimedUpdate, calibrated
from heptune.planning.counting import WorkCounter
from heptune.planning.forms import Product, Work
from heptune.planning.rates import UPDATE_BYTES, ProductTime, Rates
from tiny import tiny_model

RATES = Rates(ProductTime(1e-11, 6e-11, 3e-10, 1e-10, 4e-6), 1e11, 2e11, 1e-6, 4e10, 8e-6, 6e8)
CPU = torch.device("cpu")


def test_a_product_time_is_found_again_in_its_own_timings() -> None:
    sides = [(m, k, n) for m in (8, 64, 512) for k in (16, 576, 2048) for n in (16, 192, 1536)]
    found = calibration.fit_products([(*side, RATES.product.seconds(*side)) for side in sides])
    assert np.allclose([found.seconds(*s) for s in sides], [RATES.product.seconds(*s) for s in sides], rtol=1e-6)


def test_one_disturbed_timing_moves_the_others_little() -> None:
    sides = [(m, k, n) for m in (8, 64, 512) for k in (16, 576, 2048) for n in (16, 192, 1536)]
    timed = [(*side, RATES.product.seconds(*side)) for side in sides]
    timed[7] = (*timed[7][:3], 10 * timed[7][3])
    found = calibration.fit_products(timed)
    errors = [abs(found.seconds(*s) / RATES.product.seconds(*s) - 1) for s in sides]
    assert sorted(errors)[-2] < 0.1


def works() -> list[Work]:
    passes = []
    for rows in (24, 112, 480):
        for width in (192, 576):
            products = (Product(40, rows, width, width), Product(80, rows, width, 16))
            passes.append(Work(products, 1e6 * rows, 4e3 * rows * width, 700 + rows / 2))
    return passes


def seconds(rates: Rates, work: Work) -> float:
    products = sum(p.count * rates.product.seconds(p.m, p.k, p.n) for p in work.products)
    rest = work.moved_bytes / rates.moved_bytes_s + work.operations * rates.operation_s
    return products + work.attention_flops / rates.attention_flops_s + rest


def test_what_things_cost_inside_a_step_is_fitted_to_its_time() -> None:
    """Steps in which products take 1.2 times, bytes 8 times and calls 12 times what they take alone."""
    names = ProductTime.__dataclass_fields__
    product = ProductTime(*(1.2 * getattr(RATES.product, name) for name in names))
    real = replace(RATES, product=product, moved_bytes_s=RATES.moved_bytes_s / 8, operation_s=RATES.operation_s * 12)
    steps = [TimedStep(work, seconds(real, work)) for work in works()]
    found = calibration.fit_steps(RATES, steps)
    for step in steps:
        assert seconds(found, step.work) == pytest.approx(step.seconds, rel=0.02)


def test_an_updates_rates_are_found_again() -> None:
    sizes = ((18_000_000, 38), (650_000, 56))
    updates = [TimedUpdate(count, tensors, count * UPDATE_BYTES / 3e10 + tensors * 9e-6) for count, tensors in sizes]
    assert calibration.fit_updates(updates) == pytest.approx((3e10, 9e-6))


@pytest.fixture
def timings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A cache folder of its own, and a list that grows with each (pretended) timing."""
    monkeypatch.setenv("HEPTUNE_CACHE", str(tmp_path))
    done: list[str] = []

    def pretended(device: torch.device, dtype: torch.dtype) -> Rates:
        done.append(str(dtype))
        return replace(RATES, operation_s=1e-6 * len(done))

    monkeypatch.setattr(calibration, "measure", pretended)
    return done


def test_a_machine_is_timed_once(timings: list[str]) -> None:
    heard: list[object] = []
    first = calibrated("a", CPU, "float32", again=False, listener=heard.append)
    assert calibrated("a", CPU, "float32", again=False, listener=heard.append) == first
    assert len(timings) == 1 and len(heard) == 1 and isinstance(heard[0], Note)


def test_it_is_timed_again_when_asked_and_for_whatever_is_not_the_same(
    timings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrated("a", CPU, "float32", again=False)
    assert calibrated("a", CPU, "float32", again=True).operation_s == pytest.approx(2e-6)
    assert calibrated("a", CPU, "float32", again=False).operation_s == pytest.approx(2e-6), "the newer one is kept"
    calibrated("b", CPU, "float32", again=False)
    assert len(timings) == 3
    calibrated("a", CPU, "bfloat16", again=False)
    assert len(timings) == 4
    monkeypatch.setattr(torch, "get_num_threads", lambda: 31)
    calibrated("a", CPU, "float32", again=False)
    assert len(timings) == 5
    monkeypatch.setattr(torch, "__version__", "99.0")
    calibrated("a", CPU, "float32", again=False)
    monkeypatch.setattr(calibration, "VERSION", calibration.VERSION + 1)
    calibrated("a", CPU, "float32", again=False)
    assert len(timings) == 7


@pytest.mark.parametrize("damage", ["", "{}", "[1]", '{"key": {}, "rates": {}}', "not JSON"])
def test_a_damaged_file_is_no_reason_to_fail(timings: list[str], tmp_path: Path, damage: str) -> None:
    calibrated("a", CPU, "float32", again=False)
    (file,) = (tmp_path / "calibration").iterdir()
    file.write_text(damage)
    calibrated("a", CPU, "float32", again=False)
    assert len(timings) == 2
    assert json.loads(file.read_text())["key"]["machine"] == "a"


def test_rates_that_cannot_be_kept_are_used_all_the_same(
    timings: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("HEPTUNE_CACHE", str(blocked))
    heard: list[Note] = []
    assert calibrated("a", CPU, "float32", again=False, listener=heard.append).operation_s > 0  # type: ignore[arg-type]
    assert heard[-1].level == "warning"


def test_the_whole_timing_gives_rates_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything runs once, on sizes that take no time; only that the rates can be computed with is asserted."""
    monkeypatch.setattr(calibration, "_STORE", 1 << 16)
    monkeypatch.setattr(calibration, "_ROWS", (8, 128))
    monkeypatch.setattr(calibration, "_WIDTHS", ((32, 32), (32, 64)))
    monkeypatch.setattr(calibration, "_HEAD", (32, 256))
    monkeypatch.setattr(calibration, "_PASSES", (("lora", 32, (24,)), ("full", 32, (24, 48))))
    monkeypatch.setattr(calibration, "_small_llama", lambda width, device, dtype: tiny_model("llama"))
    monkeypatch.setattr(calibration, "_VOCABULARY", 320)
    monkeypatch.setattr(calibration, "require_library", _missing)
    rates = calibration.measure(CPU)
    assert all(value > 0 for value in (rates.attention_flops_s, rates.moved_bytes_s, rates.operation_s))
    assert rates.product.seconds(64, 64, 64) > 0 and rates.update_bytes_s > 0
    assert Rates.from_json(json.loads(json.dumps(rates.to_json()))) == rates


def _missing() -> None:
    from heptune.core.errors import TechniqueError

    raise TechniqueError("not installed")


def test_products_and_moved_bytes_are_counted() -> None:
    x, w = torch.randn(5, 7), torch.randn(3, 7)
    with WorkCounter() as counter:
        y = x @ w.T
        (y + y).view(3, 5)
        torch.baddbmm(torch.zeros(2, 4, 6), torch.randn(2, 4, 5), torch.randn(2, 5, 6))
    work = counter.work()
    assert work.products == (Product(2, 4, 5, 6), Product(1, 5, 7, 3))
    assert work.moved_bytes >= 3 * 15 * 4 and work.operations >= 3


def test_attention_is_counted_by_its_floating_point_operations() -> None:
    q, k, v = (torch.randn(1, 2, rows, 8, requires_grad=True) for rows in (6, 10, 10))
    with WorkCounter() as counter:
        torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=torch.zeros(1, 1, 6, 10)).sum().backward()
    assert counter.work().attention_flops == 14 * 2 * 6 * 8 * 10


def test_a_training_pass_has_twice_the_products_of_a_forward_pass() -> None:
    """Full tuning: every matrix is multiplied with once forward, and twice backward, for its input and for itself."""
    forward = Forward(dissect(tiny_model("llama")))
    examples = list(calibration._examples(48, 300))

    def flops(work: Work) -> float:
        return sum(2 * p.count * p.m * p.k * p.n for p in work.products)

    forward.anatomy.model.requires_grad_(False)
    with WorkCounter() as scoring:
        forward.score(examples)
    forward.anatomy.model.requires_grad_(True)
    with WorkCounter() as training, forward.loss(examples) as loss:
        loss.total.backward()
    assert flops(training.work()) == pytest.approx(3 * flops(scoring.work()), rel=0.02)
