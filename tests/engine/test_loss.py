"""The chunked cross-entropy, against float64 log_softmax over all logits at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from heptune.engine import loss as engine
from heptune.engine.loss import cross_entropy
from heptune.models.anatomy import dissect
from heptune.techniques.lora import Lora
from tiny import tiny_model
from tolerances import FINITE_DIFFERENCE, FLOAT32, FLOAT64, assert_near

ROWS, WIDTH, VOCABULARY = 11, 6, 7


def softcap(logits: torch.Tensor) -> torch.Tensor:
    return 3 * torch.tanh(logits / 3)


@dataclass
class Problem:
    hidden: torch.Tensor
    head: nn.Linear
    row: torch.Tensor
    token: torch.Tensor
    weight: torch.Tensor

    def leaves(self) -> list[torch.Tensor]:
        return [self.hidden, *(p for p in self.head.parameters() if p.requires_grad)]


def problem(dtype: torch.dtype = torch.float64, bias: bool = True, trained: bool = True) -> Problem:
    """Rows in no order, some without a target, one with three (two of them equal), one with weight 0."""
    draw = torch.Generator().manual_seed(0)
    head = nn.Linear(WIDTH, VOCABULARY, bias=bias)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    hidden = torch.randn(ROWS, WIDTH, generator=draw).to(dtype).requires_grad_()
    row = torch.tensor([9, 2, 2, 10, 0, 2, 5, 7])
    token = torch.tensor([1, 3, 4, 6, 0, 4, 2, 5])
    weight = torch.tensor([1.0, 0.5, 2.0, 1.0, 0.0, 1.5, 1.0, 0.25])
    return Problem(hidden, head.to(dtype).requires_grad_(trained), row, token, weight)


def plain(p: Problem, transform: Callable[[torch.Tensor], torch.Tensor] | None) -> tuple[torch.Tensor, torch.Tensor]:
    logits = p.head(p.hidden).double()
    logits = logits if transform is None else transform(logits)
    losses = -logits.log_softmax(-1)[p.row, p.token]
    return (losses * p.weight).sum(), losses.detach()


CHUNKS = (1, VOCABULARY, 2 * VOCABULARY, 3 * VOCABULARY + 2, 1 << 24)  # one row at a time to all rows at once


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("transform", [None, softcap], ids=["linear", "transform"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("trained", [True, False], ids=["trained_head", "frozen_head"])
def test_loss_and_gradient_equal_log_softmax(
    chunk: int,
    transform: Callable[[torch.Tensor], torch.Tensor] | None,
    bias: bool,
    trained: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "CHUNK_ELEMENTS", chunk)
    p = problem(bias=bias, trained=trained)
    total, losses = cross_entropy(p.hidden, p.head, p.row, p.token, p.weight, transform)
    want_total, want_losses = plain(p, transform)
    assert_near(total.detach(), want_total.detach(), FLOAT64, "total")
    assert_near(losses, want_losses, FLOAT64, "losses")
    assert not losses.requires_grad
    got = torch.autograd.grad(3 * total, p.leaves())  # 3: the gradient that arrives is not always 1
    want = torch.autograd.grad(3 * want_total, p.leaves())
    for g, w in zip(got, want, strict=True):
        assert_near(g, w, FLOAT64)


@pytest.mark.parametrize("transform", [None, softcap], ids=["linear", "transform"])
def test_gradient_equals_finite_differences(transform: Callable[[torch.Tensor], torch.Tensor] | None) -> None:
    """Along random directions in all leaves at once. (gradcheck asks twice for one gradient, which the fused head loss
    gives away only once.)"""
    p = problem()

    def total() -> torch.Tensor:
        return cross_entropy(p.hidden, p.head, p.row, p.token, p.weight, transform)[0]

    gradient = torch.autograd.grad(total(), p.leaves())
    draw = torch.Generator().manual_seed(1)
    step = 1e-6
    for _ in range(5):
        directions = [torch.randn(leaf.shape, generator=draw, dtype=torch.float64) for leaf in p.leaves()]
        ends = []
        for sign in (1, -2):
            with torch.no_grad():
                for leaf, direction in zip(p.leaves(), directions, strict=True):
                    leaf.add_(sign * step * direction)
                ends.append(total())
        with torch.no_grad():
            for leaf, direction in zip(p.leaves(), directions, strict=True):
                leaf.add_(step * direction)
        slope = (ends[0] - ends[1]) / (2 * step)
        along = sum((g * d).sum() for g, d in zip(gradient, directions, strict=True))
        assert_near(torch.as_tensor(along), slope, FINITE_DIFFERENCE)


def test_the_recomputed_path_passes_gradcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CHUNK_ELEMENTS", 2 * VOCABULARY)
    p = problem()

    def total(hidden: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return cross_entropy(hidden, p.head, p.row, p.token, p.weight, softcap)[0]

    assert torch.autograd.gradcheck(total, tuple(p.leaves()))


@pytest.mark.parametrize("chunk", [64, 1 << 24])
def test_a_lora_on_the_head_is_trained_through_the_loss(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CHUNK_ELEMENTS", chunk)
    model = tiny_model("llama").double()
    attached = Lora(rank=2, alpha=3.0, targets=("head",)).attach(dissect(model), seed=0)
    a, b = attached.parameters.values()
    with torch.no_grad():
        b.normal_(generator=torch.Generator().manual_seed(0))
    hidden = torch.randn(ROWS, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    row, token, weight = torch.tensor([3, 3, 0, 8]), torch.tensor([5, 200, 319, 0]), torch.ones(4)
    head = model.get_output_embeddings()
    total, losses = cross_entropy(hidden, head, row, token, weight)
    logits = hidden @ (head.base.weight + 1.5 * b @ a).T
    want = -logits.log_softmax(-1)[row, token]
    assert_near(losses, want.detach(), FLOAT64)
    for got, wanted in zip(
        torch.autograd.grad(total, [hidden, a, b]), torch.autograd.grad(want.sum(), [hidden, a, b]), strict=True
    ):
        assert_near(got, wanted, FLOAT64)


def test_float32_keeps_float32s_precision() -> None:
    p = problem(torch.float32)
    total, losses = cross_entropy(p.hidden, p.head, p.row, p.token, p.weight)
    want_total, want_losses = plain(p, None)
    assert total.dtype == losses.dtype == torch.float32
    assert_near(losses, want_losses, FLOAT32)
    for got, want in zip(
        torch.autograd.grad(total, p.leaves()), torch.autograd.grad(want_total, p.leaves()), strict=True
    ):
        assert_near(got, want, FLOAT32)


def test_bfloat16_computes_the_loss_in_float32() -> None:
    p = problem(torch.bfloat16)
    total, losses = cross_entropy(p.hidden, p.head, p.row, p.token, p.weight)
    logits = p.head(p.hidden).float()
    assert_near(losses, -logits.log_softmax(-1)[p.row, p.token].detach(), FLOAT32)
    gradient = torch.autograd.grad(total, p.leaves())
    assert [g.dtype for g in gradient] == [torch.bfloat16] * 3


@pytest.mark.parametrize("transform", [None, softcap], ids=["linear", "transform"])
def test_huge_logits_stay_finite(transform: Callable[[torch.Tensor], torch.Tensor] | None) -> None:
    p = problem(torch.float32)
    with torch.no_grad():
        p.hidden.mul_(1e4)
    total, losses = cross_entropy(p.hidden, p.head, p.row, p.token, p.weight, transform)
    assert losses.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(total, p.leaves()))


def test_scoring_without_gradients_gives_the_same_losses() -> None:
    p = problem()
    with torch.no_grad():
        for transform in (None, softcap):
            total, losses = cross_entropy(p.hidden, p.head, p.row, p.token, p.weight, transform)
            assert_near(losses, plain(p, transform)[1], FLOAT64)
            assert not total.requires_grad
