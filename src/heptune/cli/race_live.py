"""A race as a person follows it: a live table of candidates on a terminal, plain lines everywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from heptune.cli.live import Lines as RunLines
from heptune.cli.live import Story
from heptune.cli.show import bar, shortened, table
from heptune.core.events import (
    CandidateDone,
    CandidateMoved,
    Event,
    Progress,
    RaceStarted,
    RungDecided,
    StageStarted,
)
from heptune.core.units import format_seconds

ROWS = 32  # a longer table does not fit a screen
BAR = 12


@dataclass
class Candidate:
    """What is known of one candidate."""

    step: int = 0
    loss: float | None = None
    metrics: dict[str, float] | None = None
    state: str = "waits"
    alive: bool = True


@dataclass
class Board:
    """The race so far, from its events."""

    clock: Callable[[], float] = time.monotonic
    candidates: dict[str, Candidate] = field(default_factory=dict)
    rungs: tuple[int, ...] = ()
    budget_s: float | None = None
    expected_s: float | None = None
    stage: str = ""
    began: float | None = None

    def take(self, event: Event) -> None:
        """Takes in one event."""
        match event:
            case RaceStarted():
                self.began = self.clock()
                self.rungs, self.budget_s, self.expected_s = event.rungs, event.budget_s, event.expected_s
                self.candidates = {name: Candidate() for name in event.candidates}
            case StageStarted():
                self.stage = event.what
                for name in event.names:
                    self.candidates.setdefault(name, Candidate()).state = "waits"
                    self.candidates.pop(name.partition(" (seed ")[0] if " (seed " in name else "", None)
            case CandidateMoved():
                candidate = self.candidates.setdefault(event.name, Candidate())
                candidate.step, candidate.loss, candidate.state = event.step, event.loss, "trains"
                candidate.metrics = event.metrics or candidate.metrics
            case CandidateDone():
                candidate = self.candidates.setdefault(event.name, Candidate())
                candidate.state = event.failed or "done"
                candidate.alive = candidate.alive and not event.failed
            case RungDecided():
                for standing in event.standings:
                    candidate = self.candidates.setdefault(standing["candidate"], Candidate())
                    candidate.alive, candidate.state = standing["kept"], standing["why"]
                    candidate.metrics = standing["metrics"] or candidate.metrics

    @property
    def time_left(self) -> str:
        """In words, as far as it is known."""
        if self.began is None:
            return ""
        passed = self.clock() - self.began
        if self.expected_s is None:
            return f"{format_seconds(passed)} so far"
        left = max(0.0, self.expected_s - passed)
        budget = f" of a budget of {format_seconds(self.budget_s)}" if self.budget_s else ""
        return f"{format_seconds(passed)} so far, about {format_seconds(left)} left{budget}"


class Screen:
    """A terminal: the table is redrawn in place, notes pass above it."""

    def __init__(self, console: Console) -> None:
        self.console, self.board, self.story = console, Board(), Story()
        self.passing = ""
        self.spinner = Spinner("dots", text="working")
        self.live = Live(self, console=console, refresh_per_second=4, transient=True)

    def __rich__(self) -> RenderableType:
        board = self.board
        if not board.candidates:
            self.spinner.update(text=self.passing or "working")
            return self.spinner
        steps = board.rungs[-1] if board.rungs else 1
        order = sorted(board.candidates.items(), key=lambda item: (not item[1].alive, -item[1].step))
        rows = []
        for name, candidate in order[:ROWS]:
            style = "" if candidate.alive else "dim"
            cells = [
                name,
                f"{bar(candidate.step / steps, BAR):<{BAR}} {candidate.step}/{steps}",
                "" if candidate.loss is None else f"{candidate.loss:.3f}",
                _scores(candidate.metrics),
                shortened(candidate.state, 60),
            ]
            rows.append([Text(cell, style=style) for cell in cells])
        made = table(["candidate", "steps", "loss", "validation", ""], [])
        for row in rows:
            made.add_row(*row)
        more = [Text(f"and {len(order) - ROWS} more")] if len(order) > ROWS else []
        return Group(made, *more, Text(f"{board.stage}; {board.time_left}", style="dim"))

    def __enter__(self) -> Screen:
        self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    def __call__(self, event: Event) -> None:
        """Shows one event."""
        self.board.take(event)
        if isinstance(event, Progress):
            self.passing = f"{event.what}: {event.done}/{event.total} {event.unit}"
        line = self.story.line(event)
        if line is not None:
            self.live.console.print(line, soft_wrap=True)
        for text in told(event, self.board):
            self.live.console.print(text, soft_wrap=True)


class Lines(RunLines):
    """A pipe or a log: whole lines, of progress not more than one in ten seconds."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console, clock)
        self.board = Board(clock)

    def __call__(self, event: Event) -> None:
        """Prints the event's lines, if it is due some."""
        self.board.take(event)
        super().__call__(event)
        for text in told(event, self.board):
            self._print(text)
        if isinstance(event, CandidateMoved) and self._due():
            moving = [f"{n} {c.step}" for n, c in self.board.candidates.items() if c.state == "trains"]
            self._print(Text(f"{self.board.stage}: {', '.join(moving[:4])}; {self.board.time_left}"))


def told(event: Event, board: Board) -> list[Text]:
    """What deserves lines of its own."""
    match event:
        case RaceStarted():
            rungs = ", ".join(map(str, event.rungs))
            side = f", {event.width} at a time" if event.width > 1 else ""
            expected = f"; about {format_seconds(event.expected_s)}" if event.expected_s else ""
            return [Text(f"{len(event.candidates)} candidates race in {event.folder}{side}: steps {rungs}{expected}")]
        case StageStarted():
            return [Text(f"{event.what}: {len(event.names)} to go")]
        case CandidateDone() if event.failed:
            return [Text(f"warning: {event.name} failed: {event.failed}", style="yellow")]
        case RungDecided():
            return [Text(f"after step {event.step}:"), *map(_standing, event.standings)]
    return []


def _standing(standing: dict[str, Any]) -> Text:
    mark, style = ("  goes on  ", "green") if standing["kept"] else ("  is out   ", "dim")
    return Text(f"{mark}{standing['candidate']:<28} {_scores(standing['metrics'])}  {standing['why']}", style=style)


def _scores(metrics: dict[str, float] | None) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in (metrics or {}).items())


def live(console: Console) -> Screen | Lines:
    """The listener that suits where the console writes; use it in a `with` block."""
    return Screen(console) if console.is_interactive and console.file.isatty() else Lines(console)
