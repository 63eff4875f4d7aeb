"""How fast a machine computes, as the few numbers that a step's time follows from. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

# What AdamW and the clipping of gradients move for one trained element, all in float32: the norm reads the gradient,
# the scaling reads and writes it; the update reads it, and reads and writes the element and both moments.
UPDATE_BYTES = 4 + 8 + 4 + 3 * 8


@dataclass(frozen=True)
class ProductTime:
    """Seconds of one product of a [m, k] with a [k, n] matrix:

    inner * m k n + left * m k + right * k n + result * m n + call

    `inner` is the arithmetic. The others are what reading the factors and writing the result costs beside it: they
    decide where one side is thin, as with LoRA's rank, or where few rows meet a large weight.
    """

    inner: float
    left: float
    right: float
    result: float
    call: float

    def seconds(self, m: float, k: float, n: float) -> float:
        """The time of one product."""
        return self.inner * m * k * n + self.left * m * k + self.right * k * n + self.result * m * n + self.call


@dataclass(frozen=True)
class Rates:
    """A machine's rates; one device of it.

    `attention_flops_s`: floating point operations per second inside attention. `moved_bytes_s`: bytes per second that
    all other operations read and write. `operation_s`: seconds of each called operation beside what it computes:
    Python, the dispatcher, autograd's bookkeeping, or a kernel's start. `update_bytes_s`: bytes per second of the
    optimizer's step; `update_tensor_s`: its seconds for each trained tensor. `dequantized_elements_s`: weights per
    second that are made out of 4 bits.
    """

    product: ProductTime
    attention_flops_s: float
    moved_bytes_s: float
    operation_s: float
    update_bytes_s: float
    update_tensor_s: float
    dequantized_elements_s: float

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Rates:
        """What `to_json` gave."""
        return cls(**{**found, "product": ProductTime(**found["product"])})
