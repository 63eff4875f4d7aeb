"""Which examples make up which step: a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from heptune.core.seeds import generator


class Batches:
    """The order of the examples. Each epoch is a permutation of its own, cut into steps by a budget.

    `lengths` [n] are the examples' tokens. A step takes examples until the next one would exceed `tokens` (at least
    one), or exactly `size` examples where that is given. The last step of an epoch may be smaller.
    """

    def __init__(self, lengths: Sequence[int] | np.ndarray, seed: int, tokens: int, size: int | None = None) -> None:
        self.lengths = np.asarray(lengths)
        self.seed, self.tokens, self.size = seed, tokens, size
        self._epoch = lru_cache(maxsize=2)(self._cut)

    def epoch(self, number: int) -> list[np.ndarray]:
        """The steps of one epoch, each an array of example indices."""
        return self._epoch(number)

    def step(self, step: int) -> np.ndarray:
        """The examples of optimizer step `step`, counted from 0 over all epochs."""
        number = 0
        while step >= len(self.epoch(number)):
            step -= len(self.epoch(number))
            number += 1
        return self.epoch(number)[step]

    def steps(self, epochs: float) -> int:
        """How many steps that many epochs have, at least one."""
        whole = int(epochs)
        count = sum(len(self.epoch(number)) for number in range(whole))
        return max(1, count + round((epochs - whole) * len(self.epoch(whole))))

    def _cut(self, number: int) -> list[np.ndarray]:
        order = generator(self.seed, "order", number).permutation(len(self.lengths))
        if self.size is not None:
            return [order[i : i + self.size] for i in range(0, len(order), self.size)]
        steps: list[np.ndarray] = []
        start = filled = 0
        for place, length in enumerate(self.lengths[order]):
            if place > start and filled + length > self.tokens:
                steps.append(order[start:place])
                start, filled = place, 0
            filled += int(length)
        return [*steps, order[start:]]
