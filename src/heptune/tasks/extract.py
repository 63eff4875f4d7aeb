"""Extract: the entities of a text, answered as a JSON list in the order of the text.

The prompt is the instruction, then the text; the target is `[{"type": "PER", "text": "Ada Lovelace"}, ...]`, `[]` where
there is none, and the end of the turn. Entities are flat: of two that overlap the one that begins first (of those the
longest) is listed. A mention is listed every time it occurs.

An answer has no offsets; they are found again by reading it in order (`locate`): each text is looked for behind the
entity before it, where it stands as a word of its own, and only where it nowhere does, inside another. What is read
back is therefore what was listed, unless the same text stands there earlier as a word that is no entity.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from heptune.core.errors import DataError
from heptune.data.record import Message, Record, Span
from heptune.tasks import bio
from heptune.tasks.example import Example
from heptune.tasks.options import AS_IT_IS, TaskOptions
from heptune.tasks.template import ChatTemplate


@dataclass(frozen=True)
class Entity:
    """What was found in a text: its type, its own text, and the characters [start, end) where that stands."""

    type: str
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Extract:
    """The types that are looked for, sorted, and what is asked. `instruction` stands before every text."""

    types: tuple[str, ...]
    instruction: str

    name: ClassVar[str] = "extract"
    kinds: ClassVar[tuple[str, ...]] = ("text with entities",)
    metric: ClassVar[str] = "loss"  # F1 takes generated answers, which take too long to choose a checkpoint by
    higher_is_better: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.types:
            raise DataError(
                "no example has an entity, so there is nothing to extract; name the column that holds the entities"
            )

    @classmethod
    def from_records(cls, records: Sequence[Record], options: TaskOptions = AS_IT_IS) -> Extract:
        """The task that texts with entities pose. Raises DataError when none of them has an entity."""
        options.only(cls.name, "instruction")
        types = tuple(sorted({span.type for record in records for span in record.spans or ()}))
        words = options.instruction
        if words is None and types:
            shown = json.dumps([{"type": types[0], "text": "..."}], ensure_ascii=False)
            words = (
                f"List the entities in the text as JSON, in the order of the text: {shown}, or [] if there are none."
            )
            words = f"{words} Types: {', '.join(types)}."
        return cls(types, words or "")

    @property
    def words(self) -> str:
        """The instruction."""
        return self.instruction

    def to_json(self) -> dict[str, Any]:
        """The task as JSON values; `from_json` reads them back."""
        return {"name": self.name, "types": list(self.types), "instruction": self.instruction}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Extract:
        """The task that `to_json` wrote."""
        return cls(tuple(values["types"]), values["instruction"])

    def messages(self, text: str) -> list[Message]:
        """The question about one text."""
        return [Message("user", f"{self.instruction}\n\nText: {text}")]

    def encode(self, record: Record, index: int, template: ChatTemplate, max_length: int) -> list[Example]:
        """The one training example of a record: prompt, then the list and the end of turn.

        A text that is too long loses its end; the instruction stays whole, and so does the answer about what is left.
        `Example.lost` counts the entities that do not stand wholly in what is left, that overlap another, or whose type
        the task does not know. Raises DataError when not even an empty text fits.
        """
        text, every = record.text or "", set(record.spans or ())
        spans = flat(text, [span for span in every if span.type in self.types])

        def example(end: int) -> Example:
            said = written(text, [span for span in spans if span.end <= end])
            messages = [*self.messages(text[:end]), Message("assistant", said)]
            segments = template.conversation(messages)[-1]
            tokens = tuple(token for segment in segments for token in segment.tokens)
            lost = len(every) - sum(span.end <= end for span in spans)
            return Example(tokens, tuple(s.supervised for s in segments for _ in s.tokens), index, lost=lost)

        whole = example(len(text))
        if len(whole.tokens) <= max_length:
            return [whole]
        _, made = _longest(text, example, lambda made: len(made.tokens) <= max_length)
        if made is None:
            raise self._no_room(len(example(0).tokens), max_length, record.line)
        return [replace(made, cut=len(whole.tokens) - len(made.tokens))]

    def scored(self, record: Record, index: int, template: ChatTemplate, max_length: int) -> list[Example]:
        """Its answer."""
        return self.encode(record, index, template, max_length)

    def shortened(self, text: str, template: ChatTemplate, room: int) -> str:
        """The beginning of a text whose prompt takes at most `room` tokens. Raises DataError where none does."""

        def prompt(end: int) -> list[int]:
            return template.prompt(self.messages(text[:end]))

        if len(prompt(len(text))) <= room:
            return text
        end, made = _longest(text, prompt, lambda made: len(made) <= room)
        if made is None:
            raise self._no_room(len(prompt(0)), room, None)
        return text[:end]

    def _no_room(self, needed: int, room: int, line: int | None) -> DataError:
        return DataError(
            f"the instruction without any text needs {needed} tokens, but there is room for {room}; "
            "allow longer examples or give a shorter instruction",
            line=line,
        )


def flat(text: str, spans: Iterable[Span]) -> list[Span]:
    """The spans without blanks at their ends, in order; of those that overlap the first, and of those the longest."""
    found: list[Span] = []
    inside = filter(None, (bio.trimmed(span, text) for span in spans))
    for span in sorted(inside, key=lambda span: (span.start, -span.end)):
        if not found or found[-1].end <= span.start:
            found.append(span)
    return found


def written(text: str, spans: Iterable[Span]) -> str:
    """The answer that lists these spans of a text, which are `flat`."""
    return json.dumps([{"type": span.type, "text": text[span.start : span.end]} for span in spans], ensure_ascii=False)


def read(text: str, answer: str) -> list[Span]:
    """The spans that an answer lists. What does not stand in the text behind the entity before it is left out."""
    spans: list[Span] = []
    behind = 0
    for entity in json.loads(answer):
        start = locate(text, entity["text"], behind)
        if start >= 0:
            behind = start + len(entity["text"])
            spans.append(Span(start, behind, entity["type"]))
    return spans


def locate(text: str, part: str, behind: int) -> int:
    """Where `part` first stands in a text, from the place `behind` on, as a word of its own; where it nowhere does,
    its first place; -1 where it has none."""
    first = at = text.find(part, behind)
    while at >= 0:
        if stands_alone(text, at, at + len(part)):
            return at
        at = text.find(part, at + 1)
    return first


def stands_alone(text: str, start: int, end: int) -> bool:
    """Whether the characters [start, end) are cut out of no word at either end."""
    return not any(0 < at < len(text) and _in_word(text[at - 1]) and _in_word(text[at]) for at in (start, end))


def entities(text: str, spans: Iterable[Span]) -> list[Entity]:
    """Spans together with what stands there."""
    return [Entity(span.type, text[span.start : span.end], span.start, span.end) for span in spans]


def _in_word(character: str) -> bool:
    """Letters that have a case, and digits: scripts without case, many of which part no words by blanks, do not tell
    where a word ends."""
    return character.isdigit() or character == "_" or character.lower() != character.upper()


def _longest(text: str, make: Callable[[int], Any], fits: Callable[[Any], bool]) -> tuple[int, Any]:
    """The longest beginning of a text, by its length, for which what is made of it fits; with None where none does.

    Bisection over characters, as in classify: cutting tokens could tear a character or the template's marks apart.
    """
    low, high, best = -1, len(text), None
    while high - low > 1:
        middle = (low + high) // 2
        made = make(middle)
        if fits(made):
            low, best = middle, made
        else:
            high = middle
    return low, best
