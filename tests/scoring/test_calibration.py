"""Temperature scaling and the expected calibration error against plain loops and independent optimisers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heptune import api
from heptune.cli.main import main
from heptune.core.errors import RunError
from heptune.core.events import Event, Note
from heptune.reporting.words import evaluation_words
from heptune.runs.run import Run
from heptune.scoring.calibration import (
    FEWEST,
    HIGHEST,
    LOWEST,
    Calibration,
    calibration_error,
    calibration_error_interval,
    confidences,
    fit,
    log_probabilities,
    negative_log_likelihood,
)
from heptune.scoring.score import normalised
from heptune.techniques.freeze import Freeze
from tiny import tiny_model, tiny_tokenizer


def drawn(n: int, labels: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores that are too sure by exactly this temperature, and labels drawn from what they should be."""
    random = np.random.default_rng(seed)
    honest = normalised(2 * random.standard_normal((n, labels)))
    truth = np.array([random.choice(labels, p=np.exp(row) / np.exp(row).sum()) for row in honest])
    return honest * temperature + random.standard_normal((n, 1)), truth  # a constant per example means nothing


def plain_error(confidence: list[float], right: list[bool], bins: int) -> float:
    """As Guo et al. 2017, section 2, write it: bin m holds the confidences in ((m - 1) / M, m / M]."""
    total = 0.0
    for m in range(1, bins + 1):
        members = [i for i, p in enumerate(confidence) if (m - 1) / bins < p <= m / bins or (m == 1 and p == 0)]
        if members:
            accuracy = sum(right[i] for i in members) / len(members)
            mean = sum(confidence[i] for i in members) / len(members)
            total += len(members) / len(confidence) * abs(accuracy - mean)
    return total


class TestError:
    @settings(max_examples=80, deadline=None)
    @given(
        answers=st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), bins=st.integers(1, 20)
    )
    def test_it_is_the_plain_loop(self, answers: list[tuple[float, bool]], bins: int) -> None:
        # Where p * bins rounds onto a whole number, p and the bin's edge are one rounding apart: those are left out.
        answers = [(p, r) for p, r in answers if abs(p * bins - round(p * bins)) > 1e-9 or p in (0.0, 1.0)]
        if answers:
            confidence, right = map(list, zip(*answers, strict=True))
            found = calibration_error(np.array(confidence), np.array(right), bins)
            assert found == pytest.approx(plain_error(confidence, right, bins), abs=1e-12)

    def test_by_hand(self) -> None:
        confidence, right = np.array([0.95, 0.95, 0.55, 0.55]), np.array([True, False, True, True])
        assert calibration_error(confidence, right, 10) == pytest.approx(0.5 * 0.45 + 0.5 * 0.45)
        assert calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0
        assert calibration_error(np.array([1.0]), np.array([False])) == 1

    def test_honest_probabilities_have_almost_none(self) -> None:
        scores, truth = drawn(20_000, 3, 1.0)
        assert calibration_error(*confidences(scores, truth)) < 0.015
        assert calibration_error(*confidences(3 * scores, truth)) > 0.1

    def test_the_interval_is_that_of_resampled_plain_errors(self) -> None:
        scores, truth = drawn(60, 3, 2.0)
        confidence, right = confidences(scores, truth)
        found = calibration_error_interval(confidence, right, resamples=4000)
        assert found.value == pytest.approx(plain_error(confidence.tolist(), right.tolist(), 15), abs=1e-12)
        random = np.random.default_rng(1)
        again = []
        for _ in range(1500):
            places = random.integers(0, 60, 60)
            again.append(plain_error(confidence[places].tolist(), right[places].tolist(), 15))
        assert (found.low, found.high) == pytest.approx(tuple(np.quantile(again, (0.025, 0.975))), abs=0.02)
        assert calibration_error_interval(confidence, right, seed=3) == calibration_error_interval(
            confidence, right, seed=3
        )

    def test_of_one_example_there_is_no_spread(self) -> None:
        found = calibration_error_interval(np.array([0.7]), np.array([True]))
        assert found.value == pytest.approx(0.3) and math.isnan(found.low)


class TestFit:
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7, 3.0])
    def test_the_temperature_that_scores_were_made_with_is_found(self, temperature: float) -> None:
        scores, truth = drawn(20_000, 4, temperature)
        found = fit(scores, truth)
        assert found.temperature == pytest.approx(temperature, rel=0.05)
        assert (found.examples, found.note) == (20_000, "")
        after = calibration_error(*confidences(scores, truth, found.temperature))
        assert after < 0.02 and after <= calibration_error(*confidences(scores, truth)) + 0.005

    @pytest.mark.parametrize("several", [False, True])
    def test_it_is_the_least_that_a_fine_grid_and_torch_find(self, several: bool) -> None:
        scores, numbers = drawn(150, 3, 2.3, seed=5)
        truth = np.eye(3, dtype=bool)[numbers] if several else numbers
        found = fit(scores, truth, several)
        grid = np.exp(np.linspace(math.log(LOWEST), math.log(HIGHEST), 20_001))
        losses = [_torch_loss(scores, truth, float(t), several) for t in grid[::40]]
        nearest = grid[::40][int(np.argmin(losses))]
        assert found.temperature == pytest.approx(nearest, rel=0.02)
        assert found.calibrated_loss == pytest.approx(_torch_loss(scores, truth, found.temperature, several))
        assert found.calibrated_loss is not None and found.calibrated_loss <= min(losses) + 1e-9
        assert found.loss == pytest.approx(_torch_loss(scores, truth, 1.0, several))

    def test_no_answer_changes(self) -> None:
        scores, truth = drawn(300, 5, 4.0)
        p = log_probabilities(scores, fit(scores, truth).temperature)
        assert (p.argmax(1) == scores.argmax(1)).all() and np.exp(p).sum(1) == pytest.approx(np.ones(300))

    def test_several_labels_have_a_probability_each(self) -> None:
        odds = np.array([[2.0, -1.0], [0.0, 50.0]])
        assert np.exp(log_probabilities(odds, 2.0, several=True)) == pytest.approx(1 / (1 + np.exp(-odds / 2)))
        confidence, right = confidences(odds, np.array([[True, True], [False, True]]), several=True)
        assert right.tolist() == [[True, False], [True, True]]
        assert confidence[0] == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))])
        assert calibration_error_interval(confidence, right).value == pytest.approx(
            plain_error(confidence.ravel().tolist(), right.ravel().tolist(), 15)
        )

    @pytest.mark.parametrize("count", [0, 1, FEWEST - 1])
    def test_too_few_records_leave_probabilities_as_they_are(self, count: int) -> None:
        scores, truth = drawn(FEWEST, 2, 3.0)
        found = fit(scores[:count], truth[:count])
        assert (found.temperature, found.examples, found.loss) == (1.0, count, None)
        assert f"{count} validation records are too few" in found.note
        assert fit(scores, truth).loss is not None

    def test_all_right_is_as_sure_as_can_be_and_all_wrong_as_even(self) -> None:
        scores, _ = drawn(50, 3, 1.0)
        surer, evener = fit(scores, scores.argmax(1)), fit(scores, scores.argmin(1))
        assert (surer.temperature, evener.temperature) == pytest.approx((LOWEST, HIGHEST))
        assert "surer still" in surer.note and "less sure still" in evener.note

    def test_where_all_temperatures_are_as_good_it_is_one(self) -> None:
        assert fit(np.zeros((40, 2)), np.arange(40) % 2).temperature == 1
        sure = np.tile([0.0, -1e6], (40, 1))
        assert fit(sure, np.zeros(40, dtype=int)).temperature == 1


def _torch_loss(scores: np.ndarray, truth: np.ndarray, temperature: float, several: bool) -> float:
    logits = torch.from_numpy(scores) / temperature
    if not several:
        return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(truth)))
    target = torch.from_numpy(truth).double()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return float(loss.sum(1).mean())


def test_kept_and_read_again(tmp_path: Path) -> None:
    assert Calibration.of(tmp_path) == Calibration(note="the run was not calibrated")
    found = Calibration(1.5, 30, 0.4, 0.3, "why")
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(found.to_json()), "utf-8")
    assert Calibration.of(tmp_path) == found
    for damaged in ("{", "[]", '{"temperature": 0}', '{"temperature": "1"}', '{"temperature": NaN}'):
        path.write_text(damaged, "utf-8")
        with pytest.raises(RunError, match=r"calibration\.json"):
            Calibration.of(tmp_path)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def reviews(path: Path, count: int) -> Path:
    words = {"positive": "good", "negative": "bad"}
    rows = [
        {"text": f"{words[label]} book number {n}", "label": label if n % 7 else "positive"}
        for n, label in enumerate(["positive", "negative"] * (count // 2))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.mark.parametrize("technique", ["lora", "full", Freeze(layers=1), "prefix", "p_tuning", "adapter"])
def test_a_run_keeps_the_temperature_of_its_artifact(base: Path, tmp_path: Path, technique: str | Freeze) -> None:
    """Whichever step was the best: what is scored is what was kept."""
    data = reviews(tmp_path / "reviews.jsonl", 120)
    heard: list[Event] = []
    settings = {"max_steps": 6, "batch_size": 8, "learning_rate": 0.3, "validate_every": 1}
    options = api.DataOptions(validation=0.25, test=0.2)
    run = api.tune(
        str(base), data, technique=technique, out=tmp_path / "run", options=options, listener=heard.append, **settings
    )
    assert run.manifest["result"]["best_step"] < 6
    kept = json.loads((run.folder / "calibration.json").read_text("utf-8"))
    tuned = api.open_run(run.folder)
    assert tuned.calibration == Calibration(**kept) and kept["examples"] >= FEWEST
    records = run_records(run)
    scores = tuned.scorer.labels(tuned.task, records, "scoring")  # type: ignore[arg-type]
    truth = np.array([tuned.task.labels.index(r.label or "") for r in records])  # type: ignore[attr-defined]
    assert negative_log_likelihood(scores, truth) == pytest.approx(kept["loss"], rel=1e-4)
    assert negative_log_likelihood(scores, truth) == pytest.approx(
        run.manifest["result"]["best_validation"]["loss"], rel=1e-4
    )
    assert fit(scores, truth).temperature == pytest.approx(kept["temperature"], rel=1e-2)
    assert any(isinstance(e, Note) and "calibrated on" in e.text for e in heard)
    found = tuned.classify("good book number 3")
    other = replace(tuned, calibration=Calibration()).classify("good book number 3")
    label = next(iter(found))
    odds = [math.log(p[label] / (1 - p[label])) for p in (found, other)]
    assert odds[0] * kept["temperature"] == pytest.approx(odds[1], rel=1e-6, abs=1e-9)


def run_records(run: Run) -> list[api.Record]:
    from heptune.tuning import problem as problems
    from heptune.tuning.training import judged_on

    return judged_on(problems.again(run.manifest), 200, 0)


def test_eval_reports_it_and_old_runs_are_used_as_before(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = reviews(tmp_path / "reviews.jsonl", 120)
    options = api.DataOptions(validation=0.25, test=0.2)
    run = api.tune(str(base), data, out=tmp_path / "run", options=options, max_steps=4, batch_size=8)
    temperature = Calibration.of(run.folder).temperature
    result = api.evaluate(run.folder)
    (file,) = (run.folder / "evaluations").glob("*.json")
    stored = json.loads(file.read_text("utf-8"))["calibration"]
    assert result.calibration is not None and stored["temperature"] == temperature != 1
    assert stored["error"]["value"] == result.calibration.error.value
    assert stored["error"] != stored["calibrated_error"]
    words = evaluation_words(result.to_json())[-1]
    assert words.startswith("expected calibration error") and f"temperature {temperature:.2f}" in words
    assert "flatters" not in words

    (run.folder / "calibration.json").unlink()
    old = api.evaluate(run.folder).calibration
    assert old is not None and old.temperature == 1 and old.error == old.calibrated_error == result.calibration.error
    assert api.open_run(run.folder).calibration.temperature == 1
    capsys.readouterr()
    assert main(["eval", str(run.folder)]) == 0
    assert "(the run was not calibrated)" in capsys.readouterr().out


def test_a_tiny_validation_part_says_so(base: Path, tmp_path: Path) -> None:
    data = reviews(tmp_path / "reviews.jsonl", 40)
    heard: list[Event] = []
    run = api.tune(str(base), data, out=tmp_path / "run", max_steps=1, batch_size=4, listener=heard.append)
    found = Calibration.of(run.folder)
    assert found.temperature == 1 and "too few to calibrate on" in found.note
    assert any(isinstance(e, Note) and "too few to calibrate on" in e.text for e in heard)


def test_a_failure_to_calibrate_costs_nothing_else(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object) -> Calibration:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("heptune.tuning.training.calibrate", fail)
    data = reviews(tmp_path / "reviews.jsonl", 40)
    heard: list[Event] = []
    run = api.tune(str(base), data, out=tmp_path / "run", max_steps=1, batch_size=4, listener=heard.append)
    assert run.manifest["status"] == "finished" and not (run.folder / "calibration.json").exists()
    assert any(isinstance(e, Note) and "calibrating failed (out of memory)" in e.text for e in heard)


def test_words_of_an_evaluation_on_the_validation_part(base: Path) -> None:
    interval = {"value": 0.1, "low": 0.05, "high": 0.2}
    calibration = {"temperature": 2.0, "examples": 30, "error": interval, "calibrated_error": interval}
    part = "the validation part (there is no test part)"
    (words,) = evaluation_words({"part": part, "calibration": calibration})
    assert "the very part scored here, so that it flatters" in words
    assert evaluation_words({"part": part}) == []
