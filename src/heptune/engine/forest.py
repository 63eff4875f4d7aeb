"""A batch as a forest: examples merged over their unsupervised leading tokens, written depth-first into one row.

Take two examples that share an instruction, I I a b Y and I I c Z (capitals are supervised). Peers compute I I twice,
and padding besides. Here they become

    row        0  1  2  3  4
    token      I  I  a  b  c
    position   0  1  2  3  2
    end        5  5  4  4  5
    target              Y  Z      (the row that predicts it: 3, 4)

Token q sees token k exactly when k <= q < end[k]. `position` is the depth in the path, so positions are those of the
plain example. A token that only serves as a target and predicts nothing itself (Y, Z above) needs no row. Sharing
stops at an example's first supervised token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from heptune.tasks.example import Example


@dataclass(frozen=True)
class Forest:
    """T rows and M targets. All arrays are int64.

    `token`, `position`, `end`: [T]. `target_row` [M] is the row that predicts `target_token` [M]; `target_example` [M]
    is the index (in the list that was planted) of the example it belongs to.
    """

    token: np.ndarray
    position: np.ndarray
    end: np.ndarray
    target_row: np.ndarray
    target_token: np.ndarray
    target_example: np.ndarray

    @property
    def rows(self) -> int:
        """T, the rows that are computed."""
        return len(self.token)


@dataclass(frozen=True)
class Padded:
    """The same examples side by side, padded on the right to the longest: for architectures that cannot attend over a
    forest. `token`, `mask`: [B, L]; `target_row` counts rows of the flattened [B * L]."""

    token: np.ndarray
    mask: np.ndarray
    target_row: np.ndarray
    target_token: np.ndarray
    target_example: np.ndarray

    @property
    def rows(self) -> int:
        """B * L, the rows that are computed."""
        return self.token.size


def plant(examples: Sequence[Example], share: bool = True) -> Forest:
    """The forest of these examples; without `share` each example is a tree of its own.

    The order of the examples does not matter: rows are sorted by leading tokens. Raises ValueError for an example
    without targets.
    """
    order = sorted(range(len(examples)), key=lambda i: examples[i].tokens[: examples[i].lead])
    token: list[int] = []
    position: list[int] = []
    end: list[int] = []
    targets: list[tuple[int, int, int]] = []
    path: list[int] = []  # rows of the leading tokens of the example before, root first
    previous: tuple[int, ...] = ()
    for index in order:
        example = examples[index]
        last = _last_target(example)
        lead = example.tokens[: example.lead]
        shared = _common_length(previous, lead) if share else 0
        _close(path, shared, end, len(token))
        own_rows = list(range(len(token), len(token) + last - shared))
        token += example.tokens[shared:last]
        position += range(shared, last)
        end += [0] * len(own_rows)
        rows = path + own_rows
        targets += [
            (rows[t - 1], example.tokens[t], index) for t in range(example.lead, last + 1) if example.supervised[t]
        ]
        path = rows[: len(lead)]
        for row in rows[len(lead) :]:
            end[row] = len(token)
        previous = lead
    _close(path, 0, end, len(token))
    columns = np.array(targets, dtype=np.int64).reshape(-1, 3).T
    rows_of = (np.array(token, np.int64), np.array(position, np.int64), np.array(end, np.int64))
    return Forest(*rows_of, *columns)


def pad(examples: Sequence[Example]) -> Padded:
    """The examples as a right-padded batch; padding repeats token 0 under a zero mask."""
    lasts = [_last_target(example) for example in examples]
    length = max(lasts)
    token = np.zeros((len(examples), length), dtype=np.int64)
    mask = np.zeros_like(token)
    targets: list[tuple[int, int, int]] = []
    for index, (example, last) in enumerate(zip(examples, lasts, strict=True)):
        token[index, :last] = example.tokens[:last]
        mask[index, :last] = 1
        targets += [
            (index * length + t - 1, example.tokens[t], index) for t in range(1, last + 1) if example.supervised[t]
        ]
    columns = np.array(targets, dtype=np.int64).reshape(-1, 3).T
    return Padded(token, mask, *columns)


def portions(examples: Sequence[Example], budget: int, share: bool = True) -> Iterator[list[Example]]:
    """Cuts examples into lists whose forests have at most `budget` rows each (one example alone may have more).

    Examples that share leading tokens come into the same list as far as the budget allows. `share` as in `plant`.
    """
    portion: list[Example] = []
    rows = 0
    previous: tuple[int, ...] = ()
    for example in sorted(examples, key=lambda e: (e.tokens[: e.lead], e.tokens, e.record)):
        lead = example.tokens[: example.lead]
        last = _last_target(example)
        added = last - (_common_length(previous, lead) if share else 0)
        if portion and rows + added > budget:
            yield portion
            portion, rows, added = [], 0, last
        portion.append(example)
        rows += added
        previous = lead
    if portion:
        yield portion


def padded_portions(examples: Sequence[Example], budget: int) -> Iterator[list[Example]]:
    """Cuts examples into lists that have at most `budget` rows when they are padded, similar lengths together."""
    portion: list[Example] = []
    for example in sorted(examples, key=lambda e: (_last_target(e), e.tokens, e.record)):
        if portion and (len(portion) + 1) * _last_target(example) > budget:
            yield portion
            portion = []
        portion.append(example)
    if portion:
        yield portion


def _last_target(example: Example) -> int:
    """The index of the last supervised token; tokens from there on need no row."""
    for t in range(len(example.tokens) - 1, 0, -1):
        if example.supervised[t]:
            return t
    raise ValueError(f"the example of record {example.record} has no supervised token")


def _common_length(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    limit = min(len(a), len(b))
    if a[:limit] == b[:limit]:
        return limit
    return next(i for i in range(limit) if a[i] != b[i])


def _close(path: list[int], depth: int, end: list[int], rows: int) -> None:
    """The subtrees of the path below `depth` are complete: they end here."""
    for row in path[depth:]:
        end[row] = rows
    del path[depth:]
