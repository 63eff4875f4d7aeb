"""A served model asked by a program that waits for the answer: no server, no other thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from heptune import tasks
from heptune.core.errors import BaseModelError
from heptune.core.seeds import derive
from heptune.data.record import Message, Record
from heptune.scoring.calibration import Calibration
from heptune.scoring.exams.answer import meant
from heptune.scoring.exams.extract import ANSWER_TOKENS as ENTITY_TOKENS
from heptune.scoring.exams.extract import guided
from heptune.scoring.generate import Sampling, Walk, room
from heptune.scoring.grammar import Vocabulary
from heptune.service.choice import Choice
from heptune.service.engine import Engine
from heptune.service.fleet import Served
from heptune.service.reply import FAILED, End, Piece, Reply
from heptune.service.text import Growing
from heptune.tasks.answer import ANSWER_TOKENS, Answer
from heptune.tasks.extract import Entity, Extract, entities, read
from heptune.tuning.use import Tuned

OnText = Callable[[str], None]


@dataclass(frozen=True)
class Speaker:
    """What `heptune.open_run` gives, on a base that others share."""

    served: Served

    @property
    def task(self) -> tasks.Task | None:
        """What it learned; None for a base."""
        return self.served.task

    @property
    def calibration(self) -> Calibration:
        """That of its probabilities."""
        return self.served.calibration

    def begin(self, tokens: Sequence[int], sampling: Sampling, on_text: OnText, walk: Walk | None = None) -> Reply:
        """A reply on its way; `on_text` receives it as it grows. Raises `BaseModelError` where no position is left."""
        served = self.served
        taken = served.rows.positions + served.rows.inner
        limit = min(sampling.max_tokens, room(served.engine.anatomy.shape, taken, tokens))
        seed = derive(sampling.seed, "reply", *tokens)
        choice = Choice(sampling.temperature, sampling.top_p, seed)
        failed: list[str] = []

        def hear(said: Piece | End) -> None:
            if isinstance(said, Piece):
                on_text(said.text)
            elif said.reason == FAILED:
                failed.append(said.error)
            if failed:
                raise BaseModelError(f"the reply could not be made: {failed[0]}")

        ends, text = frozenset(served.template.stop_tokens), Growing(served.template.tokenizer)
        reply = Reply(served, served.rows, list(tokens), limit, choice, ends, text, hear, walk)
        served.engine.submit(reply)
        return reply

    def reply(self, messages: Sequence[Message], sampling: Sampling, on_text: OnText) -> str:
        """The reply to a conversation."""
        return finished([self.begin(self.served.chat_tokens(messages), sampling, on_text)])[0]

    def complete(self, text: str, sampling: Sampling, on_text: OnText) -> str:
        """How a text goes on."""
        return finished([self.begin(self.served.text_tokens(text), sampling, on_text)])[0]

    def answer(self, question: str, passage: str = "") -> str:
        """The answer to a question; '' where the model says that there is none."""
        task, served = self.task, self.served
        assert isinstance(task, Answer)
        asked = task.asked(Record(1, text=question, passage=passage), served.template, served.scorer.max_length)
        return meant(self.reply(asked.messages, Sampling(max_tokens=ANSWER_TOKENS), _nobody))

    def extract(self, text: str) -> list[Entity]:
        """The entities of a text."""
        task, served = self.task, self.served
        if not isinstance(task, Extract):
            found: list[Entity] = self._alone(lambda tuned: tuned.extract(text))
            return found
        left, guide = guided(task, served.engine.anatomy, served.template, served.scorer.max_length, text)
        tokens = served.chat_tokens(task.messages(left))
        taken = served.rows.positions + served.rows.inner
        limit = min(ENTITY_TOKENS, room(served.engine.anatomy.shape, taken, tokens))
        reply = self.begin(tokens, Sampling(max_tokens=limit), _nobody, Walk(guide, limit))
        finished([reply])
        return entities(left, read(left, Vocabulary.of(served.template.tokenizer).text(reply.said)))

    def classify(self, text: str) -> dict[str, float]:
        """The probability of each label, likeliest first."""
        found: dict[str, float] = self._alone(lambda tuned: tuned.classify(text))
        return found

    def choose(self, question: str, options: Sequence[str], passage: str = "") -> dict[str, float]:
        """The probability of each option, likeliest first."""
        found: dict[str, float] = self._alone(lambda tuned: tuned.choose(question, options, passage))
        return found

    def _alone(self, work: Callable[[Tuned], Any]) -> Any:
        served = self.served
        assert served.run is not None and served.task is not None
        anatomy = served.engine.anatomy
        tuned = Tuned(served.run, served.task, anatomy, served.template, served.scorer, served.calibration)
        future = served.alone(lambda: work(tuned))
        served.engine.turn()
        return future.result()


def finished(replies: Sequence[Reply]) -> list[str]:
    """The texts of replies, all of which are made at the same time. Broken off (Ctrl-C), none of them goes on."""
    engines: list[Engine] = list(dict.fromkeys(reply.model.engine for reply in replies))
    try:
        while any(engine.busy for engine in engines):
            for engine in engines:
                engine.turn()
    except BaseException:
        for reply in replies:
            reply.cancelled = True
            reply.hear = _nothing
        for engine in engines:
            engine.step()
        raise
    return [reply.text.text for reply in replies]


def _nobody(text: str) -> None:
    pass


def _nothing(said: Piece | End) -> None:
    pass
