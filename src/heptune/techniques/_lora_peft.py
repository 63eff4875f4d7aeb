"""LoRA's files in PEFT's layout: names of tensors, the configuration, and what of it is understood."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from heptune.core.errors import TechniqueError
from heptune.models.anatomy import Anatomy
from heptune.models.quantization import QuantizedLinear
from heptune.models.shape import Site
from heptune.techniques import _note, _peft

_PREFIX, _A = "base_model.model.", ".lora_A.weight"

# Settings under which the tensors mean what LoRA computes here. The other initialisations (pissa, olora, corda, loftq,
# ...) change the base's weights too, each in its own way.
_UNDERSTOOD: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}
# Read here, told by the tensors themselves, or without a meaning once training is over.
_READ = ("r", "lora_alpha", "alpha_pattern", "lora_dropout", "use_rslora", "use_dora", "modules_to_save")
_TOLD_BY_TENSORS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern")
_WITHOUT_MEANING = ("fan_in_fan_out", "eva_config", "megatron_core", "qalora_group_size")


@dataclass(frozen=True)
class Size:
    """Rank and alpha of one site's LoRA."""

    rank: int
    alpha: float


@dataclass(frozen=True)
class Stored:
    """What a folder holds: a LoRA's size at each site, and whether it has a head of its own."""

    config: dict[str, Any]
    sizes: dict[Site, Size]
    own_head: bool
    tensors: dict[str, torch.Tensor]


def name(path: str, part: str) -> str:
    """What PEFT calls a tensor of a site: `part` is A, B or magnitude; or of the head: weight or bias."""
    if part in ("weight", "bias"):
        return f"{_PREFIX}{path}.{part}"
    return f"{_PREFIX}{path}." + ("lora_magnitude_vector" if part == "magnitude" else f"lora_{part}.weight")


def config_of(
    settings: Any, base: str, anatomy: Anatomy, sizes: Mapping[Site, Size], standing: tuple[type, ...], own_head: bool
) -> dict[str, Any]:
    """adapter_config.json. `standing`: the types of linear layers in the model as it is now."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "use_rslora": settings.rank_stabilised,
        "use_dora": settings.dora,
        "target_modules": _module_names(anatomy, sizes, standing),
        "rank_pattern": {site.path: size.rank for site, size in sizes.items() if size.rank != settings.rank},
        "alpha_pattern": {site.path: size.alpha for site, size in sizes.items() if size.alpha != settings.alpha},
        "modules_to_save": [_leaf(anatomy.head_path)] if own_head else None,
        "fan_in_fan_out": any(site.transposed for site in sizes),
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }


def read(folder: Path, anatomy: Anatomy) -> Stored:
    """Reads a folder that Heptune or PEFT wrote. Its sites and ranks come from its tensors, which all have their place.

    Raises `TechniqueError` naming the setting or tensor that is not understood.
    """
    ignored = (*_READ, *_TOLD_BY_TENSORS, *_WITHOUT_MEANING)
    config = _peft.read_config(folder, "LORA", ("r", "lora_alpha"), _UNDERSTOOD, ignored)
    tensors = _note.tensors(folder / _peft.WEIGHTS_FILE)
    own_head = _has_own_head(config, anatomy, folder)
    ranks = {n[len(_PREFIX) : -len(_A)]: int(t.shape[0]) for n, t in tensors.items() if n.endswith(_A)}
    foreign = sorted(ranks.keys() - {site.path for site in anatomy.sites})
    if foreign or not ranks:
        what = f"{foreign[0]} is no linear site of {anatomy.shape.architecture}" if foreign else "it holds no LoRA"
        raise TechniqueError(f"{folder}: {what}; nothing was loaded")
    if own_head and anatomy.head_path in ranks:
        raise TechniqueError(f"{folder}: the head is both trained as a whole and adapted; nothing was loaded")
    alphas = config.get("alpha_pattern") or {}
    sizes = {
        site: Size(ranks[site.path], _matching(alphas, site.path, config["lora_alpha"]))
        for site in anatomy.sites
        if site.path in ranks
    }
    _require_fit(
        tensors, _shapes(sizes, bool(config.get("use_dora")), anatomy.head if own_head else None, anatomy), folder
    )
    return Stored(config, sizes, own_head, tensors)


def _has_own_head(config: dict[str, Any], anatomy: Anatomy, folder: Path) -> bool:
    chosen = config.get("modules_to_save") or []
    for module in chosen:
        if module not in (anatomy.head_path, _leaf(anatomy.head_path)):
            raise TechniqueError(
                f"{folder / _peft.CONFIG_FILE}: modules_to_save = {module!r} is not understood (only the head, "
                f"{_leaf(anatomy.head_path)!r}, is); nothing was loaded"
            )
    return bool(chosen)


def _matching(pattern: dict[str, float], path: str, default: float) -> float:
    """PEFT's rule: the first key that is, as a regular expression, the end of the path from a dot on."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", path)), default)


def _shapes(
    sizes: Mapping[Site, Size], dora: bool, head: nn.Module | None, anatomy: Anatomy
) -> dict[str, tuple[int, ...]]:
    """Every tensor's name and shape."""
    wanted: dict[str, tuple[int, ...]] = {}
    for site, size in sizes.items():
        wanted[name(site.path, "A")] = (size.rank, site.in_features)
        wanted[name(site.path, "B")] = (site.out_features, size.rank)
        if dora:
            wanted[name(site.path, "magnitude")] = (site.out_features,)
    if head is not None:
        wanted |= {name(anatomy.head_path, part): tuple(p.shape) for part, p in head.named_parameters()}
    return wanted


def _require_fit(tensors: dict[str, torch.Tensor], wanted: dict[str, tuple[int, ...]], source: Path) -> None:
    if tensors.keys() != wanted.keys():
        missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
        raise TechniqueError(
            f"{source}: its tensors do not fit: {len(missing)} are missing (first: {missing[:1]}) and {len(extra)} "
            f"are not understood (first: {extra[:1]}); nothing was loaded"
        )
    for tensor, shape in wanted.items():
        if tensors[tensor].shape != shape:
            raise TechniqueError(
                f"{source}: {tensor} is {tuple(tensors[tensor].shape)}, this base needs {shape}; "
                "was it trained on another base?"
            )


def _module_names(anatomy: Anatomy, sizes: Mapping[Site, Size], standing: tuple[type, ...]) -> list[str]:
    """PEFT's target_modules: a bare name where it means exactly our sites, else full paths."""
    chosen = {site.path for site in sizes}
    kinds = (nn.Linear, QuantizedLinear, *standing)
    linears = [path for path, m in anatomy.model.named_modules() if isinstance(m, kinds)]
    linears += [s.path for s in anatomy.sites if s.transposed]
    names = {_leaf(path) for path in chosen}
    if all(path in chosen for path in linears if _leaf(path) in names and not path.endswith(".base")):
        return sorted(names)
    return sorted(chosen)


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]
