"""Checkpoints: everything that the next step depends on, and the proof that it was read as it was written.

checkpoints/step-000120/
    parameters.safetensors    what is trained
    optimizer.safetensors     AdamW's moments
    state.json                the step, the best score so far, ..., and the SHA-256 of both files
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from heptune.core.errors import RunError
from heptune.core.events import Listener, Note
from heptune.engine.optimizer import load_state, state_tensors
from heptune.runs.files import new_folder, read_json, sha256, write_json

# How many checkpoints stay: the newest, and one before it in case the newest is damaged.
KEPT = 2
# How a full disk shows: the system's own error, or the one that safetensors makes of it.
WRITE_ERRORS = (OSError, SafetensorError)
_TENSOR_FILES = ("parameters.safetensors", "optimizer.safetensors")


def save(
    root: Path, step: int, parameters: dict[str, nn.Parameter], optimizer: torch.optim.AdamW, state: dict[str, Any]
) -> Path:
    """Writes the checkpoint of a step and removes old ones. It appears whole, or (`WRITE_ERRORS`) not at all."""
    root.mkdir(exist_ok=True)
    path = root / f"step-{step:06d}"
    with new_folder(path) as folder:
        groups = ({n: p.detach() for n, p in parameters.items()}, state_tensors(optimizer, parameters))
        for name, tensors in zip(_TENSOR_FILES, groups, strict=True):
            save_file({n: t.cpu().contiguous() for n, t in tensors.items()}, folder / name)
        hashes = {name: sha256(folder / name) for name in _TENSOR_FILES}
        write_json(folder / "state.json", {**state, "step": step, "sha256": hashes})
    for old in sorted(root.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def load_newest(
    root: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.AdamW, listener: Listener
) -> dict[str, Any] | None:
    """Restores the newest undamaged checkpoint and returns its state; None when there is none at all.

    A damaged one is named and the one before it taken. Raises `RunError` when all are damaged.
    """
    paths = sorted(root.glob("step-*"), reverse=True)
    for path in paths:
        try:
            state = _verified(path)
        except RunError as error:
            listener(Note(f"the checkpoint {path.name} is damaged ({error}); trying the one before it", "warning"))
            continue
        _restore(path, parameters, optimizer)
        return state
    if paths:
        raise RunError(f"every checkpoint in {root} is damaged; start the run again with another --out")
    return None


def exist(run: Path) -> bool:
    """Whether a run has any checkpoint: its parameters are then no longer those it began with."""
    return any((run / "checkpoints").glob("step-*"))


def best_steps(root: Path) -> set[int | None]:
    """The best steps that the undamaged checkpoints name: their artifacts are still needed."""
    found: set[int | None] = set()
    for path in root.glob("step-*"):
        with suppress(RunError):
            found.add(read_json(path / "state.json")["best_step"])
    return found


def _verified(path: Path) -> dict[str, Any]:
    state = read_json(path / "state.json")
    for name, expected in state["sha256"].items():
        if not (path / name).is_file():
            raise RunError(f"{name} is missing")
        if sha256(path / name) != expected:
            raise RunError(f"{name} is not what was written")
    return state


def _restore(path: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.AdamW) -> None:
    saved = load_file(path / "parameters.safetensors")
    if saved.keys() != parameters.keys():
        raise RunError(f"{path} holds other parameters than this run trains; was the run directory changed by hand?")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])
    load_state(optimizer, parameters, load_file(path / "optimizer.safetensors"))
