"""The plan: what every technique would cost on a base, and which to begin with, before anything runs.

    plan("llama-3.1-8b", "reviews.jsonl", gpu="RTX 4090")

No weights are read. Torch is imported only where the plan is for this machine (which has to be timed), where data is to
be encoded with the base's tokenizer, or for what no stored formula covers; so a plan for a base of the catalog on a
named GPU answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from heptune import tasks, techniques
from heptune.core.errors import BaseModelError, HeptuneError, TechniqueError, UsageError
from heptune.core.events import Listener, Note, ignore
from heptune.core.units import format_bytes
from heptune.data.parts import DataOptions, read_files
from heptune.engine.settings import Settings
from heptune.models.catalog import BaseFacts, describe
from heptune.models.embedded import EMBEDDED, cache_folder
from heptune.planning.advice import Advice, advise
from heptune.planning.estimate import (
    Candidate,
    Estimate,
    Estimator,
    Serving,
    artifact_bytes,
    serving,
)
from heptune.planning.fit import Fitted, as_asked, devices_needed, options_of, smallest_change
from heptune.planning.hardware import Machine
from heptune.planning.priors import Prior, priors
from heptune.planning.target import Target, target
from heptune.planning.workload import Placement, Workload, assumed, of_data
from heptune.tasks.options import TaskOptions
from heptune.tasks.template import ChatTemplate, PlainText

SCHEMA = 1


@dataclass(frozen=True)
class TechniquePlan:
    """What one technique would cost.

    `estimate` is for the settings that were asked for; `change` is the smallest change that makes it fit, None where
    none is needed; `nearest` what comes nearest where nothing fits. `problem` says why it cannot be run at all, and
    everything else is then empty. `chosen` is what would be run.
    """

    technique: str
    prior: Prior
    trainable: int = 0
    trainable_share: float = 0.0
    dtype: str = ""
    quantized: bool = False
    artifact_bytes: int = 0
    serving: Serving | None = None
    steps: int = 0
    estimate: Estimate | None = None
    change: Fitted | None = None
    nearest: Fitted | None = None
    devices_needed: int | None = None
    problem: str | None = None

    @property
    def chosen(self) -> Estimate | None:
        """The estimate that fits: as asked, or changed. None where nothing fits."""
        if self.estimate is None or self.estimate.fits:
            return self.estimate
        return self.change.estimate if self.change is not None else None

    @property
    def peak_bytes(self) -> int:
        """The peak of what would be run, else of what was asked for."""
        found = self.chosen or self.estimate
        return found.peak_bytes if found is not None else 0

    @property
    def least_bytes(self) -> int:
        """The least that it could do with."""
        return self.nearest.estimate.peak_bytes if self.nearest is not None else self.peak_bytes

    @property
    def price(self) -> int:
        """What the change costs the person; 0 without one."""
        return self.change.price if self.change is not None else 0

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "technique": self.technique,
            "problem": self.problem,
            "fits": self.estimate is not None and self.estimate.fits,
            "fits_with_change": self.chosen is not None,
            "trainable": self.trainable,
            "trainable_share": self.trainable_share,
            "dtype": self.dtype,
            "quantized": self.quantized,
            "artifact_bytes": self.artifact_bytes,
            "serving": None if self.serving is None else asdict(self.serving),
            "steps": self.steps,
            "estimate": None if self.estimate is None else self.estimate.to_json(),
            "change": None if self.change is None else _fitted(self.change),
            "nearest": None if self.nearest is None else _fitted(self.nearest),
            "devices_needed": self.devices_needed,
            "prior": {**asdict(self.prior), "words": self.prior.words},
        }


def _fitted(fitted: Fitted) -> dict[str, Any]:
    return {
        "settings": fitted.changes,
        "options": fitted.options,
        "price": fitted.price,
        "estimate": fitted.estimate.to_json(),
    }


@dataclass(frozen=True)
class Plan:
    """The plan of all techniques. `command` is the next step, as words; None where nothing can be run."""

    base: BaseFacts
    workload: Workload
    layout: dict[str, Any]
    target: Target
    settings: Settings
    techniques: tuple[TechniquePlan, ...]
    advice: Advice
    notes: tuple[str, ...]
    command: tuple[str, ...] | None

    def of(self, technique: str) -> TechniquePlan:
        """One technique's plan."""
        return next(plan for plan in self.techniques if plan.technique == technique)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        shape = self.base.shape
        return {
            "schema": SCHEMA,
            "base": {
                "name": self.base.name,
                "source": self.base.origin,
                "architecture": shape.architecture,
                "family": shape.family,
                "formulas_of": self.base.form_family,
                "formulas_why": None if self.base.entry is None else self.base.entry.why_form,
                "parameters": shape.parameters,
                "active_parameters": shape.active_parameters,
                "layers": shape.layers,
                "hidden": shape.hidden,
                "vocabulary": shape.vocabulary,
                "max_positions": shape.max_positions,
                "tunable_as": self.base.tunable,
                "note": self.base.note,
            },
            "workload": {
                "task": self.workload.task,
                "examples": self.workload.examples,
                "validation": self.workload.validation,
                "assumed": self.workload.assumed,
                "said": list(self.workload.said),
                **self.layout,
            },
            "target": self.target.to_json(),
            "settings": asdict(self.settings),
            "techniques": [plan.to_json() for plan in self.techniques],
            "recommendation": asdict(self.advice),
            "notes": list(self.notes),
            "command": None if self.command is None else list(self.command),
        }


def plan(
    base: str,
    data: str | Path | None = None,
    *,
    gpu: str | None = None,
    memory: str | int | None = None,
    devices: int | None = None,
    machine: Machine | None = None,
    technique: str | Any | Sequence[Any] = (),
    task: str | None = None,
    examples: int | None = None,
    length: int | None = None,
    options: DataOptions | None = None,
    listener: Listener = ignore,
    **settings: Any,
) -> Plan:
    """What every technique (or those named) would cost on a base; no weights are read.

    `data` is a data set as `tune` takes it; without it `examples` of `length` tokens are assumed. The target is a known
    `gpu` ('RTX 4090'), an amount of `memory` ('24GB'), or this machine (timed, or a `machine` that is known), `devices`
    of them. `technique` is a name, settings as in `heptune.Lora(rank=64)`, or several of these. `settings` are those of
    `heptune.engine.settings.Settings` and `heptune.tasks.options.TaskOptions`.
    """
    posed, own = TaskOptions.split(settings)
    knobs = Settings.from_values(own)
    if isinstance(technique, str) or not isinstance(technique, Sequence):
        technique = (technique,)
    chosen = [Candidate.of(one) for one in (technique or techniques.names())]
    if data is not None and (examples is not None or length is not None):
        raise UsageError("examples and length describe an assumed workload; with data they are counted: leave them out")
    facts = describe(base, listener=listener)
    place = target(gpu, memory, devices, machine=machine, listener=listener)
    if data is None:
        workload = assumed(task, examples, length, causal=not facts.both_ways)
    else:
        workload = _of_files(base, facts, data, task, options or DataOptions(), posed, knobs, listener)
    estimator = Estimator(facts, workload, place)
    known = priors([candidate.name for candidate in chosen], workload.task, workload.examples)
    found = tuple(_technique(estimator, candidate, knobs, known[candidate.name]) for candidate in chosen)
    layout = estimator.layout(Placement(), knobs)
    advice = advise(found, workload.task, workload.examples)
    return Plan(
        base=facts,
        workload=workload,
        layout=layout.to_json(),
        target=place,
        settings=knobs,
        techniques=found,
        advice=advice,
        notes=(*_notes(facts, place, layout.cut_share, knobs), *_loading(found)),
        command=_command(facts, data, advice.technique, found, settings, task),
    )


def _technique(estimator: Estimator, candidate: Candidate, settings: Settings, prior: Prior) -> TechniquePlan:
    try:
        estimator.check(candidate, settings)
        cost, dtype = estimator.cost(candidate), estimator.dtype(candidate)
        estimate = as_asked(estimator, candidate, settings)
    except (TechniqueError, BaseModelError) as problem:
        return TechniquePlan(candidate.name, prior, problem=str(problem))
    shape = estimator.shape
    made = TechniquePlan(
        technique=candidate.name,
        prior=prior,
        trainable=cost.trainable,
        trainable_share=cost.trainable / shape.parameters,
        dtype=dtype,
        quantized=estimator.quantized(candidate, settings),
        artifact_bytes=artifact_bytes(candidate, cost, shape, dtype),
        serving=serving(candidate, cost, shape, dtype),
        steps=_steps(estimator, candidate, settings),
        estimate=estimate,
    )
    if estimate.fits:
        return made
    fitted = smallest_change(estimator, candidate, settings)
    if fitted.estimate.fits:
        return replace(made, change=fitted)
    needed = devices_needed(estimator, candidate, replace(fitted.settings, quantize=settings.quantize))
    return replace(made, nearest=fitted, devices_needed=needed)


def _steps(estimator: Estimator, candidate: Candidate, settings: Settings) -> int:
    steps = max(1, round(settings.epochs * estimator.layout(candidate.placement, settings).steps))
    return min(steps, settings.max_steps or steps)


def _of_files(
    base: str,
    facts: BaseFacts,
    data: str | Path,
    task: str | None,
    options: DataOptions,
    posed: TaskOptions,
    settings: Settings,
    listener: Listener,
) -> Workload:
    files = read_files(data, options, listener)
    parts = files.cut(options, settings.seed)
    goal = tasks.pose(task or tasks.choose(files.train.kind, words=not facts.both_ways), parts.train, posed)
    template = _template(base, facts, listener)
    return of_data(goal, parts, template, settings, str(data), causal=not facts.both_ways)


def _template(base: str, facts: BaseFacts, listener: Listener) -> ChatTemplate | PlainText | None:
    """The base's own template; None where its tokenizer cannot be had without its weights."""
    name = facts.tunable
    if name in EMBEDDED and not Path(base).expanduser().exists():
        # Fetching an embedded base would bring its weights.
        name = name if (cache_folder() / "bases" / name).is_dir() else EMBEDDED[name].hub_id
    if name is None or name.endswith(".gguf"):
        return None
    from heptune.models.load import load_tokenizer

    try:
        tokenizer = load_tokenizer(name, listener=listener)
        return PlainText(tokenizer) if facts.both_ways else ChatTemplate(tokenizer)
    except HeptuneError as problem:
        listener(Note(f"the tokenizer of {name} is out of reach: {problem}", "warning"))
        return None


def _notes(facts: BaseFacts, place: Target, cut_share: float, settings: Settings) -> list[str]:
    notes = []
    if facts.note is not None:
        notes.append(f"{facts.name}: {facts.note}.")
    if facts.form_family != facts.shape.family:
        why = f": {facts.entry.why_form}" if facts.entry is not None and facts.entry.why_form is not None else ""
        relative = f"the formulas of {facts.form_family}, its nearest relative that was counted"
        notes.append(f"Memory and work of {facts.name} follow {relative}{why}.")
    if place.devices > 1:
        notes.append("Heptune trains on one device so far: what is said of several is what such a training would take.")
    if cut_share:
        notes.append(f"{cut_share:.0%} of the examples are longer than --max-length {settings.max_length} and are cut.")
    return notes


def _loading(plans: Sequence[TechniquePlan]) -> list[str]:
    """Where only the loading of a base that will lie in 4 bits is too much, that is worth saying."""
    found = []
    for one in plans:
        estimate = None if one.nearest is None else one.nearest.estimate
        if estimate is None or not one.quantized:
            continue
        load, rest = estimate.phases["load"], max(v for n, v in estimate.phases.items() if n not in ("load", "merge"))
        if rest <= estimate.room_bytes < load:
            found.append(
                f"{one.technique} would train in {format_bytes(rest)}, but the base is loaded whole before it is put "
                f"into 4 bits, which takes {format_bytes(load)}."
            )
    return found


def _command(
    facts: BaseFacts,
    data: str | Path | None,
    technique: str | None,
    found: Sequence[TechniquePlan],
    given: dict[str, Any],
    task: str | None,
) -> tuple[str, ...] | None:
    """The next step with exactly the options that were planned with."""
    if technique is None or facts.tunable is None:
        return None
    chosen = next(one for one in found if one.technique == technique)
    defaults = {field.name: field.default for kind in (TaskOptions, Settings) for field in fields(kind)}
    settings = {name: value for name, value in given.items() if value != defaults[name]}
    settings |= chosen.change.changes if chosen.change is not None else {}
    words = ["tune", facts.tunable, str(data) if data is not None else "DATA", "--technique", technique]
    words += ["--task", task] if task is not None and data is not None else []
    return (*words, *options_of(settings))


__all__ = ["Plan", "TechniquePlan", "plan"]
