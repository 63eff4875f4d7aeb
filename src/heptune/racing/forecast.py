"""How long the pieces of a race take and how many run side by side: measured on the person's own data and base.

One candidate's training step and one validation are timed here, on as many threads as a candidate will have; the steps
of the others follow in the ratios that the plan predicts. Where no formula covers the base (encoders whose batches are
padded, say), a few steps of every technique are timed instead, each on a base of its own.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from heptune.core.errors import HeptuneError, TechniqueError
from heptune.core.events import Listener, Note, Progress, ignore
from heptune.data.splits import sample
from heptune.engine.forward import Forward
from heptune.engine.headed import Headed
from heptune.engine.loop import accumulate, batches_of
from heptune.engine.memory import give_back, used_bytes
from heptune.engine.settings import Settings
from heptune.models.anatomy import Anatomy, dissect
from heptune.models.load import Base
from heptune.planning.estimate import Candidate as PlannedTechnique
from heptune.planning.estimate import Estimator
from heptune.planning.limits import memory
from heptune.planning.outlook import estimator_of, told
from heptune.racing.candidates import Candidate
from heptune.racing.ladder import KEPT, SHARES, survivors
from heptune.scoring.exams import validation
from heptune.scoring.probe import EXAMPLES, start_from_probe
from heptune.scoring.score import Scorer, readout_of
from heptune.scoring.shots import REFERENCE
from heptune.tasks.example import Example
from heptune.tasks.template import ChatTemplate
from heptune.techniques._contract import Attached, Technique
from heptune.tuning import base as bases
from heptune.tuning.problem import Problem
from heptune.tuning.training import SCORING_ROWS

# Steps that are timed, after one that warms up; records that are scored for the time of a validation.
TIMED_STEPS, TIMED_RECORDS = 2, 24
PROBED = 200  # examples that a linear head's first weights are timed on
# Two processes side by side slow each other down: they share the caches and the way to the memory.
SIDE_BY_SIDE = 1.15
# A record behind examples takes longer than alone (1.66 times with 16 shots of the demo's messages).
BEHIND_EXAMPLES = 1.7
# Of a budget that much is planned; the rest is for what other work on the machine takes.
PLANNED_SHARE = 0.9


@dataclass(frozen=True)
class Forecast:
    """What a race's pieces take in seconds, with `width` candidates at a time on `threads` threads each.

    `step_s`: a training step of each technique. `record_s`: scoring one record. `begin_s`: loading the base and putting
    a technique into it. `head_s`: what a linear head's first weights take, once for each training. `plans`: what the
    plan says of each technique. `parameters`: the base's.
    """

    width: int
    threads: int
    parameters: int
    step_s: dict[str, float]
    record_s: float
    begin_s: float
    validation_records: int
    test_records: int
    plans: dict[str, dict[str, Any]]
    head_s: float = 0.0

    def judged_by(self, records: int) -> Forecast:
        """The same with so many records in a validation."""
        return replace(self, validation_records=records)

    def predicted(self, candidate: Candidate, steps: int) -> dict[str, Any]:
        """What a candidate's full training is predicted to take, for race.json."""
        plan, step_s = self.plans[candidate.technique.name], self.step_s[candidate.technique.name]
        validations = len(SHARES) * self.validation_records * self.record_s
        return {
            **plan,
            "step_s": step_s,
            "time_s": steps * step_s + validations,
        }

    def race_s(self, field: Sequence[Candidate], steps: int, finalists: int, seeds: int) -> float:
        """The wall time of a whole race."""
        paces = [self.step_s[c.technique.name] for c in field]
        counts = Counter(c.technique.name for c in field)
        _, _, half, finalists = survivors(list(counts.values()), finalists)
        two_each = [self.step_s[name] for name, count in counts.items() for _ in range(min(KEPT, count))]
        mean = sum(self.step_s[name] for name in counts) / len(counts)
        rung_s = self.begin_s + self.validation_records * self.record_s
        parts: list[list[float]] = []
        taken = 0.0
        for share, alive in zip(SHARES, (paces, two_each, [mean] * half, [mean] * finalists), strict=True):
            first_s = 0.0 if parts else self.head_s
            parts.append([first_s + rung_s + pace * steps * (share - taken) for pace in alive])
            taken = share
        parts[-1] += [self.head_s + rung_s + mean * steps] * finalists * (seeds - 1)
        return sum(map(self._side_by_side, parts)) + self.closing_s(finalists, seeds)

    def closing_s(self, finalists: int, seeds: int) -> float:
        """The wall time of the test part."""
        test_s = self.begin_s + self.test_records * self.record_s
        # The baselines score the test part as it is, and once more behind examples, with what calibrates them.
        behind_examples = BEHIND_EXAMPLES * (self.test_records + REFERENCE)
        baselines_s = self.begin_s + self.head_s + (self.test_records + behind_examples) * self.record_s
        return self._side_by_side([test_s] * finalists * seeds + [baselines_s])

    def _side_by_side(self, part: Sequence[float]) -> float:
        return max(sum(part) / min(self.width, len(part)), max(part))

    def exhaustive_s(self, field: Sequence[Candidate], steps: int) -> float:
        """The wall time of training and testing every candidate to the full length once."""
        each = self.begin_s + self.head_s + (len(SHARES) * self.validation_records + self.test_records) * self.record_s
        return sum(each + steps * self.step_s[c.technique.name] for c in field) / self.width

    def steps_within(self, budget_s: float, field: Sequence[Candidate], finalists: int, seeds: int, most: int) -> int:
        """How many steps a full training may have; 0 where not even one fits."""
        planned = PLANNED_SHARE * budget_s
        nothing = self.race_s(field, 0, finalists, seeds)
        one = (self.race_s(field, 1000, finalists, seeds) - nothing) / 1000
        return max(0, min(most, int((planned - nothing) / one)))


def forecast(
    base: Base,
    loaded_s: float,
    field: Sequence[Candidate],
    problem: Problem,
    examples: Sequence[Example],
    settings: Settings,
    test_limit: int | None,
    width: int | None,
    listener: Listener,
) -> Forecast:
    """Measures on this machine. The base serves for it: a candidate is put into it and trains a few steps on the first
    batches. `loaded_s`: what loading the base took. Who does not fit the base is told, and in no plan.
    """
    cores = torch.get_num_threads()
    anatomy = dissect(base.model)
    kinds = {c.technique.name: c.technique for c in field}
    template = bases.template_of(base, records=problem.parts.train)
    try:
        estimator = estimator_of(base.name, anatomy, problem.task, problem.parts, template, settings, listener)
    except HeptuneError:
        plans = _measured(base, kinds, problem, examples, template, settings, listener)
    else:
        plans = _planned(estimator, kinds, settings, listener)
    largest = max(plan["resident_bytes"] for plan in plans.values())
    width = width or side_by_side(largest, cores, cuda=torch.cuda.is_available())
    threads = max(1, cores // width)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        reference = kinds[min(plans, key=lambda name: plans[name]["step_s"])]
        start = time.monotonic()
        forward, attached = _entered(anatomy, reference, problem, template, settings)
        begin_s = loaded_s + time.monotonic() - start
        step_s = _step_s(forward, attached, examples, settings, listener)
        scorer = Scorer(forward, template, settings.max_length, SCORING_ROWS)
        record_s = _record_s(problem, scorer, settings)
        head_s = _head_s(scorer, examples, settings.seed)
    finally:
        torch.set_num_threads(before)
    slower = SIDE_BY_SIDE if width > 1 else 1.0
    scale = slower * step_s / plans[reference.name]["step_s"]
    tested = len(problem.parts.test)
    return Forecast(
        width=width,
        threads=threads,
        parameters=anatomy.shape.parameters,
        step_s={name: scale * plan["step_s"] for name, plan in plans.items()},
        record_s=slower * record_s,
        begin_s=slower * begin_s,
        validation_records=min(settings.validation_limit, len(problem.parts.validation)),
        test_records=min(test_limit or tested, tested),
        plans=plans,
        head_s=slower * head_s,
    )


def _planned(
    estimator: Estimator, kinds: Mapping[str, Technique], settings: Settings, listener: Listener
) -> dict[str, dict[str, Any]]:
    """What the plan says of each technique that fits the base."""
    plans, problems = {}, []
    for done, (name, technique) in enumerate(kinds.items(), 1):
        try:
            plans[name] = told(estimator.estimate(PlannedTechnique.of(technique), settings))
        except TechniqueError as error:
            problems.append(str(error))
            listener(Note(f"{name} does not start: {error}", "warning"))
        listener(Progress("planning", done, len(kinds), "techniques"))
    return _some(plans, problems)


def _measured(
    base: Base,
    kinds: Mapping[str, Technique],
    problem: Problem,
    examples: Sequence[Example],
    template: ChatTemplate,
    settings: Settings,
    listener: Listener,
) -> dict[str, dict[str, Any]]:
    """The same from a few steps of each, on a base of its own: resident memory behind them (but for `base`, which
    stands beside it), and a step's seconds."""
    beside = sum(parameter.nbytes for parameter in base.model.parameters())

    def tried(technique: Technique) -> dict[str, Any]:
        anatomy = dissect(bases.load(base.name, technique, ignore).model)
        forward, attached = _entered(anatomy, technique, problem, template, settings)
        step_s = _step_s(forward, attached, examples, settings, ignore)
        return {"resident_bytes": used_bytes(forward.device) - beside, "step_s": step_s}

    plans, problems = {}, []
    for done, (kind, technique) in enumerate(kinds.items(), 1):
        give_back()
        try:
            plans[kind] = tried(technique)
        except TechniqueError as error:
            problems.append(str(error))
            listener(Note(f"{kind} does not start: {error}", "warning"))
        listener(Progress("trying a few steps", done, len(kinds), "techniques"))
    return _some(plans, problems)


def _some(plans: dict[str, dict[str, Any]], problems: Sequence[str]) -> dict[str, dict[str, Any]]:
    if not plans:
        raise TechniqueError(f"no technique can start: {'; '.join(problems)}")
    return plans


def _entered(
    anatomy: Anatomy, technique: Technique, problem: Problem, template: ChatTemplate, settings: Settings
) -> tuple[Forward, Attached]:
    """A technique in a base, with the linear head of a task that has one."""
    bases.quantize_where_asked(anatomy, technique, settings, ignore)
    forward = Forward(anatomy, settings.recompute)
    attached = technique.attach(anatomy, settings.seed, template.encode)
    forward.readout = readout_of(problem.task, anatomy, settings.seed)
    return forward, attached if forward.readout is None else Headed(attached, forward.readout)


def side_by_side(resident_bytes: int, cores: int, cuda: bool) -> int:
    """How many candidates train at a time: as many as there are cores, and as memory holds with a fifth to spare.

    Small batches do not fill many cores, so that two processes with half of the cores each are faster than one after
    the other. A GPU is filled by one.
    """
    if cuda:
        return 1
    return max(1, min(cores, int(0.8 * memory().available / max(1, resident_bytes))))


def _step_s(
    forward: Forward, attached: Any, examples: Sequence[Example], settings: Settings, listener: Listener
) -> float:
    batches = batches_of(examples, settings)
    times = []
    for step in range(1 + TIMED_STEPS):
        start = time.monotonic()
        accumulate(forward, attached, [examples[i] for i in batches.step(step)], settings, step)
        times.append(time.monotonic() - start)
        listener(Progress("timing a step", step + 1, 1 + TIMED_STEPS, "steps"))
    attached.begin_step(None)
    return min(times[1:])


def _head_s(scorer: Scorer, examples: Sequence[Example], seed: int) -> float:
    """The time of a linear head's first weights, from those of a few examples."""
    if scorer.forward.readout is None:
        return 0.0
    import sklearn.linear_model  # noqa: F401  # once for all trainings: not to be counted for each example

    few = examples[:PROBED]
    start = time.monotonic()
    start_from_probe(scorer.forward.readout, scorer, few, seed, ignore)
    return (time.monotonic() - start) * min(EXAMPLES, len(examples)) / len(few)


def _record_s(problem: Problem, scorer: Scorer, settings: Settings) -> float:
    records = problem.parts.validation
    chosen = [records[i] for i in sample(records, range(len(records)), TIMED_RECORDS, settings.seed)]
    judge = validation(problem.task, scorer, chosen, ignore)
    if judge is None:
        return 0.0
    start = time.monotonic()
    judge.score()
    return (time.monotonic() - start) / len(chosen)
