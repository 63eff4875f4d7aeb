"""The tasks: how a record becomes prompt and target. One file per task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, Self

from heptune.core.errors import DataError
from heptune.core.events import Listener, Note
from heptune.core.registry import unknown
from heptune.data.record import OnDisk, Record
from heptune.tasks.answer import Answer
from heptune.tasks.chat import Chat
from heptune.tasks.choose import Choose
from heptune.tasks.classify import Classify
from heptune.tasks.complete import Complete
from heptune.tasks.example import Example
from heptune.tasks.extract import Extract
from heptune.tasks.label import Label
from heptune.tasks.options import AS_IT_IS
from heptune.tasks.options import TaskOptions as TaskOptions
from heptune.tasks.soundness import about_ends, ends_of
from heptune.tasks.tag import Tag
from heptune.tasks.template import ChatTemplate


class Task(Protocol):
    """What every task offers. `metric` chooses the best checkpoint; `higher_is_better` says in which direction. `kinds`
    are the kinds of records that it learns from (`Record.kind`)."""

    name: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    metric: ClassVar[str]
    higher_is_better: ClassVar[bool]

    @classmethod
    def from_records(cls, records: Sequence[Record], options: TaskOptions = AS_IT_IS) -> Self:
        """The task that these training records pose. Raises DataError when they do not fit it, UsageError for options
        that it has no use for."""

    @property
    def words(self) -> str:
        """The text that stands before every question, '' where there is none: soft prompts may start from it."""

    def encode(self, record: Record, index: int, template: ChatTemplate, max_length: int) -> list[Example]:
        """The training examples of one record, none longer than `max_length` tokens."""

    def scored(self, record: Record, index: int, template: ChatTemplate, max_length: int) -> list[Example]:
        """The examples that judging one record takes: those whose losses tell what the model would answer."""

    def to_json(self) -> dict[str, Any]:
        """The task as JSON values, its name among them."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The task that `to_json` wrote."""


_TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Classify, Chat, Extract, Answer, Choose, Complete, Label, Tag)
}


def names() -> list[str]:
    """The names of all tasks."""
    return list(_TASKS)


def get(name: str) -> type[Task]:
    """The task of that name. Raises UsageError with the nearest names when there is none."""
    if name not in _TASKS:
        raise unknown("task", name, _TASKS)
    return _TASKS[name]


def from_json(values: dict[str, Any]) -> Task:
    """The task that `to_json` wrote, whichever it is."""
    return get(values["name"]).from_json(values)


def has_head(name: str) -> bool:
    """Whether the task of that name uses a linear head instead of words: an encoder can learn no other."""
    return hasattr(get(name), "classes")


def choose(kind: str, words: bool = True) -> str:
    """The name of the task for data of one kind (`Record.kind`): one that is answered in `words` where there is one, or
    else (an encoder has none) with a linear head. Raises DataError when none can learn it."""
    able = [task for task in _TASKS.values() if words or has_head(task.name)]
    for task in able:
        if kind in task.kinds:
            return task.name
    learnable = ", ".join(f"{known} (task {task.name})" for task in able for known in task.kinds)
    raise DataError(
        f"the data is {kind}: it has no replies or labels to learn; what can be learned is {learnable}; "
        "name the columns that hold the text and its label, or the prompt and its reply"
    )


def pose(name: str, records: Sequence[Record], options: TaskOptions | None = None) -> Task:
    """The task of that name as these training records pose it. Raises DataError when they do not fit it."""
    require_kind(name, records)
    return get(name).from_records(records, options or TaskOptions())


def require_kind(name: str, records: Sequence[Record], path: Any = None) -> None:
    """Refuses records of a kind that the task of that name neither learns from nor is judged on. `path` is their file,
    for the message."""
    kinds = get(name).kinds
    for record in records[:1] if isinstance(records, OnDisk) else records:
        if record.kind not in kinds:
            raise DataError(
                f"this example is {_article(record.kind)}, but {name} learns from {' or '.join(map(_article, kinds))}; "
                "name the columns that hold it, or choose the task that fits",
                path=path,
                line=record.line,
            )


def _article(kind: str) -> str:
    return f"a {kind}" if kind.split()[0] in ("conversation", "question") else kind


def encode(
    task: Task, records: Sequence[Record], template: ChatTemplate, max_length: int, listener: Listener
) -> list[Example]:
    """The training examples of all records. Those with nothing supervised are left out and told, as are cut ones.

    Raises DataError when nothing is left, BaseModelError where a reply has no end.
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
    if lost := sum(example.lost for example in usable):
        why = f"stand behind the limit of {max_length} tokens, or overlap another, and are not learned"
        listener(Note(f"{lost} entities {why}", "warning"))
    if isinstance(task, Chat):
        for note in about_ends(ends_of(usable, template), max_length):
            listener(note)
    return usable
