"""Complete: the model learns to go on with a text, token by token. Continued pre-training, and pre-training.

A document is its tokens, the beginning-of-sequence token before them where the tokenizer puts one, and the
end-of-sequence token behind them, which is learned too. Every token but the first is a target, once: a document that is
longer than the limit becomes windows that overlap by one token. What ends a window is learned there; the next one only
begins with it. A stretch that its document goes on behind (`Record.continued`) is not closed.

The forest keeps documents apart: they share a forward pass, and no token sees another document.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from heptune.core.errors import DataError
from heptune.data.record import Record
from heptune.tasks.example import Example
from heptune.tasks.options import AS_IT_IS, TaskOptions
from heptune.tasks.template import ChatTemplate


@dataclass(frozen=True)
class Complete:
    """Next-token prediction over documents."""

    name: ClassVar[str] = "complete"
    kinds: ClassVar[tuple[str, ...]] = ("plain text",)
    metric: ClassVar[str] = "loss"
    higher_is_better: ClassVar[bool] = False

    @classmethod
    def from_records(cls, records: Sequence[Record], options: TaskOptions = AS_IT_IS) -> Complete:
        """The task that documents pose."""
        options.only(cls.name)
        return cls()

    @property
    def words(self) -> str:
        """Nothing stands before every document."""
        return ""

    def to_json(self) -> dict[str, Any]:
        """The task as JSON values; `from_json` reads them back."""
        return {"name": self.name}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Complete:
        """The task that `to_json` wrote."""
        return cls()

    def prompt(self, text: str, template: ChatTemplate) -> list[int]:
        """The beginning of a document, for the model to go on with."""
        opening = [] if template.bos is None else [template.bos]
        return [*opening, *template.encode(text)]

    def tokens(self, record: Record, template: ChatTemplate) -> list[int]:
        """All tokens of a document. Raises DataError for a record that is none."""
        if record.kind not in self.kinds:
            raise DataError(
                f"this example is {record.kind}, but complete learns from plain text; "
                "name the column that holds the text, or choose the task that fits",
                line=record.line,
            )
        closing = [] if record.continued or template.eos is None else [template.eos]
        return [*self.prompt(record.text or "", template), *closing]

    def encode(self, record: Record, index: int, template: ChatTemplate, max_length: int) -> list[Example]:
        """The windows of a document, in order. None where it has fewer than two tokens."""
        tokens = self.tokens(record, template)
        return [window(tokens[start:end], index) for start, end in windows(len(tokens), max_length)]

    def scored(self, record: Record, index: int, template: ChatTemplate, max_length: int) -> list[Example]:
        """The same windows: each token is judged with what stands before it in its window."""
        return self.encode(record, index, template, max_length)


def windows(count: int, max_length: int) -> Iterator[tuple[int, int]]:
    """Where the windows of `count` tokens begin and end; each begins with the last token of the one before."""
    for start in range(0, count - 1, max_length - 1):
        yield start, min(count, start + max_length)


def window(tokens: Sequence[int], record: int) -> Example:
    """An example of which everything but the first token is learned."""
    return Example(tuple(tokens), (False,) + (True,) * (len(tokens) - 1), record)
