"""Tokens are drawn from the distribution that the settings describe; text grows as it should."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from heptune.service import choice as choices
from heptune.service.choice import Choice, choose
from heptune.service.text import Growing
from tiny import tiny_tokenizer


def drawn(logits: torch.Tensor, choice: Choice, place: int = 0) -> int:
    (found,) = choose(logits[None], [choice], [[0] * place], [None])
    return found.token


@pytest.mark.parametrize("sorted_first", [4, 1024])
def test_draws_follow_transformers_distribution(sorted_first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "SORTED_FIRST", sorted_first)
    logits = torch.randn(20, generator=torch.Generator().manual_seed(0)) * 2
    warped = LogitsProcessorList([TemperatureLogitsWarper(0.8), TopPLogitsWarper(0.9)])(
        torch.zeros(1, 0, dtype=torch.long), logits[None].clone()
    )
    want = warped[0].softmax(-1).double().numpy()
    count = 4000
    found = np.bincount([drawn(logits, Choice(0.8, 0.9, seed)) for seed in range(count)], minlength=20) / count
    assert not found[want == 0].any()
    assert np.abs(found - want).max() < 4 * np.sqrt(0.25 / count)


def test_a_draw_depends_on_seed_and_place_alone() -> None:
    logits = torch.randn(3, 50)
    choice = Choice(1.0, 1.0, seed=7)
    together = choose(logits, [choice, Choice(), choice], [[1, 2], [], [1, 2]], [None] * 3)
    assert together[0].token == drawn(logits[0], choice, 2)
    assert together[2].token == drawn(logits[2], choice, 2)
    assert len({drawn(logits[0], choice, place) for place in range(40)}) > 5


def test_what_is_allowed_is_all_that_can_come() -> None:
    logits = torch.randn(1, 50)
    for temperature in (0.0, 2.0):
        (found,) = choose(logits, [Choice(temperature)], [[]], [np.array([3, 9])])
        assert found.token in (3, 9)


TOKENIZER = tiny_tokenizer()


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40), st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_pieces_add_up_to_the_text_before_its_first_stop(text: str, stops: list[str]) -> None:
    tokens = TOKENIZER.encode(text, add_special_tokens=False)
    whole = TOKENIZER.decode(tokens, skip_special_tokens=True)
    growing = Growing(TOKENIZER, stops)
    pieces = []
    for token in tokens:
        growing.add(token)
        if growing.stopped:
            break
        pieces.append(growing.piece())
        assert not any(stop in "".join(pieces) for stop in stops)
    growing.end()
    pieces.append(growing.piece(final=True))
    places = [whole.find(stop) for stop in stops if stop in whole]
    assert "".join(pieces) == (whole[: min(places)] if places else whole)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=40))
def test_tokens_that_are_no_text_together_are_read_all_the_same(tokens: list[int]) -> None:
    growing = Growing(TOKENIZER)
    for token in tokens:
        growing.add(token)
        growing.piece()
    growing.end()
    growing.piece(final=True)
    assert growing.text == TOKENIZER.decode(tokens, skip_special_tokens=True)
