"""Cross-entropy at the rows that have targets, without ever holding a [rows, vocabulary] array.

For target j with row r(j), token y(j) and weight w(j), with logits z = W h + b:

    loss = sum_j w(j) * (logsumexp(z_r(j)) - z_r(j)[y(j)])

The gradient with respect to a row's logits is (sum of its weights) * softmax(z) - weights at its target tokens. It is
formed chunk by chunk in the forward pass and multiplied into dh (and dW) at once, so that neither logits nor
probabilities are kept. One row may have several targets.

U rows with targets, M targets, V vocabulary, d hidden width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

# Elements of one chunk of logits: 8M float32 are 32 MiB. Half or twice that takes the same time.
CHUNK_ELEMENTS = 1 << 23


class _LinearHeadLoss(torch.autograd.Function):
    """The weighted sum and each target's own loss, for a plain linear head. Its gradient costs no second forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,  # [U, d]
        weight: torch.Tensor,  # [V, d]
        bias: torch.Tensor | None,  # [V]
        row: torch.Tensor,  # [M], sorted
        token: torch.Tensor,  # [M]
        target_weight: torch.Tensor,  # [M]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        losses = torch.empty(len(row), dtype=torch.float32 if hidden.dtype != torch.float64 else torch.float64)
        losses = losses.to(hidden.device)
        d_hidden = torch.empty_like(hidden) if need_hidden else None
        d_weight = torch.zeros_like(weight) if need_weight else None
        d_bias = torch.zeros_like(bias) if need_bias and bias is not None else None
        for start, stop, first, last in _chunks(row, len(hidden), len(weight)):
            h, r, y = hidden[start:stop], row[first:last] - start, token[first:last]
            logits = torch.nn.functional.linear(h, weight, bias).to(losses.dtype)
            chosen = logits[r, y]
            largest = logits.amax(dim=1, keepdim=True)
            exponentials = logits.sub_(largest).exp_()
            sums = exponentials.sum(dim=1, keepdim=True)
            losses[first:last] = (sums.log() + largest)[r, 0] - chosen  # logsumexp(z) - z[y]
            if not (need_hidden or need_weight or need_bias):
                del logits, exponentials  # or the next chunk would stand beside this one
                continue
            w = target_weight[first:last].to(logits.dtype)
            total = torch.zeros_like(sums).index_add_(0, r, w[:, None])
            d_logits = exponentials.mul_(total / sums).index_put_((r, y), -w, accumulate=True).to(h.dtype)
            if d_hidden is not None:
                torch.mm(d_logits, weight, out=d_hidden[start:stop])
            if d_weight is not None:
                d_weight.addmm_(d_logits.T, h)
            if d_bias is not None:
                d_bias += d_logits.sum(0)
            del logits, exponentials, d_logits
        ctx.gradients = (d_hidden, d_weight, d_bias)
        ctx.mark_non_differentiable(losses)
        return (losses.double() * target_weight.double()).sum().to(losses.dtype), losses

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[torch.Tensor | None, ...]:
        scale = grad_outputs[0]
        if ctx.gradients is None:
            raise RuntimeError("the gradient of this loss was handed out already; compute the loss again")
        gradients = [None if g is None else g.mul_(scale.to(g.dtype)) for g in ctx.gradients]
        ctx.gradients = None
        return (*gradients, None, None, None)


def cross_entropy(
    hidden: torch.Tensor,
    head: torch.nn.Module,
    row: torch.Tensor,
    token: torch.Tensor,
    weight: torch.Tensor,
    transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted summed cross-entropy (nats) and each target's own: hidden [T, d], row, token, weight [M] -> (), [M].

    `head` is the output layer; `transform` is what the architecture does to logits after it (a scale, a soft cap).
    A head that is more than one linear layer (a technique on it), or a transform, takes a path that computes each chunk
    of logits twice.
    """
    unique, inverse = torch.unique(row, return_inverse=True)
    inverse, order = torch.sort(inverse, stable=True)
    token, weight = token[order], weight[order]
    chosen = hidden.index_select(0, unique)
    if type(head) is torch.nn.Linear and transform is None:
        matrix: torch.Tensor = head.weight
        bias: torch.Tensor | None = head.bias
        if not torch.is_grad_enabled():  # the function forms gradients ahead, and cannot see that none is asked for
            matrix, bias = matrix.detach(), None if bias is None else bias.detach()
        total, losses = _LinearHeadLoss.apply(chosen, matrix, bias, inverse, token, weight)
    else:
        total, losses = _recomputed(chosen, head, inverse, token, weight, transform)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return total, losses[back]


def _recomputed(
    hidden: torch.Tensor,
    head: torch.nn.Module,
    row: torch.Tensor,
    token: torch.Tensor,
    weight: torch.Tensor,
    transform: Callable[[torch.Tensor], torch.Tensor] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    def chunk_losses(h: torch.Tensor, r: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        logits = head(h)
        logits = logits if transform is None else transform(logits)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return torch.logsumexp(logits, dim=1)[r] - logits[r, y]

    vocabulary = head.out_features if hasattr(head, "out_features") else hidden.shape[1]
    parts = []
    for start, stop, first, last in _chunks(row, len(hidden), int(vocabulary)):
        arguments = (hidden[start:stop], row[first:last] - start, token[first:last])
        parts.append(checkpoint(chunk_losses, *arguments, use_reentrant=False))
    losses = torch.cat(parts)
    return (losses.double() * weight.double()).sum().to(losses.dtype), losses.detach()


def _chunks(row: torch.Tensor, rows: int, vocabulary: int) -> list[tuple[int, int, int, int]]:
    """(first row, one past the last row, first target, one past the last target) of each chunk; `row` is sorted."""
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    starts = list(range(0, rows, size))
    borders = torch.searchsorted(row, torch.tensor([*starts, rows], device=row.device)).tolist()
    return [(s, min(s + size, rows), borders[i], borders[i + 1]) for i, s in enumerate(starts)]
