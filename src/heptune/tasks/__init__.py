"""The tasks: how a record becomes prompt and target. One file per task."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from heptune.core.errors import DataError
from heptune.core.registry import unknown
from heptune.data.record import Record
from heptune.tasks.chat import Chat
from heptune.tasks.classify import Classify
from heptune.tasks.example import Example
from heptune.tasks.template import ChatTemplate


class Task(Protocol):
    """What every task offers. `metric` chooses the best checkpoint; `higher_is_better` says in which direction."""

    name: ClassVar[str]
    metric: ClassVar[str]
    higher_is_better: ClassVar[bool]

    def encode(self, record: Record, index: int, template: ChatTemplate, max_length: int) -> list[Example]:
        """The training examples of one record, none longer than `max_length` tokens."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The task as JSON values, its name among them."""
        ...


_TASKS: dict[str, type[Classify] | type[Chat]] = {task.name: task for task in (Classify, Chat)}
_TASK_OF_KIND = {"labelled text": Classify.name, "conversation": Chat.name}


def names() -> list[str]:
    """The names of all tasks."""
    return list(_TASKS)


def get(name: str) -> type[Classify] | type[Chat]:
    """The task of that name. Raises UsageError with the nearest names when there is none."""
    if name not in _TASKS:
        raise unknown("task", name, _TASKS)
    return _TASKS[name]


def from_json(values: dict[str, Any]) -> Classify | Chat:
    """The task that `to_json` wrote, whichever it is."""
    return get(values["name"]).from_json(values)


def choose(kind: str) -> str:
    """The name of the task for data of one kind (`Record.kind`). Raises DataError when none can learn it."""
    if kind not in _TASK_OF_KIND:
        learnable = ", ".join(f"{known} (task {task})" for known, task in _TASK_OF_KIND.items())
        raise DataError(
            f"the data is {kind}: it has no replies or labels to learn; what can be learned is {learnable}; "
            "name the columns that hold the text and its label, or the prompt and its reply"
        )
    return _TASK_OF_KIND[kind]
