"""What Heptune notes in the metadata of a weights file, where other programs do not look.

Formats that are not ours have no field for which technique wrote a folder, with which settings. The note is one entry:
safetensors writes several in an order that varies, and files shall have the same bytes for the same run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from heptune.core.errors import TechniqueError


@dataclass(frozen=True)
class Note:
    """The technique that wrote a file, its settings, and the architecture of the base that it was trained on."""

    technique: str
    settings: dict[str, Any]
    architecture: str


def write(path: Path, tensors: Mapping[str, torch.Tensor], technique: Any, settings: dict[str, Any], base: str) -> None:
    """Writes a weights file with its note; `base` is the base's architecture."""
    own = json.dumps({"technique": technique, "settings": settings, "architecture": base}, sort_keys=True)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, path, metadata={"heptune": own})


def read(path: Path) -> Note | None:
    """The note of a weights file; None for files of other programs and damaged ones."""
    try:
        with safe_open(path, "pt") as file:
            return Note(**json.loads((file.metadata() or {})["heptune"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def settings(path: Path, kind: type, architecture: str) -> Any:
    """The technique (a `kind`) with the settings that were noted; None where another program wrote the file.

    Raises `TechniqueError` naming a setting that this version does not have, or the base that it was trained on where
    that is another one.
    """
    noted = read(path)
    if noted is None:
        return None
    foreign = sorted(noted.settings.keys() - {f.name for f in fields(kind)})
    if foreign:
        raise TechniqueError(f"{path}: the setting {foreign[0]} is not understood; nothing was loaded")
    if noted.architecture != architecture:
        raise TechniqueError(f"{path} was trained on {noted.architecture}, not on {architecture}; nothing was loaded")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in noted.settings.items()})


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weights file. Raises `TechniqueError` when it is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise TechniqueError(f"{path.parent} has no {path.name}; pickle files (.bin) are never read") from None
    except SafetensorError as error:
        raise TechniqueError(f"{path} is damaged ({error}); copy or train it again") from None
