"""How a task may be posed: what a person can choose beside the data. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from heptune.core.errors import UsageError

_CHOICES = {
    "replies": ("all", "last"),
    "class_weights": ("none", "balanced"),
    "pooling": ("last", "first", "mean"),
}


def _choice(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TaskOptions:
    """What a task can be told; each field's help text is its documentation, on the command line too. A task ignores
    nothing: what it has no use for is an error (`TaskOptions.only`)."""

    instruction: str | None = _choice(None, "Stands before every text or question; each task has its own words.")
    system: str | None = _choice(None, "System message of conversations that have none of their own (chat).")
    replies: str = _choice("all", "Learn all of the assistant's turns of a conversation, or the last one (chat).")
    class_weights: str = _choice("none", "balanced: every label weighs the same, however many examples it has (label).")
    pooling: str | None = _choice(
        None,
        "Which hidden state tells the label: of the last token (decoders), the first, or the mean (encoders) (label).",
    )

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in known:
                raise UsageError(f"{name} is {value!r}; known: {', '.join(known)}")

    def only(self, task: str, *names: str) -> TaskOptions:
        """The same, for a task that has use for these options alone. Raises UsageError where another was given."""
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name not in names and value != option.default:
                usable = f"it takes {', '.join(names)}" if names else "it takes none"
                raise UsageError(f"{option.name} is {value!r}, which the task {task} has no use for; {usable}")
        return self

    @classmethod
    def split(cls, values: Mapping[str, Any]) -> tuple[TaskOptions, dict[str, Any]]:
        """The options among some named values, and the other values."""
        names = {option.name for option in fields(cls)}
        own = {name: value for name, value in values.items() if name in names}
        return cls(**own), {name: value for name, value in values.items() if name not in names}

    def given(self) -> dict[str, Any]:
        """What differs from the defaults, by name."""
        return {o.name: v for o in fields(self) if (v := asdict(self)[o.name]) != o.default}


# Nothing chosen: what a task does by itself.
AS_IT_IS = TaskOptions()
