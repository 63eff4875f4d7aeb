"""Marked examples and linear heads: many texts in one row are what each is alone, in every encoder and technique."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from heptune import techniques
from heptune.core.errors import TechniqueError
from heptune.engine.forward import Forward
from heptune.engine.loop import accumulate
from heptune.engine.marked import lay_out, portions
from heptune.engine.settings import Settings
from heptune.models.anatomy import Anatomy, dissect
from heptune.models.quantization import quantize
from heptune.models.readout import Readout
from heptune.tasks.example import WHOLE, Example
from tiny import ENCODERS, VOCABULARY, tiny_encoder, tiny_model

SMALL: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2},
    "qlora": {"rank": 2},
    "freeze": {"layers": 1},
    "adapter": {"reduction": 4},
    "prompt": {"virtual_tokens": 3, "init": "random"},
    "p_tuning": {"prompt_template": "{p:2} text {p:1}", "encoder_hidden": 4},
    "prefix": {"virtual_tokens": 3, "init": "random", "encoder_hidden": 4},
    "p_tuning_v2": {"virtual_tokens": 3, "init": "random"},
}


def texts(count: int = 4, seed: int = 0) -> list[tuple[int, ...]]:
    draw = np.random.default_rng(seed)
    return [tuple(map(int, draw.integers(3, VOCABULARY, draw.integers(2, 12)))) for _ in range(count)]


def marked(place: str) -> list[Example]:
    places = {"first": lambda t: 0, "last": lambda t: len(t) - 1, "mean": lambda t: WHOLE}
    return [Example.marked(t, ((places[place](t), i % 3),), i) for i, t in enumerate(texts())]


def attached_to(anatomy: Anatomy, name: str) -> Any:
    if name == "qlora":
        quantize(anatomy)
    return techniques.build(name, SMALL.get(name, {})).attach(anatomy, 0)


def test_the_layout() -> None:
    examples = [Example.marked((-1, 7, 8), ((1, 2),), 0), Example.marked((9, 6), ((WHOLE, 0), (0, 1)), 1)]
    batch = lay_out(examples, causal=False, padded=False)
    assert batch.token.tolist() == [-1, 7, 8, 9, 6] and batch.position.tolist() == [0, 1, 2, 0, 1]
    assert batch.begin.tolist() == [0, 0, 0, 3, 3] and batch.end.tolist() == [3, 3, 3, 5, 5]
    assert batch.owner.tolist() == [-1, 0, 0, 1, 1], "a virtual token counts for no mean"
    assert batch.row.tolist() == [1, 5 + 1, 3] and batch.code.tolist() == [2, 0, 1]
    assert batch.example.tolist() == [0, 1, 1]
    assert lay_out(examples, causal=True, padded=False).begin.tolist() == [0, 1, 2, 3, 4]
    padded = lay_out(examples, causal=False, padded=True)
    assert padded.token.tolist() == [-1, 7, 8, 9, 6, 0] and padded.filling.tolist() == [False] * 5 + [True]
    assert padded.width == 3 and padded.row.tolist() == [1, 6 + 1, 3]
    with pytest.raises(ValueError, match="no marks"):
        lay_out([Example((1, 2), (False, True), 0)], causal=True, padded=False)


@pytest.mark.parametrize("padded", [False, True])
def test_portions_hold_every_example_and_the_budget(padded: bool) -> None:
    examples = [Example.marked(t, ((0, 0),), i) for i, t in enumerate(texts(30))]
    found = list(portions(examples, 25, padded=padded))
    assert sorted(e.record for portion in found for e in portion) == list(range(30))
    assert all(len(p) == 1 or lay_out(p, causal=False, padded=padded).rows <= 25 for p in found)


@pytest.mark.parametrize("family", ENCODERS)
def test_texts_in_one_row_have_the_states_that_they_have_alone(family: str) -> None:
    anatomy = dissect(tiny_encoder(family).double())
    forward = Forward(anatomy)
    assert forward.attends_over_forests == (family != "deberta-v2")
    every = [Example.marked(t, tuple((i, 0) for i in range(len(t))), n) for n, t in enumerate(texts())]
    with torch.no_grad(), forward._seen(every) as (got, _, _, _):
        pass
    with torch.no_grad():
        want = torch.cat([anatomy.model(input_ids=torch.tensor([e.tokens])).last_hidden_state[0] for e in every])
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("place", ["first", "last", "mean"])
@pytest.mark.parametrize("name", techniques.names())
@pytest.mark.parametrize("family", [*ENCODERS, "llama", "gpt2", "gemma3"])
def test_the_gradient_is_that_of_one_text_at_a_time(family: str, name: str, place: str) -> None:
    """The reference runs one text in an ordinary call, with the virtual tokens among its ids, and looks where they are
    not: neither the pooled position nor the labels shift."""
    causal = family not in ENCODERS
    model = tiny_model(family) if causal else tiny_encoder(family)
    anatomy = dissect(model.double())
    forward = Forward(anatomy)
    forward.readout = Readout(anatomy, 3, False, seed=1)
    try:
        attached = attached_to(anatomy, name)
    except TechniqueError:
        assert family == "deberta-v2" and name in ("prefix", "p_tuning_v2")
        return
    examples = marked(place)
    parameters = {**attached.parameters, "weight": forward.readout.weight, "bias": forward.readout.bias}
    loss, _ = accumulate(forward, attached, examples, Settings(micro_tokens=15), 0)
    got = {n: p.grad for n, p in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = None
    attached.begin_step(0)
    front = anatomy.placement.front + anatomy.placement.inner
    losses = []
    for example in examples:
        ids = torch.tensor([[*range(-1, -1 - front, -1), *example.tokens]])
        hidden = anatomy.states(input_ids=ids)[0, front:]
        (where, code), *_ = example.marks
        state = hidden.mean(0) if where == WHOLE else hidden[where]
        losses.append(F.cross_entropy(forward.readout(state[None]), torch.tensor([code])))
    torch.stack(losses).mean().backward()
    assert loss == pytest.approx(float(torch.stack(losses).mean()), rel=1e-9)
    for name_, parameter in parameters.items():
        want = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        have = torch.zeros_like(parameter) if got[name_] is None else got[name_]
        torch.testing.assert_close(have, want, rtol=1e-6, atol=1e-9, msg=name_)


def test_weights_of_examples_count() -> None:
    anatomy = dissect(tiny_encoder("bert").double())
    forward = Forward(anatomy)
    forward.readout = Readout(anatomy, 3, False, seed=1)
    attached = techniques.build("lora", {"rank": 2}).attach(anatomy, 0)
    plain, heavy = marked("first")[:2]
    heavy = Example.marked(heavy.tokens, heavy.marks, heavy.record, weight=3.0)
    (a, _), (b, _) = (accumulate(forward, attached, [one], Settings(), 0) for one in (plain, heavy))
    both, _ = accumulate(forward, attached, [plain, heavy], Settings(), 0)
    assert both == pytest.approx((a + 3 * b) / 4, rel=1e-9)


def test_a_head_of_independent_classes_is_torchs() -> None:
    anatomy = dissect(tiny_encoder("bert").double())
    readout = Readout(anatomy, 4, True, seed=0)
    hidden = torch.randn(5, 32, dtype=torch.float64)
    truth = torch.tensor([[1, 0, 0, 1]] * 5)
    rows = hidden.repeat_interleave(4, 0)
    code = torch.arange(4).repeat(5) * 2 + truth.flatten()
    want = F.binary_cross_entropy_with_logits(readout(hidden), truth.double(), reduction="none").flatten()
    torch.testing.assert_close(readout.losses(rows, code), want)
