"""Runs a command line of heptune as a person would type it, with the Python that runs the benchmark."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Collection


def run(line: str, threads: str, *, captured: bool = False, accepted: Collection[int] = (0,)) -> str:
    """Runs it and returns what it printed, if that is `captured`; else it prints as it does. Leaves with an error where
    its exit status is not among the `accepted`."""
    print(f"$ {line}", flush=True)
    words = [sys.executable, "-m", "heptune.cli.main", *shlex.split(line)[1:], "--threads", threads]
    done = subprocess.run(words, check=False, stdout=subprocess.PIPE if captured else None, text=True)
    if done.returncode not in accepted:
        raise SystemExit(f"it ended with exit status {done.returncode}")
    return done.stdout or ""
