"""Label: classes of a text, seen by a linear head on the base's hidden states. One label, or several at once.

The base reads the plain text; nothing is said in words, so that encoders can do it too. Where the head looks:

    last     the last token: in a decoder the one that has seen all of the text
    first    the first token: an encoder's [CLS]
    mean     the mean over all tokens of the text

One label is the likeliest class (softmax). Where a text may have several, each is decided by itself (sigmoid, at 1/2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from heptune.core.errors import DataError, UsageError
from heptune.data.record import Record
from heptune.tasks.example import WHOLE, Example
from heptune.tasks.options import AS_IT_IS, TaskOptions
from heptune.tasks.template import ChatTemplate


@dataclass(frozen=True)
class Label:
    """The labels, sorted; whether a text may have several; where the head looks (None: the last token of a decoder,
    the mean of an encoder); and what an example of each label weighs (empty: all the same)."""

    labels: tuple[str, ...]
    several: bool = False
    pooling: str | None = None
    weights: tuple[float, ...] = ()

    name: ClassVar[str] = "label"
    kinds: ClassVar[tuple[str, ...]] = ("labelled text", "text with several labels")
    metric: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True
    words: ClassVar[str] = ""

    def __post_init__(self) -> None:
        least = 1 if self.several else 2
        if len(set(self.labels)) < least:
            found = f"only {self.labels[0]!r}" if self.labels else "none"
            raise DataError(
                f"labelling needs at least {least} different labels, found {found}; add examples of another label, or "
                "name the column that holds the labels"
            )

    @property
    def classes(self) -> int:
        """The classes of the linear head."""
        return len(self.labels)

    @property
    def independent(self) -> bool:
        """Whether each class is decided by itself."""
        return self.several

    @classmethod
    def from_records(cls, records: Sequence[Record], options: TaskOptions = AS_IT_IS) -> Label:
        """The task that labelled records pose; with one of several labels each text may have several."""
        options.only(cls.name, "class_weights", "pooling")
        several = any(record.labels is not None for record in records)
        counts = Counter(label for record in records for label in labels_of(record))
        labels = tuple(sorted(counts))
        weights: tuple[float, ...] = ()
        if several and options.class_weights != "none":
            raise UsageError(
                "class_weights are for texts with one label each, and here they may have several; leave it out"
            )
        if options.class_weights == "balanced":
            total = sum(counts.values())
            weights = tuple(total / (len(labels) * counts[label]) for label in labels)
        return cls(labels, several, options.pooling, weights)

    def to_json(self) -> dict[str, Any]:
        """The task as JSON values; `from_json` reads them back."""
        return {
            "name": self.name,
            "labels": list(self.labels),
            "several": self.several,
            "pooling": self.pooling,
            "weights": list(self.weights),
            "class_weights": "balanced" if self.weights else "none",
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Label:
        """The task that `to_json` wrote."""
        return cls(tuple(values["labels"]), values["several"], values["pooling"], tuple(values["weights"]))

    def encode(self, record: Record, index: int, template: ChatTemplate, max_length: int) -> list[Example]:
        """The one example of a record: its text, which loses its end where it is too long, and its classes.

        Raises DataError for a label that the task does not know.
        """
        tokens, cut = template.document(record.text or "", max_length)
        place = self._place(tokens, template)
        known = {label: number for number, label in enumerate(self.labels)}
        own = labels_of(record)
        unknown = [label for label in own if label not in known]
        if unknown:
            raise DataError(
                f"the label {unknown[0]!r} is not among those the task knows: {', '.join(map(repr, self.labels))}",
                line=record.line,
            )
        if not tokens:
            raise DataError("the text has no tokens", line=record.line)
        numbers = [known[label] for label in own]
        if self.several:
            marks = tuple((place, 2 * number + (number in numbers)) for number in range(self.classes))
            return [Example.marked(tuple(tokens), marks, index, cut)]
        weight = self.weights[numbers[0]] if self.weights else 1.0
        return [Example.marked(tuple(tokens), ((place, numbers[0]),), index, cut, weight)]

    def scored(self, record: Record, index: int, template: ChatTemplate, max_length: int) -> list[Example]:
        """Its text, looked at once."""
        (example,) = self.encode(record, index, template, max_length)
        return [Example.marked(example.tokens, example.marks[:1], index, example.cut)]

    def _place(self, tokens: Sequence[int], template: ChatTemplate) -> int:
        pooling = self.pooling or ("mean" if template.both_ways else "last")
        return {"last": len(tokens) - 1, "first": 0, "mean": WHOLE}[pooling]


def labels_of(record: Record) -> tuple[str, ...]:
    """A record's labels, one or several."""
    if record.labels is not None:
        return record.labels
    return () if record.label is None else (record.label,)
