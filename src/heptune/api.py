"""The verbs: plan, tune, resume, race, evaluate, report, load, check, explain. The command line calls nothing else but
the modules that plan, report and check come from, which load less."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers

from heptune import techniques as registry
from heptune.core.errors import HeptuneError
from heptune.core.events import Listener, ignore
from heptune.data.parts import DataOptions
from heptune.data.readers import read
from heptune.data.record import Message as Message
from heptune.data.splits import sample
from heptune.engine.settings import Settings
from heptune.models.anatomy import dissect
from heptune.models.load import fetch_base as fetch_base  # for a command that shows it as a step of its own
from heptune.racing import course
from heptune.racing.entry import Terms, enter
from heptune.racing.race import Race
from heptune.reporting.report import report as report  # one of the verbs
from heptune.runs.files import write_json
from heptune.runs.run import Run, new_name
from heptune.scoring.evaluation import Evaluation, require_examples
from heptune.scoring.exams import exam_of
from heptune.scoring.generate import Sampling as Sampling
from heptune.tasks.options import TaskOptions
from heptune.techniques._contract import Technique
from heptune.tuning import base as bases
from heptune.tuning import problem as problems
from heptune.tuning import training
from heptune.tuning.checking import check as check  # one of the verbs
from heptune.tuning.use import Bare, Tuned, opened


def tune(
    base: str,
    data: str | Path,
    *,
    technique: str | Technique = "lora",
    task: str | None = None,
    out: str | Path | None = None,
    options: DataOptions | None = None,
    listener: Listener = ignore,
    **settings: Any,
) -> Run:
    """Tunes a base on a data set and returns the run.

    `technique` is a name or settings, as in `heptune.Lora(rank=16)`. `task` is found from the data where it is None.
    `out` is the new run directory (default: runs/TECHNIQUE-N). `settings` are those of
    `heptune.engine.settings.Settings`, e.g. epochs=2, and of `heptune.tasks.options.TaskOptions`, e.g. instruction='…'.
    """
    chosen = registry.build(technique) if isinstance(technique, str) else technique
    posed, own = TaskOptions.split(settings)
    knobs = Settings.from_values(own)
    bases.check_quantization(chosen, knobs)
    problem = problems.pose(data, task, options or DataOptions(), posed, knobs.seed, listener)
    folder = Path(out) if out is not None else new_name(Path("runs"), chosen.name)
    loaded = bases.load(base, chosen, listener)
    run = training.begin(folder, base, loaded, chosen, problem, knobs, listener)
    try:
        return training.train(run, loaded, chosen, problem, listener)
    except HeptuneError:
        if run.manifest["status"] == "new":  # the technique does not fit the base, or the like: nothing to resume
            run.discard()
        raise


def resume(folder: str | Path, *, listener: Listener = ignore) -> Run:
    """Continues an interrupted run from its newest checkpoint, to the same bits as without the interruption.

    Raises `RunError` when the run is finished, or the base or the data are no longer those it began with.
    """
    return training.go_on(folder, listener)


def race(
    base: str,
    data: str | Path,
    *,
    techniques: Sequence[str | Technique] | None = None,
    task: str | None = None,
    metric: str | None = None,
    out: str | Path | None = None,
    options: DataOptions | None = None,
    terms: Terms | None = None,
    on: str = "here",
    command: Sequence[str] = (),
    listener: Listener = ignore,
    **settings: Any,
) -> Race:
    """Lets techniques compete on a data set under one budget (`terms`) and returns the race with its verdict.

    `techniques` are names or settings (None: all that there are); each is tried at several learning rates. `metric` is
    what the verdict is about: 'accuracy' or 'loss'. `on` is 'here' or 'ray'. `command` is kept as what made the race.
    The rest is as in `tune`. Interrupted, the race's status is 'interrupted'; `resume_race` goes on.
    """
    posed, own = TaskOptions.split(settings)
    knobs = Settings.from_values(own)
    names = registry.names() if techniques is None else techniques
    chosen = [registry.build(each) if isinstance(each, str) else each for each in names]
    problem = problems.pose(data, task, options or DataOptions(), posed, knobs.seed, listener)
    folder = Path(out) if out is not None else new_name(Path("races"), "race")
    made = enter(folder, base, problem, chosen, knobs, terms or Terms(), metric, on, command, listener)
    return resume_race(made.folder, listener=listener)


def resume_race(folder: str | Path, *, listener: Listener = ignore) -> Race:
    """Takes a race from where it is to its verdict. A finished one is returned as it is."""
    made = Race(folder)
    if made.values["status"] == "finished":
        return made
    return course.run(made, course.place_of(made), listener)


def evaluate(
    folder: str | Path,
    data: str | Path | None = None,
    *,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    listener: Listener = ignore,
) -> Evaluation:
    """Scores a finished run on held-out data beside its baselines; the result is also kept in the run directory.

    `data` is a file; without it the run's own test part (or, where it has none, its validation part) is taken. `limit`
    is the most examples that are scored.
    """
    run = Run(folder)
    manifest = run.manifest
    run.artifact  # noqa: B018  (a run without one is refused before anything is loaded)
    problem = problems.again(manifest)
    task, parts = problem.task, problem.parts
    part, records = parts.held_out()
    if data is not None:
        part, records = str(data), list(read(data, columns=columns, listener=listener).records)
    require_examples(records, part)
    exam = exam_of(task)
    exam.check(records, data)
    if limit is not None and limit < len(records):
        records = [records[i] for i in sample(records, range(len(records)), limit, manifest["settings"]["seed"])]
    bare = Bare.of(run, listener)
    base = exam.answers(bare.scorer, records, "scoring the untouched base", listener)
    bare.restore(run.artifact, listener)
    tuned = exam.answers(bare.scorer, records, "scoring the tuned model", listener)
    result = exam.evaluation(part, records, parts.train, base, tuned, manifest["settings"]["seed"])
    (run.folder / "evaluations").mkdir(exist_ok=True)
    write_json(run.folder / "evaluations" / f"{time.strftime('%Y%m%d-%H%M%S')}.json", result.to_json())
    return result


def open_run(folder: str | Path, *, listener: Listener = ignore) -> Tuned:
    """Loads a run's base and artifact for use."""
    return opened(Run(folder), listener)


def load(base: str, folder: str | Path, *, listener: Listener = ignore) -> transformers.PreTrainedModel:
    """A base with an artifact on it, as a transformers model. The artifact is Heptune's own, PEFT's (LoRA, prefix,
    prompt, P-Tuning) or AdapterHub's (bottleneck adapters).

    The model takes plain token ids. Only P-Tuning's pseudo tokens behind the text have to stand among them (ids -1, -2,
    ..., those in front first), since a model cannot know where the answer begins; `open_run` puts them there.
    """
    path = Path(folder)
    technique = registry.recognise(path)
    loaded = bases.load(base, technique, listener)
    technique.restore(dissect(loaded.model), path)
    return loaded.model


def explain(technique: str) -> str:
    """The technique's card."""
    return registry.card(technique)
