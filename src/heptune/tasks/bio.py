"""Entities as one tag for each token, and back: B-TYPE on an entity's first token, I-TYPE on its others, O elsewhere.

The scheme is IOB2 (Tjong Kim Sang and Veenstra 1999). A token belongs to an entity when its characters and the
entity's overlap; what counts is the tokenizer's offset mapping, so a byte-level token that brings the blank before a
word belongs to the word. Tags are read strictly, as seqeval's strict mode does: an entity begins at B- alone, and an I-
that continues no entity of its type means nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heptune.data.record import Span

if TYPE_CHECKING:
    import numpy as np

OUTSIDE = "O"

Offsets = Sequence[tuple[int, int]]
"""For each token the characters [start, end) that it stands for; start = end for tokens that stand for none."""


@dataclass(frozen=True)
class Tagged:
    """One tag for each token. `shortened` counts entities whose end lies behind the last token; `lost` those without a
    token of their own, because they begin behind the last one, or share all of theirs with an earlier entity."""

    tags: tuple[str, ...]
    shortened: int = 0
    lost: int = 0


def names(types: Iterable[str]) -> tuple[str, ...]:
    """All tags, O first, then B- and I- of each type."""
    return (OUTSIDE, *(f"{prefix}-{kind}" for kind in types for prefix in "BI"))


def trimmed(span: Span, text: str) -> Span | None:
    """The span without the blanks at its ends; None where nothing else is in it."""
    inside = text[span.start : span.end]
    start = span.start + len(inside) - len(inside.lstrip())
    end = start + len(inside.strip())
    return Span(start, end, span.type) if end > start else None


def tag(text: str, spans: Iterable[Span], offsets: Offsets) -> Tagged:
    """The tags of a text's tokens. `offsets` may end before the text does: then the length limit has cut it off.

    Of entities that share a token the one that begins first (of those the longest) has it. Blanks at an entity's ends
    are no part of it.
    """
    tags = [OUTSIDE] * len(offsets)
    reach = max((end for start, end in offsets if end > start), default=0)
    shortened = lost = 0
    for span in sorted(filter(None, (trimmed(span, text) for span in spans)), key=lambda s: (s.start, -s.end)):
        own = [
            t
            for t, (start, end) in enumerate(offsets)
            if max(start, span.start) < min(end, span.end) and tags[t] == OUTSIDE
        ]
        if not own:
            lost += 1
            continue
        shortened += span.end > reach
        # What another entity inside it has taken parts the rest: only the tokens up to there are one entity.
        for n, t in enumerate(own):
            if t != own[0] + n:
                break
            tags[t] = f"{'I' if n else 'B'}-{span.type}"
    return Tagged(tuple(tags), shortened, lost)


def chunks(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """The entities of a sequence of tags as (type, first token, token behind the last), strictly read."""
    found: list[tuple[str, int, int]] = []
    for t, name in enumerate(tags):
        prefix, _, kind = name.partition("-")
        if prefix == "B":
            found.append((kind, t, t + 1))
        elif prefix == "I" and found and found[-1][0] == kind and found[-1][2] == t:
            found[-1] = (kind, found[-1][1], t + 1)
    return found


def spans(text: str, tags: Sequence[str], offsets: Offsets) -> tuple[Span, ...]:
    """The entities of a tagged text as characters, without the blanks at their ends, in order.

    None overlaps the one before it: where two share a character of which each has some bytes, the first has it.
    """
    found: list[Span] = []
    for kind, first, behind in chunks(tags):
        start = max(offsets[first][0], found[-1].end if found else 0)
        end = max(end for _, end in offsets[first:behind])
        span = trimmed(Span(start, end, kind), text) if end > start else None
        found += [] if span is None else [span]
    return tuple(found)


def likeliest(log_p: np.ndarray, tags: Sequence[str]) -> list[int]:
    """The valid sequence of tags with the largest sum of log-probabilities, as places in `tags` (Viterbi 1967).

    `log_p` is [tokens, tags]. Valid is a sequence in which every I- follows B- or I- of its type, so that reading it
    strictly leaves nothing out.
    """
    import numpy as np  # here, since the command line names the tasks before it needs any of them

    if not len(log_p):
        return []
    allowed = transitions(tags)
    inside = np.array([name.startswith("I-") for name in tags])
    best = np.where(inside, -np.inf, np.asarray(log_p[0], dtype=np.float64))
    came_from = np.zeros((len(log_p), len(tags)), dtype=np.int64)
    for t in range(1, len(log_p)):
        reached = np.where(allowed, best[:, None], -np.inf)
        came_from[t] = reached.argmax(0)
        best = reached.max(0) + log_p[t]
    path = [int(best.argmax())]
    for t in range(len(log_p) - 1, 0, -1):
        path.append(int(came_from[t, path[-1]]))
    return path[::-1]


def transitions(tags: Sequence[str]) -> np.ndarray:
    """Whether the tag of a column may follow the tag of a row, [tags, tags]."""
    import numpy as np

    kinds = [name.partition("-")[2] for name in tags]
    return np.array(
        [
            [not after.startswith("I-") or (before != OUTSIDE and kinds[i] == kinds[j]) for j, after in enumerate(tags)]
            for i, before in enumerate(tags)
        ]
    )
