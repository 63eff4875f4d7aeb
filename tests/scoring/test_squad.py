"""Exact match and token F1 against a plain statement of the official script's rules."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heptune.scoring.squad import exact_match, normalised, token_f1
from reference import squad

# Articles, punctuation and spaces often enough to meet every rule; letters of many scripts and case rules besides.
PIECES = st.sampled_from(
    [
        "the",
        "The",
        "a",
        "an",
        "A.",
        " ",
        "  ",
        "\t",
        "-",
        "_",
        "'s",
        "ß",
        "İ",
        "\u00a0",
        "É",
        "“",
        "。",
        "9",
        "x",
        "and",
    ]
)
TEXTS = st.lists(PIECES | st.text(max_size=4), max_size=8).map("".join)


@settings(max_examples=500, deadline=None)
@given(said=TEXTS, accepted=st.lists(TEXTS, min_size=1, max_size=4))
def test_scores_are_those_of_the_official_rules(said: str, accepted: list[str]) -> None:
    exact, f1 = squad.scores(said, accepted)
    assert exact_match(said, accepted) == exact
    assert token_f1(said, accepted) == pytest.approx(f1, abs=1e-12)


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_normalisation(text: str) -> None:
    assert normalised(text) == squad.normalise_answer(text)
    assert exact_match(text, [text]) == token_f1(text, [text]) == 1


@pytest.mark.parametrize(
    ("said", "accepted", "exact", "f1"),
    [
        ("The  Eiffel Tower!", ["eiffel tower"], 1, 1),
        ("Eiffel Tower in Paris", ["Paris", "the Eiffel tower"], 0, 2 * 2 / (4 + 2)),
        ("", [""], 1, 1),
        ("Paris", [""], 0, 0),
        ("", ["Paris"], 0, 0),
        ("the", ["an", "Paris"], 0, 0),
        ("the", ["an"], 1, 1),
        ("Straße", ["STRASSE"], 0, 0),
        ("anthem", ["them"], 0, 0),
        ("a_the", ["athe"], 1, 1),
        ("no no no", ["no"], 0, 2 * 1 / (3 + 1)),
    ],
)
def test_cases(said: str, accepted: list[str], exact: float, f1: float) -> None:
    assert (exact_match(said, accepted), token_f1(said, accepted)) == (exact, pytest.approx(f1))
