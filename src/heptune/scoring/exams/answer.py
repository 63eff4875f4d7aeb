"""How answer is judged: the loss of the accepted answers while it trains; at the end the model's own answers.

They are compared with the accepted ones by exact match and token F1 (`scoring/squad.py`), beside the untouched base's,
asked in the same way, and what needs no model: the passage's sentence that is most like the question, the answer of the
most similar training question, and the most frequent answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from heptune.core.events import Listener
from heptune.data.record import Record
from heptune.engine.loop import Validation
from heptune.scoring import baselines, squad, statistics
from heptune.scoring.evaluation import Comparison, Evaluation, Row, Shown
from heptune.scoring.exams.chat import of_losses
from heptune.scoring.generate import replies
from heptune.scoring.score import Scorer
from heptune.tasks.answer import ANSWER_TOKENS, UNANSWERABLE, Answer

# Examples that are shown.
SHOWN = 3


@dataclass(frozen=True)
class Answers:
    """What was said to each record, '' where the model says that there is no answer; how many questions were cut, and
    how many of these lost every accepted answer with the end of their passage."""

    said: tuple[str, ...]
    cut: int
    lost: int


@dataclass(frozen=True)
class AnswerExam:
    """See `scoring.exams.Exam`."""

    task: Answer

    def check(self, records: Sequence[Record], path: Any) -> None:
        """Every question can be judged."""

    def validation(self, scorer: Scorer, records: Sequence[Record], listener: Listener) -> Validation | None:
        """The loss per supervised token."""
        examples = scorer.examples(self.task, records)
        tokens = sum(example.targets for example in examples)

        def score() -> dict[str, float]:
            return {"loss": float(scorer.losses(examples, "validating", listener).sum() / tokens)}

        return Validation(score, self.task.metric, self.task.higher_is_better) if tokens else None

    def answers(self, scorer: Scorer, records: Sequence[Record], what: str, listener: Listener) -> Answers:
        """The likeliest answers."""
        asked = [self.task.asked(record, scorer.template, scorer.max_length) for record in records]
        questions = [each.messages for each in asked]
        said = replies(scorer.forward, scorer.template, questions, ANSWER_TOKENS, what, listener)
        lost = sum(_lost(record, each.passage) for record, each in zip(records, asked, strict=True))
        return Answers(tuple(map(meant, said)), sum(each.cut > 0 for each in asked), lost)

    def evaluation(
        self,
        part: str,
        records: Sequence[Record],
        train: Sequence[Record],
        base: Answers,
        tuned: Answers,
        seed: int,
    ) -> Evaluation:
        """F1 and exact match of all contenders, and the difference to the base in F1."""
        accepted = [tuple(map(meant, record.answers)) for record in records]
        said = {"tuned": tuned.said, "base, untouched": base.said, **_without_model(train, records)}
        f1 = {
            name: [squad.token_f1(text, known) for text, known in zip(texts, accepted, strict=True)]
            for name, texts in said.items()
        }
        rows = []
        for name, texts in said.items():
            exact = [squad.exact_match(text, known) for text, known in zip(texts, accepted, strict=True)]
            metrics = {
                "F1": statistics.bootstrap(np.mean, np.array(f1[name]), seed=seed),
                "exact match": statistics.accuracy(exact),
            }
            rows.append(Row(name, metrics))
        gains = np.array(f1["tuned"]) - np.array(f1["base, untouched"])
        comparison = Comparison("F1", statistics.bootstrap(np.mean, gains, seed=seed), None)
        shown = tuple(_shown(records[i], accepted[i], base.said[i], tuned.said[i]) for i in _changed(gains))
        return Evaluation(
            self.task.name, part, len(records), tuple(rows), comparison, shown, cut=tuned.cut, lost=tuned.lost
        )

    def outcomes(self, scorer: Scorer, records: Sequence[Record], what: str, listener: Listener) -> dict[str, Any]:
        """`log_p` of the first accepted answer with its end of turn, and its number of tokens, `weights`."""
        return of_losses(self.task, scorer, records, what, listener)


def meant(text: str) -> str:
    """An answer as it is meant: '' for the word that says that there is none, in whatever case and punctuation."""
    return "" if squad.normalised(text) == UNANSWERABLE else text.strip()


def sentences(text: str) -> list[str]:
    """A text cut behind full stops, question and exclamation marks, and at line breaks."""
    return [part for part in re.split(r"(?<=[.!?])\s+|\n+", text) if part.strip()]


def _without_model(train: Sequence[Record], records: Sequence[Record]) -> dict[str, Sequence[str]]:
    """What is said without any model."""
    questions, known = [record.text or "" for record in records], [meant(record.answers[0]) for record in train]
    found: dict[str, Sequence[str]] = {}
    if any(record.passage for record in records):
        cut = [sentences(record.passage) or [""] for record in records]
        chosen = baselines.most_similar(questions, cut)
        found["most similar sentence"] = [parts[i] for parts, i in zip(cut, chosen, strict=True)]
    frequent = baselines.majority(known, len(records))
    places = baselines.nearest_places([record.text or "" for record in train], questions)
    found["most similar training question"] = [
        other if place is None else known[place] for place, other in zip(places, frequent, strict=True)
    ]
    found["most frequent answer"] = frequent
    return found


def _lost(record: Record, kept: str) -> bool:
    """Whether the passage held an accepted answer, and what was kept of it holds none."""

    def held(passage: str) -> bool:
        return any(answer and answer.casefold() in passage.casefold() for answer in record.answers)

    return held(record.passage) and not held(kept)


def _changed(gains: np.ndarray) -> list[int]:
    """Records whose score the tuning changed: the largest gains, and one loss where there is one."""
    order = np.argsort(-gains, kind="stable")
    better, worse = [int(i) for i in order if gains[i] > 0], [int(i) for i in order[::-1] if gains[i] < 0]
    return (better[: SHOWN - 1] + worse[:1] + better[SHOWN - 1 :])[:SHOWN]


def _shown(record: Record, accepted: Sequence[str], base: str, tuned: str) -> Shown:
    """A record with its passage; the tuned answer is right, wrong, or in part right (None)."""
    text = f"{record.text} ({record.passage})" if record.passage else record.text or ""
    score, exact = squad.token_f1(tuned, accepted), squad.exact_match(tuned, accepted)
    better = True if exact else None if score else False
    truth, before, now = (answer or f"({UNANSWERABLE})" for answer in (accepted[0], base, tuned))
    return Shown(text, truth, before, now, better)
