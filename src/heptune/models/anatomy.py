"""The anatomy of a language model: where a technique can touch it, whatever the architecture calls it.

Techniques ask for roles, never for module names of one architecture. A linear site is one matrix y = Wx + b:

    attention.q  attention.k  attention.v  attention.o     or fused: attention.qkv
    mlp.gate  mlp.up  mlp.down                             or fused: mlp.gate_up
    head                                                   hidden state -> logits (an encoder has none)

Names differ between architectures, so a site is recognised by its module's type, its own name, and whether it lies in
the attention or the MLP of a decoder layer; a linear whose shape contradicts its role is no site.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from heptune.core.errors import BaseModelError, TechniqueError
from heptune.models.quantization import QuantizedLinear
from heptune.models.shape import ModelShape, Site

# The last part of a module's path -> what it does inside an attention or an MLP.
_ATTENTION_NAMES = {
    "q": ("q_proj", "query", "query_proj", "q_lin", "wq"),
    "k": ("k_proj", "key", "key_proj", "k_lin", "wk"),
    "v": ("v_proj", "value", "value_proj", "v_lin", "wv"),
    "qkv": ("qkv_proj", "query_key_value", "c_attn", "wqkv", "qkv", "attn_qkv", "Wqkv"),
    "o": ("o_proj", "out_proj", "out_lin", "dense", "c_proj", "wo", "Wo", "attn_out"),
}
_MLP_NAMES = {
    "gate": ("gate_proj", "w1"),
    "up": ("up_proj", "w3", "fc1", "fc_in", "c_fc", "dense_h_to_4h", "lin1"),
    "gate_up": ("gate_up_proj", "Wi"),
    "down": ("down_proj", "w2", "fc2", "fc_out", "c_proj", "dense_4h_to_h", "lin2", "Wo"),
}
# The same for modules whose own name says nothing: BERT's intermediate.dense and output.dense.
_MLP_PARENTS = {"up": ("intermediate",), "down": ("output",)}

_WRITES_HIDDEN = ("attention.o", "mlp.down")


@dataclass
class Placement:
    """Where a technique's virtual tokens stand in an example: `front` before everything, `inner` before the first
    supervised token. `prefix` positions are taken by keys and values that stand before it."""

    front: int = 0
    inner: int = 0
    prefix: int = 0

    @property
    def positions(self) -> int:
        """Positions that an example's own tokens cannot have. A prefix may stand in for virtual tokens in front."""
        return max(self.front + self.inner, self.prefix)


@dataclass(frozen=True)
class Anatomy:
    """A model taken apart: `decoder` gives hidden states, `head` turns them into logits. What a technique puts among
    the input's tokens stands in `placement`.

    An encoder (not `causal`: every token sees the whole text) is its own `decoder` and has no `head`. Its positions
    count from `first_position`.
    """

    model: nn.Module
    decoder: nn.Module
    layers: tuple[nn.Module, ...]
    layers_path: str
    final_norm: nn.Module | None
    final_norm_path: str | None
    head: nn.Module | None
    head_path: str
    sites: tuple[Site, ...]
    shape: ModelShape
    causal: bool = True
    first_position: int = 0
    placement: Placement = field(default_factory=Placement)

    def states(self, **inputs: Any) -> torch.Tensor:
        """The last hidden states for these inputs of the decoder, [B, T, d]; nothing is kept for a next call."""
        found: torch.Tensor = self.decoder(**inputs, **({"use_cache": False} if self.causal else {})).last_hidden_state
        return found

    @property
    def output_head(self) -> tuple[str, nn.Module]:
        """The head's path and the head that the base came with. Raises TechniqueError for an encoder."""
        if self.head is None:
            raise TechniqueError(
                f"{self.shape.architecture} is an encoder: it has no output head to train or to replace"
            )
        return self.head_path, self.head

    def module(self, site: Site) -> nn.Module:
        """The module that stands at a site now (a technique may have replaced the base's own)."""
        return self.model.get_submodule(site.path)

    def select(self, roles: Iterable[str]) -> tuple[Site, ...]:
        """The sites with these roles (see `ModelShape.select`)."""
        return self.shape.select(roles)


def dissect(model: nn.Module) -> Anatomy:
    """Finds the places of a causal language model, or of an encoder.

    Raises `BaseModelError` when the model has no layers with attention, or is no encoder and has no linear head.
    """
    if is_encoder(model.config):
        return _encoder(model)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if not isinstance(head, nn.Linear):
        raise BaseModelError(
            f"{type(model).__name__} has no linear output head; "
            "Heptune tunes causal language models (text in, next token out)"
        )
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    names = {id(module): name for name, module in model.named_modules()}
    layers_path, layers = _decoder_layers(decoder, names[id(decoder)], type(model).__name__)
    norm = _final_norm(decoder)
    sites = [*_layer_sites(layers, layers_path, head.in_features)]
    head_path = names[id(head)]
    sites.append(Site(None, "head", head_path, head.in_features, head.out_features, False))
    embedding = model.get_input_embeddings().weight
    heads, kv_heads, head_width = _heads(model.config.get_text_config())
    experts, expert_width, resting = _experts(model)
    shape = ModelShape(
        architecture=type(model).__name__,
        family=model.config.get_text_config().model_type,
        hidden=head.in_features,
        layers=len(layers),
        vocabulary=head.out_features,
        parameters=_count([model]),
        active_parameters=_count([model]) - resting,
        layer_parameters=tuple(_count([layer]) for layer in layers),
        final_norm_parameters=_count([norm]) if norm is not None else 0,
        head_parameters=_count([head]),
        head_tied=embedding is head.weight,
        sites=tuple(sites),
        embedding=embedding.shape[1],
        heads=heads,
        kv_heads=kv_heads,
        head_width=head_width,
        max_positions=getattr(model.config.get_text_config(), "max_position_embeddings", None),
        experts=experts,
        expert_width=expert_width,
    )
    return Anatomy(
        model=model,
        decoder=decoder,
        layers=tuple(layers),
        layers_path=layers_path,
        final_norm=norm,
        final_norm_path=names[id(norm)] if norm is not None else None,
        head=head,
        head_path=head_path,
        sites=tuple(sites),
        shape=shape,
    )


# Model types whose plain model (transformers' AutoModel) reads a text both ways, and nothing else.
ENCODERS = frozenset(
    {
        "bert",
        "roberta",
        "xlm-roberta",
        "camembert",
        "distilbert",
        "electra",
        "modernbert",
        "deberta-v2",
        "mpnet",
        "ernie",
    }
)


def without_pooler(model: Any) -> Any:
    """An encoder without the layer that only next-sentence prediction trained, where a checkpoint has it at all."""
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def is_encoder(config: Any) -> bool:
    """Whether a configuration is an encoder's."""
    return config.model_type in ENCODERS and not getattr(config, "is_decoder", False)


def _encoder(model: nn.Module) -> Anatomy:
    config = model.config
    layers_path, layers = _decoder_layers(model, "", type(model).__name__)
    norm = _final_norm(model)
    hidden = config.hidden_size
    sites = tuple(_layer_sites(layers, layers_path, hidden))
    embedding = model.get_input_embeddings().weight
    heads = config.num_attention_heads
    shape = ModelShape(
        architecture=type(model).__name__,
        family=config.model_type,
        hidden=hidden,
        layers=len(layers),
        vocabulary=embedding.shape[0],
        parameters=_count([model]),
        active_parameters=_count([model]),
        layer_parameters=tuple(_count([layer]) for layer in layers),
        final_norm_parameters=_count([norm]) if norm is not None else 0,
        head_parameters=0,
        head_tied=False,
        sites=sites,
        embedding=embedding.shape[1],
        heads=heads,
        kv_heads=heads,
        head_width=hidden // heads,
        max_positions=_positions(model),
    )
    return Anatomy(
        model=model,
        decoder=model,
        layers=tuple(layers),
        layers_path=layers_path,
        final_norm=norm,
        final_norm_path=None if norm is None else next(n for n, m in model.named_modules() if m is norm),
        head=None,
        head_path="",
        sites=sites,
        shape=shape,
        causal=False,
        first_position=_first_position(model),
    )


def _first_position(model: nn.Module) -> int:
    """RoBERTa and its kin number positions from behind the padding token's id on."""
    embeddings = getattr(model, "embeddings", None)
    counted = hasattr(type(embeddings), "create_position_ids_from_input_ids")
    return int(embeddings.padding_idx) + 1 if counted and embeddings is not None else 0


def _positions(model: nn.Module) -> int | None:
    limit = getattr(model.config, "max_position_embeddings", None)
    return None if limit is None else limit - _first_position(model)


def _count(modules: Iterable[nn.Module]) -> int:
    """Distinct parameters' elements; a weight in 4 bits counts as what it stands for."""
    counts: dict[int, int] = {}
    for module in modules:
        counts |= {id(p): p.numel() for p in module.parameters()}
        counts |= {id(m): m.shape.numel() for m in module.modules() if isinstance(m, QuantizedLinear)}
    return sum(counts.values())


def _experts(model: nn.Module) -> tuple[int, int, int]:
    """Experts of a layer, their inner width, and the parameters of all that a token does not pass through. Experts of a
    layer are stacked: [experts, ...]."""
    config = model.config.get_text_config()
    experts = getattr(config, "num_local_experts", None) or getattr(config, "n_routed_experts", None)
    experts = experts or getattr(config, "num_experts", None)
    used = getattr(config, "num_experts_per_tok", None)
    if not experts or not used:
        return 0, 0, 0
    stacked = {n: p for n, p in model.named_parameters() if ".experts." in n and p.ndim == 3 and len(p) == experts}
    resting = sum(p.numel() for p in stacked.values()) * (experts - used) // experts
    down = next((p.numel() for n, p in stacked.items() if "down" in n), 0)
    width = down // (experts * config.hidden_size)
    return (experts, width, resting) if stacked else (0, 0, 0)


def _decoder_layers(decoder: nn.Module, prefix: str, name: str) -> tuple[str, list[nn.Module]]:
    lists = [(path, m) for path, m in decoder.named_modules() if isinstance(m, nn.ModuleList) and _has_attention(m)]
    if not lists:
        raise BaseModelError(
            f"{name} has no list of decoder layers with attention; such a model has no places to tune yet"
        )
    path, layers = max(lists, key=lambda item: (len(item[1]), -len(item[0])))
    return f"{prefix}.{path}" if prefix else path, list(layers)


def _has_attention(layers: nn.ModuleList) -> bool:
    return len(layers) > 0 and any("attn" in path or "attention" in path for path, _ in layers[0].named_modules())


def _heads(config: Any) -> tuple[int, int, int]:
    """H, K and D: query heads and key/value heads of a layer, and the width of a head."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return heads, kv_heads, getattr(config, "head_dim", None) or config.hidden_size // heads


def _final_norm(decoder: nn.Module) -> nn.Module | None:
    norms = [
        m for name, m in decoder.named_children() if re.search(r"norm|ln", name) and not isinstance(m, nn.ModuleList)
    ]
    return norms[-1] if norms else None


def _layer_sites(layers: list[nn.Module], prefix: str, hidden: int) -> Iterable[Site]:
    """Every recognised linear whose shape fits its role: it reads the hidden state, or (o, down) it writes it."""
    for index, layer in enumerate(layers):
        for path, module in layer.named_modules():
            if not isinstance(module, nn.Linear | Conv1D | QuantizedLinear):
                continue
            role = _role(path)
            if role is None:
                continue
            quantized = isinstance(module, QuantizedLinear)
            transposed = module.transposed if quantized else isinstance(module, Conv1D)
            rows, columns = module.shape if quantized else module.weight.shape
            n_in, n_out = (rows, columns) if transposed else (columns, rows)
            if (n_out if role in _WRITES_HIDDEN else n_in) != hidden:
                continue
            yield Site(index, role, f"{prefix}.{index}.{path}", n_in, n_out, transposed)


def _role(path: str) -> str | None:
    """'self_attn.q_proj' -> 'attention.q'; None for a linear that is no site (a router, a gate of experts)."""
    *parents, leaf = path.split(".")
    inside = ".".join(parents)
    in_attention = "attn" in inside or "attention" in inside
    if leaf == "dense" and not in_attention:
        return next((f"mlp.{role}" for role, names in _MLP_PARENTS.items() if parents[-1:] == [*names]), None)
    table, part = (_ATTENTION_NAMES, "attention") if in_attention else (_MLP_NAMES, "mlp")
    return next((f"{part}.{role}" for role, leaves in table.items() if leaf in leaves), None)


def weight_of(module: nn.Module, transposed: bool) -> torch.Tensor:
    """The matrix of a site as [out, in]; where it is stored in 4 bits, made now and owned by nobody."""
    if isinstance(module, QuantizedLinear):
        return module.matrix()
    return module.weight.T if transposed else module.weight
