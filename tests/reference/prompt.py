"""Prompt Tuning from its equation: input = [p_1, ..., p_P, embedding(x_1), ..., embedding(x_n)].

Lester et al. 2021, section 2. The plain model reads the concatenation; the prompt's own outputs are left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def apply(model: nn.Module, technique: Any, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    leaves = {name: value.detach().clone().requires_grad_() for name, value in values.items()}
    put_vectors(model, lambda: leaves["prompt_embeddings"], front=len(leaves["prompt_embeddings"]))
    return leaves


def put_vectors(model: nn.Module, vectors: Any, front: int) -> None:
    """Gives the model `logits_of`: the first `front` vectors stand before the tokens, the others before the answer."""

    def logits_of(tokens: tuple[int, ...], lead: int) -> torch.Tensor:
        words = model.get_input_embeddings()(torch.tensor(tokens))
        own = vectors()
        row = torch.cat([own[:front], words[:lead], own[front:], words[lead:]])
        logits = model(inputs_embeds=row[None], use_cache=False).logits[0]
        inner = len(own) - front
        # The token before the answer is now the last of the inner vectors.
        return torch.cat([logits[front : front + lead - 1], logits[front + lead - 1 + inner :]])

    model.logits_of = logits_of  # type: ignore[assignment]
