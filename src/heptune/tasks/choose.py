"""Choose: the model learns which of a question's options is right.

The prompt is the instruction, the passage and the question; the target is the right option's text and the end of the
turn. The options do not stand in the prompt: each is scored exactly as a whole, as the reply to the question, and the
likeliest is the prediction (Brown et al. 2020, section 2.4). So their order can change nothing, and a question may have
any number of them.
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


@dataclass(frozen=True)
class Choose:
    """Questions with options. `instruction` stands before every passage and question."""

    instruction: str

    name: ClassVar[str] = "choose"
    kinds: ClassVar[tuple[str, ...]] = ("question with options",)
    metric: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    @classmethod
    def from_records(cls, records: Sequence[Record], options: TaskOptions = AS_IT_IS) -> Choose:
        """The task that questions with options pose."""
        options.only(cls.name, "instruction")
        about = " about the passage" if any(record.passage for record in records) else ""
        return cls(f"Answer the question{about}." if options.instruction is None else options.instruction)

    @property
    def words(self) -> str:
        """The instruction."""
        return self.instruction

    def to_json(self) -> dict[str, Any]:
        """The task as JSON values; `from_json` reads them back."""
        return {"name": self.name, "instruction": self.instruction}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Choose:
        """The task that `to_json` wrote."""
        return cls(values["instruction"])

    def asked(self, record: Record, template: ChatTemplate, max_length: int) -> question.Asked:
        """The question as it is put to the model. A passage that is too long loses its end; the longest option stays
        whole. Raises DataError where not even an empty question fits beside it."""
        longest = max((len(template.reply(option)) for option in record.options), default=0)
        reserved = f"{longest} for the longest option"
        room = max_length - longest
        return question.ask(self.instruction, record.passage, record.text or "", template, room, record.line, reserved)

    def encode(self, record: Record, index: int, template: ChatTemplate, max_length: int) -> list[Example]:
        """The one training example of a record: the prompt, then the right option and the end of turn."""
        return [self.candidates(record, index, template, max_length)[right(record)]]

    def candidates(self, record: Record, index: int, template: ChatTemplate, max_length: int) -> tuple[Example, ...]:
        """One example per option, in their order, all with the same prompt. Raises DataError as `asked`."""
        asked = self.asked(record, template, max_length)
        replies = [template.reply(option) for option in record.options]
        return tuple(
            Example((*asked.tokens, *reply), (False,) * len(asked.tokens) + (True,) * len(reply), index, asked.cut)
            for reply in replies
        )

    def scored(self, record: Record, index: int, template: ChatTemplate, max_length: int) -> list[Example]:
        """Its candidates."""
        return list(self.candidates(record, index, template, max_length))


def right(record: Record) -> int:
    """The place of the right option. Raises DataError where it is none of the options."""
    if len(record.answers) != 1 or record.answers[0] not in record.options:
        found, options = (", ".join(map(repr, texts)) or "none" for texts in (record.answers, record.options))
        raise DataError(f"the right option is {found}; it must be exactly one of: {options}", line=record.line)
    return record.options.index(record.answers[0])
