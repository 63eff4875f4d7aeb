"""Counts the work of a real pass, operation by operation, by the rules of `planning/forms.py`."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from heptune.planning.forms import Product, Work


class WorkCounter(TorchDispatchMode):
    """Inside the block everything that torch computes is added up; `work()` gives it.

    Matrix products are told by their sizes, attention's kernels by their floating point operations (4 for each pair of
    a query's and a key's element forward, 10 backward), all else by the bytes read and written. Views cost nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._products: Counter[tuple[int, int, int]] = Counter()
        self._attention_flops = self._moved_bytes = self._operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func.is_view or func.namespace == "profiler":
            return made
        self._operations += 1
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm"):
            self._product(given[0], given[1])
        elif name in ("addmm", "addmm_", "baddbmm", "baddbmm_"):
            self._product(given[1], given[2])
        elif "scaled_dot_product" in name:
            query, key = (given[1], given[2]) if "backward" in name else (given[0], given[1])
            self._attention_flops += (10 if "backward" in name else 4) * query.numel() * key.shape[-2]
        else:
            tensors = [*given, *(leaf for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor))]
            self._moved_bytes += sum(tensor.numel() * tensor.itemsize for tensor in tensors)
        return made

    def work(self) -> Work:
        """What was counted so far."""
        products = tuple(Product(count, *sides) for sides, count in sorted(self._products.items()))
        return Work(products, self._attention_flops, self._moved_bytes, self._operations)

    def _product(self, left: torch.Tensor, right: torch.Tensor) -> None:
        count = left.shape[0] if left.ndim == 3 else 1
        self._products[left.shape[-2], left.shape[-1], right.shape[-1]] += count
