"""A real training step of a tiny model, and the memory that it took."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from heptune import techniques
from heptune.engine import marked
from heptune.engine.forest import plant
from heptune.engine.forward import Forward
from heptune.engine.headed import Headed
from heptune.engine.loop import accumulate
from heptune.engine.optimizer import adamw
from heptune.engine.settings import Settings
from heptune.models.anatomy import ENCODERS, Anatomy, dissect
from heptune.models.quantization import quantize
from heptune.models.readout import Readout
from heptune.planning.forms import Pass
from heptune.planning.live import LiveTracker, tensors_of
from heptune.tasks.example import WHOLE, Example
from heptune.techniques._cost import Cost
from tiny import VOCABULARY, tiny_encoder, tiny_model

CLASSES = 11


@dataclass(frozen=True)
class Measured:
    """`standing`: base, technique and moments. `peak`, `scoring_peak`: alive at most in a step, and in a pass without
    gradient. `gradients`: bytes of the trained parameters' gradients. `operations`: those called, views not. `batch`:
    all examples as one pass; `passes`: as they were cut."""

    anatomy: Anatomy
    technique: Any
    batch: Pass
    passes: tuple[Pass, ...]
    standing: int
    peak: int
    scoring_peak: int
    gradients: int
    operations: int
    classes: int = 0

    @property
    def cost(self) -> Cost:
        """What the technique and the linear head add."""
        cost, head = self.technique.cost(self.anatomy.shape), self.classes * (self.anatomy.shape.hidden + 1)
        return replace(cost, trainable=cost.trainable + head, optimizer=cost.optimizer + 2 * head)

    @property
    def settings(self) -> dict[str, Any]:
        return asdict(self.technique)


class _Counting(LiveTracker):
    count = 0

    def called(self, func: Any, given: list[torch.Tensor], made: list[torch.Tensor]) -> None:
        self.count += not (func.is_view or str(func).startswith("profiler."))


def examples_of(rows: int, root: int, seed: int = 0) -> list[Example]:
    """Examples of 20 to 80 tokens behind `root` shared ones, of about `rows` rows together; 30% supervised."""
    draw = np.random.default_rng(seed)
    shared = tuple(map(int, draw.integers(3, VOCABULARY, root)))
    found: list[Example] = []
    while rows > 0:
        count = int(draw.integers(20, 80))
        tokens = (*shared, *map(int, draw.integers(3, VOCABULARY, count)))
        first = len(tokens) - max(1, round(0.3 * count))
        found.append(Example(tokens, tuple(t >= first for t in range(len(tokens))), len(found)))
        rows -= count
    return found


def measure(
    family: str,
    technique: str,
    settings: dict[str, Any] | None = None,
    *,
    rows: int = 300,
    root: int = 0,
    dtype: torch.dtype = torch.float32,
    recompute: bool = False,
    quantized: bool = False,
    micro_tokens: int = 10**6,
    head: str = "",
    **overrides: Any,
) -> Measured:
    """Two steps are made; the second is measured, as the optimizer has no moments before the first. `head`: what a
    linear head of `CLASSES` classes looks at, as in `book.Variant`; else words are learned."""
    make = tiny_encoder if family in ENCODERS else tiny_model
    anatomy = dissect(make(family, **overrides).to(dtype))
    chosen = techniques.build(technique, settings)
    if quantized or "quantizes_base" in chosen.capabilities:
        quantize(anatomy)
    forward = Forward(anatomy, recompute)
    attached = chosen.attach(anatomy, 0)
    assert forward.attends_over_forests
    examples = examples_of(rows, root)
    if head:
        forward.readout = Readout(anatomy, CLASSES, False, 0)
        attached = Headed(attached, forward.readout)
        examples = [marked_as(example, head) for example in examples]
    optimizer = adamw(attached.parameters, 0.0)

    def step() -> int:
        accumulate(forward, attached, examples, Settings(micro_tokens=micro_tokens), 0)
        found = sum(p.grad.nbytes for p in attached.parameters.values() if p.grad is not None)
        torch.nn.utils.clip_grad_norm_(attached.parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return found

    step()
    own = attached.attached if head else attached
    network = getattr(own, "network", None)
    known = [
        *tensors_of(anatomy.model),
        *attached.parameters.values(),
        *(network.buffers() if network is not None else ()),
        *(getattr(own, "_originals", None) or {}).values(),
        *(t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)),
    ]
    with _Counting(known) as training:
        standing = training.live_bytes
        gradients = step()
    attached.begin_step(None)
    (together,) = forward.portions(examples, 10**6) if head else (examples,)  # in the order that they are laid out in
    with LiveTracker(known) as scoring:
        forward.score(together)
    passes = tuple(_pass(anatomy, portion) for portion in forward.portions(examples, micro_tokens))
    peaks = training.peak_bytes, scoring.peak_bytes
    whole, classes = _pass(anatomy, together), CLASSES if head else 0
    return Measured(anatomy, chosen, whole, passes, standing, *peaks, gradients, training.count, classes)


def marked_as(example: Example, head: str) -> Example:
    """The example for a linear head that looks at the means, or at every token ('rows')."""
    places = [WHOLE] if head == "means" else range(len(example.tokens))
    return Example.marked(example.tokens, tuple((place, place % CLASSES) for place in places), example.record)


def _pass(anatomy: Anatomy, examples: list[Example]) -> Pass:
    placement = anatomy.placement
    placed = [e.with_virtual_tokens(placement.front, placement.inner) for e in examples]
    if examples[0].marks:
        batch = marked.lay_out(placed, causal=anatomy.causal, padded=False)
        begin, own = None if anatomy.causal else batch.begin, sum(len(e.tokens) for e in examples)
        return Pass.of(batch.end, batch.position, len(batch.row), len(examples), begin=begin, own=own)
    planted = plant(placed)
    return Pass.of(planted.end, planted.position, len(planted.target_row), len(examples))
