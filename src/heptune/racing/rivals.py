"""What has to be beaten, on the very examples that the verdict is spoken on.

The untouched base without and with examples in its prompt; for labels a linear model on word counts, the nearest
training texts, and the most frequent label; for options what chooses without a model; for conversations the base
behind the nearest training conversation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from heptune import tasks
from heptune.core.events import Listener
from heptune.data.record import Record
from heptune.engine.memory import used_bytes
from heptune.scoring import baselines
from heptune.scoring.exams import exam_of
from heptune.scoring.exams.chat import of_losses
from heptune.scoring.exams.choose import without_model
from heptune.scoring.exams.classify import of_labels
from heptune.scoring.exams.label import LabelExam
from heptune.scoring.probe import start_from_probe
from heptune.scoring.score import Scorer, readout_of
from heptune.scoring.shots import FewShot, FewShotChat, calibrated_labels
from heptune.tasks.chat import Chat
from heptune.tasks.choose import Choose, right
from heptune.tasks.classify import Classify
from heptune.tasks.example import Example
from heptune.tasks.label import Label
from heptune.tasks.template import ChatTemplate
from heptune.tuning.problem import Problem

# What needs no base at all, as a share of a request to it (see racing/decision.py).
WITHOUT_BASE = -1.0


def rivals(
    problem: Problem, scorer: Scorer, records: Sequence[Record], seed: int, listener: Listener
) -> dict[str, dict[str, Any]]:
    """Every baseline's outcomes (as `racing.outcomes`), what it took, and what a request to it costs."""
    task, train = problem.task, problem.parts.train
    memory = used_bytes(scorer.forward.device)

    def base(posed: Any, positions: int, words: str) -> dict[str, Any]:
        began, what = time.monotonic(), "scoring the untouched base"
        if isinstance(posed, FewShot):  # as it stands it answers with the label that came last in its prompt
            scores = calibrated_labels(scorer, posed, records, train, what, listener, seed)
            found = of_labels(posed, scores, records)
        elif posed is task:
            found = exam_of(task).outcomes(scorer, records, what, listener)
        else:
            found = of_losses(posed, scorer, records, what, listener)
        serving = _serving(positions, 0.0, words)
        return {**found, "time_s": 0.0, "scoring_s": time.monotonic() - began, "memory_bytes": memory, **serving}

    if readout_of(task, scorer.forward.anatomy, seed) is not None:
        return _probed(problem, scorer, seed, base, listener) | _without_base(
            _seeing(task, train, records) if isinstance(task, Label) else {}, scorer.forward.device
        )
    found = {"base, zero-shot": base(task, 0, "the base as it is")}
    if isinstance(task, Classify):
        shown = FewShot.of(task, train, scorer.template, scorer.max_length, seed=seed)
        if shown.shots:
            positions = shown.positions(scorer.template)
            words = f"{len(shown.shots)} examples ({positions} tokens) before every request"
            found["base, few-shot"] = base(shown, positions, words)
        return found | _without_base(_labelling(task, train, records), scorer.forward.device)
    if isinstance(task, Choose):
        return found | _without_base(_choosing(train, records), scorer.forward.device)
    if not isinstance(task, Chat):
        return found
    several = FewShotChat.of(task, train, scorer.template, scorer.max_length, seed=seed)
    if several.shots:
        words = f"{len(several.shots)} conversations before every request"
        found["base, few-shot"] = base(several, several.positions(scorer.template), words)
    near = _Nearest(tuple(FewShotChat.nearest(task, train, records)))
    found["base, nearest conversation"] = base(near, 0, "looked up for every request, and read before it")
    return found


def _probed(
    problem: Problem, scorer: Scorer, seed: int, base: Callable[..., dict[str, Any]], listener: Listener
) -> dict[str, dict[str, Any]]:
    """An untouched base has no head that could answer: a logistic regression on its hidden states is one."""
    forward, task = scorer.forward, problem.task
    examples = tasks.encode(task, problem.parts.train, scorer.template, scorer.max_length, listener)
    forward.readout = readout_of(task, forward.anatomy, seed)
    assert forward.readout is not None
    start_from_probe(forward.readout, scorer, examples, seed, listener)
    return {"base, linear probe": base(task, 0, "the base as it is")}


@dataclass(frozen=True)
class _Nearest:
    """Chat with another shot before every conversation: record number i goes to the i-th task."""

    tasks: tuple[FewShotChat, ...]

    def encode(self, record: Record, index: int, template: ChatTemplate, max_length: int) -> list[Example]:
        """The record's examples behind its own shot."""
        return self.tasks[index].encode(record, index, template, max_length)


# What a baseline without a model answers: its outcomes.
Answering = Callable[[], dict[str, Any]]


def _labelling(task: Classify, train: Sequence[Record], records: Sequence[Record]) -> dict[str, Answering]:
    texts, labels = [r.text or "" for r in train], [r.label or "" for r in train]
    asked, truth = [r.text or "" for r in records], [r.label or "" for r in records]
    made: dict[str, Callable[[], list[str]]] = {
        "TF-IDF + logistic regression": lambda: baselines.tfidf(texts, labels, asked),
        "nearest training texts": lambda: baselines.nearest(texts, labels, asked),
        "most frequent label": lambda: baselines.majority(labels, len(asked)),
    }

    def answer(predict: Callable[[], list[str]]) -> dict[str, Any]:
        said = predict()
        chosen = [task.labels.index(label) for label in said]
        return {"chosen": chosen, "correct": np.equal(said, truth).astype(int).tolist()}

    return {name: partial(answer, predict) for name, predict in made.items()}


def _seeing(task: Label, train: Sequence[Record], records: Sequence[Record]) -> dict[str, Answering]:
    exam = LabelExam(task)
    known, truth = exam.truth(train), exam.truth(records)
    texts, asked = [r.text or "" for r in train], [r.text or "" for r in records]
    made: dict[str, Callable[[], np.ndarray]] = {
        "TF-IDF + logistic regression": lambda: baselines.tfidf_linear(texts, known, asked, several=task.several),
        exam.frequent_name: lambda: np.repeat(exam.most_frequent(train)[None], len(records), axis=0),
    }

    def answer(predict: Callable[[], np.ndarray]) -> dict[str, Any]:
        said = predict()
        chosen = {} if task.several else {"chosen": said.argmax(1).tolist()}
        return {**chosen, "correct": (said == truth).all(1).astype(int).tolist()}

    return {name: partial(answer, predict) for name, predict in made.items()}


def _choosing(train: Sequence[Record], records: Sequence[Record]) -> dict[str, Answering]:
    truth = [right(record) for record in records]

    def answer(choose: Callable[[], list[int]]) -> dict[str, Any]:
        return {"correct": np.equal(choose(), truth).astype(int).tolist()}

    return {name: partial(answer, choose) for name, choose in without_model(train, records).items()}


def _without_base(made: dict[str, Answering], device: torch.device) -> dict[str, dict[str, Any]]:
    found = {}
    for name, answer in made.items():
        began, before = time.monotonic(), used_bytes(device)
        found[name] = {
            **answer(),
            "time_s": time.monotonic() - began,
            "memory_bytes": max(0, used_bytes(device) - before),  # beyond the base's, which it does without
            **_serving(0, WITHOUT_BASE, "no model at all"),
        }
    return found


def _serving(positions: int, share: float, words: str) -> dict[str, Any]:
    return {"serving": {"positions": positions, "parameters": 0, "flops_share": share, "words": words}}
