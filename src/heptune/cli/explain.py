"""`heptune explain`: the techniques' cards. Answers without torch."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from heptune import techniques
from heptune.cli.hyperparameters import hyperparameters


def explain(
    technique: Annotated[
        str | None, typer.Argument(metavar="[TECHNIQUE]", show_default="a table of all", help="Its name.")
    ] = None,
) -> None:
    """Explain a technique: its principle, what it costs, when to use it, its settings."""
    from heptune.cli.show import console, table

    screen = console()
    if technique is None:
        rows = [[name, _title(name), _use_when(name)] for name in techniques.names()]
        screen.print(table(["technique", "what it is", "use it when"], rows))
        return
    screen.print(techniques.card(technique), soft_wrap=True)
    screen.print()
    rows = [[f"--{h.name.replace('_', '-')}", h.default, h.meaning] for h in hyperparameters(technique)]
    screen.print(table(["setting", "default", "meaning"], rows))


def _title(name: str) -> str:
    first = techniques.card(name).splitlines()[0]
    return first.partition(": ")[2] or first


def _use_when(name: str) -> str:
    """The paragraph under "Use it when", as one line."""
    found = re.search(r"^Use it when\n((?:[ ]+.*\n?)+)", techniques.card(name), re.MULTILINE)
    return " ".join(found[1].split()) if found else ""
