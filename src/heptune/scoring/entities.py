"""Precision, recall and F1 of entities: one is right when its type, its start and its end are.

The rules are seqeval's in strict mode (the successor of conlleval, Tjong Kim Sang and De Meulder 2003), on sets of
(type, start, end) for each text, so that it does not matter in what units entities are found. A share of nothing is 0.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from heptune.data.record import Span
from heptune.scoring import statistics
from heptune.scoring.statistics import Interval

Entity = tuple[str, int, int]
"""Type, start, end."""


@dataclass(frozen=True)
class Counts:
    """Entities that are there, that were said, and that are both: of each text (row) and type (column), [texts, types].
    `types` are sorted: all that are there or were said."""

    types: tuple[str, ...]
    true: np.ndarray
    said: np.ndarray
    hits: np.ndarray


def entities(spans: Iterable[Span]) -> frozenset[Entity]:
    """Spans as a set of entities."""
    return frozenset((span.type, span.start, span.end) for span in spans)


def count(truth: Sequence[Collection[Entity]], said: Sequence[Collection[Entity]]) -> Counts:
    """Counts the entities of the texts, [texts] sets each."""
    types = tuple(sorted({kind for texts in (truth, said) for text in texts for kind, _, _ in text}))
    place = {kind: n for n, kind in enumerate(types)}

    def table(texts: Iterable[Collection[Entity]]) -> np.ndarray:
        counted = np.zeros((len(truth), len(types)), dtype=np.int64)
        for row, text in enumerate(texts):
            for kind, _, _ in set(text):
                counted[row, place[kind]] += 1
        return counted

    both = (set(t) & set(s) for t, s in zip(truth, said, strict=True))
    return Counts(types, table(truth), table(said), table(both))


def precision(true: Any, said: Any, hits: Any) -> Any:
    """The share of what was said that is right."""
    return _share(hits, said)


def recall(true: Any, said: Any, hits: Any) -> Any:
    """The share of what is there that was said."""
    return _share(hits, true)


def f1(true: Any, said: Any, hits: Any) -> Any:
    """The harmonic mean of precision and recall."""
    return _share(2 * np.asarray(hits), np.asarray(true) + np.asarray(said))


MEASURES = {"F1": f1, "precision": precision, "recall": recall}


def micro(counts: Counts, seed: int = 0) -> dict[str, Interval]:
    """F1, precision and recall of all entities together, with bootstrap intervals over texts."""
    return _measured(counts.true.sum(1), counts.said.sum(1), counts.hits.sum(1), seed)


def of_type(counts: Counts, kind: str, seed: int = 0) -> dict[str, Interval]:
    """The same for the entities of one type."""
    column = counts.types.index(kind)
    return _measured(counts.true[:, column], counts.said[:, column], counts.hits[:, column], seed)


def macro(counts: Counts, measure: str = "F1", seed: int = 0) -> Interval:
    """The mean of a measure over the types that are there or were said (in each resample anew)."""

    def statistic(texts: Any, axis: int) -> Any:
        total, present = np.zeros(()), np.zeros(())
        for true, said, hits in zip(counts.true.T, counts.said.T, counts.hits.T, strict=True):
            sums = [column[texts].sum(axis) for column in (true, said, hits)]
            total = total + MEASURES[measure](*sums)
            present = present + (sums[0] + sums[1] > 0)
        return _share(total, present) + np.zeros(texts.shape[:axis])

    return _over_texts(statistic, len(counts.true), seed)


def f1_difference(a: Counts, b: Counts, seed: int = 0) -> Interval:
    """F1 of a minus F1 of b on the same texts: whole texts are drawn for both."""

    def statistic(texts: Any, axis: int) -> Any:
        scores = []
        for counts in (a, b):
            columns = (counts.true.sum(1), counts.said.sum(1), counts.hits.sum(1))
            scores.append(f1(*(column[texts].sum(axis) for column in columns)))
        return scores[0] - scores[1]

    return _over_texts(statistic, len(a.true), seed)


def _measured(true: np.ndarray, said: np.ndarray, hits: np.ndarray, seed: int) -> dict[str, Interval]:
    def statistic(measure: Any) -> Any:
        return lambda texts, axis: measure(*(column[texts].sum(axis) for column in (true, said, hits)))

    return {name: _over_texts(statistic(measure), len(true), seed) for name, measure in MEASURES.items()}


def _over_texts(statistic: Any, texts: int, seed: int) -> Interval:
    """The bootstrap with the texts' numbers as what is drawn: then one column at a time is all that memory holds."""
    return statistics.bootstrap(statistic, np.arange(texts), seed=seed)


def _share(part: Any, whole: Any) -> Any:
    return np.asarray(part) / np.maximum(whole, 1)
