"""Training weights of the base itself: what full tuning and freezing have in common."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from heptune.core.errors import TechniqueError
from heptune.models.anatomy import Anatomy
from heptune.models.mixture import RowChanges

CONFIG_FILE = "trained_weights.json"
WEIGHTS_FILE = "trained_weights.safetensors"


class TrainedWeights:
    """Some of the base's own parameters, unfrozen; the rest stays frozen.

    `keep_originals` holds a copy of them, so that `detach` can put them back.
    """

    def __init__(self, settings: Any, anatomy: Anatomy, chosen: Iterable[nn.Parameter], keep_originals: bool) -> None:
        self.settings, self.anatomy = settings, anatomy
        wanted = {id(parameter) for parameter in chosen}
        self._parameters = {n: p for n, p in anatomy.model.named_parameters() if id(p) in wanted}
        for parameter in anatomy.model.parameters():
            parameter.requires_grad_(id(parameter) in wanted)
        self._originals = {n: p.detach().clone() for n, p in self._parameters.items()} if keep_originals else None

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters under the model's own names; a tied one once."""
        return self._parameters

    def begin_step(self, seed: int | None) -> None:
        """Nothing here is random."""

    def saved(self) -> dict[str, torch.Tensor]:
        """The trained parameters."""
        return dict(self._parameters)

    def save(self, folder: Path, base: str) -> None:
        """Writes the trained tensors alone, under the model's own names, and the settings."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.saved().items()}
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        config = {"technique": self.settings.name, "base": base, "settings": asdict(self.settings)}
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", "utf-8")

    def fill(self, tensors: dict[str, torch.Tensor], source: Path) -> None:
        """Takes the trained tensors; every one must be there, of the right shape, and no other."""
        own = self._parameters
        wrong = sorted(own.keys() ^ tensors.keys()) or [n for n in own if own[n].shape != tensors[n].shape]
        if wrong:
            raise TechniqueError(
                f"{source}: tensor {wrong[0]} does not fit {self.anatomy.shape.architecture}; nothing was loaded"
            )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name])

    def rows(self) -> RowChanges:
        """Nothing: what was learned is in the base's own weights."""
        return RowChanges()

    def merge(self) -> None:
        """The trained weights are the base's own already; nothing is left to fold in."""

    def withdraw(self) -> None:
        """The trained weights stay in the base."""
        for parameter in self._parameters.values():
            parameter.requires_grad_(False)

    def detach(self) -> None:
        """Puts the original weights back."""
        if self._originals is None:
            raise TechniqueError(
                f"{self.settings.name} changed the base's own weights; load the base again to have it back"
            )
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(self._originals[name])
                parameter.requires_grad_(False)


def recognises(folder: Path, technique: str) -> bool:
    """Whether a folder holds trained weights of this technique."""
    path = folder / CONFIG_FILE
    return path.is_file() and _config(path).get("technique") == technique


def read(folder: Path, kind: type) -> tuple[Any, dict[str, torch.Tensor]]:
    """The technique (a `kind`) and the tensors that `TrainedWeights.save` wrote."""
    settings = _config(folder / CONFIG_FILE)["settings"]
    foreign = sorted(settings.keys() - {f.name for f in fields(kind)})
    if foreign:
        raise TechniqueError(f"{folder / CONFIG_FILE}: the setting {foreign[0]} is not understood; nothing was loaded")
    try:
        return kind(**settings), load_file(folder / WEIGHTS_FILE)
    except FileNotFoundError:
        raise TechniqueError(f"{folder} has no {WEIGHTS_FILE}; the artifact is incomplete") from None
    except SafetensorError as error:
        raise TechniqueError(f"{folder / WEIGHTS_FILE} is damaged ({error}); copy or train it again") from None


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise TechniqueError(f"{path} is missing; the artifact is incomplete") from None
    except ValueError as error:
        raise TechniqueError(f"{path} is not valid JSON ({error}); the artifact is damaged") from None
    if not isinstance(config, dict) or not isinstance(config.get("settings"), dict):
        raise TechniqueError(f"{path} has no technique's settings; the artifact is damaged")
    return config
