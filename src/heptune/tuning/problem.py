"""What a run learns: the parts of a data set, and the task that they pose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heptune import tasks
from heptune.core.events import Listener, Note, ignore
from heptune.data.parts import DataOptions, DataParts, read_again, read_files
from heptune.scoring import exams
from heptune.tasks.options import TaskOptions


@dataclass(frozen=True)
class Problem:
    """The parts of a data set and the task that they pose."""

    parts: DataParts
    task: tasks.Task

    def to_json(self) -> dict[str, Any]:
        """What a manifest keeps of it; `again` reads it back."""
        return {"task": self.task.to_json(), "data": self.parts.source, "split": self.parts.split.to_json()}


def pose(
    data: str | Path,
    task: str | None,
    options: DataOptions,
    posed: TaskOptions,
    seed: int,
    listener: Listener,
    words: bool = True,
) -> Problem:
    """Reads a data set and finds its task, or poses the one that is named, as `posed` says. `words`: whether the base
    can answer in words. Test examples that also stand in the training part are told."""
    files = read_files(data, options, listener)
    name = task or tasks.choose(files.train.kind, words)
    parts = files.cut(options, seed)
    goal = tasks.pose(name, parts.train, posed)
    for part, records in (("validation", parts.validation), ("test", parts.test)):
        exams.check(goal, records, parts.path(part))
    for part, count in parts.leaked().items():
        if count:
            text = f"{count} records of the {part} part also stand in the training part; its scores will flatter"
            listener(Note(f"{text}. `heptune check` names the lines", "warning"))
    return Problem(parts, goal)


def again(manifest: dict[str, Any], listener: Listener = ignore) -> Problem:
    """The problem that a manifest describes; `RunError` when its data is gone or has changed."""
    return Problem(read_again(manifest["data"], manifest["split"], listener), tasks.from_json(manifest["task"]))
