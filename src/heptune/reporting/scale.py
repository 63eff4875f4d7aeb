"""Scales: from a quantity to a place in a drawing, with ticks at round numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)
# Below it floating point has no room for what is smaller still, and everything is as good as nothing.
_TINY = 1e-290


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] to [start, end], in equal steps or (`logarithmic`) in equal ratios. Needs low < high."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Where a value stands; outside the range, at its nearer end."""
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.logarithmic:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """At most about `count` round numbers within the range, ascending."""
        if self.logarithmic:
            return _round_ratios(self.low, self.high, count)
        step = round_step(max((self.high - self.low) / max(count, 1), _TINY))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [float(f"{n * step:.12g}") + 0.0 for n in range(first, last + 1)]


def round_step(least: float) -> float:
    """The smallest of 1, 2, 2.5, 5, 10 times a power of ten that is at least `least` (Heckbert 1990)."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in _ROUND if factor * power >= least * (1 - 1e-9))


def fitted(
    values: Iterable[float],
    start: float,
    end: float,
    *,
    margin: float = 0.06,
    within: tuple[float, float] = (-math.inf, math.inf),
    ratio: float = math.inf,
) -> Scale:
    """A scale that holds the values with a margin (a share of their spread), but nothing outside `within`.

    It is logarithmic where all are above zero and the greatest is more than `ratio` times the least.
    """
    known = [value if abs(value) > _TINY else 0.0 for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    if low > 0 and high / low > ratio:
        spread = (high / low) ** margin
        return Scale(low / spread, high * spread, start, end, logarithmic=True)
    spread = (high - low) * margin
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        spread = abs(high) * 0.1 or 0.5
    low, high = max(low - spread, within[0]), min(high + spread, within[1])
    if high <= low:  # all values stand on one end of what is allowed
        low, high = low - 0.5, high + 0.5
    return Scale(low, high, start, end)


def _round_ratios(low: float, high: float, count: int) -> list[float]:
    """1, 10, 100, ..., with 2 and 5 between where there is room."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [factor * 10.0**power for power in powers for factor in factors]
        found = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(found) <= count:
            return found
    return found[:: math.ceil(len(found) / count)]
