"""LoRA from its equation: h = W0 x + b + s B A x, s = alpha / r, or alpha / sqrt(r) where rank-stabilised.

Hu et al. 2021, section 4.1; Kalajdzievski 2023. A hook adds the second term to the output of the base's own module.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def apply(model: nn.Module, technique: Any, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    leaves = {name: value.detach().clone().requires_grad_() for name, value in values.items()}
    for name, a in leaves.items():
        path, _, letter = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
        if letter == "A":
            b = leaves[name.replace("lora_A", "lora_B")]
            r = a.shape[0]
            s = technique.alpha / r**0.5 if technique.rank_stabilised else technique.alpha / r
            model.get_submodule(path).register_forward_hook(_plus(a, b, s))
    return leaves


def _plus(a: torch.Tensor, b: torch.Tensor, s: float) -> Any:
    return lambda module, inputs, h: h + s * torch.einsum("or,ri,...i->...o", b, a, inputs[0])
