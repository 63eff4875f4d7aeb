"""P-Tuning from its equation: h = MLP(BiLSTM(E)), or h = MLP(E), or h = E; the h stand where pseudo tokens do.

Liu et al. 2021. The LSTM is written out gate by gate (Hochreiter & Schmidhuber 1997, as torch orders them:
input, forget, cell, output).
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from reference.prompt import put_vectors


def apply(model: nn.Module, technique: Any, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    leaves = {name: value.detach().clone().requires_grad_() for name, value in values.items()}
    numbers = [int(n) for n in re.findall(r"\d+", technique.prompt_template)]
    put_vectors(model, lambda: _vectors(leaves), front=numbers[0] if numbers else _vectors(leaves).shape[0])
    return leaves


def _vectors(leaves: dict[str, torch.Tensor]) -> torch.Tensor:
    if "prompt_embeddings" in leaves:
        return leaves["prompt_embeddings"]
    x = leaves["embedding.weight"]
    layer = 0
    while f"lstm_head.weight_ih_l{layer}" in leaves:
        there = _lstm(x, leaves, f"l{layer}")
        back = _lstm(x.flip(0), leaves, f"l{layer}_reverse").flip(0)
        x, layer = torch.cat([there, back], dim=1), layer + 1
    places = sorted({name.split(".")[1] for name in leaves if name.startswith("mlp_head")})
    for number, place in enumerate(places):
        x = x @ leaves[f"mlp_head.{place}.weight"].T + leaves[f"mlp_head.{place}.bias"]
        x = x if number == len(places) - 1 else torch.clamp(x, min=0)
    return x


def _lstm(x: torch.Tensor, leaves: dict[str, torch.Tensor], layer: str) -> torch.Tensor:
    w_x, w_h, b_x, b_h = (
        leaves[f"lstm_head.{name}_{layer}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    h = c = torch.zeros(w_h.shape[1], dtype=x.dtype)
    states = []
    for row in x:
        i, f, g, o = (w_x @ row + b_x + w_h @ h + b_h).chunk(4)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        states.append(h)
    return torch.stack(states)
