"""How much memory a run needs, phase by phase. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass

from heptune.models.shape import ModelShape
from heptune.planning.forms import StepForm
from heptune.techniques._cost import Cost

# Bits of a weight in 4 bits: 4, the blocks' maxima in 8 bits each, and theirs in 32 (see models/quantization.py).
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
# What is trained, and the optimizer's moments, are float32.
TRAINED_BYTES = 4


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a training step. `weights`: the base, and what the technique keeps beside it."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    workspace: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(astuple(self))


def base_bytes(shape: ModelShape, *, dtype_bytes: float, quantized: bool) -> int:
    """The base's weights; quantized: linear sites but the head in 4 bits."""
    if not quantized:
        return round(shape.parameters * dtype_bytes)
    small = sum(site.in_features * site.out_features for site in shape.sites if site.role != "head")
    return round((shape.parameters - small) * dtype_bytes + small * NF4_BITS / 8)


def training_memory(
    shape: ModelShape,
    cost: Cost,
    form: StepForm,
    sizes: Mapping[str, float],
    *,
    dtype_bytes: float,
    quantized: bool,
    accumulating: bool = False,
) -> Memory:
    """What is alive at the peak of a training step. `accumulating`: it has more than one pass."""
    parts = form.parts(sizes, shape.layers, accumulating)
    weights = base_bytes(shape, dtype_bytes=dtype_bytes, quantized=quantized)
    return Memory(
        weights=weights + round(form.attached_bytes(sizes, shape.layers)),
        gradients=round(parts["gradients"]),
        optimizer=TRAINED_BYTES * cost.optimizer,
        activations=round(parts["activations"]),
        logits=round(parts["logits"]),
        workspace=round(parts["workspace"]),
    )


def phases(
    shape: ModelShape,
    cost: Cost,
    form: StepForm,
    training: Mapping[str, float],
    scoring: Mapping[str, float],
    *,
    dtype_bytes: float,
    quantized: bool,
    mergeable: bool = False,
) -> dict[str, int]:
    """Live bytes at the peak of each phase: load, train, evaluate, save, and merge where the technique can.

    `training`, `scoring`: the sizes (`forms.sizes_of`) of the largest pass with a gradient, and without.
    """
    memory = training_memory(shape, cost, form, training, dtype_bytes=dtype_bytes, quantized=quantized)
    standing = memory.weights + memory.optimizer
    largest = max((site.in_features * site.out_features for site in shape.sites), default=0)
    found = {
        # Quantizing reads the base as it is, and makes one layer after the other small.
        "load": base_bytes(shape, dtype_bytes=dtype_bytes, quantized=False),
        "train": memory.total,
        "evaluate": standing + round(form.forward_bytes(scoring, shape.layers)),
        # safetensors writes from a copy; the optimizer's moments are the largest file.
        "save": standing + TRAINED_BYTES * max(cost.trainable, cost.optimizer),
    }
    if mergeable:
        # A site is added up in float64: the weight, the product, their sum; and the sum in the weight's own type.
        found["merge"] = standing + round(largest * (3 * 8 + dtype_bytes))
        if quantized:
            found["merge"] += round(shape.parameters * dtype_bytes) - base_bytes(
                shape, dtype_bytes=dtype_bytes, quantized=True
            )
    return found


# What a process holds on a CPU beside its tensors: Python, torch, transformers and the tokenizer, the kernels' buffers;
# the library that keeps weights in 4 bits; and what the C library's allocator keeps beside what is alive, as a share of
# what a step allocates. A line through the 23 combinations with smollm2-135m in docs/results/plan.md, on Linux; on the
# 24 with other models it is 2 % off in the median.
PROCESS_BYTES = 440 * 2**20
QUANTIZING_BYTES = 82 * 2**20
ALLOCATOR_SHARE = 0.377


def resident_bytes(live: float, standing: float, quantized: bool = False) -> int:
    """The resident memory of a process on a CPU when `live` bytes are alive at the peak, `standing` of them all the
    time. `quantized`: the base lies in 4 bits."""
    return round(PROCESS_BYTES + quantized * QUANTIZING_BYTES + live + ALLOCATOR_SHARE * (live - standing))
