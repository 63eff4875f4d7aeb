"""How tag is judged: entities, by type, start and end, of the likeliest valid sequence of tags.

Beside it: a linear probe on the untouched base's hidden states, and what looking up the training's entities would find.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from heptune.core.events import Listener
from heptune.data.record import Record, Span
from heptune.engine.loop import Validation
from heptune.scoring import baselines, entities
from heptune.scoring.evaluation import Evaluation
from heptune.scoring.exams.extract import check_entities, entity_evaluation
from heptune.scoring.exams.label import PROBE
from heptune.scoring.probe import start_from_probe
from heptune.scoring.score import Scorer, normalised, readout_of
from heptune.tasks import bio
from heptune.tasks.extract import flat
from heptune.tasks.tag import Tag


@dataclass(frozen=True)
class TagAnswers:
    """The entities that were found in each text, and how many texts were cut."""

    spans: tuple[tuple[Span, ...], ...]
    cut: int


@dataclass(frozen=True)
class TagExam:
    """See `scoring.exams.Exam`."""

    task: Tag

    def check(self, records: Sequence[Record], path: Any) -> None:
        """Raises DataError where no type is known."""
        check_entities(self.task.types, records, path)

    def validation(self, scorer: Scorer, records: Sequence[Record], listener: Listener) -> Validation | None:
        """Entity-level F1, and the loss per token."""
        examples = [e for i, r in enumerate(records) for e in self._scored(scorer, r, i)]
        truth = [entities.entities(flat(r.text or "", r.spans or ())) for r in records]

        def score() -> dict[str, float]:
            seen = scorer.seen(examples, "validating", listener)
            codes = [np.array([code for _, code in example.marks]) for example in examples]
            losses = [-normalised(part)[np.arange(len(code)), code] for part, code in zip(seen, codes, strict=True)]
            found = [entities.entities(self._read(scorer, r, p)) for r, p in zip(records, seen, strict=True)]
            counts = entities.count(truth, found)
            f1 = float(entities.f1(counts.true.sum(), counts.said.sum(), counts.hits.sum()))
            return {"f1": f1, "loss": float(np.concatenate(losses).mean())}

        return Validation(score, self.task.metric, self.task.higher_is_better) if examples else None

    def answers(self, scorer: Scorer, records: Sequence[Record], what: str, listener: Listener) -> TagAnswers:
        """The entities that the model as it is now finds."""
        examples = [e for i, r in enumerate(records) for e in self._scored(scorer, r, i)]
        seen = scorer.seen(examples, what, listener)
        found = tuple(tuple(self._read(scorer, r, part)) for r, part in zip(records, seen, strict=True))
        return TagAnswers(found, sum(example.cut > 0 for example in examples))

    def untouched(
        self, scorer: Scorer, records: Sequence[Record], train: Sequence[Record], listener: Listener
    ) -> TagAnswers:
        """What a logistic regression on the base's hidden states finds."""
        forward = scorer.forward
        before, forward.readout = forward.readout, readout_of(self.task, forward.anatomy, 0)
        try:
            examples = [e for i, r in enumerate(train) for e in self._scored(scorer, r, i)]
            assert forward.readout is not None
            start_from_probe(forward.readout, scorer, examples, 0, listener)
            return self.answers(scorer, records, "reading with the base", listener)
        finally:
            forward.readout = before

    def evaluation(
        self,
        part: str,
        records: Sequence[Record],
        train: Sequence[Record],
        base: TagAnswers,
        tuned: TagAnswers,
        seed: int,
    ) -> Evaluation:
        """F1, precision and recall of all contenders, those of the tuned model for each type, and what changed."""
        said = {
            "tuned": tuned.spans,
            "base, linear probe": base.spans,
            "training entities, looked up": baselines.looked_up(train, [record.text or "" for record in records]),
        }
        return entity_evaluation(self.task.name, part, records, said, tuned.cut, seed, PROBE)

    def outcomes(self, scorer: Scorer, records: Sequence[Record], what: str, listener: Listener) -> dict[str, Any]:
        """`log_p` of all true tags and their number, `weights`."""
        examples = [e for i, r in enumerate(records) for e in self._scored(scorer, r, i)]
        losses = scorer.losses(examples, what, listener)
        return {"log_p": (-losses).tolist(), "weights": [example.targets for example in examples]}

    def _scored(self, scorer: Scorer, record: Record, index: int) -> list[Any]:
        return self.task.scored(record, index, scorer.template, scorer.max_length)

    def _read(self, scorer: Scorer, record: Record, logits: np.ndarray) -> Sequence[Span]:
        return tagged_spans(self.task, scorer, record.text or "", logits)


def tagged_spans(task: Tag, scorer: Scorer, text: str, logits: np.ndarray) -> tuple[Span, ...]:
    """The entities that a text's logits [own tokens, tags] mean."""
    _, offsets, _ = scorer.template.located(text, scorer.max_length)
    own = [place for place in offsets if place[1] > place[0]]
    tags = task.tags
    return bio.spans(text, [tags[n] for n in bio.likeliest(normalised(logits), tags)], own)


def tagged(task: Tag, scorer: Scorer, text: str) -> tuple[Span, ...]:
    """The entities that the model as it is now finds in a text. What is too long loses its end."""
    if not text.strip():
        return ()
    examples = task.scored(Record(1, text=text, spans=()), 0, scorer.template, scorer.max_length)
    (logits,) = scorer.seen(examples, "tagging")
    return tagged_spans(task, scorer, text, logits)
