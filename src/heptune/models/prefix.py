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
from heptune.models.attention import AttentionState, KeyValue, install, shared_state

# Gives the keys and values, [2 L, K, P, D] (layer l: keys at 2 l, values at 2 l + 1), or None where this call of the
# decoder, with these token ids, has none.
Source = Callable[[torch.Tensor | None], torch.Tensor | None]

# The self-test's largest difference of logits, relative to their size. On smollm2-135m it is 0 on a CPU, in float32 and
# in bfloat16, and 0.29 where the prefix is left out. Other kernels sum in other orders; bfloat16 keeps 8 bits.
SELF_TEST_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}


class KeyValuePrefix:
    """A prefix inside a model, until it is removed."""

    def __init__(self, anatomy: Anatomy, length: int, source: Source) -> None:
        """Puts `length` positions before every sequence. Raises `TechniqueError` where the attention cannot be
        reached."""
        self.length, self.source, self.anatomy = length, source, anatomy
        self.state = _state(anatomy)
        anatomy.placement.prefix = length
        self._hook = anatomy.decoder.register_forward_pre_hook(self._before, with_kwargs=True)

    @torch.no_grad()
    def keys_and_values(self) -> torch.Tensor:
        """The prefix as it is now, [2 L, K, P, D]."""
        found = self.source(None)
        assert found is not None
        return found

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
        self.state.prefix = None if found is None else _by_layer(found)
        if found is None:
            return args, kwargs
        position = kwargs.get("position_ids")
        if position is None:
            rows = ids if ids is not None else kwargs["inputs_embeds"]
            cache = kwargs.get("past_key_values")
            past = 0 if cache is None else int(cache.get_seq_length())
            position = torch.arange(past, past + rows.shape[1], device=rows.device)[None]
            position = position + self.anatomy.first_position
        self.state.position = position - self.anatomy.first_position
        return args, {**kwargs, "position_ids": position + self.length}


def record(anatomy: Anatomy, ids: torch.Tensor) -> torch.Tensor:
    """The keys and values that the tokens `ids` [P] have in every layer at the positions 0 to P - 1: [2 L, K, P, D].

    They are those that attention sees, after the rotary embedding. Differentiable.
    """
    return _record(anatomy, _state(anatomy), ids)


def _record(anatomy: Anatomy, state: AttentionState, ids: torch.Tensor) -> torch.Tensor:
    before, state.record = state.record, {}
    try:
        with state.over(None):  # it may be asked for inside a forest
            anatomy.states(input_ids=ids[None])
        found = state.record
    finally:
        state.record = before
    return torch.stack([tensor for layer in sorted(found) for tensor in found[layer]])


def _by_layer(given: torch.Tensor) -> list[KeyValue]:
    return [(given[i], given[i + 1]) for i in range(0, len(given), 2)]


def _state(anatomy: Anatomy) -> AttentionState:
    """The attention's shared state, if this architecture's layers can be given keys and values."""
    name, model = anatomy.shape.architecture, anatomy.model
    can_shift = "position_ids" in inspect.signature(anatomy.decoder.forward).parameters
    known = shared_state(model)
    proven = known is not None and known.takes_prefixes
    own = model.config._attn_implementation
    want = _plain(anatomy) if can_shift and not proven else None  # ahead of install: the own attention may differ
    state = install(model, anatomy.layers) if can_shift else None
    if state is None:
        raise TechniqueError(
            f"{name} does not go through transformers' attention interface or takes no positions, so nothing can be "
            f"put before its sequences; {_WAY_OUT}"
        )
    if want is not None and not _agrees(anatomy, state, want):
        model.set_attn_implementation(own)
        raise TechniqueError(
            f"{name} does not take keys and values before a sequence for words that stand there (it has layers without "
            f"attention, attention sinks or the like), so nothing can be put before its sequences; {_WAY_OUT}"
        )
    state.takes_prefixes = True
    return state


_WAY_OUT = "what works on weights works there: lora, freeze, full"
_PROBE_PREFIX = 4


def _probe(anatomy: Anatomy) -> torch.Tensor:
    ids = [(7919 * i + 11) % anatomy.shape.vocabulary for i in range(10)]
    return torch.tensor(ids, device=anatomy.model.get_input_embeddings().weight.device)


@torch.no_grad()
def _plain(anatomy: Anatomy) -> torch.Tensor:
    """What the model says behind the probe's first words."""
    return _said(anatomy, input_ids=_probe(anatomy)[None])[_PROBE_PREFIX:]


def _said(anatomy: Anatomy, **inputs: torch.Tensor) -> torch.Tensor:
    """A causal model's logits, an encoder's hidden states: [T, ...]."""
    if not anatomy.causal:
        return anatomy.states(**inputs)[0]
    found: torch.Tensor = anatomy.model(**inputs, use_cache=False).logits[0]
    return found


@torch.no_grad()
def _agrees(anatomy: Anatomy, state: AttentionState, want: torch.Tensor) -> bool:
    """Whether it says the same where the first words are a prefix of keys and values."""
    shape, probe = anatomy.shape, _probe(anatomy)
    position = torch.arange(_PROBE_PREFIX, len(probe), device=probe.device)[None]
    try:
        # In an encoder the first words' keys and values depend on the words behind them.
        found = _record(anatomy, state, probe)[:, :, :_PROBE_PREFIX]
        if found.shape != (2 * shape.layers, shape.kv_heads, _PROBE_PREFIX, shape.head_width):
            return False
        state.prefix, state.position = _by_layer(found), position - _PROBE_PREFIX
        position = position + anatomy.first_position
        got = _said(anatomy, input_ids=probe[None, _PROBE_PREFIX:], position_ids=position)
    except (RuntimeError, LookupError, TypeError, ValueError):
        return False
    finally:
        state.prefix = None
    return bool((got - want).norm() <= SELF_TEST_TOLERANCE.get(got.dtype, 0.1) * want.norm())
