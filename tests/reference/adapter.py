"""Adapters from the papers' equations: A(x) = s (W_up f(W_down x + b_down) + b_up).

    Houlsby et al. 2019, figure 2           h + A(h)       after attention and MLP
    Pfeiffer et al. 2020, section 3.2       h + A(h + r)   after the MLP
    He et al. 2022, table 1 and section 4   h + A(r)       beside the MLP

h is found by the names below. r is computed: the layer's input x, and after the attention x + h; in a parallel residual
it is x for both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

# What a layer adds to the residual: the outputs of these two modules.
OUTPUTS = {
    "glm4": ("post_self_attn_layernorm", "post_mlp_layernorm"),
    "gemma3_text": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "olmo2": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "gpt2": ("attn", "mlp"),
    "gpt_neox": ("attention", "mlp"),
}
LAYERS = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}
SIDE_BY_SIDE = ("gpt_neox",)
F = {
    "relu": lambda x: x.clamp(min=0),
    "swish": lambda x: x / (1 + torch.exp(-x)),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "tanh": lambda x: 1 - 2 / (torch.exp(2 * x) + 1),
}


def apply(model: nn.Module, technique: Any, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    leaves = {name: value.detach().clone().requires_grad_() for name, value in values.items()}
    variant = technique.variant
    f = F[technique.activation or ("swish" if variant == "houlsby" else "relu")]
    s = technique.scaling or (4.0 if variant == "parallel" else 1.0)
    prefix = LAYERS.get(model.config.model_type, "model.layers")
    for index, layer in enumerate(model.get_submodule(prefix)):
        _into(layer, f"{prefix}.{index}", model.config.model_type, variant, f, s, leaves)
    return leaves


def _into(layer: nn.Module, path: str, family: str, variant: str, f: Any, s: float, leaves: dict[str, Any]) -> None:
    stream = {}

    def a(place: str, x: torch.Tensor) -> torch.Tensor:
        down, up = (f"{path}.{place}.adapters.heptune.adapter_{part}" for part in ("down.0", "up"))
        low = f(torch.einsum("mi,...i->...m", leaves[f"{down}.weight"], x) + leaves[f"{down}.bias"])
        return s * (torch.einsum("om,...m->...o", leaves[f"{up}.weight"], low) + leaves[f"{up}.bias"])

    def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
        stream["r"] = args[0] if args else kwargs["hidden_states"]

    def after_attention(module: nn.Module, args: Any, output: Any) -> Any:
        h = output[0] if isinstance(output, tuple) else output
        if variant == "houlsby" and f"{path}.attention_adapters.adapters.heptune.adapter_up.bias" in leaves:
            h = h + a("attention_adapters", h)
        if family not in SIDE_BY_SIDE:
            stream["r"] = stream["r"] + h
        return (h, *output[1:]) if isinstance(output, tuple) else h

    def after_mlp(module: nn.Module, args: Any, h: torch.Tensor) -> torch.Tensor:
        if f"{path}.output_adapters.adapters.heptune.adapter_up.bias" not in leaves:
            return h
        read = {"houlsby": h, "pfeiffer": h + stream["r"], "parallel": stream["r"]}[variant]
        return h + a("output_adapters", read)

    attention, mlp = OUTPUTS.get(family, ("self_attn", "mlp"))
    layer.register_forward_pre_hook(begin, with_kwargs=True)
    layer.get_submodule(attention).register_forward_hook(after_attention)
    layer.get_submodule(mlp).register_forward_hook(after_mlp)
