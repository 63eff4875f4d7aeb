"""The work of a training step as numbers. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Product:
    """`count` products of a [m, k] with a [k, n] matrix: 2 * count * m * k * n operations."""

    count: float
    m: float
    k: float
    n: float


@dataclass(frozen=True)
class Work:
    """One forward and backward pass.

    `attention_flops`: floating point operations of attention's own products. `moved_bytes`: bytes that all other
    operations read and write. `operations`: how many operations are called, products included, views not.
    """

    products: tuple[Product, ...]
    attention_flops: float
    moved_bytes: float
    operations: float
