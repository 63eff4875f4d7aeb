"""Attention over a forest: which row sees which, and the function that transformers calls.

A batch is one flat row of T tokens (see `engine/forest.py`). Token q may look at token k exactly when

    k <= q < end[k]        and, in layers with a sliding window w, position[q] - position[k] < w

That comparison is causality, packing without contamination and prefix sharing in one. In an encoder it is

    begin[k] <= q < end[k]                 and, with a window, |position[q] - position[k]| < w

where [begin, end) are the rows of k's own text. Computing it as one [T, T]
matrix would waste most of the work, so the rows are cut into blocks: each block of query rows meets only the keys
that at least one of its rows can see.

A technique may put keys and values before every sequence (see `models/prefix.py`): they stand at the positions 0 to
P - 1, the sequence's own tokens from P on, and every query sees them as far as its layer's window reaches.

Shapes: B sequences, T rows, H query heads, K key/value heads (H a multiple of K), D head width, P prefix positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from heptune.models.blocks import cuts, keys_of
from heptune.models.slots import Step, dot_product

NAME = "heptune_forest"


@dataclass(frozen=True)
class Block:
    """Query rows [start, stop) and the keys they meet: a slice where those are contiguous, else row numbers [k]."""

    start: int
    stop: int
    keys: slice | torch.Tensor
    visible: torch.Tensor  # [stop - start, k], bool


@dataclass
class Visibility:
    """Who sees whom in one forest: `end` and `position`, both int64 [T]; in an encoder also `begin`. Blocks are made
    once for each window."""

    end: np.ndarray
    position: np.ndarray
    device: torch.device
    begin: np.ndarray | None = None
    _blocks: dict[int | None, list[Block]] = field(default_factory=dict)
    _bias: dict[tuple[int | None, int, torch.dtype, int], list[torch.Tensor]] = field(default_factory=dict)

    def blocks(self, window: int | None = None) -> list[Block]:
        """The blocks of a layer with this sliding window (None: unlimited)."""
        if window not in self._blocks:
            self._blocks[window] = [self._block(a, b, window) for a, b in cuts(self.position)]
        return self._blocks[window]

    def bias(self, window: int | None, groups: int, dtype: torch.dtype, prefix: int = 0) -> list[torch.Tensor]:
        """For each block the additive mask [1, 1, groups * rows, prefix + k] (0 where visible, -inf elsewhere)."""
        key = (window, groups, dtype, prefix)
        if key not in self._bias:
            self._bias[key] = [
                torch.zeros(visible.shape, dtype=dtype, device=self.device)
                .masked_fill_(~visible, -torch.inf)
                .repeat(groups, 1)[None, None]
                for visible in (self._with_prefix(block, window, prefix) for block in self.blocks(window))
            ]
        return self._bias[key]

    def _with_prefix(self, block: Block, window: int | None, prefix: int) -> torch.Tensor:
        position = torch.from_numpy(self.position[block.start : block.stop]).to(self.device)
        return torch.cat([prefix_visible(position, prefix, window), block.visible], dim=1)

    def _block(self, start: int, stop: int, window: int | None) -> Block:
        candidates, visible = keys_of(self.end, self.position, start, stop, window, self.begin)
        first, last = int(candidates[0]), int(candidates[-1])
        contiguous = last - first + 1 == len(candidates)
        keys = slice(first, last + 1) if contiguous else torch.from_numpy(candidates).to(self.device)
        return Block(start, stop, keys, torch.from_numpy(visible).to(self.device))


class Extension(Visibility):
    """Who sees whom where rows come behind others whose keys and values are kept.

    `seen` [rows, keys] says which keys each row sees, its own among them; `position` [rows] and `key_position` [keys]
    are the places in their own sequences.
    """

    def __init__(self, seen: np.ndarray, position: np.ndarray, key_position: np.ndarray, device: torch.device) -> None:
        super().__init__(np.zeros(0, np.int64), position, device)
        self.seen, self.key_position = seen, key_position

    def blocks(self, window: int | None = None) -> list[Block]:
        """All rows as one block that meets all keys."""
        rows, keys = self.seen.shape
        visible = self.seen
        if window is not None:
            visible = visible & (self.position[:, None] - self.key_position[None] < window)
        return [Block(0, rows, slice(0, keys), torch.from_numpy(visible).to(self.device))]


# A layer's keys and values, [K, P, D] each.
KeyValue = tuple[torch.Tensor, torch.Tensor]


class AttentionState:
    """What a model's attention modules share.

    - `visibility`: the forest that is being computed, or None for an ordinary call
    - `prefix`: each layer's keys and values that stand before every sequence, or None
    - `position`: in an ordinary call with a prefix, the place of each token in its own sequence, int64 [B or 1, T]
    - `step`: the step of growing sequences that is being computed (see `models/slots.py`), or None
    - `record`: where set, each layer puts its keys and values there, by its index
    - `takes_prefixes`: whether the architecture was found to take a prefix (see `models/prefix.py`)
    """

    def __init__(self) -> None:
        self.visibility: Visibility | None = None
        self.step: Step | None = None
        self.prefix: list[KeyValue] | None = None
        self.position: torch.Tensor | None = None
        self.record: dict[int, KeyValue] | None = None
        self.takes_prefixes = False

    @contextmanager
    def stepping(self, step: Step) -> Iterator[None]:
        """Attention takes this step inside the block."""
        self.step = step
        try:
            yield
        finally:
            self.step = None

    @contextmanager
    def over(self, visibility: Visibility | None) -> Iterator[None]:
        """Attention follows this forest inside the block (None: an ordinary call). The backward pass belongs inside
        too: recomputing an activation runs the attention again."""
        before, self.visibility = self.visibility, visibility
        try:
            yield
        finally:
            self.visibility = before


def forest_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in every layer, after rotary embedding: query [1, H, T, D], key and value [1, K, T, D];
    gives [1, T, H, D]. Outside a forest it is torch's scaled dot-product attention."""
    state: AttentionState | None = getattr(module, "heptune_attention", None)
    if state is not None and state.record is not None:
        state.record[module.heptune_layer] = (key[0], value[0])
    if state is not None and state.step is not None:
        window = sliding_window or None
        return state.step.attend(module.heptune_layer, query, key, value, scaling, window, softcap), None
    prefix = state.prefix[module.heptune_layer] if state is not None and state.prefix is not None else None
    window = sliding_window or None
    if state is None or state.visibility is None:
        if state is not None and state.position is not None and prefix is not None:
            seen = prefix_visible(state.position, prefix[0].shape[1], window)
            causal = getattr(module, "is_causal", True)
            key, value, attention_mask = _before_sequence(query, key, value, attention_mask, prefix, seen, causal)
        if softcap is not None:  # torch's own attention has none
            return _softcapped(query, key, value, attention_mask, scaling, softcap), None
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        raise NotImplementedError("attention sinks and position biases are not part of forest attention")
    return attend(query, key, value, state.visibility, scaling, window, softcap, prefix), None


def prefix_visible(position: torch.Tensor, prefix: int, window: int | None) -> torch.Tensor:
    """Which of `prefix` positions a token sees, the `position`-th [.., T] of its own sequence: [.., T, P], bool."""
    distance = position[..., None] + prefix - torch.arange(prefix, device=position.device)
    return torch.ones_like(distance, dtype=torch.bool) if window is None else distance < window


def _before_sequence(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    prefix: KeyValue,
    seen: torch.Tensor,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """An ordinary call's keys, values and mask with the prefix in front; `seen` [B or 1, T, P] says who sees it. The
    mask is [B or 1, 1, T, P + keys]."""
    batch, _, rows, _ = query.shape
    keys = key.shape[2]
    if mask is None:  # transformers leaves a plainly causal mask out, and an encoder's that hides nothing
        mask = torch.ones(1, 1, rows, keys, dtype=torch.bool, device=query.device)
        mask = mask.tril(keys - rows) if causal else mask
    elif mask.dtype != torch.bool:
        mask = mask == 0
    masks = max(len(mask), len(seen))
    mask = torch.cat([part.expand(masks, -1, -1, -1) for part in (seen[:, None], mask[..., :keys])], dim=-1)
    key, value = (
        torch.cat([own.to(given.dtype).expand(batch, -1, -1, -1), given], dim=2)
        for own, given in zip(prefix, (key, value), strict=True)
    )
    return key, value, mask


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visibility: Visibility,
    scaling: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    prefix: KeyValue | None = None,
) -> torch.Tensor:
    """Attention of every row over the rows it can see: query [1, H, T, D], key, value [1, K, T, D] -> [1, T, H, D].

    The H / K query heads that share a key/value head become rows of one problem, so keys and values are not repeated.
    """
    _, heads, rows, width = query.shape
    kv_heads = key.shape[1]
    groups = heads // kv_heads
    grouped = query.reshape(kv_heads, groups, rows, width)
    outputs = []
    blocks = visibility.blocks(window)
    own = [] if prefix is None else [t.to(query.dtype)[None] for t in prefix]
    biases = visibility.bias(window, groups, query.dtype, own[0].shape[2] if own else 0)
    for block, bias, part in zip(blocks, biases, grouped.split([b.stop - b.start for b in blocks], dim=2), strict=True):
        count = block.stop - block.start
        q = part.reshape(1, kv_heads, groups * count, width)
        if isinstance(block.keys, slice):
            k, v = key[:, :, block.keys], value[:, :, block.keys]
        else:
            k, v = key.index_select(2, block.keys), value.index_select(2, block.keys)
        if own:
            k, v = torch.cat([own[0], k], dim=2), torch.cat([own[1], v], dim=2)
        out = dot_product(q, k, v, bias, scaling, softcap)
        outputs.append(out.reshape(heads, count, -1))  # a copy where the kernel lays heads innermost (CUDA's does)
    return torch.cat(outputs, dim=1).transpose(0, 1).unsqueeze(0)


def _softcapped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    softcap: float,
) -> torch.Tensor:
    """An ordinary call's attention with a soft cap on its scores; transformers leaves a plainly causal mask out."""
    groups, rows, keys = query.shape[1] // key.shape[1], query.shape[2], key.shape[2]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if mask is None:
        mask = torch.ones(rows, keys, dtype=torch.bool, device=query.device).tril(keys - rows)
    bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)
    return dot_product(query, key, value, bias, scaling, softcap).transpose(1, 2).contiguous()


def register() -> None:
    """Makes forest attention known to transformers under `NAME`. Ordinary calls keep torch's own masks."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, forest_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)


def install(model: torch.nn.Module, layers: Sequence[torch.nn.Module] = ()) -> AttentionState | None:
    """Switches a model to forest attention; None when its architecture does not go through transformers' interface.

    Attention modules know which layer they are in, but for some encoders': those are found in `layers`.
    """
    register()
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation(NAME)
    except ValueError:
        return None
    if model.config._attn_implementation != NAME:
        model.set_attn_implementation(before)
        return None
    # A second call shares the first one's state, so that both callers' forests are attended to.
    state = shared_state(model) or AttentionState()
    numbered = [(getattr(module, "layer_idx", None), module) for module in model.modules()]
    if all(number is None for number, _ in numbered):
        numbered = [(number, module) for number, layer in enumerate(layers) for module in layer.modules()]
    for number, module in numbered:
        if number is not None:
            module.heptune_attention, module.heptune_layer = state, number
    return state


def shared_state(model: torch.nn.Module) -> AttentionState | None:
    """What the attention modules of a model share already; None before the first `install`."""
    states = (getattr(module, "heptune_attention", None) for module in model.modules())
    return next((found for found in states if found is not None), None)
