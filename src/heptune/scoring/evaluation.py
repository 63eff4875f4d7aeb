"""What a tuned model is worth on examples it has never seen, beside what it has to beat: how it is kept and told.

What is measured for which task stands in `scoring/exams`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from heptune.core.errors import DataError
from heptune.data.record import Record
from heptune.scoring.statistics import Interval


@dataclass(frozen=True)
class Row:
    """One contender and its metrics."""

    name: str
    metrics: dict[str, Interval]


@dataclass(frozen=True)
class Comparison:
    """Tuned minus base on the same examples, in `unit`, with the p-value of a paired test where there is one. `against`
    says in words what it is compared with."""

    unit: str
    difference: Interval
    p_value: float | None
    against: str = "the untouched base"


@dataclass(frozen=True)
class Shown:
    """One example as a person would look at it. `better` is None where there is no right answer."""

    text: str
    truth: str
    base: str
    tuned: str
    better: bool | None


@dataclass(frozen=True)
class TypeRow:
    """The tuned model's metrics on the entities of one type; `count` of them are there."""

    type: str
    count: int
    metrics: dict[str, Interval]


@dataclass(frozen=True)
class Calibrated:
    """The expected calibration error of the tuned model's probabilities as they come and with the run's temperature,
    which was fitted on `examples` validation records (0: on none). `note`: why it is no better."""

    temperature: float
    examples: int
    error: Interval
    calibrated_error: Interval
    note: str = ""


@dataclass(frozen=True)
class Evaluation:
    """Scores on `examples` examples of `part`. The first row is the tuned model. `confusion` [truth, prediction].
    `per_type` has a row for each type of entity. `cut` examples were longer than the limit; `lost` of them lost what is
    the answer. `calibration` is None where the task has no probabilities."""

    task: str
    part: str
    examples: int
    rows: tuple[Row, ...]
    comparison: Comparison
    shown: tuple[Shown, ...]
    labels: tuple[str, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    cut: int = 0
    per_type: tuple[TypeRow, ...] = ()
    lost: int = 0
    calibration: Calibrated | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)


def require_examples(records: Sequence[Record], part: str) -> None:
    """Raises DataError where there is nothing to evaluate on."""
    if not records:
        raise DataError(f"{part} has no examples; name a file: `heptune eval RUN DATA`")
