"""How a run is judged while it trains: the task's own scores on a part of the validation records."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from heptune.core.events import Listener
from heptune.data.record import Record
from heptune.engine.loop import Validation
from heptune.scoring.score import Scorer, normalised
from heptune.tasks.chat import Chat
from heptune.tasks.classify import Classify


def validation(
    task: Classify | Chat, scorer: Scorer, records: Sequence[Record], listener: Listener
) -> Validation | None:
    """The judge of a training; None where the records hold nothing to score."""
    if isinstance(task, Classify):
        return _of_labels(task, scorer, records, listener)
    return _of_replies(task, scorer, records, listener)


def _of_labels(task: Classify, scorer: Scorer, records: Sequence[Record], listener: Listener) -> Validation | None:
    truth = np.array([task.labels.index(record.label or "") for record in records], dtype=int)

    def score() -> dict[str, float]:
        log_p = normalised(scorer.labels(task, records, "validating", listener))
        right = log_p.argmax(1) == truth
        return {"accuracy": float(right.mean()), "loss": float(-log_p[np.arange(len(truth)), truth].mean())}

    return Validation(score, task.metric, task.higher_is_better) if records else None


def _of_replies(task: Chat, scorer: Scorer, records: Sequence[Record], listener: Listener) -> Validation | None:
    examples = [e for i, r in enumerate(records) for e in task.encode(r, i, scorer.template, scorer.max_length)]
    examples = [example for example in examples if example.targets]
    tokens = sum(example.targets for example in examples)

    def score() -> dict[str, float]:
        return {"loss": float(scorer.losses(examples, "validating", listener).sum() / tokens)}

    return Validation(score, task.metric, task.higher_is_better) if tokens else None
