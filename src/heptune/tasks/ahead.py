"""Encoding many records at once.

A task asks the template for one text after the other. Here each block of records is gone through twice: first with a
template that only takes down which texts are asked for, then with one that has their tokens, which were found together
(`pieces`). The examples are those of `task.encode`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from heptune.data.record import Message, Record
from heptune.tasks import Task
from heptune.tasks.example import Example
from heptune.tasks.pieces import Pieces
from heptune.tasks.template import ChatTemplate


class Together:
    """Encodes the records of one task, some at a time; with the template of an encoder (`PlainText`) one by one."""

    def __init__(self, task: Task, template: Any, max_length: int) -> None:
        self.task, self.template, self.max_length = task, template, max_length
        self._pieces = Pieces(template.tokenizer)

    def encode(self, records: Sequence[Record]) -> list[list[Example]]:
        """The training examples of each record. Raises what `task.encode` raises."""
        if not isinstance(self.template, ChatTemplate):
            return [self.task.encode(record, 0, self.template, self.max_length) for record in records]
        asked = _Asked(self.template)
        for record in records:
            # Without tokens a task may not be able to go on. Whatever it stumbles over here says nothing about the
            # record; texts that are missed are encoded one by one.
            with contextlib.suppress(Exception):
                self.task.encode(record, 0, asked, self.max_length)
        texts = list(asked.texts)
        tokens = dict(zip(texts, self._pieces.encode(texts), strict=True))
        ready = _Ready(self.template, tokens, asked.rendered)
        return [self.task.encode(record, 0, ready, self.max_length) for record in records]


class _Asked(ChatTemplate):
    """A template that takes down which texts are to be encoded, and gives no tokens for them."""

    def __init__(self, template: ChatTemplate) -> None:
        vars(self).update(vars(template))
        self._replies = {}  # without tokens; the template's own must not learn of them
        self.texts: dict[str, None] = {}
        self.rendered: dict[Any, str] = {}

    def _ids(self, text: str) -> list[int]:
        self.texts[text] = None
        return []

    def located(self, text: str, max_length: int) -> tuple[list[int], list[tuple[int, int]], int]:
        """Nothing: such a text is encoded alone, for its tokens' places."""
        return [], [], 0

    def _render(self, messages: Sequence[Message], *how: Any, **also: Any) -> str:
        text = super()._render(messages, *how, **also)
        self.rendered[tuple(messages), how, tuple(also.items())] = text
        return text


class _Ready(ChatTemplate):
    """A template that knows the tokens of some texts, and how some messages are rendered."""

    def __init__(self, template: ChatTemplate, tokens: dict[str, list[int]], rendered: dict[Any, str]) -> None:
        vars(self).update(vars(template))
        self._tokens, self._rendered = tokens, rendered
        self._replies = {}  # its own: the template would keep every answer of a file

    def _ids(self, text: str) -> list[int]:
        return list(self._tokens[text]) if text in self._tokens else super()._ids(text)

    def _render(self, messages: Sequence[Message], *how: Any, **also: Any) -> str:
        known = self._rendered.get((tuple(messages), how, tuple(also.items())))
        return super()._render(messages, *how, **also) if known is None else known
