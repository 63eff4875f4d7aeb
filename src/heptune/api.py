"""The verbs: plan, tune, pretrain, resume, race, evaluate, report, load, server, export, check, explain. The command
line calls nothing else but the modules that plan, report and check come from, which load less."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers

from heptune import techniques as registry
from heptune.core.errors import HeptuneError, RunError, UsageError
from heptune.core.events import Listener, Note, ignore
from heptune.data.corpus import opened as opened_data
from heptune.data.parts import DataOptions
from heptune.data.record import Message as Message
from heptune.data.splits import sample
from heptune.engine import headed
from heptune.engine.settings import Settings
from heptune.models.anatomy import dissect
from heptune.models.load import fetch_base as fetch_base  # for a command that shows it as a step of its own
from heptune.models.load import reads_both_ways
from heptune.models.newborn import CONTEXT, PRETRAINING, VOCABULARY
from heptune.racing import course
from heptune.racing.entry import Terms, enter
from heptune.racing.race import Race
from heptune.reporting.report import report as report  # one of the verbs
from heptune.runs import lineage
from heptune.runs.files import write_json
from heptune.runs.run import Run, new_name
from heptune.scoring.calibration import Calibration
from heptune.scoring.evaluation import Evaluation, require_examples
from heptune.scoring.exams import calibrated, exam_of
from heptune.scoring.exams import check as check_records
from heptune.scoring.exams.label import LabelExam
from heptune.scoring.exams.tag import TagExam
from heptune.scoring.generate import Sampling as Sampling
from heptune.tasks.options import TaskOptions
from heptune.techniques._contract import Technique
from heptune.tuning import base as bases
from heptune.tuning import guard as guards
from heptune.tuning import pretraining, rounds, training
from heptune.tuning import problem as problems
from heptune.tuning.checking import check as check  # one of the verbs
from heptune.tuning.replay import draw, require_alike
from heptune.tuning.use import Bare, Tuned, opened

if TYPE_CHECKING:
    from heptune.service.server import Server
    from heptune.shipping.export import Exported


def tune(
    base: str | Path,
    data: str | Path,
    *,
    technique: str | Technique | None = None,
    task: str | None = None,
    out: str | Path | None = None,
    options: DataOptions | None = None,
    onto: str | None = None,
    guard: float | None = None,
    replay: float = 0.0,
    listener: Listener = ignore,
    **settings: Any,
) -> Run:
    """Tunes a base, or a finished run in one more round, on a data set and returns the run.

    `technique` is a name or settings, as in `heptune.Lora(rank=16)` (default: LoRA, or that of the run that is gone on
    from). `task` is found from the data where it is None. `out` is the new run directory (default: runs/TECHNIQUE-N).
    Where `base` is a run directory: `onto` is 'continue', 'merge' or 'stack' (see docs/rounds.md), `guard` the most
    that an earlier round may lose for the new one to be promoted, `replay` the share of earlier training examples
    mixed in. `settings` are those of `heptune.engine.settings.Settings`, e.g. epochs=2, and of
    `heptune.tasks.options.TaskOptions`, e.g. instruction='…'.
    """
    posed, own = TaskOptions.split(settings)
    knobs = Settings.from_values(own)
    guards.check(guard)
    options = options or DataOptions()
    if not lineage.is_run(base):
        if onto is not None or guard is not None or replay:
            raise UsageError(f"onto, guard and replay are for going on from a run, and {base} is no run directory")
        chosen = registry.build(technique or "lora") if isinstance(technique, str | None) else technique
        bases.check_quantization(chosen, knobs)
        words = task is not None or not reads_both_ways(str(base), listener=listener)
        problem = problems.pose(data, task, options, posed, knobs.seed, listener, words)
        return _begin(str(base), chosen, problem, knobs, out, listener)
    start = rounds.start(Run(base), technique, onto, knobs)
    bases.check_quantization(start.technique, start.settings)
    name = start.parent.manifest["base"]["name"]
    words = task is not None or not reads_both_ways(name, listener=listener)
    problem = problems.pose(data, task, options, posed, knobs.seed, listener, words)
    needed = " and ".join(name for name, asked in (("--guard", guard is not None), ("--replay", replay)) if asked)
    earlier = guards.earlier_problems(start.parent, needed, listener)
    require_alike(problem.task, earlier, replay)
    drawn = draw(earlier, len(problem.parts.train), replay, knobs.seed)
    kept = rounds.described(start, drawn, replay, guard)
    run = _begin(name, start.technique, problem, start.settings, out, listener, start.parent, kept)
    return guards.examine(run, listener)


def _begin(
    base: str,
    technique: Technique,
    problem: problems.Problem,
    settings: Settings,
    out: str | Path | None,
    listener: Listener,
    parent: Run | None = None,
    earlier: dict[str, Any] | None = None,
) -> Run:
    """Begins a run and trains it; `parent` and `earlier` are the run that it goes on from and what is kept of it."""
    folder = Path(out) if out is not None else new_name(Path("runs"), technique.name)
    loaded = bases.load(base, technique, listener) if parent is None else rounds.base_of(parent, technique, listener)
    run = training.begin(folder, base, loaded, technique, problem, settings, listener, earlier=earlier)
    try:
        return training.train(run, loaded, technique, problem, listener)
    except HeptuneError:
        if run.manifest["status"] == "new":  # the technique does not fit the base, or the like: nothing to resume
            run.discard()
        raise


def pretrain(
    config: str,
    corpus: str | Path,
    *,
    out: str | Path | None = None,
    vocabulary: int = VOCABULARY,
    context: int = CONTEXT,
    options: DataOptions | None = None,
    listener: Listener = ignore,
    **settings: Any,
) -> Run:
    """Trains a new small model on a corpus and returns the run, whose folder then holds the base: `base/`.

    `config` is an architecture and a size, such as 'llama-5m' (`heptune.models.newborn.NAMES`), or a config.json. The
    tokenizer of at most `vocabulary` tokens is learned from the corpus; `context` is the longest window in tokens.
    `settings` are those of `heptune.engine.settings.Settings`.
    """
    folder = Path(out) if out is not None else new_name(Path("runs"), Path(config).stem)
    knobs = {**PRETRAINING, **settings}
    return pretraining.pretrain(config, corpus, folder, vocabulary, context, options or DataOptions(), knobs, listener)


def resume(folder: str | Path, *, listener: Listener = ignore) -> Run:
    """Continues an interrupted run from its newest checkpoint, to the same bits as without the interruption. A round
    that was interrupted while it was compared with its parent is compared.

    Raises `RunError` when the run is finished, or the base or the data are no longer those it began with.
    """
    run = Run(folder)
    if not pretraining.is_due(run) and not guards.is_due(run):
        run = training.go_on(folder, listener)
    pretraining.finish(run)
    return guards.examine(run, listener)


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
    words = task is not None or not reads_both_ways(base, listener=listener)
    problem = problems.pose(data, task, options or DataOptions(), posed, knobs.seed, listener, words)
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
    problem = problems.again(manifest, listener)
    task, parts = problem.task, problem.parts
    part, records = parts.held_out()
    if data is not None:
        part, records = str(data), opened_data(data, columns=columns, listener=listener).records
    require_examples(records, part)
    check_records(task, records, data)
    exam = exam_of(task)
    if limit is not None and limit < len(records):
        records = [records[i] for i in sample(records, range(len(records)), limit, manifest["settings"]["seed"])]
    bare = Bare.of(run, listener)
    if isinstance(exam, LabelExam | TagExam):  # an untouched base has no head that could answer
        base: Any = exam.untouched(bare.scorer, records, parts.train, listener)
    else:
        base = exam.answers(bare.scorer, records, "scoring the untouched base", listener)
    bare.restore(run.artifact, listener)
    tuned = exam.answers(bare.scorer, records, "scoring the tuned model", listener)
    seed = manifest["settings"]["seed"]
    result = exam.evaluation(part, records, parts.train, base, tuned, seed)
    found = Calibration.of(run.folder)
    result = replace(result, calibration=calibrated(task, records, tuned, found, seed))
    (run.folder / "evaluations").mkdir(exist_ok=True)
    write_json(run.folder / "evaluations" / f"{time.strftime('%Y%m%d-%H%M%S')}.json", result.to_json())
    return result


def open_run(folder: str | Path, *, listener: Listener = ignore) -> Tuned:
    """Loads a run's base and artifact for use."""
    return opened(Run(folder), listener)


def open_runs(runs: Mapping[str, str | Path], *, listener: Listener = ignore) -> dict[str, Any]:
    """Loads several runs by their names onto as few bases as can be, and the bases by theirs. Each is asked as what
    `open_run` gives; a single run whose base cannot be shared is that."""
    from heptune.service.fleet import Fleet
    from heptune.service.speaking import Speaker

    fleet = Fleet(listener=listener)
    fleet.load_all({name: Path(folder) for name, folder in runs.items()})
    silent = [name for name, served in fleet.models.items() if served.engine.anatomy.causal and not served.speaks]
    if silent and len(runs) > 1:
        architecture = fleet.models[silent[0]].engine.anatomy.shape.architecture
        raise UsageError(f"{architecture} cannot be shared by several runs; name one of {', '.join(runs)}")
    if silent:
        return {name: open_run(folder, listener=listener) for name, folder in runs.items()}
    return {name: Speaker(served) for name, served in fleet.models.items()}


def server(
    runs: Mapping[str, str | Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    allow: str | Path | None = None,
    room: Any = None,
    limits: Any = None,
    listener: Listener = ignore,
) -> Server:
    """A server of runs by their names, and of their bases, in OpenAI's interface over HTTP; `serve` on it lets it
    answer until the process is told to stop.

    Other machines are served only with an `api_key`. Runs in the folder `allow` may be loaded while it runs. `room` is
    a `heptune.service.engine.Room` and `limits` a `heptune.service.asking.Limits`.
    """
    from heptune.service import server as serving  # here: HTTP takes most of a second to import

    folders = {name: Path(folder) for name, folder in runs.items()}
    allowed = None if allow is None else Path(allow)
    return serving.open_server(folders, host, port, api_key, allowed, room, limits, listener)


def export(
    folder: str | Path,
    to: str,
    *,
    out: str | Path | None = None,
    type: str = "",
    max_shard_size: str = "5GB",
    lora_only: bool = False,
    listener: Listener = ignore,
) -> Exported:
    """Writes what a finished run learned in a format that other programs read: 'peft', 'hf', 'gguf' or 'adapterhub'.

    `out` is a new folder (default: exports/RUN-FORMAT). `type` is that of a model's weights: 'f32', 'f16', 'bf16', and
    for GGUF 'q8_0'; by default f32, and f16 for GGUF. `max_shard_size` is the largest file of a merged model;
    `lora_only` writes a LoRA alone as GGUF.

    The export is loaded by its own consumer and compared with the run; what was found is in `parities` of the result.
    Raises `heptune.shipping.parity.ParityError` where it does not say the same: nothing of it stays then.
    """
    from heptune.shipping import export as exporting  # here: gguf takes half a second to import

    return exporting.export(
        folder,
        to,
        out=out,
        type=type,
        max_shard_size=max_shard_size,
        lora_only=lora_only,
        listener=listener,
    )


def load(base: str, folder: str | Path, *, listener: Listener = ignore) -> transformers.PreTrainedModel:
    """A base with an artifact on it, as a transformers model. The artifact is Heptune's own, PEFT's (LoRA, prefix,
    prompt, P-Tuning) or AdapterHub's (bottleneck adapters).

    The model takes plain token ids. Only P-Tuning's pseudo tokens behind the text have to stand among them (ids -1, -2,
    ..., those in front first), since a model cannot know where the answer begins; `open_run` puts them there.

    Raises `RunError` for the artifact of a round that stands on earlier ones: it is nothing without them.
    """
    path = Path(folder)
    run = lineage.readable(path.parent / "manifest.json")
    if run is not None and rounds.beneath(run):
        raise RunError(
            f"{path} is a round's artifact and stands on what earlier rounds learned; "
            f"`heptune.open_run` of {run.folder} builds all of it"
        )
    if (path / headed.FILE).is_file():
        told = "is not part of a transformers model; `heptune.open_run` uses it"
        listener(Note(f"the linear head in {path / headed.FILE} {told}", "warning"))
    technique = registry.recognise(path)
    loaded = bases.load(base, technique, listener)
    technique.restore(dissect(loaded.model), path)
    return loaded.model


def explain(technique: str) -> str:
    """The technique's card."""
    return registry.card(technique)
