"""How a run trains: every knob that is not the technique's own. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from heptune.core.errors import UsageError
from heptune.core.registry import unknown

SCHEDULES = ("cosine", "linear", "constant")
QUANTIZATIONS = ("nf4",)

_ABOVE_ZERO = (
    *("epochs", "max_steps", "max_minutes", "batch_tokens", "batch_size", "micro_tokens"),
    *("learning_rate", "validate_every", "validation_limit", "patience"),
)
_NOT_NEGATIVE = ("weight_decay", "clip", "save_minutes")


def _knob(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """Knobs of a training; each field's help text is its documentation, on the command line too."""

    epochs: float = _knob(3.0, "Passes over the training examples; may be a fraction.")
    max_steps: int | None = _knob(None, "Stop after this many optimizer steps.")
    max_minutes: float | None = _knob(
        None, "Training time limit in minutes, validation included; the schedule is fitted to it."
    )
    batch_tokens: int = _knob(2048, "Tokens of the examples in one optimizer step.")
    batch_size: int | None = _knob(None, "Examples in one optimizer step, instead of --batch-tokens.")
    micro_tokens: int = _knob(
        4096, "Rows computed in one forward pass; less takes less memory. Only dropout masks depend on it."
    )
    max_length: int = _knob(1024, "Longest example in tokens; what is longer is cut and counted.")
    learning_rate: float | None = _knob(None, "Peak learning rate; the technique has its own default.")
    schedule: str = _knob("cosine", "Learning rate after warm-up: cosine or linear (to zero), or constant.")
    warmup: float = _knob(0.06, "Share of the steps during which the learning rate rises, 0 to 1.")
    weight_decay: float = _knob(0.0, "AdamW's decoupled weight decay; never on norms and biases.")
    clip: float = _knob(1.0, "Largest gradient norm; 0 switches clipping off.")
    validate_every: int | None = _knob(None, "Steps between validations; by default four in a run.")
    validation_limit: int = _knob(200, "Most examples scored in one validation.")
    patience: int | None = _knob(None, "Stop after this many validations without a better score.")
    recompute: bool = _knob(False, "Drop activations and compute them again: less memory, about a third more time.")
    share: bool = _knob(True, "Compute leading tokens that examples share once.")
    save_minutes: float = _knob(1.0, "Minutes between checkpoints.")
    quantize: str | None = _knob(
        None,
        "Store the frozen base's linear layers but the head in 4 bits: nf4. A quarter of bfloat16's memory for them.",
    )
    seed: int = _knob(0, "Every random decision follows from it.")

    def __post_init__(self) -> None:
        for name in _ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UsageError(f"{name} is {value}; it must be above 0")
        for name in _NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.max_length < 8:
            raise UsageError(f"max_length is {self.max_length}; an example needs at least 8 tokens")
        if not 0 <= self.warmup < 1:
            raise UsageError(f"warmup is {self.warmup}; it is a share of the steps, at least 0 and below 1")
        if self.schedule not in SCHEDULES:
            raise UsageError(f"schedule is {self.schedule!r}; known: {', '.join(SCHEDULES)}")
        if self.quantize not in (None, *QUANTIZATIONS):
            raise UsageError(f"quantize is {self.quantize!r}; known: {', '.join(QUANTIZATIONS)}")

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Settings:
        """Settings from a dictionary; an unknown name gets an error with the nearest ones."""
        known = {f.name for f in fields(cls)}
        for name in values:
            if name not in known:
                raise unknown("setting", name, known)
        return cls(**values)
