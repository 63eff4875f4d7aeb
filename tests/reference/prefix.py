"""Prefix Tuning from its equation: attention(q, [K_prefix; K], [V_prefix; V]), the prefix from W2 tanh(W1 E + b1) + b2.

Li & Liang 2021, sections 4.2 and 4.3. The plain model is handed the prefix as a cache of earlier positions, as the
paper's own code does it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import DynamicCache


def apply(model: nn.Module, technique: Any, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    leaves = {name: value.detach().clone().requires_grad_() for name, value in values.items()}
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads

    def logits_of(tokens: tuple[int, ...], lead: int) -> torch.Tensor:
        table = _table(leaves)
        parts = table.view(len(table), config.num_hidden_layers, 2, heads, -1)
        cache = DynamicCache(config=config)
        for layer in range(config.num_hidden_layers):
            key, value = (parts[:, layer, i].transpose(0, 1)[None] for i in (0, 1))
            cache.update(key, value, layer)
        return model(
            input_ids=torch.tensor([tokens]),
            position_ids=torch.arange(len(table), len(table) + len(tokens))[None],
            attention_mask=torch.ones(1, len(table) + len(tokens), dtype=torch.long),
            past_key_values=cache,
        ).logits[0]

    model.logits_of = logits_of  # type: ignore[assignment]
    return leaves


def _table(leaves: dict[str, torch.Tensor]) -> torch.Tensor:
    if "prompt_embeddings" in leaves:
        return leaves["prompt_embeddings"]
    inner = torch.tanh(leaves["embedding.weight"] @ leaves["transform.0.weight"].T + leaves["transform.0.bias"])
    return inner @ leaves["transform.2.weight"].T + leaves["transform.2.bias"]
