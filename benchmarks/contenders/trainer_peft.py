"""transformers' Trainer with PEFT: batches padded to their longest sequence, the way most people tune."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from workloads import Sequence, Workload

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


def run(workload: Workload, base: str, steps: int, warmup: int, threads: int) -> Measurement:
    """LoRA; the workload's batches in their own order."""
    return _run(workload.first(warmup + steps), workload.batch_size, base, warmup, threads, same_order=True)


def run_prompt(workload: Workload, base: str, steps: int, warmup: int, threads: int) -> Measurement:
    """Prompt tuning; the workload's batches in their own order. PEFT puts the prompt before every row."""
    config = PromptTuningConfig(num_virtual_tokens=PROMPT_TOKENS, task_type="CAUSAL_LM")
    return _run_soft(config, workload, base, steps, warmup, threads)


def run_prefix(workload: Workload, base: str, steps: int, warmup: int, threads: int) -> Measurement:
    """Prefix tuning without projection; the workload's batches in their own order."""
    config = PrefixTuningConfig(num_virtual_tokens=PREFIX_TOKENS, prefix_projection=False, task_type="CAUSAL_LM")
    return _run_soft(config, workload, base, steps, warmup, threads)


def run_grouped(workload: Workload, base: str, steps: int, warmup: int, threads: int) -> Measurement:
    """Batches of similar length, drawn by Trainer's own length-grouped sampler.

    The sampler sorts within groups of 50 batches, longest first: its first steps would hold nothing but long
    sequences. So it orders the whole pool, and the steps taken are spread evenly over the first group. The order and
    the examples differ from the other contenders', and so do the losses.
    """
    size = workload.batch_size
    sampler = LengthGroupedSampler(
        size, lengths=[len(s) for s in workload.pool], generator=torch.Generator().manual_seed(0)
    )
    order = list(sampler)
    wanted, group = warmup + steps, 50
    if wanted > group:
        raise ValueError(f"{wanted} steps asked for, but a length group holds {group} batches; use fewer --steps")
    picked = [int((k + 0.5) * group / wanted) for k in range(wanted)]
    # Steps in an order of their own, so that the warm-up is not always the longest.
    shuffled = [picked[k] for k in torch.randperm(wanted, generator=torch.Generator().manual_seed(0)).tolist()]
    sequences = [workload.pool[i] for batch in shuffled for i in order[batch * size : (batch + 1) * size]]
    return _run(sequences, size, base, warmup, threads, same_order=False)


def attach_lora(model: Any) -> PeftModel:
    """PEFT's LoRA on all linear layers but the head, with the common initial weights."""
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = get_peft_model(model, config)
    with torch.no_grad():
        for path, module in tuned.get_base_model().named_modules():
            if hasattr(module, "lora_A"):
                weight = module.lora_A["default"].weight
                weight.copy_(torch.from_numpy(initial_lora_a(path, weight.shape[1])))
                assert not module.lora_B["default"].weight.any()
    return tuned


def attach_soft_prompt(model: Any, config: PeftConfig) -> PeftModel:
    """A soft prompt of PEFT with the common initial weights."""
    tuned = get_peft_model(model, config)
    weight = tuned.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        weight.copy_(torch.from_numpy(initial_soft_prompt(*weight.shape)))
    return tuned


class Recorder(TrainerCallback):
    """The clock of one run: seconds between Trainer's step begin and step end, which exclude loading and collating.

    `watch(trainer)` also notes each step's loss and its count of real and supervised tokens.
    """

    def __init__(self) -> None:
        self.time_s: list[float] = []
        self.losses: list[float] = []
        self.tokens: list[int] = []
        self.supervised: list[int] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        for column in (self.tokens, self.supervised, self.losses):
            column.append(0)
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.time_s.append(time.perf_counter() - self._began)

    def watch(self, trainer: Trainer) -> None:
        """Wraps the trainer's step: its log rounds the losses, its return value is exact.

        An optimizer step of several micro-batches calls it several times; each loss is a sum over its own targets
        divided by the count of the whole step's, so that they add up to the step's mean.
        """
        step = trainer.training_step

        def training_step(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
            real = inputs.get("attention_mask")
            self.tokens[-1] += int(inputs["input_ids"].numel() if real is None else real.sum())
            self.supervised[-1] += int((inputs["labels"] != -100).sum())
            loss: torch.Tensor = step(model, inputs, *args, **kwargs)
            self.losses[-1] += loss.item()
            return loss

        trainer.training_step = training_step
        trainer.add_callback(self)

    def measurement(self, warmup: int, memory: PeakMemory, same_order: bool, *packages: str) -> Measurement:
        """What was recorded."""
        return Measurement(
            warmup=warmup,
            tokens=self.tokens,
            supervised=self.supervised,
            time_s=self.time_s,
            losses=self.losses,
            peak_memory_bytes=memory.above_base(),
            same_order=same_order,
            versions=versions("torch", "transformers", "accelerate", "peft", *packages),
        )


def common_arguments(output: str, batch_size: int, steps: int, learning_rate: float = LEARNING_RATE) -> dict[str, Any]:
    """The training arguments that both Trainer and TRL are given."""
    return {
        "output_dir": output,
        "per_device_train_batch_size": batch_size,
        "max_steps": steps,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,  # 0 switches clipping off
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
    }


def _run_soft(config: PeftConfig, workload: Workload, base: str, steps: int, warmup: int, threads: int) -> Measurement:
    return _run(
        workload.first(warmup + steps),
        workload.batch_size,
        base,
        warmup,
        threads,
        same_order=True,
        attach=lambda model: attach_soft_prompt(model, config),
        learning_rate=SOFT_LEARNING_RATE,
    )


def _run(
    sequences: list[Sequence],
    batch_size: int,
    base: str,
    warmup: int,
    threads: int,
    same_order: bool,
    attach: Callable[[Any], PeftModel] = attach_lora,
    learning_rate: float = LEARNING_RATE,
) -> Measurement:
    rows = [{"input_ids": torch.from_numpy(s.tokens), "labels": torch.from_numpy(s.labels)} for s in sequences]
    model = load_base(base, threads)
    memory = PeakMemory()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            **common_arguments(folder, batch_size, len(sequences) // batch_size, learning_rate),
            train_sampling_strategy="sequential",
        )
        trainer = Trainer(attach(model), arguments, data_collator=_pad, train_dataset=rows)
        recorder = Recorder()
        recorder.watch(trainer)
        trainer.train()
    return recorder.measurement(warmup, memory, same_order)


def _pad(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """To the longest of the batch, on the right. The padding id is never looked at."""
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    return {
        "input_ids": pad_sequence([row["input_ids"] for row in rows], batch_first=True),
        "labels": pad_sequence([row["labels"] for row in rows], batch_first=True, padding_value=-100),
        "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
    }
