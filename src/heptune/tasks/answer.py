"""Answer: the model learns to answer questions in its own words, perhaps about a passage.

The prompt is the instruction, the passage and the question; the target is the first accepted answer and the end of the
turn. A question that its passage does not answer is learned as a fixed word, `UNANSWERABLE`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from heptune.core.errors import DataError
from heptune.data.record import Record
from heptune.tasks import question
from heptune.tasks.example import Example
from heptune.tasks.options import AS_IT_IS, TaskOptions
from heptune.tasks.template import ChatTemplate

# What is said to a question that has no answer.
UNANSWERABLE = "unanswerable"
# Tokens that are kept free for the answer, in training as in use: the prompt must not depend on an answer that only
# training knows. An answer within them is never cut; 48 tokens are about 35 words.
ANSWER_TOKENS = 48
# Answers of a median of so many words are asked for "in a few words".
FEW_WORDS = 10


@dataclass(frozen=True)
class Answer:
    """Questions with answers. `instruction` stands before every passage and question."""

    instruction: str

    name: ClassVar[str] = "answer"
    kinds: ClassVar[tuple[str, ...]] = ("question",)
    metric: ClassVar[str] = "loss"
    higher_is_better: ClassVar[bool] = False

    @classmethod
    def from_records(cls, records: Sequence[Record], options: TaskOptions = AS_IT_IS) -> Answer:
        """The task that questions pose."""
        options.only(cls.name, "instruction")
        return cls(_instruction(records) if options.instruction is None else options.instruction)

    @property
    def words(self) -> str:
        """The instruction."""
        return self.instruction

    def to_json(self) -> dict[str, Any]:
        """The task as JSON values; `from_json` reads them back."""
        return {"name": self.name, "instruction": self.instruction}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Answer:
        """The task that `to_json` wrote."""
        return cls(values["instruction"])

    def asked(self, record: Record, template: ChatTemplate, max_length: int) -> question.Asked:
        """The question as it is put to the model, the same in training and in use.

        A passage that is too long loses its end; `ANSWER_TOKENS` are left for the answer. Raises DataError where not
        even an empty question fits.
        """
        reserved = f"{ANSWER_TOKENS} for the answer"
        room = max_length - ANSWER_TOKENS
        return question.ask(self.instruction, record.passage, record.text or "", template, room, record.line, reserved)

    def encode(self, record: Record, index: int, template: ChatTemplate, max_length: int) -> list[Example]:
        """The one training example of a record: the prompt, then the first accepted answer and the end of turn.

        An answer that does not fit behind its prompt loses its end. Raises DataError for a record without an answer,
        and as `asked`.
        """
        if not record.answers:
            raise DataError(
                "this question has no answer; give one, or an empty one if it cannot be answered", line=record.line
            )
        asked = self.asked(record, template, max_length)
        reply = template.reply(record.answers[0] or UNANSWERABLE)
        kept = reply[: max_length - len(asked.tokens)]
        supervised = (False,) * len(asked.tokens) + (True,) * len(kept)
        return [Example((*asked.tokens, *kept), supervised, index, asked.cut + len(reply) - len(kept))]

    def scored(self, record: Record, index: int, template: ChatTemplate, max_length: int) -> list[Example]:
        """Its training example."""
        return self.encode(record, index, template, max_length)


def _instruction(records: Sequence[Record]) -> str:
    """What is asked for, as these records need it."""
    about = " about the passage" if any(record.passage for record in records) else ""
    lengths = sorted(len(record.answers[0].split()) for record in records if record.answers)
    briefly = " in a few words" if lengths and lengths[len(lengths) // 2] <= FEW_WORDS else ""
    words = f"Answer the question{about}{briefly}."
    if any(record.answers == ("",) for record in records):
        missing = "the passage does not say it" if about else "it cannot be answered"
        words += f' If {missing}, answer "{UNANSWERABLE}".'
    return words
