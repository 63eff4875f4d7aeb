"""What a run reports while it works.

The trainer prints nothing. It hands events to one callable; the command line, a log and a tracker are readers of the
same stream. Every event is a frozen dataclass whose fields are JSON values, so that `asdict` is its log line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Note:
    """A word to the person: what was decided, or what is unusual. `level` is 'info' or 'warning'."""

    text: str
    level: str = "info"


@dataclass(frozen=True)
class Progress:
    """Work of known size that is not training: loading, encoding, scoring. `done` of `total` `unit`s."""

    what: str
    done: int
    total: int
    unit: str = "examples"


@dataclass(frozen=True)
class TrainingStarted:
    """The first event of a training, also after a resume (then `step` > 0)."""

    step: int
    planned_steps: int
    epochs: float
    trainable: int
    examples: int
    supervised_tokens: int


@dataclass(frozen=True)
class StepDone:
    """One optimizer step. `loss` is the mean over the supervised tokens of the whole batch, in nats.

    `tokens` counts real tokens of the plain examples (no padding; shared ones as often as they stand in examples),
    `rows` the rows that were computed, `time_s` the wall time of this step, `memory_bytes` the process's resident
    memory (on a GPU: allocated there).
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    rows: int
    supervised_tokens: int
    time_s: float
    memory_bytes: int


@dataclass(frozen=True)
class Validated:
    """Scores on the validation part after `step` steps; `best` says whether this is the best so far."""

    step: int
    metrics: dict[str, float]
    metric: str
    best: bool


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint from which the run can go on with the same bits."""

    step: int
    path: str
    time_s: float


@dataclass(frozen=True)
class TrainingEnded:
    """`reason` is 'finished', 'time', 'early stopping', 'interrupted' or 'paused'."""

    step: int
    reason: str
    time_s: float


@dataclass(frozen=True)
class RaceStarted:
    """A race begins or goes on. `rungs`: the steps after which candidates are compared. `budget_s`, `expected_s`: wall
    time, None where nothing limits it or nothing is known. `width`: candidates that train at a time."""

    folder: str
    candidates: tuple[str, ...]
    rungs: tuple[int, ...]
    budget_s: float | None
    expected_s: float | None
    width: int


@dataclass(frozen=True)
class StageStarted:
    """A part of a race: everyone named in `names` trains to step `until`, or (None) is tested."""

    what: str
    names: tuple[str, ...]
    until: int | None


@dataclass(frozen=True)
class CandidateMoved:
    """Where a candidate is in its training."""

    name: str
    step: int
    loss: float | None
    metrics: dict[str, float] | None


@dataclass(frozen=True)
class CandidateDone:
    """A candidate has come to the end of its stage, or (`failed` says why) has not."""

    name: str
    failed: str


@dataclass(frozen=True)
class RungDecided:
    """Who goes on after step `step`, best first: `standings` as in race.json."""

    step: int
    standings: tuple[dict[str, Any], ...]


RaceEvent = RaceStarted | StageStarted | CandidateMoved | CandidateDone | RungDecided
Event = Note | Progress | TrainingStarted | StepDone | Validated | CheckpointSaved | TrainingEnded | RaceEvent
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The listener that listens to nothing."""
