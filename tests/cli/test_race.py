"""`heptune race`: its options, the board that is followed, and what it says at the end."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from heptune.cli.race import print_verdict
from heptune.cli.race_live import Board, Lines, Screen, live
from heptune.core.errors import UsageError
from heptune.core.events import (
    CandidateDone,
    CandidateMoved,
    Event,
    Note,
    Progress,
    RaceStarted,
    RungDecided,
    StageStarted,
)
from heptune.core.units import parse_seconds
from heptune.racing.race import Race

from .conftest import Heptune, write_lines


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, markup=False, highlight=False, width=140)


def text(made: Console) -> str:
    assert isinstance(made.file, io.StringIO)
    return made.file.getvalue()


def standing(name: str, kept: bool, why: str, loss: float | None = 0.5) -> dict[str, object]:
    metrics = {} if loss is None else {"accuracy": 0.75, "loss": loss}
    return {"candidate": name, "metrics": metrics, "kept": kept, "why": why}


STARTED = RaceStarted("races/race-1", ("lora-0.0005", "full-1e-05"), (2, 4, 9, 18), 600.0, 300.0, 2)
FIRST = StageStarted("to step 2 of 18", ("lora-0.0005", "full-1e-05"), 2)
DECIDED = RungDecided(
    2, (standing("lora-0.0005", True, "the best of lora"), standing("full-1e-05", False, "the loss is nan", None))
)


def test_the_board_follows_a_race() -> None:
    clock = Clock()
    board = Board(clock)
    assert board.time_left == ""
    for event in (STARTED, FIRST):
        board.take(event)
    assert [c.state for c in board.candidates.values()] == ["waits", "waits"]
    clock.now = 60.0
    assert board.time_left == "1 min 00 s so far, about 4 min 00 s left of a budget of 10 min 00 s"
    board.take(CandidateMoved("lora-0.0005", 1, 2.5, None))
    board.take(CandidateMoved("lora-0.0005", 2, 2.0, {"loss": 0.5}))
    board.take(CandidateMoved("lora-0.0005", 2, 2.0, None))
    lora = board.candidates["lora-0.0005"]
    assert (lora.step, lora.loss, lora.metrics, lora.state) == (2, 2.0, {"loss": 0.5}, "trains")
    board.take(CandidateDone("lora-0.0005", ""))
    board.take(CandidateDone("full-1e-05", "its process died"))
    full = board.candidates["full-1e-05"]
    assert lora.state == "done" and lora.alive and full.state == "its process died" and not full.alive
    board.take(DECIDED)
    assert lora.alive and lora.state == "the best of lora" and not full.alive and full.state == "the loss is nan"
    clock.now = 1000.0
    assert "about 0.0 s left" in board.time_left


def test_in_the_final_a_candidate_has_a_row_for_each_seed_and_no_other() -> None:
    board = Board()
    board.take(STARTED)
    board.take(StageStarted("to step 18 of 18", ("lora-0.0005 (seed 0)", "lora-0.0005 (seed 1)"), 18))
    assert list(board.candidates) == ["full-1e-05", "lora-0.0005 (seed 0)", "lora-0.0005 (seed 1)"]


def test_without_a_forecast_the_time_is_told_so_far() -> None:
    clock = Clock()
    board = Board(clock)
    board.take(RaceStarted("r", ("lora",), (2,), None, None, 1))
    clock.now = 5.0
    assert board.time_left == "5.0 s so far"


def test_lines_say_what_is_decided_and_move_every_ten_seconds() -> None:
    clock, made = Clock(), console(terminal=False)
    with Lines(made, clock) as listener:
        for event in (STARTED, FIRST):
            listener(event)
        for step in range(1, 31):
            clock.now += 1.0
            listener(CandidateMoved("lora-0.0005", step, 2.0, None))
        listener(CandidateDone("full-1e-05", "the loss is nan"))
        listener(Note("full is slow", "warning"))
        listener(DECIDED)
    lines = text(made).splitlines()
    assert lines[0] == "2 candidates race in races/race-1, 2 at a time: steps 2, 4, 9, 18; about 5 min 00 s"
    assert lines[1] == "to step 2 of 18: 2 to go"
    moved = [line for line in lines if "so far" in line]
    assert len(moved) == 3 and moved[0].startswith("to step 2 of 18: lora-0.0005 10; 10 s so far")
    assert "warning: full-1e-05 failed: the loss is nan" in lines and "warning: full is slow" in lines
    assert lines[-3] == "after step 2:"
    assert lines[-2].split() == [
        "goes",
        "on",
        "lora-0.0005",
        "accuracy",
        "0.750,",
        "loss",
        "0.500",
        *["the", "best", "of", "lora"],
    ]
    assert lines[-1].split() == ["is", "out", "full-1e-05", *["the", "loss", "is", "nan"]]


def test_the_screen_shows_a_table_and_leaves_the_decisions() -> None:
    made = console(terminal=True)
    with Screen(made) as listener:
        listener(Progress("planning", 3, 9, "techniques"))
        made.print(listener)
        assert "planning: 3/9 techniques" in text(made)
        events: tuple[Event, ...] = (STARTED, FIRST, CandidateMoved("lora-0.0005", 9, 2.25, {"loss": 0.5}), DECIDED)
        for event in events:
            listener(event)
        before = len(text(made))
        made.print(listener)
        shown = text(made)[before:]
    assert "9/18" in shown and "2.250" in shown and "loss 0.500" in shown and "the best of lora" in shown
    assert shown.index("lora-0.0005") < shown.index("full-1e-05")  # who is out stands below
    assert "to step 2 of 18; " in shown
    assert "after step 2:" in text(made)


def test_a_long_table_is_cut() -> None:
    made = console(terminal=True)
    listener = Screen(made)
    listener(RaceStarted("r", tuple(f"lora-{n}" for n in range(40)), (2, 4), None, None, 1))
    made.print(listener)
    assert "and 8 more" in text(made)


def test_a_terminal_gets_the_screen_and_a_pipe_lines() -> None:
    assert isinstance(live(console(terminal=False)), Lines)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("90s", 90), ("10m", 600), ("10 min", 600), ("1.5h", 5400), ("7", 420), (" 2 m ", 120), ("0.5s", 0.5)],
)
def test_times_are_read_with_their_units(written: str, seconds: float) -> None:
    assert parse_seconds(written) == seconds


@pytest.mark.parametrize("written", ["", "0", "0s", "-1m", "10x", "m", "1h30m", "1e3s", "ten minutes"])
def test_what_is_no_time_is_refused(written: str) -> None:
    with pytest.raises(UsageError, match="write e.g. 90s, 10m or 2h"):
        parse_seconds(written)


def test_help(heptune: Heptune) -> None:
    said = heptune("race", "--help")
    assert said.code == 0
    for name in (
        "--budget",
        "--budget-tokens",
        "--techniques",
        "--rates",
        "--finalists",
        "--seeds",
        "--parallel",
        "--on",
    ):
        assert name in said.out, name


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--on", "moon"), "--on is 'moon'; known: here, ray"),
        (("--budget", "5m", "--budget-tokens", "1000"), "a race has one budget"),
        (("--budget", "soon"), "'soon' is no time"),
        (("--metric", "f1"), "there is no metric named 'f1'; known: accuracy, loss"),
        (("--techniques", "lora,lroa"), "did you mean"),
        (("--rates", "0"), "rates must be factors above 0"),
        (("--techniques", "lora,lora"), "lora is entered twice"),
        (("--budget-tokens", "1", "--techniques", "lora"), "raise --budget"),
        (("--test", "0"), "give --test"),
        (("--validation", "0"), "give --validation"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    words: tuple[str, ...], expected: str, heptune: Heptune, base: Path, reviews: Path, tmp_path: Path
) -> None:
    said = heptune("race", base, reviews, "--out", tmp_path / "race", *words)
    assert said.code != 0 and expected in said.err.replace("\n", " "), said
    assert "Traceback" not in said.err and not (tmp_path / "race").exists()


def test_on_ray_without_ray(heptune: Heptune, base: Path, reviews: Path, tmp_path: Path) -> None:
    try:
        import ray  # noqa: F401
    except ImportError:
        words = ("--on", "ray", "--budget", "none", "--techniques", "lora", "--batch-size", "4")
        said = heptune("race", base, reviews, "--out", tmp_path / "race", *words)
        assert said.code == 2 and "pip install 'heptune[ray]'" in said.err
        assert Race(tmp_path / "race").values["status"] == "new"
    else:
        pytest.skip("ray is installed")


@pytest.mark.parametrize(
    ("width", "says_ties", "draws_bars"), [(80, False, False), (100, True, False), (130, True, True)]
)
def test_a_verdict_fits_the_screen(width: int, says_ties: bool, draws_bars: bool) -> None:
    """No score is broken in two; what there is no room for is left out."""
    names = ("prefix", "adapter", "TF-IDF + logistic regression", "most frequent label")
    contenders = [
        {
            "name": name,
            "kind": "technique" if trained else "baseline",
            "score": {"value": 0.84, "low": 0.768, "high": 0.893},
            "time_s": 3720.0,
            "memory_bytes": 1.5 * 2**30,
            "artifact_bytes": 513.2 * 2**20,
            "tied_with_best": True,
            "pareto": True,
        }
        for name, trained in zip(names, (True, True, False, False), strict=True)
    ]
    verdict = {"examples": 200, "part": "the test part", "metric": "accuracy", "level": 0.95, "winner": "prefix"}
    values = {"task": {"name": "classify"}, "cost": {"time_s": 60.0}, "candidates": [1, 2]}
    race: Any = SimpleNamespace(
        verdict={**verdict, "contenders": contenders, "words": ["prefix wins."]},
        values={**values, "exhaustive_cost_estimate": {"time_s": 90.0}},
    )
    screen = Console(file=io.StringIO(), width=width, markup=False, highlight=False)
    print_verdict(race, screen)
    lines = text(screen).splitlines()
    scores = [line for line in lines if "0.840 [0.768, 0.893]" in line]
    assert len(scores) == 4 and scores[0].startswith("* prefix")
    assert all(("tied front" in line) == says_ties and ("█" in line) == draws_bars for line in scores)
    assert sum("█" in line for line in lines) == 4 * draws_bars
    assert max(map(len, scores)) <= width


def test_a_race_that_a_baseline_wins(heptune: Heptune, base: Path, tmp_path: Path) -> None:
    """Labels that follow from a word: counting words is right every time, and needs no training."""
    rows: list[dict[str, object]] = [
        {"text": f"{word} number {n}", "label": label}
        for n in range(50)
        for word, label in (("up", "yes"), ("down", "no"))
    ]
    data, out = write_lines(tmp_path / "data.jsonl", rows), tmp_path / "race"
    words = ("--budget", "none", "--techniques", "prompt", "--rates", "1", "--finalists", "1", "--test", "0.4")
    said = heptune("race", base, data, "--out", out, *words, "--batch-size", "4", "--epochs", "0.8", "--parallel", "1")
    assert said.code == 0, said
    assert "No technique is shown to beat the baselines, so the verdict is the baseline" in said.out
    assert "after step" in said.out
    assert f"Next:  heptune report {out}" in said.out and "heptune chat" not in said.out
    assert Race(out).winner is None
    again = heptune("resume", out)
    assert again.code == 0 and "No technique is shown to beat" in again.out
    page = heptune("report", out)
    assert page.code == 0 and (out / "report.html").is_file()
