"""What a race lets be computed, each piece as one call with paths and numbers: in this process, in another, on another
machine that sees the same folder. A call that was done before changes nothing, so that a race can go on anywhere."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from heptune.core.errors import HeptuneError
from heptune.core.events import Listener, ignore
from heptune.engine.forward import Forward
from heptune.engine.memory import give_back
from heptune.engine.settings import Settings
from heptune.models.anatomy import dissect
from heptune.models.load import load_base
from heptune.racing.outcomes import tested_on
from heptune.racing.rivals import rivals
from heptune.runs.files import read_json, write_json
from heptune.runs.lock import InUseError
from heptune.runs.run import Run
from heptune.scoring.exams import exam_of
from heptune.scoring.score import Scorer
from heptune.tuning import base as bases
from heptune.tuning import problem as problems
from heptune.tuning import training
from heptune.tuning.training import SCORING_ROWS
from heptune.tuning.use import opened


def advance(folder: str, until: int, threads: int, listener: Listener = ignore) -> str:
    """Trains a run to step `until`; what became of it: 'reached', 'interrupted', or why it failed.

    Raises `HeptuneError` where the candidate can do nothing about it: its data or base are gone, it is in use.
    """
    _begin(threads)
    run = Run(folder)
    status = run.manifest["status"]
    if status == "finished" or (status == "paused" and run.manifest["step"] >= until):
        return "reached"
    if status == "failed":
        return str(run.manifest["error"])
    ready = training.prepare(run, listener)  # data or base that are gone are no fault of the candidate's
    try:
        run = training.train(*ready, listener, until)
    except InUseError:
        raise
    except (HeptuneError, RuntimeError, MemoryError) as error:  # torch tells that memory ran out as a RuntimeError
        why = str(error) if isinstance(error, HeptuneError) else f"{type(error).__name__}: {_first_line(error)}"
        run = Run(folder)
        run.update(status="failed", error=why)
        return why
    return "interrupted" if run.manifest["status"] == "interrupted" else "reached"


def answers(folder: str, limit: int | None, seed: int, threads: int, listener: Listener = ignore) -> str:
    """Scores a finished run on the test part and keeps every answer in its test.json."""
    _begin(threads)
    path = Path(folder) / "test.json"
    if not path.exists():
        tuned = opened(Run(folder), listener)
        records = tested_on(tuned.run.manifest, limit, seed)
        began = time.monotonic()
        found = exam_of(tuned.task).outcomes(tuned.scorer, records, f"testing {Path(folder).name}", listener)
        write_json(path, {**found, "scoring_s": time.monotonic() - began})
    return "reached"


def baselines(folder: str, limit: int | None, seed: int, threads: int, listener: Listener = ignore) -> str:
    """Scores what has to be beaten on the test part and keeps every answer in baselines.json."""
    _begin(threads)
    path = Path(folder) / "baselines.json"
    if not path.exists():
        values = read_json(Path(folder) / "race.json")
        problem = problems.again(values)
        records = tested_on(values, limit, seed)
        settings = Settings(**values["settings"])
        base = load_base(values["base"]["name"], listener=listener)
        forward = Forward(dissect(base.model), listener=listener)
        scorer = Scorer(forward, bases.template_of(base, values.get("template")), settings.max_length, SCORING_ROWS)
        write_json(path, rivals(problem, scorer, records, seed, listener))
    return "reached"


def _begin(threads: int) -> None:
    """One process computes many pieces: what the last one held must not be counted as this one's memory."""
    torch.set_num_threads(threads)
    give_back()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "no more is known")
