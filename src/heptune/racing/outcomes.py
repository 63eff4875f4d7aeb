"""What a model answered on the test part, example by example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from heptune.core.events import Listener
from heptune.data.record import Record
from heptune.data.splits import sample
from heptune.runs.files import read_json
from heptune.scoring.score import Scorer, normalised
from heptune.tasks.classify import Classify
from heptune.tuning import problem as problems


def tested_on(manifest: dict[str, Any], limit: int | None, seed: int) -> list[Record]:
    """The records that the verdict is spoken on: the test part, at most `limit` of them, the same for everyone."""
    _, records = problems.again(manifest).parts.held_out()
    if limit is None or limit >= len(records):
        return records
    return [records[i] for i in sample(records, range(len(records)), limit, seed)]


def outcomes(task: Any, scorer: Scorer, records: list[Record], what: str, listener: Listener) -> dict[str, Any]:
    """Every example's outcome under the model as it is now.

    classify: `chosen` label numbers, `correct` 0 or 1, `log_p` of the true label. chat: `log_p` of all supervised
    tokens and their number, `weights`.
    """
    if isinstance(task, Classify):
        return of_labels(task, scorer.labels(task, records, what, listener), records)
    examples = [e for i, r in enumerate(records) for e in task.encode(r, i, scorer.template, scorer.max_length)]
    examples = [example for example in examples if example.targets]
    losses = scorer.losses(examples, what, listener)
    return {"log_p": (-losses).tolist(), "weights": [example.targets for example in examples]}


def of_labels(task: Classify, scores: np.ndarray, records: list[Record]) -> dict[str, Any]:
    """The outcomes from every label's score, [n, labels]."""
    log_p = normalised(scores)
    truth = np.array([task.labels.index(record.label or "") for record in records])
    chosen = log_p.argmax(1)
    return {
        "chosen": chosen.tolist(),
        "correct": (chosen == truth).astype(int).tolist(),
        "log_p": log_p[np.arange(len(truth)), truth].tolist(),
    }


def kept_outcomes(folder: Path) -> dict[str, Any]:
    """What `answers` wrote."""
    values: dict[str, Any] = read_json(folder / "test.json")
    return values
