"""Heptune's own engine: the forest, logits at supervised rows only, and its own LoRA backward pass."""

from __future__ import annotations

import time
from typing import Any

import torch
from workloads import Workload

from contenders import (
    ALPHA,
    LEARNING_RATE,
    PREFIX_TOKENS,
    PROMPT_TOKENS,
    RANK,
    SOFT_LEARNING_RATE,
    Measurement,
    PeakMemory,
    initial_lora_a,
    initial_soft_prompt,
    load_base,
    versions,
)
from heptune import techniques
from heptune.engine.forward import Forward
from heptune.engine.loop import accumulate
from heptune.engine.memory import freed_memory_kept
from heptune.engine.optimizer import adamw
from heptune.engine.settings import Settings
from heptune.models.anatomy import dissect
from heptune.tasks.example import Example


def run_lora(workload: Workload, base: str, steps: int, warmup: int, threads: int) -> Measurement:
    """LoRA on every linear layer but the head."""
    settings = {"rank": RANK, "alpha": float(ALPHA)}
    return _run("lora", settings, LEARNING_RATE, workload, base, steps, warmup, threads)


def run_prompt(workload: Workload, base: str, steps: int, warmup: int, threads: int) -> Measurement:
    """Prompt Tuning."""
    settings = {"virtual_tokens": PROMPT_TOKENS}
    return _run("prompt", settings, SOFT_LEARNING_RATE, workload, base, steps, warmup, threads)


def run_prefix(workload: Workload, base: str, steps: int, warmup: int, threads: int) -> Measurement:
    """Raw keys and values in every layer, which PEFT calls prefix tuning without projection: P-Tuning v2."""
    settings = {"virtual_tokens": PREFIX_TOKENS}
    return _run("p_tuning_v2", settings, SOFT_LEARNING_RATE, workload, base, steps, warmup, threads)


def _run(
    technique: str,
    hyperparameters: dict[str, Any],
    learning_rate: float,
    workload: Workload,
    base: str,
    steps: int,
    warmup: int,
    threads: int,
) -> Measurement:
    """The workload's batches in their own order; a step's time includes laying out its forest."""
    chosen = techniques.build(technique, hyperparameters)
    size = workload.batch_size
    examples = _examples(workload, warmup + steps)
    batches = [examples[start : start + size] for start in range(0, len(examples), size)]
    model = load_base(base, threads).eval()
    memory = PeakMemory()
    anatomy = dissect(model)
    forward = Forward(anatomy)
    attached = chosen.attach(anatomy, seed=0)
    _set_initial_weights(attached.parameters)
    optimizer = adamw(attached.parameters, weight_decay=0.0)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
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


@torch.no_grad()
def _set_initial_weights(parameters: dict[str, torch.nn.Parameter]) -> None:
    """The common initial weights; Heptune's names and layouts are PEFT's."""
    for name, parameter in parameters.items():
        if name == "prompt_embeddings":
            parameter.copy_(torch.from_numpy(initial_soft_prompt(*parameter.shape)))
        elif name.endswith(".lora_A.weight"):
            site = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            parameter.copy_(torch.from_numpy(initial_lora_a(site, parameter.shape[1])))
        else:
            assert name.endswith(".lora_B.weight") and not parameter.any(), f"no common initial value for {name}"
