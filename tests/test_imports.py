"""The law of imports: rooms import only what stands to their left, and modules never import in a circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import heptune

PACKAGE = Path(heptune.__file__).parent

# Each line may import the lines above it; rooms of one line do not import each other.
ORDER = (
    {"core"},
    {"runs"},
    {"data", "models"},
    {"tasks", "techniques"},
    {"engine"},
    {"scoring", "planning"},
    {"tuning"},
    {"racing", "shipping", "service"},
    {"reporting"},
    {"api"},
    {"cli"},
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
# Rooms that hold data only and import nothing.
DATA_ROOMS = {"demo"}


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in PACKAGE.rglob("*.py")}


def imports(path: Path) -> set[str]:
    """The package's modules that a file imports at run time, at its top or inside functions."""
    found: set[str] = set()
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
    return {name for name in found if name in MODULES}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_room_imports_only_what_stands_left_of_it(module: str) -> None:
    here = room(module)
    if not here:
        return  # the package's own __init__ loads names lazily
    targets = {room(target) for target in imports(MODULES[module])} - {here, ""}
    if here in DATA_ROOMS:
        assert not targets
        return
    for target in targets - (DATA_ROOMS if here in ("api", "cli") else set()):
        assert LEVEL[target] < LEVEL[here], f"{module} ({here}) imports {target}"


def test_modules_do_not_import_in_a_circle() -> None:
    graph = {name: imports(path) - {name, "heptune"} for name, path in MODULES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


# The papers build one technique on the other.
BUILT_ON = {
    "heptune.techniques.p_tuning_v2": {"heptune.techniques.prefix"},
    "heptune.techniques.qlora": {"heptune.techniques.lora"},
}


def test_siblings_among_techniques_do_not_import_each_other() -> None:
    for module, path in MODULES.items():
        if room(module) == "techniques":
            others = {t for t in imports(path) if room(t) == "techniques" and not t.rpartition(".")[2].startswith("_")}
            assert others <= {module, "heptune.techniques"} | BUILT_ON.get(module, set()), module


LIGHT = ("core", "runs", "data", "demo", "tasks", "techniques", "engine.settings", "reporting", "cli.main")


@pytest.mark.parametrize("name", [*LIGHT, "scoring.baselines", "scoring.comparison", "racing.verdict"])
def test_light_rooms_import_no_torch(name: str) -> None:
    modules = [m for m in MODULES if m == f"heptune.{name}" or (m + ".").startswith(f"heptune.{name}.")]
    if name == "techniques":
        modules = ["heptune.techniques"]  # the files themselves hold torch modules; finding and reading them does not
    program = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
