"""A step's time: what must grow with what, and what the rates are fitted from. No clock is read here."""

from __future__ import annotations

from dataclasses import replace

import pytest

from heptune.planning.forms import Product, Work
from heptune.planning.hardware import Machine, accelerator
from heptune.planning.rates import ProductTime, Rates
from heptune.planning.time import optimizer_seconds, pass_seconds, step_seconds, validation_seconds

RATES = Rates(
    product=ProductTime(1e-11, 6e-11, 3e-10, 1e-10, 4e-6),
    attention_flops_s=1e11,
    moved_bytes_s=2e10,
    operation_s=1e-5,
    update_bytes_s=4e10,
    update_tensor_s=8e-6,
    dequantized_elements_s=6e8,
)


def machine_of(rates: Rates) -> Machine:
    """A processor with these rates."""
    return Machine("test", "cpu", 1, 2, 2**33, 2**32, "float32", rates, 1e9, True, "made up")


WORK = Work((Product(4, 512, 576, 1536), Product(8, 512, 576, 16)), 1e9, 2e8, 300)
MACHINES = [machine_of(RATES), accelerator("RTX 3060"), accelerator("H100")]


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.name)
@pytest.mark.parametrize(
    "more",
    [
        replace(WORK, products=(*WORK.products, Product(1, 512, 576, 576))),
        replace(WORK, products=(Product(4, 1024, 576, 1536), Product(8, 512, 576, 16))),
        replace(WORK, attention_flops=2e9),
        replace(WORK, moved_bytes=4e8),
        replace(WORK, operations=400),
    ],
)
def test_more_work_takes_longer(machine: Machine, more: Work) -> None:
    assert pass_seconds(more, machine) > pass_seconds(WORK, machine)


def test_the_time_is_the_sum_of_its_parts() -> None:
    machine, rates = machine_of(RATES), RATES
    parts = [
        replace(WORK, attention_flops=0, moved_bytes=0, operations=0),
        Work((), WORK.attention_flops, 0, 0),
        Work((), 0, WORK.moved_bytes, 0),
        Work((), 0, 0, WORK.operations),
    ]
    assert sum(pass_seconds(part, machine) for part in parts) == pytest.approx(pass_seconds(WORK, machine))
    assert pass_seconds(parts[3], machine) == pytest.approx(WORK.operations * rates.operation_s)


def test_weights_in_4_bits_take_longer() -> None:
    for machine in MACHINES:
        assert pass_seconds(WORK, machine, dequantized=1e8) > pass_seconds(WORK, machine)


def test_a_faster_machine_takes_less_time() -> None:
    times = [pass_seconds(WORK, machine) for machine in (*MACHINES, accelerator("B200"))]
    assert times == sorted(times, reverse=True)


def test_a_step_is_its_passes_and_one_update() -> None:
    machine = machine_of(RATES)
    update = optimizer_seconds(1e6, machine, 20)
    assert 0 < update < optimizer_seconds(2e6, machine, 20) and update < optimizer_seconds(1e6, machine, 40)
    assert step_seconds([WORK, WORK], 1e6, machine, 20) == pytest.approx(2 * pass_seconds(WORK, machine) + update)
    assert validation_seconds([WORK], machine) == pytest.approx(pass_seconds(WORK, machine))


def test_devices_share_the_passes_and_tell_each_other() -> None:
    one = accelerator("A100")
    times = [step_seconds([WORK] * 8, 1e6, one.times(count)) for count in (1, 2, 4, 8)]
    assert times == sorted(times, reverse=True)
    assert times[1] > times[0] / 2, "the gradients' sum costs something"
    trained = [step_seconds([WORK] * 8, count, one.times(8)) for count in (1e6, 1e8)]
    assert trained[1] > trained[0]


def test_fetching_sharded_weights_costs_more_than_it_saves_where_little_is_trained() -> None:
    machine = accelerator("RTX 4090", devices=4)
    whole = step_seconds([WORK] * 4, 1e6, machine)
    assert step_seconds([WORK] * 4, 1e6, machine, sharded_bytes=1e9) > whole
