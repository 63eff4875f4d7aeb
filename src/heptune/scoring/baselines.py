"""What a tuned model has to beat: the most frequent label, a linear model on word counts, the nearest training texts;
where entities are asked for, those of the training texts looked up.

None costs more than seconds. A tuned model that is not better than all has learned nothing worth its cost. The fourth,
the untouched base with examples in its prompt, is `scoring/shots.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from heptune.core.errors import DataError
from heptune.data.record import Record, Span
from heptune.tasks.extract import flat, stands_alone

# Neighbours that are tried; odd, so that two labels seldom tie.
NEIGHBOURS = (1, 3, 5, 9, 15)
# Training texts that the number of neighbours is chosen on: its accuracy is then known to 1 point.
CHOICE_LIMIT = 2000
_ROWS_AT_ONCE = 256  # of similarities: 256 x 10,000 training texts are 20 MB


def majority(train_labels: Sequence[str], count: int) -> list[str]:
    """`count` times the most frequent training label; of equally frequent ones the first in the alphabet."""
    if not train_labels:
        raise DataError("the majority label needs at least one training example; the training part is empty")
    frequency = Counter(train_labels)
    return [min(frequency, key=lambda label: (-frequency[label], label))] * count


def tfidf(train_texts: Sequence[str], train_labels: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Predictions for `texts` by logistic regression on TF-IDF weights of words and word pairs.

    Where nothing can be fitted (one label only, or no text with a word of two letters) it is the majority label.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    analyze = vectorizer.build_analyzer()
    if not texts or len(set(train_labels)) < 2 or not any(analyze(text) for text in train_texts):
        return majority(train_labels, len(texts))
    model = LogisticRegression(max_iter=1000, random_state=0)
    model.fit(vectorizer.fit_transform(train_texts), list(train_labels))
    return [str(label) for label in model.predict(vectorizer.transform(texts))]


def linear(states: np.ndarray, truth: np.ndarray, asked: np.ndarray, *, several: bool = False) -> np.ndarray:
    """What logistic regression on features says: bool [n, labels]. `states` [m, d], `truth` bool [m, labels], `asked`
    [n, d]. Features are scaled to one deviation. With `several` each label has a regression of its own; one that all
    training texts have, or none, is answered so."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    return _regression(scaler.fit_transform(states), truth, scaler.transform(asked), several)


def tfidf_linear(
    train_texts: Sequence[str], truth: np.ndarray, texts: Sequence[str], *, several: bool = False
) -> np.ndarray:
    """The same on TF-IDF weights of words and word pairs."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    analyze = vectorizer.build_analyzer()
    if not any(analyze(text) for text in train_texts):
        return np.repeat(most_common(truth, several)[None], len(texts), axis=0)
    return _regression(vectorizer.fit_transform(train_texts), truth, vectorizer.transform(texts), several)


def _regression(known: Any, truth: np.ndarray, asked: Any, several: bool) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression

    def answers(target: np.ndarray) -> np.ndarray:
        if len(set(target.tolist())) < 2:
            return np.repeat(target[:1], asked.shape[0])
        model = LogisticRegression(max_iter=1000, random_state=0)
        return np.asarray(model.fit(known, target).predict(asked))

    if several:
        return np.stack([answers(column) for column in truth.T], axis=1)
    return np.eye(truth.shape[1], dtype=bool)[answers(truth.argmax(1))]


def most_common(truth: np.ndarray, several: bool) -> np.ndarray:
    """The answer that is right most often: the most frequent label, or (several) those that most texts have."""
    share = truth.mean(0)
    return share > 0.5 if several else np.arange(len(share)) == share.argmax()


def nearest(train_texts: Sequence[str], train_labels: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Predictions for `texts`: the label of the most similar training texts, by cosine similarity of TF-IDF weights.

    Each of the k nearest votes with its similarity. k is the one of `NEIGHBOURS` that labels the training texts best
    when each is left out in turn (of equally good ones the smallest). A text that shares no word with any training
    text gets the majority label.
    """
    fallback = majority(train_labels, 1)[0]
    if not texts or len(set(train_labels)) < 2:
        return [fallback] * len(texts)
    vectors = _vectors(train_texts, texts)
    if vectors is None:
        return [fallback] * len(texts)
    known, asked = vectors
    labels = sorted(set(train_labels))
    code = np.array([labels.index(label) for label in train_labels])
    choices = [k for k in NEIGHBOURS if k < len(code)] or [1]
    own = np.unique(np.linspace(0, len(code) - 1, min(CHOICE_LIMIT, len(code))).astype(int))
    votes = _votes(known[own], known, code, len(labels), choices, leave_out=own)
    hits = [(_winners(votes[n], labels, fallback) == np.array(train_labels)[own]).sum() for n in range(len(choices))]
    best = choices[int(np.argmax(hits))]
    (votes,) = _votes(asked, known, code, len(labels), [best])
    return [str(label) for label in _winners(votes, labels, fallback)]


def nearest_places(train_texts: Sequence[str], texts: Sequence[str]) -> list[int | None]:
    """For each text the place of the most similar training text (of equal ones the first); None where none shares a
    word with it."""
    vectors = _vectors(train_texts, texts) if texts else None
    if vectors is None:
        return [None] * len(texts)
    known, asked = vectors
    found: list[int | None] = []
    for start in range(0, len(texts), _ROWS_AT_ONCE):
        similarity = (asked[start : start + _ROWS_AT_ONCE] @ known.T).toarray()
        best = similarity.argmax(1)
        found += [int(i) if row[i] > 0 else None for row, i in zip(similarity, best, strict=True)]
    return found


def looked_up(train: Sequence[Record], texts: Sequence[str]) -> list[list[Span]]:
    """The entities of `texts` that stand in the training texts too: from left to right the longest, as a word of its
    own, with its most frequent type there (of equally frequent ones the first in the alphabet)."""
    seen: dict[str, Counter[str]] = {}
    for record in train:
        text = record.text or ""
        for span in flat(text, record.spans or ()):
            seen.setdefault(text[span.start : span.end], Counter())[span.type] += 1
    types = {entity: min(count, key=lambda kind: (-count[kind], kind)) for entity, count in seen.items()}
    lengths: dict[str, list[int]] = {}
    for first, length in sorted({(entity[0], len(entity)) for entity in types}, reverse=True):
        lengths.setdefault(first, []).append(length)
    return [_looked_up(types, lengths, text) for text in texts]


def _looked_up(types: dict[str, str], lengths: dict[str, list[int]], text: str) -> list[Span]:
    """`lengths` are those of the entities that begin with a character, the longest first."""
    found: list[Span] = []
    at = 0
    while at < len(text):
        ends = (at + length for length in lengths.get(text[at], ()))
        fits = (end for end in ends if text[at:end] in types and stands_alone(text, at, end))
        end = next((end for end in fits if end <= len(text)), None)
        if end is not None:
            found.append(Span(at, end, types[text[at:end]]))
        at = at + 1 if end is None else end
    return found


def most_similar(texts: Sequence[str], candidates: Sequence[Sequence[str]]) -> list[int]:
    """For each text the place of the one of its own candidates (at least one) that is most like it, by cosine
    similarity of TF-IDF weights; of equal ones the first. How rare a word is comes from all candidates there are."""
    flat = [candidate for own in candidates for candidate in own]
    vectors = _vectors(list(dict.fromkeys(flat)), [*flat, *texts]) if texts else None
    if vectors is None:
        return [0] * len(texts)
    known, asked = vectors[1][: len(flat)], vectors[1][len(flat) :]
    owner = np.repeat(np.arange(len(texts)), [len(own) for own in candidates])
    similarity = np.asarray(known.multiply(asked[owner]).sum(axis=1)).ravel().round(12)
    ends = np.cumsum([len(own) for own in candidates])[:-1]
    return [int(part.argmax()) for part in np.split(similarity, ends)]


def _vectors(train_texts: Sequence[str], texts: Sequence[str]) -> tuple[Any, Any] | None:
    """TF-IDF rows of length 1 of both; None where the training texts have no word of two letters."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    analyze = vectorizer.build_analyzer()
    if not any(analyze(text) for text in train_texts):
        return None
    return vectorizer.fit_transform(train_texts), vectorizer.transform(texts)


def _votes(
    asked: Any,
    known: Any,
    code: np.ndarray,
    labels: int,
    choices: Sequence[int],
    leave_out: np.ndarray | None = None,
) -> np.ndarray:
    """Summed similarity of the k nearest for each label, [choices, texts, labels]. `leave_out` [texts] are the places
    of the texts themselves among the known ones."""
    votes = np.zeros((len(choices), asked.shape[0], labels))
    for start in range(0, asked.shape[0], _ROWS_AT_ONCE):
        similarity = (asked[start : start + _ROWS_AT_ONCE] @ known.T).toarray()
        rows = np.arange(len(similarity))
        if leave_out is not None:
            similarity[rows, leave_out[start + rows]] = 0.0
        # Rounded, so that equal similarities are equal whatever the order of summation: then the first place counts.
        order = np.argsort(-similarity.round(12), axis=1, kind="stable")[:, : max(choices)]
        for n, k in enumerate(choices):
            for place in order[:, :k].T:
                votes[n, start + rows, code[place]] += similarity[rows, place]
    return votes


def _winners(votes: np.ndarray, labels: Sequence[str], fallback: str) -> np.ndarray:
    """The label with most votes, the first in the alphabet of equal ones; `fallback` where nobody voted."""
    return np.where(votes.max(1) > 0, np.array(labels, dtype=object)[votes.argmax(1)], fallback)
