"""What a run that is about to begin will take: its steps' memory and time, from the examples that it learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from heptune.engine import forest
from heptune.engine.batches import Batches
from heptune.engine.settings import Settings
from heptune.models.anatomy import Anatomy
from heptune.planning import book
from heptune.planning.forms import Pass, StepForm, sizes_of, virtual_tokens
from heptune.planning.hardware import Machine
from heptune.planning.memory import Memory, resident_bytes, training_memory
from heptune.planning.time import step_seconds
from heptune.planning.trace import trace
from heptune.tasks.example import Example
from heptune.techniques._contract import Technique

# Steps of the first epoch that are laid out to count on.
COUNTED_STEPS = 24


@dataclass(frozen=True)
class Outlook:
    """`memory`: what is alive at the peak of a step, by part. `resident_bytes`: of the process, on a CPU. `step_s`: a
    step's mean time in seconds."""

    memory: Memory
    resident_bytes: int
    step_s: float

    @property
    def live_bytes(self) -> int:
        """All that is alive at the peak."""
        return self.memory.total


def outlook(
    anatomy: Anatomy, technique: Technique, examples: Sequence[Example], settings: Settings, machine: Machine
) -> Outlook:
    """Predicts a run of `technique` on the base of `anatomy`, into which nothing has been put yet."""
    shape, chosen = anatomy.shape, asdict(technique)  # type: ignore[call-overload]
    quantized = settings.quantize is not None or "quantizes_base" in technique.capabilities
    dtype = "float32" if "trains_base" in technique.capabilities else _dtype(anatomy)
    form = form_of(anatomy, technique.name, chosen, dtype, settings.recompute, quantized)
    inner = virtual_tokens(chosen) if "virtual_tokens" in technique.capabilities else 0
    steps = _steps(examples, settings, inner)
    sizes = [[sizes_of(shape, chosen, one) for one in step] for step in steps]
    cost = technique.cost(shape)
    width = {"float32": 4, "float64": 8}.get(dtype, 2)
    peak = max(
        (
            training_memory(shape, cost, form, one, dtype_bytes=width, quantized=quantized)
            for step in sizes
            for one in step
        ),
        key=lambda memory: memory.total,
    )
    step_s = fmean(
        step_seconds((form.work(one, shape.layers) for one in step), cost.trainable, machine) for step in sizes
    )
    return Outlook(peak, resident_bytes(peak.total, peak.weights + peak.optimizer), step_s)


def form_of(
    anatomy: Anatomy, technique: str, settings: Mapping[str, Any], dtype: str, recompute: bool, quantized: bool
) -> StepForm:
    """The form from the book, or traced for this very architecture."""
    shape, config = anatomy.shape, anatomy.model.config
    found = book.find(shape.family, technique, settings, dtype, recompute, quantized, shape.head_tied)
    if found is not None:
        return found
    return trace(
        config.get_text_config(),
        technique,
        settings,
        dtype=dtype,
        recompute=recompute,
        quantized=quantized,
        tied=shape.head_tied,
    )


def _dtype(anatomy: Anatomy) -> str:
    return str(next(anatomy.model.parameters()).dtype).removeprefix("torch.")


def _steps(examples: Sequence[Example], settings: Settings, virtual: int) -> list[list[Pass]]:
    """The passes of the first steps, as the training will lay them out; virtual tokens stand in front."""
    batches = Batches([len(e.tokens) for e in examples], settings.seed, settings.batch_tokens, settings.batch_size)
    found = []
    for step in batches.epoch(0)[:COUNTED_STEPS]:
        placed = [examples[i].with_virtual_tokens(virtual, 0) for i in step]
        portions = forest.portions(placed, settings.micro_tokens, settings.share)
        found.append([_pass(portion, settings.share) for portion in portions])
    return found


def _pass(examples: Sequence[Example], share: bool) -> Pass:
    planted = forest.plant(examples, share)
    return Pass.of(planted.end, planted.position, len(planted.target_row), len(examples))
