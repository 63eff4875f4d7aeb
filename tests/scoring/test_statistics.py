"""Statistics against scikit-learn, hand-computed cases and brute force; the intervals' coverage by simulation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from sklearn.metrics import f1_score

from heptune.core.errors import DataError
from heptune.scoring import statistics as stats

LABELS = ("a", "b", "c")


def random_answers(seed: int, n: int) -> tuple[list[str], list[str]]:
    random = np.random.default_rng(seed)
    truth = random.choice(LABELS, n, p=[0.6, 0.3, 0.1])
    said = np.where(random.random(n) < 0.6, truth, random.choice(LABELS, n))
    return [str(t) for t in truth], [str(s) for s in said]


def test_wilson_against_the_formula() -> None:
    n, right, z = 50, 42, 1.959963984540054
    share = right / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    interval = stats.accuracy([True] * right + [False] * (n - right))
    assert interval.value == share
    assert (interval.low, interval.high) == pytest.approx((middle - half, middle + half), abs=1e-12)


def test_all_right_is_not_certain() -> None:
    interval = stats.accuracy([True] * 20)
    assert (
        interval.value == 1.0
        and interval.high == pytest.approx(1.0)
        and interval.low == pytest.approx(0.8389, abs=1e-4)
    )


@pytest.mark.parametrize("share", [0.5, 0.9, 0.98])
def test_wilson_covers_the_truth_as_often_as_it_says(share: float) -> None:
    n, rounds = 60, 1500
    hits = np.random.default_rng(1).binomial(n, share, rounds)
    by_count = {k: stats.accuracy([True] * k + [False] * (n - k)) for k in set(hits.tolist())}
    covered = np.mean([by_count[k].low <= share <= by_count[k].high for k in hits.tolist()])
    assert 0.925 <= covered <= 0.985  # Wilson's coverage swings by 2 % around 95 % for so few examples


def test_bootstrap_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(2)
    covered = []
    for n in range(300):
        interval = stats.bootstrap(np.mean, random.normal(3.0, 2.0, 60), resamples=400, seed=n)
        covered.append(interval.low <= 3.0 <= interval.high)
    assert 0.90 <= np.mean(covered) <= 0.98


def test_paired_difference_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(3)
    covered = []
    for n in range(300):  # both right 0.6, only a 0.2, only b 0.1, neither 0.1: the true difference is 0.1
        kind = random.choice(4, 120, p=[0.6, 0.2, 0.1, 0.1])
        interval = stats.paired_difference(kind <= 1, (kind == 0) | (kind == 2), resamples=400, seed=n)
        covered.append(interval.low <= 0.1 <= interval.high)
    assert 0.90 <= np.mean(covered) <= 0.98


def test_bootstrap_against_all_resamples() -> None:
    """Three examples have 27 equally likely resamples: the percentiles can be read off."""
    values = np.array([0.0, 1.0, 5.0])
    means = [np.mean(draw) for draw in itertools.product(values, repeat=3)]
    low, high = np.quantile(means, [0.1, 0.9], method="inverted_cdf")
    interval = stats.bootstrap(np.mean, values, resamples=20_000, level=0.8)
    assert (interval.value, interval.level) == (2.0, 0.8)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-9)


def test_bootstrap_keeps_pairs_together() -> None:
    x = np.random.default_rng(4).normal(size=50)
    same = stats.bootstrap(lambda a, b, axis: (a - b).mean(axis), x, x)
    assert (same.low, same.high) == (0.0, 0.0)


def test_bootstrap_is_a_function_of_its_seed() -> None:
    x = np.random.default_rng(5).normal(size=40)
    assert stats.bootstrap(np.mean, x, seed=1) == stats.bootstrap(np.mean, x, seed=1)
    assert stats.bootstrap(np.mean, x, seed=1) != stats.bootstrap(np.mean, x, seed=2)


def test_bootstrap_in_batches_draws_the_same_number(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(6).normal(size=40)
    whole = stats.bootstrap(np.mean, x, resamples=500)
    seen = []

    def mean(values: np.ndarray, axis: int) -> np.ndarray:
        seen.append(values.shape)
        return values.mean(axis)

    monkeypatch.setattr(stats, "_BATCH_ELEMENTS", 40 * 100)
    batched = stats.bootstrap(mean, x, resamples=500)
    assert (batched.low, batched.high) == pytest.approx((whole.low, whole.high), abs=0.1)
    assert sum(shape[0] for shape in seen if len(shape) == 2 and shape[0] > 1) == 500
    assert max(math.prod(shape) for shape in seen) <= 40 * 100


def test_one_example_gives_no_interval() -> None:
    interval = stats.bootstrap(np.mean, [2.5])
    assert interval.value == 2.5 and math.isnan(interval.low) and math.isnan(interval.high)


@pytest.mark.parametrize("seed", range(5))
def test_macro_f1_against_scikit_learn_and_by_hand(seed: int) -> None:
    truth, said = random_answers(seed, 40)
    by_hand = []
    for label in LABELS:
        hits = sum(t == s == label for t, s in zip(truth, said, strict=True))
        wrong = sum((t == label) != (s == label) for t, s in zip(truth, said, strict=True))
        by_hand.append(2 * hits / (2 * hits + wrong))
    assert stats.macro_f1(truth, said, LABELS) == pytest.approx(np.mean(by_hand), abs=1e-12)
    assert stats.macro_f1(truth, said, LABELS) == pytest.approx(f1_score(truth, said, average="macro"), abs=1e-12)
    assert stats.macro_f1_interval(truth, said, LABELS).value == pytest.approx(np.mean(by_hand), abs=1e-12)


def test_macro_f1_leaves_out_labels_that_do_not_occur() -> None:
    assert stats.macro_f1(["a", "b"], ["a", "b"], LABELS) == 1.0
    assert stats.macro_f1_interval(["a", "b"] * 5, ["a", "b"] * 5, LABELS).value == 1.0
    assert stats.macro_f1(["a", "b"], ["a", "c"], LABELS) == pytest.approx(1 / 3)


def test_macro_f1_interval_against_a_plain_bootstrap() -> None:
    truth, said = random_answers(7, 80)
    random = np.random.default_rng(0)
    values = []
    for _ in range(800):
        rows = random.integers(0, 80, 80)
        values.append(stats.macro_f1([truth[r] for r in rows], [said[r] for r in rows], LABELS))
    interval = stats.macro_f1_interval(truth, said, LABELS)
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), abs=0.025)


def test_confusion() -> None:
    table = stats.confusion(["a", "a", "b", "c"], ["a", "b", "b", "a"], LABELS)
    assert table.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_mcnemar_by_hand() -> None:
    # 9 examples only a gets right, 2 only b: p = 2 * P(X <= 2), X ~ Binomial(11, 1/2) = 2 * (1 + 11 + 55) / 2048
    a = [True] * 9 + [False] * 2 + [True] * 30 + [False] * 5
    b = [False] * 9 + [True] * 2 + [True] * 30 + [False] * 5
    assert stats.mcnemar(a, b) == pytest.approx(134 / 2048, abs=1e-12)
    assert stats.mcnemar(b, a) == pytest.approx(134 / 2048, abs=1e-12)
    assert stats.mcnemar([True, False], [False, True]) == 1.0
    assert stats.mcnemar([True, False], [True, False]) == 1.0


def test_paired_difference_is_paired() -> None:
    a = np.array([True] * 60 + [False] * 40)
    b = a.copy()
    b[:6] = False
    interval = stats.paired_difference(a, b)
    assert interval.value == pytest.approx(0.06)
    assert 0.01 <= interval.low < 0.06 < interval.high <= 0.12  # unpaired it would reach from -0.08 to 0.19


def test_perplexity_is_a_ratio_of_sums() -> None:
    interval = stats.perplexity([6.0, 0.5], [3, 1])
    assert interval.value == pytest.approx(math.exp(6.5 / 4))
    # Two examples: either alone, or both.
    assert interval.low == pytest.approx(math.exp(0.5)) and interval.high == pytest.approx(math.exp(2.0))


def test_perplexity_resamples_examples_not_tokens() -> None:
    random = np.random.default_rng(8)
    means = random.normal(2.0, 0.5, 50)
    # Tokens of one example are alike: 50 independent values, not 1000.
    interval = stats.perplexity(20 * means, np.full(50, 20))
    expected = 2 * 1.96 * means.std() / math.sqrt(50)
    assert math.log(interval.high) - math.log(interval.low) == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize(
    "score",
    [
        lambda: stats.accuracy([]),
        lambda: stats.bootstrap(np.mean, []),
        lambda: stats.macro_f1([], [], LABELS),
        lambda: stats.perplexity([], []),
        lambda: stats.mcnemar([], []),
    ],
)
def test_nothing_to_score(score: Callable[[], object]) -> None:
    with pytest.raises(DataError, match="nothing to score"):
        score()


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="one length"):
        stats.mcnemar([True], [True, False])
    with pytest.raises(ValueError, match="one length"):
        stats.paired_difference([True], [True, False])
    with pytest.raises(ValueError, match="one length"):
        stats.perplexity([1.0, 2.0], [1])


def test_intervals_read_well() -> None:
    assert str(stats.Interval(0.9123, 0.89, 0.9312)) == "0.912 [0.890, 0.931]"
