"""Files that are whole or absent: written under a temporary name, synced to the disk, then renamed."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from heptune.core.errors import RunError
from heptune.runs.processes import alive

# Temporary names begin with this; whatever is found under such a name was never finished.
UNFINISHED = ".unfinished-"


def write_text(path: Path, text: str) -> None:
    """Replaces a file by this text, or leaves it as it was."""
    temporary = path.with_name(f"{UNFINISHED}{path.name}-{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Replaces a file by this value as JSON, or leaves it as it was."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file; `RunError` names the file when it is missing or damaged."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} is missing") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is damaged: {error}") from None


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill; at the end it becomes `path` in one step, replacing what stood there. When the block
    fails nothing of it stays."""
    temporary = path.with_name(f"{UNFINISHED}{path.name}-{os.getpid()}")
    for left in path.parent.glob(f"{UNFINISHED}{glob.escape(path.name)}-*"):  # by a process that was killed here
        owner = left.name.rpartition("-")[2]
        if left == temporary or (owner.isdigit() and not alive(int(owner))):
            shutil.rmtree(left, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            _sync(file)
        _sync(temporary)
        if path.exists():
            old = path.with_name(f"{UNFINISHED}old-{path.name}-{os.getpid()}")
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_unfinished(folder: Path) -> None:
    """Takes away what an interrupted write left in a folder, or in one directly inside it."""
    for path in (*folder.glob(f"{UNFINISHED}*"), *folder.glob(f"*/{UNFINISHED}*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot sync a folder
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
