"""A finished run, loaded again: its base as it was, and the artifact on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from heptune import tasks, techniques
from heptune.core.errors import RunError, UsageError
from heptune.core.events import Listener, ignore
from heptune.data.calls import tools_of
from heptune.data.record import Message, Record
from heptune.engine.forward import Forward
from heptune.engine.settings import Settings
from heptune.models.anatomy import Anatomy, dissect
from heptune.runs.run import Run
from heptune.scoring.calibration import UNCALIBRATED, Calibration, log_probabilities
from heptune.scoring.exams.answer import meant
from heptune.scoring.exams.choose import ChooseExam
from heptune.scoring.exams.extract import extracted
from heptune.scoring.exams.tag import tagged
from heptune.scoring.generate import Sampling, continuation, reply
from heptune.scoring.score import Scorer, normalised
from heptune.tasks.answer import ANSWER_TOKENS, Answer
from heptune.tasks.chat import Chat
from heptune.tasks.choose import Choose
from heptune.tasks.classify import Classify
from heptune.tasks.complete import Complete
from heptune.tasks.extract import Entity, Extract, entities
from heptune.tasks.label import Label
from heptune.tasks.tag import Tag
from heptune.tasks.template import ChatTemplate
from heptune.tuning import base as bases
from heptune.tuning import rounds
from heptune.tuning.training import SCORING_ROWS

# How a run that learned a task is asked.
_METHODS = {
    **{name: name for name in ("classify", "extract", "answer", "choose", "complete")},
    "chat": "reply",
    "label": "classify",
    "tag": "extract",
}


@dataclass(frozen=True)
class Bare:
    """A run's base before its artifact and the rounds `beneath` it are on it, and what is needed to score it."""

    run: Run
    beneath: tuple[rounds.Layer, ...]
    anatomy: Anatomy
    template: ChatTemplate
    scorer: Scorer

    @classmethod
    def of(cls, run: Run, listener: Listener) -> Bare:
        """Loads the base that the run began with. Raises `RunError` where an earlier round is gone or changed."""
        technique = techniques.get(run.manifest["technique"]["name"])
        beneath = tuple(rounds.beneath(run))
        base = bases.load_again(run, technique, listener, [layer.technique for layer in beneath])
        settings = Settings(**run.manifest["settings"])
        anatomy = dissect(base.model)
        template = bases.template_of(base, run.manifest["template"])
        scorer = Scorer(Forward(anatomy, listener=listener), template, settings.max_length, SCORING_ROWS)
        return cls(run, beneath, anatomy, template, scorer)

    def restore(self, artifact: Path, listener: Listener) -> None:
        """Puts the artifact onto the base, with the rounds beneath it, and the head of a task that has one."""
        rounds.restore(self.run, self.beneath, self.anatomy, artifact, listener)
        self.scorer.forward.readout = rounds.head_of(self.run, self.anatomy, artifact)


@dataclass(frozen=True)
class Tuned:
    """A run's result, loaded and ready for use."""

    run: Run
    task: tasks.Task
    anatomy: Anatomy
    template: ChatTemplate
    scorer: Scorer
    calibration: Calibration = UNCALIBRATED

    @property
    def model(self) -> transformers.PreTrainedModel:
        """The base with the technique inside."""
        return self.anatomy.model

    def classify(self, text: str) -> dict[str, float]:
        """The probability of each label, calibrated, likeliest first (of several labels each by itself). Raises
        `RunError` when the run learned another task."""
        if not isinstance(self.task, Classify | Label):
            raise self._learned_another("classify")
        (found,) = label_probabilities(self.task, self.scorer, self.calibration, [text])
        return found

    def extract(self, text: str) -> list[Entity]:
        """The entities of a text, in order. What is too long loses its end, and what stands there is not found. Raises
        `RunError` when the run learned another task."""
        if isinstance(self.task, Tag):
            return entities(text, tagged(self.task, self.scorer, text))
        if not isinstance(self.task, Extract):
            raise self._learned_another("extract")
        spans = extracted(self.task, self.anatomy, self.template, self.scorer.max_length, text)
        return entities(text, spans)

    def answer(self, question: str, passage: str = "") -> str:
        """The answer to a question, perhaps about a passage; '' where the model says that there is none. Raises
        `RunError` when the run learned another task."""
        if not isinstance(self.task, Answer):
            raise self._learned_another("answer")
        asked = self.task.asked(Record(1, text=question, passage=passage), self.template, self.scorer.max_length)
        return meant(reply(self.anatomy, self.template, asked.messages, Sampling(max_tokens=ANSWER_TOKENS)))

    def choose(self, question: str, options: Sequence[str], passage: str = "") -> dict[str, float]:
        """The probability of each option, likeliest first. Raises `RunError` when the run learned another task."""
        if not isinstance(self.task, Choose):
            raise self._learned_another("choose")
        if len(set(options)) < max(2, len(options)):
            raise UsageError(f"choosing needs at least two different options, each once; found {list(options)}")
        record = Record(1, text=question, passage=passage, options=tuple(options), answers=(options[0],))
        (scores,) = ChooseExam(self.task).answers(self.scorer, [record], "scoring", ignore).scores
        pairs = zip(options, map(float, np.exp(normalised(scores[None]))[0]), strict=True)
        return dict(sorted(pairs, key=lambda pair: -pair[1]))

    def _learned_another(self, wanted: str) -> RunError:
        method = _METHODS[self.task.name]
        return RunError(f"{self.run.folder} learned {self.task.name}, not {wanted}; ask it with {method}()")

    def complete(
        self, text: str, sampling: Sampling | None = None, on_text: Callable[[str], None] | None = None
    ) -> str:
        """How a document goes on that begins with `text`; `on_text` receives it as it grows."""
        prompt = Complete().prompt(text, self.template)
        return continuation(self.anatomy, self.template, prompt, sampling or Sampling(), on_text)

    def reply(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        on_text: Callable[[str], None] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """The reply to a conversation; `on_text` receives it as it grows. `tools` are functions that it may call, in
        OpenAI's form or as bare schemas with name, description and parameters."""
        asked = self.task.messages(messages) if isinstance(self.task, Chat) else list(messages)
        given = tools_of(list(tools), "tools")
        return reply(self.anatomy, self.template, asked, sampling or Sampling(), on_text, tools=given)


def label_probabilities(
    task: Classify | Label, scorer: Scorer, calibration: Calibration, texts: Sequence[str]
) -> list[dict[str, float]]:
    """The probability of each label for each text, calibrated, likeliest first."""
    records = [Record(1, text=text, label=task.labels[0]) for text in texts]
    if isinstance(task, Classify):
        scores, several = scorer.labels(task, records, "scoring"), False
    else:
        examples = [e for i, r in enumerate(records) for e in task.scored(r, i, scorer.template, scorer.max_length)]
        scores, several = np.stack([logits[0] for logits in scorer.seen(examples, "scoring")]), task.several
    probabilities = np.exp(log_probabilities(scores, calibration.temperature, several))
    pairs = (zip(task.labels, map(float, each), strict=True) for each in probabilities)
    return [dict(sorted(each, key=lambda pair: -pair[1])) for each in pairs]


def opened(run: Run, listener: Listener, bare: Bare | None = None) -> Tuned:
    """Loads a run's base and artifact for use; where the base is loaded already, as `bare`, its artifact alone."""
    artifact = run.artifact
    bare = bare or Bare.of(run, listener)
    bare.restore(artifact, listener)
    task, calibration = tasks.from_json(run.manifest["task"]), Calibration.of(run.folder)
    return Tuned(run, task, bare.anatomy, bare.template, bare.scorer, calibration)
