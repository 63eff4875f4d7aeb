"""A run directory:

    manifest.json     what the run was told, what it decided, what came out
    events.jsonl      one line for each event of the training
    checkpoints/      step-000120/: from these the run goes on with the same bits
    best-000120/      the artifact after the best step so far
    artifact/         what the run leaves for use
    calibration.json  the temperature of a classifier's probabilities
    evaluations/      what `eval` found, one file each

Every file is whole or absent. One process at a time works in a run directory; a lock names it.
"""

from __future__ import annotations

import json
import re
import time
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from heptune.core.errors import RunError
from heptune.core.events import Event, TrainingStarted
from heptune.runs.files import read_json, write_json, write_text
from heptune.runs.lock import locked

FORMAT = 1


class Run:
    """A run directory that exists. `Run(folder)` opens it; `create` makes a new one."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "manifest.json").is_file():
            raise RunError(_no_run(self.folder))
        self.manifest: dict[str, Any] = read_json(self.folder / "manifest.json")
        if self.manifest.get("format") != FORMAT:
            raise RunError(
                f"{self.folder} has run format {self.manifest.get('format')!r}, this version reads {FORMAT}; "
                f"it was written by heptune {self.manifest.get('heptune')}: use that version"
            )

    @classmethod
    def create(cls, folder: Path, manifest: dict[str, Any]) -> Run:
        """A new run directory with its manifest. Raises `RunError` when the folder is taken."""
        if (folder / "manifest.json").exists():
            status = read_json(folder / "manifest.json").get("status")
            way = (
                f"continue it with `heptune resume {folder}`"
                if status != "finished"
                else "look at it with `heptune eval`"
            )
            raise RunError(f"{folder} holds a run already (status: {status}); {way}, or choose another --out")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunError(f"{folder} is not an empty folder, and no run; choose another --out")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "manifest.json", {"format": FORMAT, **manifest})
        except OSError as error:
            raise RunError(f"{folder} cannot be written ({error.strerror}); choose another --out") from None
        return cls(folder)

    def discard(self) -> None:
        """Takes back a run that never began, so that its folder is free for the next attempt."""
        for name in ("manifest.json", "events.jsonl"):
            (self.folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # something else lies in it
            self.folder.rmdir()

    def update(self, **values: Any) -> None:
        """Changes entries of the manifest, on disk as well."""
        self.manifest.update(values)
        write_json(self.folder / "manifest.json", self.manifest)

    @property
    def artifact(self) -> Path:
        """The folder of the artifact; `RunError` when the run has none yet."""
        path = self.folder / "artifact"
        if not path.is_dir():
            status = self.manifest.get("status")
            raise RunError(
                f"{self.folder} has no artifact yet (status: {status}); continue it with `heptune resume {self.folder}`"
            )
        return path

    @property
    def events(self) -> list[dict[str, Any]]:
        """The training's events so far, oldest first. A line that a crash cut off is left out."""
        path = self.folder / "events.jsonl"
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        return [value for value in map(_parsed, lines) if value is not None]

    def locked(self) -> AbstractContextManager[None]:
        """Keeps other processes out of this run directory inside the block; `RunError` names the one that is in it."""
        return locked(self.folder)


@dataclass
class EventLog:
    """Appends events to a run's events.jsonl."""

    path: Path

    def _cut(self, step: int) -> None:
        """Forgets the steps after `step`: a resumed run takes them again."""
        if not self.path.exists():
            return
        lines = [(line, _parsed(line)) for line in self.path.read_text("utf-8").splitlines()]
        kept = [line for line, value in lines if value is not None and value.get("step", 0) <= step]
        write_text(self.path, "".join(line + "\n" for line in kept))

    def __call__(self, event: Event) -> None:
        """One line: the event's name, the time, its fields. A training that starts at a step follows on from there."""
        if isinstance(event, TrainingStarted):
            self._cut(event.step)
        line = {"event": type(event).__name__, "at": round(time.time(), 3), **asdict(event)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def new_name(root: Path, stem: str) -> Path:
    """A folder name that is not taken: root/stem-1, root/stem-2, ..."""
    number = 1
    while (root / f"{stem}-{number}").exists():
        number += 1
    return root / f"{stem}-{number}"


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _no_run(folder: Path) -> str:
    near = folder if folder.is_dir() else folder.parent
    found = sorted(str(p.parent) for p in near.glob("*/manifest.json"))[:8] if near.is_dir() else []
    listed = f"; runs near there: {', '.join(found)}" if found else ""
    what = "is no run directory (it has no manifest.json)" if folder.exists() else "does not exist"
    return re.sub(r"\s+", " ", f"{folder} {what}{listed}")
