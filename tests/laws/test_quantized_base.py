"""Every technique that keeps the base frozen, on a base in 4 bits: the laws' loss, gradient and merging hold there too.

The plain side is the technique's reference in a model whose weights went through the reference's own 4 bits.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from heptune import techniques
from heptune.engine.forward import Forward
from heptune.models.quantization import QuantizedLinear, quantize
from laws.cases import BATCH, MAIN_CASES, Case, disturb, logits, saved
from reference.causal import losses_and_gradient
from reference.nf4 import rounded
from tolerances import FLOAT64_WITH_FLOAT32_INSIDE, assert_near

# Those that quantize the base themselves have this in every law already.
NOT_HERE = {"trains_base", "quantizes_base"}
CASES = [
    case
    for case in MAIN_CASES
    if not NOT_HERE & techniques.get(case.technique).capabilities and case.family in ("llama", "gpt2", "gemma3")
]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_loss_and_gradient_equal_the_reference_on_rounded_weights(case: Case, recompute: bool) -> None:
    model = case.base().model
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | Conv1D) and module is not model.get_output_embeddings():
                module.weight.copy_(rounded(module.weight))
    model.set_attn_implementation("eager")
    anatomy = case.base()
    quantize(anatomy)
    attached = case.build().attach(anatomy, seed=0)
    disturb(attached)
    values = {name: p.detach() for name, p in attached.parameters.items()}
    leaves = importlib.import_module(f"reference.{case.technique}").apply(model, case.build(), values)
    losses, gradient = losses_and_gradient(model, BATCH, leaves)

    forward = Forward(anatomy, recompute=recompute)
    assert forward.attends_over_forests
    with forward.loss(BATCH) as batch:
        batch.total.backward()
    assert_near(batch.total.detach(), losses.sum(), FLOAT64_WITH_FLOAT32_INSIDE, "loss")
    scale = max(float(g.abs().max()) for g in gradient.values())
    for name, parameter in attached.parameters.items():
        assert parameter.grad is not None, name
        assert float((parameter.grad - gradient[name]).abs().max()) <= FLOAT64_WITH_FLOAT32_INSIDE * scale, name


@pytest.mark.parametrize("case", [c for c in CASES if c.family == "llama"], ids=str)
def test_saved_and_restored_on_it_bit_for_bit(case: Case, tmp_path: Path) -> None:
    anatomy = case.base(torch.float32)
    quantize(anatomy)
    attached = case.build().attach(anatomy, seed=0)
    disturb(attached)
    folder = saved(attached, tmp_path / "artifact")
    again = case.base(torch.float32)
    quantize(again)
    restored = techniques.get(case.technique).restore(again, folder)
    assert list(restored.parameters) == list(attached.parameters)
    with torch.no_grad():
        assert (Forward(again).score(BATCH) == Forward(anatomy).score(BATCH)).all()


@pytest.mark.parametrize("case", [c for c in CASES if "mergeable" in techniques.get(c.technique).capabilities], ids=str)
def test_merging_leaves_an_ordinary_model(case: Case) -> None:
    anatomy = case.base()
    quantize(anatomy)
    attached = case.build().attach(anatomy, seed=0)
    disturb(attached)
    unmerged = logits(anatomy)
    attached.merge()
    assert not any(isinstance(module, QuantizedLinear) for module in anatomy.model.modules())
    assert_near(logits(anatomy), unmerged, FLOAT64_WITH_FLOAT32_INSIDE, "logits")
