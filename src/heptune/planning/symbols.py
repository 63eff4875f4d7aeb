"""From numbers to formulas: the product of sizes that a count is, seen at several sizes.

A tensor has 1,904 elements in one specimen, 4,400 in the next, 9,984 in the third: of all products of few sizes, only
T * d / 2 has these ratios. What no single product fits may be a sum of two, q + 2 kv.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import combinations, combinations_with_replacement
from math import gcd, prod

from heptune.planning.forms import Polynomial

# A sum of two products is looked for among these coefficients of the first.
_COEFFICIENTS = (1, 2, 4, 8, 12, 16, 24, 32, 3, 6)
# The denominators (64: a block of weights in 4 bits) and the size that a product's own coefficient may have.
_DENOMINATORS, _LARGEST_COEFFICIENT = (1, 2, 3, 4, 8, 16, 32, 64), 4096
# How many matrices are stacked: experts.
_STACK = "X"
# Bytes below which a storage that nothing explains is taken for a constant.
_SMALL = 4096
# What the buffers of a kernel are rounded up to.
_PAGE = 4096
# What the buffers of a prompt encoder's kernel (an LSTM's) may grow with.
_OF_KERNELS = ("P*e", "P*d", "P*E")


class Symbols:
    """Sizes with their values in each specimen. `rows` are counts of rows, `widths` of features; a product has at most
    two of each, and those of stacked matrices a third: X."""

    def __init__(self, rows: Mapping[str, Sequence[int]], widths: Mapping[str, Sequence[int]]) -> None:
        self.values = {**rows, **widths}
        self._table: dict[tuple[int, ...], tuple[tuple[str, ...], tuple[int, ...]]] = {}
        self._found: dict[tuple[int, ...], Polynomial | None] = {}
        self._simple: list[tuple[str, tuple[int, ...]]] = []
        products = []
        stacked = [(_STACK, a, b) for a, b in combinations(widths, 2)] if _STACK in widths else []
        for features in [*_products(widths), *stacked]:
            for counts in _products(rows):
                names = (*counts, *features)
                columns = [self.values[name] for name in names]
                count = len(next(iter(self.values.values())))
                products.append((names, tuple(prod(c[i] for c in columns) for i in range(count))))
        for names, values in sorted(products, key=lambda item: len(item[0])):
            if len(set(values)) == 1 and names:
                continue  # the same in every specimen: no size to tell
            if self._table.setdefault(_ratio(values), (names, values))[0] is names and len(names) <= 3:
                self._simple.append(("*".join(names), values))

    def find(self, counts: Sequence[int]) -> Polynomial | None:
        """The polynomial that has these values in the specimens; None where there is none."""
        key = tuple(counts)
        if key not in self._found:
            self._found[key] = self._search(key)
        return self._found[key]

    def nearest(self, counts: Sequence[int]) -> Polynomial:
        """What is near, and never less, where `find` finds nothing: a kernel's own buffers, rounded up to pages."""
        if max(counts) < _SMALL:
            return {"": float(max(counts))}
        lines = [(name, *_above(values, counts)) for name, values in self._simple if name in _OF_KERNELS]
        name, slope, rest = min(lines, key=lambda line: line[2] if line[1] > 0 else float("inf"))
        return {"": rest, name: slope} if slope > 0 else {"": float(max(counts))}

    def _search(self, counts: tuple[int, ...]) -> Polynomial | None:
        if not any(counts):
            return {}
        one = self._product(counts)
        if one is not None:
            return one
        for name, values in self._simple:
            for coefficient in _COEFFICIENTS:
                rest = tuple(n - coefficient * v for n, v in zip(counts, values, strict=True))
                if min(rest) <= 0:
                    break
                other = self._product(rest)
                if other is not None:
                    return {name: float(coefficient), **other} if name not in other else None
        return None

    def _product(self, counts: tuple[int, ...]) -> Polynomial | None:
        found = self._table.get(_ratio(counts))
        if found is None:
            return None
        names, values = found
        factor = Fraction(counts[0], values[0])
        if factor.denominator not in _DENOMINATORS or factor > _LARGEST_COEFFICIENT:
            return None
        return {"*".join(names): float(factor)}


def _above(values: Sequence[int], counts: Sequence[int]) -> tuple[float, float]:
    """Slope and constant of a line that no count lies above, as steep as from the first to the last; a page higher, as
    other sizes may fall on the other side of one."""
    slope = (counts[-1] - counts[0]) / (values[-1] - values[0]) if values[-1] != values[0] else 0.0
    return slope, float(max(n - slope * v for n, v in zip(counts, values, strict=True))) + _PAGE


def _products(symbols: Mapping[str, Sequence[int]]) -> list[tuple[str, ...]]:
    """Nothing, one symbol, or two."""
    return [(), *((name,) for name in symbols), *combinations_with_replacement(symbols, 2)]


def _ratio(values: tuple[int, ...]) -> tuple[int, ...]:
    divisor = gcd(*values)
    return tuple(v // divisor for v in values)
