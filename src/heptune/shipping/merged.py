"""`--to hf`: one model with everything in its weights, as transformers loads it.

A base in 4 bits is put back into floating point first, with the weights that it computed with: what was learned would
be rounded away in 4 bits. A linear head that tags tokens becomes transformers' own (AutoModelForTokenClassification)
where the architecture has one that computes the same; any other head lies beside the model, in head.safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from heptune.models.anatomy import without_pooler
from heptune.models.quiet import quiet
from heptune.models.readout import Readout
from heptune.shipping.job import TYPES, Job, require_type
from heptune.shipping.parity import Consumer, Tolerance
from heptune.shipping.tokenizer import read_tokenizer, write_tokenizer
from heptune.shipping.voices import HeadVoice, PlainVoice, TaggerVoice
from heptune.tasks.tag import Tag
from heptune.tasks.template import ChatTemplate

HEAD, HEAD_CONFIG = "head.safetensors", "head.json"


def check(job: Job) -> None:
    """Raises an error where a merged model cannot be."""
    require_type(job, list(TYPES), "hf")
    job.require_mergeable("a merged model")


def tolerance(job: Job) -> Tolerance:
    """What the type's rounding explains."""
    return job.tolerance(require_type(job, list(TYPES), "hf"))


def write(job: Job, folder: Path) -> None:
    """Writes model, tokenizer, chat template and generation settings into an empty folder."""
    kind = TYPES[require_type(job, list(TYPES), "hf")]
    base, anatomy, template = job.merged()
    head = job.head(anatomy) if job.has_head else None
    model: Any = base.model
    if head is not None:
        tagger = tagger_of(model, head, job.task)
        if tagger is not None:
            model, head = tagger, None
    if anatomy.causal and model is base.model:
        model.generation_config = _generation(base.tokenizer, template)
    with quiet():
        model.to(kind).save_pretrained(folder, max_shard_size=job.shard)
    write_tokenizer(base.tokenizer, template, folder)
    if head is not None:
        head_files(job, head, folder)


def head_files(job: Job, head: Readout, folder: Path) -> None:
    """Writes a linear head beside the model that it reads: weight [C, d], bias [C]; and what it means."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in head.named_parameters()}, folder / HEAD)
    (folder / HEAD_CONFIG).write_text(json.dumps(_described(job), indent=2, ensure_ascii=False) + "\n", "utf-8")


def consumers(job: Job, folder: Path) -> Iterator[Consumer]:
    """Loaded back by transformers, as anybody would. It computes in float32: what is compared are the weights."""
    _, _, template = job.bare()
    tokens, written = read_tokenizer(folder, template)
    if not job.has_head:
        model = _loaded(transformers.AutoModelForCausalLM, folder)
        yield Consumer("transformers", PlainVoice(model, template.stop_tokens), tokens, written)
    elif not (folder / HEAD).exists():
        yield Consumer(
            "transformers", TaggerVoice(_loaded(transformers.AutoModelForTokenClassification, folder)), tokens
        )
    else:
        model = without_pooler(_loaded(transformers.AutoModel, folder))
        head = load_file(folder / HEAD)
        voice = HeadVoice(lambda ids: model(input_ids=ids).last_hidden_state[0], head["weight"], head["bias"])
        yield Consumer("transformers", voice, tokens)


def tagger_of(model: Any, head: Readout, task: Any) -> Any:
    """The model of transformers that tags with this head; None where it has none that computes the same."""
    if not isinstance(task, Tag):
        return None
    config = type(model.config).from_dict(model.config.to_dict())
    config.id2label = dict(enumerate(task.tags))
    config.label2id = {tag: number for number, tag in enumerate(task.tags)}
    try:
        with quiet(), torch.device("meta"):
            found = transformers.AutoModelForTokenClassification.from_config(config)
    except ValueError:  # there is none for this architecture
        return None
    inner = found.base_model_prefix
    outside = [name for name, _ in found.named_parameters() if not name.startswith(f"{inner}.")]
    ends = {name.rpartition(".")[0] for name in outside}
    if len(ends) != 1 or {name.rpartition(".")[2] for name in outside} != {"weight", "bias"}:
        return None  # something stands between the states and the classes
    setattr(found, inner, getattr(model, model.base_model_prefix, model))
    classifier = found.get_submodule(ends.pop())
    classifier.weight = torch.nn.Parameter(head.weight.detach().clone())
    classifier.bias = torch.nn.Parameter(head.bias.detach().clone())
    return found


def _loaded(loader: Any, folder: Path) -> Any:
    with quiet():
        return loader.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False, local_files_only=True
        ).eval()


def _generation(tokenizer: Any, template: ChatTemplate) -> transformers.GenerationConfig:
    """Every token that ends a reply ends it; nothing of the base's ways of sampling is kept."""
    stops = list(template.stop_tokens)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0]
    return transformers.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=stops if len(stops) > 1 else stops[0], pad_token_id=padding
    )


def _described(job: Job) -> dict[str, Any]:
    """What head.json says of the head: the classes in order, where it looks, and how a class is decided."""
    task = job.task
    if isinstance(task, Tag):
        return {"task": task.name, "classes": list(task.tags), "looks_at": "every token", "decides": "softmax"}
    looks = task.pooling or ("last" if _speaks(job) else "mean")
    decides = "sigmoid of each" if task.several else "softmax"
    return {"task": task.name, "classes": list(task.labels), "looks_at": looks, "decides": decides}


def _speaks(job: Job) -> bool:
    """Whether the base is a decoder: an encoder has no chat template."""
    return bool(job.run.manifest["template"])
