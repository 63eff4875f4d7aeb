"""`--to gguf --lora-only`: a LoRA as a GGUF file that llama.cpp puts onto the base's own.

    blk.0.attn_q.weight.lora_a [rank, in], blk.0.attn_q.weight.lora_b [out, rank], adapter.lora.alpha

llama.cpp adds alpha / rank * B A x, the rank from the tensors' shapes. Where a LoRA's scale is another (it is
rank-stabilised, or alphas differ by site), B is written in the scale that makes it the same. llama.cpp reads the file
back where llama-cpp-python is installed; Heptune reads it in any case, names, order and scale undone.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import torch

from heptune.core.errors import UsageError
from heptune.core.events import Note
from heptune.models.anatomy import Anatomy
from heptune.shipping import gguf_model, llama_cpp, modelfile
from heptune.shipping.gguf_architecture import Architecture
from heptune.shipping.job import Job, require_type
from heptune.shipping.parity import Consumer, Tolerance
from heptune.shipping.tokenizer import tokens_agree
from heptune.shipping.voices import PlainVoice
from heptune.techniques import _lora_peft, _peft

TYPES = ("f32", "f16")


def check(job: Job) -> None:
    """Raises `UsageError` where the run is no LoRA that llama.cpp could apply."""
    require_type(job, TYPES, "a LoRA as GGUF")
    job.require_words("a GGUF file")
    config = job.run.artifact / _peft.CONFIG_FILE
    if not config.is_file() or json.loads(config.read_text("utf-8")).get("peft_type") != "LORA":
        raise UsageError(
            f"{job.run.folder} was tuned with {job.technique.name}, which is no LoRA; leave --lora-only out, or serve "
            "it with `heptune serve`"
        )
    job.require_alone()
    gguf_model.require_writable(job)


def tolerance(job: Job) -> Tolerance:
    """The base is compared in float32."""
    return job.tolerance(require_type(job, TYPES, "a LoRA as GGUF"))


def write(job: Job, folder: Path) -> None:
    """Writes the file and an Ollama Modelfile into an empty folder."""
    kind = require_type(job, TYPES, "a LoRA as GGUF")
    _, anatomy, template = job.bare()
    architecture = Architecture.of(anatomy)
    stored = _lora_peft.read(job.run.artifact, anatomy)
    if stored.config.get("use_dora") or stored.own_head:
        what = "magnitudes of its own (DoRA)" if stored.config.get("use_dora") else "an own copy of the head"
        raise UsageError(f"{job.run.folder} has {what}, which llama.cpp's LoRA has no place for; leave --lora-only out")
    alpha = float(stored.config["lora_alpha"])
    path = folder / f"{job.run.folder.resolve().name}-lora.gguf"
    writer = gguf.GGUFWriter(path, architecture.name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    dtype = {"f32": np.float32, "f16": np.float16}[kind]
    for site, size in stored.sizes.items():
        a = stored.tensors[_lora_peft.name(site.path, "A")]
        b = stored.tensors[_lora_peft.name(site.path, "B")]
        scale = size.alpha / (math.sqrt(size.rank) if stored.config.get("use_rslora") else size.rank)
        b = b.float() * (scale / (alpha / size.rank))
        name = architecture.tensor_name(f"{site.path}.weight")
        writer.add_tensor(f"{name}.lora_a", a.float().contiguous().numpy().astype(dtype))
        writer.add_tensor(f"{name}.lora_b", architecture.in_order(site.path, b).contiguous().numpy().astype(dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    context = modelfile.context_of(anatomy, job.settings.max_length)
    text = modelfile.of_lora(path.name, job.base_name, template, job.task, context)
    (folder / "Modelfile").write_text(text, "utf-8")


def consumers(job: Job, folder: Path) -> Iterator[Consumer]:
    """Heptune reads it onto the run's base; then llama.cpp, with the base as a GGUF file of its own for the moment."""
    (path,) = folder.glob("*.gguf")
    base, anatomy, template = job.floating()
    _apply(path, anatomy)
    yield Consumer("Heptune", PlainVoice(base.model, template.stop_tokens))
    if not llama_cpp.is_there():
        job.listener(Note(llama_cpp.MISSING))
        return
    with tempfile.TemporaryDirectory(dir=folder) as place:  # gone before the folder takes its name
        whole = _write_base(replace(job, type="f32"), Path(place))
        with llama_cpp.opened(whole, template.stop_tokens, path) as own:
            yield Consumer("llama.cpp", own, tokens_agree(template, own.encode))


@torch.no_grad()
def _apply(path: Path, anatomy: Anatomy) -> None:
    """Adds what a LoRA file says to a base's weights."""
    reader = gguf.GGUFReader(path)
    alpha = float(reader.fields[gguf.Keys.Adapter.LORA_ALPHA].contents())
    tensors = {tensor.name: torch.from_numpy(np.array(tensor.data, np.float32)) for tensor in reader.tensors}
    architecture = Architecture.of(anatomy)
    for site in anatomy.sites:
        name = architecture.tensor_name(f"{site.path}.weight")
        a, b = tensors.pop(f"{name}.lora_a", None), tensors.pop(f"{name}.lora_b", None)
        if a is None or b is None:
            continue
        module = anatomy.module(site)
        if module.weight is anatomy.model.get_input_embeddings().weight:
            module.weight = torch.nn.Parameter(module.weight.detach().clone(), requires_grad=False)
        change = alpha / len(a) * (architecture.out_of_order(site.path, b) @ a)
        module.weight += change.to(module.weight.device, module.weight.dtype)
    if tensors:
        raise UsageError(f"{path} has tensors for no place of this base: {', '.join(tensors)}")


def _write_base(job: Job, folder: Path) -> Path:
    base, anatomy, template = job.floating()
    return gguf_model.write_file(job, folder, base, anatomy, template, "f32")
