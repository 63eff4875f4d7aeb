"""Keys and values of beginnings that are likely to come again: a system prompt, a conversation, a soft prompt."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

KeysAndValues = list[tuple[torch.Tensor, torch.Tensor]]  # of each layer, [K, n, D] each


@dataclass(frozen=True)
class Beginning:
    """The keys and values of these tokens under one tuned model; those that are `pinned` stay."""

    tokens: np.ndarray
    values: KeysAndValues
    pinned: bool

    @property
    def size_bytes(self) -> int:
        """What it takes."""
        return sum(t.numel() * t.element_size() for pair in self.values for t in pair)


class Kept:
    """Beginnings of at most `limit_bytes` in all, pinned ones not counted; the longest unused go first."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.size_bytes = limit_bytes, 0
        self._of: dict[Any, OrderedDict[int, Beginning]] = {}
        self._used: OrderedDict[int, Any] = OrderedDict()  # number -> its model, the longest unused first
        self._count = 0

    def pin(self, model: Any, tokens: Sequence[int], values: KeysAndValues) -> None:
        """Keeps a beginning until the model goes."""
        self._add(model, Beginning(np.asarray(tokens), values, pinned=True))

    def put(self, model: Any, tokens: Sequence[int], values: KeysAndValues) -> None:
        """Keeps a beginning; those that are beginnings of it go. One that is too large is not kept."""
        new = Beginning(np.asarray(tokens), values, pinned=False)
        if new.size_bytes > self.limit_bytes:
            return
        for number, old in list(self._of.get(model, {}).items()):
            if not old.pinned and shared(old.tokens, new.tokens) == len(old.tokens):
                self._drop(number)
        self._add(model, new)
        while self.size_bytes > self.limit_bytes:
            self._drop(next(iter(self._used)))

    def longest(self, model: Any, tokens: np.ndarray) -> tuple[int, KeysAndValues]:
        """How many of the tokens the best beginning shares, and its keys and values."""
        best, found = 0, None
        for number, each in self._of.get(model, {}).items():
            count = shared(each.tokens, tokens)
            if count > best:
                best, found = count, number
        if found is None:
            return 0, []
        if found in self._used:
            self._used.move_to_end(found)
        return best, self._of[model][found].values

    def forget(self, model: Any) -> None:
        """Lets go of everything that a model has."""
        for number in list(self._of.get(model, {})):
            if number in self._used:
                self._drop(number)
        self._of.pop(model, None)

    def _add(self, model: Any, beginning: Beginning) -> None:
        self._count += 1
        self._of.setdefault(model, OrderedDict())[self._count] = beginning
        if not beginning.pinned:
            self._used[self._count] = model
            self.size_bytes += beginning.size_bytes

    def _drop(self, number: int) -> None:
        model = self._used.pop(number)
        self.size_bytes -= self._of[model].pop(number).size_bytes


def shared(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens two sequences have in common from their beginning on."""
    count = min(len(one), len(other))
    differs = one[:count] != other[:count]
    return int(differs.argmax()) if differs.any() else count
