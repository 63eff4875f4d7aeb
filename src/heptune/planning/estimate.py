"""Memory and time of one technique with one set of settings on one target. Imports no torch before it must.

`planning/memory.py` and `planning/time.py` know what one pass costs; here the passes of the workload are put through
them, on one device or several:

    one device        everything on it
    data parallel     each device holds everything, and computes its share of the passes
    fully sharded     weights, gradients and moments are divided among the devices; one layer's weights at a time are
                      fetched whole (twice that is counted: the next one is fetched meanwhile)
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any

from heptune import techniques
from heptune.core.errors import TechniqueError
from heptune.engine.settings import Settings
from heptune.models.catalog import BaseFacts
from heptune.models.shape import ModelShape
from heptune.planning.book import Variant
from heptune.planning.costs import cost_of
from heptune.planning.forms import Pass, StepForm, sizes_of, virtual_tokens
from heptune.planning.kept import form
from heptune.planning.memory import TRAINED_BYTES, Memory, base_bytes, phases, training_memory
from heptune.planning.target import Target
from heptune.planning.time import dequantized_weights, step_seconds, validation_seconds
from heptune.planning.workload import PADDED_FAMILIES, Layout, Placement, Workload, lay_out, lay_out_scoring
from heptune.techniques._cost import Cost

ONE, PARALLEL, SHARDED = "one device", "data parallel", "fully sharded"

# Validations in a run when nobody says how often, and one before it; as in engine/loop.py, a test compares.
VALIDATIONS = 4
_BYTES = {"float32": 4, "bfloat16": 2}
_INNER = re.compile(r"text\s*\}?\s*\{p:(\d+)\}")


@dataclass(frozen=True)
class Candidate:
    """A technique with its settings, as far as plans need to know it."""

    name: str
    settings: Mapping[str, Any]
    capabilities: frozenset[str]

    @classmethod
    def of(cls, technique: Any) -> Candidate:
        """From a technique's name, or from its settings (`heptune.Lora(rank=64)`)."""
        if isinstance(technique, str):
            return cls(technique, techniques.defaults(technique), techniques.capabilities(technique))
        settings = {f.name: getattr(technique, f.name) for f in fields(technique)}
        return cls(technique.name, settings, technique.capabilities)

    @property
    def placement(self) -> Placement:
        """Its virtual tokens among the rows."""
        if "virtual_tokens" not in self.capabilities:
            return Placement()
        found = _INNER.search(str(self.settings.get("prompt_template") or ""))
        inner = int(found[1]) if found else 0
        return Placement(virtual_tokens(self.settings) - inner, inner)

    @property
    def positions(self) -> int:
        """Positions that an example's own tokens cannot have."""
        return virtual_tokens(self.settings)


@dataclass(frozen=True)
class Timing:
    """Seconds. `total_s` has `validations` validations in it; `steps` are optimizer steps."""

    steps: int
    step_s: float
    epoch_s: float
    validation_s: float
    validations: int
    total_s: float


@dataclass(frozen=True)
class Estimate:
    """What a training needs with some settings.

    `memory` is one device's at the peak of a training step, by part; its `total` is `live`. `phases` are what a device
    holds at the peak of each phase, the process or driver and the allocator's losses (`overhead_bytes`, in training)
    included. `peak_bytes` is the largest of the phases that a training cannot do without: all but merging.
    """

    strategy: str
    memory: Memory
    overhead_bytes: int
    phases: dict[str, int]
    peak_bytes: int
    room_bytes: int
    timing: Timing | None

    @property
    def fits(self) -> bool:
        """Whether the training finds room."""
        return self.peak_bytes <= self.room_bytes

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "strategy": self.strategy,
            "memory_bytes": {**asdict(self.memory), "overhead": self.overhead_bytes},
            "phases_bytes": self.phases,
            "peak_bytes": self.peak_bytes,
            "room_bytes": self.room_bytes,
            "fits": self.fits,
            "time": None if self.timing is None else asdict(self.timing),
        }


class Estimator:
    """Estimates for one base, workload and target; forms and layouts are found once. Raises `TechniqueError` for a
    linear head on a base whose batches are padded: no formula covers it."""

    def __init__(self, base: BaseFacts, workload: Workload, place: Target) -> None:
        self.base, self.workload, self.target = base, workload, place
        if workload.classes and self._padded:
            raise TechniqueError(
                f"the attention of {base.form_family} cannot be told who sees whom, so its batches are padded; with a "
                "linear head such a training is not planned, though `heptune tune` and `heptune race` take it"
            )
        self._layouts = lru_cache(maxsize=256)(self._lay_out)
        self._forms: dict[tuple[str, str, bool, bool], StepForm] = {}
        self._scoring = lru_cache(maxsize=32)(self._lay_out_scoring)

    def on(self, devices: int) -> Estimator:
        """The same on that many devices; what was laid out stays."""
        other = copy.copy(self)
        other.target = replace(self.target, devices=devices)
        return other

    @cached_property
    def shape(self) -> ModelShape:
        """The base's sizes."""
        return self.base.shape

    def cost(self, candidate: Candidate) -> Cost:
        """What the technique and the task's linear head add, in elements."""
        cost = cost_of(candidate.name, candidate.settings, self.shape, self.base.entry)
        return cost.with_head(self.workload.classes, self.shape.hidden)

    def dtype(self, candidate: Candidate) -> str:
        """The type of the base's weights: where they are trained themselves float32, else the target's."""
        return "float32" if "trains_base" in candidate.capabilities else self.target.dtype

    def quantized(self, candidate: Candidate, settings: Settings) -> bool:
        """Whether the base lies in 4 bits."""
        return settings.quantize is not None or "quantizes_base" in candidate.capabilities

    def check(self, candidate: Candidate, settings: Settings) -> None:
        """Raises `TechniqueError` where the technique cannot be run so at all."""
        self.cost(candidate)
        if settings.quantize is not None and "trains_base" in candidate.capabilities:
            raise TechniqueError("it trains the base's own weights, and a weight in 4 bits cannot be trained")
        if candidate.positions and self._padded:
            raise TechniqueError(
                f"the attention of {self.base.form_family} takes no keys and values from outside, so nothing can be "
                "put before its sequences; what works on weights works there: lora, freeze, full"
            )
        limit = self.shape.max_positions
        longest = self.layout(candidate.placement, settings).longest_example
        if limit is not None and candidate.positions + longest > limit:
            raise TechniqueError(
                f"the longest example has {longest} tokens and the technique takes {candidate.positions} positions, "
                f"but the base has {limit}; plan with --max-length {limit - candidate.positions}"
            )

    def form(self, candidate: Candidate, settings: Settings) -> StepForm:
        """The formulas of a step: stored ones, else read off a tiny model of the family now (which imports torch)."""
        quantized = self.quantized(candidate, settings)
        key = (candidate.name, str(sorted(candidate.settings.items())), settings.recompute, quantized)
        if key not in self._forms:
            own = self.base.form_family == self.shape.family
            variant = Variant(
                self.base.form_family,
                candidate.name,
                candidate.settings,
                dtype=self.dtype(candidate),
                recompute=settings.recompute,
                quantized=quantized,
                tied=self.shape.head_tied,
                head=self.workload.head,
            )
            self._forms[key] = form(variant, self.shape.layers, self.base.config if own else None)
        return self._forms[key]

    def layout(self, placement: Placement, settings: Settings) -> Layout:
        """The passes of a training with these settings."""
        # What a layout does not depend on is taken out, so that one stands for all.
        return self._layouts(placement, replace(settings, recompute=False, quantize=None))

    def _lay_out(self, placement: Placement, settings: Settings) -> Layout:
        scoring = self._scoring(placement, settings.max_length, settings.share)
        return lay_out(self.workload, settings, placement, scoring, self._padded)

    def _lay_out_scoring(self, placement: Placement, max_length: int, share: bool) -> tuple[Pass, ...]:
        return lay_out_scoring(self.workload, max_length, placement, share, self._padded)

    @property
    def _padded(self) -> bool:
        return self.base.form_family in PADDED_FAMILIES

    def estimate(self, candidate: Candidate, settings: Settings, strategy: str = ONE) -> Estimate:
        """Memory and time of a training with these settings."""
        shape, cost, step = self.shape, self.cost(candidate), self.form(candidate, settings)
        layout = self.layout(candidate.placement, settings)
        width, quantized = _BYTES[self.dtype(candidate)], self.quantized(candidate, settings)

        def sizes(one: Pass) -> dict[str, float]:
            return sizes_of(shape, candidate.settings, one, self.workload.classes)

        def training(one: Pass) -> Memory:
            return training_memory(
                shape,
                cost,
                step,
                sizes(one),
                dtype_bytes=width,
                quantized=quantized,
                accumulating=layout.accumulates,
            )

        memory, largest = max(
            ((training(one), one) for one in layout.largest),
            key=lambda pair: pair[0].total,
        )
        scoring = max(layout.scoring or (largest,), key=lambda one: step.forward_bytes(sizes(one), shape.layers))
        live = phases(
            shape,
            cost,
            step,
            sizes(largest),
            sizes(scoring),
            dtype_bytes=width,
            quantized=quantized,
            mergeable="mergeable" in candidate.capabilities,
        )
        live["train"] = memory.total
        standing = memory.weights + memory.optimizer
        if strategy == SHARDED:
            memory, live = self._sharded(memory, live, width, quantized, cost)
            standing = memory.weights + memory.optimizer
        if self.target.kind == "cuda":
            live["save"] = standing  # what is written is copied to the host first
        held = {name: self.target.held_bytes(size, min(size, standing), quantized) for name, size in live.items()}
        held["load"] = self.target.held_bytes(live["load"], live["load"], quantized)  # nothing is freed in between
        return Estimate(
            strategy=strategy,
            memory=memory,
            overhead_bytes=held["train"] - memory.total,
            phases=held,
            peak_bytes=max(size for name, size in held.items() if name != "merge"),
            room_bytes=self.target.memory_bytes,
            timing=self._timing(candidate, settings, strategy, step, layout, cost, sizes),
        )

    def _sharded(
        self, memory: Memory, live: Mapping[str, int], width: int, quantized: bool, cost: Cost
    ) -> tuple[Memory, dict[str, int]]:
        """One device's share. What a phase has beyond the standing weights and moments is not divided."""
        count = self.target.devices
        gathered = 2 * round(max(self.shape.layer_parameters) * width)
        divided = Memory(
            weights=math.ceil(memory.weights / count),
            gradients=math.ceil(memory.gradients / count),
            optimizer=math.ceil(memory.optimizer / count),
            activations=memory.activations,
            logits=memory.logits,
            workspace=memory.workspace + gathered,
        )
        before, standing = memory.weights + memory.optimizer, divided.weights + divided.optimizer
        whole = base_bytes(self.shape, dtype_bytes=width, quantized=False)
        found = {
            "load": math.ceil(whole / count),
            "train": divided.total,
            "evaluate": standing + gathered + live["evaluate"] - before,
            "save": standing + math.ceil((live["save"] - before) / count),
        }
        if "merge" in live:
            found["merge"] = standing + live["merge"] - before
        return divided, found

    def _timing(
        self,
        candidate: Candidate,
        settings: Settings,
        strategy: str,
        step: StepForm,
        layout: Layout,
        cost: Cost,
        sizes: Any,
    ) -> Timing | None:
        machine = self.target.machine
        if machine is None:
            return None
        tensors = 2 * len(self.shape.sites)  # an upper bound for what techniques train; it tells on a CPU alone
        count = max(1, math.ceil(layout.passes_per_step - 1e-9))
        work = step.work(sizes(mean_pass(layout.passes, layout.passes_per_step / count)), self.shape.layers)
        quantized = self.quantized(candidate, settings)
        weights = base_bytes(self.shape, dtype_bytes=_BYTES[self.dtype(candidate)], quantized=quantized)
        made = float(dequantized_weights(self.shape, recompute=settings.recompute)) if quantized else 0.0
        sharded = float(weights) if strategy == SHARDED else None
        step_s = step_seconds([work] * count, cost.trainable, machine, tensors, sharded, made)
        validation_s, validations = 0.0, 0
        steps = max(1, round(settings.epochs * layout.steps))
        steps = min(steps, settings.max_steps or steps)
        if layout.scoring:
            scored = step.forward_work(sizes(mean_pass(layout.scoring)), self.shape.layers)
            made = float(dequantized_weights(self.shape, backward=False)) if quantized else 0.0
            one_s = validation_seconds([scored], machine, made)
            validation_s = one_s * len(layout.scoring) * layout.scoring_repeats
            every = settings.validate_every or math.ceil(steps / VALIDATIONS)
            validations = 1 + math.ceil(steps / every)
        total = steps * step_s + validations * validation_s
        if settings.max_minutes is not None:
            total = min(total, 60 * settings.max_minutes)
        return Timing(steps, step_s, layout.steps * step_s, validation_s, validations, total)


def mean_pass(passes: Sequence[Pass], share: float = 1.0) -> Pass:
    """The mean of passes, or a share of it: work grows with rows, pairs and targets almost in proportion."""

    def mean(name: str, least: int = 1) -> int:
        values = [getattr(one, name) or 0 for one in passes]
        return max(least, round(share * sum(values) / len(values)))

    known = all(one.blocks is not None for one in passes)
    whole = [one.widest or 0 for one in passes]
    return Pass(
        rows=mean("rows"),
        pairs=mean("pairs"),
        targets=mean("targets"),
        examples=mean("examples"),
        blocks=mean("blocks") if known else None,
        keys=mean("keys") if known else None,
        gathered=mean("gathered", 0) if known else 0,
        gathering=mean("gathering", 0) if known else 0,
        widest=max(1, round(sum(whole) / len(whole))) if known else None,
        own=mean("own", 0) if all(one.own is not None for one in passes) else None,
    )


def artifact_bytes(candidate: Candidate, cost: Cost, shape: ModelShape, dtype: str) -> int:
    """What a run leaves for use. A soft prompt stands there folded, and beside it the network it comes from."""
    if "trains_base" in candidate.capabilities:
        return cost.trainable * _BYTES[dtype]
    folded = 0
    if "kv_prefix" in candidate.capabilities:
        folded = candidate.positions * 2 * shape.layers * shape.kv_heads * shape.head_width
    elif "virtual_tokens" in candidate.capabilities:
        folded = candidate.positions * shape.embedding
    if cost.trainable == folded:  # the table is what is trained
        return TRAINED_BYTES * folded
    starts = folded if "kv_prefix" in candidate.capabilities and candidate.settings.get("init") != "random" else 0
    return TRAINED_BYTES * (cost.trainable + folded + starts)


def format_flops(count: float) -> str:
    """134500000 -> '134 MFLOP'."""
    return f"{count / 1e9:.3g} GFLOP" if count >= 1e9 else f"{count / 1e6:.3g} MFLOP"


@dataclass(frozen=True)
class Serving:
    """What using the result costs beyond the base: positions and memory of each request, work of each token."""

    merged: bool
    positions: int
    request_bytes: int
    token_flops: int

    @property
    def words(self) -> str:
        """In a few words."""
        if self.merged:
            return "nothing"
        if self.positions:
            return f"{self.positions} positions"
        return f"{format_flops(self.token_flops)}/token"


def serving(candidate: Candidate, cost: Cost, shape: ModelShape, dtype: str) -> Serving:
    """A technique that merges costs nothing; virtual tokens and prefixes take positions, whose keys and values every
    token attends to; what else stands beside the base is multiplied with, once a token."""
    if "mergeable" in candidate.capabilities:
        return Serving(True, 0, 0, 0)
    width = _BYTES[dtype]
    if candidate.positions:
        kept = 2 * shape.layers * shape.kv_heads * shape.head_width * candidate.positions
        looked_at = 4 * shape.layers * shape.heads * shape.head_width * candidate.positions
        return Serving(False, candidate.positions, kept * width, looked_at)
    return Serving(False, 0, 0, 2 * cost.trainable)
