"""The plain loss of a causal language model: one example at a time, through the model's own forward, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from heptune.tasks.example import Example


def loss_of(model: nn.Module, example: Example) -> torch.Tensor:
    """- sum of log p(token t | tokens before t) over the supervised t: a scalar in float64."""
    if hasattr(model, "logits_of"):  # a reference that puts something before or between the tokens
        logits = model.logits_of(example.tokens, example.lead).double()
    else:
        logits = model(input_ids=torch.tensor([example.tokens]), use_cache=False).logits[0].double()
    probabilities = torch.softmax(logits, dim=-1)
    terms = [torch.log(probabilities[t - 1, example.tokens[t]]) for t, s in enumerate(example.supervised) if s]
    return -torch.stack(terms).sum()


def losses_and_gradient(
    model: nn.Module, examples: Sequence[Example], leaves: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Each example's loss [n], and the gradient of their sum by the names of `leaves`."""
    losses = []
    gradient = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    for example in examples:
        loss = loss_of(model, example)
        parts = torch.autograd.grad(loss, list(leaves.values()))
        for name, part in zip(leaves, parts, strict=True):
            gradient[name] += part
        losses.append(loss.detach())
    return torch.stack(losses), gradient
