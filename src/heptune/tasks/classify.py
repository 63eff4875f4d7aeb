"""Classify: the label is an answer, generated as text through the base's own chat template.

The prompt is the instruction, then the text; the target is the label and the end of the turn. The prediction is the
known label that the model finds most likely, each label scored exactly as a whole (the end of the turn included, so
that "good" and "good enough" compete fairly).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from heptune.core.errors import DataError
from heptune.core.registry import nearest
from heptune.data.record import Message, Record
from heptune.tasks.example import Example
from heptune.tasks.options import AS_IT_IS, TaskOptions
from heptune.tasks.template import ChatTemplate


@dataclass(frozen=True)
class Classify:
    """What is asked, and the labels that can be the answer, sorted.

    `instruction` stands before every text, so that all examples share it.
    """

    labels: tuple[str, ...]
    instruction: str

    name: ClassVar[str] = "classify"
    kinds: ClassVar[tuple[str, ...]] = ("labelled text",)
    metric: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if len(set(self.labels)) < 2:
            found = f"only {self.labels[0]!r}" if self.labels else "none"
            raise DataError(
                f"classifying needs at least two different labels, found {found}; "
                "add examples of another label, or name the column that holds the labels"
            )

    @classmethod
    def from_records(cls, records: Sequence[Record], options: TaskOptions = AS_IT_IS) -> Classify:
        """The task that labelled `records` pose. Raises DataError when they have one label only."""
        options.only(cls.name, "instruction")
        ordered = tuple(sorted({record.label for record in records if record.label is not None}))
        words = options.instruction
        if words is None:
            words = f"Classify the text. Answer with exactly one of these labels: {', '.join(ordered)}."
        return cls(ordered, words)

    @property
    def words(self) -> str:
        """The instruction."""
        return self.instruction

    def to_json(self) -> dict[str, Any]:
        """The task as JSON values; `from_json` reads them back."""
        return {"name": self.name, "labels": list(self.labels), "instruction": self.instruction}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Classify:
        """The task that `to_json` wrote."""
        return cls(tuple(values["labels"]), values["instruction"])

    def messages(self, text: str) -> list[Message]:
        """The question about one text."""
        return [Message("user", f"{self.instruction}\n\nText: {text}")]

    def encode(self, record: Record, index: int, template: ChatTemplate, max_length: int) -> list[Example]:
        """The one training example of a record: prompt, then label and end of turn.

        A text that is too long loses its end; the instruction and the longest label stay whole, so that the prompt is
        the same as in `candidates`. Raises DataError for a label that the task does not know, and when not even an
        empty text fits.
        """
        if record.label not in self.labels:
            close = nearest(record.label or "", self.labels)
            hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
            raise DataError(
                f"the label {record.label!r} is not among those the task knows; {hint}"
                f"known: {', '.join(map(repr, self.labels))}",
                line=record.line,
            )
        lead, cut = self._lead(record, template, max_length)
        return [_example(lead, template.reply(record.label), index, cut)]

    def candidates(self, record: Record, index: int, template: ChatTemplate, max_length: int) -> tuple[Example, ...]:
        """One example per label, in the order of `labels`, all with the same prompt. Raises DataError as `encode`."""
        lead, cut = self._lead(record, template, max_length)
        return tuple(_example(lead, template.reply(label), index, cut) for label in self.labels)

    def scored(self, record: Record, index: int, template: ChatTemplate, max_length: int) -> list[Example]:
        """Its candidates."""
        return list(self.candidates(record, index, template, max_length))

    def _lead(self, record: Record, template: ChatTemplate, max_length: int) -> tuple[list[int], int]:
        """The prompt's tokens, and how many tokens of it were cut to leave room for the longest label."""
        text = record.text or ""
        room = max_length - max(len(template.reply(label)) for label in self.labels)
        whole = template.prompt(self.messages(text))
        if len(whole) <= room:
            return whole, 0
        empty = template.prompt(self.messages(""))
        if len(empty) > room:
            raise DataError(
                f"the instruction and the longest label need {len(empty) + max_length - room} tokens, but an example "
                f"may have {max_length}; allow longer examples or give a shorter instruction",
                line=record.line,
            )
        # Bisection over characters: cutting tokens could tear a character or the template's own marks apart.
        # `lead` always belongs to the longest text known to fit, also where the token count is not quite monotone.
        fits, too_long, lead = 0, len(text), empty
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            shorter = template.prompt(self.messages(text[:middle]))
            if len(shorter) <= room:
                fits, lead = middle, shorter
            else:
                too_long = middle
        return lead, len(whole) - len(lead)


def _example(lead: list[int], reply: list[int], index: int, cut: int) -> Example:
    return Example(tuple(lead + reply), (False,) * len(lead) + (True,) * len(reply), index, cut)
