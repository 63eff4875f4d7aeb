"""Full fine-tuning: every parameter of the model is a leaf."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def apply(model: nn.Module, technique: Any, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    leaves = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            leaves[name].copy_(value)
    return leaves
