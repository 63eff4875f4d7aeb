"""One example as it was read, whatever the format it came in."""

from __future__ import annotations

from dataclasses import dataclass

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. `role` is one of `ROLES`."""

    role: str
    content: str


@dataclass(frozen=True)
class Record:
    """One example. Exactly one of the three kinds is filled:

    - labelled text: `text` and `label`
    - a conversation: `messages` (at least one of role 'assistant')
    - plain text: `text` alone

    `line` is where it starts in its file, counted from 1 (JSON arrays: the element's number).
    """

    line: int
    text: str | None = None
    label: str | None = None
    messages: tuple[Message, ...] = ()

    @property
    def kind(self) -> str:
        """'conversation', 'labelled text' or 'plain text'."""
        if self.messages:
            return "conversation"
        return "plain text" if self.label is None else "labelled text"
