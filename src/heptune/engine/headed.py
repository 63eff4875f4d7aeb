"""A technique and a linear head as one: both are trained, saved and loaded together."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from heptune.core.errors import TechniqueError
from heptune.models.mixture import RowChanges
from heptune.models.readout import Readout
from heptune.techniques._contract import Attached

FILE = "readout.safetensors"
_PREFIX = "readout."


class Headed:
    """What is attached to a base together with a readout; see `techniques._contract.Attached`."""

    def __init__(self, attached: Attached, readout: Readout) -> None:
        self.attached, self.readout = attached, readout

    @property
    def _own(self) -> dict[str, nn.Parameter]:
        return {_PREFIX + name: parameter for name, parameter in self.readout.named_parameters()}

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The technique's, then the head's."""
        return {**self.attached.parameters, **self._own}

    def begin_step(self, seed: int | None) -> None:
        """The head has nothing random."""
        self.attached.begin_step(seed)

    def saved(self) -> dict[str, torch.Tensor]:
        """Every tensor that `save` writes."""
        return {**self.attached.saved(), **self._own}

    def save(self, folder: Path, base: str) -> None:
        """The technique's files, and the head's beside them."""
        self.attached.save(folder, base)
        save_file({n: p.detach().cpu().contiguous() for n, p in self._own.items()}, folder / FILE)

    def rows(self) -> RowChanges:
        """The technique's; a head is no part of what rows are computed to."""
        return self.attached.rows()

    def withdraw(self) -> None:
        """The technique alone."""
        self.attached.withdraw()

    def merge(self) -> None:
        """The technique alone; the head stays beside the base."""
        self.attached.merge()

    def detach(self) -> None:
        """The technique alone."""
        self.attached.detach()


def fill(readout: Readout, folder: Path) -> None:
    """Gives a readout what `Headed.save` wrote. Raises `TechniqueError` where it does not fit; nothing is changed."""
    path = folder / FILE
    if not path.is_file():
        raise TechniqueError(f"{path} is missing: the linear head that this task needs was not saved here")
    tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in load_file(path).items()}
    own = {name: tuple(p.shape) for name, p in readout.named_parameters()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if own != found:
        raise TechniqueError(f"{path} holds a head of the sizes {found}, the task needs {own}; nothing was loaded")
    readout.load_state_dict(tensors)
