"""How complete is judged: how well the model foretells documents that it has never seen, and how it goes on with some.

- loss: nats per token; perplexity is its exponential. Both depend on the tokenizer.
- bits per byte: a document's nats / (ln 2 x its UTF-8 bytes). They do not, so that any model compares with any.

A byte counts where it is predicted: without a beginning-of-sequence token the first token of a document is not. The
rival is a model that knows nothing but the five bytes before each (`scoring/byte_model.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from heptune.core.errors import BaseModelError, DataError
from heptune.core.events import Listener, Progress, ignore
from heptune.data.record import Record
from heptune.engine.loop import Validation
from heptune.scoring import statistics
from heptune.scoring.byte_model import ORDER, ByteModel
from heptune.scoring.evaluation import Comparison, Evaluation, Row, Shown
from heptune.scoring.generate import Sampling, continuation
from heptune.scoring.score import Scorer
from heptune.tasks.complete import Complete
from heptune.tasks.template import ChatTemplate

# Documents that are shown, how many characters of them are given, and how the model goes on.
SHOWN, SHOWN_CHARACTERS = 3, 160
SHOWN_AS = Sampling(max_tokens=64, temperature=0.8, top_p=0.95)
# Documents that are in memory at a time, and bytes of training text that the byte model counts.
_AT_A_TIME, _COUNTED_BYTES = 64, 4 << 20


@dataclass(frozen=True)
class CompleteAnswers:
    """Of each document: its number, its loss (nats) over its targets, their number, and the bytes that they spell,
    [n] each. And how the model goes on with the beginnings of some."""

    document: np.ndarray
    losses: np.ndarray
    tokens: np.ndarray
    size: np.ndarray
    continuations: tuple[str, ...] = ()


@dataclass(frozen=True)
class CompleteExam:
    """See `scoring.exams.Exam`."""

    task: Complete

    def check(self, records: Sequence[Record], path: Any) -> None:
        """Every document can be judged."""

    def validation(self, scorer: Scorer, records: Sequence[Record], listener: Listener) -> Validation | None:
        """The loss per token, and bits per byte."""

        def score() -> dict[str, float]:
            found = self._scores(scorer, records, "validating", listener)
            nats = float(found.losses.sum())
            return {
                "loss": nats / int(found.tokens.sum()),
                "bits per byte": nats / (math.log(2) * int(found.size.sum())),
            }

        some = any(self.task.encode(record, 0, scorer.template, scorer.max_length) for record in records)
        return Validation(score, self.task.metric, self.task.higher_is_better) if some else None

    def answers(self, scorer: Scorer, records: Sequence[Record], what: str, listener: Listener) -> CompleteAnswers:
        """The losses, and some continuations."""
        found = self._scores(scorer, records, what, listener)
        if not len(found.losses):
            raise DataError("no document has two tokens; nothing can be scored")
        said = tuple(self._continued(scorer, beginning) for beginning, _ in _beginnings(records))
        return CompleteAnswers(found.document, found.losses, found.tokens, found.size, said)

    def evaluation(
        self,
        part: str,
        records: Sequence[Record],
        train: Sequence[Record],
        base: CompleteAnswers,
        tuned: CompleteAnswers,
        seed: int,
    ) -> Evaluation:
        """Loss, perplexity and bits per byte of both and of the byte model, and their difference in nats per token."""

        def per_token(tuned_loss: Any, base_loss: Any, tokens: Any, axis: int = -1) -> Any:
            return (tuned_loss - base_loss).sum(axis) / tokens.sum(axis)

        contenders = {"tuned": tuned.losses, "base, untouched": base.losses}
        if counted := _sample(train):
            contenders[f"order-{ORDER} byte model"] = self._byte_model(counted, records, tuned)
        rows = tuple(Row(name, _metrics(nats, tuned, seed)) for name, nats in contenders.items())
        difference = statistics.bootstrap(per_token, tuned.losses, base.losses, tuned.tokens, seed=seed)
        shown = tuple(
            Shown(beginning, truth, was, now, None)
            for (beginning, truth), was, now in zip(
                _beginnings(records), base.continuations, tuned.continuations, strict=True
            )
        )
        comparison = Comparison("nats per token", difference, None)
        return Evaluation(self.task.name, part, len(tuned.losses), rows, comparison, shown)

    def outcomes(self, scorer: Scorer, records: Sequence[Record], what: str, listener: Listener) -> dict[str, Any]:
        """`log_p` of all targets of a document and their number, `weights`."""
        found = self._scores(scorer, records, what, listener)
        return {"log_p": (-found.losses).tolist(), "weights": found.tokens.tolist()}

    def _scores(self, scorer: Scorer, records: Sequence[Record], what: str, listener: Listener) -> CompleteAnswers:
        """The scores of documents, a few at a time, so that memory does not grow with their number."""
        rows: list[tuple[int, float, int, int]] = []
        for start in range(0, len(records), _AT_A_TIME):
            some = records[start : start + _AT_A_TIME]
            examples = scorer.examples(self.task, some)
            of = np.array([example.record for example in examples], dtype=int)
            losses = np.bincount(of, scorer.losses(examples, what, ignore), len(some)) if examples else np.zeros(0)
            tokens = np.bincount(of, [example.targets for example in examples], len(some)) if examples else losses
            for at in np.unique(of):
                size = _predicted_bytes(some[at], self.task, scorer.template)
                rows.append((start + int(at), float(losses[at]), int(tokens[at]), size))
            listener(Progress(what, start + len(some), len(records), "documents"))
        table = np.array(rows, dtype=[("document", int), ("nats", float), ("tokens", int), ("size", int)])
        return CompleteAnswers(table["document"], table["nats"], table["tokens"], table["size"])

    def _byte_model(self, train: Sequence[bytes], records: Sequence[Record], answers: CompleteAnswers) -> np.ndarray:
        """The byte model's nats for the very bytes that the others predict."""
        model = ByteModel.of(train)
        sums = []
        for at, size in zip(answers.document, answers.size, strict=True):
            (nats,) = model.nats([_bytes(records[int(at)])])
            sums.append(float(nats[len(nats) - int(size) :].sum()))
        return np.array(sums)

    def _continued(self, scorer: Scorer, beginning: str) -> str:
        prompt = self.task.prompt(beginning, scorer.template)
        try:
            return continuation(scorer.forward.anatomy, scorer.template, prompt, SHOWN_AS)
        except BaseModelError as error:  # no position is left: the scores are worth showing all the same
            return f"({error})"


def _metrics(nats: np.ndarray, answers: CompleteAnswers, seed: int) -> dict[str, statistics.Interval]:
    def ratio(losses: Any, units: Any, axis: int = -1) -> Any:
        return losses.sum(axis) / units.sum(axis)

    return {
        "loss": statistics.bootstrap(ratio, nats, answers.tokens, seed=seed),
        "perplexity": statistics.perplexity(nats, answers.tokens, seed=seed),
        "bits per byte": statistics.bootstrap(ratio, nats / math.log(2), answers.size, seed=seed),
    }


def _bytes(record: Record) -> bytes:
    return (record.text or "").encode("utf-8", "replace")


def _predicted_bytes(record: Record, task: Complete, template: ChatTemplate) -> int:
    """The bytes of a document's text, without those of a first token that nothing stands before."""
    whole = len(_bytes(record))
    if template.bos is not None:
        return whole
    first = template.tokenizer.decode(task.tokens(record, template)[:1])
    return max(1, whole - len(first.encode("utf-8", "replace")))


def _sample(train: Sequence[Record]) -> list[bytes]:
    """Training texts from all over the corpus, of a limited size together."""
    texts: list[bytes] = []
    left = _COUNTED_BYTES
    for record in _spread(train):
        texts.append(_bytes(record)[:left])
        left -= len(texts[-1])
        if left <= 0:
            break
    return texts


def _spread(records: Sequence[Record]) -> Iterator[Record]:
    """All records, far apart ones first: every 64th, then those behind them, and so on."""
    for first in range(64):
        for at in range(first, len(records), 64):
            yield records[at]


def _beginnings(records: Sequence[Record]) -> list[tuple[str, str]]:
    """For some documents: how they begin, and how they go on."""
    found = []
    for record in records[:SHOWN]:
        text = (record.text or "").strip()
        beginning = text[: min(SHOWN_CHARACTERS, len(text) // 2)].rpartition(" ")[0]
        if beginning:
            found.append((beginning, text[len(beginning) : len(beginning) + 2 * SHOWN_CHARACTERS]))
    return found
