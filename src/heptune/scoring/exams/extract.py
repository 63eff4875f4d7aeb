"""How extract is judged: while it trains by the loss of the true answer, at the end by the F1 of generated ones.

Every answer, the untouched base's too, is generated token by token under a grammar that only valid ones pass
(`scoring/grammar.py`). Beside both stands what looking up the training's entities would find.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heptune.core.errors import DataError
from heptune.core.events import Listener
from heptune.core.registry import nearest
from heptune.data.record import Record, Span
from heptune.engine.loop import Validation
from heptune.models.anatomy import Anatomy
from heptune.scoring import baselines, entities
from heptune.scoring.evaluation import Comparison, Evaluation, Row, Shown, TypeRow
from heptune.scoring.exams.chat import of_losses
from heptune.scoring.generate import Sampling, replies, reply
from heptune.scoring.grammar import EntityList, Guide, Vocabulary
from heptune.scoring.score import Scorer
from heptune.tasks.extract import Extract, flat, read
from heptune.tasks.template import ChatTemplate

# The longest list in tokens, about 40 entities; the grammar closes it in time.
ANSWER_TOKENS = 512
# Texts that are shown.
SHOWN = 3


@dataclass(frozen=True)
class ExtractAnswers:
    """The entities that the model found in each text, and how many texts were cut."""

    spans: tuple[tuple[Span, ...], ...]
    cut: int


@dataclass(frozen=True)
class ExtractExam:
    """See `scoring.exams.Exam`."""

    task: Extract

    def check(self, records: Sequence[Record], path: Any) -> None:
        """Raises DataError where none of the types is known. Where some are, entities of the others count as
        missed."""
        check_entities(self.task.types, records, path)

    def validation(self, scorer: Scorer, records: Sequence[Record], listener: Listener) -> Validation | None:
        """The loss per supervised token of the true answers: generating some takes too long to do it often."""
        examples = scorer.examples(self.task, records)
        tokens = sum(example.targets for example in examples)

        def score() -> dict[str, float]:
            return {"loss": float(scorer.losses(examples, "validating", listener).sum() / tokens)}

        return Validation(score, self.task.metric, self.task.higher_is_better) if tokens else None

    def answers(self, scorer: Scorer, records: Sequence[Record], what: str, listener: Listener) -> ExtractAnswers:
        """The entities that the model as it is now finds."""
        texts = [record.text or "" for record in records]
        template, room = scorer.template, _room(scorer.forward.anatomy, scorer.max_length)
        left = [self.task.shortened(text, template, room) for text in texts]
        said = replies(
            scorer.forward,
            template,
            [self.task.messages(text) for text in left],
            ANSWER_TOKENS,
            what,
            listener,
            guide=lambda i: _guide(self.task, left[i], template),
        )
        cut = sum(len(part) < len(text) for part, text in zip(left, texts, strict=True))
        spans = tuple(tuple(read(part, answer)) for part, answer in zip(left, said, strict=True))
        return ExtractAnswers(spans, cut)

    def evaluation(
        self,
        part: str,
        records: Sequence[Record],
        train: Sequence[Record],
        base: ExtractAnswers,
        tuned: ExtractAnswers,
        seed: int,
    ) -> Evaluation:
        """F1, precision and recall of all contenders, those of the tuned model for each type, and what changed."""
        said = {
            "tuned": tuned.spans,
            "base, zero-shot": base.spans,
            "training entities, looked up": baselines.looked_up(train, [record.text or "" for record in records]),
        }
        return entity_evaluation(self.task.name, part, records, said, tuned.cut, seed)

    def outcomes(self, scorer: Scorer, records: Sequence[Record], what: str, listener: Listener) -> dict[str, Any]:
        """`log_p` of the true answer and its tokens, `weights`."""
        return of_losses(self.task, scorer, records, what, listener)


def check_entities(types: Sequence[str], records: Sequence[Record], path: Any) -> None:
    """Raises DataError where none of the records' types is known. Where some are, entities of the others count as
    missed."""
    found = sorted({span.type for record in records for span in record.spans or ()})
    if found and not set(found) & set(types):
        close = nearest(found[0], types)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise DataError(
            f"none of the evaluation data's types is known to the training: {', '.join(found)}; {hint}"
            f"known: {', '.join(types)}",
            path=path,
        )


def entity_evaluation(
    task: str,
    part: str,
    records: Sequence[Record],
    said: Mapping[str, Sequence[Sequence[Span]]],
    cut: int,
    seed: int,
    against: str = "the untouched base",
) -> Evaluation:
    """The evaluation from what each contender found in each text; the first is the tuned model, the second the base."""
    texts = [record.text or "" for record in records]
    truth = [tuple(flat(text, r.spans or ())) for text, r in zip(texts, records, strict=True)]
    there = [entities.entities(text) for text in truth]
    counts = {name: entities.count(there, list(map(entities.entities, spans))) for name, spans in said.items()}
    rows = tuple(
        Row(name, entities.micro(counted, seed) | {"macro-F1": entities.macro(counted, seed=seed)})
        for name, counted in counts.items()
    )
    (tuned, base), (own, other) = list(said.values())[:2], list(counts.values())[:2]
    difference = entities.f1_difference(own, other, seed)
    per_type = tuple(
        TypeRow(kind, int(own.true[:, n].sum()), entities.of_type(own, kind, seed)) for n, kind in enumerate(own.types)
    )
    shown = _changed(texts, truth, base, tuned)
    comparison = Comparison("F1", difference, None, against)
    return Evaluation(task, part, len(records), rows, comparison, shown, cut=cut, per_type=per_type)


def extracted(task: Extract, anatomy: Anatomy, template: ChatTemplate, max_length: int, text: str) -> list[Span]:
    """The entities that the model finds in a text. What is too long loses its end.

    The likeliest allowed token is taken each time. Raises BaseModelError for a base that cannot be guided.
    """
    left, guide = guided(task, anatomy, template, max_length, text)
    sampling = Sampling(max_tokens=ANSWER_TOKENS)
    return read(left, reply(anatomy, template, task.messages(left), sampling, guide=guide))


def guided(task: Extract, anatomy: Anatomy, template: ChatTemplate, max_length: int, text: str) -> tuple[str, Guide]:
    """What of a text can be asked about, and the guide of its answer. Raises as `extracted`."""
    left = task.shortened(text, template, _room(anatomy, max_length))
    return left, _guide(task, left, template)


def _guide(task: Extract, text: str, template: ChatTemplate) -> Guide:
    vocabulary = Vocabulary.of(template.tokenizer)
    return Guide(EntityList(task.types, text, vocabulary), vocabulary)


def _room(anatomy: Anatomy, max_length: int) -> int:
    """How many tokens a prompt may have: as in training, but half of the positions at least stay for the answer where
    there are few."""
    limit = anatomy.shape.max_positions
    if limit is None:
        return max_length
    positions = limit - anatomy.placement.positions
    return min(max_length, positions - min(ANSWER_TOKENS, positions // 2))


def _changed(
    texts: list[str],
    truth: Sequence[tuple[Span, ...]],
    base: Sequence[Sequence[Span]],
    tuned: Sequence[Sequence[Span]],
) -> tuple[Shown, ...]:
    """Texts on which tuned and base differ: some with entities that the tuning put right, and one that it put wrong."""
    differ = [i for i in range(len(texts)) if set(base[i]) != set(tuned[i])]
    right = [i for i in differ if set(tuned[i]) == set(truth[i])]
    right.sort(key=lambda i: -len(truth[i]))
    wrong = [i for i in differ if set(tuned[i]) != set(truth[i])]
    wrong.sort(key=lambda i: set(base[i]) != set(truth[i]))
    chosen = (right[: SHOWN - 1] + wrong[:1] + right[SHOWN - 1 :])[:SHOWN]
    shown = []
    for i in chosen:
        said, said_before, there = (_listed(texts[i], spans[i]) for spans in (tuned, base, truth))
        shown.append(Shown(texts[i], there, said_before, said, set(tuned[i]) == set(truth[i])))
    return tuple(shown)


def _listed(text: str, spans: Sequence[Span]) -> str:
    return "; ".join(f"{text[span.start : span.end]} ({span.type})" for span in spans) or "none"
