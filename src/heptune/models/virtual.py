"""Virtual tokens: rows of the input that are vectors, not words.

A token id below zero stands for one: id -1 - j is vector j. Ids stay ids, so a forest merges a soft prompt that stands
before every example into one shared root span, computed once a batch, without knowing what it is.

A call of the model without such ids (an ordinary forward pass, cached generation) gets the virtual tokens of the front
as keys and values: nothing stands before them, so these depend on the weights alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from heptune.models.anatomy import Anatomy
from heptune.models.prefix import KeyValuePrefix, record

# Gives the vectors, [P, d]; where nothing is differentiated, the same tensor as long as they have not changed.
Vectors = Callable[[], torch.Tensor]


class VirtualTokens:
    """Virtual tokens inside a model, until they are removed: `front` before every sequence, `inner` before its answer.

    Where there are inner ones an ordinary call cannot know their place, and in an encoder what stands in front sees the
    text behind it: there a call must bring all of them among its ids.
    """

    def __init__(self, anatomy: Anatomy, front: int, inner: int, vectors: Vectors) -> None:
        self.anatomy, self.vectors, self.front, self.inner = anatomy, vectors, front, inner
        self._virtual: torch.Tensor | None = None
        self._kept: tuple[torch.Tensor, torch.Tensor] | None = None  # the vectors, and the keys and values they give
        embedding = anatomy.model.get_input_embeddings()
        self._hooks = [
            embedding.register_forward_pre_hook(self._before_embedding),
            embedding.register_forward_hook(self._after_embedding),
        ]
        self._ids = -1 - torch.arange(front, device=embedding.weight.device)
        self._prefix = (
            KeyValuePrefix(anatomy, front, self._keys_and_values) if front and not inner and anatomy.causal else None
        )
        anatomy.placement.front, anatomy.placement.inner = front, inner

    def remove(self) -> None:
        """Takes them out again."""
        for hook in self._hooks:
            hook.remove()
        if self._prefix is not None:
            self._prefix.remove()
        self.anatomy.placement.front = self.anatomy.placement.inner = 0

    def _before_embedding(self, embedding: torch.nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        (ids,) = args
        self._virtual = ids if bool((ids < 0).any()) else None
        return (ids.clamp(min=0),)

    def _after_embedding(
        self, embedding: torch.nn.Module, args: tuple[torch.Tensor], words: torch.Tensor
    ) -> torch.Tensor:
        ids, self._virtual = self._virtual, None
        if ids is None:
            return words
        vectors = self.vectors().to(words.dtype)[(-1 - ids).clamp(min=0)]
        return torch.where((ids < 0)[..., None], vectors, words)

    def _keys_and_values(self, ids: torch.Tensor | None) -> torch.Tensor | None:
        if ids is not None and bool((ids < 0).any()):
            return None
        if torch.is_grad_enabled():
            return record(self.anatomy, self._ids)
        vectors = self.vectors()
        if self._kept is None or self._kept[0] is not vectors:
            self._kept = (vectors, record(self.anatomy, self._ids))
        return self._kept[1]
