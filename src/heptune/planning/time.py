"""How long a training step takes on a machine. Imports no torch.

    pass   = sum over products of their time  +  attention flops / rate  +  moved bytes / rate  +  operations * overhead
             + weights made out of 4 bits / rate
    update = trained elements * UPDATE_BYTES / rate  +  trained tensors * overhead
    step   = passes + update, divided by the devices, + what they tell each other

The rates are the machine's (`planning/rates.py`), the work is the step's (`planning/forms.py`). The sum takes it that
nothing runs beside anything else, which holds on a CPU. On a GPU it is a little too careful.
"""

from __future__ import annotations

from collections.abc import Iterable

from heptune.models.shape import ModelShape
from heptune.planning.forms import Work
from heptune.planning.hardware import Machine
from heptune.planning.rates import UPDATE_BYTES

# Gradients and trained weights are float32 wherever a training runs.
_GRADIENT_BYTES = 4


def pass_seconds(work: Work, machine: Machine, dequantized: float = 0.0) -> float:
    """The time of one pass (forward and backward, or forward alone) on one device. `dequantized`: how many weights are
    made out of 4 bits in it (see `dequantized_weights`)."""
    rates = machine.rates
    products = sum(p.count * rates.product.seconds(p.m, p.k, p.n) for p in work.products)
    return (
        products
        + work.attention_flops / rates.attention_flops_s
        + work.moved_bytes / rates.moved_bytes_s
        + work.operations * rates.operation_s
        + dequantized / rates.dequantized_elements_s
    )


def dequantized_weights(shape: ModelShape, *, backward: bool = True, recompute: bool = False) -> int:
    """How many weights a pass makes out of 4 bits where the base is quantized: every linear site but the head, once
    forward, once backward, and once more where activations are computed again."""
    times = 1 + backward + (backward and recompute)
    return times * sum(site.in_features * site.out_features for site in shape.sites if site.role != "head")


def optimizer_seconds(trainable: float, machine: Machine, tensors: int = 1) -> float:
    """The time of clipping the gradients and of AdamW's update of `trainable` elements in `tensors` tensors."""
    return trainable * UPDATE_BYTES / machine.rates.update_bytes_s + tensors * machine.rates.update_tensor_s


def step_seconds(
    passes: Iterable[Work],
    trainable: float,
    machine: Machine,
    tensors: int = 1,
    sharded_bytes: float | None = None,
    dequantized: float = 0.0,
) -> float:
    """The time of one optimizer step of these passes, each of which makes `dequantized` weights out of 4 bits.

    On several devices each takes its share of the passes, and the gradients are summed over all of them (data
    parallel). With `sharded_bytes`, the bytes of all weights, each device holds its share of weights and moments alone
    and fetches the rest for every forward and every backward pass (fully sharded).
    """
    works = list(passes)
    devices = machine.devices
    computing = sum(pass_seconds(work, machine, dequantized) for work in works) / devices
    if devices == 1:
        return computing + optimizer_seconds(trainable, machine, tensors)
    if sharded_bytes is None:
        return (
            computing
            + optimizer_seconds(trainable, machine, tensors)
            + _all_reduce(trainable * _GRADIENT_BYTES, machine)
        )
    # Rajbhandari et al. 2020 ("ZeRO", section 7): weights are gathered twice, gradients reduced and scattered once.
    rounds = -(-len(works) // devices)
    told = 2 * rounds * sharded_bytes + trainable * _GRADIENT_BYTES
    return (
        computing
        + optimizer_seconds(trainable / devices, machine, tensors)
        + (devices - 1) / devices * told / machine.interconnect_bytes_s
    )


def validation_seconds(passes: Iterable[Work], machine: Machine, dequantized: float = 0.0) -> float:
    """The time of scoring with these passes (forward alone), shared among the devices."""
    return sum(pass_seconds(work, machine, dequantized) for work in passes) / machine.devices


def _all_reduce(size: float, machine: Machine) -> float:
    """A ring's all-reduce of `size` bytes: each device sends 2 (n - 1) / n of them (Patarasuk & Yuan 2009)."""
    return 2 * (machine.devices - 1) / machine.devices * size / machine.interconnect_bytes_s
