"""A batch of marked examples: texts behind one another in one row, and the rows where a linear head looks.

Two texts of two and three tokens, each marked at its first token (an encoder's [CLS]):

    row        0  1  2  3  4
    token      a  b  c  d  e
    position   0  1  0  1  2
    begin      0  0  2  2  2      (encoder: its whole text sees a token; decoder: 0 1 2 3 4, only what follows does)
    end        2  2  5  5  5
    mark       *     *

Nothing is shared: in an encoder a token's state depends on what stands behind it. Architectures that cannot attend so
get the texts side by side, padded on the right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from heptune.tasks.example import WHOLE, Example


@dataclass(frozen=True)
class Marked:
    """T rows, M marks, n examples. All arrays are int64, but `filling`.

    `token`, `position`, `begin`, `end`: [T]. `owner` [T] is the example a row belongs to (-1: padding, or a virtual
    token), `filling` [T] whether it is padding. `row` [M] is where the head looks: a row, or T + i for the mean over
    the rows of example i. `code`, `example`: [M]. `width`: the texts' common length where they are padded, else None.
    """

    token: np.ndarray
    position: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    owner: np.ndarray
    filling: np.ndarray
    row: np.ndarray
    code: np.ndarray
    example: np.ndarray
    width: int | None = None

    @property
    def rows(self) -> int:
        """T, the rows that are computed."""
        return len(self.token)


def lay_out(examples: Sequence[Example], *, causal: bool, padded: bool) -> Marked:
    """The examples in their order. Raises ValueError for one without marks."""
    width = max(len(example.tokens) for example in examples) if padded else None
    token: list[int] = []
    position: list[int] = []
    begin: list[int] = []
    end: list[int] = []
    owner: list[int] = []
    empty: list[bool] = []
    marks: list[tuple[int, int, int]] = []
    rows = sum(len(example.tokens) for example in examples) if width is None else width * len(examples)
    for number, example in enumerate(examples):
        if not example.marks:
            raise ValueError(f"the example of record {example.record} has no marks")
        start, length = len(token), len(example.tokens)
        filling = 0 if width is None else width - length
        token += [*example.tokens, *[0] * filling]
        position += range(length + filling)
        begin += range(start, start + length + filling) if causal else [start] * (length + filling)
        end += [start + length] * (length + filling)
        empty += [*[False] * length, *[True] * filling]
        owner += [*(number if t >= 0 else -1 for t in example.tokens), *[-1] * filling]
        marks += [(rows + number if t == WHOLE else start + t, code, number) for t, code in example.marks]
    row, code, of = (np.array(column, np.int64) for column in zip(*marks, strict=True))
    return Marked(
        token=np.array(token, np.int64),
        position=np.array(position, np.int64),
        begin=np.array(begin, np.int64),
        end=np.array(end, np.int64),
        owner=np.array(owner, np.int64),
        filling=np.array(empty),
        row=row,
        code=code,
        example=of,
        width=width,
    )


def portions(examples: Sequence[Example], budget: int, *, padded: bool) -> Iterator[list[Example]]:
    """Cuts examples into lists of at most `budget` rows each (one alone may have more), similar lengths together."""
    portion: list[Example] = []
    rows = 0
    for example in sorted(examples, key=lambda e: (len(e.tokens), e.tokens, e.record)):
        length = len(example.tokens)
        needed = (len(portion) + 1) * length if padded else rows + length
        if portion and needed > budget:
            yield portion
            portion, rows = [], 0
        portion.append(example)
        rows += length
    if portion:
        yield portion
