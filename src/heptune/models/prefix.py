"""Keys and values that stand before every sequence, in every layer.

A technique gives them; the attention function puts them in front of a layer's own (see `models/attention.py`). No
cache object carries them: so they work in forests, under activation recomputation, with grouped queries and in cached
generation alike. Real tokens start at position P, as in PEFT.

L layers, K key/value heads, D head width, P positions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from heptune.core.errors import TechniqueError
from heptune.models.anatomy import Anatomy
from heptune.models.attention import AttentionState, install

# Gives the keys and values, [2 L, K, P, D] (layer l: keys at 2 l, values at 2 l + 1), or None where this call of the
# decoder, with these token ids, has none.
Source = Callable[[torch.Tensor | None], torch.Tensor | None]


class KeyValuePrefix:
    """A prefix inside a model, until it is removed."""

    def __init__(self, anatomy: Anatomy, length: int, source: Source) -> None:
        """Puts `length` positions before every sequence. Raises `TechniqueError` where the attention cannot be
        reached."""
        self.length, self.source, self.anatomy = length, source, anatomy
        self.state = _state(anatomy)
        anatomy.placement.prefix = length
        self._hook = anatomy.decoder.register_forward_pre_hook(self._before, with_kwargs=True)

    def remove(self) -> None:
        """Takes the prefix out again."""
        self._hook.remove()
        self.state.prefix = None
        self.anatomy.placement.prefix = 0

    def _before(
        self, decoder: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Before the decoder runs: fetches the keys and values and moves the real tokens to position P."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        found = self.source(ids)
        self.state.prefix = None if found is None else [(found[i], found[i + 1]) for i in range(0, len(found), 2)]
        if found is None:
            return args, kwargs
        cache = kwargs.get("past_key_values")
        self.state.past = 0 if cache is None else int(cache.get_seq_length())
        position = kwargs.get("position_ids")
        if position is None:
            rows = ids if ids is not None else kwargs["inputs_embeds"]
            position = torch.arange(self.state.past, self.state.past + rows.shape[1], device=rows.device)[None]
        return args, {**kwargs, "position_ids": position + self.length}


def record(anatomy: Anatomy, ids: torch.Tensor) -> torch.Tensor:
    """The keys and values that the tokens `ids` [P] have in every layer at the positions 0 to P - 1: [2 L, K, P, D].

    They are those that attention sees, after the rotary embedding. Differentiable.
    """
    state = _state(anatomy)
    before, state.record = state.record, {}
    try:
        anatomy.decoder(input_ids=ids[None], use_cache=False)
        found = state.record
    finally:
        state.record = before
    return torch.stack([tensor for layer in sorted(found) for tensor in found[layer]])


def _state(anatomy: Anatomy) -> AttentionState:
    """The attention's shared state, if this architecture's layers can be given keys and values."""
    name = anatomy.shape.architecture
    can_shift = "position_ids" in inspect.signature(anatomy.decoder.forward).parameters
    state = install(anatomy.model) if can_shift else None
    if state is None:
        raise TechniqueError(
            f"{name} does not go through transformers' attention interface or takes no positions, so nothing can be "
            "put before its sequences; what works on weights works there: lora, freeze, full"
        )
    return state
