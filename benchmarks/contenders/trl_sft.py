"""TRL's SFTTrainer with PEFT: as it comes, and packed, its best setting.

Two of its defaults are switched off in both, because they would make the comparison a mockery on a CPU: bfloat16
(emulated there, about nine times slower) and activation recomputation (which trades time for memory).
"""

from __future__ import annotations

import tempfile
from typing import Any

import datasets
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer
from workloads import Sequence, Workload

from contenders import Measurement, PeakMemory, load_base
from contenders.trainer_peft import Recorder, attach_lora, common_arguments

ROW = 1024


def run(workload: Workload, base: str, steps: int, warmup: int, threads: int) -> Measurement:
    """Padded batches in the workload's own order."""
    return _run(
        workload.first(warmup + steps),
        base,
        warmup,
        threads,
        same_order=True,
        **common_arguments("", workload.batch_size, warmup + steps),
        train_sampling_strategy="sequential",
    )


def run_packed(workload: Workload, base: str, steps: int, warmup: int, threads: int) -> Measurement:
    """Best-fit-decreasing packing: full rows without padding, as many tokens a step as the others' steps have.

    With this strategy TRL flattens its batch into one row and resets the positions at every document. Attention is
    torch's scaled-dot-product (the fused kernels TRL recommends need a GPU); transformers finds the documents by their
    positions and masks across them, because TRL hands over no attention mask and no cache. That attention costs the
    square of the row, so a step longer than `ROW` tokens is accumulated from several rows.

    The whole pool is packed, then drawn at random (seeded): rows come out longest documents first. The examples of a
    step differ from the other contenders', and so do the losses.
    """
    tokens = workload.tokens_per_batch(warmup + steps)
    rows = max(1, round(tokens / ROW))
    longest = max(map(len, workload.pool))
    return _run(
        list(workload.pool),
        base,
        warmup,
        threads,
        same_order=False,
        **common_arguments("", 1, warmup + steps),
        gradient_accumulation_steps=rows,
        packing=True,
        packing_strategy="bfd",
        max_length=max(round(tokens / rows), longest),  # no document may be cut
    )


def _run(
    sequences: list[Sequence], base: str, warmup: int, threads: int, same_order: bool, **arguments: Any
) -> Measurement:
    datasets.disable_progress_bars()
    data = datasets.Dataset.from_dict(
        {
            "input_ids": [s.tokens.tolist() for s in sequences],
            "completion_mask": [s.supervised.astype(int).tolist() for s in sequences],
        }
    )
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = load_base(base, threads)
    memory = PeakMemory()
    with tempfile.TemporaryDirectory() as folder:
        # Without completion_only_loss=True the mask of tokenized data is ignored and every token is a target.
        config = SFTConfig(**(arguments | {"output_dir": folder}), completion_only_loss=True)
        trainer = SFTTrainer(attach_lora(model), config, train_dataset=data, processing_class=tokenizer)
        recorder = Recorder()
        recorder.watch(trainer)
        trainer.train()
    return recorder.measurement(warmup, memory, same_order, "trl", "datasets")
