"""Priors: where they come from, what they are reduced to, and this machine's own races."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heptune import tasks, techniques
from heptune.planning.priors import Comparison, Entry, own, priors, published, remember

RESULTS = Path(__file__).parents[2] / "docs/results"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("heptune.planning.priors.cache_folder", lambda: tmp_path)
    return tmp_path


def test_every_comparison_has_its_source_and_known_names() -> None:
    for comparison in published():
        assert comparison.source and comparison.noise > 0 and comparison.noise_is and comparison.examples > 0
        assert comparison.task in tasks.names()
        assert set(comparison.scores) <= set(techniques.names()) and len(comparison.scores) >= 2


@pytest.mark.parametrize("name", ["sst2", "trec"])
def test_the_projects_own_numbers_are_those_that_were_measured(name: str) -> None:
    report = json.loads((RESULTS / f"techniques_{name}.json").read_text("utf-8"))
    own_results = {"sst2": "SST-2", "trec": "TREC"}[name]
    (comparison,) = (c for c in published() if c.name == own_results and c.base == "SmolLM2-135M")
    measured = {t: 100 * found["metrics"]["accuracy"]["value"] for t, found in report["techniques"].items()}
    assert comparison.scores == pytest.approx(measured, abs=0.006)
    assert comparison.examples == report["settings"]["limit"]


def test_tiers_follow_noise_and_size_of_the_difference() -> None:
    scores = {"a": 90.0, "b": 88.5, "c": 84.0, "d": 70.0}
    comparison = Comparison("x", "y", "chat", "z", 1000, "accuracy", 1.0, scores)
    assert [comparison.tier(name) for name in "abcde"] == [1, 1, 2, 3, None]
    noisy = Comparison("x", "y", "chat", "z", 1000, "accuracy", 8.0, scores)
    assert [noisy.tier(name) for name in "abcd"] == [1, 1, 1, 2]
    loss = Comparison("x", "y", "chat", "z", 1000, "loss", 0.01, {"a": 1.0, "b": 1.5}, lower_is_better=True)
    assert (loss.tier("a"), loss.tier("b")) == (1, 3)


def test_nothing_known_is_said_and_no_score_is_predicted() -> None:
    prior = priors(["telepathy"], "chat", 100)["telepathy"]
    assert prior.tier is None and prior.score is None and prior.words == "no comparison known"
    for known in priors(techniques.names(), "classify", 500).values():
        assert known.tier in (1, 2, 3) and known.score is not None and 1 <= known.score <= 3 and known.evidence


def test_an_own_race_is_remembered_and_outweighs_what_was_published() -> None:
    before = priors(["lora", "prompt"], "classify", 500)
    assert before["lora"].score < before["prompt"].score  # type: ignore[operator]
    for race in ("race-1", "race-2", "race-3", "race-4"):
        for technique, score in (("lora", 0.6), ("prompt", 0.9)):
            remember(Entry("qwen3-8b", "classify", 500, technique, score, 0.9, race))
    assert len(own("classify")) == 8 and own("chat") == [] and len(own()) == 8
    after = priors(["lora", "prompt"], "classify", 500)
    assert after["prompt"].score < after["lora"].score  # type: ignore[operator]
    assert "a race on this machine" in after["prompt"].evidence[0]


def test_a_race_of_losses_is_read_the_right_way_round() -> None:
    for technique, loss in (("lora", 1.0), ("prompt", 2.0)):
        remember(Entry("b", "chat", 500, technique, loss, 1.0, "r"))
    found = priors(["lora", "prompt"], "chat", 500)
    assert "among the best" in found["lora"].evidence[0] and "clearly behind" in found["prompt"].evidence[0]


def test_a_damaged_line_does_not_cost_the_others(cache: Path) -> None:
    path = remember(Entry("b", "chat", 500, "lora", 1.0, 1.0, "r"))
    with path.open("a", encoding="utf-8") as file:
        file.write('{"base": "b", "ta\n{"another": "version"}\n')
    remember(Entry("b", "chat", 500, "prompt", 2.0, 1.0, "r"))
    assert [entry.technique for entry in own()] == ["lora", "prompt"] and path.parent == cache


def test_nearer_comparisons_weigh_more() -> None:
    for race, examples, score in (("near", 1000, 0.5), ("far", 1_000_000, 1.0)):
        remember(Entry("b", "chat", examples, "lora", score, 1.0, race))
        remember(Entry("b", "chat", examples, "other", 1.0, 1.0, race))
    assert priors(["lora"], "chat", 1000)["lora"].score > priors(["lora"], "chat", 1_000_000)["lora"].score  # type: ignore[operator]
