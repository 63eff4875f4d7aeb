"""What each technique adds to a base of the catalog, in elements, without importing the technique. Imports no torch.

A technique's `cost(shape)` stands in the technique's own file, beside its torch modules, and belongs there: one
technique, one file. Importing that file takes two seconds of torch, which is most of what a plan may take. So the costs
of the catalog's bases at default settings are written down (`costs.json`, made by `python -m heptune.planning.costs`)
and a test compares each with `cost()`. Everything else, another base or other settings, asks `cost()` itself. The
alternative, formulas in a file of their own beside each technique, would be one technique in two files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from heptune import techniques
from heptune.core.errors import TechniqueError
from heptune.models.catalog import Entry, entries
from heptune.models.shape import ModelShape
from heptune.techniques._cost import Cost

_FILE = Path(__file__).with_name("costs.json")


def cost_of(technique: str, settings: Mapping[str, Any], shape: ModelShape, entry: Entry | None = None) -> Cost:
    """The cost of a technique with these settings on a base. Raises `TechniqueError` where the two do not fit."""
    if entry is not None and dict(settings) == techniques.defaults(technique):
        stored = _stored()[entry.name].get(technique)
        if isinstance(stored, list):
            return Cost(*stored)
        if isinstance(stored, str):
            raise TechniqueError(stored)
    return techniques.build(technique, dict(settings)).cost(shape)


@cache
def _stored() -> dict[str, dict[str, Any]]:
    return json.loads(_FILE.read_text("utf-8"))


def computed() -> dict[str, dict[str, Any]]:
    """The costs of every base of the catalog by technique; where a technique does not fit, the reason."""
    return {name: {t: _cost(t, entry.shape) for t in techniques.names()} for name, entry in entries().items()}


def _cost(technique: str, shape: ModelShape) -> list[int] | str:
    try:
        found = techniques.build(technique).cost(shape)
    except TechniqueError as error:
        return str(error)
    return [found.trainable, found.optimizer, found.activations, found.tokens]


def main() -> int:
    """Writes the file."""
    rows = (f" {json.dumps(name)}: {json.dumps(costs)}" for name, costs in computed().items())
    _FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
