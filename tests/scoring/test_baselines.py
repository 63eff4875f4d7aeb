from __future__ import annotations

import pytest

from heptune.core.errors import DataError
from heptune.scoring.baselines import majority, tfidf

TEXTS = ["good film", "a good story", "very good acting", "bad film", "a bad story", "very bad acting"]
LABELS = ["pos", "pos", "pos", "neg", "neg", "neg"]


def test_majority() -> None:
    assert majority(["b", "a", "b"], 3) == ["b", "b", "b"]
    assert majority(["b", "a"], 1) == ["a"]
    assert majority(["b"], 0) == []
    with pytest.raises(DataError, match="training part is empty"):
        majority([], 2)


def test_tfidf_learns_words() -> None:
    assert tfidf(TEXTS, LABELS, ["good", "a bad film", "the good one"]) == ["pos", "neg", "pos"]


def test_tfidf_learns_word_pairs() -> None:
    """The same words in both classes: only pairs tell them apart."""
    texts = ["not good but bad", "not bad but good"] * 3
    assert tfidf(texts, ["neg", "pos"] * 3, ["not good but bad", "not bad but good"]) == ["neg", "pos"]


def test_tfidf_is_deterministic() -> None:
    texts = ["film", "story", "acting", "unknown words"]
    assert tfidf(TEXTS, LABELS, texts) == tfidf(TEXTS, LABELS, texts)


def test_tfidf_where_nothing_can_be_fitted() -> None:
    assert tfidf(["x y", "z"], ["b", "b"], ["q"]) == ["b"]
    assert tfidf(["?", "!", "a"], ["u", "v", "v"], ["?"]) == ["v"]
    assert tfidf(TEXTS, LABELS, []) == []
