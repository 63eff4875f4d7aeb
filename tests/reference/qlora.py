"""QLoRA from its equation: h = dequantize(W4) x + b + s B A x, with W4 by reference.nf4 and the rest by reference.lora.

Dettmers et al. 2023, section 3. Every linear layer but the head is rounded, found by its type alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from reference import lora
from reference.nf4 import rounded


def apply(model: nn.Module, technique: Any, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | Conv1D) and module is not model.get_output_embeddings():
                module.weight.copy_(rounded(module.weight))
    return lora.apply(model, technique, values)
