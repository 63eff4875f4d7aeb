"""Makes a race directory: who competes, how long a full training is within the budget, and everyone's run directory."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import heptune
from heptune import tasks
from heptune.core.errors import DataError, HeptuneError, TechniqueError, UsageError
from heptune.core.events import Listener, Note
from heptune.core.registry import unknown
from heptune.engine.loop import batches_of
from heptune.engine.settings import Settings
from heptune.models.load import fetch_base, load_base
from heptune.racing.candidates import RATES, Candidate, candidates
from heptune.racing.forecast import PLANNED_SHARE, Forecast, forecast
from heptune.racing.ladder import SHARES, full_trainings, rungs
from heptune.racing.race import Race, require_free
from heptune.tasks.example import Example
from heptune.techniques._contract import Technique
from heptune.tuning import base as bases
from heptune.tuning import training
from heptune.tuning.problem import Problem

# Fewer optimizer steps teach nothing that a rung could see.
LEAST_STEPS = 16
# Fewer records tell learning rates apart too badly.
LEAST_RECORDS = 32
# One example has no spread.
LEAST_TESTED = 2
# Metrics that an example has a value of; F1, which has none, gives way to the loss.
EXAMPLE_BY_EXAMPLE = ("accuracy", "loss")
# What every candidate has its own of, or what would end a training before the race does.
NOT_FOR_A_RACE = ("learning_rate", "max_minutes", "validate_every", "patience")
# Minutes between checkpoints. There is one at every rung anyway; this is what a killed race loses at the most.
SAVE_MINUTES = 10.0


@dataclass(frozen=True)
class Terms:
    """The terms of a race.

    - `budget_s` or `budget_tokens`: wall time, or tokens trained on by all candidates together; None: no limit, every
      finalist trains for the settings' epochs
    - `rates`: factors of each technique's own learning rate; `words`: those that can start from a text do so once more
    - `finalists`, `seeds`: how many techniques reach the full length, and how often each is trained there
    - `test_limit`: the most test examples; None: all
    - `width`: candidates that train at a time, each with its share of `threads`; None: as memory and cores allow
    - `stretch`: a `budget_s` that is too small for any race becomes the least that is enough, instead of an error
    """

    budget_s: float | None = None
    budget_tokens: int | None = None
    rates: tuple[float, ...] = RATES
    words: bool = True
    finalists: int = 2
    seeds: int = 2
    test_limit: int | None = 1000
    width: int | None = None
    stretch: bool = False

    def __post_init__(self) -> None:
        if self.budget_s is not None and self.budget_tokens is not None:
            raise UsageError("a race has one budget: give a time or a number of tokens, not both")
        for name in ("budget_s", "budget_tokens", "test_limit", "width"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UsageError(f"{name} is {value}; it must be above 0")
        if self.finalists < 1:
            raise UsageError(f"finalists is {self.finalists}; somebody must reach the final")
        if self.seeds < 2:
            raise UsageError(f"seeds is {self.seeds}; one training tells nothing about chance, at least 2 do")
        if not self.rates or min(self.rates) <= 0:
            raise UsageError("rates must be factors above 0, e.g. 0.33,1,3")


def enter(
    folder: Path,
    base_name: str,
    problem: Problem,
    chosen: Sequence[Technique],
    settings: Settings,
    terms: Terms,
    metric: str | None,
    on: str,
    command: Sequence[str],
    listener: Listener,
) -> Race:
    """A new race. Raises UsageError when the budget is too small for any of it, DataError without a validation part."""
    require_free(folder)
    _check(chosen, settings)
    own_metric = problem.task.metric if problem.task.metric in EXAMPLE_BY_EXAMPLE else "loss"
    metrics = sorted({own_metric, "loss"})
    if metric is not None and metric not in metrics:
        raise unknown("metric", metric, metrics)
    if not problem.parts.validation:
        raise DataError("a race chooses by scores on a validation part, and there is none; give --validation")
    if not problem.parts.test:
        raise DataError("a verdict is spoken on a test part that nobody has seen, and there is none; give --test")
    if min(len(problem.parts.test), terms.test_limit or LEAST_TESTED) < LEAST_TESTED:
        raise DataError(f"a verdict needs at least {LEAST_TESTED} test examples; give more with --test or --test-limit")
    fitting = _fitting(chosen, settings, listener)
    fetch_base(base_name, listener=listener)  # once in a machine's life, and no part of the budget
    began = time.monotonic()
    load_base(base_name, listener=listener)  # the first time takes imports along, which no candidate waits for again
    again = time.monotonic()
    base = load_base(base_name, listener=_silent)
    loaded_s = time.monotonic() - again
    template = bases.template_of(base, records=problem.parts.train)
    examples = tasks.encode(problem.task, problem.parts.train, template, settings.max_length, listener)
    field = candidates(fitting, terms.rates, problem.task.words if terms.words else "")
    facts = forecast(base, loaded_s, field, problem, examples, settings, terms.test_limit, terms.width, listener)
    field = [candidate for candidate in field if candidate.technique.name in facts.plans]
    plain = {candidate.name for candidate in candidates(fitting, (1.0,))}
    field, steps, facts, budget_s = _length(
        field, plain, examples, settings, terms, facts, time.monotonic() - began, listener
    )
    settings = replace(settings, validation_limit=facts.validation_records)
    points = rungs(steps)
    finalists = min(terms.finalists, len({c.technique.name for c in field}))
    seeds = [settings.seed + number for number in range(terms.seeds)]
    values = {
        "heptune": heptune.__version__,
        "status": "new",
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": list(command),
        "base": {**bases.described(base_name, base), "parameters": facts.parameters},
        **problem.to_json(),
        "template": template.text,
        "metric": metric or own_metric,
        "on": on,
        "settings": asdict(settings),
        "budget": {"time_s": budget_s, "tokens": terms.budget_tokens},
        "seed": settings.seed,
        "seeds": seeds,
        "finalists": finalists,
        "test_limit": terms.test_limit,
        "threads": facts.threads,
        "parallel": facts.width,
        "versions": bases.versions(),
        "candidates": [
            {
                **c.to_json(),
                "slow_start": "slow_start" in c.technique.capabilities,
                "predicted": facts.predicted(c, steps),
            }
            for c in field
        ],
        "ladder": [{"step": step} for step in points],
        "rungs": [],
        "finals": [],
        "expected_s": facts.race_s(field, steps, finalists, len(seeds)),
        "closing_s": facts.closing_s(finalists, len(seeds)),
        "exhaustive_cost_estimate": {"time_s": facts.exhaustive_s(field, steps)},
        "spent_s": time.monotonic() - began,
    }
    whole = math.ceil(steps / batches_of(examples, settings).steps(1)) + 1
    own = replace(settings, epochs=float(whole), max_steps=steps, max_minutes=None, save_minutes=SAVE_MINUTES)
    before = torch.get_num_threads()
    torch.set_num_threads(facts.threads)  # what the manifests say, and what the candidates will have
    try:
        with Race.create(folder, values) as race:
            for candidate in field:
                training.begin(
                    race.run_folder(candidate.name),
                    base_name,
                    base,
                    candidate.technique,
                    problem,
                    own,
                    listener if candidate is field[0] else _silent,
                    validate_at=points,
                    metric=metric,
                    expected=facts.predicted(candidate, steps),
                )
    finally:
        torch.set_num_threads(before)
    return Race(folder)


def _silent(event: Any) -> None:
    """What is told once is enough."""


def _check(chosen: Sequence[Technique], settings: Settings) -> None:
    names = [technique.name for technique in chosen]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            f"{twice[0]} is entered twice; a race compares techniques, each with one set of settings and several "
            "learning rates: name it once"
        )
    for name in NOT_FOR_A_RACE:
        if (value := getattr(settings, name)) is not None:
            raise UsageError(
                f"{name} is {value}, but a race decides that itself, for every candidate; leave it out "
                "(learning rates follow from `rates`, the length from the budget, epochs and max_steps)"
            )


def _fitting(chosen: Sequence[Technique], settings: Settings, listener: Listener) -> list[Technique]:
    """The techniques that any base could be tuned with; the others are named."""
    fitting, problems = [], []
    for technique in chosen:
        try:
            bases.check_quantization(technique, settings)
        except HeptuneError as error:
            problems.append(str(error))
            listener(Note(f"{technique.name} does not start: {error}", "warning"))
        else:
            fitting.append(technique)
    if not fitting:
        raise TechniqueError(f"no technique can start: {'; '.join(problems)}")
    return fitting


def _length(
    field: list[Candidate],
    plain_names: set[str],
    examples: Sequence[Example],
    settings: Settings,
    terms: Terms,
    facts: Forecast,
    spent_s: float,
    listener: Listener,
) -> tuple[list[Candidate], int, Forecast, float | None]:
    """Who competes, how many steps a full training has, how many records judge it on the way, and the time for all of
    it, of which `spent_s` is gone.

    As many steps as the budget allows, at most the settings' epochs. Validations are made smaller until one takes no
    longer than the steps before it, and where the budget is still too small for several learning rates, each technique
    keeps its own. What is too small for that as well is refused, or made larger if `terms.stretch` says so.
    """
    most = batches_of(examples, settings).steps(settings.epochs)
    most = min(most, settings.max_steps or most)
    least = min(LEAST_STEPS, most)
    if most < len(SHARES):
        raise UsageError(
            f"these examples make {most} steps, too few to compare anyone on the way; a race needs at least "
            f"{len(SHARES)}, better many more: take smaller steps (--batch-size, --batch-tokens) or more --epochs"
        )
    plain = [c for c in field if c.name in plain_names]
    steps = 0
    for entered in (field, plain) if 0 < len(plain) < len(field) else (field,):
        for records in _fewer(facts.validation_records):
            now = facts.judged_by(records)
            steps = _steps(entered, examples, settings, terms, now, spent_s, most)
            pace_s = sum(now.step_s[c.technique.name] for c in entered) / len(entered)
            balanced = records * now.record_s <= steps * SHARES[0] * pace_s
            if steps >= least and (balanced or records <= LEAST_RECORDS):
                if len(entered) < len(field):
                    text = "the budget is too small to tune learning rates: each technique races with its own default"
                    listener(Note(f"{text}. A larger --budget makes it fairer", "warning"))
                return list(entered), steps, now, terms.budget_s
    why = f"the budget allows {steps} steps for a finalist, and a race needs at least {least}"
    if terms.budget_s is None:
        raise UsageError(
            f"{why}; raise --budget-tokens, name fewer --techniques, or take smaller steps (--batch-size, "
            "--batch-tokens)"
        )
    needed_s = spent_s + now.race_s(entered, least, terms.finalists, terms.seeds) / PLANNED_SHARE
    enough = f"{math.ceil(needed_s / 60)}m"
    if not terms.stretch:
        raise UsageError(
            f"{why}; raise --budget (on this machine {enough} would do), name fewer --techniques, or take smaller "
            "steps (--batch-size, --batch-tokens)"
        )
    listener(Note(f"{why}: it takes {enough} on this machine", "warning"))
    return list(entered), least, now, needed_s


def _fewer(records: int) -> list[int]:
    """So many validation records, then fewer and fewer, down to `LEAST_RECORDS`."""
    found = [records]
    while found[-1] > LEAST_RECORDS:
        found.append(max(LEAST_RECORDS, found[-1] * 3 // 4))
    return found


def _steps(
    entered: Sequence[Candidate],
    examples: Sequence[Example],
    settings: Settings,
    terms: Terms,
    facts: Forecast,
    spent_s: float,
    most: int,
) -> int:
    """How many steps of a full training the budget allows."""
    if terms.budget_tokens is not None:
        techniques = {c.technique.name: c.technique for c in entered}
        slow = sum("slow_start" in t.capabilities for t in techniques.values())
        counts = Counter(c.technique.name for c in entered)
        trainings = full_trainings(list(counts.values()), terms.finalists, terms.seeds, slow)
        step_tokens = sum(len(e.tokens) for e in examples) / batches_of(examples, settings).steps(1)
        return min(most, int(terms.budget_tokens / step_tokens / trainings))
    if terms.budget_s is not None:
        left_s = max(0.0, terms.budget_s - spent_s)
        return facts.steps_within(left_s, entered, terms.finalists, terms.seeds, most)
    return most
