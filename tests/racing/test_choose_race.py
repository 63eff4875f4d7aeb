"""A race on questions with options, to its verdict and its report: answers that are right or wrong, but no labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from heptune.core.events import ignore
from heptune.racing import course
from heptune.racing.places import Here
from heptune.racing.race import Race
from heptune.reporting.report import report, report_markdown
from heptune.runs.files import read_json
from questions import with_options, write


@pytest.fixture
def raced(entered: Callable[..., Race], tmp_path: Path) -> Race:
    torch.set_num_threads(1)
    data = write(tmp_path / "options.jsonl", with_options(60))
    race = entered(tmp_path / "race", data, ("lora",), max_steps=8, max_length=256, learning_rate=None)
    return course.run(race, Here(), ignore)


def test_a_race_on_options_comes_to_its_verdict(raced: Race) -> None:
    verdict = raced.verdict
    assert raced.values["task"]["name"] == "choose" and verdict["metric"] == "accuracy"
    contenders = {each["name"]: each for each in verdict["contenders"]}
    assert set(contenders) == {
        "lora",
        "base, zero-shot",
        "option most like the question (TF-IDF)",
        "longest option",
        "most frequent position",
    }
    (final,) = raced.values["finals"]
    answers = [read_json(raced.folder / run["run"] / "test.json") for run in final["runs"]]
    for seed, found in zip(contenders["lora"]["seeds"], answers, strict=True):
        assert found.keys() == {"correct", "log_p", "scoring_s"} and len(found["correct"]) == 12
        assert seed["score"] == pytest.approx(sum(found["correct"]) / 12)
        assert all(log_p < 0 for log_p in found["log_p"])
    assert contenders["longest option"]["kind"] == "baseline" and "loss" in contenders["lora"]["metrics"]
    assert "confusion" not in verdict

    page = report(raced.folder).read_text("utf-8")
    assert "longest option" in page and "most frequent position" in report_markdown(raced.folder)
