"""An example as tokens: what the model reads and what it learns to say."""

from __future__ import annotations

from dataclasses import dataclass, replace

# The place of a mark that is about the whole example.
WHOLE = -1


@dataclass(frozen=True)
class Example:
    """One token sequence with its targets.

    A token below zero is a virtual one (see `models/virtual.py`). `supervised[t]` says whether token t is a target
    (predicted from the tokens before it). Token 0 never is: nothing stands before it. `record` is the index of the
    record it came from. `cut` counts tokens that the length limit took away, `lost` the entities that are not learned.

    Or nothing is supervised and the example has `marks` instead: (token index, class) pairs, each a class that a linear
    head is to see at that token; the index `WHOLE` is the mean over the example's own tokens. `weight` is what each
    target counts for.
    """

    tokens: tuple[int, ...]
    supervised: tuple[bool, ...]
    record: int
    cut: int = 0
    lost: int = 0
    marks: tuple[tuple[int, int], ...] = ()
    weight: float = 1.0

    def __post_init__(self) -> None:
        assert len(self.tokens) == len(self.supervised) and not (self.supervised and self.supervised[0])
        assert not (self.marks and any(self.supervised))

    @classmethod
    def marked(
        cls,
        tokens: tuple[int, ...],
        marks: tuple[tuple[int, int], ...],
        record: int,
        cut: int = 0,
        weight: float = 1.0,
        lost: int = 0,
    ) -> Example:
        """An example for a linear head."""
        return cls(tokens, (False,) * len(tokens), record, cut, lost, marks, weight)

    @property
    def lead(self) -> int:
        """How many tokens stand before the first supervised one: the part that may be shared with other examples."""
        return next((t for t, s in enumerate(self.supervised) if s), len(self.supervised))

    @property
    def targets(self) -> int:
        """The number of supervised tokens, or of marks."""
        return sum(self.supervised) + len(self.marks)

    def with_virtual_tokens(self, front: int, inner: int) -> Example:
        """The example with virtual tokens -1, -2, ...: `front` before everything, then `inner` before the first
        supervised token (where there are marks: before everything as well, since behind them nothing would see them).
        One that has them already stays as it is."""
        if front + inner == 0 or any(token < 0 for token in self.tokens):
            return self
        if self.marks:
            tokens = (*(-1 - j for j in range(front + inner)), *self.tokens)
            marks = tuple((t if t == WHOLE else t + front + inner, code) for t, code in self.marks)
            return replace(self, tokens=tokens, supervised=(False,) * len(tokens), marks=marks)
        lead = self.lead
        first, second = (tuple(-1 - j for j in part) for part in (range(front), range(front, front + inner)))
        tokens = (*first, *self.tokens[:lead], *second, *self.tokens[lead:])
        supervised = (*[False] * front, *self.supervised[:lead], *[False] * inner, *self.supervised[lead:])
        return replace(self, tokens=tokens, supervised=supervised)
