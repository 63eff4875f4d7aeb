"""Each technique's hyperparameters, read from its file without importing it (that would import torch)."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from heptune import techniques


@dataclass(frozen=True)
class Hyperparameter:
    """One field of a technique's dataclass. `default` is written as on the command line."""

    name: str
    type: str
    default: str
    meaning: str


@cache
def hyperparameters(technique: str) -> tuple[Hyperparameter, ...]:
    """The fields of the class that `TECHNIQUE` names, explained by its docstring's "Attributes:" section."""
    techniques.card(technique)  # refuses unknown names
    source = Path(techniques.__file__).with_name(f"{technique}.py").read_text("utf-8")
    module = ast.parse(source)
    assigned = [node for node in module.body if isinstance(node, ast.Assign)]
    chosen = next(ast.unparse(node.value) for node in assigned if ast.unparse(node.targets[0]) == "TECHNIQUE")
    kind = next(node for node in module.body if isinstance(node, ast.ClassDef) and node.name == chosen)
    meanings = _attributes(ast.get_docstring(kind) or "")
    found = []
    for node in kind.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            annotation = ast.unparse(node.annotation)
            if not annotation.startswith("ClassVar"):
                default = _default(node.value, ast.get_source_segment(source, node.value) or "")
                found.append(Hyperparameter(node.target.id, annotation, default, meanings.get(node.target.id, "")))
    return tuple(found)


def _default(node: ast.expr, written: str) -> str:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return written
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple | list):
        return ",".join(map(str, value)) or "not set"
    return "not set" if value is None else value if isinstance(value, str) else written


def _attributes(docstring: str) -> dict[str, str]:
    """Maps names to texts: an indented "Attributes:" section, where a deeper line goes on with the text above it."""
    _, _, section = docstring.partition("Attributes:\n")
    meanings: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if line and not line.startswith(" "):
            break
        entry = re.match(r" {4}(\w+): (.*)", line)
        if entry:
            name = entry[1]
            meanings[name] = entry[2].strip()
        elif name and line.strip():
            meanings[name] += " " + line.strip()
    return meanings
