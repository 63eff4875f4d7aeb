"""The benchmark of label scoring on a tiny model: that both ways are measured, and that they have to agree."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from heptune.data.record import Record
from heptune.engine.forward import Forward
from heptune.models.anatomy import dissect
from heptune.scoring.score import Scorer
from heptune.tasks.classify import Classify
from heptune.tasks.template import ChatTemplate
from tiny import tiny_model, tiny_tokenizer

TASK = Classify(("good", "good enough", "bad"), "Which label fits?")
RECORDS = [Record(n, text=text) for n, text in enumerate(("The river is long.", "Who wrote it?", "A book."))]


@pytest.fixture
def labels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("labels")


@pytest.fixture
def scorer() -> Scorer:
    return Scorer(Forward(dissect(tiny_model("llama"))), ChatTemplate(tiny_tokenizer()), 256, 4096)


def test_both_ways_give_the_same_scores(labels: ModuleType, scorer: Scorer) -> None:
    model = tiny_model("llama")
    want = scorer.labels(TASK, RECORDS, "scoring")
    got = np.array([labels.plain(model, TASK.candidates(record, 0, scorer.template, 256)) for record in RECORDS])
    assert np.allclose(got, want, rtol=1e-5)
    found = labels.measure(model, scorer, TASK, RECORDS)
    assert len(found["texts"]) == 3 and found["largest_difference"] < 1e-5
    targets = sum(len(scorer.template.reply(label)) for label in TASK.labels)
    assert [text["label_tokens"] for text in found["texts"]] == [targets] * 3
    assert all(text["plain_s"] > 0 and text["forest_s"] > 0 for text in found["texts"])


def test_scores_that_differ_are_no_result(labels: ModuleType, scorer: Scorer) -> None:
    with pytest.raises(labels.Differ, match="the scores differ by"):
        labels.measure(tiny_model("llama", seed=1), scorer, TASK, RECORDS)


def test_ratios_are_taken_text_by_text(labels: ModuleType) -> None:
    texts = [{"plain_s": 4.0, "forest_s": 1.0}, {"plain_s": 9.0, "forest_s": 3.0}, {"plain_s": 5.0, "forest_s": 1.0}]
    assert labels.ratios(texts, 2.0) == {"ratio": {"median": 4, "min": 3, "max": 5}, "ratio_together": 9}
