"""Chat: the model learns to say what the assistant says, in every turn of a conversation or in its last one.

A reply is supervised whole, its calls of tools and its end of turn included; what the others say, tools among them, is
only read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from heptune.core.errors import BaseModelError, DataError
from heptune.data.record import Message, Record
from heptune.tasks.example import Example
from heptune.tasks.options import AS_IT_IS, TaskOptions
from heptune.tasks.template import ChatTemplate, Segment


@dataclass(frozen=True)
class Chat:
    """Conversations. `system` is put before those that bring no system message of their own. `replies` says whether
    all of the assistant's turns are learned, or the last one."""

    system: str | None = None
    replies: str = "all"

    name: ClassVar[str] = "chat"
    kinds: ClassVar[tuple[str, ...]] = ("conversation",)
    metric: ClassVar[str] = "loss"
    higher_is_better: ClassVar[bool] = False

    @classmethod
    def from_records(cls, records: Sequence[Record], options: TaskOptions = AS_IT_IS) -> Chat:
        """The task that conversations pose."""
        options.only(cls.name, "system", "replies")
        return cls(options.system, options.replies)

    @property
    def words(self) -> str:
        """The system message that conversations without one are given."""
        return self.system or ""

    def to_json(self) -> dict[str, Any]:
        """The task as JSON values; `from_json` reads them back."""
        return {"name": self.name, "system": self.system, "replies": self.replies}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Chat:
        """The task that `to_json` wrote."""
        return cls(values.get("system"), values.get("replies", "all"))

    def messages(self, messages: Sequence[Message]) -> list[Message]:
        """A conversation as the model sees it: with the task's system message, unless it has its own."""
        if self.system is None or any(message.role == "system" for message in messages):
            return list(messages)
        return [Message("system", self.system), *messages]

    def encode(self, record: Record, index: int, template: ChatTemplate, max_length: int) -> list[Example]:
        """The training examples of a record: one, or one per reply where the template demands it.

        What is longer than `max_length` tokens loses its end, and `Example.cut` counts it. An example may so be left
        with nothing supervised (`targets == 0`): it is returned all the same, for whoever counts or drops it.
        Raises DataError for a record that is no conversation, and for turns that the template cannot take.
        """
        if not record.messages:
            raise DataError(
                f"this example is {record.kind}, but chat needs a conversation with replies; "
                "name the columns that hold prompt and reply, or choose the task that fits",
                line=record.line,
            )
        try:
            sequences = template.conversation(self.messages(record.messages), record.tools)
        except BaseModelError as error:
            raise DataError(str(error), line=record.line) from error
        if self.replies == "last":
            sequences = [_last_alone(sequences[-1])]
        examples = []
        for segments in sequences:
            tokens = [token for segment in segments for token in segment.tokens]
            supervised = [segment.supervised for segment in segments for _ in segment.tokens]
            supervised[:1] = [False] * len(supervised[:1])  # nothing stands before the first token to predict it from
            cut = max(0, len(tokens) - max_length)
            examples.append(Example(tuple(tokens[:max_length]), tuple(supervised[:max_length]), index, cut))
        return examples

    def scored(self, record: Record, index: int, template: ChatTemplate, max_length: int) -> list[Example]:
        """Its replies, where the length limit leaves something of them."""
        return [example for example in self.encode(record, index, template, max_length) if example.targets]


def _last_alone(segments: Sequence[Segment]) -> list[Segment]:
    """The segments with the last reply alone supervised."""
    last = max((n for n, segment in enumerate(segments) if segment.supervised), default=None)
    return [Segment(segment.tokens, n == last) for n, segment in enumerate(segments)]
