"""A run's events as a person sees them: a live bar on a terminal, plain lines everywhere else."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn
from rich.spinner import Spinner
from rich.text import Text

from heptune.core import events
from heptune.core.events import Event, Note, StepDone, TrainingEnded, TrainingStarted, Validated
from heptune.core.units import format_bytes, format_count, format_seconds

LINE_EVERY_S = 10.0  # without a terminal: at most one line of progress in this time
SMOOTHING = 0.9  # weight of the losses before in the loss that is shown
PACE_STEPS = 20  # steps over which tokens/s are averaged


class Pace:
    """What the steps so far say about the training: a smoothed loss, tokens per second, the time left."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.planned = 0
        self.last: StepDone | None = None
        self.first: tuple[int, float] | None = None
        self.recent: deque[StepDone] = deque(maxlen=PACE_STEPS)
        self.sum = self.weight = 0.0

    def add(self, event: StepDone) -> None:
        """Takes in one step."""
        self.first = self.first or (event.step, self.clock())
        self.last = event
        self.recent.append(event)
        self.sum = SMOOTHING * self.sum + (1 - SMOOTHING) * event.loss
        self.weight = SMOOTHING * self.weight + (1 - SMOOTHING)

    @property
    def loss(self) -> float:
        """The exponentially smoothed loss in nats per supervised token, without the pull towards zero at the start."""
        return self.sum / self.weight

    @property
    def tokens_per_s(self) -> float:
        """Real tokens per second of training, validations not counted."""
        return sum(e.tokens for e in self.recent) / max(sum(e.time_s for e in self.recent), 1e-9)

    @property
    def left_s(self) -> float:
        """The time that the planned steps still take, at the pace since the first step, validations included."""
        assert self.last is not None and self.first is not None
        step, since = self.first
        done = self.last.step - step
        step_s = (self.clock() - since) / done if done else self.last.time_s
        return step_s * (self.planned - self.last.step)

    def __str__(self) -> str:
        assert self.last is not None
        return (
            f"loss {self.loss:.4f}  learning rate {self.last.learning_rate:.2g}  {self.tokens_per_s:.0f} tokens/s  "
            f"{format_seconds(self.left_s)} left  {format_bytes(self.last.memory_bytes)}"
        )


class Story:
    """The events that deserve a line of their own, as text."""

    def __init__(self) -> None:
        self.before: dict[str, float] | None = None

    def line(self, event: Event) -> Text | None:
        """The line for an event; None for those that only move a bar."""
        match event:
            case Note(text, "warning"):
                return Text(f"warning: {text}", style="yellow")
            case Note(text):
                return Text(text)
            case TrainingStarted():
                return Text(_started(event))
            case Validated():
                return self._validated(event)
            case TrainingEnded():
                return Text(f"training ended after step {event.step} ({event.reason}), {format_seconds(event.time_s)}")
        return None

    def _validated(self, event: Validated) -> Text:
        scores = ", ".join(
            f"{name} {value:.4f}" if self.before is None else f"{name} {self.before[name]:.4f} -> {value:.4f}"
            for name, value in event.metrics.items()
        )
        self.before = self.before or event.metrics
        line = Text(f"validation after step {event.step}: {scores}")
        return line.append("  * best so far", style="green") if event.best else line


def _amount(event: events.Progress) -> str:
    if event.unit == "bytes":
        return f"{format_bytes(event.done)} of {format_bytes(event.total)}"
    return f"{event.done}/{event.total} {event.unit}"


def _started(event: TrainingStarted) -> str:
    onward = f" (going on after step {event.step})" if event.step else ""
    trainable, supervised = format_count(event.trainable), format_count(event.supervised_tokens)
    return (
        f"training {trainable} parameters for {event.planned_steps} steps{onward}: "
        f"{event.epochs:.3g} epochs of {event.examples} examples ({supervised} supervised tokens)"
    )


class Amount(MofNCompleteColumn):
    """How much is done of how much; bytes in the unit that fits them."""

    def render(self, task: Task) -> Text:
        """The text for one bar."""
        if task.fields.get("unit") != "bytes" or task.total is None:
            return super().render(task)
        return Text(f"{format_bytes(task.completed)} of {format_bytes(task.total)}", style="progress.download")


class Bars:
    """A terminal: one bar for the training, a passing one for other work, lines above them."""

    def __init__(self, console: Console) -> None:
        self.console, self.story, self.pace = console, Story(), Pace()
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), Amount())
        self.bars = Progress(*columns, console=console, expand=True)
        self.training: TaskID | None = None
        self.passing: TaskID | None = None
        self.spinner = Spinner("dots", text="working")
        self.live = Live(self, console=console, refresh_per_second=4, transient=True)

    def __rich__(self) -> RenderableType:
        if not self.bars.task_ids:
            return self.spinner
        state = Text(str(self.pace), style="dim") if self.training is not None and self.pace.last else Text("")
        return Group(self.bars, state)

    def __enter__(self) -> Bars:
        self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    def __call__(self, event: Event) -> None:
        """Shows one event."""
        match event:
            case TrainingStarted():
                self.pace.planned = event.planned_steps
                self.training = self.bars.add_task("training", total=event.planned_steps, completed=event.step)
            case StepDone():
                self.pace.add(event)
                assert self.training is not None
                self.bars.update(self.training, completed=event.step)
            case TrainingEnded() if self.training is not None:
                self.bars.remove_task(self.training)
                self.training = None
            case events.Progress():
                self._pass(event)
        line = self.story.line(event)
        if line is not None:
            self.live.console.print(line, soft_wrap=True)

    def _pass(self, event: events.Progress) -> None:
        if self.passing is None:
            self.passing = self.bars.add_task(event.what)
        self.bars.update(self.passing, description=event.what, completed=event.done, total=event.total, unit=event.unit)
        if event.done >= event.total:
            self.bars.remove_task(self.passing)
            self.passing = None


class Lines:
    """A pipe or a log: whole lines, of progress not more than one in ten seconds, no control codes."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.story, self.pace, self.clock = console, Story(), Pace(clock), clock
        self.last_line = clock()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __call__(self, event: Event) -> None:
        """Prints the event's line, if it is due one."""
        match event:
            case TrainingStarted():
                self.pace.planned = event.planned_steps
            case StepDone():
                self.pace.add(event)
                if len(self.pace.recent) == 1 or event.step == self.pace.planned or self._due():
                    self._print(Text(f"step {event.step}/{self.pace.planned}  {self.pace}"))
            case events.Progress() if event.done < event.total and self._due():
                self._print(Text(f"{event.what}: {_amount(event)}"))
        line = self.story.line(event)
        if line is not None:
            self._print(line)

    def _due(self) -> bool:
        return self.clock() - self.last_line >= LINE_EVERY_S

    def _print(self, line: Text) -> None:
        self.last_line = self.clock()
        self.console.print(line, soft_wrap=True)
        self.console.file.flush()


def live(console: Console) -> Bars | Lines:
    """The listener that suits where the console writes; use it in a `with` block."""
    return Bars(console) if console.is_interactive and console.file.isatty() else Lines(console)
