"""The places that anatomy finds, in every family of tests/tiny.py and in what does not fit."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from heptune.core.errors import BaseModelError, TechniqueError
from heptune.models.anatomy import Anatomy, dissect, weight_of
from heptune.models.shape import ROLES
from tiny import FAMILIES, VOCABULARY, tiny_model

SEPARATE = {"attention.q", "attention.k", "attention.v", "attention.o"}
GATED = {"mlp.gate", "mlp.up", "mlp.down"}
ROLES_OF: dict[str, set[str]] = {
    "llama": SEPARATE | GATED,
    "qwen3": SEPARATE | GATED,
    "glm": SEPARATE | {"mlp.gate_up", "mlp.down"},
    "glm4": SEPARATE | {"mlp.gate_up", "mlp.down"},
    "gpt2": {"attention.qkv", "attention.o", "mlp.up", "mlp.down"},
    "gpt_neox": {"attention.qkv", "attention.o", "mlp.up", "mlp.down"},
    "mistral": SEPARATE | GATED,
    "gemma3": SEPARATE | GATED,
    "phi3": {"attention.qkv", "attention.o", "mlp.gate_up", "mlp.down"},
    "smollm3": SEPARATE | GATED,
    "olmo2": SEPARATE | GATED,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_has_its_roles_once(family: str) -> None:
    anatomy = dissect(tiny_model(family))
    layers = range(anatomy.shape.layers)
    want = Counter({(layer, role): 1 for layer in layers for role in ROLES_OF[family]} | {(None, "head"): 1})
    assert Counter((site.layer, site.role) for site in anatomy.sites) == want
    assert {site.role for site in anatomy.sites} <= set(ROLES)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_linear_layer_of_a_decoder_is_overlooked(family: str) -> None:
    anatomy = dissect(tiny_model(family))
    matrices = {name.removesuffix(".weight") for name, p in anatomy.model.named_parameters() if p.ndim == 2}
    embeddings = {name for name, module in anatomy.model.named_modules() if isinstance(module, nn.Embedding)}
    found = {site.path for site in anatomy.sites}
    assert found - {anatomy.head_path} == matrices - embeddings - {anatomy.head_path}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sites_sizes_are_those_of_what_it_computes(family: str) -> None:
    anatomy = dissect(tiny_model(family))
    for site in anatomy.sites:
        module = anatomy.module(site)
        x = torch.randn(2, site.in_features)
        y = module(x)
        assert y.shape == (2, site.out_features), site
        bias = module.bias if module.bias is not None else 0.0
        torch.testing.assert_close(x @ weight_of(module, site.transposed).T + bias, y)
        assert site.transposed == (family == "gpt2" and site.role != "head")


def _groups(family: str) -> tuple[int, int]:
    """Elements of q, and of k and of v."""
    config = tiny_model(family).config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return config.num_attention_heads * width, kv_heads * width


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_follow_from_the_configuration(family: str) -> None:
    q, kv = _groups(family)
    inner = 48
    want = {
        "attention.q": (32, q),
        "attention.k": (32, kv),
        "attention.v": (32, kv),
        "attention.qkv": (32, q + 2 * kv),
        "attention.o": (q, 32),
        "mlp.gate": (32, inner),
        "mlp.up": (32, inner),
        "mlp.gate_up": (32, 2 * inner),
        "mlp.down": (inner, 32),
        "head": (32, VOCABULARY),
    }
    for site in dissect(tiny_model(family)).sites:
        assert (site.in_features, site.out_features) == want[site.role], site


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_shape_counts_parameters_once(family: str, tied: bool) -> None:
    model = tiny_model(family, tie_word_embeddings=tied)
    shape = dissect(model).shape
    assert shape.parameters == model.num_parameters() == sum(p.numel() for p in model.parameters())
    assert shape.head_tied == tied
    assert shape.layer_parameters == (shape.layer_parameters[0],) * shape.layers
    outside = model.get_input_embeddings().weight.numel() + shape.final_norm_parameters
    outside += 0 if tied else shape.head_parameters
    outside += 1024 * 32 if family == "gpt2" else 0  # learned positions
    assert shape.parameters == sum(shape.layer_parameters) + outside
    assert shape.final_norm_parameters == (64 if family in ("gpt2", "gpt_neox") else 32)
    assert (shape.hidden, shape.vocabulary) == (32, VOCABULARY)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_final_norm_is_the_last_thing_before_the_head(family: str) -> None:
    anatomy = dissect(tiny_model(family))
    _assert_runs_in_order(anatomy)
    assert anatomy.model.get_submodule(anatomy.final_norm_path or "") is anatomy.final_norm
    assert list(anatomy.model.get_submodule(anatomy.layers_path)) == list(anatomy.layers)


def _assert_runs_in_order(anatomy: Anatomy) -> None:
    """The layers, the final norm, the head."""
    assert anatomy.final_norm is not None
    order: list[nn.Module] = []
    for module in [*anatomy.layers, anatomy.final_norm, anatomy.head]:
        module.register_forward_hook(lambda module, inputs, output: order.append(module))
    with torch.no_grad():
        anatomy.model(input_ids=torch.tensor([[5, 6, 7]]))
    assert order == [*anatomy.layers, anatomy.final_norm, anatomy.head]


def test_roles_are_selected_by_name_part_and_group() -> None:
    shape = dissect(tiny_model("llama")).shape

    def roles(*wanted: str) -> set[str]:
        return {site.role for site in shape.select(wanted)}

    assert roles("attention.q") == {"attention.q"}
    assert roles("attention") == SEPARATE
    assert roles("mlp", "head") == GATED | {"head"}
    assert roles("linear") == roles("all-linear") == SEPARATE | GATED
    assert roles("all") == SEPARATE | GATED | {"head"}
    assert shape.select(("mlp.down", "attention.q", "mlp")) == tuple(
        site for site in shape.sites if site.role == "attention.q" or site.role.startswith("mlp")
    ), "each site once, in the model's order"


@pytest.mark.parametrize(
    ("family", "role", "use"),
    [
        ("gpt2", "attention.q", "attention.qkv"),
        ("gpt_neox", "attention.k", "attention.qkv"),
        ("phi3", "attention.v", "attention.qkv"),
        ("phi3", "mlp.gate", "mlp.gate_up"),
        ("glm4", "mlp.up", "mlp.gate_up"),
    ],
)
def test_an_absent_role_names_the_fused_one(family: str, role: str, use: str) -> None:
    with pytest.raises(TechniqueError, match=rf"{role} is fused into {use} in .*; use {use}\. Sites here: "):
        dissect(tiny_model(family)).select([role])


@pytest.mark.parametrize(
    ("family", "role", "near"),
    [("llama", "atention.q", "attention.q"), ("gpt2", "mlp.gate", "mlp.gate"), ("llama", "mlp.gate_up", "mlp.gate_up")],
)
def test_an_unknown_or_absent_role_says_what_there_is(family: str, role: str, near: str) -> None:
    with pytest.raises(TechniqueError) as caught:
        dissect(tiny_model(family)).select([role])
    message = str(caught.value)
    assert f"no linear site '{role}'" in message and near in message
    assert "mlp.down (2)" in message and "head (1)" in message


# Architectures outside of tests/tiny.py: the roles of one layer.
OTHERS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "Phi": (
        {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
        SEPARATE | {"mlp.up", "mlp.down"},
    ),
    "OPT": (
        {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 32},
        SEPARATE | {"mlp.up", "mlp.down"},
    ),
    "GPTJ": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}, SEPARATE | {"mlp.up", "mlp.down"}),
    "Bloom": ({"hidden_size": 32, "n_layer": 2, "n_head": 4}, {"attention.qkv", "attention.o", "mlp.up", "mlp.down"}),
    "Qwen3Moe": (
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
        | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "intermediate_size": 48},
        SEPARATE,  # experts are no linear layers, and a router is no site
    ),
}


@pytest.mark.parametrize("architecture", OTHERS)
def test_other_architectures_have_their_roles(architecture: str) -> None:
    settings, roles = OTHERS[architecture]
    config = getattr(transformers, f"{architecture}Config")(vocab_size=64, pad_token_id=0, **settings)
    anatomy = dissect(getattr(transformers, f"{architecture}ForCausalLM")(config))
    assert len(anatomy.layers) == 2
    _assert_runs_in_order(anatomy)
    want = Counter({(layer, role): 1 for layer in range(2) for role in roles} | {(None, "head"): 1})
    assert Counter((site.layer, site.role) for site in anatomy.sites) == want


def test_what_is_no_causal_language_model_is_refused() -> None:
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
    )
    for model in (transformers.LlamaModel(config), transformers.LlamaForSequenceClassification(config)):
        with pytest.raises(BaseModelError, match=rf"{type(model).__name__} has no linear output head"):
            dissect(model)


def test_a_model_without_attention_is_refused() -> None:
    config = transformers.MambaConfig(vocab_size=32, hidden_size=16, state_size=4, num_hidden_layers=1)
    with pytest.raises(BaseModelError, match="MambaForCausalLM has no list of decoder layers with attention"):
        dissect(transformers.MambaForCausalLM(config))
