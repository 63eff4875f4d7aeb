"""Scores through the forest: every label of every text, and the loss of conversations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from heptune.core.events import Listener, Progress, ignore
from heptune.data.record import Record
from heptune.engine.forward import Forward
from heptune.models.anatomy import Anatomy
from heptune.models.readout import Readout
from heptune.tasks.classify import Classify
from heptune.tasks.example import Example
from heptune.tasks.template import ChatTemplate


@dataclass(frozen=True)
class Scorer:
    """What scoring needs to know. `budget`: rows of one forward pass."""

    forward: Forward
    template: ChatTemplate
    max_length: int
    budget: int

    def losses(
        self, examples: Sequence[Example], what: str, listener: Listener = ignore, unit: str = "examples"
    ) -> np.ndarray:
        """Each example's summed loss over its targets in nats, float64 [n]."""
        numbered = [replace(example, record=i) for i, example in enumerate(examples)]
        sums = np.zeros(len(examples))
        done = 0
        for portion in self.forward.portions(numbered, self.budget):
            sums[[example.record for example in portion]] = self.forward.score(portion)
            done += len(portion)
            listener(Progress(what, done, len(examples), unit))
        return sums

    def examples(self, task: Any, records: Sequence[Record]) -> list[Example]:
        """What judging the records takes: their examples with something supervised, each with its record's index."""
        every = (e for i, record in enumerate(records) for e in task.encode(record, i, self.template, self.max_length))
        return [example for example in every if example.targets]

    def seen(self, examples: Sequence[Example], what: str, listener: Listener = ignore) -> list[np.ndarray]:
        """What the linear head says at each example's marks: float64 [marks, classes] each."""
        return self._of_marks(self.forward.logits, examples, what, listener)

    def features(self, examples: Sequence[Example], what: str, listener: Listener = ignore) -> list[np.ndarray]:
        """The hidden states that a linear head sees at each example's marks: float32 [marks, d] each."""
        return self._of_marks(self.forward.features, examples, what, listener)

    def _of_marks(
        self, look: Callable[..., np.ndarray], examples: Sequence[Example], what: str, listener: Listener
    ) -> list[np.ndarray]:
        numbered = [replace(example, record=i) for i, example in enumerate(examples)]
        found: list[np.ndarray] = [np.empty(0)] * len(examples)
        done = 0
        for portion in self.forward.portions(numbered, self.budget):
            borders = np.cumsum([len(example.marks) for example in portion])[:-1]
            for example, part in zip(portion, np.split(look(portion), borders), strict=True):
                found[example.record] = part
            done += len(portion)
            listener(Progress(what, done, len(examples), "texts"))
        return found

    def labels(self, task: Classify, records: Sequence[Record], what: str, listener: Listener = ignore) -> np.ndarray:
        """Log p(label and end of turn | text) for every text and label, [n, labels].

        The text is computed once, all labels below it.
        """
        candidates = [
            candidate
            for index, record in enumerate(records)
            for candidate in task.candidates(record, index, self.template, self.max_length)
        ]
        return -self.losses(candidates, what, listener, "labels").reshape(len(records), len(task.labels))


def readout_of(task: Any, anatomy: Anatomy, seed: int) -> Readout | None:
    """A new linear head for a task that has one (it names its `classes`), None for one that answers in words."""
    classes = getattr(task, "classes", 0)
    return Readout(anatomy, classes, task.independent, seed) if classes else None


def normalised(log_p: np.ndarray) -> np.ndarray:
    """Log-probabilities among the known labels alone: [n, labels], rows sum to one after exp."""
    shifted = log_p - log_p.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
