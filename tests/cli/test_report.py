"""A run made by `heptune tune`, reported, and made again by the command that the report gives."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from heptune.reporting.report import findings


@pytest.mark.parametrize("technique", [("lora", "--rank", 3, "--targets", "attention.q,attention.v"), ("prefix",)])
def test_the_command_in_the_report_makes_the_run_again(
    heptune, base: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, technique: tuple[object, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    name, *own = technique
    words = [
        "--technique",
        name,
        *own,
        "--instruction",
        "Good or\nbad? It's 'up' to | you",
        "--no-share",
        "--limit",
        40,
    ]
    words += ["--validation", 0.2, "--max-steps", 2, "--learning-rate", 2e-3, "--clip", 0, "--seed", 3, "--threads", 1]
    assert heptune("tune", base, reviews, *words, "--out", "runs/first").code == 0
    assert heptune("eval", "runs/first").code == 0
    said = heptune("report", "runs/first")
    assert said.code == 0 and Path("runs/first/report.html").is_file()
    assert "macro-F1" in heptune("report", "runs/first", "--markdown").out
    (what, line), *_ = findings("runs/first").commands
    assert what == "train it again"
    assert line.startswith("heptune tune ") and "\\\n" in line
    shell = ["sh", "-c", line.replace("heptune", "printf '%s\\0'", 1)]  # as a shell takes it, line breaks included
    *arguments, _ = subprocess.run(shell, capture_output=True, text=True, check=True).stdout.split("\0")
    assert heptune(*arguments).code == 0
    first, again = (json.loads(Path(f"runs/{n}/manifest.json").read_text("utf-8")) for n in ("first", "first-again"))
    for key in ("technique", "task", "data", "split", "base", "threads", "steps"):
        if key != "technique":
            assert first[key] == again[key], key
    effective = first["settings"]
    assert effective == again["settings"]
    for key, value in first["technique"]["settings"].items():
        assert value == again["technique"]["settings"][key] or key in effective
    assert first["result"]["best_validation"] == again["result"]["best_validation"]
