"""What a technique adds to a model, in elements. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


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
