"""The form for any base, technique and settings: from the book, from the user's cache, or traced now and kept there.

Imports no torch before something has to be traced (which takes a second or two, after torch and transformers).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import heptune
from heptune.core.errors import BaseModelError, RunError
from heptune.models.embedded import cache_folder
from heptune.planning import book
from heptune.planning.book import Variant
from heptune.planning.forms import StepForm
from heptune.runs.files import read_json, write_json

# Settings that name layers one by one; a form with them holds for one number of layers.
_NAMES_LAYERS = ("leave_out",)


def form(variant: Variant, layers: int, config: Mapping[str, Any] | None = None) -> StepForm:
    """The form of a training step of a base with so many layers. `config`: the base's own configuration, for an
    architecture that is not in the book; without it the family's default one is taken.

    Raises `BaseModelError` where transformers does not know the family.
    """
    found = book.find(variant)
    if found is not None:
        return found
    named = layers if any(variant.settings.get(name) for name in _NAMES_LAYERS) else None
    path = _path(variant.key, config, named)
    with suppress(RunError, KeyError, TypeError, ValueError):
        if path.is_file():
            return StepForm.from_json(read_json(path))
    made = _trace(variant, config, named)
    with suppress(OSError):  # a cache that cannot be written is only slower
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, made.to_json())
    return made


def _path(key: str, config: Mapping[str, Any] | None, layers: int | None) -> Path:
    """Where a form is kept: named after everything that it depends on."""
    facts = {
        "key": key,
        "config": dict(config or {}),
        "layers": layers,
        "versions": {"heptune": heptune.__version__, **{name: version(name) for name in ("torch", "transformers")}},
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    return cache_folder() / "forms" / f"{digest[:32]}.json"


def _trace(variant: Variant, config: Mapping[str, Any] | None, layers: int | None) -> StepForm:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from heptune.planning.trace import trace

    if variant.family not in CONFIG_MAPPING:
        raise BaseModelError(
            f"transformers {version('transformers')} knows no architecture {variant.family!r}, so its memory and work "
            "cannot be counted; a newer one may"
        )
    return trace(
        CONFIG_MAPPING[variant.family].from_dict(dict(config)) if config else variant.family,
        variant.technique,
        variant.settings,
        dtype=variant.dtype,
        recompute=variant.recompute,
        quantized=variant.quantized,
        tied=variant.tied,
        layers=layers,
        head=variant.head,
    )
