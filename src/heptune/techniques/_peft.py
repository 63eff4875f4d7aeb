"""PEFT's folder, in both directions: adapter_config.json and adapter_model.safetensors.

What PEFT has no field for (which of our techniques wrote it, with which settings) stands in the metadata of the weights
file, which PEFT does not read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from heptune.core.errors import TechniqueError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


def write(
    folder: Path,
    config: dict[str, Any],
    tensors: Mapping[str, torch.Tensor],
    technique: str,
    settings: dict[str, Any],
    weights_file: str = WEIGHTS_FILE,
) -> None:
    """Writes both files; `technique` and `settings` are what Heptune restores from."""
    own = json.dumps({"technique": technique, "settings": settings}, sort_keys=True)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, folder / weights_file, metadata={"heptune": own})  # one entry: their order in the file varies
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def author(folder: Path, weights_file: str = WEIGHTS_FILE) -> tuple[str, dict[str, Any]] | None:
    """The technique and settings that Heptune noted in the weights; None for others' files and damaged ones."""
    try:
        with safe_open(folder / weights_file, "pt") as file:
            noted = json.loads((file.metadata() or {})["heptune"])
        return str(noted["technique"]), dict(noted["settings"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def noted_settings(folder: Path, kind: type, weights_file: str = WEIGHTS_FILE) -> Any:
    """The technique (a `kind`) with the settings that Heptune noted; None where another program wrote the folder.

    Raises `TechniqueError` naming a setting that this version does not have.
    """
    noted = author(folder, weights_file)
    if noted is None:
        return None
    foreign = sorted(noted[1].keys() - {f.name for f in fields(kind)})
    if foreign:
        raise TechniqueError(f"{folder / weights_file}: the setting {foreign[0]} is not understood; nothing was loaded")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in noted[1].items()})


def recognises(folder: Path, technique: str, peft_type: str, **values: Any) -> bool:
    """Whether a folder holds this technique: by Heptune's note where there is one, else by PEFT's type.

    `values` are settings of PEFT that tell techniques of one type apart.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        return False
    noted = author(folder)
    if noted is not None:
        return noted[0] == technique
    try:
        config = json.loads(path.read_text("utf-8", errors="replace"))
        return config["peft_type"] == peft_type and all(config.get(k) == v for k, v in values.items())
    except (ValueError, TypeError, KeyError):
        return False


def read_config(
    folder: Path, peft_type: str, needed: Iterable[str], understood: Mapping[str, tuple[Any, ...]]
) -> dict[str, Any]:
    """adapter_config.json; `needed` keys must be there, `understood` ones have one of the values under which the
    tensors mean what our technique computes.

    Raises `TechniqueError` naming the field that is not understood.
    """
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise TechniqueError(f"{folder} has no {CONFIG_FILE}; it is no adapter in PEFT's layout") from None
    except ValueError as error:
        raise TechniqueError(f"{path} is not valid JSON ({error}); the folder is damaged") from None
    wanted = ["peft_type", *needed]
    if not isinstance(config, dict) or not set(wanted) <= config.keys():
        raise TechniqueError(f"{path} lacks one of {', '.join(wanted)}; the folder is damaged")
    for key, allowed in {"peft_type": (peft_type,), **understood}.items():
        if key in config and config[key] not in allowed:
            raise TechniqueError(f"{path}: {key} = {config[key]!r} is not understood; nothing was loaded")
    return config


def read_tensors(folder: Path, name: str = WEIGHTS_FILE) -> dict[str, torch.Tensor]:
    """The tensors of a weights file. Raises `TechniqueError` when it is missing or damaged."""
    path = folder / name
    try:
        return load_file(path)
    except FileNotFoundError:
        raise TechniqueError(f"{folder} has no {name}; pickle files (.bin) are never read") from None
    except SafetensorError as error:
        raise TechniqueError(f"{path} is damaged ({error}); copy or train it again") from None
