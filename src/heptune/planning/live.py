"""Follows the memory of real tensors while they are computed: what is alive, and the most that ever was.

A tensor's memory is its storage; views share one. A storage counts from the operation that gives it (or, where torch
did not make it, from the first operation that reads it) until nothing refers to it any more.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTracker(TorchDispatchMode):
    """Inside the block, `live_bytes` are alive and `peak_bytes` the most so far. `known` are tensors that exist
    already: they count from the beginning.

    What a kernel allocates for itself and frees again is not seen.
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.live_bytes = self.peak_bytes = 0
        self._alive: dict[int, weakref.ref[Any]] = {}
        self._numbers: dict[int, int] = {}
        self._count = 0
        for tensor in known:
            self._see(tensor, "known")

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        for tensor in given:
            self._see(tensor, "read")
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        for tensor in made:
            self._see(tensor, str(func))
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        self.called(func, given, made)
        return result

    def _see(self, tensor: torch.Tensor, source: str) -> int:
        """The number of the tensor's storage, in the order in which they were first seen."""
        storage = tensor.untyped_storage()
        key = id(storage)
        known = self._alive.get(key)
        if known is not None and known() is storage:
            return self._numbers[key]
        number, size = self._count, storage.nbytes()
        self._count += 1
        self._numbers[key] = number

        def gone(_: Any) -> None:
            if self._numbers.get(key) == number:
                del self._alive[key], self._numbers[key]
            self.live_bytes -= size
            self.freed(number)

        self._alive[key] = weakref.ref(storage, gone)
        self.live_bytes += size
        self.allocated(number, size, source)
        return number

    def allocated(self, number: int, size: int, source: str) -> None:
        """A storage of `size` bytes is seen for the first time; `source`: the operation, or 'read', or 'known'."""

    def freed(self, number: int) -> None:
        """Nothing refers to the storage any more."""

    def called(self, func: Any, given: list[torch.Tensor], made: list[torch.Tensor]) -> None:
        """An operation was called."""


def tensors_of(model: torch.nn.Module) -> list[torch.Tensor]:
    """The parameters and buffers of a model."""
    return [*model.parameters(), *model.buffers()]
