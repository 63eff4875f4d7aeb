"""An example as tokens: what the model reads and what it learns to say."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Example:
    """One token sequence with its targets.

    A token below zero is a virtual one (see `models/virtual.py`). `supervised[t]` says whether token t is a target
    (predicted from the tokens before it). Token 0 never is: nothing stands before it. `record` is the index of the
    record it came from. `cut` counts tokens that the length limit took away, `lost` the entities that are not learned.
    """

    tokens: tuple[int, ...]
    supervised: tuple[bool, ...]
    record: int
    cut: int = 0
    lost: int = 0

    def __post_init__(self) -> None:
        assert len(self.tokens) == len(self.supervised) and not (self.supervised and self.supervised[0])

    @property
    def lead(self) -> int:
        """How many tokens stand before the first supervised one: the part that may be shared with other examples."""
        return next((t for t, s in enumerate(self.supervised) if s), len(self.supervised))

    @property
    def targets(self) -> int:
        """The number of supervised tokens."""
        return sum(self.supervised)

    def with_virtual_tokens(self, front: int, inner: int) -> Example:
        """The example with virtual tokens -1, -2, ...: `front` before everything, then `inner` before the first
        supervised token. One that has them already stays as it is."""
        if front + inner == 0 or any(token < 0 for token in self.tokens):
            return self
        lead = self.lead
        first, second = (tuple(-1 - j for j in part) for part in (range(front), range(front, front + inner)))
        tokens = (*first, *self.tokens[:lead], *second, *self.tokens[lead:])
        supervised = (*[False] * front, *self.supervised[:lead], *[False] * inner, *self.supervised[lead:])
        return replace(self, tokens=tokens, supervised=supervised)
