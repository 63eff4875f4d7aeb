"""What a race lets be computed, each piece as one call with paths and numbers: in this process, in another, on another
machine that sees the same folder. A call that was done before changes nothing, so that a race can go on anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from heptune.core.errors import HeptuneError
from heptune.core.events import Listener, ignore
from heptune.data.record import Record
from heptune.data.splits import sample
from heptune.runs.files import read_json, write_json
from heptune.runs.run import Run
from heptune.scoring.score import normalised
from heptune.tasks.classify import Classify
from heptune.tuning import problem as problems
from heptune.tuning import training
from heptune.tuning.use import opened


def advance(folder: str, until: int, threads: int, listener: Listener = ignore) -> str:
    """Trains a run to step `until`; what became of it: 'reached', 'interrupted', or why it failed."""
    torch.set_num_threads(threads)
    run = Run(folder)
    status = run.manifest["status"]
    if status == "finished" or (status == "paused" and run.manifest["step"] >= until):
        return "reached"
    if status == "failed":
        return str(run.manifest["error"])
    try:
        run = training.go_on(folder, listener, until)
    except HeptuneError as error:
        run = Run(folder)
        run.update(status="failed", error=str(error))
        return str(error)
    return "interrupted" if run.manifest["status"] == "interrupted" else "reached"


def answers(folder: str, limit: int | None, seed: int, threads: int, listener: Listener = ignore) -> str:
    """Scores a finished run on the test part and keeps every answer in its test.json."""
    torch.set_num_threads(threads)
    path = Path(folder) / "test.json"
    if not path.exists():
        tuned = opened(Run(folder), listener)
        records = tested_on(tuned.run.manifest, limit, seed)
        write_json(path, outcomes(tuned.task, tuned.scorer, records, f"testing {Path(folder).name}", listener))
    return "reached"


def tested_on(manifest: dict[str, Any], limit: int | None, seed: int) -> list[Record]:
    """The records that the verdict is spoken on: the test part, at most `limit` of them, the same for everyone."""
    _, records = problems.again(manifest).parts.held_out()
    if limit is None or limit >= len(records):
        return records
    return [records[i] for i in sample(records, range(len(records)), limit, seed)]


def outcomes(task: Any, scorer: Any, records: list[Record], what: str, listener: Listener) -> dict[str, Any]:
    """Every example's outcome under the model as it is now.

    classify: `chosen` label numbers, `correct` 0 or 1, `log_p` of the true label. chat: `log_p` of all supervised tokens
    and their number, `weights`.
    """
    if isinstance(task, Classify):
        log_p = normalised(scorer.labels(task, records, what, listener))
        truth = np.array([task.labels.index(record.label or "") for record in records])
        chosen = log_p.argmax(1)
        return {
            "chosen": chosen.tolist(),
            "correct": (chosen == truth).astype(int).tolist(),
            "log_p": log_p[np.arange(len(truth)), truth].tolist(),
        }
    examples = [e for i, r in enumerate(records) for e in task.encode(r, i, scorer.template, scorer.max_length)]
    examples = [example for example in examples if example.targets]
    losses = scorer.losses(examples, what, listener)
    return {"log_p": (-losses).tolist(), "weights": [example.targets for example in examples]}


def kept_outcomes(folder: Path) -> dict[str, Any]:
    """What `answers` wrote."""
    values: dict[str, Any] = read_json(folder / "test.json")
    return values
