"""`--to peft`: a LoRA, a prefix or a soft prompt as PEFT's folder.

PEFT gives what was learned its place on the run's base. Beside it lies, for programs that take a cache of keys and
values and no prompt of PEFT's, what a prefix or a soft prompt comes to: its keys and values in every layer.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from heptune.core.errors import UsageError
from heptune.models.anatomy import Anatomy
from heptune.models.prefix import record
from heptune.models.quiet import quiet
from heptune.shipping.job import Job, require_type
from heptune.shipping.merged import HEAD, head_files
from heptune.shipping.parity import Consumer, Tolerance
from heptune.shipping.tokenizer import read_tokenizer, write_tokenizer
from heptune.shipping.voices import HeadVoice, PlainVoice
from heptune.techniques import _peft

KEYS_AND_VALUES = "prefix_kv.safetensors"


def check(job: Job) -> None:
    """Raises `UsageError` where the run is nothing that PEFT has, or PEFT is not there to prove it."""
    require_type(job, ["f32"], "peft")
    if not (job.run.artifact / _peft.CONFIG_FILE).is_file() or not (job.run.artifact / _peft.WEIGHTS_FILE).is_file():
        way = "--to hf" if "mergeable" in job.technique.capabilities else "--to adapterhub"
        raise UsageError(
            f"{job.run.folder} was tuned with {job.technique.name}, which PEFT does not have; choose {way}"
        )
    job.require_alone()
    if importlib.util.find_spec("peft") is None:
        raise UsageError(
            "an export to PEFT counts when PEFT has loaded it and says the same, and PEFT is not installed: "
            f"`pip install peft`. {job.run.artifact} has PEFT's layout as it is, unproven here"
        )


def tolerance(job: Job) -> Tolerance:
    """The tensors are the run's own, in float32."""
    return job.tolerance("f32")


def write(job: Job, folder: Path) -> None:
    """Writes PEFT's folder into an empty one, and the tokenizer with the run's template."""
    artifact = job.run.artifact
    base, anatomy, template = job.bare()
    config = json.loads((artifact / _peft.CONFIG_FILE).read_text("utf-8"))
    config["base_model_name_or_path"] = job.base_name
    if not anatomy.causal:
        config["task_type"] = "FEATURE_EXTRACTION"
    (folder / _peft.CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    shutil.copy2(artifact / _peft.WEIGHTS_FILE, folder / _peft.WEIGHTS_FILE)
    if job.has_head:
        head = job.head(anatomy)
        assert head is not None
        head_files(job, head, folder)
    rows = job.technique.restore(anatomy, artifact).rows()
    if rows.positions and anatomy.causal:
        save_file(_keys_and_values(anatomy, rows), folder / KEYS_AND_VALUES)
    write_tokenizer(base.tokenizer, template, folder)


def consumers(job: Job, folder: Path) -> Iterator[Consumer]:
    """PEFT loads it onto the run's base."""
    peft = _library()
    base, anatomy, template = job.floating()
    with quiet():
        model: Any = peft.PeftModel.from_pretrained(base.model, str(folder)).eval()
    tokens, written = read_tokenizer(folder, template)
    if not job.has_head:
        yield Consumer("PEFT", PlainVoice(model, template.stop_tokens), tokens, written)
        return
    head = {name: tensor.to(model.device) for name, tensor in load_file(folder / HEAD).items()}

    def states(ids: torch.Tensor) -> torch.Tensor:
        if not anatomy.causal:
            found: torch.Tensor = model(input_ids=ids).last_hidden_state[0]
            return found
        # Of a causal model PEFT gives logits; the states that they are made of come with them.
        found = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[-1][0]
        return found

    yield Consumer("PEFT", HeadVoice(states, head["weight"], head["bias"]), tokens)


@cache
def _library() -> Any:
    """PEFT. It imports bitsandbytes, which on some processors advises to install a kernel that is not used here."""
    log = logging.getLogger("bitsandbytes")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        return importlib.import_module("peft")
    finally:
        log.setLevel(level)


@torch.no_grad()
def _keys_and_values(anatomy: Anatomy, rows: Any) -> dict[str, torch.Tensor]:
    """What stands before every sequence, by layer: key.0, value.0, ... [K, P, D] each, as they enter the cache."""
    found = rows.prefix
    if found is None:
        found = record(anatomy, -1 - torch.arange(rows.front + rows.inner, device=rows.vectors.device))
    names = [f"{kind}.{layer}" for layer in range(len(found) // 2) for kind in ("key", "value")]
    return {name: tensor.float().cpu().contiguous() for name, tensor in zip(names, found, strict=True)}
