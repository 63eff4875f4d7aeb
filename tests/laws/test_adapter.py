"""Adapter Tuning's own laws: what it keeps for the backward pass, where that stops, precision, settings, merging."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from heptune import techniques
from heptune.core.errors import TechniqueError, UsageError
from heptune.engine.forward import Forward
from heptune.models.anatomy import dissect
from heptune.techniques.adapter import ACTIVATIONS, VARIANTS, Adapter
from laws.cases import BATCH, TOKENS, Case, disturb, logits, saved
from tiny import tiny_model


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_activations_are_what_the_adapters_keep(variant: str, activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts the distinct tensors that the adapters' operations save for the backward pass, weights excepted."""
    technique = Adapter(variant=variant, reduction=4, activation=activation)
    anatomy = dissect(tiny_model("llama"))
    attached = technique.attach(anatomy, seed=0)
    own = {p.data_ptr() for p in attached.parameters.values()}
    # Kept alive until the end: a freed tensor's address could be given out again.
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor
        return tensor

    for module in attached.modules.values():
        plain = module.forward

        def forward(x: torch.Tensor, plain: Any = plain) -> torch.Tensor:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                return plain(x)

        monkeypatch.setattr(module, "forward", forward)
    anatomy.model(input_ids=TOKENS, use_cache=False)
    assert sum(t.numel() for t in kept.values()) == TOKENS.numel() * technique.cost(anatomy.shape).activations


def test_nothing_below_the_lowest_adapter_is_differentiated() -> None:
    anatomy = dissect(tiny_model("gemma3"))
    Adapter(leave_out=(0, 1)).attach(anatomy, seed=0)
    differentiated = {}
    for index, layer in enumerate(anatomy.layers):
        layer.register_forward_hook(lambda m, i, out, index=index: differentiated.update({index: out.requires_grad}))
    anatomy.model(input_ids=TOKENS, use_cache=False)
    assert differentiated == {0: False, 1: False, 2: True}


def test_parameters_are_float32_beside_a_half_precision_base() -> None:
    anatomy = dissect(tiny_model("llama").bfloat16())
    before = logits(anatomy)
    attached = Adapter(reduction=4).attach(anatomy, seed=0)
    assert {p.dtype for p in attached.parameters.values()} == {torch.float32}
    assert logits(anatomy).dtype == torch.bfloat16 and torch.equal(logits(anatomy), before)
    disturb(attached)
    assert not torch.equal(logits(anatomy), before)
    with Forward(anatomy).loss(BATCH) as batch:
        batch.total.backward()
    for name, parameter in attached.parameters.items():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_it_can_be_attached_again_after_detaching() -> None:
    anatomy = dissect(tiny_model("phi3"))
    first = Adapter(reduction=4).attach(anatomy, seed=0)
    disturb(first)
    once = logits(anatomy)
    first.detach()
    second = Adapter(reduction=4).attach(anatomy, seed=0)
    disturb(second)
    assert torch.equal(logits(anatomy), once)


def test_an_error_in_the_middle_of_a_forward_leaves_nothing_behind() -> None:
    anatomy = dissect(tiny_model("llama"))
    disturb(Adapter(reduction=4).attach(anatomy, seed=0))
    once = logits(anatomy)

    def fail(*_: Any) -> None:
        raise RuntimeError("stopped")

    handle = anatomy.layers[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="stopped"):
        logits(anatomy)
    handle.remove()
    assert torch.equal(logits(anatomy), once)


def test_the_widths_are_those_of_the_library() -> None:
    assert [Adapter(reduction=r).width(32) for r in (16, 5, 2.5, 1, 0.5, 64)] == [2, 6, 12, 32, 64, 1]


def test_it_is_not_merged() -> None:
    _, attached = Case("adapter", "pfeiffer", "llama").trained()
    with pytest.raises(TechniqueError, match="not linear"):
        attached.merge()


def test_settings_out_of_range_are_refused() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"variant": "pfeifer"}, "did you mean pfeiffer"),
        ({"activation": "swich"}, "did you mean swish"),
        ({"reduction": 0}, "reduction is 0"),
        ({"reduction": float("nan")}, "reduction is nan"),
        ({"scaling": 0.0}, "scaling is 0"),
        ({"scaling": float("inf")}, "scaling is inf"),
    ]
    for settings, message in wrong:
        with pytest.raises(TechniqueError, match=message):
            Adapter(**settings)
    anatomy = dissect(tiny_model("llama"))
    for leave_out, message in (((2,), "layer 2"), ((-1,), "layer -1"), ((0, 1), "all layers")):
        with pytest.raises(TechniqueError, match=message):
            Adapter(leave_out=leave_out).cost(anatomy.shape)
        with pytest.raises(TechniqueError, match=message):
            Adapter(leave_out=leave_out).attach(anatomy, seed=0)
    assert all(p.requires_grad for p in anatomy.model.parameters()), "a refusal changes nothing"


def test_settings_given_as_text_are_converted() -> None:
    text = {"variant": "parallel", "reduction": "2.5", "leave-out": "0, 3", "scaling": "2", "activation": "tanh"}
    assert techniques.build("adapter", text) == Adapter("parallel", 2.5, "tanh", 2.0, (0, 3))
    with pytest.raises(UsageError, match="leave_out takes whole numbers"):
        techniques.build("adapter", {"leave_out": "first"})


def test_the_settings_survive_saving(tmp_path: Path) -> None:
    settings = Adapter(variant="houlsby", reduction=3.5, leave_out=(1,), learning_rate=3e-4)
    folder = saved(settings.attach(dissect(tiny_model("glm4")), seed=0), tmp_path / "artifact")
    assert Adapter.restore(dissect(tiny_model("glm4")), folder).settings == settings
