"""PEFT's folder, in both directions: adapter_config.json and adapter_model.safetensors.

Which of our techniques wrote a folder, and with which settings, stands in its weights' metadata (see `_note.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from heptune.core.errors import TechniqueError
from heptune.techniques import _note

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


def write(
    folder: Path,
    config: dict[str, Any],
    tensors: Mapping[str, torch.Tensor],
    technique: str,
    settings: dict[str, Any],
    architecture: str,
) -> None:
    """Writes both files; `technique`, `settings` and the base's `architecture` are what Heptune restores from."""
    _note.write(folder / WEIGHTS_FILE, tensors, technique, settings, architecture)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def recognises(folder: Path, technique: str, peft_type: str, **values: Any) -> bool:
    """Whether a folder holds this technique: by Heptune's note where there is one, else by PEFT's type.

    `values` are settings of PEFT that tell techniques of one type apart.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        return False
    noted = _note.read(folder / WEIGHTS_FILE)
    if noted is not None:
        return noted.technique == technique
    try:
        config = json.loads(path.read_text("utf-8", errors="replace"))
        return config["peft_type"] == peft_type and all(config.get(k) == v for k, v in values.items())
    except (ValueError, TypeError, KeyError):
        return False


# Fields of every technique that say nothing about what the tensors mean.
_ABOUT_THE_FILE = (
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    "inference_mode",
)


def read_config(
    folder: Path,
    peft_type: str,
    needed: Iterable[str],
    understood: Mapping[str, tuple[Any, ...]],
    ignored: Iterable[str] = (),
) -> dict[str, Any]:
    """adapter_config.json; `needed` keys must be there, `understood` ones have one of the values under which the
    tensors mean what our technique computes, `ignored` ones may have any. Every other field must be switched off.

    Raises `TechniqueError` naming the field that is not understood: by it the tensors may mean something else.
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
    for key in sorted(config.keys() - {*wanted, *understood, *ignored, *_ABOUT_THE_FILE}):
        if config[key] not in (None, False, {}, []):
            raise TechniqueError(f"{path}: the field {key} is not understood ({config[key]!r}); nothing was loaded")
    return config
