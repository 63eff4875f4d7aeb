"""`--to gguf`: the merged model as one GGUF file, for llama.cpp, Ollama and what else is built on them.

transformers reads the file back, and llama.cpp itself where llama-cpp-python is installed.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from heptune.core.events import Note, Progress
from heptune.models.anatomy import Anatomy
from heptune.models.gguf_file import read_gguf
from heptune.models.load import Base, load_tokenizer, read_config
from heptune.shipping import gguf_vocabulary, llama_cpp, modelfile
from heptune.shipping.gguf_architecture import (
    ROPE_FREQUENCIES,
    Architecture,
    describe,
    packed,
    parameters,
    require,
    rope_divisors,
)
from heptune.shipping.gguf_vocabulary import Vocabulary
from heptune.shipping.job import Job, require_type
from heptune.shipping.parity import Consumer, Tolerance
from heptune.shipping.tokenizer import encoded_by, rendered_by, template_agrees, tokens_agree
from heptune.shipping.voices import PlainVoice
from heptune.tasks.template import ChatTemplate

TYPES = ("f16", "q8_0", "f32", "bf16")
# What the file says of its own type; readers go by the tensors.
_FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}


def check(job: Job) -> None:
    """Raises an error where the run cannot be one file."""
    require_type(job, TYPES, "gguf")
    job.require_words("a GGUF file")
    job.require_mergeable("a GGUF file")
    require_writable(job)


def require_writable(job: Job) -> None:
    """Raises `BaseModelError` where GGUF has no name for the base's architecture or tokenizer; no weights are read."""
    config = transformers.AutoConfig.for_model(**read_config(job.base_place, listener=job.listener))
    require(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type], config)
    Vocabulary.of(load_tokenizer(job.base_place, listener=job.listener), config.vocab_size)


def tolerance(job: Job) -> Tolerance:
    """What the type's rounding explains."""
    return job.tolerance(require_type(job, TYPES, "gguf"))


def write(job: Job, folder: Path) -> None:
    """Writes the file and an Ollama Modelfile into an empty folder."""
    kind = require_type(job, TYPES, "gguf")
    base, anatomy, template = job.merged()
    path = write_file(job, folder, base, anatomy, template, kind)
    context = modelfile.context_of(anatomy, job.settings.max_length)
    (folder / "Modelfile").write_text(modelfile.of_model(path.name, template, job.task, context), "utf-8")


def write_file(job: Job, folder: Path, base: Base, anatomy: Anatomy, template: ChatTemplate, kind: str) -> Path:
    """Writes a model as it is now as a GGUF file, named after the run. Raises `BaseModelError` for an architecture or a
    tokenizer that the format has no name for."""
    architecture = Architecture.of(anatomy)
    vocabulary = Vocabulary.of(base.tokenizer, anatomy.model.get_input_embeddings().weight.shape[0])
    name = job.run.folder.resolve().name
    path = folder / f"{name}-{kind}.gguf"
    writer = gguf.GGUFWriter(path, architecture.name)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(f"{name}, tuned from {job.base_name}")
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    describe(writer, anatomy)
    gguf_vocabulary.write(writer, vocabulary, base.tokenizer, template)
    _write_tensors(writer, architecture, job, anatomy, kind)
    return path


def _write_tensors(writer: gguf.GGUFWriter, architecture: Architecture, job: Job, anatomy: Anatomy, kind: str) -> None:
    """First what all of them are, then one after the other: no second copy of the model is in memory."""
    found = [(architecture.tensor_name(name), name, tensor) for name, tensor in parameters(anatomy.model)]
    divisors = rope_divisors(anatomy)
    if divisors is not None:
        found.append((ROPE_FREQUENCIES, ROPE_FREQUENCIES, divisors))
    for gguf_name, _, tensor in found:
        data, chosen = packed(tensor[:1] if tensor.ndim > 1 else tensor, kind)
        rows = (len(tensor), *data.shape[1:]) if tensor.ndim > 1 else data.shape
        writer.add_tensor_info(
            gguf_name, rows, data.dtype, data.nbytes * (len(tensor) if tensor.ndim > 1 else 1), chosen
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, (_, name, tensor) in enumerate(found, 1):
        writer.write_tensor_data(packed(architecture.in_order(name, tensor), kind)[0])
        job.listener(Progress("writing tensors", done, len(found), "tensors"))
    writer.close()


def consumers(job: Job, folder: Path) -> Iterator[Consumer]:
    """The reader of transformers, then llama.cpp."""
    (path,) = folder.glob("*.gguf")
    _, _, template = job.bare()
    with_llama = llama_cpp.is_there()
    model, tokenizer = read_gguf(path)
    _stretch(model, path)
    alike = tokens_agree(template, encoded_by(tokenizer))
    if not alike and with_llama:
        job.listener(Note("transformers reads the file's tokenizer otherwise than the run does; llama.cpp decides"))
    voice = PlainVoice(model, template.stop_tokens)
    written = template_agrees(template, rendered_by(tokenizer))
    yield Consumer("transformers", voice, None if with_llama and not alike else alike, written)
    del model, voice
    gc.collect()
    if with_llama:
        with llama_cpp.opened(path, template.stop_tokens) as own:
            yield Consumer("llama.cpp", own, tokens_agree(template, own.encode), None)
    else:
        job.listener(Note(llama_cpp.MISSING))


def _stretch(model: Any, path: Path) -> None:
    """Divides the frequencies of rotary positions as the file says, which transformers 5.23 leaves out."""
    reader = gguf.GGUFReader(path)
    rotary = model.get_decoder().rotary_emb
    for name, field in reader.fields.items():
        if name.endswith(".rope.scaling.factor"):
            rotary.inv_freq /= float(field.contents())
    for tensor in reader.tensors:
        if tensor.name == ROPE_FREQUENCIES:
            rotary.inv_freq /= torch.from_numpy(np.array(tensor.data))
