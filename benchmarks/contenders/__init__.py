"""The contenders of the training benchmark, one file each, and what all of them must have in common.

A contender is a function `run(workload, base, steps, warmup, threads) -> Measurement`. It loads the base with
`load_base`, starts a `PeakMemory`, attaches its technique with the settings and the initial weights below, takes
`warmup` optimizer steps and then `steps` more, and reports all of them. Contenders with one baseline use one technique;
nothing else may differ between them but the contender itself.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import re
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from workloads import Workload

# AdamW with torch's betas and epsilon, no weight decay, no clipping, no dropout, constant learning rate.
# LoRA on every linear layer of the blocks (not the head):
RANK = 16
ALPHA = 32
LEARNING_RATE = 2e-4
# Soft prompts: 100 tokens before the text (Lester et al. 2021, section 3), or 30 keys and values in every layer, raw.
PROMPT_TOKENS = 100
PREFIX_TOKENS = 30
# Large enough that a few steps move the losses: a wrong gradient would show in them. At 1e-2 the rounding of gradients
# near zero, whose signs alone decide AdamW's first steps, made the losses of equal contenders differ by 3e-3.
SOFT_LEARNING_RATE = 1e-3
# The standard deviation of SmolLM2-135M's input embeddings (measured: 0.1356).
SOFT_SCALE = 0.136


@dataclass(frozen=True)
class Measurement:
    """One process's steps in order; the first `warmup` of them are not timed for the result.

    `tokens` counts real tokens per step (no padding), `supervised` the targets, `time_s` seconds from the start of
    the forward pass to the end of the optimizer step, `losses` the mean over the supervised tokens in nats before the
    step. `peak_memory_bytes` is the resident peak above the loaded base. `same_order` says whether the steps are the
    workload's own first batches, so that the losses must agree with every other contender of which that is true.
    """

    warmup: int
    tokens: list[int]
    supervised: list[int]
    time_s: list[float]
    losses: list[float]
    peak_memory_bytes: int
    same_order: bool
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float:
        """Real tokens of the timed steps over their time."""
        return sum(self.tokens[self.warmup :]) / sum(self.time_s[self.warmup :])


class Contender(Protocol):
    """What each file offers."""

    def __call__(self, workload: Workload, base: str, steps: int, warmup: int, threads: int) -> Measurement: ...


@dataclass(frozen=True)
class Entry:
    """Where a contender's function stands ('module:function'), and the contender that its ratios and its loss
    differences refer to: transformers' Trainer with the same technique.
    """

    function: str
    baseline: str


CONTENDERS = {
    "trainer": Entry("trainer_peft:run", baseline="trainer"),
    "trainer-grouped": Entry("trainer_peft:run_grouped", baseline="trainer"),
    "trl": Entry("trl_sft:run", baseline="trainer"),
    "trl-packed": Entry("trl_sft:run_packed", baseline="trainer"),
    "heptune": Entry("heptune_engine:run_lora", baseline="trainer"),
    "trainer-prompt": Entry("trainer_peft:run_prompt", baseline="trainer-prompt"),
    "heptune-prompt": Entry("heptune_engine:run_prompt", baseline="trainer-prompt"),
    "trainer-prefix": Entry("trainer_peft:run_prefix", baseline="trainer-prefix"),
    "heptune-prefix": Entry("heptune_engine:run_prefix", baseline="trainer-prefix"),
}

# Who runs on which workload when nobody says.
_LORA = tuple(name for name, entry in CONTENDERS.items() if entry.baseline == "trainer")
BY_DEFAULT = {
    "varied": _LORA,
    "shared": _LORA,
    "short": tuple(name for name in CONTENDERS if name not in _LORA),
}


def contender(name: str) -> Contender:
    """The function behind a name of `CONTENDERS`, imported now."""
    module, function = CONTENDERS[name].function.split(":")
    found: Contender = getattr(import_module(f"contenders.{module}"), function)
    return found


def versions(*packages: str) -> dict[str, str]:
    """Installed versions by distribution name."""
    return {package: metadata.version(package) for package in packages}


def load_base(base: str, threads: int) -> Any:
    """The base in float32 on the CPU, every weight resident, in training mode; sets torch's threads."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.sum()  # weights may be mapped from the file: touched pages count as the model's, not as training's
    return model.train()


def initial_lora_a(site: str, inputs: int) -> np.ndarray:
    """LoRA's A [R, inputs] for the linear layer at `site`, a module path of the plain base; B starts at zero.

    Uniform within 1/sqrt(inputs), which is PEFT's own default (Kaiming uniform with a = sqrt(5)), drawn from a seed
    made of the path: equal for every contender whatever order it attaches in.
    """
    seed = int.from_bytes(hashlib.blake2b(site.encode(), digest_size=8).digest(), "big")
    bound = inputs**-0.5
    return np.random.Generator(np.random.Philox(seed)).uniform(-bound, bound, (RANK, inputs)).astype(np.float32)


def initial_soft_prompt(tokens: int, width: int) -> np.ndarray:
    """A soft prompt [P, width] in PEFT's layout (width: hidden, or 2 * layers * kv_heads * head_dim), normal with
    `SOFT_SCALE`, seeded.
    """
    random = np.random.Generator(np.random.Philox([tokens, width]))
    return random.normal(0, SOFT_SCALE, (tokens, width)).astype(np.float32)


class PeakMemory:
    """The peak of resident memory above what is resident when this is created (Linux).

    The kernel keeps the peak itself (VmHWM) and forgets it when 5 is written to clear_refs; sampling would take time
    from the two cores that are measured and would miss short peaks.
    """

    def __init__(self) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what loading left in the heap would hide the first bytes of training
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _status_bytes("VmRSS")

    def above_base(self) -> int:
        """Bytes."""
        return _status_bytes("VmHWM") - self._before


def _status_bytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found, f"/proc/self/status has no {name}"
    return int(found[1]) * 1024
