"""The exams: how each task's answers are judged, while it trains and at the end. One file per task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from heptune.core.events import Listener
from heptune.data.record import Record
from heptune.engine.loop import Validation
from heptune.scoring.calibration import Calibration, calibration_error_interval, confidences, fit
from heptune.scoring.evaluation import Calibrated, Evaluation
from heptune.scoring.exams.answer import AnswerExam
from heptune.scoring.exams.chat import ChatExam
from heptune.scoring.exams.choose import ChooseExam
from heptune.scoring.exams.classify import ClassifyExam
from heptune.scoring.exams.complete import CompleteExam
from heptune.scoring.exams.extract import ExtractExam
from heptune.scoring.exams.label import LabelExam
from heptune.scoring.exams.tag import TagExam
from heptune.scoring.score import Scorer
from heptune.tasks import Classify, Label, Task, require_kind


class Exam(Protocol):
    """How one task is judged. What a model says, `answers`, is whatever the exam's own `evaluation` reads."""

    def check(self, records: Sequence[Record], path: Any) -> None:
        """Raises DataError for records that cannot be judged, e.g. labels that training has never seen. `path` is
        their file, for the message."""

    def validation(self, scorer: Scorer, records: Sequence[Record], listener: Listener) -> Validation | None:
        """The judge of a training; None where the records hold nothing to score."""

    def answers(self, scorer: Scorer, records: Sequence[Record], what: str, listener: Listener) -> Any:
        """What the model as it is now says to the records. Raises DataError where nothing can be scored."""

    def evaluation(
        self, part: str, records: Sequence[Record], train: Sequence[Record], base: Any, tuned: Any, seed: int
    ) -> Evaluation:
        """The tuned model's answers beside the untouched base's (None: it cannot answer) and the baselines."""

    def outcomes(self, scorer: Scorer, records: Sequence[Record], what: str, listener: Listener) -> dict[str, Any]:
        """Every record's outcome under the model as it is now, as JSON values, for a race.

        `log_p` of what is true; with `weights`, how many tokens each one's is about. `correct` (0 to 1) for tasks with
        answers that are right or wrong; `chosen` label numbers, for classify.
        """


_EXAMS: dict[str, Any] = {
    "classify": ClassifyExam,
    "chat": ChatExam,
    "label": LabelExam,
    "extract": ExtractExam,
    "tag": TagExam,
    "answer": AnswerExam,
    "choose": ChooseExam,
    "complete": CompleteExam,
}


def exam_of(task: Task) -> Exam:
    """The exam of a task."""
    exam: Exam = _EXAMS[task.name](task)
    return exam


def check(task: Task, records: Sequence[Record], path: Any) -> None:
    """Raises DataError for records that the task cannot be judged on. `path` is their file, for the message."""
    require_kind(task.name, records, path)
    exam_of(task).check(records, path)


def has_probabilities(task: Task) -> bool:
    """Whether the answers to a task are probabilities that can be calibrated."""
    return isinstance(task, Classify | Label)


def calibrate(task: Task, scorer: Scorer, records: Sequence[Record], listener: Listener) -> Calibration:
    """The temperature for a task with probabilities, fitted to what the model as it is now says to records that it was
    not trained on."""
    assert isinstance(task, Classify | Label)
    several = isinstance(task, Label) and task.several
    scores = _scores(task, exam_of(task).answers(scorer, records, "calibrating", listener)) if records else None
    return fit(np.empty((0, len(task.labels))) if scores is None else scores, _truth(task, records), several)


def _scores(task: Classify | Label, answers: np.ndarray) -> np.ndarray:
    """What a temperature divides: label scores, or the log-odds of each label by itself."""
    if isinstance(task, Label) and task.several:
        return answers - np.log(-np.expm1(np.minimum(answers, -1e-12)))
    return answers


def _truth(task: Classify | Label, records: Sequence[Record]) -> np.ndarray:
    """Each record's label number, [n]; of several labels which are there, bool [n, labels]."""
    if isinstance(task, Classify):
        return ClassifyExam(task).truth(records)
    truth = LabelExam(task).truth(records)
    return truth if task.several else truth.argmax(1)


def calibrated(task: Task, records: Sequence[Record], answers: Any, found: Calibration, seed: int) -> Calibrated | None:
    """How far the probabilities in a model's answers can be believed, with the run's calibration and without. None for
    a task that has none."""
    if not isinstance(task, Classify | Label):
        return None
    scores, truth, several = _scores(task, answers), _truth(task, records), isinstance(task, Label) and task.several
    before, after = (
        calibration_error_interval(*confidences(scores, truth, temperature, several), seed=seed)
        for temperature in (1.0, found.temperature)
    )
    return Calibrated(found.temperature, found.examples, before, after, found.note)


def validation(task: Task, scorer: Scorer, records: Sequence[Record], listener: Listener) -> Validation | None:
    """The judge of a training of this task."""
    return exam_of(task).validation(scorer, records, listener)
