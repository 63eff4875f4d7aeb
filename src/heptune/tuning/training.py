"""Begins a run and trains it, to its end or to a step where it pauses; what was broken off goes on to the same bits."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

import heptune
from heptune import tasks, techniques
from heptune.core.errors import HeptuneError, RunError
from heptune.core.events import Event, Listener, Note, Progress
from heptune.data.record import Record
from heptune.data.splits import sample
from heptune.engine import checkpoint, headed
from heptune.engine.artifact import keep
from heptune.engine.forward import Forward, require_positions
from heptune.engine.headed import Headed
from heptune.engine.loop import Outcome, Training, Validation, batches_of, steps_in_time
from heptune.engine.settings import Settings
from heptune.models.anatomy import dissect
from heptune.models.load import Base
from heptune.runs.files import write_json
from heptune.runs.run import EventLog, Run
from heptune.scoring import calibration
from heptune.scoring.exams import calibrate, has_probabilities, validation
from heptune.scoring.probe import start_from_probe
from heptune.scoring.score import Scorer, readout_of
from heptune.tasks.complete import Complete
from heptune.tasks.example import Example
from heptune.tasks.soundness import about_base
from heptune.tasks.store import stored
from heptune.tasks.template import ChatTemplate
from heptune.techniques._contract import Attached, Technique
from heptune.tuning import base as bases
from heptune.tuning import problem as problems
from heptune.tuning import rounds
from heptune.tuning.prediction import predicted
from heptune.tuning.problem import Problem
from heptune.tuning.replay import Replayed

# Rows of one forward pass when nothing is differentiated.
SCORING_ROWS = 4096
# Where a run keeps a corpus as tokens.
TOKENS = "tokens"


def begin(
    folder: Path,
    base_name: str,
    base: Base,
    technique: Technique,
    problem: Problem,
    settings: Settings,
    listener: Listener,
    validate_at: Sequence[int] | None = None,
    metric: str | None = None,
    expected: dict[str, Any] | None = None,
    beside: Collection[str] = (),
    earlier: dict[str, Any] | None = None,
) -> Run:
    """A new run directory with everything that the training follows from. `validate_at` names the steps after which the
    validation part is scored (None: as the settings say), `metric` what chooses the best of them (None: the task's).
    `beside` may lie in the folder already. `earlier` is what is kept of the rounds before this one (see
    `rounds.described`)."""
    template = bases.template_of(base, records=problem.parts.train)
    settings = _within_positions(settings, base, listener)
    for note in about_base(base_name, template):
        listener(note)
    manifest = {
        "heptune": heptune.__version__,
        "status": "new",
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "base": bases.described(base_name, base),
        "technique": {"name": technique.name, "settings": asdict(technique)},  # type: ignore[call-overload]
        **problem.to_json(),
        "template": template.text,
        "settings": asdict(settings),
        "versions": bases.versions(),
        "threads": torch.get_num_threads(),
    }
    if validate_at is not None:
        manifest["validate_at"] = list(validate_at)
    if metric is not None:
        manifest["metric"] = metric
    if expected is not None:
        manifest["predicted"] = expected
    if earlier is not None:
        manifest["round"] = earlier
    return Run.create(folder, manifest, beside)


def _within_positions(settings: Settings, base: Base, listener: Listener) -> Settings:
    """The settings with no longer examples than the base has positions."""
    limit = dissect(base.model).shape.max_positions
    if limit is None or settings.max_length <= limit:
        return settings
    listener(Note(f"{base.name} has {limit} positions: examples are cut at {limit} tokens, not {settings.max_length}"))
    return replace(settings, max_length=limit)


def go_on(folder: str | Path, listener: Listener, until: int | None = None) -> Run:
    """Continues a run from its newest checkpoint, to the same bits as without the interruption; to its end, or to the
    step `until`, where it pauses.

    Raises `RunError` when the run is finished, or the base or the data are no longer those it began with.
    """
    run = Run(folder)
    if run.manifest["status"] == "finished":
        raise RunError(f"{folder} is finished; look at it with `heptune eval {folder}`")
    return train(*prepare(run, listener), listener, until)


def prepare(run: Run, listener: Listener) -> tuple[Run, Base, Technique, Problem]:
    """What a run that has begun is trained with. Raises `RunError` when it is no longer what it began with."""
    manifest = run.manifest
    technique = techniques.build(manifest["technique"]["name"], manifest["technique"]["settings"])
    problem = problems.again(manifest, listener)
    beneath = [layer.technique for layer in rounds.beneath(run)]
    base = bases.load_again(run, technique, listener, beneath)
    _tell_changes(manifest, listener)
    return run, base, technique, problem


def train(
    run: Run, base: Base, technique: Technique, problem: Problem, listener: Listener, until: int | None = None
) -> Run:
    """Trains a run that has begun, from its newest checkpoint. Its status is 'finished', 'interrupted' or 'paused'."""
    log = EventLog(run.folder / "events.jsonl")
    settings = Settings(**run.manifest["settings"])
    template = bases.template_of(base, run.manifest["template"])

    def tell(event: Event) -> None:
        if not isinstance(event, Progress):
            log(event)
        listener(event)

    with run.locked():
        own = _examples(run, problem, template, settings, tell)
        material = Replayed(run, problem, own, template, settings.max_length, tell)
        examples = material.examples
        anatomy = dissect(base.model)
        layers = rounds.beneath(run)
        if "predicted" not in run.manifest:
            plain = all(layer.folded for layer in layers)  # no formula covers a technique on top of others
            known = (base.name, anatomy, technique, problem, template, settings, listener)
            run.update(predicted=predicted(*known) if plain else None)
        forward = Forward(anatomy, settings.recompute, tell)
        attached = rounds.attach(run, layers, anatomy, technique, settings, template.encode, listener)
        forward.readout = readout_of(problem.task, anatomy, settings.seed)
        if forward.readout is not None:
            attached = Headed(attached, forward.readout)
        name = rounds.belongs_on(base.name, layers)
        require_positions(anatomy, examples)
        scorer = Scorer(forward, template, settings.max_length, SCORING_ROWS)
        head = forward.readout
        if head is not None and not checkpoint.exist(run.folder) and not rounds.take_head(run, head):
            start_from_probe(head, scorer, examples, settings.seed, tell)
        judge = _judge(problem, scorer, settings, run.manifest, listener)
        steps = run.manifest.get("steps")
        if steps is None:
            steps = batches_of(examples, settings).steps(settings.epochs)
            steps = min(steps, settings.max_steps or steps)
            if settings.max_minutes is not None:
                steps = steps_in_time(forward, attached, examples, settings, judge, steps)
            run.update(steps=steps, trainable=sum(p.numel() for p in attached.parameters.values()))
        run.update(status="running")
        validate_at = run.manifest.get("validate_at")
        training = Training(
            folder=run.folder,
            base=name,
            forward=forward,
            attached=attached,
            examples=examples,
            describe=material.place,
            settings=settings,
            peak_learning_rate=settings.learning_rate or technique.learning_rate,
            steps=steps,
            validation=judge,
            listener=tell,
            validate_at=None if validate_at is None else frozenset(validate_at),
        )
        try:
            outcome = training.run(until)
        except HeptuneError as error:
            run.update(status="failed", error=str(error))
            raise
        if outcome.reason in ("interrupted", "paused"):
            run.update(status=outcome.reason, step=outcome.state.step)
            return run
        artifact = keep(run.folder, attached, name, outcome.state.best_step, outcome.state.step)
        if has_probabilities(problem.task):
            kept = None if outcome.state.best_step in (None, outcome.state.step) else artifact
            _calibrate(run, problem, scorer, technique, attached, kept, tell)
        run.update(status="finished", result=_result(outcome, artifact))
    return run


def _examples(
    run: Run, problem: Problem, template: ChatTemplate, settings: Settings, tell: Listener
) -> Sequence[Example]:
    """What is learned from; of a corpus it lies on disk."""
    if not isinstance(problem.task, Complete):
        return tasks.encode(problem.task, problem.parts.train, template, settings.max_length, tell)
    made_from = {"tokenizer": run.manifest["base"]["fingerprint"], **problem.to_json()}
    folder = run.folder / TOKENS
    return stored(folder, made_from, problem.task, problem.parts.train, template, settings.max_length, tell)


def _calibrate(
    run: Run,
    problem: Problem,
    scorer: Scorer,
    technique: Technique,
    attached: Attached,
    kept: Path | None,
    listener: Listener,
) -> None:
    """Fits the temperature of the model's probabilities on the validation part and keeps it with the run. `kept` is the
    artifact where that is not what the last step left in the model. A failure costs the run nothing else."""
    settings = Settings(**run.manifest["settings"])
    records = judged_on(problem, settings.validation_limit, run.manifest.get("validation_seed", settings.seed))
    try:
        if kept is not None:
            if "detachable" in technique.capabilities:
                attached.detach()
            attached = technique.restore(scorer.forward.anatomy, kept)
            if scorer.forward.readout is not None:
                headed.fill(scorer.forward.readout, kept)
        attached.begin_step(None)
        found = calibrate(problem.task, scorer, records, listener)
        write_json(run.folder / calibration.FILE, found.to_json())
    except (HeptuneError, RuntimeError, MemoryError, OSError) as error:  # torch tells of memory by RuntimeError
        listener(Note(f"the labels' probabilities stay as they are: calibrating failed ({error})", "warning"))
        return
    if found.loss is None:
        listener(Note(f"{found.note}: the labels' probabilities stay as they are"))
        return
    text = f"the labels' probabilities are calibrated on {found.examples} validation records: temperature"
    change = f"{found.temperature:.2f}, loss {found.loss:.3f} -> {found.calibrated_loss:.3f}"
    listener(Note(f"{text} {change}{'; ' if found.note else ''}{found.note}"))


def _result(outcome: Outcome, artifact: Path) -> dict[str, Any]:
    state = outcome.state
    return {
        "reason": outcome.reason,
        "steps": state.step,
        "time_s": state.time_s,
        "tokens": state.tokens,
        "supervised_tokens": state.supervised_tokens,
        "peak_memory_bytes": state.peak_bytes,
        "artifact_bytes": sum(f.stat().st_size for f in artifact.rglob("*") if f.is_file()),
        "best_step": state.best_step,
        "first_validation": state.first_metrics,
        "best_validation": state.best_metrics,
    }


def judged_on(problem: Problem, limit: int, seed: int) -> Sequence[Record]:
    """The validation records that judge a run while it trains."""
    records = problem.parts.validation
    return [records[i] for i in sample(records, range(len(records)), limit, seed)]


def _judge(
    problem: Problem, scorer: Scorer, settings: Settings, manifest: dict[str, Any], listener: Listener
) -> Validation | None:
    records = judged_on(problem, settings.validation_limit, manifest.get("validation_seed", settings.seed))
    judge = validation(problem.task, scorer, records, listener)
    if judge is not None and manifest.get("metric") == "loss":
        judge = replace(judge, metric="loss", higher_is_better=False)
    if judge is None:
        listener(Note("there is no validation part: the last step's weights will be kept, not the best", "warning"))
    return judge


def _tell_changes(manifest: dict[str, Any], listener: Listener) -> None:
    """What is no longer as it was when the run began, and may change its bits."""
    now = bases.versions()
    changed = {k: (v, now.get(k)) for k, v in manifest["versions"].items() if now.get(k) != v}
    if changed:
        text = ", ".join(f"{name} {was} -> {then}" for name, (was, then) in changed.items())
        listener(Note(f"this run began with other versions ({text}); its bits may differ", "warning"))
    if manifest["threads"] != torch.get_num_threads():
        text = f"{manifest['threads']} threads, now there are {torch.get_num_threads()}"
        listener(Note(f"this run began with {text}; its last bits may differ", "warning"))
