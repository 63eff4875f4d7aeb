"""How choose is judged: the likeliest of a question's options, beside what has to be beaten.

The untouched base (zero-shot, scored in the same way, and once more with its scores divided by the options' lengths),
the option that is most like passage and question, the longest one, and the most frequent position.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from heptune.core.events import Listener
from heptune.data.record import Record
from heptune.engine.loop import Validation
from heptune.scoring import baselines, statistics
from heptune.scoring.evaluation import Comparison, Evaluation, Row, Shown
from heptune.scoring.score import Scorer, normalised
from heptune.tasks.choose import Choose, right

# Examples that are shown.
SHOWN = 3


@dataclass(frozen=True)
class Choices:
    """log p(option and end of turn | question) of each record's options, one array [options] each; and how many
    questions were cut."""

    scores: tuple[np.ndarray, ...]
    cut: int

    @property
    def chosen(self) -> list[int]:
        """The places of the likeliest options."""
        return [int(row.argmax()) for row in self.scores]


@dataclass(frozen=True)
class ChooseExam:
    """See `scoring.exams.Exam`."""

    task: Choose

    def check(self, records: Sequence[Record], path: Any) -> None:
        """Every question can be judged."""

    def validation(self, scorer: Scorer, records: Sequence[Record], listener: Listener) -> Validation | None:
        """Accuracy, and the mean of -log p(right option) among the options."""
        truth = [right(record) for record in records]

        def score() -> dict[str, float]:
            found = self.answers(scorer, records, "validating", listener)
            hits = [a == b for a, b in zip(found.chosen, truth, strict=True)]
            return {"accuracy": float(np.mean(hits)), "loss": float(-np.mean(_log_p(found, truth)))}

        return Validation(score, self.task.metric, self.task.higher_is_better) if records else None

    def answers(self, scorer: Scorer, records: Sequence[Record], what: str, listener: Listener) -> Choices:
        """Every option's score. The question is computed once, all its options below it."""
        candidates = [
            self.task.candidates(record, i, scorer.template, scorer.max_length) for i, record in enumerate(records)
        ]
        flat = [candidate for each in candidates for candidate in each]
        scores = -scorer.losses(flat, what, listener, "options")
        ends = np.cumsum([len(each) for each in candidates])[:-1]
        return Choices(tuple(np.split(scores, ends)), sum(each[0].cut > 0 for each in candidates))

    def evaluation(
        self,
        part: str,
        records: Sequence[Record],
        train: Sequence[Record],
        base: Choices,
        tuned: Choices,
        seed: int,
    ) -> Evaluation:
        """Accuracy of all contenders, and McNemar's test against the base."""
        truth = [right(record) for record in records]
        per_character = [_per_character(row, r.options) for row, r in zip(base.scores, records, strict=True)]
        chosen = {
            "tuned": tuned.chosen,
            "base, zero-shot": base.chosen,
            "base, zero-shot, per character": [int(row.argmax()) for row in per_character],
            **{name: choose() for name, choose in without_model(train, records).items()},
        }
        hits = {name: [a == b for a, b in zip(places, truth, strict=True)] for name, places in chosen.items()}
        rows = tuple(Row(name, {"accuracy": statistics.accuracy(right)}) for name, right in hits.items())
        before, now = hits["base, zero-shot"], hits["tuned"]
        comparison = Comparison(
            "accuracy", statistics.paired_difference(now, before, seed=seed), statistics.mcnemar(now, before)
        )
        sure = [float(np.exp(normalised(row[None])).max()) for row in tuned.scores]
        shown = tuple(
            Shown(_text(r), r.answers[0], r.options[base.chosen[i]], r.options[tuned.chosen[i]], now[i])
            for i, r in ((i, records[i]) for i in _changed(before, now, sure))
        )
        return Evaluation(self.task.name, part, len(records), rows, comparison, shown, cut=tuned.cut)

    def outcomes(self, scorer: Scorer, records: Sequence[Record], what: str, listener: Listener) -> dict[str, Any]:
        """`correct` 0 or 1, `log_p` of the right option among the options."""
        truth = [right(record) for record in records]
        found = self.answers(scorer, records, what, listener)
        correct = [int(a == b) for a, b in zip(found.chosen, truth, strict=True)]
        return {"correct": correct, "log_p": _log_p(found, truth)}


def without_model(train: Sequence[Record], records: Sequence[Record]) -> dict[str, Callable[[], list[int]]]:
    """What chooses without any model: by name, what gives the place of an option for each of the records."""
    return {
        "option most like the question (TF-IDF)": lambda: baselines.most_similar(
            [_text(record) for record in records], [record.options for record in records]
        ),
        "longest option": lambda: [int(np.argmax([len(option) for option in r.options])) for r in records],
        "most frequent position": lambda: _frequent(train, records),
    }


def _frequent(train: Sequence[Record], records: Sequence[Record]) -> list[int]:
    """For each record the position, among those that it has, where the right option stood most often in training; of
    equally frequent ones the first."""
    count = Counter(map(right, train))
    return [max(range(len(record.options)), key=lambda place: count[place]) for record in records]


def _log_p(found: Choices, truth: Sequence[int]) -> list[float]:
    """Log p of the right option among the options."""
    return [float(normalised(row[None])[0, place]) for row, place in zip(found.scores, truth, strict=True)]


def _per_character(scores: np.ndarray, options: Sequence[str]) -> np.ndarray:
    """The scores divided by the options' lengths, as `acc_norm` of lm-evaluation-harness (Gao et al. 2021)."""
    return scores / np.array([max(1, len(option)) for option in options])


def _changed(before: Sequence[bool], now: Sequence[bool], sure: Sequence[float]) -> list[int]:
    """Records that the tuning put right, the surest first, and one that it put wrong where there is one."""
    order = sorted(range(len(now)), key=lambda i: -sure[i])
    better, worse = [i for i in order if now[i] > before[i]], [i for i in order if now[i] < before[i]]
    return (better[: SHOWN - 1] + worse[:1] + better[SHOWN - 1 :])[:SHOWN]


def _text(record: Record) -> str:
    return f"{record.passage}\n{record.text}" if record.passage else record.text or ""
