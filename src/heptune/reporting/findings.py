"""What a report tells, read from a run or a race and ready to be drawn. Whatever was not found is None or empty."""

from __future__ import annotations

from dataclasses import dataclass, field

Points = tuple[tuple[float, float], ...]

# Of these less is better; of every other metric more.
LESS_IS_BETTER = frozenset({"loss", "perplexity"})


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; `low` and `high` are None where the spread is unknown."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Seed:
    """One of a contender's trainings: its score, and its run directory inside the race."""

    seed: int | None
    score: float
    run: str = ""


@dataclass(frozen=True)
class Contender:
    """One that was judged: a technique at its best candidate, or a baseline.

    `serving` says in words what using it costs; `cost_rank` counts from 1, the cheapest.
    """

    name: str
    technique: str | None
    candidate: str | None = None
    score: Estimate | None = None
    metrics: dict[str, Estimate] = field(default_factory=dict)
    seeds: tuple[Seed, ...] = ()
    time_s: float | None = None
    memory_bytes: float | None = None
    artifact_bytes: float | None = None
    serving: str = ""
    tied: bool = False
    pareto: bool = False
    winner: bool = False
    cost_rank: int | None = None

    @property
    def is_baseline(self) -> bool:
        """Whether nothing was tuned for it."""
        return self.technique is None


@dataclass(frozen=True)
class Difference:
    """a minus b on the same examples. `tie`: no difference is shown."""

    a: str
    b: str
    difference: Estimate
    p_value: float | None
    p_adjusted: float | None
    mcnemar: float | None
    tie: bool | None


@dataclass(frozen=True)
class Curve:
    """One training. `loss` and `validation` are (step, value), ascending; `state` is finalist, dropped or running.

    `seed` is set for a finalist's further trainings, which are drawn finer.
    """

    name: str
    technique: str
    state: str
    loss: Points = ()
    validation: Points = ()
    rung_validation: Points = ()  # of the metric that decided at the rungs
    dropped_at: int | None = None
    best_step: int | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Cost:
    """One training's cost as predicted and as measured."""

    name: str
    technique: str
    predicted_time_s: float | None = None
    time_s: float | None = None
    predicted_memory_bytes: float | None = None
    memory_bytes: float | None = None
    predicted_step_s: float | None = None
    step_s: float | None = None


@dataclass(frozen=True)
class Standing:
    """How one candidate stood at a rung, and why it was kept or dropped."""

    candidate: str
    technique: str
    score: float | None
    trend: float | None
    time_s: float | None
    memory_bytes: float | None
    kept: bool
    why: str


@dataclass(frozen=True)
class Rung:
    """One rung of the ladder, its standings from the best."""

    step: int
    standings: tuple[Standing, ...]


@dataclass(frozen=True)
class Confusion:
    """How often each true label (row) was answered with each label (column)."""

    name: str
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class EntityType:
    """How entities of one type were found: how many there are, and the tuned model's metrics."""

    name: str
    count: int | None
    metrics: dict[str, Estimate]


@dataclass(frozen=True)
class Example:
    """One example and what was answered. `right` is None where answers are not simply right or wrong."""

    text: str
    truth: str
    answers: tuple[tuple[str, str, bool | None], ...]


@dataclass(frozen=True)
class Findings:
    """All that one report tells."""

    kind: str  # 'race' or 'run'
    folder: str
    title: str
    subtitle: str
    status: str
    interim: str = ""  # why this is not the last word; empty for a finished race or run
    words: tuple[str, ...] = ()
    key_figures: tuple[tuple[str, str], ...] = ()
    metric: str = ""
    higher_is_better: bool = True
    level: float = 0.95
    part: str = ""
    examples: int | None = None
    contenders: tuple[Contender, ...] = ()
    differences: tuple[Difference, ...] = ()
    curves: tuple[Curve, ...] = ()
    curve_metric: str = ""
    costs: tuple[Cost, ...] = ()
    ladder: tuple[int, ...] = ()
    rungs: tuple[Rung, ...] = ()
    rung_metric: str = ""  # what decided at the rungs
    effort: str = ""
    labels: tuple[str, ...] = ()
    confusions: tuple[Confusion, ...] = ()
    entity_types: tuple[EntityType, ...] = ()
    differing: tuple[Example, ...] = ()
    commands: tuple[tuple[str, str], ...] = ()
    data: tuple[tuple[str, str], ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    settings: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def winner(self) -> Contender | None:
        """The contender that the verdict names."""
        return next((c for c in self.contenders if c.winner), None)

    @property
    def ranked(self) -> tuple[Contender, ...]:
        """Techniques from the best, then baselines from the best; those without a score last."""

        def place(contender: Contender) -> tuple[bool, bool, float]:
            if contender.score is None:
                return contender.is_baseline, True, 0.0
            value = contender.score.value
            return contender.is_baseline, False, -value if self.higher_is_better else value

        return tuple(sorted(self.contenders, key=place))

    @property
    def metrics(self) -> list[str]:
        """The verdict's metric, then whatever else was measured."""
        return list(dict.fromkeys([self.metric, *(name for c in self.contenders for name in c.metrics)]))

    @property
    def hues(self) -> dict[str, int]:
        """The number of each technique's colour, from 1, in order of appearance."""
        named = [c.technique for c in self.contenders if c.technique] + [c.technique for c in self.curves]
        named += [c.technique for c in self.costs] + [s.technique for r in self.rungs for s in r.standings]
        return {name: number for number, name in enumerate(dict.fromkeys(named), 1)}
