"""Examples in the prompt instead of training: what the untouched base can do when it is shown how.

Shots are training examples put before a question as earlier turns of the conversation. All questions get the same ones,
so that a forest computes them once a batch. A classifier's are balanced over labels; the order is drawn anew for every
round of labels, since what stands last weighs most (Zhao et al. 2021, "Calibrate Before Use").

A base behind shots leans towards some label whatever the text says: SmolLM2-135M called all of 200 SST-2 sentences
positive behind 8 shots (accuracy 0.50). `calibrated` takes that leaning off, measured on training texts (0.72 then).

For conversations there is also retrieval: the training conversation that begins most like this one is the shot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from heptune.core.events import Listener, ignore
from heptune.core.seeds import generator
from heptune.data.record import Message, Record
from heptune.scoring.baselines import nearest_places
from heptune.scoring.score import Scorer, normalised
from heptune.tasks.chat import Chat
from heptune.tasks.classify import Classify
from heptune.tasks.example import Example
from heptune.tasks.template import ChatTemplate

MOST = 16  # Min et al. 2022 (section 5.2, figure 7): beyond 8 to 16 shots accuracy hardly rises
# A shot takes at most this share of the length that is allowed: one book must not be the whole lesson.
LONGEST_SHARE = 0.25
# Training texts that the leaning is measured on: Zhou et al. 2023 (section 5) find it settled from about ten texts on.
REFERENCE = 64


@dataclass(frozen=True)
class FewShot(Classify):
    """Classify with `shots`, labelled records, asked and answered before every question. Labels are scored as ever."""

    shots: tuple[Record, ...] = ()

    @classmethod
    def of(
        cls,
        task: Classify,
        train: Sequence[Record],
        template: ChatTemplate,
        max_length: int,
        *,
        most: int = MOST,
        seed: int = 0,
    ) -> FewShot:
        """The task with as many shots from `train`, up to `most`, as leave room for the longest training text within
        `max_length` tokens (but that need not be more than half of them)."""
        lengths = [_length(task, record, template, max_length) for record in train]
        room = max_length - min(max(lengths, default=0), max_length // 2)
        limit = int(LONGEST_SHARE * max_length)
        shots: list[Record] = []
        chosen = cls(task.labels, task.instruction)
        for i in _in_rounds(train, task.labels, seed):
            if len(shots) == most:
                break
            if lengths[i] > limit:
                continue
            more = cls(task.labels, task.instruction, (*shots, train[i]))
            if more.positions(template) > room:
                break
            shots, chosen = list(more.shots), more
        return chosen

    def messages(self, text: str) -> list[Message]:
        """The shots as earlier turns, then the question about one text."""
        turns = [turn for s in self.shots for turn in (*super(FewShot, self).messages(s.text or ""), _answer(s))]
        return [*turns, *super().messages(text)]

    def positions(self, template: ChatTemplate) -> int:
        """How many tokens the shots put before every question."""
        plain = Classify(self.labels, self.instruction)
        return len(template.prompt(self.messages(""))) - len(template.prompt(plain.messages("")))

    def to_json(self) -> dict[str, Any]:
        """The task as JSON values, the shots' texts and labels among them."""
        return super().to_json() | {"shots": [[shot.text, shot.label] for shot in self.shots]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> FewShot:
        """The task that `to_json` wrote."""
        shots = tuple(Record(i + 1, text=text, label=label) for i, (text, label) in enumerate(values["shots"]))
        return cls(tuple(values["labels"]), values["instruction"], shots)


def calibrated(log_p: np.ndarray, reference: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Label scores without the leaning that they show on `reference`, [n, labels], rows sum to one after exp.

        log q(label | text) = log p(label | text) - log (mean of p(label | .) over the reference) + log frequency(label)

    `log_p` [n, labels] and `reference` [m, labels] are label scores as `Scorer.labels` gives them, `frequencies`
    [labels] how often each label is the truth. Source: Zhou et al. 2023, "Batch Calibration", equation 4, which has
    equal frequencies; that it takes training texts instead of the scored ones keeps a score from depending on others.
    """
    leaning = np.log(np.exp(normalised(reference)).mean(0))
    with np.errstate(divide="ignore"):  # a label without training examples is never predicted
        return normalised(normalised(log_p) - leaning + np.log(frequencies))


def calibrated_labels(
    scorer: Scorer,
    task: Classify,
    records: Sequence[Record],
    train: Sequence[Record],
    what: str,
    listener: Listener = ignore,
    seed: int = 0,
) -> np.ndarray:
    """`Scorer.labels` of a task, `calibrated` on `REFERENCE` training texts that are not among its shots."""
    shown = task.shots if isinstance(task, FewShot) else ()
    unseen = [record for record in train if record not in shown] or list(train)
    chosen = generator(seed, "reference").permutation(len(unseen))[:REFERENCE]
    reference = scorer.labels(task, [unseen[i] for i in chosen], f"{what}, calibrating", listener)
    counts = np.array([sum(record.label == label for record in train) for label in task.labels])
    return calibrated(scorer.labels(task, records, what, listener), reference, counts / counts.sum())


@dataclass(frozen=True)
class FewShotChat:
    """Chat with `shots`, whole conversations, before every conversation. What is supervised stays the same, token by
    token, so that losses can be compared example by example."""

    task: Chat
    shots: tuple[Record, ...] = ()

    @classmethod
    def of(
        cls,
        task: Chat,
        train: Sequence[Record],
        template: ChatTemplate,
        max_length: int,
        *,
        most: int = MOST,
        seed: int = 0,
    ) -> FewShotChat:
        """The task with as many shots from `train`, up to `most`, as leave room for the median training conversation
        within `max_length` tokens. Longer conversations get fewer of them (`encode`)."""
        lengths = [sum(len(e.tokens) for e in task.encode(r, 0, template, max_length)[-1:]) for r in train]
        room = max_length - (sorted(lengths)[len(lengths) // 2] if lengths else 0)
        chosen = cls(task)
        taken = 0
        for i in generator(seed, "shots").permutation(len(train)):
            if len(chosen.shots) == most:
                break
            if lengths[i] > LONGEST_SHARE * max_length or not _can_be_shown(train[i]):
                continue
            taken += lengths[i]
            if taken > room:
                break
            chosen = cls(task, (*chosen.shots, train[i]))
        return chosen

    @classmethod
    def nearest(cls, task: Chat, train: Sequence[Record], records: Sequence[Record]) -> list[FewShotChat]:
        """Retrieval: for each record the task with one shot, the training conversation that begins most like it."""
        known = [record for record in train if _can_be_shown(record)]
        places = nearest_places([_opening(r) for r in known], [_opening(r) for r in records])
        return [cls(task, () if place is None else (known[place],)) for place in places]

    def encode(self, record: Record, index: int, template: ChatTemplate, max_length: int) -> list[Example]:
        """The examples of `Chat.encode`, each behind as many of the shots (the last ones) as fit with it into
        `max_length` tokens. Raises DataError as `Chat.encode`."""
        plain = self.task.encode(record, index, template, max_length)
        for first in range(len(self.shots)):
            shown = self._behind(self.shots[first:], record, plain, template)
            if shown and all(len(e.tokens) <= max_length for e in shown):
                return shown
        return plain

    def positions(self, template: ChatTemplate) -> int:
        """How many tokens the shots put before a conversation."""
        question = [Message("user", "")]
        shown = template.prompt([*self._lead(question), *_turns(self.shots), *question])
        return len(shown) - len(template.prompt(self.task.messages(question)))

    def _lead(self, messages: Sequence[Message]) -> list[Message]:
        """The system message that stands before everything, where there is one."""
        return [message for message in self.task.messages(messages)[:1] if message.role == "system"]

    def _behind(
        self, shots: Sequence[Record], record: Record, plain: Sequence[Example], template: ChatTemplate
    ) -> list[Example]:
        """The examples behind these shots; empty where the template does not give the same targets."""
        lead = self._lead(record.messages)
        own = [message for i, message in enumerate(record.messages) if i > 0 or message.role != "system"]
        sequences = template.conversation([*lead, *_turns(shots), *own], record.tools)[-len(plain) :]
        examples = []
        for segments, alone in zip(sequences, plain, strict=False):
            tokens = [token for segment in segments for token in segment.tokens]
            length = len(tokens) - alone.cut
            # From the back as many supervised tokens as the example has by itself, with those that were cut off.
            supervised = [s for segment in segments for s in [segment.supervised] * len(segment.tokens)][:length]
            surplus = sum(supervised) - alone.targets
            for t in range(length):
                if supervised[t] and surplus > 0:
                    supervised[t], surplus = False, surplus - 1
            example = Example(tuple(tokens[:length]), tuple(supervised), alone.record, alone.cut)
            if _said(example) != _said(alone):
                return []
            examples.append(example)
        return examples if len(examples) == len(plain) else []


def _said(example: Example) -> list[int]:
    return [token for token, supervised in zip(example.tokens, example.supervised, strict=True) if supervised]


def _answer(shot: Record) -> Message:
    return Message("assistant", shot.label or "")


def _turns(shots: Sequence[Record]) -> list[Message]:
    """The shots' turns without their system messages, for which there is no place in the middle."""
    return [message for shot in shots for message in shot.messages if message.role != "system"]


def _can_be_shown(record: Record) -> bool:
    """Whether it can stand before another conversation: it begins with the user and ends with a reply."""
    turns = _turns([record])
    return bool(turns) and turns[0].role == "user" and turns[-1].role == "assistant"


def _opening(record: Record) -> str:
    """What is said before the first reply: later turns would tell what that reply was about."""
    said: list[str] = []
    for i, message in enumerate(record.messages):
        if message.role == "assistant" and i > 0:
            break
        if message.role != "system":
            said.append(message.content)
    return "\n".join(said)


def _length(task: Classify, record: Record, template: ChatTemplate, max_length: int) -> int:
    (example,) = task.encode(record, 0, template, max_length)
    return len(example.tokens)


def _in_rounds(train: Sequence[Record], labels: Sequence[str], seed: int) -> list[int]:
    """Places in `train`: one of every label, then one of every label again, in a new order each time."""
    random = generator(seed, "shots")
    left = {label: [i for i in random.permutation(len(train)) if train[i].label == label] for label in labels}
    order: list[int] = []
    while any(left.values()):
        for n in random.permutation(len(labels)):
            if left[labels[n]]:
                order.append(int(left[labels[n]].pop()))
    return order
