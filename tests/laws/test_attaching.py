"""Laws 1, 2, 3, 6 and 7: what a technique changes in a model, and what it costs."""

from __future__ import annotations

import pytest
import torch

from heptune import techniques
from heptune.core.errors import TechniqueError
from heptune.engine.forward import Forward
from laws.cases import (
    BATCH,
    CASES,
    MAIN_CASES,
    Case,
    assert_same_state,
    disturb,
    logits,
    state,
    with_capability,
    without_capability,
)
from tolerances import FLOAT64_WITH_FLOAT32_INSIDE, assert_near


def test_every_technique_has_a_card_a_name_and_a_reference() -> None:
    for name in techniques.names():
        assert techniques.get(name).name == name
        card = techniques.card(name)
        for heading in ("Principle", "Advantages", "Costs", "Use it when", "Rather not when", "Paper"):
            assert f"\n{heading}\n" in card, f"{name}: {heading}"


@pytest.mark.parametrize("case", with_capability("identity_start"), ids=str)
def test_law_1_attaching_changes_nothing(case: Case) -> None:
    anatomy = case.base(torch.float32)
    before = logits(anatomy)
    attached = case.build().attach(anatomy, seed=0)
    assert torch.equal(logits(anatomy), before)
    disturb(attached)
    assert not torch.equal(logits(anatomy), before), "the technique is not in the model at all"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_law_2_only_the_declared_parameters_receive_a_gradient(case: Case) -> None:
    anatomy, attached = case.trained()
    with Forward(anatomy).loss(BATCH) as batch:
        batch.total.backward()
    declared = {id(p): name for name, p in attached.parameters.items()}
    for name, parameter in attached.parameters.items():
        assert parameter.requires_grad and parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0 or _may_be_zero(name), name
    for name, parameter in anatomy.model.named_parameters():
        if id(parameter) not in declared:
            assert parameter.grad is None and not parameter.requires_grad, name


def _may_be_zero(name: str) -> bool:
    """A bias of keys shifts all scores of a query alike, which softmax does not see."""
    return name.endswith("k_proj.bias")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_law_3_cost_equals_the_counted_elements(case: Case) -> None:
    anatomy = case.base(torch.float32)
    technique = case.build()
    cost = technique.cost(anatomy.shape)
    attached = technique.attach(anatomy, seed=0)
    parameters = list(attached.parameters.values())
    assert len({id(p) for p in parameters}) == len(parameters)
    assert cost.trainable == sum(p.numel() for p in parameters)

    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kept = [t for values in optimizer.state.values() for name, t in values.items() if name != "step"]
    assert cost.optimizer == sum(t.numel() for t in kept)


@pytest.mark.parametrize("case", MAIN_CASES, ids=str)
def test_attaching_is_a_function_of_the_seed(case: Case) -> None:
    first, second = (case.build().attach(case.base(torch.float32), seed=5) for _ in range(2))
    assert list(first.parameters) == list(second.parameters)
    for name, parameter in first.parameters.items():
        assert torch.equal(parameter, second.parameters[name]), name


@pytest.mark.parametrize("case", with_capability("detachable"), ids=str)
def test_law_6_detaching_gives_the_base_back(case: Case) -> None:
    anatomy = case.base(torch.float32)
    before, before_logits = state(anatomy), logits(anatomy)
    modules = [(path, id(module)) for path, module in anatomy.model.named_modules()]
    attached = case.build().attach(anatomy, seed=0)
    disturb(attached)
    attached.detach()
    assert_same_state(state(anatomy), before)
    assert [(path, id(module)) for path, module in anatomy.model.named_modules()] == modules
    assert torch.equal(logits(anatomy), before_logits)


@pytest.mark.parametrize("case", without_capability("detachable"), ids=str)
def test_law_6_what_cannot_be_detached_says_so(case: Case) -> None:
    _, attached = case.trained()
    with pytest.raises(TechniqueError):
        attached.detach()


@pytest.mark.parametrize("case", with_capability("mergeable"), ids=str)
def test_law_7_merged_equals_unmerged(case: Case) -> None:
    anatomy, attached = case.trained()
    names = list(state(case.base()))
    unmerged = logits(anatomy)
    attached.merge()
    assert_near(logits(anatomy), unmerged, FLOAT64_WITH_FLOAT32_INSIDE, "logits")
    assert list(state(anatomy)) == names, "merging leaves an ordinary model"
