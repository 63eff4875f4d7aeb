"""What a technique adds to a model, in elements. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Cost:
    """What a technique adds, in elements.

    `trainable`: elements that receive a gradient. `optimizer`: elements that AdamW keeps for them. `activations`:
    elements per computed row that the backward pass keeps because of the technique. `tokens`: rows added to a batch.
    """

    trainable: int
    optimizer: int
    activations: int = 0
    tokens: int = 0

    def with_head(self, classes: int, hidden: int) -> Cost:
        """The same with a linear head of so many classes beside it; AdamW keeps two moments of each element."""
        head = classes * (hidden + 1)
        return replace(self, trainable=self.trainable + head, optimizer=self.optimizer + 2 * head)
