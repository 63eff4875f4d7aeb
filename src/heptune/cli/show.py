"""How results look: the console, tables and bars. Without a terminal: no colour, no control codes."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table

PLAIN_WIDTH = 110  # columns of a table where there is no terminal to fit it to


def console(stderr: bool = False) -> Console:
    """A console that prints text as it is: brackets and :words: of a person's data mean nothing special."""
    made = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = PLAIN_WIDTH
    return made


def table(headers: Sequence[str], rows: Iterable[Sequence[RenderableType]], numbers: Sequence[int] = ()) -> Table:
    """A table; the columns with these `numbers` are set flush right."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, header in enumerate(headers):
        made.add_column(
            header, justify="right" if index in numbers else "left", overflow="fold", no_wrap=index in numbers
        )
    for row in rows:
        made.add_row(*row)
    return made


def pairs(rows: Iterable[tuple[str, str]]) -> Table:
    """Names and values in two columns."""
    made = Table(box=None, show_header=False, pad_edge=False)
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(name, value)
    return made


def bar(share: float, width: int = 20) -> str:
    """A share from 0 to 1 as blocks."""
    return "█" * round(max(0.0, min(1.0, share)) * width)


def shortened(text: str, length: int = 240) -> str:
    """One line of at most `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def command(*words: str | Path) -> str:
    """A command line to copy, with quotes where a path needs them."""
    return shlex.join(["heptune", *map(str, words)])
