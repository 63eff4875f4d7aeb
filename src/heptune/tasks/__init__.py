"""The tasks: how a record becomes prompt and target. One file per task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from heptune.core.errors import DataError
from heptune.core.events import Listener, Note
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


def pose(name: str, records: Sequence[Record], instruction: str | None, system: str | None) -> Classify | Chat:
    """The task of that name as these training records pose it. Raises DataError when they do not fit it."""
    kind = get(name)
    return kind.from_records(records, instruction) if kind is Classify else Chat(system)


def encode(
    task: Task, records: Sequence[Record], template: ChatTemplate, max_length: int, listener: Listener
) -> list[Example]:
    """The training examples of all records. Those with nothing supervised are left out and told, as are cut ones.

    Raises DataError when nothing is left.
    """
    examples = [e for i, record in enumerate(records) for e in task.encode(record, i, template, max_length)]
    usable = [example for example in examples if example.targets]
    dropped, cut = len(examples) - len(usable), sum(example.cut > 0 for example in usable)
    if not usable:
        raise DataError(
            f"no example has anything supervised within {max_length} tokens; "
            "raise --max-length, or look at the data with `heptune check`"
        )
    if dropped:
        why = f"have nothing supervised within {max_length} tokens and were left out"
        listener(Note(f"{dropped} examples {why}", "warning"))
    if cut:
        listener(Note(f"{cut} examples are longer than {max_length} tokens and were cut", "warning"))
    return usable
