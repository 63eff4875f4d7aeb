"""A finished run, loaded again: its base as it was, and the artifact on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from heptune import tasks, techniques
from heptune.core.errors import RunError
from heptune.core.events import Listener
from heptune.data.calls import tools_of
from heptune.data.record import Message, Record
from heptune.engine.forward import Forward
from heptune.engine.settings import Settings
from heptune.models.anatomy import Anatomy, dissect
from heptune.runs.run import Run
from heptune.scoring.calibration import UNCALIBRATED, Calibration, log_probabilities
from heptune.scoring.generate import Sampling, reply
from heptune.scoring.score import Scorer
from heptune.tasks.chat import Chat
from heptune.tasks.classify import Classify
from heptune.tasks.template import ChatTemplate
from heptune.techniques._contract import Technique
from heptune.tuning import base as bases
from heptune.tuning.training import SCORING_ROWS


@dataclass(frozen=True)
class Bare:
    """A run's base before its artifact is on it, and what is needed to score it."""

    technique: type[Technique]
    settings: Settings
    anatomy: Anatomy
    template: ChatTemplate
    scorer: Scorer

    @classmethod
    def of(cls, run: Run, listener: Listener) -> Bare:
        """Loads the base that the run began with."""
        technique = techniques.get(run.manifest["technique"]["name"])
        base = bases.load_again(run.manifest, technique, listener)
        settings = Settings(**run.manifest["settings"])
        anatomy = dissect(base.model)
        template = ChatTemplate(base.tokenizer, run.manifest["template"])
        scorer = Scorer(Forward(anatomy, listener=listener), template, settings.max_length, SCORING_ROWS)
        return cls(technique, settings, anatomy, template, scorer)

    def restore(self, artifact: Path, listener: Listener) -> None:
        """Puts the artifact onto the base."""
        bases.quantize_where_asked(self.anatomy, self.technique, self.settings, listener)
        self.technique.restore(self.anatomy, artifact)


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
        """The probability of each label, calibrated, likeliest first. Raises `RunError` when the run learned another
        task."""
        if not isinstance(self.task, Classify):
            raise RunError(f"{self.run.folder} learned {self.task.name}, not classify; ask it with reply()")
        log_p = self.scorer.labels(self.task, [Record(1, text=text, label=self.task.labels[0])], "scoring")
        probabilities = np.exp(log_probabilities(log_p, self.calibration.temperature))[0]
        pairs = zip(self.task.labels, map(float, probabilities), strict=True)
        return dict(sorted(pairs, key=lambda pair: -pair[1]))

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
        return reply(self.anatomy, self.template, asked, sampling or Sampling(), on_text, given)


def opened(run: Run, listener: Listener) -> Tuned:
    """Loads a run's base and artifact for use."""
    artifact = run.artifact
    bare = Bare.of(run, listener)
    bare.restore(artifact, listener)
    task, calibration = tasks.from_json(run.manifest["task"]), Calibration.of(run.folder)
    return Tuned(run, task, bare.anatomy, bare.template, bare.scorer, calibration)
