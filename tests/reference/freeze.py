"""Freezing: the leaves are the parameters of the last k layers, of the final norm, and of the head if chosen.

They are found by their names alone: a layer's number stands in them, the final norm's stands outside of the layers.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn


def apply(model: nn.Module, technique: Any, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)
    layer = {name: int(found[1]) for name in parameters if (found := re.search(r"\.(?:layers|h)\.(\d+)\.", name))}
    first = max(layer.values()) + 1 - technique.layers
    chosen = {name for name, number in layer.items() if number >= first}
    chosen |= {name for name in parameters if name not in layer and re.search(r"norm|ln_f", name)}
    if technique.head:
        head = model.get_output_embeddings()
        chosen |= {n for n, p in parameters.items() if any(p is own for own in head.parameters())}
    return {name: p for name, p in parameters.items() if name in chosen}
