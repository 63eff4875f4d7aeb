"""LoRA from its equation: h = W0 x + b + s B A x, s = alpha / r, or alpha / sqrt(r) where rank-stabilised.

Hu et al. 2021, section 4.1; Kalajdzievski 2023. A hook adds the second term to the output of the base's own module.
DoRA: h = m (W0 + s B A) / ||W0 + s B A|| x + b with a norm for each output, constant for the gradient. Liu et al. 2024,
equation 5 and section 4.3. A hook replaces the output of the base's own module.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


def apply(model: nn.Module, technique: Any, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    leaves = {name: value.detach().clone().requires_grad_() for name, value in values.items()}
    for name, a in leaves.items():
        path, _, letter = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
        if letter == "A":
            b = leaves[name.replace("lora_A", "lora_B")]
            r = a.shape[0]
            s = technique.alpha / r**0.5 if technique.rank_stabilised else technique.alpha / r
            m = leaves.get(f"base_model.model.{path}.lora_magnitude_vector")
            hook = _plus(a, b, s) if m is None else _rescaled(a, b, s, m)
            model.get_submodule(path).register_forward_hook(hook)
    return leaves


def _plus(a: torch.Tensor, b: torch.Tensor, s: float) -> Any:
    return lambda module, inputs, h: h + s * torch.einsum("or,ri,...i->...o", b, a, inputs[0])


def _rescaled(a: torch.Tensor, b: torch.Tensor, s: float, m: torch.Tensor) -> Any:
    def hook(module: Any, inputs: tuple[torch.Tensor], h: torch.Tensor) -> torch.Tensor:
        w0 = module.weight.T if isinstance(module, Conv1D) else module.weight
        w = w0 + s * torch.einsum("or,ri->oi", b, a)
        norm = (w**2).sum(dim=1).sqrt().detach()
        h = torch.einsum("oi,...i->...o", m[:, None] * w / norm[:, None], inputs[0])
        return h if module.bias is None else h + module.bias

    return hook
