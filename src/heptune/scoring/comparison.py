"""Which of several trained models is better: differences on the same test examples, with all their uncertainty.

A contender is a way of training, not one trained model. Its score is what one more training of it would reach on one
more example, so a difference between two contenders is uncertain twice:

- examples: another test set would give another difference. The contenders answer the same examples, so their outcomes
  are subtracted example by example first, and what all find hard or easy drops out.
- training seeds: another seed would give another model. Each contender is trained k times; its seeds' scores differ.

The model, with outcome y of contender c, seed s, example i (higher is better), and mean m over examples:

    y[c, s, i] = score[c] + example effects, different for every contender + seed[c, s] + residual[c, s, i]
    Var(m[c] - m[d]) = Var over i of (y[c, ., i] - y[d, ., i]) / n  +  sigma^2 (1 / k[c] + 1 / k[d])

sigma^2 is the variance of the seed effects. Two seeds' scores differ also because they stumble over different examples
of this one test set; that part is in the first term already and must not count twice. With `between` the pooled mean
square of the seeds' scores and `residual` that of the residuals,

    E[between] = sigma^2 + residual / n          (two-way analysis of variance, Searle, Casella and McCulloch 1992, 4.6)

`between` has few degrees of freedom: contenders x (k - 1), the contenders pooled. Subtracting the two numbers and
putting the rest into a t interval is too sure of itself whenever `between` happens to be small. Instead sigma^2 is left
uncertain: `between` x degrees of freedom / (sigma^2 + residual / n) is chi-squared, which gives a distribution of
sigma^2 (none of it below zero), and a difference is a mixture of normal distributions over it. These are generalised
(fiducial) intervals, Weerahandi 1993; for two variances they are the Behrens-Fisher solution, known to err on the
careful side. `benchmarks/verdict.py` measures how often they hold the truth.

A few trainings say little about how much seeds matter, and much less than everybody knows who has trained twice before.
`between` therefore begins with what is expected of seeds (`SEED_SHARE`), weighed as `SEED_WEIGHT` degrees of freedom.

All pairs are compared at once. Each pair's own half width is widened by one factor, the smallest with which all
intervals hold together in the joint distribution. (Bonferroni would go to the far tail of every pair; with few degrees
of freedom that tail is long, and as the seed variance is common to all pairs, it would be paid for again and again.)
p-values are adjusted step by step from the surest pair on: Holm's procedure with the joint distribution (Westfall and
Young 1993, 2.6). So with the promised probability not one pair that is equal in truth is called different.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from heptune.core.errors import DataError
from heptune.core.seeds import generator
from heptune.scoring import statistics
from heptune.scoring.statistics import Interval

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[Any]

LEVEL = 0.95
# Joint draws: the tail of 5 % that decides is then known to 0.2 points.
DRAWS = 10_000
# What is known of seeds before any is seen: their standard deviation is about this share of an outcome's own (at 85 %
# right 2 points; repeated trainings of the benchmarks here lay between 0.3 and 3), and it weighs as much as so many
# degrees of freedom. Two seeds alone would leave room for any difference: 18 points on 250 examples told nothing apart.
SEED_SHARE, SEED_WEIGHT = 0.06, 4
# Nodes of the integral over the seed variance, evenly spaced in the logarithm of chi-squared: at 1 degree of freedom
# and p = 1e-4 it is right to 1e-3 of itself.
NODES = 192
# "How many would tell them apart" means: with four chances in five, if the difference is what it looks like.
POWER = 0.8
MOST_EXAMPLES = 100  # times the present ones: beyond that "more examples" is no advice
MOST_SEEDS = 20


@dataclass(frozen=True)
class Pair:
    """Two contenders: the score of `a` minus that of `b`.

    `difference` holds the truth together with all other pairs' intervals. `p_value` is the pair's own, `p_adjusted`
    that among all pairs. `tie`: they cannot be told apart. The step-wise test sees a little more than intervals that
    hold all at once: where it tells two apart whose interval would still reach over zero, the interval ends at zero.
    `mcnemar`: the p-value of McNemar's exact test where both are one model with right and wrong answers, else None.
    """

    a: str
    b: str
    difference: Interval
    p_value: float
    p_adjusted: float
    tie: bool
    mcnemar: float | None

    def turned(self) -> Pair:
        """The same with `b` minus `a`."""
        d = self.difference
        return replace(self, a=self.b, b=self.a, difference=Interval(-d.value, -d.high, -d.low, d.level))


@dataclass(frozen=True)
class Needed:
    """What would tell two contenders apart, with `POWER`, if the difference is as large as it looks.

    `examples`: so many test examples in all, with the seeds there are. `seeds`: so many trainings of each, on the
    examples there are. Each is None where more of it alone would not do within `MOST_EXAMPLES` or `MOST_SEEDS`.
    """

    examples: int | None
    seeds: int | None


@dataclass(frozen=True)
class Components:
    """What the outcomes say about the variances; m contenders in the order of `names`.

    - `means` [m], `counts` [m] (trainings of each), `examples` (n)
    - `covariance` [m, m]: of the means, from the examples, given the trained models
    - `seeded` [m]: 1 / k for what is trained, 0 for what has no seed
    - `between`: pooled mean square of the seeds' means, with `freedom` degrees; `residual`: that of the residuals
    """

    names: tuple[str, ...]
    means: Array
    counts: Array
    examples: int
    covariance: Array
    seeded: Array
    between: float
    residual: float
    freedom: int

    @property
    def seed_variance(self) -> float | None:
        """The estimate of sigma^2, not below zero. None where nothing was trained twice."""
        return max(0.0, self.between - self.residual / self.examples) if self.freedom else None

    def possible_seed_variances(self, chi_squared: Array) -> Array:
        """The seed variance for each value that chi-squared may have taken."""
        return np.maximum(0.0, self.freedom * self.between / chi_squared - self.residual / self.examples)

    def with_examples(self, examples: int) -> Components:
        """What to expect of another number of examples, if these estimates are right."""
        between = (self.seed_variance or 0.0) + self.residual / examples
        ratio = self.examples / examples
        return replace(self, examples=examples, covariance=self.covariance * ratio, between=between)

    def with_seeds(self, seeds: int) -> Components:
        """What to expect of `seeds` trainings of each trained contender, if these estimates are right."""
        share = np.where(self.seeded > 0, 1.0 / seeds, 0.0)
        change = np.diag((share - self.seeded) * self.residual / self.examples)
        between = (self.seed_variance or 0.0) + self.residual / self.examples
        freedom = int((self.seeded > 0).sum()) * (seeds - 1) + SEED_WEIGHT
        return replace(self, covariance=self.covariance + change, seeded=share, between=between, freedom=freedom)


@dataclass(frozen=True)
class Comparison:
    """All contenders and all pairs. `scores` hold the truth each for itself, the pairs' differences all at once."""

    level: float
    scores: dict[str, Interval]
    pairs: tuple[Pair, ...]
    components: Components
    widened: float  # how many times a pair's own half width the intervals of all pairs together take

    @cached_property
    def _by_names(self) -> dict[tuple[str, str], Pair]:
        both = [*self.pairs, *(pair.turned() for pair in self.pairs)]
        return {(pair.a, pair.b): pair for pair in both}

    def pair(self, a: str, b: str) -> Pair:
        """`a` minus `b`."""
        return self._by_names[a, b]

    def near(self, a: str, b: str) -> bool:
        """Whether two scores differ by no more than one standard error of their difference."""
        now = self.components
        chosen = self._places(a, b)
        distance = abs(float(now.means[chosen[0][0]] - now.means[chosen[1][0]]))
        return distance <= _spread(now, *_pair_variances(now, *chosen))

    def _places(self, a: str, b: str) -> tuple[Array, Array]:
        names = self.components.names
        return np.array([names.index(a)]), np.array([names.index(b)])

    def needed(self, a: str, b: str) -> Needed:
        """How many examples or seeds would tell two apart."""
        now, chosen = self.components, self._places(a, b)
        distance = abs(float(now.means[chosen[0][0]] - now.means[chosen[1][0]]))

        def enough(then: Components) -> bool:
            from scipy.special import ndtri

            example, seed = _pair_variances(then, *chosen)
            reach = self.widened * _Mixture(then, example, seed).half_width(1 - self.level)[0]
            return bool(distance >= reach + ndtri(POWER) * _spread(then, example, seed))

        examples = seeds = None
        if distance > 0:
            examples = _smallest(lambda n: enough(now.with_examples(n)), 2, MOST_EXAMPLES * now.examples)
            if now.freedom and any(now.seeded[i[0]] for i in chosen):
                seeds = _smallest(lambda k: enough(now.with_seeds(k)), 2, MOST_SEEDS)
        return Needed(examples, seeds)


def compare(
    outcomes: Mapping[str, ArrayLike],
    weights: ArrayLike | None = None,
    *,
    trained: Collection[str] | None = None,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """Compares contenders on the same examples.

    - `outcomes`: of each contender [k, n], one row for each training, higher is better: 1 and 0 for right and wrong, or
      minus the loss per supervised token with `weights` [n], the supervised tokens (the score is then the mean over
      tokens; examples stay what is drawn). A contender that is not trained has one row; [n] is taken as [1, n].
    - `trained`: the contenders whose seeds count; None: those with more than one row. One of them may have one row
      when others have more; then the others' seed variance is taken for it.

    The order of the contenders changes nothing. Raises DataError for fewer than two examples.
    """
    names = tuple(sorted(outcomes))
    table = [np.atleast_2d(np.asarray(outcomes[name], dtype=float)) for name in names]
    _check(names, table, weights)
    one = np.ones(table[0].shape[1]) if weights is None else np.asarray(weights, dtype=float)
    seeded = {n for n, rows in zip(names, table, strict=True) if len(rows) > 1} if trained is None else set(trained)
    found = _components(names, table, one, seeded)
    scores = {name: _score(found, c, table[c], weights is None, level) for c, name in enumerate(names)}
    left, right = np.array(list(itertools.combinations(range(len(names)), 2)), dtype=int).reshape(-1, 2).T
    if not len(left):
        return Comparison(level, scores, (), found, 1.0)
    difference = found.means[left] - found.means[right]
    example, share = _pair_variances(found, left, right)
    mixture = _Mixture(found, example, share)
    half = mixture.half_width(1 - level)
    p_value = mixture.p_value(difference)
    largest = _in_units(_joint(found, left, right, draws, seed), half)
    widened = max(1.0, float(np.quantile(largest.max(1), level))) if len(left) > 1 else 1.0
    p_adjusted = p_value
    if len(left) > 1:
        p_adjusted = np.maximum(p_value, _stepwise(_in_units(np.abs(difference), half), largest))
    pairs = []
    for j, (a, b) in enumerate(zip(left, right, strict=True)):
        value, reach, tie = float(difference[j]), float(widened * half[j]), bool(p_adjusted[j] >= 1 - level)
        low, high = value - reach, value + reach
        if not tie:
            low, high = (max(low, 0.0), high) if value > 0 else (low, min(high, 0.0))
        exact = statistics.mcnemar(table[a][0], table[b][0]) if _answers(table[a]) and _answers(table[b]) else None
        interval = Interval(value, low, high, level)
        pairs.append(Pair(names[a], names[b], interval, float(p_value[j]), float(p_adjusted[j]), tie, exact))
    return Comparison(level, scores, tuple(pairs), found, widened)


def _check(names: tuple[str, ...], table: list[Array], weights: ArrayLike | None) -> None:
    if not names:
        raise DataError("there is nothing to compare: no contender has outcomes; give at least one")
    n = table[0].shape[1]
    for name, rows in zip(names, table, strict=True):
        if rows.ndim != 2 or rows.shape[1] != n or not len(rows):
            raise ValueError(f"outcomes must be [k, {n}] for all contenders, {name} has {list(rows.shape)}")
        if not np.isfinite(rows).all():
            raise ValueError(f"outcomes must be finite numbers, {name} has others")
    if n < 2:
        raise DataError(f"comparing needs at least 2 test examples, there {'is 1' if n else 'are none'}; add some")
    if weights is not None and (np.shape(weights) != (n,) or not (np.asarray(weights) > 0).all()):
        raise ValueError(f"weights must be {n} positive numbers, got the shape {list(np.shape(weights))}")


def _components(names: tuple[str, ...], table: list[Array], weights: Array, trained: set[str]) -> Components:
    n = len(weights)
    relative = weights / weights.mean()
    counts = np.array([len(rows) for rows in table])
    seed_means = [rows @ relative / n for rows in table]
    means = np.array([m.mean() for m in seed_means])
    # The mean is a ratio of sums; its variance is that of these linear parts (Cochran 1977, 6.4). Unweighted, plain.
    parts = np.array([relative * (rows.mean(0) - m) for rows, m in zip(table, means, strict=True)])
    covariance = parts @ parts.T / (n - 1) / n
    # The mean of n - 1 over chi-squared: what a t distribution is wider than a normal one.
    covariance *= (n - 1) / max(1, n - 3)
    if all(_is_answers(rows) for rows in table):
        # Right on one more example, wrong on one more: five examples out of a hundred, all for one side, are no proof
        # (McNemar's exact p = 0.06), although the plain variance says p = 0.02 (Agresti and Min 2005 add as much).
        covariance += np.diag(1.0 / (counts * n * n))
    freedom = int(sum(counts - 1))
    between = residual = 0.0
    if freedom:
        between = float(sum(((m - m.mean()) ** 2).sum() for m in seed_means)) / freedom
        for rows, own in zip(table, seed_means, strict=True):
            left = relative * (rows - rows.mean(0) - (own - own.mean())[:, None])
            residual += float((left**2).sum()) / (freedom * (n - 1))
        spread = float(np.mean([(relative * (rows - m)).var() for rows, m in zip(table, means, strict=True)]))
        expected = SEED_SHARE**2 * spread + residual / n
        between = (freedom * between + SEED_WEIGHT * expected) / (freedom + SEED_WEIGHT)
        freedom += SEED_WEIGHT
    seeded = np.array([1.0 / k if name in trained else 0.0 for name, k in zip(names, counts, strict=True)])
    return Components(names, means, counts, n, covariance, seeded, between, residual, freedom)


def _is_answers(rows: Array) -> bool:
    """Whether all outcomes are right or wrong."""
    return bool(np.isin(rows, (0.0, 1.0)).all())


def _answers(rows: Array) -> bool:
    """Whether this is one model's right and wrong answers."""
    return len(rows) == 1 and _is_answers(rows)


def _pair_variances(found: Components, left: Array, right: Array) -> tuple[Array, Array]:
    """Of each pair's difference: its variance over examples, and how many times the seed variance comes to it."""
    own = np.diag(found.covariance)
    example = own[left] + own[right] - 2 * found.covariance[left, right]
    return np.maximum(example, 0.0), found.seeded[left] + found.seeded[right]


def _spread(found: Components, example: Array, share: Array) -> float:
    """The standard error of one pair's difference."""
    return math.sqrt(example[0] + share[0] * (found.seed_variance or 0.0))


class _Mixture:
    """Normal distributions of variance `example` + `share` x seed variance [pairs], mixed over the seed variance."""

    def __init__(self, found: Components, example: Array, share: Array) -> None:
        if found.freedom and share.any():
            from scipy.stats import chi2

            first, last = chi2.ppf([1e-8, 1 - 1e-8], found.freedom)
            value = np.geomspace(first, last, NODES)
            weight = chi2.pdf(value, found.freedom) * value
            self.weight = weight / weight.sum()
            seed_variance = found.possible_seed_variances(value)
        else:
            self.weight, seed_variance = np.ones(1), np.zeros(1)
        self.deviation = np.sqrt(example[:, None] + share[:, None] * seed_variance)  # [pairs, nodes]

    def p_value(self, difference: Array) -> Array:
        """The probability of at least this distance from zero, both sides, [pairs]."""
        from scipy.special import ndtr

        distance = np.abs(difference)[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.where(distance > 0, distance / self.deviation, 0.0)
        return np.minimum(1.0, 2 * ndtr(-z) @ self.weight)

    def half_width(self, tail: float) -> Array:
        """The distance that is passed with probability `tail`, both sides together, [pairs]."""
        from scipy.special import ndtri

        low = np.zeros(len(self.deviation))
        high = -ndtri(tail / 2) * self.deviation.max(1)
        for _ in range(50):  # bisection, to 1e-15 of the widest
            middle = (low + high) / 2
            outside = self.p_value(middle) > tail
            low, high = np.where(outside, middle, low), np.where(outside, high, middle)
        return np.asarray(high)


def _joint(found: Components, left: Array, right: Array, draws: int, seed: int) -> Array:
    """How far all pairs' differences may lie from the truth together, without sign, [draws, pairs]."""
    random = generator(seed, "comparison", len(found.means), draws)
    values, vectors = np.linalg.eigh(found.covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    off = random.standard_normal((draws, len(values))) @ root.T
    if found.freedom and found.seeded.any():
        from scipy.stats import chi2

        # Evenly spaced quantiles instead of random ones: the heavy tail of few degrees of freedom is then not luck.
        chi_squared = chi2.ppf((np.arange(draws) + 0.5) / draws, found.freedom)
        seed_variance = found.possible_seed_variances(chi_squared)
        off += random.standard_normal(off.shape) * np.sqrt(seed_variance[:, None] * found.seeded)
    return np.abs(off[:, left] - off[:, right])


def _in_units(distance: Array, half: Array) -> Array:
    """Distances in half widths. A pair without any variance is at 0 or infinitely far."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(distance > 1e-12 * np.maximum(half, 1e-300), distance / half, 0.0)


def _stepwise(observed: Array, largest: Array) -> Array:
    """Adjusted p-values from the surest pair on: each against the largest of itself and those less sure."""
    order = np.argsort(-observed, kind="stable")
    maxima = np.maximum.accumulate(largest[:, order[::-1]], axis=1)[:, ::-1]
    p = (1 + (maxima >= observed[order]).sum(0)) / (1 + len(largest))
    adjusted = np.empty(len(observed))
    adjusted[order] = np.maximum.accumulate(p)
    return adjusted


def _score(found: Components, c: int, rows: Array, unweighted: bool, level: float) -> Interval:
    """A contender's score. Shares get Wilson's interval, with as many examples as their variance is worth."""
    value, share = float(found.means[c]), found.seeded[[c]]
    answers = unweighted and _is_answers(rows)
    if answers and len(rows) == 1 and not share.any():
        return statistics.accuracy(rows[0], level)
    half = float(_Mixture(found, found.covariance[[c], [c]], share).half_width(1 - level)[0])
    if not answers:
        return Interval(value, value - half, value + half, level)
    variance = float(found.covariance[c, c] + share[0] * (found.seed_variance or 0.0))
    inside = 0 < value < 1
    worth = min(value * (1 - value) / variance, len(rows) * found.examples) if inside else found.examples
    low, high = _wilson_ends(value, worth, half / math.sqrt(variance))
    return Interval(value, low, high, level)


def _wilson_ends(share: float, examples: float, z: float) -> tuple[float, float]:
    middle = (share + z * z / (2 * examples)) / (1 + z * z / examples)
    reach = z / (1 + z * z / examples) * math.sqrt(share * (1 - share) / examples + z * z / (4 * examples**2))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def _smallest(enough: Any, low: int, high: int) -> int | None:
    """The smallest whole number from `low` to `high` that is enough, where more is never less; None where none is."""
    if not enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low
