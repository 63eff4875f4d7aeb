"""A short attack with SIGKILL; `make faults` makes a long one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from heptune.runs.files import UNFINISHED, new_folder

ATTACK = Path(__file__).with_name("kills.py")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("victim", ["prompt", "round"])
def test_killed_ones_come_to_the_same_bits(victim: str) -> None:
    words = ["--only", victim, "--kills", "2", "--each", "2", "--seed", "8"]
    done = subprocess.run([sys.executable, str(ATTACK), *words], capture_output=True, text=True, timeout=300)
    print(done.stdout)
    assert done.returncode == 0 and "survived" in done.stdout, done.stdout + done.stderr[-2000:]


def test_what_a_killed_process_left_is_taken_away_and_nothing_of_a_living_one(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    mine, others = tmp_path / f"{UNFINISHED}out-{gone.pid}", tmp_path / f"{UNFINISHED}out-{os.getppid()}"
    elsewhere = tmp_path / f"{UNFINISHED}other-{gone.pid}"
    for folder in (mine, others, elsewhere):
        folder.mkdir()
    with new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("whole")
    assert (tmp_path / "out" / "file").read_text() == "whole"
    assert not mine.exists() and others.exists() and elsewhere.exists()
