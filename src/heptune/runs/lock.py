"""One process at a time works in a folder; a file in it names the process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from heptune.core.errors import RunError
from heptune.runs.files import remove_unfinished
from heptune.runs.processes import alive


class InUseError(RunError):
    """Another process works in the folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out of this folder inside the block; `RunError` names the one that is in it.

    A lock whose owner is gone counts for nothing, and what an unfinished write left is taken away.
    """
    path = folder / "lock"
    while True:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            break
        except FileExistsError:
            if (owner := in_use(folder)) is not None:
                raise InUseError(f"process {owner} is working in {folder}; wait for it or end it") from None
            path.unlink(missing_ok=True)  # its owner is gone
    os.write(descriptor, str(os.getpid()).encode())
    os.close(descriptor)
    try:
        remove_unfinished(folder)
        yield
    finally:
        path.unlink(missing_ok=True)


def in_use(folder: Path) -> int | None:
    """The other process that works in a folder; None where there is none."""
    try:
        owner = (folder / "lock").read_text("utf-8").strip()
    except FileNotFoundError:
        return None
    return int(owner) if owner.isdigit() and int(owner) != os.getpid() and alive(int(owner)) else None
