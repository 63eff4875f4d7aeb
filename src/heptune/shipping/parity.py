"""The parity gate: what was exported must say what the run says.

The run answers fixed prompts first. Then the export is loaded by the program that will use it, answers the same ones,
and is compared: every logit behind every token, the greedy replies, and the run's own held-out records. What differs by
more than its format's rounding explains is no export: nothing of it stays.

T tokens, V vocabulary, M marks of a linear head, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from heptune.core.errors import HeptuneError
from heptune.core.events import Listener, Progress, ignore
from heptune.data.record import Message
from heptune.tasks.example import Example

# Letters that are two and three bytes, an emoji, code with tabs, digits in a row, a system prompt, a turn before.
CONVERSATIONS: tuple[tuple[Message, ...], ...] = (
    (Message("user", "What is the capital of France?"),),
    (
        Message("system", "Answer in one word."),
        Message("user", "Is the text positive or negative? I laughed all evening."),
    ),
    (
        Message("user", "Zähle bis drei: 一, 二, … 🙂"),
        Message("assistant", "1, 2, 3.\n\nNoch etwas?"),
        Message("user", "def f(x):\n    return  x + 12345\t# what does it do?"),
    ),
)
TEXTS = ("The river rose in the night, and by morning the", "1, 2, 3, 5, 8, 13,")
REPLY_TOKENS = 16
RECORDS = 16  # held-out records that are scored
NOTHING = 1e-5  # a run nearer to its base, relatively, has learned nothing: sums in other orders come to as much
SEQUENCES = 64  # of which each label or option of each record is one


class ParityError(HeptuneError):
    """What was exported does not say what the run says."""


@dataclass(frozen=True)
class Tolerance:
    """What a format's rounding explains. `logits`: the difference's norm, relative to the logits' own about their mean;
    `loss`: nats per target of the held-out records; `score`: their score. A greedy token may differ only where the
    difference of the logits at that place explains it."""

    logits: float
    loss: float
    score: float


# By the type of the weights. smollm2-135m makes about twelve times as much of a rounding in its weights: up to 1e-5,
# 3e-3, 2e-2 and 1e-1 were measured (docs/results/export.md). A forgotten adapter would be nearer to the base than to
# the run, which no tolerance allows.
TOLERANCES = {
    "f32": Tolerance(1e-4, 1e-4, 0.0),
    "f16": Tolerance(1e-2, 1e-2, 0.1),
    "bf16": Tolerance(5e-2, 5e-2, 0.1),
    "q8_0": Tolerance(1.5e-1, 5e-2, 0.1),
}


@dataclass(frozen=True)
class Asked:
    """What a model is asked: tokens, and where a linear head looks (`tasks.example.WHOLE`: their mean)."""

    tokens: tuple[int, ...]
    places: tuple[int, ...] = ()


class Voice(Protocol):
    """A model that can be compared, in whatever program it runs."""

    def logits(self, asked: Asked) -> torch.Tensor:
        """Those behind every token, [T, V]; of a linear head those at its places, [M, C]."""

    def greedy(self, asked: Asked, count: int) -> list[int]:
        """The likeliest continuation: `count` tokens, or up to and with the token that ends a reply. Nothing where a
        linear head answers."""


@dataclass(frozen=True)
class Held:
    """A held-out record: the answers among which the model chooses (one where it has no choice), and which is right. Of
    a linear head the one example with its marks; `independent`: each class is decided by itself."""

    candidates: tuple[Example, ...]
    right: int = 0
    independent: bool = False


@dataclass(frozen=True)
class Scored:
    """How held-out records were answered. `loss`: nats per target; `score`: the share of records where the right answer
    is the likeliest; where there is no choice, of targets (tokens, tags, labels) that are the likeliest."""

    loss: float
    score: float


@dataclass(frozen=True)
class Reference:
    """What the run says: its greedy reply to each prompt, the logits behind every token of both, and its score (None
    without held-out records). `untouched`: the logits behind the prompts' tokens before anything was learned; empty
    where a linear head answers, which an untouched base does not have."""

    prompts: tuple[Asked, ...]
    replies: tuple[tuple[int, ...], ...]
    logits: tuple[torch.Tensor, ...]
    held: tuple[Held, ...]
    scored: Scored | None
    untouched: tuple[torch.Tensor, ...] = ()

    @classmethod
    def of(
        cls,
        voice: Voice,
        prompts: Sequence[Asked],
        held: Sequence[Held],
        listener: Listener = ignore,
        untouched: Sequence[torch.Tensor] = (),
    ) -> Reference:
        """Lets the run answer."""
        logits, replies = [], []
        for number, prompt in enumerate(prompts):
            replies.append(tuple(voice.greedy(prompt, REPLY_TOKENS)))
            logits.append(voice.logits(_with_reply(prompt, replies[-1])).float())
            listener(Progress("asking the run", number + 1, len(prompts), "prompts"))
        score = scored(voice, held, "the run", listener)
        return cls(tuple(prompts), tuple(replies), tuple(logits), tuple(held), score, tuple(untouched))


@dataclass(frozen=True)
class Parity:
    """How far an export is from its run. `logits`: the largest difference; `relative`: see `Tolerance`; `agreed` of
    `greedy` tokens come in the same place, `unexplained` of the replies part where the logits' difference does not
    explain it. `learned`: how far the run is from its untouched base on the prompts, `rounded` how far the export is
    from the run there, and `from_base` how far from the base, all relative as `relative` is (None where a linear head
    answers). `before` and `after`: the held-out `records`. `tokens` and `template`: whether texts become the same
    tokens and conversations the same text (None where no tokenizer is exported)."""

    consumer: str
    prompts: int
    positions: int
    logits: float
    relative: float
    agreed: int
    greedy: int
    unexplained: int
    learned: float | None
    rounded: float | None
    from_base: float | None
    before: Scored | None
    after: Scored | None
    records: int
    tokens: bool | None
    template: bool | None
    tolerance: Tolerance

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)

    @property
    def is_lost(self) -> bool:
        """Whether the export is nearer to the untouched base than to the run, if that learned anything."""
        if self.learned is None or self.rounded is None or self.from_base is None:
            return False
        return self.learned > NOTHING and self.from_base < self.rounded

    @property
    def problems(self) -> list[str]:
        """What is not as it has to be, in words."""
        found = []
        if not self.relative <= self.tolerance.logits:
            found.append(f"its logits differ by {self.relative:.2g} of their size (allowed {self.tolerance.logits:g})")
        if self.is_lost:
            found.append(
                f"it is nearer to the untouched base ({self.from_base:.2g}) than to the run ({self.rounded:.2g}): what "
                f"the run learned ({self.learned:.2g}) is lost in it"
            )
        if self.unexplained:
            found.append(f"{self.unexplained} of its greedy replies are others")
        if self.before is not None and self.after is not None:
            loss = abs(self.after.loss - self.before.loss)
            score = abs(self.after.score - self.before.score)
            if not loss <= self.tolerance.loss:
                found.append(f"its loss differs by {loss:.2g} nats (allowed {self.tolerance.loss:g})")
            if not score <= self.tolerance.score:
                found.append(f"its score differs by {score:.2g} (allowed {self.tolerance.score:g})")
        if self.tokens is False:
            found.append("its tokenizer reads texts otherwise")
        if self.template is False:
            found.append("its chat template writes conversations otherwise")
        return found

    def require(self, what: str) -> None:
        """Raises `ParityError` with what was found and what is allowed."""
        if self.problems:
            raise ParityError(
                f"{what}, loaded by {self.consumer}, does not say what the run says: {'; '.join(self.problems)}. "
                "Nothing was kept. Choose a type with less rounding (--type f32) or another format; where that does "
                "not help, this base is not exported rightly: please report it with the base's name"
            )


@dataclass(frozen=True)
class Consumer:
    """A program that has loaded an export; `tokens` and `template` as in `Parity`."""

    name: str
    voice: Voice
    tokens: bool | None = None
    template: bool | None = None


def compare(reference: Reference, consumer: Consumer, tolerance: Tolerance, listener: Listener = ignore) -> Parity:
    """How far what a consumer says is from the reference."""
    largest, agreed, unexplained, positions = 0.0, 0, 0, 0
    whole, learned, rounded, from_base = _Distance(), _Distance(), _Distance(), _Distance()
    pairs = zip(reference.prompts, reference.replies, reference.logits, strict=True)
    for number, (prompt, reply, want) in enumerate(pairs):
        got = consumer.voice.logits(_with_reply(prompt, reply)).float()
        width = min(got.shape[-1], want.shape[-1])  # a format may fill the vocabulary up
        got, want = got[:, :width], want[:, :width]
        worst = _worst(got - want)
        largest = max(largest, worst)
        whole.add(got, want, want)
        positions += len(want)
        if reference.untouched:
            base = reference.untouched[number][:, :width].float()
            own, theirs = want[: len(base)], got[: len(base)]
            learned.add(base, own, own)
            rounded.add(theirs, own, own)
            from_base.add(theirs, base, own)
        if reply:
            said = consumer.voice.greedy(prompt, REPLY_TOKENS)
            same = _common(said, reply)
            agreed += same
            unexplained += not _explained(said, reply, same, want[len(prompt.tokens) - 1 :], worst)
        listener(Progress(f"asking {consumer.name}", number + 1, len(reference.prompts), "prompts"))
    return Parity(
        consumer.name,
        len(reference.prompts),
        positions,
        largest,
        whole.relative,
        agreed,
        sum(map(len, reference.replies)),
        unexplained,
        learned.relative if reference.untouched else None,
        rounded.relative if reference.untouched else None,
        from_base.relative if reference.untouched else None,
        reference.scored,
        scored(consumer.voice, reference.held, consumer.name, listener),
        len(reference.held),
        consumer.tokens,
        consumer.template,
        tolerance,
    )


def scored(voice: Voice, held: Sequence[Held], who: str, listener: Listener = ignore) -> Scored | None:
    """How a voice answers held-out records; None where there are none."""
    loss, targets, hits, chances = 0.0, 0, 0.0, 0
    for number, each in enumerate(held):
        found = [_answer(voice, example, each.independent) for example in each.candidates]
        own_loss, own_targets, own_hits = found[each.right]
        loss, targets = loss + own_loss, targets + own_targets
        if len(found) > 1:
            hits, chances = hits + (min(range(len(found)), key=lambda i: found[i][0]) == each.right), chances + 1
        else:
            hits, chances = hits + own_hits, chances + own_targets
        listener(Progress(f"scoring {who}", number + 1, len(held), "records"))
    return Scored(loss / targets, hits / chances) if targets else None


def _answer(voice: Voice, example: Example, independent: bool) -> tuple[float, int, int]:
    """An example's summed loss in nats, its targets, and how many of them are the likeliest."""
    if not example.marks:
        log_p = voice.logits(Asked(example.tokens)).double().log_softmax(-1)
        places = [t for t, judged in enumerate(example.supervised) if judged]
        want = torch.tensor([example.tokens[t] for t in places])
        log_p = log_p[[t - 1 for t in places]]
        return -float(log_p.gather(1, want[:, None]).sum()), len(places), int((log_p.argmax(1) == want).sum())
    code = torch.tensor([code for _, code in example.marks])
    places = list(dict.fromkeys(place for place, _ in example.marks))
    logits = voice.logits(Asked(example.tokens, tuple(places))).double()
    if not independent:
        return float(F.cross_entropy(logits, code, reduction="sum")), len(code), int((logits.argmax(1) == code).sum())
    chosen, there = logits[0, code // 2], code % 2 == 1
    return float(F.softplus(torch.where(there, -chosen, chosen)).sum()), len(code), int(((chosen > 0) == there).sum())


class _Distance:
    """The norm of the difference of logits, relative to others' own about their mean, over many texts."""

    def __init__(self) -> None:
        self.error = self.size = 0.0

    def add(self, one: torch.Tensor, other: torch.Tensor, measure: torch.Tensor) -> None:
        """Takes in the logits behind a text, [T, V] each."""
        self.error += float((one - other).double().square().sum())
        self.size += float((measure - measure.mean(-1, keepdim=True)).double().square().sum())

    @property
    def relative(self) -> float:
        """Infinite where there is nothing to measure by."""
        return (self.error / self.size) ** 0.5 if self.size else float("inf")


def _with_reply(prompt: Asked, reply: Sequence[int]) -> Asked:
    return Asked((*prompt.tokens, *reply), prompt.places)


def _worst(difference: torch.Tensor) -> float:
    worst = float(difference.abs().max())
    return worst if worst == worst else float("inf")  # not a number is as far as can be


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    same = [a == b for a, b in zip(one, other, strict=False)]
    return same.index(False) if False in same else len(same)


def _explained(said: Sequence[int], reply: Sequence[int], same: int, want: torch.Tensor, worst: float) -> bool:
    """Whether two replies are one, or part at tokens that lie closer together than what was rounded away."""
    if same == len(reply) == len(said):
        return True
    if same >= min(len(said), len(reply)):
        return False  # one went on where the other ended
    apart = float(want[same, reply[same]] - want[same, said[same]]) if said[same] < want.shape[1] else float("inf")
    return apart <= 2 * worst
