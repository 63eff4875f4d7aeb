from __future__ import annotations

import io

import pytest
from rich.console import Console

from heptune.cli.live import Bars, Lines, Pace, live
from heptune.core.events import Note, Progress, StepDone, TrainingEnded, TrainingStarted, Validated


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def step(number: int, loss: float = 1.0, time_s: float = 2.0) -> StepDone:
    return StepDone(number, loss, 2e-4, 0.5, 100, 80, 20, time_s, 3 * 1024**3)


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, markup=False, highlight=False, width=100)


def text(made: Console) -> str:
    assert isinstance(made.file, io.StringIO)
    return made.file.getvalue()


def test_pace_smooths_the_loss_without_a_pull_towards_zero() -> None:
    pace = Pace()
    pace.add(step(1, loss=4.0))
    assert pace.loss == pytest.approx(4.0)
    pace.add(step(2, loss=2.0))
    assert 2.0 < pace.loss < 4.0


def test_pace_counts_tokens_and_the_time_left_with_validations() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.planned = 11
    pace.add(step(1))
    assert pace.left_s == pytest.approx(20)
    for number in range(2, 6):
        clock.now += 3  # two seconds of training and one of something else
        pace.add(step(number))
    assert pace.tokens_per_s == pytest.approx(50)
    assert pace.left_s == pytest.approx(3 * 6)


def test_lines_print_at_most_one_step_in_ten_seconds_and_always_the_last() -> None:
    clock, made = Clock(), console(terminal=False)
    with Lines(made, clock) as listener:
        listener(TrainingStarted(0, 30, 3.0, 1_000_000, 50, 4000))
        for number in range(1, 31):
            clock.now += 2
            listener(step(number))
        listener(TrainingEnded(30, "finished", 60.0))
    lines = text(made).splitlines()
    steps = [line.split()[1] for line in lines if line.startswith("step ")]
    assert steps == ["1/30", "6/30", "11/30", "16/30", "21/30", "26/30", "30/30"]
    assert "1M parameters" in lines[0] and lines[-1] == "training ended after step 30 (finished), 1 min 00 s"
    assert "loss 1.0000" in lines[1] and "50 tokens/s" in lines[1] and "3.0 GiB" in lines[1]


def test_lines_print_validations_with_the_score_before() -> None:
    made = console(terminal=False)
    listener = Lines(made)
    listener(Validated(0, {"accuracy": 0.25, "loss": 2.0}, "accuracy", True))
    listener(Validated(5, {"accuracy": 0.75, "loss": 1.0}, "accuracy", True))
    listener(Validated(9, {"accuracy": 0.5, "loss": 1.5}, "accuracy", False))
    lines = text(made).splitlines()
    assert lines[1] == "validation after step 5: accuracy 0.2500 -> 0.7500, loss 2.0000 -> 1.0000  * best so far"
    assert lines[2] == "validation after step 9: accuracy 0.2500 -> 0.5000, loss 2.0000 -> 1.5000"


def test_lines_mark_warnings_and_print_text_as_it_is() -> None:
    made = console(terminal=False)
    listener = Lines(made)
    listener(Note("a [red]bracket[/red]"))
    listener(Note("careful", "warning"))
    assert text(made).splitlines() == ["a [red]bracket[/red]", "warning: careful"]


def test_lines_tell_of_long_other_work_only() -> None:
    clock, made = Clock(), console(terminal=False)
    listener = Lines(made, clock)
    listener(Progress("scoring", 1, 3))
    assert text(made) == ""
    clock.now = 11
    listener(Progress("scoring", 2, 3))
    listener(Progress("scoring", 3, 3))
    assert text(made) == "scoring: 2/3 examples\n"


def test_bytes_are_shown_in_the_unit_that_fits_them() -> None:
    clock, made = Clock(), console(terminal=False)
    listener = Lines(made, clock)
    clock.now = 11
    listener(Progress("reading a.jsonl", 3 << 20, 5 << 30, "bytes"))
    assert text(made) == "reading a.jsonl: 3.0 MiB of 5.0 GiB\n"
    with Bars(console(terminal=True)) as bars:
        bars(Progress("reading a.jsonl", 3 << 20, 5 << 30, "bytes"))
        assert "3.0 MiB of 5.0 GiB" in _picture(bars)
        bars(Progress("measuring", 7, 9, "records"))
        assert "measuring" in _picture(bars) and "7/9" in _picture(bars)


def test_bars_show_the_state_and_keep_lines_above() -> None:
    made = console(terminal=True)
    with Bars(made) as listener:
        listener(Progress("scoring", 1, 3))
        assert "scoring" in _picture(listener) and "1/3" in _picture(listener)
        listener(Progress("scoring", 3, 3))
        listener(TrainingStarted(0, 30, 3.0, 1_000_000, 50, 4000))
        listener(step(1))
        picture = _picture(listener)
        assert "training" in picture and "1/30" in picture and "scoring" not in picture
        assert "loss 1.0000" in picture and "50 tokens/s" in picture and "left" in picture and "3.0 GiB" in picture
        listener(Note("careful", "warning"))
        listener(TrainingEnded(1, "interrupted", 2.0))
        assert "1/30" not in _picture(listener)
    assert "warning: careful" in text(made)
    assert "training ended after step 1 (interrupted), 2.0 s" in text(made)


def test_without_a_terminal_there_are_lines() -> None:
    assert isinstance(live(console(terminal=False)), Lines)


def _picture(listener: Bars) -> str:
    made = console(terminal=False)
    made.print(listener)
    return text(made)
