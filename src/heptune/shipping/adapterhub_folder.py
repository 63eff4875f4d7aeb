"""`--to adapterhub`: a bottleneck adapter as the library `adapters` has it.

That library cannot be installed beside this transformers, so Heptune's own reader of the layout loads it back. What the
library makes of the same folder is proven in the tests, from files that it wrote.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from heptune.core.errors import UsageError
from heptune.shipping.job import Job, require_type
from heptune.shipping.merged import HEAD, head_files
from heptune.shipping.parity import Consumer, Tolerance
from heptune.shipping.tokenizer import read_tokenizer, write_tokenizer
from heptune.shipping.voices import HeadVoice, PlainVoice
from heptune.techniques import _adapterhub


def check(job: Job) -> None:
    """Raises `UsageError` where the run is no bottleneck adapter."""
    require_type(job, ["f32"], "adapterhub")
    if not (job.run.artifact / _adapterhub.WEIGHTS_FILE).is_file():
        way = "--to hf" if "trains_base" in job.technique.capabilities else "--to peft"
        raise UsageError(
            f"{job.run.folder} was tuned with {job.technique.name}, and AdapterHub's layout is for bottleneck "
            f"adapters; choose {way}"
        )
    job.require_alone()


def tolerance(job: Job) -> Tolerance:
    """The tensors are the run's own, in float32."""
    return job.tolerance("f32")


def write(job: Job, folder: Path) -> None:
    """Writes AdapterHub's folder into an empty one, and the tokenizer with the run's template."""
    artifact = job.run.artifact
    base, anatomy, template = job.bare()
    config = json.loads((artifact / _adapterhub.CONFIG_FILE).read_text("utf-8"))
    config["model_name"] = job.base_name
    (folder / _adapterhub.CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    shutil.copy2(artifact / _adapterhub.WEIGHTS_FILE, folder / _adapterhub.WEIGHTS_FILE)
    if job.has_head:
        head = job.head(anatomy)
        assert head is not None
        head_files(job, head, folder)
    write_tokenizer(base.tokenizer, template, folder)


def consumers(job: Job, folder: Path) -> Iterator[Consumer]:
    """Heptune loads it onto the run's base."""
    base, anatomy, template = job.floating()
    job.technique.restore(anatomy, folder)
    tokens, written = read_tokenizer(folder, template)
    if not job.has_head:
        yield Consumer("Heptune", PlainVoice(base.model, template.stop_tokens), tokens, written)
        return
    head = {name: tensor.to(base.model.device) for name, tensor in load_file(folder / HEAD).items()}

    def states(ids: torch.Tensor) -> torch.Tensor:
        return anatomy.states(input_ids=ids)[0]

    yield Consumer("Heptune", HeadVoice(states, head["weight"], head["bias"]), tokens)
