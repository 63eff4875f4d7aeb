"""The shape of a model from its configuration alone, in closed form: no torch, no weights, no transformers.

    shape_of({"model_type": "llama", "hidden_size": 4096, ...}) -> ModelShape

It is the shape that `models.anatomy.dissect` finds in the model itself, sites and their order included; a test builds
every family on the meta device and compares. Names of settings, and their values where a configuration leaves them
out, are those of transformers.

Three families that transformers does not have are computed from their papers: `chatglm` (Du et al. 2022; ChatGLM-6B),
`chatglm2` (ChatGLM2-6B, ChatGLM3-6B) and `glm_130b` (Zeng et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from heptune.core.errors import BaseModelError
from heptune.models.shape import ModelShape, Site

# Families below that transformers does not have.
NOT_IN_TRANSFORMERS = frozenset({"chatglm", "chatglm2", "glm_130b"})


@dataclass(frozen=True)
class _Linear:
    """One matrix of a layer; `path` inside the layer. `bias` is whether it has one."""

    role: str
    path: str
    n_in: int
    n_out: int
    bias: bool = False
    transposed: bool = False

    @property
    def elements(self) -> int:
        return self.n_in * self.n_out + (self.n_out if self.bias else 0)


@dataclass(frozen=True)
class _Layer:
    """A decoder layer: its sites in the order of its modules, `other` elements (norms, a router), and those of `count`
    stacked experts, of which `resting` are not used by one token."""

    sites: tuple[_Linear, ...]
    other: int
    experts: int = 0
    resting: int = 0
    count: int = 0

    @property
    def elements(self) -> int:
        return sum(site.elements for site in self.sites) + self.other + self.experts


@dataclass(frozen=True)
class _Skeleton:
    """A whole model. `embedding`: elements of the input embeddings, positions' included; `norm`: of the final norm."""

    architecture: str
    layers_path: str
    layers: tuple[_Layer, ...]
    embedding: int
    norm: int
    tied: bool
    head_bias: bool = False
    head_path: str = "lm_head"


@dataclass(frozen=True)
class _Sizes:
    """A configuration's numbers under one set of names."""

    config: Mapping[str, Any]
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    inner: int
    vocabulary: int
    max_positions: int | None
    tied: bool

    def flag(self, name: str) -> bool:
        return bool(self.config.get(name))


@dataclass(frozen=True)
class _Family:
    """How a family is built, and what transformers takes where a configuration is silent."""

    build: Callable[[_Sizes], _Skeleton]
    defaults: Mapping[str, Any]
    names: Mapping[str, str] = field(default_factory=dict)  # where settings are not called as in Llama
    tied: bool = False


def families() -> list[str]:
    """The model types whose shape is known in closed form."""
    return sorted(_FAMILIES)


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """The shape of a causal language model with this config.json.

    Raises `BaseModelError` for a model type without a closed form (`families()` lists those that have one), and for
    a setting that is missing.
    """
    family = str(config.get("model_type"))
    if family not in _FAMILIES:
        raise BaseModelError(f"no closed form is known for the model type {family!r}; known: {', '.join(families())}")
    rules = _FAMILIES[family]
    sizes = _sizes(config, rules)
    skeleton = rules.build(sizes)
    sites = tuple(
        Site(index, s.role, f"{skeleton.layers_path}.{index}.{s.path}", s.n_in, s.n_out, s.transposed)
        for index, layer in enumerate(skeleton.layers)
        for s in layer.sites
    )
    head = sizes.hidden * sizes.vocabulary + (sizes.vocabulary if skeleton.head_bias else 0)
    in_layers = tuple(layer.elements for layer in skeleton.layers)
    own_head = head - (sizes.hidden * sizes.vocabulary if skeleton.tied else 0)  # a tied head's bias is its own
    parameters = skeleton.embedding + sum(in_layers) + skeleton.norm + own_head
    return ModelShape(
        architecture=skeleton.architecture,
        family=family,
        hidden=sizes.hidden,
        layers=sizes.layers,
        vocabulary=sizes.vocabulary,
        parameters=parameters,
        active_parameters=parameters - sum(layer.resting for layer in skeleton.layers),
        layer_parameters=in_layers,
        final_norm_parameters=skeleton.norm,
        head_parameters=head,
        head_tied=skeleton.tied,
        sites=(*sites, Site(None, "head", skeleton.head_path, sizes.hidden, sizes.vocabulary, False)),
        embedding=sizes.hidden,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_width=sizes.head_width,
        max_positions=sizes.max_positions,
        experts=max(layer.count for layer in skeleton.layers),
        expert_width=max(layer.experts // (3 * sizes.hidden * max(1, layer.count)) for layer in skeleton.layers),
    )


def _sizes(config: Mapping[str, Any], rules: _Family) -> _Sizes:
    given = {**rules.defaults, **{key: value for key, value in config.items() if value is not None}}

    def number(name: str) -> int:
        value = given.get(rules.names.get(name, name))
        if not isinstance(value, int):
            setting = rules.names.get(name, name)
            raise BaseModelError(
                f"config.json has {setting} = {value!r}; a {config['model_type']} needs a number there"
            )
        return value

    hidden, heads = number("hidden_size"), number("num_attention_heads")
    positions = given.get(rules.names.get("max_position_embeddings", "max_position_embeddings"))
    return _Sizes(
        config=given,
        hidden=hidden,
        layers=number("num_hidden_layers"),
        heads=heads,
        kv_heads=given.get("num_key_value_heads") or heads,
        head_width=given.get("head_dim") or hidden // heads,
        inner=given.get(rules.names.get("intermediate_size", "intermediate_size")) or 4 * hidden,
        vocabulary=number("vocab_size"),
        max_positions=positions,
        tied=bool(given.get("tie_word_embeddings", rules.tied)),
    )


def _attention(s: _Sizes, bias: bool, o_bias: bool | None = None) -> tuple[_Linear, ...]:
    """q, k, v and o as Llama has them."""
    inside, kv = s.heads * s.head_width, s.kv_heads * s.head_width
    return (
        _Linear("attention.q", "self_attn.q_proj", s.hidden, inside, bias),
        _Linear("attention.k", "self_attn.k_proj", s.hidden, kv, bias),
        _Linear("attention.v", "self_attn.v_proj", s.hidden, kv, bias),
        _Linear("attention.o", "self_attn.o_proj", inside, s.hidden, bias if o_bias is None else o_bias),
    )


def _gated(s: _Sizes, inner: int, bias: bool = False, path: str = "mlp") -> tuple[_Linear, ...]:
    return (
        _Linear("mlp.gate", f"{path}.gate_proj", s.hidden, inner, bias),
        _Linear("mlp.up", f"{path}.up_proj", s.hidden, inner, bias),
        _Linear("mlp.down", f"{path}.down_proj", inner, s.hidden, bias),
    )


def _gated_in_one(s: _Sizes) -> tuple[_Linear, ...]:
    return (
        _Linear("mlp.gate_up", "mlp.gate_up_proj", s.hidden, 2 * s.inner),
        _Linear("mlp.down", "mlp.down_proj", s.inner, s.hidden),
    )


def _rms_model(architecture: str, s: _Sizes, layers: tuple[_Layer, ...]) -> _Skeleton:
    """Llama's outer parts: word embeddings, decoder layers, one RMS norm, a head without bias."""
    return _Skeleton(architecture, "model.layers", layers, s.vocabulary * s.hidden, s.hidden, s.tied)


def _llama(s: _Sizes) -> _Skeleton:
    sites = (*_attention(s, s.flag("attention_bias")), *_gated(s, s.inner, s.flag("mlp_bias")))
    return _rms_model("LlamaForCausalLM", s, (_Layer(sites, 2 * s.hidden),) * s.layers)


def _smollm3(s: _Sizes) -> _Skeleton:
    sites = (*_attention(s, s.flag("attention_bias")), *_gated(s, s.inner, s.flag("mlp_bias")))
    return _rms_model("SmolLM3ForCausalLM", s, (_Layer(sites, 2 * s.hidden),) * s.layers)


def _mistral(s: _Sizes) -> _Skeleton:
    sites = (*_attention(s, False), *_gated(s, s.inner))
    return _rms_model("MistralForCausalLM", s, (_Layer(sites, 2 * s.hidden),) * s.layers)


def _qwen2(s: _Sizes) -> _Skeleton:
    sites = (*_attention(s, True, o_bias=False), *_gated(s, s.inner))
    return _rms_model("Qwen2ForCausalLM", s, (_Layer(sites, 2 * s.hidden),) * s.layers)


def _qwen3(s: _Sizes) -> _Skeleton:
    """A norm on each head's queries and keys beside Llama's."""
    sites = (*_attention(s, s.flag("attention_bias")), *_gated(s, s.inner))
    return _rms_model("Qwen3ForCausalLM", s, (_Layer(sites, 2 * s.hidden + 2 * s.head_width),) * s.layers)


def _gemma2(s: _Sizes) -> _Skeleton:
    """Norms before and behind both sublayers."""
    sites = (*_attention(s, s.flag("attention_bias")), *_gated(s, s.inner))
    return _rms_model("Gemma2ForCausalLM", s, (_Layer(sites, 4 * s.hidden),) * s.layers)


def _gemma3(s: _Sizes) -> _Skeleton:
    sites = (*_attention(s, s.flag("attention_bias")), *_gated(s, s.inner))
    return _rms_model("Gemma3ForCausalLM", s, (_Layer(sites, 4 * s.hidden + 2 * s.head_width),) * s.layers)


def _olmo2(s: _Sizes) -> _Skeleton:
    """A norm over all queries and over all keys."""
    sites = (*_attention(s, s.flag("attention_bias")), *_gated(s, s.inner))
    norms = 2 * s.hidden + (s.heads + s.kv_heads) * s.head_width
    return _rms_model("Olmo2ForCausalLM", s, (_Layer(sites, norms),) * s.layers)


def _glm(s: _Sizes) -> _Skeleton:
    sites = (*_attention(s, s.flag("attention_bias"), o_bias=False), *_gated_in_one(s))
    return _rms_model("GlmForCausalLM", s, (_Layer(sites, 2 * s.hidden),) * s.layers)


def _glm4(s: _Sizes) -> _Skeleton:
    sites = (*_attention(s, s.flag("attention_bias"), o_bias=False), *_gated_in_one(s))
    return _rms_model("Glm4ForCausalLM", s, (_Layer(sites, 4 * s.hidden),) * s.layers)


def _phi3(s: _Sizes) -> _Skeleton:
    inside, kv = s.heads * s.head_width, s.kv_heads * s.head_width
    attention = (
        _Linear("attention.o", "self_attn.o_proj", inside, s.hidden),
        _Linear("attention.qkv", "self_attn.qkv_proj", s.hidden, inside + 2 * kv),
    )
    return _rms_model("Phi3ForCausalLM", s, (_Layer((*attention, *_gated_in_one(s)), 2 * s.hidden),) * s.layers)


def _glm4_moe(s: _Sizes) -> _Skeleton:
    """The first layers are dense; the others have routed experts (stacked: no sites) and shared ones (sites)."""
    attention = _attention(s, s.flag("attention_bias"), o_bias=False)
    norms = 2 * s.hidden + (2 * s.head_width if s.flag("use_qk_norm") else 0)
    count, used, inner = (s.config[k] for k in ("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size"))
    dense = _Layer((*attention, *_gated(s, s.inner)), norms)
    shared = _gated(s, inner * s.config["n_shared_experts"], path="mlp.shared_experts")
    experts, resting = _experts(s, inner, count, used)
    sparse = _Layer((*attention, *shared), norms + count * s.hidden, experts, resting, count)
    first = min(s.config["first_k_dense_replace"], s.layers)
    return _rms_model("Glm4MoeForCausalLM", s, (dense,) * first + (sparse,) * (s.layers - first))


def _qwen3_moe(s: _Sizes) -> _Skeleton:
    attention = _attention(s, s.flag("attention_bias"))
    norms = 2 * s.hidden + 2 * s.head_width
    count = s.config.get("num_experts") or s.config["num_local_experts"]
    experts, resting = _experts(s, s.config["moe_intermediate_size"], count, s.config["num_experts_per_tok"])
    sparse = _Layer(attention, norms + count * s.hidden, experts, resting, count)
    dense = _Layer((*attention, *_gated(s, s.inner)), norms)
    dense_layers, every = s.config.get("mlp_only_layers") or [], s.config["decoder_sparse_step"]
    is_sparse = [i not in dense_layers and count > 0 and (i + 1) % every == 0 for i in range(s.layers)]
    return _rms_model("Qwen3MoeForCausalLM", s, tuple(sparse if chosen else dense for chosen in is_sparse))


def _mixtral(s: _Sizes) -> _Skeleton:
    count = s.config["num_local_experts"]
    experts, resting = _experts(s, s.inner, count, s.config["num_experts_per_tok"])
    layer = _Layer(_attention(s, False), 2 * s.hidden + count * s.hidden, experts, resting, count)
    return _rms_model("MixtralForCausalLM", s, (layer,) * s.layers)


def _experts(s: _Sizes, inner: int, count: int, used: int) -> tuple[int, int]:
    """Elements of a layer's gated experts, and of those that one token does not pass through."""
    elements = 3 * s.hidden * inner * count
    return elements, elements * (count - used) // count


def _gpt2(s: _Sizes) -> _Skeleton:
    sites = (
        _Linear("attention.qkv", "attn.c_attn", s.hidden, 3 * s.hidden, True, transposed=True),
        _Linear("attention.o", "attn.c_proj", s.hidden, s.hidden, True, transposed=True),
        _Linear("mlp.up", "mlp.c_fc", s.hidden, s.inner, True, transposed=True),
        _Linear("mlp.down", "mlp.c_proj", s.inner, s.hidden, True, transposed=True),
    )
    assert s.max_positions is not None
    embedding = (s.vocabulary + s.max_positions) * s.hidden
    layers = (_Layer(sites, 4 * s.hidden),) * s.layers
    return _Skeleton("GPT2LMHeadModel", "transformer.h", layers, embedding, 2 * s.hidden, s.tied)


def _gptj(s: _Sizes) -> _Skeleton:
    sites = (
        *(_Linear(f"attention.{x}", f"attn.{x}_proj", s.hidden, s.hidden) for x in "kvq"),
        _Linear("attention.o", "attn.out_proj", s.hidden, s.hidden),
        _Linear("mlp.up", "mlp.fc_in", s.hidden, s.inner, True),
        _Linear("mlp.down", "mlp.fc_out", s.inner, s.hidden, True),
    )
    layers = (_Layer(sites, 2 * s.hidden),) * s.layers
    words = s.vocabulary * s.hidden
    return _Skeleton("GPTJForCausalLM", "transformer.h", layers, words, 2 * s.hidden, s.tied, head_bias=True)


def _gpt_neox(s: _Sizes) -> _Skeleton:
    bias = s.flag("attention_bias")
    sites = (
        _Linear("attention.qkv", "attention.query_key_value", s.hidden, 3 * s.hidden, bias),
        _Linear("attention.o", "attention.dense", s.hidden, s.hidden, bias),
        _Linear("mlp.up", "mlp.dense_h_to_4h", s.hidden, s.inner, True),
        _Linear("mlp.down", "mlp.dense_4h_to_h", s.inner, s.hidden, True),
    )
    layers = (_Layer(sites, 4 * s.hidden),) * s.layers
    words = s.vocabulary * s.hidden
    return _Skeleton("GPTNeoXForCausalLM", "gpt_neox.layers", layers, words, 2 * s.hidden, s.tied)


def _chatglm(s: _Sizes) -> _Skeleton:
    """ChatGLM-6B: fused q, k, v; a GELU network that is not gated; biases and two LayerNorms as in GPT-NeoX."""
    sites = (
        _Linear("attention.qkv", "attention.query_key_value", s.hidden, 3 * s.hidden, True),
        _Linear("attention.o", "attention.dense", s.hidden, s.hidden, True),
        _Linear("mlp.up", "mlp.dense_h_to_4h", s.hidden, s.inner, True),
        _Linear("mlp.down", "mlp.dense_4h_to_h", s.inner, s.hidden, True),
    )
    layers = (_Layer(sites, 4 * s.hidden),) * s.layers
    vision = s.config.get("vision_parameters", 0)  # VisualGLM: an image encoder beside the language model
    words = s.vocabulary * s.hidden + vision
    return _Skeleton("ChatGLMModel", "transformer.layers", layers, words, 2 * s.hidden, s.tied)


def _chatglm2(s: _Sizes) -> _Skeleton:
    """ChatGLM2-6B and ChatGLM3-6B: multi-query attention in groups, SwiGLU with gate and up in one, RMS norms."""
    sites = (
        _Linear(
            "attention.qkv",
            "self_attention.query_key_value",
            s.hidden,
            (s.heads + 2 * s.kv_heads) * s.head_width,
            s.flag("add_qkv_bias"),
        ),
        _Linear("attention.o", "self_attention.dense", s.heads * s.head_width, s.hidden),
        _Linear("mlp.gate_up", "mlp.dense_h_to_4h", s.hidden, 2 * s.inner),
        _Linear("mlp.down", "mlp.dense_4h_to_h", s.inner, s.hidden),
    )
    layers = (_Layer(sites, 2 * s.hidden),) * s.layers
    words = s.vocabulary * s.hidden
    path, head = "transformer.encoder.layers", "transformer.output_layer"
    return _Skeleton("ChatGLMForConditionalGeneration", path, layers, words, s.hidden, s.tied, head_path=head)


def _glm_130b(s: _Sizes) -> _Skeleton:
    """GLM-130B: fused q, k, v; GeGLU with gate and up in one; biases; DeepNorm's two LayerNorms; head tied to words."""
    sites = (
        _Linear("attention.qkv", "attention.query_key_value", s.hidden, 3 * s.hidden, True),
        _Linear("attention.o", "attention.dense", s.hidden, s.hidden, True),
        _Linear("mlp.gate_up", "mlp.dense_h_to_4h", s.hidden, 2 * s.inner, True),
        _Linear("mlp.down", "mlp.dense_4h_to_h", s.inner, s.hidden, True),
    )
    layers = (_Layer(sites, 4 * s.hidden),) * s.layers
    words = s.vocabulary * s.hidden
    return _Skeleton("GLM130B", "transformer.layers", layers, words, 2 * s.hidden, s.tied)


_GPT_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
}


def _defaults(hidden: int, inner: int, layers: int, heads: int, vocabulary: int, positions: int, **own: Any) -> Any:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        **own,
    }


# Defaults as in transformers 5.23's configuration classes; a test compares.
_FAMILIES: dict[str, _Family] = {
    "llama": _Family(_llama, _defaults(4096, 11008, 32, 32, 32000, 2048)),
    "smollm3": _Family(_smollm3, _defaults(2048, 11008, 36, 16, 128256, 32768, num_key_value_heads=4), tied=True),
    "mistral": _Family(_mistral, _defaults(4096, 14336, 32, 32, 32000, 131072, num_key_value_heads=8)),
    "mixtral": _Family(
        _mixtral,
        _defaults(4096, 14336, 32, 32, 32000, 131072, num_key_value_heads=8, num_local_experts=8)
        | {"num_experts_per_tok": 2},
    ),
    "qwen2": _Family(_qwen2, _defaults(4096, 22016, 32, 32, 151936, 32768, num_key_value_heads=32)),
    "qwen3": _Family(_qwen3, _defaults(4096, 22016, 32, 32, 151936, 32768, num_key_value_heads=32, head_dim=128)),
    "qwen3_moe": _Family(
        _qwen3_moe,
        _defaults(2048, 6144, 24, 32, 151936, 32768, num_key_value_heads=4, num_local_experts=128)
        | {"moe_intermediate_size": 768, "num_experts_per_tok": 8, "decoder_sparse_step": 1},
    ),
    "gemma2": _Family(
        _gemma2, _defaults(2304, 9216, 26, 8, 256000, 8192, num_key_value_heads=4, head_dim=256), tied=True
    ),
    "gemma3_text": _Family(
        _gemma3, _defaults(2304, 9216, 26, 8, 262208, 131072, num_key_value_heads=4, head_dim=256), tied=True
    ),
    "olmo2": _Family(_olmo2, _defaults(4096, 11008, 32, 32, 50304, 2048)),
    "glm": _Family(
        _glm, _defaults(4096, 13696, 40, 32, 151552, 131072, num_key_value_heads=2, head_dim=128, attention_bias=True)
    ),
    "glm4": _Family(
        _glm4, _defaults(4096, 13696, 40, 32, 151552, 131072, num_key_value_heads=2, head_dim=128, attention_bias=True)
    ),
    "glm4_moe": _Family(
        _glm4_moe,
        _defaults(4096, 10944, 46, 96, 151552, 131072, num_key_value_heads=8, moe_intermediate_size=1408)
        | {"num_experts_per_tok": 8, "n_shared_experts": 1, "n_routed_experts": 128, "first_k_dense_replace": 1},
    ),
    "phi3": _Family(_phi3, _defaults(3072, 8192, 32, 32, 32064, 4096)),
    "gpt2": _Family(
        _gpt2,
        {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257},
        _GPT_NAMES,
        tied=True,
    ),
    "gptj": _Family(
        _gptj,
        {"n_embd": 4096, "n_layer": 28, "n_head": 16, "n_positions": 2048, "vocab_size": 50400},
        _GPT_NAMES,
    ),
    "gpt_neox": _Family(_gpt_neox, _defaults(6144, 24576, 44, 64, 50432, 2048, attention_bias=True)),
    "chatglm": _Family(_chatglm, _defaults(4096, 16384, 28, 32, 130528, 2048), tied=True),
    "chatglm2": _Family(
        _chatglm2, _defaults(4096, 13696, 28, 32, 65024, 32768, num_key_value_heads=2, head_dim=128, add_qkv_bias=True)
    ),
    "glm_130b": _Family(_glm_130b, _defaults(12288, 32768, 70, 96, 150528, 2048), tied=True),
}
