"""Keys and values of sequences that grow side by side, and attention over them.

Every sequence has a slot: the keys and values of its positions 0, 1, 2, ... in every layer. Slots lie in pools, each
for sequences of at most so many positions, so that those of one pool are attended to in one call:

    keys, values of a layer    [S, K, C, D]    S slots, K key/value heads, C positions, D head width

A step computes some rows of every sequence that takes part: one where it says its next token, many where its prompt is
read. A row at position p sees position k of its own sequence where k <= p and, in a layer with a window w, p - k < w.
What stands before a sequence (a prefix of keys and values) is written into its slot like any other position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

# A pool's capacity is a power of two from here on: few pools, and at most half of a slot is never used.
SMALLEST_POOL = 256


@dataclass(eq=False)
class Slot:
    """A sequence's place: it is the `number`-th of its pool. `filled` positions are there."""

    pool: Pool
    number: int
    filled: int = 0


class Pool:
    """Slots for sequences of at most `capacity` positions. Those in use are the first ones."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.slots: list[Slot] = []
        self.size = 0  # slots that there is memory for
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}

    def take(self, most: int = 1) -> Slot:
        """A new slot, the last one. Memory is taken for twice as many slots as before, up to `most`, which is the
        caller's business: growing copies everything."""
        slot = Slot(self, len(self.slots))
        self.slots.append(slot)
        if len(self.slots) > self.size:
            self.size = max(len(self.slots), min(2 * self.size, most))
        return slot

    def give_back(self, slot: Slot) -> None:
        """Frees a slot; the last one moves to its place. A pool without slots lets its memory go."""
        last = self.slots.pop()
        if last is not slot:
            for held in (*self.keys.values(), *self.values.values()):
                held[slot.number, :, : last.filled] = held[last.number, :, : last.filled]
            last.number = slot.number
            self.slots[slot.number] = last
        if not self.slots:
            self.keys, self.values, self.size = {}, {}, 0

    def layer(self, number: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's keys and values [S, K, C, D], with the heads and widths of `key` and `value` [.., K, n, D]."""
        for kept, like in ((self.keys, key), (self.values, value)):
            held = kept.get(number)
            if held is None or len(held) < self.size:
                # Zeros: a masked position takes part in a product with a weight of nought, and NaN times 0 is NaN.
                sizes = (self.size, like.shape[-3], self.capacity, like.shape[-1])
                made = torch.zeros(sizes, dtype=like.dtype, device=like.device)
                if held is not None:
                    made[: len(held)] = held
                kept[number] = made
        return self.keys[number], self.values[number]


def put(slot: Slot, kept: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Begins a slot with keys and values [K, n, D] of each layer."""
    for number, (key, value) in enumerate(kept):
        keys, values = slot.pool.layer(number, key, value)
        keys[slot.number, :, : key.shape[1]] = key
        values[slot.number, :, : key.shape[1]] = value
    slot.filled = kept[0][0].shape[1] if kept else 0


def taken(slot: Slot, positions: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A copy of the keys and values [K, n, D] of a slot's first positions, of each layer."""
    pool = slot.pool
    return [
        tuple(held[number][slot.number, :, :positions].clone() for held in (pool.keys, pool.values))  # type: ignore[misc]
        for number in sorted(pool.keys)
    ]


@dataclass(frozen=True)
class Reading:
    """Rows [start, stop) of a step are the next positions of one slot."""

    slot: Slot
    start: int
    stop: int


@dataclass
class _Saying:
    """The rows of a step that are one more position for slots of one pool."""

    pool: Pool
    row: torch.Tensor  # [n], rows of the step
    number: torch.Tensor  # [n], slots
    position: torch.Tensor  # [n]
    longest: int
    bias: dict[tuple[int | None, torch.dtype], torch.Tensor] = field(default_factory=dict)


class Step:
    """Who sees whom in one step. `attend` is what attention does in every layer (see `models/attention.py`)."""

    def __init__(self, readings: Sequence[Reading], device: torch.device) -> None:
        self.device = device
        self.readings = [each for each in readings if each.stop - each.start > 1]
        single: dict[int, list[Reading]] = {}
        for each in readings:
            if each.stop - each.start == 1:
                single.setdefault(id(each.slot.pool), []).append(each)
        self.sayings = [self._saying(group) for group in single.values()]
        self._bias: dict[tuple[int, int | None, torch.dtype, int], torch.Tensor] = {}

    def _saying(self, group: Sequence[Reading]) -> _Saying:
        def numbers(values: list[int]) -> torch.Tensor:
            return torch.tensor(values, device=self.device)

        positions = [each.slot.filled for each in group]
        return _Saying(
            group[0].slot.pool,
            numbers([each.start for each in group]),
            numbers([each.slot.number for each in group]),
            numbers(positions),
            max(positions) + 1,
        )

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """What rows with query [1, H, T, D], key and value [1, K, T, D] give: [1, T, H, D]. The keys and values are
        written into the slots."""
        _, heads, rows, _ = query.shape
        kv_heads = key.shape[1]
        out = query.new_empty(rows, heads, value.shape[3])
        grouped = query[0].view(kv_heads, heads // kv_heads, rows, -1)
        for saying in self.sayings:
            keys, values = saying.pool.layer(layer, key, value)
            keys[saying.number, :, saying.position] = key[0, :, saying.row].transpose(0, 1)
            values[saying.number, :, saying.position] = value[0, :, saying.row].transpose(0, 1)
            count = len(saying.pool.slots)
            asked = query.new_zeros(count, kv_heads, heads // kv_heads, query.shape[3])
            asked[saying.number] = grouped[:, :, saying.row].permute(2, 0, 1, 3)
            bias = self._saying_bias(saying, window, query.dtype)
            found = dot_product(
                asked, keys[:count, :, : saying.longest], values[:count, :, : saying.longest], bias, scaling, softcap
            )
            out[saying.row] = found[saying.number].flatten(1, 2)
        for place, reading in enumerate(self.readings):
            start, stop, slot = reading.start, reading.stop, reading.slot
            before, count = slot.filled, stop - start
            keys, values = slot.pool.layer(layer, key, value)
            keys[slot.number, :, before : before + count] = key[0, :, start:stop]
            values[slot.number, :, before : before + count] = value[0, :, start:stop]
            bias = self._reading_bias(place, before, count, window, query.dtype, heads // kv_heads)
            asked = grouped[:, :, start:stop].reshape(1, kv_heads, heads // kv_heads * count, -1)
            seen = slice(0, before + count)
            found = dot_product(
                asked, keys[None, slot.number, :, seen], values[None, slot.number, :, seen], bias, scaling, softcap
            )
            out[start:stop] = found.view(heads, count, -1).transpose(0, 1)
        return out[None]

    def done(self) -> None:
        """The rows of this step are positions of their slots now."""
        for reading in self.readings:
            reading.slot.filled += reading.stop - reading.start
        for saying in self.sayings:
            for number in saying.number.tolist():
                saying.pool.slots[number].filled += 1

    def _saying_bias(self, saying: _Saying, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """[S, 1, 1, longest]: 0 where visible, -inf elsewhere. Slots that do not take part see all; nobody looks."""
        kind = (window, dtype)
        if kind not in saying.bias:
            place = torch.full((len(saying.pool.slots),), saying.longest - 1, device=self.device)
            place[saying.number] = saying.position
            distance = place[:, None] - torch.arange(saying.longest, device=self.device)
            hidden = (distance < 0) if window is None else (distance < 0) | (distance >= window)
            made = torch.zeros(hidden.shape, dtype=dtype, device=self.device).masked_fill_(hidden, -torch.inf)
            saying.bias[kind] = made[:, None, None]
        return saying.bias[kind]

    def _reading_bias(
        self, place: int, before: int, count: int, window: int | None, dtype: torch.dtype, groups: int
    ) -> torch.Tensor:
        """[1, 1, groups * rows, positions]."""
        kind = (place, window, dtype, groups)
        if kind not in self._bias:
            own = torch.arange(before, before + count, device=self.device)
            distance = own[:, None] - torch.arange(before + count, device=self.device)
            hidden = (distance < 0) if window is None else (distance < 0) | (distance >= window)
            made = torch.zeros(hidden.shape, dtype=dtype, device=self.device).masked_fill_(hidden, -torch.inf)
            self._bias[kind] = made.repeat(groups, 1)[None, None]
        return self._bias[kind]


def dot_product(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, scaling: float | None, softcap: float | None
) -> torch.Tensor:
    """softmax(q k^T * scaling + bias) v, with a soft cap on the scores where there is one."""
    if softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scaling)
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap) + bias
    return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v
