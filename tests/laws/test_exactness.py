"""Laws 4 and 8: the engine's loss and gradient are those of the plain equations, one example at a time.

The plain side is a model of transformers with its eager attention and the technique's independent reference
(tests/reference), differentiated by autograd; nothing of the engine runs in it. Whatever way the engine computes the
same batch, the numbers must be the same.
"""

from __future__ import annotations

import functools
import importlib

import pytest
import torch

from heptune.core.events import Event, Note
from heptune.engine import forward as engine
from heptune.engine.forest import portions
from heptune.engine.forward import Forward
from laws.cases import BATCH, CASES, MAIN_CASES, Case
from reference.causal import losses_and_gradient
from tolerances import FLOAT64_WITH_FLOAT32_INSIDE, assert_near


@functools.cache
def plain(case: Case) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Each example's loss and the whole gradient, from the reference."""
    _, attached = case.trained()
    model = case.base().model
    model.set_attn_implementation("eager")
    values = {name: p.detach() for name, p in attached.parameters.items()}
    leaves = importlib.import_module(f"reference.{case.technique}").apply(model, case.build(), values)
    assert leaves.keys() == values.keys(), "the reference trains other tensors"
    return losses_and_gradient(model, BATCH, leaves)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_law_4_forest_equals_the_independent_reference(case: Case) -> None:
    anatomy, attached = case.trained()
    forward = Forward(anatomy)
    assert forward.attends_over_forests
    with forward.loss(BATCH) as batch:
        batch.total.backward()
    losses, gradient = plain(case)
    got = torch.zeros(len(BATCH), dtype=torch.float64).index_add_(0, batch.example, batch.losses.double())
    assert_near(got, losses, FLOAT64_WITH_FLOAT32_INSIDE, "losses")
    assert_near(batch.total.detach(), losses.sum(), FLOAT64_WITH_FLOAT32_INSIDE, "total")
    _assert_gradient(attached.parameters, gradient)


def _assert_gradient(parameters: dict[str, torch.nn.Parameter], want: dict[str, torch.Tensor]) -> None:
    # One scale for the whole gradient: a key bias's own is zero but for rounding.
    scale = max(float(g.abs().max()) for g in want.values())
    for name, parameter in parameters.items():
        assert parameter.grad is not None, name
        assert float((parameter.grad - want[name]).abs().max()) <= FLOAT64_WITH_FLOAT32_INSIDE * scale, name


@pytest.mark.parametrize("case", MAIN_CASES, ids=str)
@pytest.mark.parametrize("way", ["reversed", "unshared", "portions", "recomputed", "padded"])
def test_law_8_the_way_of_computing_changes_nothing(case: Case, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "padded":
        monkeypatch.setattr(engine, "install", lambda model, layers: None)
    notes: list[Event] = []
    anatomy, attached = case.trained()
    forward = Forward(anatomy, recompute=way == "recomputed", listener=notes.append)
    assert forward.attends_over_forests == (way != "padded")
    assert any(isinstance(note, Note) for note in notes) == (way == "padded")
    batches = {"reversed": [BATCH[::-1]], "portions": list(portions(BATCH, 18))}.get(way, [BATCH])
    assert sorted(e.record for batch in batches for e in batch) == list(range(len(BATCH)))
    for examples in batches:
        with forward.loss(examples, share=way != "unshared") as batch:
            batch.total.backward()
    _assert_gradient(attached.parameters, plain(case)[1])


@pytest.mark.parametrize("case", MAIN_CASES, ids=str)
def test_law_8_batch_mates_do_not_change_a_score(case: Case) -> None:
    anatomy, _ = case.trained()
    forward = Forward(anatomy)
    together = torch.from_numpy(forward.score(BATCH))
    alone = torch.cat([torch.from_numpy(forward.score([example])) for example in BATCH])
    assert_near(together, alone, FLOAT64_WITH_FLOAT32_INSIDE, "scores")
    assert_near(together, plain(case)[0], FLOAT64_WITH_FLOAT32_INSIDE, "scores")


def test_law_8_sharing_saves_rows() -> None:
    forward = Forward(MAIN_CASES[0].base())
    rows = {}
    for share in (True, False):
        with torch.no_grad(), forward.loss(BATCH, share=share) as batch:
            rows[share] = batch.rows
    assert rows[False] == sum(len(e.tokens) - 1 for e in BATCH)  # the last token of each is a target and needs no row
    assert rows[True] < rows[False] / 1.5


def test_two_forwards_over_one_model_agree() -> None:
    anatomy = MAIN_CASES[0].base()
    first = Forward(anatomy)
    before = first.score(BATCH)
    second = Forward(anatomy)
    assert (first.score(BATCH) == before).all() and (second.score(BATCH) == before).all()
