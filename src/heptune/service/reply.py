"""One reply as it comes into being."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from heptune.models.mixture import RowChanges
from heptune.models.slots import Slot
from heptune.scoring.generate import Walk
from heptune.service.choice import Choice, Chosen
from heptune.service.text import Growing

STOP, LENGTH, CANCELLED, FAILED = "stop", "length", "cancelled", "failed"


@dataclass(frozen=True)
class Piece:
    """What came into being in one step: a token that was chosen, and the text that is certain since."""

    text: str
    chosen: Chosen | None = None


@dataclass(frozen=True)
class End:
    """The last thing that is heard of a reply. `reason`: STOP, LENGTH, CANCELLED, or FAILED with `error`."""

    reason: str
    error: str = ""


@dataclass(eq=False)
class Reply:
    """A prompt and what is said to it.

    - `model`: whose reply it is, and `rows`, what that changes
    - `tokens`: the prompt's, with what stands before it (ids below zero), then those that were said
    - `limit`: how many tokens may be said
    - `hear`: is called with every `Piece` and, last, with the `End`; by the engine's thread
    """

    model: Any
    rows: RowChanges
    tokens: list[int]
    limit: int
    choice: Choice
    stop_tokens: frozenset[int]
    text: Growing
    hear: Callable[[Piece | End], None]
    walk: Walk | None = None
    prompt: int = field(init=False)
    slot: Slot | None = None
    cached: int = 0  # prompt tokens that were not computed
    cancelled: bool = False

    def __post_init__(self) -> None:
        self.prompt = len(self.tokens)

    @property
    def said(self) -> Sequence[int]:
        """The tokens that were said."""
        return self.tokens[self.prompt :]

    @property
    def filled(self) -> int:
        """Tokens whose keys and values are there."""
        return 0 if self.slot is None else self.slot.filled

    @property
    def reading(self) -> bool:
        """Whether part of the prompt is still to be read."""
        return self.filled < self.prompt - 1
