"""What a technique promises to the rest of the house.

A technique is a frozen dataclass of hyperparameters. `attach` puts it into a model and returns what is trained;
callers ask for capabilities, never for names.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from torch import nn

from heptune.models.anatomy import Anatomy
from heptune.models.mixture import RowChanges
from heptune.models.shape import ModelShape
from heptune.techniques._cost import Cost

__all__ = ["Attached", "Cost", "Encode", "Technique"]

# Text to token ids, without special tokens: for techniques that start from words.
Encode = Callable[[str], list[int]]


class Attached(Protocol):
    """A technique inside a model."""

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name, in a fixed order."""

    def begin_step(self, seed: int | None) -> None:
        """Whatever is random in training is a function of this seed until the next call; None: nothing is random."""

    def saved(self) -> dict[str, torch.Tensor]:
        """Every tensor that `save` writes, by name: the trained parameters, or what use is made of (a soft prompt
        instead of the network that it comes from) together with what training would go on from."""

    def save(self, folder: Path, base: str) -> None:
        """Writes the technique's own weights and configuration into an existing folder. `base` is the base's name."""

    def rows(self) -> RowChanges:
        """What it does to its own rows of a batch in which others have rows as well. It holds the technique's tensors
        as they are now, and works when the technique has been detached. Capability 'trains_base': nothing, since what
        it learned is in the base's weights."""

    def merge(self) -> None:
        """Folds the technique into the base's weights (capability 'mergeable')."""

    def withdraw(self) -> None:
        """Takes the technique out of the model and leaves the base as it stands beneath: its weights stay as they are
        now, trained ones trained, those in 4 bits in 4 bits."""

    def detach(self) -> None:
        """Gives the base back as it was, bit for bit (capability 'detachable')."""


class Technique(Protocol):
    """The hyperparameters of one technique, and how it goes into a model.

    Capabilities: 'mergeable' folds into the base's weights; 'detachable' can be taken out again; 'identity_start'
    changes nothing until training does; 'trains_base' trains weights of the base itself; 'quantizes_base' stores the
    base's linear sites in 4 bits; 'virtual_tokens' puts rows before the input, 'kv_prefix' keys and values before it in
    every layer: both take positions. 'slow_start' needs many steps before it shows what it can; 'starts_from_text' has
    settings `init` and `init_text`, with which it begins as words.
    """

    name: ClassVar[str]
    capabilities: ClassVar[frozenset[str]]

    @property
    def learning_rate(self) -> float:
        """The peak learning rate; each technique has its own default."""

    def attach(self, anatomy: Anatomy, seed: int, encode: Encode | None = None) -> Attached:
        """Puts the technique into the model and freezes everything else. `encode` is needed by settings that start
        from a text."""

    def cost(self, shape: ModelShape) -> Cost:
        """Its cost in closed form."""

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether a folder holds what this technique's `save` wrote."""

    @classmethod
    def restore(cls, anatomy: Anatomy, folder: Path) -> Attached:
        """Attaches what `save` wrote. Raises `TechniqueError` where it does not fit; nothing is half-loaded."""
