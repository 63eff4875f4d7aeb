"""How label is judged, with one label or with several, beside what has to be beaten.

The rivals: the untouched base with a logistic regression on the very hidden states that the linear head looks at (a
linear probe), one on word counts, and the most frequent labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from heptune.core.errors import DataError
from heptune.core.events import Listener
from heptune.data.check import check_labels
from heptune.data.record import Record
from heptune.data.splits import sample
from heptune.engine.loop import Validation
from heptune.scoring import baselines, statistics
from heptune.scoring.evaluation import Comparison, Evaluation, Row
from heptune.scoring.exams.classify import changed, of_log_p
from heptune.scoring.score import Scorer, normalised
from heptune.tasks.label import Label, labels_of

# What stands in for an untouched base, which has no head that could answer.
PROBE = "a linear probe on the untouched base"
# Training texts that the linear probe learns from.
PROBED = 2000


@dataclass(frozen=True)
class LabelExam:
    """See `scoring.exams.Exam`. The answers are the probabilities' logarithms, [n, labels]: of one label among all, or
    of each by itself."""

    task: Label

    def check(self, records: Sequence[Record], path: str | Path | None) -> None:
        """Raises DataError for labels that training has never seen, and for several labels where it had one each."""
        for record in records:
            if record.labels is not None and not self.task.several:
                raise DataError(
                    "this example has several labels, but training had one for each text; give the label as a string",
                    path=path,
                    line=record.line,
                )
        check_labels(self.task.labels, records, path)

    def validation(self, scorer: Scorer, records: Sequence[Record], listener: Listener) -> Validation | None:
        """Accuracy (of several labels: all of them right) and the mean loss."""
        truth = self.truth(records)

        def score() -> dict[str, float]:
            log_p = label_log_p(self.task, scorer, records, "validating", listener)
            right = (self._said(log_p) == truth).all(1)
            return {"accuracy": float(right.mean()), "loss": float(-self._log_p_of(truth, log_p).mean())}

        return Validation(score, self.task.metric, self.task.higher_is_better) if len(records) else None

    def answers(self, scorer: Scorer, records: Sequence[Record], what: str, listener: Listener) -> np.ndarray:
        """Log p of every label under the model as it is now."""
        return label_log_p(self.task, scorer, records, what, listener)

    def untouched(
        self, scorer: Scorer, records: Sequence[Record], train: Sequence[Record], listener: Listener
    ) -> np.ndarray:
        """What a linear probe on the base's hidden states says: bool [n, labels]."""
        known = [train[i] for i in sample(train, range(len(train)), PROBED, 0)]
        states = [
            np.stack([part[0] for part in scorer.features(self._examples(scorer, part_of), what, listener)])
            for part_of, what in ((known, "reading training texts with the base"), (records, "reading with the base"))
        ]
        return baselines.linear(states[0], self.truth(known), states[1], several=self.task.several)

    def evaluation(
        self,
        part: str,
        records: Sequence[Record],
        train: Sequence[Record],
        base: np.ndarray,
        tuned: np.ndarray,
        seed: int,
    ) -> Evaluation:
        """Accuracy and macro-F1 of all contenders (with several labels micro-F1 as well), the paired difference to the
        linear probe, and, with one label, the confusion matrix."""
        truth, texts = self.truth(records), [record.text or "" for record in records]
        train_texts, train_truth = [record.text or "" for record in train], self.truth(train)
        said = {
            "tuned": self._said(tuned),
            "base, linear probe": base,
            "TF-IDF + logistic regression": baselines.tfidf_linear(
                train_texts, train_truth, texts, several=self.task.several
            ),
            self.frequent_name: np.repeat(self.most_frequent(train)[None], len(records), axis=0),
        }
        rows = tuple(Row(name, self._metrics(truth, answers, seed)) for name, answers in said.items())
        right = {name: (answers == truth).all(1) for name, answers in said.items()}
        ours, theirs = right["tuned"], right["base, linear probe"]
        comparison = Comparison(
            "accuracy",
            statistics.paired_difference(ours, theirs, seed=seed),
            statistics.mcnemar(ours, theirs),
            PROBE,
        )
        right_words, before, now = (
            list(map(self._named, answers)) for answers in (truth, said["base, linear probe"], said["tuned"])
        )
        shown = changed(texts, right_words, before, now, np.exp(tuned).max(1))
        table: tuple[tuple[int, ...], ...] = ()
        if not self.task.several:
            matrix = statistics.confusion(right_words, now, self.task.labels)
            table = tuple(tuple(int(count) for count in line) for line in matrix)
        return Evaluation(self.task.name, part, len(records), rows, comparison, shown, self.task.labels, table)

    def outcomes(self, scorer: Scorer, records: Sequence[Record], what: str, listener: Listener) -> dict[str, Any]:
        """`correct` 0 or 1, `log_p` of the truth; with one label also the `chosen` label's number."""
        log_p, truth = label_log_p(self.task, scorer, records, what, listener), self.truth(records)
        if not self.task.several:
            return of_log_p(log_p, truth.argmax(1))
        correct = (self._said(log_p) == truth).all(1)
        return {"correct": correct.astype(int).tolist(), "log_p": self._log_p_of(truth, log_p).tolist()}

    def _examples(self, scorer: Scorer, records: Sequence[Record]) -> list[Any]:
        return [e for i, r in enumerate(records) for e in self.task.scored(r, i, scorer.template, scorer.max_length)]

    def truth(self, records: Sequence[Record]) -> np.ndarray:
        """Which labels each record has, bool [n, labels]."""
        number = {label: n for n, label in enumerate(self.task.labels)}
        truth = np.zeros((len(records), len(number)), dtype=bool)
        for row, record in enumerate(records):
            truth[row, [number[label] for label in labels_of(record)]] = True
        return truth

    def _said(self, log_p: np.ndarray) -> np.ndarray:
        if self.task.several:
            return log_p > np.log(0.5)
        return np.eye(log_p.shape[1], dtype=bool)[log_p.argmax(1)]

    def _log_p_of(self, truth: np.ndarray, log_p: np.ndarray) -> np.ndarray:
        """Log p of what is true, [n]; of several labels that each is there, or is not."""
        if not self.task.several:
            return log_p[truth]
        absent = np.log1p(-np.exp(np.minimum(log_p, -1e-12)))
        return np.asarray(np.where(truth, log_p, absent).mean(1))

    @property
    def frequent_name(self) -> str:
        """What the rival that always says the same is called."""
        return "labels that most texts have" if self.task.several else "most frequent label"

    def most_frequent(self, train: Sequence[Record]) -> np.ndarray:
        """What that rival says: bool [labels]."""
        return baselines.most_common(self.truth(train), self.task.several)

    def _metrics(self, truth: np.ndarray, said: np.ndarray, seed: int) -> dict[str, statistics.Interval]:
        found = {"accuracy": statistics.accuracy((truth == said).all(1))}
        if self.task.several:
            found["micro-F1"] = statistics.f1_interval(truth, said, "micro", seed=seed)
        return {**found, "macro-F1": statistics.f1_interval(truth, said, "macro", seed=seed)}

    def _named(self, row: np.ndarray) -> str:
        return ", ".join(label for label, there in zip(self.task.labels, row, strict=True) if there) or "none"


def label_log_p(task: Label, scorer: Scorer, records: Sequence[Record], what: str, listener: Listener) -> np.ndarray:
    """Log p of every label of every text, [n, labels]: among all labels, or (several) of each by itself."""
    examples = [e for i, r in enumerate(records) for e in task.scored(r, i, scorer.template, scorer.max_length)]
    logits = np.stack([part[0] for part in scorer.seen(examples, what, listener)])
    return -np.logaddexp(0.0, -logits) if task.several else normalised(logits)
