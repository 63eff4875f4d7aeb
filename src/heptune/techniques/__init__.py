"""One file for each technique; adding a file adds a technique.

Names, cards, defaults and capabilities are read from the files without importing them (they need torch, which takes
seconds).
"""

from __future__ import annotations

import ast
import importlib
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heptune.core.errors import TechniqueError, UsageError
from heptune.core.registry import unknown

if TYPE_CHECKING:
    from heptune.techniques._contract import Technique

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The techniques that exist, in alphabetical order."""
    return sorted(path.stem for path in _FOLDER.glob("[!_]*.py"))


@cache
def card(name: str) -> str:
    """A technique's card: principle, advantages, costs, when to use it, when not, and the paper."""
    _known(name)
    text = ast.get_docstring(ast.parse((_FOLDER / f"{name}.py").read_text("utf-8")))
    assert text is not None
    return text


def capabilities(name: str) -> frozenset[str]:
    """What the technique's class says it can do, read from its file without importing it."""
    return ast.literal_eval(_assigned(name)["capabilities"].args[0])  # type: ignore[attr-defined]


def defaults(name: str) -> dict[str, Any]:
    """The technique's hyperparameters with their defaults, read from its file without importing it."""
    fields_of_class = {key: node for key, node in _assigned(name).items() if key not in ("name", "capabilities")}
    return {key: ast.literal_eval(node) for key, node in fields_of_class.items()}


@cache
def _assigned(name: str) -> dict[str, ast.expr]:
    """What the class that `TECHNIQUE` names assigns to its annotated names."""
    _known(name)
    module = ast.parse((_FOLDER / f"{name}.py").read_text("utf-8"))
    chosen = next(
        ast.unparse(node.value)
        for node in module.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TECHNIQUE"
    )
    kind = next(node for node in module.body if isinstance(node, ast.ClassDef) and node.name == chosen)
    return {
        node.target.id: node.value
        for node in kind.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None
    }


def get(name: str) -> type[Technique]:
    """The technique's class; its fields are its hyperparameters."""
    _known(name)
    return importlib.import_module(f"heptune.techniques.{name}").TECHNIQUE


def build(name: str, settings: dict[str, Any] | None = None) -> Technique:
    """A technique with these hyperparameters; text is converted to each field's type.

    Raises `TechniqueError` for a setting it does not have or a value out of range.
    """
    kind = get(name)
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in (settings or {}).items():
        plain = key.replace("-", "_")
        if plain not in known:
            raise unknown(f"setting of {name}", key, known, UsageError)
        values[plain] = _convert(name, plain, value, str(known[plain].type))
    return kind(**values)


def recognise(folder: Path) -> type[Technique]:
    """The technique whose artifact lies in a folder; raises `TechniqueError` when there is none."""
    if not folder.is_dir():
        raise TechniqueError(f"{folder} is no folder; name the folder that holds the artifact")
    found = next((kind for kind in map(get, names()) if kind.recognises(folder)), None)
    if found is None:
        raise TechniqueError(f"{folder} holds no artifact of a known technique ({', '.join(names())})")
    return found


def _known(name: str) -> None:
    if name not in names():
        raise unknown("technique", name, names(), TechniqueError)


def _convert(technique: str, key: str, value: Any, annotation: str) -> Any:
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, str):
        return value
    try:
        if annotation.startswith("tuple"):
            kind = int if annotation.startswith("tuple[int") else str
            return tuple(kind(part.strip()) for part in value.split(",") if part.strip())
        if annotation.startswith("bool"):
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[value.lower()]
        if annotation.startswith("int"):
            return int(value)
        if annotation.startswith("float"):
            return float(value)
    except (KeyError, ValueError):
        wanted = "whole numbers, e.g. 0,1" if annotation.startswith("tuple[int") else annotation.split(" |")[0]
        raise UsageError(f"{technique}: {key} takes {wanted}, got {value!r}") from None
    return value
