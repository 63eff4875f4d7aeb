"""Heptune's own engine: the forest, logits at supervised rows only, and its own LoRA backward pass."""

from __future__ import annotations

import time

import torch
from workloads import Workload

from contenders import ALPHA, LEARNING_RATE, RANK, Measurement, PeakMemory, initial_lora_a, load_base, versions
from heptune.engine.forward import Forward
from heptune.engine.loop import accumulate
from heptune.engine.memory import freed_memory_kept
from heptune.engine.optimizer import adamw
from heptune.engine.settings import Settings
from heptune.models.anatomy import dissect
from heptune.tasks.example import Example
from heptune.techniques.lora import AttachedLora, Lora


def run(workload: Workload, base: str, steps: int, warmup: int, threads: int) -> Measurement:
    """The workload's batches in their own order; a step's time includes laying out its forest."""
    size = workload.batch_size
    examples = _examples(workload, warmup + steps)
    batches = [examples[start : start + size] for start in range(0, len(examples), size)]
    model = load_base(base, threads).eval()
    memory = PeakMemory()
    anatomy = dissect(model)
    forward = Forward(anatomy)
    attached = Lora(rank=RANK, alpha=ALPHA).attach(anatomy, seed=0)
    _set_initial_weights(attached)
    optimizer = adamw(attached.parameters, weight_decay=0.0)
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE
    settings, losses, time_s = Settings(), [], []
    with freed_memory_kept():
        for step, batch in enumerate(batches):
            began = time.perf_counter()
            loss, _ = accumulate(forward, attached, batch, settings, step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            time_s.append(time.perf_counter() - began)
            losses.append(loss)
    return Measurement(
        warmup=warmup,
        tokens=[sum(len(example.tokens) for example in batch) for batch in batches],
        supervised=[sum(example.targets for example in batch) for batch in batches],
        time_s=time_s,
        losses=losses,
        peak_memory_bytes=memory.above_base(),
        same_order=True,
        versions=versions("torch", "transformers"),
    )


def _examples(workload: Workload, batches: int) -> list[Example]:
    """Heptune's form of the first `batches` batches, in order."""
    return [
        Example(tuple(s.tokens.tolist()), tuple(s.supervised.tolist()), record)
        for record, s in enumerate(workload.first(batches))
    ]


def _set_initial_weights(attached: AttachedLora) -> None:
    with torch.no_grad():
        for path, module in attached.modules.items():
            module.A.copy_(torch.from_numpy(initial_lora_a(path, module.in_features)))
