"""The artifact: what a run leaves for use, read back and compared before the run counts as finished."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from heptune.core.errors import RunError
from heptune.engine.checkpoint import WRITE_ERRORS
from heptune.runs.files import new_folder
from heptune.techniques._contract import Attached


def keep(folder: Path, attached: Attached, base: str, best_step: int | None, step: int) -> Path:
    """Makes the best step's artifact (without validation: the last step's, which is in memory) the run's artifact.

    Raises `RunError` when it cannot be written, or does not read back as it was.
    """
    best = folder / f"best-{best_step or 0:06d}"
    target = folder / "artifact"
    use_best = best_step is not None and best.is_dir()
    try:
        with new_folder(target) as unfinished:
            if use_best:
                shutil.copytree(best, unfinished, dirs_exist_ok=True)
            else:
                attached.save(unfinished, base)
    except WRITE_ERRORS as error:
        way = f"free some space, then `heptune resume {folder}`"
        raise RunError(f"the artifact could not be written ({error}); {way}") from None
    _prove(target, attached, is_current=not use_best or best_step == step)
    return target


def _prove(target: Path, attached: Attached, is_current: bool) -> None:
    """Every trained tensor is there and finite and, where it is the current state, equal to what is in memory."""
    tensors: dict[str, torch.Tensor] = {}
    for path in target.glob("*.safetensors"):
        tensors |= load_file(path)
    own = attached.saved()
    if tensors.keys() != own.keys():
        raise RunError(f"{target} does not hold what was trained; this is a defect, please report it")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise RunError(f"{target}: {name} has values that are not finite; the checkpoints before stay")
        if is_current and not torch.equal(tensor, own[name].detach().cpu()):
            raise RunError(f"{target}: {name} was not written as it was in memory; check the disk, then resume the run")
