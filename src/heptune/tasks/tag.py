"""Tag: entities of a text, seen token by token by a linear head: B-TYPE, I-TYPE or O (see `tasks/bio.py`).

Nothing is said in words, so that encoders can do it. In a decoder a token's state has seen only what stands before it.
What is read back is the likeliest sequence of tags that is a valid one (Viterbi).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from heptune.core.errors import DataError
from heptune.data.record import Record
from heptune.tasks import bio
from heptune.tasks.example import Example
from heptune.tasks.options import AS_IT_IS, TaskOptions
from heptune.tasks.template import ChatTemplate


@dataclass(frozen=True)
class Tag:
    """The types of entities, sorted."""

    types: tuple[str, ...]

    name: ClassVar[str] = "tag"
    kinds: ClassVar[tuple[str, ...]] = ("text with entities",)
    metric: ClassVar[str] = "f1"
    higher_is_better: ClassVar[bool] = True
    independent: ClassVar[bool] = False
    words: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if not self.types:
            raise DataError(
                "no example has an entity, so there is nothing to tag; name the column that holds the entities"
            )

    @property
    def tags(self) -> tuple[str, ...]:
        """All tags, O first."""
        return bio.names(self.types)

    @property
    def classes(self) -> int:
        """The classes of the linear head."""
        return len(self.tags)

    @classmethod
    def from_records(cls, records: Sequence[Record], options: TaskOptions = AS_IT_IS) -> Tag:
        """The task that texts with entities pose."""
        options.only(cls.name)
        return cls(tuple(sorted({span.type for record in records for span in record.spans or ()})))

    def to_json(self) -> dict[str, Any]:
        """The task as JSON values; `from_json` reads them back."""
        return {"name": self.name, "types": list(self.types)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Tag:
        """The task that `to_json` wrote."""
        return cls(tuple(values["types"]))

    def encode(self, record: Record, index: int, template: ChatTemplate, max_length: int) -> list[Example]:
        """The one example of a record: its text, every token marked with its tag. What is too long loses its end;
        `Example.lost` counts the entities that lose a part there, those without a token of their own, and those of a
        type that training has never seen."""
        text = record.text or ""
        tokens, offsets, cut = template.located(text, max_length)
        if not any(end > start for start, end in offsets):
            raise DataError("the text has no tokens", line=record.line)
        known = [span for span in record.spans or () if span.type in self.types]
        tagged = bio.tag(text, known, offsets)
        number = {name: n for n, name in enumerate(self.tags)}
        marks = tuple((t, number[tagged.tags[t]]) for t, (start, end) in enumerate(offsets) if end > start)
        lost = tagged.lost + tagged.shortened + len(record.spans or ()) - len(known)
        return [Example.marked(tuple(tokens), marks, index, cut, lost=lost)]

    def scored(self, record: Record, index: int, template: ChatTemplate, max_length: int) -> list[Example]:
        """Its text, looked at in every token."""
        return self.encode(record, index, template, max_length)
