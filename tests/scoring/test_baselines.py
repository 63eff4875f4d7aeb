from __future__ import annotations

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from heptune.core.errors import DataError
from heptune.scoring.baselines import NEIGHBOURS, majority, most_similar, nearest, nearest_places, tfidf

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


def test_nearest_takes_the_label_of_the_most_similar_text() -> None:
    assert nearest(TEXTS, LABELS, ["a good story", "very bad acting", "good"]) == ["pos", "neg", "pos"]
    assert nearest(["red apple", "green pear"], ["r", "g"], ["pear", "an apple"]) == ["g", "r"]


def test_nearest_against_scikit_learn() -> None:
    """Votes of k neighbours weighted by similarity, k chosen by leaving each training text out: by scikit-learn."""
    random = np.random.default_rng(0)
    words = [f"word{i}" for i in range(60)]
    labels = [str(x) for x in random.choice(["a", "b", "c"], 160)]
    offset = {"a": 0, "b": 15, "c": 30}
    texts = [" ".join(random.choice(words[offset[x] : offset[x] + 30], 8)) for x in labels]
    train, asked, known = texts[:120], texts[120:], labels[:120]
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(train)

    def model(k: int) -> KNeighborsClassifier:
        return KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=lambda distance: 1 - distance)

    x, y = vectors.transform(train), np.array(known)
    hits = {k: cross_val_score(model(k), x, y, cv=LeaveOneOut()).sum() for k in NEIGHBOURS}
    # Left out, a text's words keep their weights in ours; scikit-learn's fold sees the same vectors.
    best = max(NEIGHBOURS, key=lambda k: (hits[k], -k))
    assert nearest(train, known, asked) == model(best).fit(x, y).predict(vectors.transform(asked)).tolist()


def test_nearest_where_nothing_is_alike() -> None:
    assert nearest(TEXTS, ["b", "b", "b", "a", "a", "b"], ["unheard of words"]) == ["b"]
    assert nearest(["?", "!"], ["b", "a"], ["?"]) == ["a"]
    assert nearest(["x y z"], ["b"], ["q", "r"]) == ["b", "b"] and nearest(TEXTS, LABELS, []) == []
    with pytest.raises(DataError, match="training part is empty"):
        nearest([], [], ["a"])


def test_nearest_places() -> None:
    assert nearest_places(TEXTS, ["very bad acting indeed", "zzz", "a good story"]) == [5, None, 1]
    assert nearest_places(["same words", "same words"], ["same words"]) == [0]
    assert nearest_places(TEXTS, []) == [] and nearest_places([], ["a"]) == [None]


def test_the_most_similar_candidate_is_that_of_scikit_learn() -> None:

    texts = ["where does the river end", "who wrote the old book", "zebra"]
    candidates = [
        ["A book is old.", "The river is long.", "The river will end in the sea."],
        ["The book was written by Ada.", "Ada wrote it.", "Who wrote the book?", "The river is long."],
        ["nothing", "at all"],
    ]
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    vectorizer.fit(list(dict.fromkeys(text for own in candidates for text in own)))
    expected = [
        int(cosine_similarity(vectorizer.transform([text]), vectorizer.transform(own)).argmax())
        for text, own in zip(texts, candidates, strict=True)
    ]
    assert most_similar(texts, candidates) == expected == [2, 2, 0]
    assert most_similar([], []) == []
    assert most_similar(["a"], [["!", "?"]]) == [0], "no word at all"
