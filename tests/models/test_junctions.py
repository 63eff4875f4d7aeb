"""Sublayer junctions: found in every family, equal to what the layer computes, refused where there is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from heptune.core.errors import TechniqueError
from heptune.models.anatomy import Anatomy, dissect
from heptune.models.junctions import insert, junctions
from laws.cases import TOKENS
from tiny import FAMILIES, tiny_model

# The modules that r enters and that h leaves, attention then MLP, as the architectures' own code has them.
LLAMA_LIKE = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
NAMES = {
    "glm4": ("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"),
    "gemma3": (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
    "olmo2": ("self_attn", "post_attention_layernorm", "mlp", "post_feedforward_layernorm"),
    "gpt2": ("ln_1", "attn", "ln_2", "mlp"),
    "gpt_neox": ("input_layernorm", "attention", "post_attention_layernorm", "mlp"),
    "phi": ("input_layernorm", "self_attn", "input_layernorm", "mlp"),  # one norm before both
    "cohere": ("input_layernorm", "self_attn", "input_layernorm", "mlp"),
    "gpt_neo": ("ln_1", "attn", "ln_2", "mlp"),
    "opt": ("self_attn_layer_norm", "self_attn", "final_layer_norm", "fc2"),  # its MLP is no module
}

_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Families that the other tests do not need: one norm for both sublayers, experts, an MLP without a module of its own.
OTHERS: dict[str, dict[str, Any]] = {
    "phi": {},
    "cohere": {},
    "mixtral": {"num_local_experts": 4},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
}
# A residual multiplier; attention and MLP that add inside of themselves; an MLP that does.
WITHOUT: dict[str, dict[str, Any]] = {
    "granite": {"residual_multiplier": 0.22},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2},
}


def _of(family: str, **settings: Any) -> Anatomy:
    if family in FAMILIES:
        return dissect(tiny_model(family, **settings))
    config = transformers.AutoConfig.for_model(family, **{**_SIZES, **OTHERS.get(family, {}), **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return dissect(transformers.AutoModelForCausalLM.from_config(config).float().eval())


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_both_junctions_of_every_layer_are_found(family: str) -> None:
    anatomy = _of(family)
    enter_a, leave_a, enter_m, leave_m = NAMES.get(family, LLAMA_LIKE)
    wanted = [
        (layer, sublayer, f"{anatomy.layers_path}.{layer}.{entry}", f"{anatomy.layers_path}.{layer}.{leaf}")
        for layer in range(anatomy.shape.layers)
        for sublayer, entry, leaf in (("attention", enter_a, leave_a), ("mlp", enter_m, leave_m))
    ]
    assert [(j.layer, j.sublayer, j.entry, j.exit) for j in junctions(anatomy)] == wanted


@pytest.mark.parametrize("parallel", [False, True])
def test_gpt_neox_with_either_residual(parallel: bool) -> None:
    anatomy = _of("gpt_neox", use_parallel_residual=parallel)
    read: list[torch.Tensor] = []
    for junction in junctions(anatomy)[:2]:
        insert(anatomy, junction, lambda h, r: read.append(r) or h)  # type: ignore[func-returns-value]
    anatomy.model(input_ids=TOKENS, use_cache=False)
    assert torch.equal(read[0], read[1]) == parallel


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_what_is_put_in_the_place_of_h_is_what_is_added(family: str) -> None:
    """With h' = -r after the attention and 0 after the MLP, an ordinary layer gives zero, a parallel one too."""
    anatomy = _of(family)
    last = [j for j in junctions(anatomy) if j.layer == anatomy.shape.layers - 1]
    outputs: list[torch.Tensor] = []
    anatomy.layers[-1].register_forward_hook(lambda module, args, out: outputs.append(out))
    handles = insert(anatomy, last[0], lambda h, r: -r) + insert(anatomy, last[1], lambda h, r: torch.zeros_like(h))
    with torch.no_grad():
        anatomy.decoder(input_ids=TOKENS, use_cache=False)
        for handle in handles:
            handle.remove()
        anatomy.decoder(input_ids=TOKENS, use_cache=False)
    zero, plain = (out[0] if isinstance(out, tuple) else out for out in outputs)
    assert not zero.any() and plain.any()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "gpt_neox"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_any_precision_is_checked_to_its_own_rounding(family: str, dtype: torch.dtype) -> None:
    anatomy = dissect(tiny_model(family).to(dtype))
    assert len(junctions(anatomy)) == 2 * anatomy.shape.layers


def test_probing_leaves_no_trace() -> None:
    anatomy = _of("gpt2", resid_pdrop=0.5, attn_pdrop=0.5)
    anatomy.model.train()
    anatomy.layers[0].eval()
    modes = [module.training for module in anatomy.model.modules()]
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    assert len(junctions(anatomy)) == 4
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [module.training for module in anatomy.model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in anatomy.model.modules())


@pytest.mark.parametrize("family", WITHOUT)
def test_an_architecture_without_junctions_is_refused(family: str) -> None:
    anatomy = _of(family, **WITHOUT[family])
    with pytest.raises(TechniqueError, match=rf"{type(anatomy.model).__name__} .*layer 0 .*LoRA"):
        junctions(anatomy)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in anatomy.model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("what", ["attention", "mlp", "late"])
def test_a_sum_that_is_off_by_a_little_is_refused(what: str, dtype: torch.dtype) -> None:
    """A layer that scales one of its terms, or adds something of its own, by a tenth."""
    anatomy = dissect(tiny_model("llama").to(dtype))
    layer = anatomy.layers[1]
    plain = layer.forward

    def forward(hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        r = hidden_states
        h = layer.self_attn(hidden_states=layer.input_layernorm(r), **kwargs)[0]
        r = r + (1.1 * h if what == "attention" else h)
        h = layer.mlp(layer.post_attention_layernorm(r))
        r = r + (1.1 * h if what == "mlp" else h)
        return 1.1 * r if what == "late" else r

    layer.forward = forward
    with pytest.raises(TechniqueError, match="layer 1 .*the sums differ"):
        junctions(anatomy)
    layer.forward = plain
    assert len(junctions(anatomy)) == 4


def test_a_module_that_serves_twice_is_refused() -> None:
    anatomy = _of("llama")
    layer = anatomy.layers[0]

    def forward(hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        r = hidden_states + layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **kwargs)[0]
        return r + layer.mlp(layer.input_layernorm(r))

    layer.forward = forward
    with pytest.raises(TechniqueError, match="input_layernorm runs more than once"):
        junctions(anatomy)
