"""How chat is judged: the loss of the replies that were really given, and some of the model's own to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from heptune.core.errors import BaseModelError, DataError
from heptune.core.events import Listener
from heptune.data.record import Message, Record
from heptune.engine.loop import Validation
from heptune.scoring import statistics
from heptune.scoring.evaluation import Comparison, Evaluation, Row, Shown
from heptune.scoring.generate import Sampling, reply
from heptune.scoring.score import Scorer
from heptune.tasks.chat import Chat

# Conversations that are shown, and how long a reply may be there.
SHOWN, SHOWN_TOKENS = 3, 96


@dataclass(frozen=True)
class ChatAnswers:
    """Each example's summed loss (nats) and supervised tokens, [n] each; the model's replies to the last question of
    some conversations; and how many examples were cut."""

    losses: np.ndarray
    tokens: np.ndarray
    replies: tuple[str, ...]
    cut: int


@dataclass(frozen=True)
class ChatExam:
    """See `scoring.exams.Exam`."""

    task: Chat

    def check(self, records: Sequence[Record], path: Any) -> None:
        """Every conversation can be judged."""

    def validation(self, scorer: Scorer, records: Sequence[Record], listener: Listener) -> Validation | None:
        """The loss per supervised token."""
        examples = scorer.examples(self.task, records)
        tokens = sum(example.targets for example in examples)

        def score() -> dict[str, float]:
            return {"loss": float(scorer.losses(examples, "validating", listener).sum() / tokens)}

        return Validation(score, self.task.metric, self.task.higher_is_better) if tokens else None

    def answers(self, scorer: Scorer, records: Sequence[Record], what: str, listener: Listener) -> ChatAnswers:
        """The losses, and some replies."""
        examples = scorer.examples(self.task, records)
        if not examples:
            raise DataError(f"no reply fits into {scorer.max_length} tokens; nothing can be scored")
        losses = scorer.losses(examples, what, listener)
        tokens = np.array([example.targets for example in examples])
        replies = tuple(_answer(scorer, question) for question in _last_questions(self.task, records, SHOWN))
        return ChatAnswers(losses, tokens, replies, sum(example.cut > 0 for example in examples))

    def evaluation(
        self,
        part: str,
        records: Sequence[Record],
        train: Sequence[Record],
        base: ChatAnswers,
        tuned: ChatAnswers,
        seed: int,
    ) -> Evaluation:
        """Perplexity of both, and their difference in nats per supervised token."""

        def per_token(tuned_loss: Any, base_loss: Any, tokens: Any, axis: int = -1) -> Any:
            return (tuned_loss - base_loss).sum(axis) / tokens.sum(axis)

        rows = tuple(
            Row(name, {"perplexity": statistics.perplexity(scores.losses, scores.tokens, seed=seed)})
            for name, scores in (("tuned", tuned), ("base, untouched", base))
        )
        difference = statistics.bootstrap(per_token, tuned.losses, base.losses, tuned.tokens, seed=seed)
        comparison = Comparison("nats per supervised token", difference, None)
        questions = _last_questions(self.task, records, SHOWN)
        shown = tuple(
            Shown(question.before[-1].said, question.reply, was, now, None)
            for question, was, now in zip(questions, base.replies, tuned.replies, strict=True)
        )
        return Evaluation(self.task.name, part, len(tuned.losses), rows, comparison, shown, cut=tuned.cut)

    def outcomes(self, scorer: Scorer, records: Sequence[Record], what: str, listener: Listener) -> dict[str, Any]:
        """`log_p` of all supervised tokens and their number, `weights`."""
        return of_losses(self.task, scorer, records, what, listener)


def of_losses(task: Any, scorer: Scorer, records: Sequence[Record], what: str, listener: Listener) -> dict[str, Any]:
    """The outcomes from the losses of what is supervised."""
    examples = scorer.examples(task, records)
    losses = scorer.losses(examples, what, listener)
    return {"log_p": (-losses).tolist(), "weights": [example.targets for example in examples]}


class _Question(NamedTuple):
    """Everything before the last reply of a conversation, the tools in it, and that reply."""

    before: list[Message]
    tools: str
    reply: str


def _answer(scorer: Scorer, question: _Question) -> str:
    sampling = Sampling(max_tokens=SHOWN_TOKENS)
    try:
        return reply(scorer.forward.anatomy, scorer.template, question.before, sampling, tools=question.tools)
    except BaseModelError as error:  # too long a conversation: the scores are worth showing all the same
        return f"({error})"


def _last_questions(task: Chat, records: Sequence[Record], count: int) -> list[_Question]:
    """The last questions of some conversations."""
    questions = []
    for record in records[:count]:
        last = max(i for i, message in enumerate(record.messages) if message.role == "assistant")
        before = task.messages(record.messages[:last])
        questions.append(_Question(before, record.tools, record.messages[last].said))
    return [question for question in questions if question.before]
