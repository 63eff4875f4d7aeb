"""One example as it was read, whatever the format it came in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. `role` is one of `ROLES`.

    `tool_calls` are what an assistant's turn calls, as JSON text in the form of `data/calls.py`; `tool_call_id` and
    `name` say which call a tool's turn answers, and which tool it is. Each is '' where there is none.
    """

    role: str
    content: str
    tool_calls: str = ""
    tool_call_id: str = ""
    name: str = ""

    @property
    def said(self) -> str:
        """The content, and the calls behind it as JSON."""
        return "\n".join(part for part in (self.content, self.tool_calls) if part)


@dataclass(frozen=True)
class Span:
    """An entity in a text: the characters [start, end), and its type."""

    start: int
    end: int
    type: str


@dataclass(frozen=True)
class Record:
    """One example. Exactly one of these kinds is filled:

    - labelled text: `text` and `label`
    - text with several labels: `text` and `labels` (none, one or more)
    - text with entities: `text` and `spans` (may be empty), in order of their start
    - a question: `text`, the `answers` that are accepted (the first is the one to learn), and perhaps the `passage`
      that they stand in
    - a question with options: `text`, `options`, and of them the right one as the only one of `answers`
    - plain text: `text` alone; `continued` where it is a stretch of a longer one and goes on in the next record
    - a conversation: `messages` (at least one of role 'assistant'), and perhaps the `tools` that can be called in it,
      as JSON text in the form of `data/calls.py`

    `line` is where it starts in its file, counted from 1 (JSON arrays: the element's number).
    """

    line: int
    text: str | None = None
    label: str | None = None
    messages: tuple[Message, ...] = ()
    labels: tuple[str, ...] | None = None
    spans: tuple[Span, ...] | None = None
    passage: str = ""
    answers: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    continued: bool = False
    tools: str = ""

    @property
    def kind(self) -> str:
        """The kind in words, as above."""
        if self.messages:
            return "conversation"
        if self.spans is not None:
            return "text with entities"
        if self.options:
            return "question with options"
        if self.answers:
            return "question"
        if self.labels is not None:
            return "text with several labels"
        return "plain text" if self.label is None else "labelled text"


class OnDisk(Sequence[Record]):
    """Records of one kind that are read from disk whenever they are asked for: to go through all of them is work."""
