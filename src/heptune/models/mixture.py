"""Many tuned models on one base, in one batch: each changes its own rows and no other's.

Every technique comes down to one of four things that can be done to some rows of a batch:

    site       y becomes f(x, y), perhaps in place: y is what a linear site gave for x     LoRA, a base in 4 bits
    junction   h becomes f(h, r), where h leaves a sublayer and r is what it is added to   bottleneck adapters
    prefix     keys and values [2 L, K, P, D] stand before the sequence in every layer     Prefix Tuning, P-Tuning v2
    vectors    token id -1 - j is row j of [P, d]                                          Prompt Tuning, P-Tuning

The base's own products are computed once for all rows. Rows of one tuned model lie side by side, so that each finds
its rows as a slice. Nothing here is differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from heptune.models.anatomy import Anatomy
from heptune.models.junctions import Junction, insert
from heptune.models.prefix import KeyValuePrefix

SiteChange = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
JunctionChange = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class RowChanges:
    """What a tuned model does to its rows. `sites`: a site's path -> changes, one after the other. `vectors` [P, d] are
    its virtual tokens, `front` of them before everything and `inner` before the answer; `head` stands in for the
    base's."""

    sites: Mapping[str, tuple[SiteChange, ...]] = field(default_factory=dict)
    junctions: Mapping[Junction, tuple[JunctionChange, ...]] = field(default_factory=dict)
    prefix: torch.Tensor | None = None
    vectors: torch.Tensor | None = None
    front: int = 0
    inner: int = 0
    head: nn.Module | None = None

    @property
    def positions(self) -> int:
        """Positions that stand before a sequence's own tokens."""
        return self.front if self.prefix is None else self.prefix.shape[2]


def together(changes: Iterable[RowChanges]) -> RowChanges:
    """What several do one after the other, the lowest first. At most one of them takes positions."""
    sites: dict[str, tuple[SiteChange, ...]] = {}
    junctions: dict[Junction, tuple[JunctionChange, ...]] = {}
    places: dict[str, Any] = {}
    for each in changes:
        for path, more in each.sites.items():
            sites[path] = (*sites.get(path, ()), *more)
        for junction, inserted in each.junctions.items():
            junctions[junction] = (*junctions.get(junction, ()), *inserted)
        if each.prefix is not None:
            places["prefix"] = each.prefix
        if each.vectors is not None:
            places |= {"vectors": each.vectors, "front": each.front, "inner": each.inner}
        if each.head is not None:
            places["head"] = each.head
    return RowChanges(sites, junctions, **places)


# Whose rows stand where: (first row, behind the last row, what is done to them).
Groups = Sequence[tuple[int, int, RowChanges]]


class Mixture:
    """A base on which the rows of a batch belong to different tuned models."""

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy
        self._groups: Groups = ()
        self._whole: RowChanges | None = None  # all rows are this one's
        self._hooks: list[RemovableHandle] = []
        self._virtual: torch.Tensor | None = None
        self._listen(())

    def know(self, models: Iterable[RowChanges]) -> None:
        """From now on these may have rows in a batch. Only the places that one of them changes cost anything."""
        for hook in self._hooks:
            hook.remove()
        self._listen(tuple(models))

    def _listen(self, models: Sequence[RowChanges]) -> None:
        embedding = self.anatomy.model.get_input_embeddings()
        self._hooks = [
            embedding.register_forward_pre_hook(self._before_embedding),
            embedding.register_forward_hook(self._after_embedding),
        ]
        # Sites first: a junction's h may be what a site gives, with the site's own changes in it.
        for path in sorted({path for model in models for path in model.sites}):
            self._hooks.append(self.anatomy.model.get_submodule(path).register_forward_hook(self._at_site(path)))
        for junction in dict.fromkeys(j for model in models for j in model.junctions):
            self._hooks += insert(self.anatomy, junction, self._at_junction(junction))

    @contextmanager
    def over(self, groups: Groups) -> Iterator[None]:
        """Inside the block the batch's rows belong to these models; rows of no group are the base's."""
        before, self._groups = self._groups, groups
        try:
            yield
        finally:
            self._groups = before

    @contextmanager
    def alone(self, model: RowChanges) -> Iterator[None]:
        """Inside the block the base is this tuned model, for whatever runs it."""
        anatomy = self.anatomy
        anatomy.placement.front, anatomy.placement.inner = model.front, model.inner
        prefix = model.prefix
        standing = None if prefix is None else KeyValuePrefix(anatomy, prefix.shape[2], lambda ids: prefix)
        own_head = model.head
        if own_head is not None:
            path, head = anatomy.output_head
            anatomy.model.set_submodule(path, own_head)
        self._whole = model
        try:
            yield
        finally:
            self._whole = None
            if own_head is not None:
                anatomy.model.set_submodule(path, head)
            if standing is not None:
                standing.remove()
            anatomy.placement.front = anatomy.placement.inner = 0

    def _rows(self, count: int) -> Groups:
        return self._groups if self._whole is None else ((0, count, self._whole),)

    def _at_site(self, path: str) -> Callable[..., torch.Tensor | None]:
        def change(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
            x, y = args[0].reshape(-1, args[0].shape[-1]), output.reshape(-1, output.shape[-1])
            for start, stop, model in self._rows(len(y)):
                for step in model.sites.get(path, ()):
                    own = y[start:stop]
                    found = step(x[start:stop], own)
                    if found.data_ptr() != own.data_ptr():
                        own.copy_(found)
            return y.view(output.shape)

        return change

    def _at_junction(self, junction: Junction) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        def change(h: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
            rows, residual = h.reshape(-1, h.shape[-1]), r.reshape(-1, r.shape[-1])
            found = rows.clone()
            for start, stop, model in self._rows(len(rows)):
                for step in model.junctions.get(junction, ()):
                    found[start:stop] = step(found[start:stop], residual[start:stop])
            return found.view(h.shape)

        return change

    def _before_embedding(self, embedding: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        (ids,) = args
        self._virtual = ids if bool((ids < 0).any()) else None
        return (ids.clamp(min=0),)

    def _after_embedding(
        self, embedding: nn.Module, args: tuple[torch.Tensor], words: torch.Tensor
    ) -> torch.Tensor | None:
        ids, self._virtual = self._virtual, None
        if ids is None:
            return None
        flat, found = ids.flatten(), words.reshape(-1, words.shape[-1]).clone()
        for start, stop, model in self._rows(len(flat)):
            places = start + torch.nonzero(flat[start:stop] < 0).flatten()
            if model.vectors is not None and len(places):
                found[places] = model.vectors[-1 - flat[places]].to(found.dtype)
        return found.view(words.shape)
