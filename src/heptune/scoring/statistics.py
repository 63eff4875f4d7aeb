"""Scores with their uncertainty.

- A share (accuracy) gets Wilson's interval: right also for few examples and near 0 or 1, where the bootstrap of
  "all right" would claim [1, 1].
- Everything else (macro-F1, differences, perplexity) gets the percentile bootstrap over examples: whole examples are
  drawn with replacement, because tokens of one example and two models' answers to one text belong together.
- Two models on the same texts are compared by McNemar's exact test.

numpy, scipy and scikit-learn do the work; they are imported where they are used, since that takes seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from heptune.core.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000  # the end points of a 95 % interval then vary by about 2 % of its width from seed to seed
_BATCH_ELEMENTS = 4_000_000  # numbers drawn at once: 32 MB per array


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval that holds the true value with probability `level`.

    `low` and `high` are NaN where one example alone gives no idea of the spread.
    """

    value: float
    low: float
    high: float
    level: float = 0.95

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def accuracy(correct: ArrayLike, level: float = 0.95) -> Interval:
    """The share of right answers with Wilson's score interval. `correct` is boolean, one per example, [N].

    Source: Wilson 1927; Brown, Cai and DasGupta 2001 recommend it for small N.
    """
    from scipy.stats import binomtest

    right = _examples(correct).astype(bool)
    interval = binomtest(int(right.sum()), right.size).proportion_ci(level, method="wilson")
    return Interval(float(right.mean()), float(interval.low), float(interval.high), level)


def bootstrap(
    statistic: Callable[..., Any],
    *arrays: ArrayLike,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The percentile bootstrap of `statistic` over examples (Efron and Tibshirani 1993, chapter 13).

    `arrays` are [N] each and resampled together. `statistic(*arrays, axis=-1)` must be vectorised: it gets [..., N]
    and returns [...]. The same seed gives the same interval. Raises DataError for no examples.
    """
    from scipy.stats import bootstrap as scipy_bootstrap

    data = [_examples(array) for array in arrays]
    value = float(statistic(*data, axis=-1))
    if data[0].size == 1:
        return Interval(value, math.nan, math.nan, level)
    result = scipy_bootstrap(
        data,
        statistic,
        n_resamples=resamples,
        batch=max(1, _BATCH_ELEMENTS // data[0].size),
        paired=True,
        vectorized=True,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return Interval(value, float(result.confidence_interval.low), float(result.confidence_interval.high), level)


def macro_f1(truth: Sequence[str], prediction: Sequence[str], labels: Sequence[str]) -> float:
    """The mean over labels of F1 = 2 TP / (2 TP + FP + FN).

    A label that occurs neither in truth nor in prediction has no F1 and is left out of the mean.
    """
    from sklearn.metrics import f1_score

    _examples(truth)
    return float(f1_score(truth, prediction, labels=list(labels), average="macro", zero_division=np.nan))


def macro_f1_interval(
    truth: Sequence[str],
    prediction: Sequence[str],
    labels: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """`macro_f1` with its bootstrap interval.

    F1 is written out for all resamples at once: calling scikit-learn for each takes seconds for what takes a tenth.
    """
    code = {label: n for n, label in enumerate(labels)}
    true = np.array([code[label] for label in truth])
    said = np.array([code[label] for label in prediction])

    def statistic(true: NDArray[Any], said: NDArray[Any], axis: int) -> NDArray[Any]:
        total, present = 0.0, 0.0
        for n in range(len(labels)):
            twice_hits = 2 * ((true == n) & (said == n)).sum(axis)
            mentions = (true == n).sum(axis) + (said == n).sum(axis)
            total = total + twice_hits / np.maximum(mentions, 1)
            present = present + (mentions > 0)
        return np.asarray(total / present)

    return bootstrap(statistic, true, said, resamples=resamples, seed=seed, level=level)


def f1_interval(
    truth: NDArray[Any],
    said: NDArray[Any],
    average: str,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """F1 of texts with labels, with its bootstrap interval over texts: `truth` and `said` bool [N, labels].

    `average`: 'micro' counts all labels together, 'macro' is the mean over labels that occur in truth or answers.
    """
    hits, mentions = (truth & said).astype(float), truth.astype(float) + said.astype(float)

    def statistic(index: NDArray[Any], axis: int) -> NDArray[Any]:
        twice, named = 2 * hits[index].sum(axis - 1), mentions[index].sum(axis - 1)
        if average == "micro":
            twice, named = twice.sum(-1, keepdims=True), named.sum(-1, keepdims=True)
        present = (named > 0).sum(-1)
        return np.asarray((twice / np.maximum(named, 1)).sum(-1) / np.maximum(present, 1))

    return bootstrap(statistic, np.arange(len(truth)), resamples=resamples, seed=seed, level=level)


def confusion(truth: Sequence[str], prediction: Sequence[str], labels: Sequence[str]) -> NDArray[np.int64]:
    """How often each true label (row) was answered with each label (column), [labels, labels]."""
    from sklearn.metrics import confusion_matrix

    _examples(truth)
    return np.asarray(confusion_matrix(truth, prediction, labels=list(labels)), dtype=np.int64)


def paired_difference(
    correct_a: ArrayLike,
    correct_b: ArrayLike,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Accuracy of a minus accuracy of b on the same examples, [N] each, with its bootstrap interval.

    Where the two are right and wrong on the same examples throughout, the interval is [0, 0]: nothing was seen that
    could differ, which is no proof that nothing does.
    """
    a, b = _examples(correct_a).astype(bool), _examples(correct_b).astype(bool)
    _same_length(a, b)
    return bootstrap(np.mean, a.astype(float) - b.astype(float), resamples=resamples, seed=seed, level=level)


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> float:
    """The p-value of McNemar's exact test of two models on the same examples, two-sided.

    Only examples where exactly one is right tell anything; under equality either is as likely, so their number is
    Binomial(n, 1/2). 1.0 where there is none. Source: McNemar 1947; exact form: Fagerland et al. 2013.
    """
    from scipy.stats import binomtest

    a, b = _examples(correct_a).astype(bool), _examples(correct_b).astype(bool)
    _same_length(a, b)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return 1.0 if only_a + only_b == 0 else float(binomtest(only_a, only_a + only_b, 0.5).pvalue)


def perplexity(
    losses: ArrayLike,
    tokens: ArrayLike,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """exp(mean loss per supervised token), with a bootstrap interval over examples.

    `losses` [N] are each example's summed loss in nats, `tokens` [N] its supervised tokens. The statistic is the ratio
    of sums, exp(sum of losses / number of tokens), in every resample.
    """
    sums, counts = _examples(losses).astype(float), _examples(tokens).astype(float)
    _same_length(sums, counts)

    def statistic(sums: NDArray[Any], counts: NDArray[Any], axis: int) -> NDArray[Any]:
        return np.asarray(np.exp(sums.sum(axis) / counts.sum(axis)))

    return bootstrap(statistic, sums, counts, resamples=resamples, seed=seed, level=level)


def _examples(values: ArrayLike) -> NDArray[Any]:
    array = np.asarray(values)
    if array.size == 0:
        raise DataError("there is nothing to score: the evaluation part has no examples; give it at least one")
    return array


def _same_length(a: NDArray[Any], b: NDArray[Any]) -> None:
    if len(a) != len(b):
        raise ValueError(f"paired values must have one length, got {len(a)} and {len(b)}")
