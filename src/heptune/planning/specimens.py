"""Tiny random models of an architecture, in which every size has a value of its own.

A real configuration (or a family's default one) keeps what decides how it computes: biases, norms, windows, soft caps,
what its layers are. Its sizes are replaced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModel, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from heptune.core.errors import BaseModelError
from heptune.models.anatomy import ENCODERS, dissect, is_encoder, without_pooler
from heptune.models.quiet import quiet


@dataclass(frozen=True)
class Sizes:
    """The sizes of one specimen and of the pass through it, named as in `planning/forms.py`."""

    d: int
    f: int
    K: int
    G: int
    D: int
    V: int
    r: int
    P: int
    m: int
    e: int
    B: int
    l: int  # noqa: E741
    blocks: tuple[int, int, int]  # rows of the attention blocks
    keys: tuple[int, int, int]  # and the keys they meet
    C: int
    c: int
    X: int  # experts
    w: int  # and their width
    Z: int  # positions
    Y: int  # classes of a linear head


# Three are needed to tell one product of sizes from another; the values have few factors in common.
SPECIMENS = (
    Sizes(120, 104, 2, 3, 8, 211, 5, 9, 7, 10, 3, 17, (29, 33, 24), (26, 57, 68), 11, 8, 10, 48, 523, 17),
    Sizes(168, 136, 3, 2, 16, 251, 7, 11, 13, 14, 5, 11, (37, 27, 41), (34, 49, 81), 14, 9, 13, 72, 541, 29),
    Sizes(280, 184, 5, 4, 24, 307, 9, 13, 10, 26, 4, 13, (31, 28, 35), (29, 46, 73), 13, 7, 18, 112, 557, 23),
)


def specimen(
    architecture: str | PretrainedConfig, sizes: Sizes, layers: int, dtype: torch.dtype, tied: bool | None = None
) -> PreTrainedModel:
    """A random model of the architecture (transformers' model type, or a configuration) with these sizes.

    `tied`: whether the head is the embedding; None: as the configuration says.
    """
    model = _build(_config(architecture, sizes, layers, tied, free=True), dtype)
    anatomy = dissect(model)
    reads = {site.in_features for site in anatomy.sites if site.role == "attention.o"}
    if reads - {anatomy.shape.heads * anatomy.shape.head_width}:  # its heads are always hidden / heads wide
        model = _build(_config(architecture, sizes, layers, tied, free=False), dtype)
    return model.eval().requires_grad_(False)


def _build(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    try:
        with torch.random.fork_rng(devices=[]), quiet():
            torch.manual_seed(0)
            if not is_encoder(config):
                return AutoModelForCausalLM.from_config(config, dtype=dtype)
            return without_pooler(AutoModel.from_config(config, dtype=dtype))
    except (ValueError, TypeError, KeyError, RuntimeError) as problem:
        raise BaseModelError(
            f"no small {config.model_type} could be made to count on: {str(problem).splitlines()[0]}; such a base "
            "cannot be planned yet"
        ) from problem


def _config(
    architecture: str | PretrainedConfig, sizes: Sizes, layers: int, tied: bool | None, free: bool
) -> PretrainedConfig:
    """`free`: the width of a head does not follow from the hidden width, where a configuration can say so."""
    if isinstance(architecture, str):
        if architecture not in CONFIG_MAPPING:
            raise BaseModelError(f"transformers knows no architecture {architecture!r}")
        kind = CONFIG_MAPPING[architecture]
        given = kind().to_dict()
    else:
        kind, given = type(architecture), architecture.to_dict()
    names = {**{name: name for name in given}, **{new: old for new, old in kind.attribute_map.items() if old in given}}
    if free and "num_key_value_heads" in names:
        names.setdefault("head_dim", "head_dim")
    elif not free:
        names.pop("head_dim", None)
        given.pop("head_dim", None)
    changes = {names[name]: new for name, new in _replaced(given, names, sizes, layers).items() if name in names}
    if tied is not None:
        changes["tie_word_embeddings"] = tied
    dropped = ("model_type", "architectures", "transformers_version", "dtype", "rope_scaling", "no_rope_layers")
    kept = {name: old for name, old in given.items() if name not in dropped and not name.startswith("_")}
    return kind(**{**kept, **changes})


def _replaced(given: dict[str, Any], names: dict[str, str], sizes: Sizes, layers: int) -> dict[str, Any]:
    """The new value of every size that a configuration may have."""
    grouped = "num_key_value_heads" in given
    kv_heads, groups = sizes.K, sizes.G if grouped else 1
    heads = kv_heads * groups
    hidden = sizes.d if "head_dim" in names else heads * sizes.D
    found: dict[str, Any] = {
        "hidden_size": hidden,
        "intermediate_size": sizes.f,
        "n_inner": sizes.f,
        "ffn_dim": sizes.f,
        "hidden_dim": sizes.f,
        "word_embed_proj_dim": hidden,
        "embedding_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": sizes.D,
        **dict.fromkeys(("num_local_experts", "n_routed_experts", "num_experts"), sizes.X),
        "moe_intermediate_size": sizes.w,
        "vocab_size": sizes.V,
        "max_position_embeddings": sizes.Z,
        "original_max_position_embeddings": sizes.Z,
        "rotary_dim": sizes.D // 4,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "cls_token_id": None,
        "sep_token_id": None,
    }
    if given.get("layer_types"):
        kinds = list(dict.fromkeys(given["layer_types"]))
        found["layer_types"] = [kinds[i % len(kinds)] for i in range(layers)]
    if given.get("model_type") in ENCODERS and (given.get("pad_token_id") or 0) < sizes.V:
        found["pad_token_id"] = given.get("pad_token_id")  # RoBERTa counts positions from there on
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout", "hidden_dropout"):
        found[name] = 0.0
    return found
