"""What a tuned model is worth on examples it has never seen, beside what it has to beat.

For classify: the untouched base (zero-shot, scored in the same way), a linear model on word counts, and the most
frequent label. For chat: the untouched base.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from heptune.core.errors import DataError
from heptune.core.events import Listener, ignore
from heptune.data.record import Message, Record
from heptune.scoring import baselines, statistics
from heptune.scoring.score import Scorer, normalised
from heptune.scoring.statistics import Interval
from heptune.tasks.chat import Chat
from heptune.tasks.classify import Classify
from heptune.tasks.example import Example


@dataclass(frozen=True)
class Row:
    """One contender and its metrics."""

    name: str
    metrics: dict[str, Interval]


@dataclass(frozen=True)
class Comparison:
    """Tuned minus base on the same examples, in `unit`, with the p-value of a paired test where there is one."""

    unit: str
    difference: Interval
    p_value: float | None


@dataclass(frozen=True)
class Shown:
    """One example as a person would look at it. `better` is None where there is no right answer."""

    text: str
    truth: str
    base: str
    tuned: str
    better: bool | None


@dataclass(frozen=True)
class Evaluation:
    """Scores on `examples` examples of `part`. The first row is the tuned model. `confusion` [truth, prediction]."""

    task: str
    part: str
    examples: int
    rows: tuple[Row, ...]
    comparison: Comparison
    shown: tuple[Shown, ...]
    labels: tuple[str, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    cut: int = 0

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)


def classification(
    task: Classify,
    part: str,
    records: Sequence[Record],
    train: Sequence[Record],
    base_log_p: np.ndarray,
    tuned_log_p: np.ndarray,
    seed: int,
) -> Evaluation:
    """The evaluation of a classifier from its label scores, [n, labels] each."""
    truth = [record.label or "" for record in records]
    texts = [record.text or "" for record in records]
    train_labels = [record.label or "" for record in train]
    predictions = {
        "tuned": [task.labels[i] for i in tuned_log_p.argmax(1)],
        "base, zero-shot": [task.labels[i] for i in base_log_p.argmax(1)],
        "TF-IDF + logistic regression": baselines.tfidf([r.text or "" for r in train], train_labels, texts),
        "most frequent label": baselines.majority(train_labels, len(records)),
    }
    rows = []
    for name, prediction in predictions.items():
        metrics = {
            "accuracy": statistics.accuracy([t == p for t, p in zip(truth, prediction, strict=True)]),
            "macro-F1": statistics.macro_f1_interval(truth, prediction, task.labels, seed=seed),
        }
        rows.append(Row(name, metrics))
    tuned, base = predictions["tuned"], predictions["base, zero-shot"]
    right_tuned = [t == p for t, p in zip(truth, tuned, strict=True)]
    right_base = [t == p for t, p in zip(truth, base, strict=True)]
    comparison = Comparison(
        "accuracy",
        statistics.paired_difference(right_tuned, right_base, seed=seed),
        statistics.mcnemar(right_tuned, right_base),
    )
    shown = _changed(texts, truth, base, tuned, np.exp(normalised(tuned_log_p)).max(1))
    matrix = statistics.confusion(truth, tuned, task.labels)
    table = tuple(tuple(int(count) for count in line) for line in matrix)
    return Evaluation(task.name, part, len(records), tuple(rows), comparison, shown, task.labels, table)


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


@dataclass(frozen=True)
class ChatScores:
    """Each example's summed loss (nats) and supervised tokens, [n] each."""

    losses: np.ndarray
    tokens: np.ndarray


def chat_scores(scorer: Scorer, examples: Sequence[Example], what: str, listener: Listener = ignore) -> ChatScores:
    """The loss of every example under the model as it is now."""
    return ChatScores(scorer.losses(examples, what, listener), np.array([example.targets for example in examples]))


def conversation(
    task: Chat,
    part: str,
    base: ChatScores,
    tuned: ChatScores,
    shown: tuple[Shown, ...],
    cut: int,
    seed: int,
) -> Evaluation:
    """The evaluation of a chat model from the losses of its examples."""

    def per_token(tuned_loss: Any, base_loss: Any, tokens: Any, axis: int = -1) -> Any:
        return (tuned_loss - base_loss).sum(axis) / tokens.sum(axis)

    rows = tuple(
        Row(name, {"perplexity": statistics.perplexity(scores.losses, scores.tokens, seed=seed)})
        for name, scores in (("tuned", tuned), ("base, untouched", base))
    )
    difference = statistics.bootstrap(per_token, tuned.losses, base.losses, tuned.tokens, seed=seed)
    comparison = Comparison("nats per supervised token", difference, None)
    return Evaluation(task.name, part, len(tuned.losses), rows, comparison, shown, cut=cut)


def last_questions(task: Chat, records: Sequence[Record], count: int) -> list[tuple[list[Message], str]]:
    """For some conversations: everything before the last reply, and that reply."""
    questions = []
    for record in records[:count]:
        last = max(i for i, message in enumerate(record.messages) if message.role == "assistant")
        questions.append((task.messages(record.messages[:last]), record.messages[last].content))
    return [(before, reply) for before, reply in questions if before]


def replies_shown(
    questions: Sequence[tuple[list[Message], str]], base: Sequence[str], answer: Callable[[list[Message]], str]
) -> tuple[Shown, ...]:
    """The questions with the base's replies and those of the model as it is now."""
    return tuple(
        Shown(before[-1].content, reply, was, answer(before), None)
        for (before, reply), was in zip(questions, base, strict=True)
    )


def require_examples(records: Sequence[Record], part: str) -> None:
    """Raises DataError where there is nothing to evaluate on."""
    if not records:
        raise DataError(f"{part} has no examples; name a file: `heptune eval RUN DATA`")
