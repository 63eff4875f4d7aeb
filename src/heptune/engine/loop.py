"""The training loop. A step is a pure function of (run, step); the loop adds validation, checkpoints and an end.

It prints nothing: what happens is told to a listener.
"""

from __future__ import annotations

import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from heptune.core.errors import NonFiniteLossError
from heptune.core.events import CheckpointSaved, Listener, Note, StepDone, TrainingEnded, TrainingStarted, Validated
from heptune.core.seeds import derive
from heptune.engine import checkpoint
from heptune.engine.batches import Batches
from heptune.engine.forward import Forward
from heptune.engine.memory import freed_memory_kept, used_bytes
from heptune.engine.optimizer import adamw, learning_rate
from heptune.engine.settings import Settings
from heptune.runs.files import new_folder
from heptune.tasks.example import Example
from heptune.tasks.store import lengths, targets
from heptune.techniques._contract import Attached

# Validations in a run when nobody says how often.
VALIDATIONS = 4


@dataclass(frozen=True)
class Validation:
    """How a run is judged while it trains: `score()` gives metrics, of which `metric` chooses the best step."""

    score: Callable[[], dict[str, float]]
    metric: str
    higher_is_better: bool

    def better(self, new: dict[str, float], old: dict[str, float] | None) -> bool:
        """Whether new metrics beat old ones; the loss decides between equal ones."""
        if old is None:
            return True
        sign = 1 if self.higher_is_better else -1
        a, b = sign * new[self.metric], sign * old[self.metric]
        return a > b or (a == b and new["loss"] < old["loss"])


@dataclass
class State:
    """What a checkpoint remembers beside tensors. `time_s` is training time, `peak_bytes` the most memory in use, over
    all sittings."""

    step: int = 0
    time_s: float = 0.0
    tokens: int = 0
    supervised_tokens: int = 0
    best_step: int | None = None
    best_metrics: dict[str, float] | None = None
    first_metrics: dict[str, float] | None = None
    without_gain: int = 0
    peak_bytes: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a training ended. `reason` as in `TrainingEnded`."""

    reason: str
    state: State


@dataclass
class Training:
    """One training: everything a step depends on, and where its state lies."""

    folder: Path
    base: str
    forward: Forward
    attached: Attached
    examples: Sequence[Example]
    describe: Callable[[int], str]  # where the record with this index stands, for error messages
    settings: Settings
    peak_learning_rate: float
    steps: int
    validation: Validation | None
    listener: Listener
    validate_at: frozenset[int] | None = None  # the steps after which to validate, instead of what the settings say
    optimizer: torch.optim.AdamW = field(init=False)
    batches: Batches = field(init=False)
    state: State = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = adamw(self.attached.parameters, self.settings.weight_decay)
        self.batches = batches_of(self.examples, self.settings)
        self.state = State()
        self._validation_s = 0.0  # what the last validation took; time that a limit has to leave over
        self._saved_step = -1

    def run(self, until: int | None = None) -> Outcome:
        """Trains from the newest checkpoint (or from the beginning) to the end; to step `until` at most, if given."""
        saved = checkpoint.load_newest(self._checkpoints, self.attached.parameters, self.optimizer, self.listener)
        if saved is not None:
            self.state = State(**{k: v for k, v in saved.items() if k in State.__dataclass_fields__})
            self._saved_step = self.state.step
        self.listener(self._started())
        began = time.monotonic() - self.state.time_s
        last_save = time.monotonic()
        self._note_memory(used_bytes(self.forward.device))
        with _asked_to_stop() as asked, freed_memory_kept():
            if self.state.step == 0 and self._validates_first() and self.state.best_metrics is None:
                self._validate()
            while (reason := self._reason_to_end(asked, until)) is None:
                event = self._step()
                self._note_memory(event.memory_bytes)
                self.state.time_s = time.monotonic() - began
                self.listener(event)
                gained = self._validation_is_due() and self._validate()
                self.state.time_s = time.monotonic() - began
                if gained or time.monotonic() - last_save > 60 * self.settings.save_minutes:
                    self._save()
                    last_save = time.monotonic()
            if reason == "time" and self.validation is not None and not self._validation_is_due():
                self._validate()
            self.state.time_s = time.monotonic() - began
            self._note_memory(used_bytes(self.forward.device))
            if self._saved_step != self.state.step:
                self._save()
        self.listener(TrainingEnded(self.state.step, reason, self.state.time_s))
        return Outcome(reason, self.state)

    def _note_memory(self, used: int) -> None:
        self.state.peak_bytes = max(self.state.peak_bytes, used)

    def _started(self) -> TrainingStarted:
        return TrainingStarted(
            step=self.state.step,
            planned_steps=self.steps,
            epochs=self.steps / max(1, self.batches.steps(1)),
            trainable=sum(p.numel() for p in self.attached.parameters.values()),
            examples=len(self.examples),
            supervised_tokens=targets(self.examples),
        )

    def _reason_to_end(self, asked: threading.Event, until: int | None) -> str | None:
        if self.state.step >= self.steps:
            return "finished"
        if asked.is_set():
            return "interrupted"
        if until is not None and self.state.step >= until:
            return "paused"
        limit = self.settings.max_minutes
        if limit is not None and self.state.time_s + self._validation_s >= 60 * limit:
            return "time"
        if self.settings.patience is not None and self.state.without_gain >= self.settings.patience:
            return "early stopping"
        return None

    def _step(self) -> StepDone:
        began = time.monotonic()
        step = self.state.step
        batch = [self.examples[i] for i in self.batches.step(step)]
        loss, rows = accumulate(self.forward, self.attached, batch, self.settings, step)
        norm = self._clip()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._not_finite(loss, norm, batch)
        rate = learning_rate(step, self.steps, self.peak_learning_rate, self.settings.warmup, self.settings.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        tokens, supervised = sum(len(e.tokens) for e in batch), sum(e.targets for e in batch)
        self.state.step += 1
        self.state.tokens += tokens
        self.state.supervised_tokens += supervised
        memory, time_s = used_bytes(self.forward.device), time.monotonic() - began
        return StepDone(self.state.step, loss, rate, norm, tokens, rows, supervised, time_s, memory)

    def _clip(self) -> float:
        """The global gradient norm; gradients are scaled down to `clip` where it is larger."""
        limit = self.settings.clip or math.inf
        return float(torch.nn.utils.clip_grad_norm_(self.attached.parameters.values(), limit))

    def _not_finite(self, loss: float, norm: float, batch: list[Example]) -> NonFiniteLossError:
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient norm is {norm} (loss {loss:.4g})"
        places = ", ".join(self.describe(example.record) for example in batch[:8])
        more = f" and {len(batch) - 8} more" if len(batch) > 8 else ""
        kept = sorted(p.name for p in self._checkpoints.glob("step-*")) if self._checkpoints.exists() else []
        stays = f"the checkpoint {kept[-1]} stays" if kept else "no step was saved yet"
        return NonFiniteLossError(
            f"{what} at step {self.state.step + 1}; its examples: {places}{more}. Nothing was updated; {stays}. "
            "Try a lower --learning-rate, or look at these examples with `heptune check`"
        )

    def _validates_first(self) -> bool:
        return self.validation is not None and (self.validate_at is None or 0 in self.validate_at)

    def _validation_is_due(self) -> bool:
        if self.validation is None:
            return False
        if self.validate_at is not None:
            return self.state.step in self.validate_at
        every = self.settings.validate_every or math.ceil(self.steps / VALIDATIONS)
        return self.state.step % every == 0 or self.state.step == self.steps

    def _validate(self) -> bool:
        """Scores the validation part; a best result is saved as an artifact at once. Whether it was one."""
        assert self.validation is not None
        self.attached.begin_step(None)
        began = time.monotonic()
        metrics = self.validation.score()
        self._validation_s = time.monotonic() - began
        best = self.validation.better(metrics, self.state.best_metrics)
        self.state.first_metrics = self.state.first_metrics or metrics
        if best:
            self._write(lambda: self._save_best(metrics))
        self.state.without_gain = 0 if best else self.state.without_gain + 1
        self.listener(Validated(self.state.step, metrics, self.validation.metric, best))
        return best

    def _save_best(self, metrics: dict[str, float]) -> None:
        with new_folder(self.folder / f"best-{self.state.step:06d}") as folder:
            self.attached.save(folder, self.base)
        self.state.best_step, self.state.best_metrics = self.state.step, metrics

    def _save(self) -> None:
        self._write(self._save_checkpoint)

    def _save_checkpoint(self) -> None:
        began = time.monotonic()
        state = {name: getattr(self.state, name) for name in State.__dataclass_fields__}
        path = checkpoint.save(self._checkpoints, self.state.step, self.attached.parameters, self.optimizer, state)
        self._saved_step = self.state.step
        named = checkpoint.best_steps(self._checkpoints)
        for folder in self.folder.glob("best-*"):
            if int(folder.name.removeprefix("best-")) not in named:
                shutil.rmtree(folder, ignore_errors=True)
        self.listener(CheckpointSaved(self.state.step, str(path), time.monotonic() - began))

    def _write(self, action: Callable[[], None]) -> None:
        """Training outlives a failed write (a full disk): the person is told, the last good state stays."""
        try:
            action()
        except checkpoint.WRITE_ERRORS as error:
            text = (
                f"step {self.state.step} could not be saved ({error}); the state saved before stays. Free some space: "
            )
            self.listener(Note(f"{text}training goes on and tries again", "warning"))

    @property
    def _checkpoints(self) -> Path:
        return self.folder / "checkpoints"


def batches_of(examples: Sequence[Example], settings: Settings) -> Batches:
    """The order of these examples under these settings."""
    return Batches(lengths(examples), settings.seed, settings.batch_tokens, settings.batch_size)


def accumulate(
    forward: Forward, attached: Attached, batch: Sequence[Example], settings: Settings, step: int
) -> tuple[float, int]:
    """The batch's mean loss per supervised token, its gradient added to the parameters', and the rows computed.

    The batch is cut into forests of at most `micro_tokens` rows; as each is weighted by the whole batch's supervised
    tokens, the cut does not change the gradient. Where examples have weights, the mean is weighted by them.
    """
    supervised = sum(example.targets * example.weight for example in batch)
    loss, rows = 0.0, 0
    for number, portion in enumerate(forward.portions(batch, settings.micro_tokens, settings.share)):
        attached.begin_step(derive(settings.seed, "step", step, number))
        with forward.loss(portion, settings.share) as part:
            (part.total / supervised).backward()
            loss += float(part.total.detach()) / supervised
            rows += part.rows
    return loss, rows


def steps_in_time(
    forward: Forward,
    attached: Attached,
    examples: Sequence[Example],
    settings: Settings,
    validation: Validation | None,
    limit: int,
) -> int:
    """How many steps fit into `max_minutes`: measured on the first steps' batches (no parameter changes).

    At most `limit`. A tenth of the time is left over, because other work on the machine slows a step now and then.
    """
    assert settings.max_minutes is not None
    batches = batches_of(examples, settings)
    began = time.monotonic()
    times = []
    for step in range(min(3, limit)):
        start = time.monotonic()
        accumulate(forward, attached, [examples[i] for i in batches.step(step)], settings, step)
        times.append(time.monotonic() - start)
    for parameter in attached.parameters.values():
        parameter.grad = None
    attached.begin_step(None)
    step_s = sum(times[1:] or times) / len(times[1:] or times)
    validation_s = 0.0
    if validation is not None:
        start = time.monotonic()
        validation.score()
        validation_s = (1 + VALIDATIONS) * (time.monotonic() - start)
    left_s = 0.9 * (60 * settings.max_minutes - (time.monotonic() - began)) - validation_s
    return max(1, min(limit, int(left_s / step_s)))


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """Set once the person (Ctrl-C) or the system (SIGTERM) asks to stop; the step under way is finished first. A second
    Ctrl-C ends at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if asked.is_set() and number == signal.SIGINT:  # a batch system may well send SIGTERM more than once
            raise KeyboardInterrupt
        asked.set()

    before: dict[int, Any] = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
