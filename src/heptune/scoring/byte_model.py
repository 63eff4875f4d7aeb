"""A rival of language models that costs seconds: what the five bytes before it say about a byte.

Counts of up to six bytes in a row, smoothed as Witten and Bell (1991) do: the estimate behind a context h of k bytes is
mixed with that behind its last k - 1 bytes, the more the more different bytes T(h) were seen behind h:

    p_k(b | h) = (count(h b) + T(h) p_(k-1)(b | h')) / (count(h) + T(h)),    p_(-1)(b) = 1/256

Bits per byte compare it with a model of any tokenizer. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ORDER = 5


@dataclass(frozen=True)
class ByteModel:
    """For each order k: the runs of k + 1 bytes that were seen, as sorted numbers, and how often; the contexts in them,
    how often, and how many different bytes followed."""

    runs: tuple[np.ndarray, ...]
    counts: tuple[np.ndarray, ...]
    contexts: tuple[np.ndarray, ...]
    context_counts: tuple[np.ndarray, ...]
    followers: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, texts: Sequence[bytes]) -> ByteModel:
        """The counts of these texts. A text begins behind zero bytes, which stand in no text."""
        packed, _ = _packed(texts)
        orders = []
        for k in range(ORDER + 1):
            runs, counts = np.unique(packed & _mask(k), return_counts=True)
            contexts, first = np.unique(runs >> np.uint64(8), return_index=True)
            orders.append((runs, counts, contexts, np.add.reduceat(counts, first), np.diff([*first, len(runs)])))
        return cls(*(tuple(column) for column in zip(*orders, strict=True)))

    def nats(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """-log p of every byte of every text."""
        packed, sizes = _packed(texts)
        p = np.full(len(packed), 1 / 256)
        for k in range(ORDER + 1):
            run = packed & _mask(k)
            count = _looked_up(self.runs[k], self.counts[k], run)
            context = run >> np.uint64(8)
            seen = _looked_up(self.contexts[k], self.context_counts[k], context)
            followers = _looked_up(self.contexts[k], self.followers[k], context)
            known = seen > 0
            p[known] = (count[known] + followers[known] * p[known]) / (seen[known] + followers[known])
        return np.split(-np.log(p), np.cumsum(sizes)[:-1])


def _mask(order: int) -> np.uint64:
    return np.uint64((1 << 8 * (order + 1)) - 1)


def _packed(texts: Sequence[bytes]) -> tuple[np.ndarray, list[int]]:
    """Every byte with the five before it as one number, the byte itself lowest; and each text's number of bytes."""
    data = np.frombuffer(b"".join(bytes(ORDER) + text for text in texts), dtype=np.uint8)
    packed = np.zeros(len(data), dtype=np.uint64)
    for back in range(ORDER + 1):
        packed[back:] |= data[: len(data) - back].astype(np.uint64) << np.uint64(8 * back)
    sizes = [len(text) for text in texts]
    real = np.concatenate([np.r_[np.zeros(ORDER, bool), np.ones(size, bool)] for size in sizes])
    return packed[real], sizes


def _looked_up(known: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of each wanted number, 0 where it is not known."""
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[at] == wanted, values[at], 0)
