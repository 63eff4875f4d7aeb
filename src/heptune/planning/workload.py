"""What a training computes on: how many rows, targets and visible pairs its passes have.

With data, a sample of the records is encoded exactly as `tune` encodes them, cut into the same batches and laid out as
the same forests; the examples that make the largest pass are looked for among all. Without data a workload is assumed,
and said. Where the base's tokenizer is out of reach, four characters count as a token. Imports no torch.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np

from heptune import tasks
from heptune.core.errors import UsageError
from heptune.core.events import ignore
from heptune.core.registry import unknown
from heptune.data.corpus import Documents
from heptune.data.parts import DataParts
from heptune.data.record import Message, Record
from heptune.data.splits import sample
from heptune.engine import forest, marked
from heptune.engine.batches import Batches
from heptune.engine.settings import Settings
from heptune.planning.forms import Pass
from heptune.tasks.example import WHOLE, Example
from heptune.tasks.template import ChatTemplate, PlainText, Segment

# Records that are encoded to count on (sums come within a few percent), and how many of the longest of all.
SAMPLED = 400
LONGEST = 32
SAMPLED_BYTES = 1 << 19  # of a corpus
JUDGED = 40  # validation records that are encoded
# Rows of a pass without gradient, as in api.py; a test compares.
SCORING_ROWS = 4096

# What is assumed of a workload that nobody describes.
ASSUMED_EXAMPLES, ASSUMED_LENGTH = 1000, 512
_SUPERVISED_SHARE = 0.25
_ASSUMED_CLASSES = {"label": 2, "tag": 9}  # BIO tags of four types
_ASSUMED_TOKENS = 1 << 15  # laid out for an assumed workload: all its passes are alike

CHARACTERS_PER_TOKEN = 4
_TURN_TOKENS = 4  # a turn's marks in a chat template

# Families that do not go through transformers' attention interface: their batches are padded (docs/engine.md).
PADDED_FAMILIES = frozenset({"bloom", "codegen", "deberta-v2", "falcon", "gpt_neo", "gptj", "mpt"})


@dataclass(frozen=True)
class Encoded:
    """Examples to count on. `train` stands for all training examples, `longest` are the longest of all, `judged` is
    what one validation scores; `train_of` and `judged_of` say from how many records they were made."""

    train: tuple[Example, ...]
    longest: tuple[Example, ...]
    judged: tuple[Example, ...]
    train_of: int
    judged_of: int


@dataclass(frozen=True)
class Workload:
    """What is learned from. `examples` and `validation` count records; `said` describes it in words. `encode` gives the
    examples as they are when none may be longer than that many tokens. `assumed`: nobody described it. `classes`: those
    of the task's linear head, 0 where words are learned; `head`: where it looks (see `book.Variant`). `causal`: whether
    a token sees only what stands before it."""

    task: str
    examples: int
    validation: int
    said: tuple[str, ...]
    encode: Callable[[int], Encoded]
    assumed: bool = False
    classes: int = 0
    head: str = ""
    causal: bool = True


@dataclass(frozen=True)
class Placement:
    """Where a technique's virtual tokens stand: `front` before every example, `inner` before its answer."""

    front: int = 0
    inner: int = 0


@dataclass(frozen=True)
class Layout:
    """The passes of a training. `passes` are those of a sample of steps; an epoch has `repeats` times as many.
    `largest` are those among which the peak of memory lies. `scoring` is a sample of one validation's passes without
    gradient, which has `scoring_repeats` times as many."""

    steps: float
    passes_per_step: float
    worst_passes: int
    passes: tuple[Pass, ...]
    repeats: float
    largest: tuple[Pass, ...]
    scoring: tuple[Pass, ...]
    scoring_repeats: float
    tokens: float
    supervised: float
    longest_example: int
    cut_share: float

    @property
    def accumulates(self) -> bool:
        """Whether some step has more than one pass: its gradients are then added up."""
        return self.passes_per_step > 1 or self.worst_passes > 1

    @property
    def rows(self) -> float:
        """Rows that are computed in an epoch."""
        return self.repeats * sum(one.rows for one in self.passes)

    def to_json(self) -> dict[str, Any]:
        """An epoch in numbers, and the largest pass."""
        largest = max(self.largest, key=lambda one: one.rows)
        return {
            "steps_per_epoch": self.steps,
            "passes_per_epoch": self.repeats * len(self.passes),
            "tokens_per_epoch": self.tokens,
            "rows_per_epoch": self.rows,
            "supervised_tokens_per_epoch": self.supervised,
            "longest_example": self.longest_example,
            "cut_share": self.cut_share,
            "largest_pass": {"rows": largest.rows, "pairs": largest.pairs, "targets": largest.targets},
        }


def assumed(
    task: str | None = None, examples: int | None = None, length: int | None = None, causal: bool = True
) -> Workload:
    """A workload of so many equally long examples that share nothing; `causal`: see `Workload`."""
    if task is not None and task not in tasks.names():
        raise unknown("task", task, tasks.names())
    name = task or ("chat" if causal else "label")
    _require_head(name, causal)
    count, tokens = examples or ASSUMED_EXAMPLES, length or ASSUMED_LENGTH
    classes = _ASSUMED_CLASSES.get(name, 0)
    learned = f"{classes} classes" if classes else "a quarter of them supervised"
    words = f"assumed, as no data was named: {count} examples of {tokens} tokens, {learned}"
    judged = count // 10
    make = partial(_made_up_with_marks, name, causal) if classes else _made_up

    @cache
    def encode(max_length: int) -> Encoded:
        size = min(tokens, max_length)
        few = min(count, max(8, _ASSUMED_TOKENS // size))
        made = tuple(make(i, size) for i in range(few))
        return Encoded(made, made[:2], made[: min(judged, few)], few, min(judged, few))

    return Workload(
        name,
        count,
        judged,
        (f"{words}, nothing shared",),
        encode,
        assumed=True,
        classes=classes,
        head=_head(make(0, tokens)),
        causal=causal,
    )


def _head(example: Example) -> str:
    if not example.marks:
        return ""
    return "means" if example.marks[0][0] == WHOLE else "rows"


def _made_up(index: int, length: int) -> Example:
    lead = max(1, length - max(1, round(_SUPERVISED_SHARE * length)))
    return Example((index + 1,) * length, tuple(t >= lead for t in range(length)), index)


def _made_up_with_marks(task: str, causal: bool, index: int, length: int) -> Example:
    """Every token marked for tag; the whole for label, or (where tokens see backwards alone) its last token."""
    places = range(length) if task == "tag" else [length - 1 if causal else WHOLE]
    return Example.marked((index + 1,) * length, tuple((place, 0) for place in places), index)


def of_data(
    task: tasks.Task,
    parts: DataParts,
    template: ChatTemplate | PlainText | None,
    settings: Settings,
    where: str,
    causal: bool = True,
) -> Workload:
    """The workload of a data set, with the base's own template; without one lengths are estimated. `causal`: see
    `Workload`."""
    _require_head(task.name, causal)
    found = template or EstimatedTemplate(both_ways=not causal)
    limit = min(settings.validation_limit, len(parts.validation))
    chosen = sample(parts.validation, range(len(parts.validation)), max(1, limit), settings.seed)
    judged = [parts.validation[i] for i in chosen]
    some, longest = _sampled(parts.train, settings.seed)

    @cache
    def encode(max_length: int) -> Encoded:
        def examples(indices: Sequence[int]) -> tuple[Example, ...]:
            records = [parts.train[i] for i in indices]
            return tuple(tasks.encode(task, records, found, max_length, ignore))  # type: ignore[arg-type]

        scored = judged[:JUDGED]
        return Encoded(
            train=examples(some),
            longest=examples(longest),
            judged=tuple(e for i, r in enumerate(scored) for e in task.scored(r, i, found, max_length)),  # type: ignore[arg-type]
            train_of=len(some),
            judged_of=len(scored),
        )

    words = [f"{where}: {len(parts.train)} training and {len(parts.validation)} validation records, task {task.name}"]
    if len(some) < len(parts.train):
        words.append(f"counted on {len(some)} training records and the {len(longest)} longest")
    if template is None:
        words.append(
            f"the base's tokenizer is not at hand: a token is taken to be {CHARACTERS_PER_TOKEN} characters; expect "
            "lengths to be off by a third either way, more in languages that are not written in Latin letters"
        )
    head = _head(encode(settings.max_length).train[0])
    classes = getattr(task, "classes", 0)
    return Workload(task.name, len(parts.train), limit, tuple(words), encode, classes=classes, head=head, causal=causal)


def _require_head(task: str, causal: bool) -> None:
    if not causal and not tasks.has_head(task):
        learnable = " or ".join(name for name in tasks.names() if tasks.has_head(name))
        raise UsageError(f"an encoder cannot answer in words, so it cannot learn {task}; it learns {learnable}")


def _sampled(records: Sequence[Record], seed: int) -> tuple[Sequence[int], Sequence[int]]:
    """The numbers of the records that are counted on, and of the longest. Of a corpus few are read: its documents are
    long, and each is windows of one length."""
    if isinstance(records, Documents):
        few = max(16, min(SAMPLED, int(SAMPLED_BYTES / max(1.0, float(records.sizes.mean())))))
        return records.some(few, seed, "sample"), np.argsort(-records.sizes.astype(np.int64))[:4].tolist()
    order = sorted(range(len(records)), key=lambda i: -_characters(records[i]))
    return sample(records, range(len(records)), SAMPLED, seed), order[:LONGEST]


def _characters(record: Record) -> int:
    texts = (record.text or "", record.passage, *record.answers, *(message.content for message in record.messages))
    return sum(map(len, texts))


def lay_out(
    workload: Workload,
    settings: Settings,
    placement: Placement,
    scoring: tuple[Pass, ...] | None = None,
    padded: bool = False,
) -> Layout:
    """The passes of a training with these settings; `padded`: the architecture cannot attend over a forest. `scoring`
    is what `lay_out_scoring` gives, where that is known already."""
    encoded = workload.encode(settings.max_length)
    train = encoded.train
    lengths = [len(example.tokens) for example in train]
    batches = Batches(lengths, settings.seed, settings.batch_tokens, settings.batch_size)
    scale = workload.examples / encoded.train_of

    def passes(chosen: Sequence[Example]) -> Iterator[Pass]:
        return _passes(chosen, settings.micro_tokens, placement, settings.share, padded, workload.causal)

    steps = batches.epoch(0)
    if len(steps) > 1 and scale > 1:  # the last step of a sample is cut off where the data goes on
        steps = steps[:-1]
    used = sum(len(step) for step in steps)
    scale *= len(train) / used
    counted = tuple(p for step in steps for p in passes([train[i] for i in step]))
    worst = tuple(passes(_worst_step([*encoded.longest, *train], settings)))
    if scoring is None:
        scoring = lay_out_scoring(workload, settings.max_length, placement, settings.share, padded)
    return Layout(
        steps=max(1.0, len(steps) * scale),
        passes_per_step=len(counted) / len(steps),
        worst_passes=len(worst),
        passes=counted,
        repeats=scale,
        largest=_outstanding([*counted, *worst]),
        scoring=scoring,
        scoring_repeats=workload.validation / max(1, encoded.judged_of),
        tokens=scale * sum(lengths[i] for step in steps for i in step),
        supervised=scale * sum(train[i].targets for step in steps for i in step),
        longest_example=max(len(example.tokens) for example in (*encoded.longest, *train)),
        cut_share=sum(example.cut > 0 for example in train) / len(train),
    )


def lay_out_scoring(
    workload: Workload, max_length: int, placement: Placement, share: bool, padded: bool
) -> tuple[Pass, ...]:
    """The passes without gradient of a sample of one validation."""
    judged = workload.encode(max_length).judged
    return tuple(_passes(judged, SCORING_ROWS, placement, share, padded, workload.causal))


def _passes(
    examples: Sequence[Example], budget: int, placement: Placement, share: bool, padded: bool, causal: bool
) -> Iterator[Pass]:
    placed = [example.with_virtual_tokens(placement.front, placement.inner) for example in examples]
    if any(example.marks for example in placed):
        yield from (marked_pass(portion, causal) for portion in marked.portions(placed, budget, padded=False))
        return
    for portion in forest.padded_portions(placed, budget) if padded else forest.portions(placed, budget, share):
        yield _padded_pass(portion) if padded else _forest_pass(portion, share)


def _worst_step(examples: Sequence[Example], settings: Settings) -> list[Example]:
    """The longest examples that one step may take together."""
    ordered = sorted(set(examples), key=lambda example: -len(example.tokens))
    if settings.batch_size is not None:
        return ordered[: settings.batch_size]
    chosen = ordered[:1]
    for example in ordered[1:]:
        if sum(len(e.tokens) for e in chosen) + len(example.tokens) <= settings.batch_tokens:
            chosen.append(example)
    return chosen


def _outstanding(passes: Sequence[Pass]) -> tuple[Pass, ...]:
    """Passes that no other exceeds in rows, pairs and targets at once: the peak lies at one of them."""
    distinct = sorted({(p.rows, p.pairs, p.targets): p for p in passes}.values(), key=lambda p: -p.rows)
    kept: list[Pass] = []
    for one in distinct:
        if not any(o.rows >= one.rows and o.pairs >= one.pairs and o.targets >= one.targets for o in kept):
            kept.append(one)
    return tuple(kept)


def _forest_pass(examples: Sequence[Example], share: bool) -> Pass:
    planted = forest.plant(examples, share)
    return Pass.of(planted.end, planted.position, len(planted.target_row), len(examples))


def marked_pass(examples: Sequence[Example], causal: bool) -> Pass:
    """The pass over marked examples in this order, virtual tokens in their places."""
    batch = marked.lay_out(examples, causal=causal, padded=False)
    begin = None if causal else batch.begin
    own = int((batch.owner >= 0).sum())
    return Pass.of(batch.end, batch.position, len(batch.row), len(examples), begin=begin, own=own)


def _padded_pass(examples: Sequence[Example]) -> Pass:
    padded = forest.pad(examples)
    count, length = padded.token.shape
    return Pass(padded.rows, count * length * length, len(padded.target_row), count)


@dataclass(frozen=True)
class EstimatedTemplate:
    """A chat template that is not there: each turn is its text in pieces of four characters, and a few marks.

    Equal texts give equal tokens, so that what examples share is found. It offers what tasks ask of `ChatTemplate`.
    """

    both_ways: bool = False
    marks: tuple[int, ...] = field(default=tuple(range(_TURN_TOKENS)))
    bos: int | None = None
    eos: int | None = _TURN_TOKENS - 1

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """What ends a reply."""
        return self.marks[-1:]

    def encode(self, text: str) -> list[int]:
        """Token ids that stand for these pieces."""
        data = text.encode("utf-8")
        pieces = (data[i : i + CHARACTERS_PER_TOKEN] for i in range(0, len(data), CHARACTERS_PER_TOKEN))
        return [_TURN_TOKENS + zlib.crc32(piece) for piece in pieces]

    def document(self, text: str, max_length: int) -> tuple[list[int], int]:
        """A plain text's tokens, and how many the limit cut off."""
        tokens = self.encode(text)
        return tokens[:max_length], max(0, len(tokens) - max_length)

    def located(self, text: str, max_length: int) -> tuple[list[int], list[tuple[int, int]], int]:
        """A plain text's tokens, the characters of each, and how many tokens the limit cut off."""
        width = CHARACTERS_PER_TOKEN
        pieces = [(at, min(at + width, len(text))) for at in range(0, len(text), width)]
        tokens = [token for first, behind in pieces for token in self.encode(text[first:behind])[:1]]
        return tokens[:max_length], pieces[:max_length], max(0, len(tokens) - max_length)

    def prompt(self, messages: Sequence[Message], tools: str = "") -> list[int]:
        """The turns up to where the assistant begins to speak."""
        turns = [token for message in messages for token in (*self.marks, *self.encode(message.said))]
        return [*self.encode(tools), *turns, *self.marks[:-1]]

    def reply(self, text: str) -> list[int]:
        """A reply and the end of its turn."""
        return [*self.encode(text), self.marks[-1]]

    def conversation(self, messages: Sequence[Message], tools: str = "") -> list[list[Segment]]:
        """One sequence, every reply supervised."""
        segments = [Segment(tuple(self.encode(tools)), False)] if tools else []
        for index, message in enumerate(messages):
            if message.role == "assistant" and index > 0:
                segments.append(Segment(self.marks[:-1], False))
                segments.append(Segment(tuple(self.reply(message.said)), True))
            else:
                segments.append(Segment((*self.marks, *self.encode(message.said)), False))
        return [segments]
