"""How classify is judged: the likeliest of the known labels, beside what has to be beaten.

The untouched base (zero-shot, scored in the same way), a linear model on word counts, and the most frequent label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from heptune.core.events import Listener
from heptune.data.check import check_labels
from heptune.data.record import Record
from heptune.engine.loop import Validation
from heptune.scoring import baselines, statistics
from heptune.scoring.evaluation import Comparison, Evaluation, Row, Shown
from heptune.scoring.score import Scorer, normalised
from heptune.tasks.classify import Classify


@dataclass(frozen=True)
class ClassifyExam:
    """See `scoring.exams.Exam`. The answers are every label's score, [n, labels]."""

    task: Classify

    def check(self, records: Sequence[Record], path: str | Path | None) -> None:
        """Raises DataError for labels that training has never seen."""
        check_labels(self.task.labels, records, path)

    def validation(self, scorer: Scorer, records: Sequence[Record], listener: Listener) -> Validation | None:
        """Accuracy, and the mean of -log p(true label) among the known labels."""
        truth = self.truth(records)

        def score() -> dict[str, float]:
            log_p = normalised(scorer.labels(self.task, records, "validating", listener))
            right = log_p.argmax(1) == truth
            return {"accuracy": float(right.mean()), "loss": float(-log_p[np.arange(len(truth)), truth].mean())}

        return Validation(score, self.task.metric, self.task.higher_is_better) if records else None

    def truth(self, records: Sequence[Record]) -> np.ndarray:
        """The number of each record's label, [n]."""
        return np.array([self.task.labels.index(record.label or "") for record in records], dtype=int)

    def answers(self, scorer: Scorer, records: Sequence[Record], what: str, listener: Listener) -> np.ndarray:
        """Every label's score under the model as it is now."""
        return scorer.labels(self.task, records, what, listener)

    def evaluation(
        self,
        part: str,
        records: Sequence[Record],
        train: Sequence[Record],
        base: np.ndarray,
        tuned: np.ndarray,
        seed: int,
    ) -> Evaluation:
        """Accuracy and macro-F1 of all contenders, McNemar's test against the base, and the confusion matrix."""
        truth = [record.label or "" for record in records]
        texts = [record.text or "" for record in records]
        train_labels = [record.label or "" for record in train]
        predictions = {
            "tuned": [self.task.labels[i] for i in tuned.argmax(1)],
            "base, zero-shot": [self.task.labels[i] for i in base.argmax(1)],
            "TF-IDF + logistic regression": baselines.tfidf([r.text or "" for r in train], train_labels, texts),
            "most frequent label": baselines.majority(train_labels, len(records)),
        }
        rows = []
        for name, prediction in predictions.items():
            metrics = {
                "accuracy": statistics.accuracy([t == p for t, p in zip(truth, prediction, strict=True)]),
                "macro-F1": statistics.macro_f1_interval(truth, prediction, self.task.labels, seed=seed),
            }
            rows.append(Row(name, metrics))
        said, said_before = predictions["tuned"], predictions["base, zero-shot"]
        right_tuned = [t == p for t, p in zip(truth, said, strict=True)]
        right_base = [t == p for t, p in zip(truth, said_before, strict=True)]
        comparison = Comparison(
            "accuracy",
            statistics.paired_difference(right_tuned, right_base, seed=seed),
            statistics.mcnemar(right_tuned, right_base),
        )
        shown = _changed(texts, truth, said_before, said, np.exp(normalised(tuned)).max(1))
        matrix = statistics.confusion(truth, said, self.task.labels)
        table = tuple(tuple(int(count) for count in line) for line in matrix)
        return Evaluation(self.task.name, part, len(records), tuple(rows), comparison, shown, self.task.labels, table)

    def outcomes(self, scorer: Scorer, records: Sequence[Record], what: str, listener: Listener) -> dict[str, Any]:
        """`chosen` label numbers, `correct` 0 or 1, `log_p` of the true label."""
        return of_labels(self.task, scorer.labels(self.task, records, what, listener), records)


def of_labels(task: Classify, scores: np.ndarray, records: Sequence[Record]) -> dict[str, Any]:
    """The outcomes from every label's score, [n, labels]."""
    log_p = normalised(scores)
    truth = np.array([task.labels.index(record.label or "") for record in records])
    chosen = log_p.argmax(1)
    return {
        "chosen": chosen.tolist(),
        "correct": (chosen == truth).astype(int).tolist(),
        "log_p": log_p[np.arange(len(truth)), truth].tolist(),
    }


def _changed(
    texts: list[str], truth: list[str], base: list[str], tuned: list[str], confidence: np.ndarray, count: int = 3
) -> tuple[Shown, ...]:
    """Examples on which tuned and base differ: the surest ones that the tuning put right, and one that it put wrong."""
    differ = [i for i in range(len(texts)) if base[i] != tuned[i]]
    differ.sort(key=lambda i: -confidence[i])
    right = [i for i in differ if tuned[i] == truth[i]]
    wrong = [i for i in differ if base[i] == truth[i]]
    chosen = (right[: count - 1] + wrong[:1] + right[count - 1 :])[:count]
    return tuple(Shown(texts[i], truth[i], base[i], tuned[i], tuned[i] == truth[i]) for i in chosen)
