"""How a choice is judged, on a tiny model, against the sums of log-probabilities one token at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from heptune.core.events import Event, Progress, ignore
from heptune.data.record import Record
from heptune.engine.forward import Forward
from heptune.models.anatomy import dissect
from heptune.scoring.exams import exam_of
from heptune.scoring.exams.choose import Choices, ChooseExam, without_model
from heptune.scoring.score import Scorer
from heptune.tasks.choose import Choose
from heptune.tasks.template import ChatTemplate
from tiny import tiny_model, tiny_tokenizer

TASK = Choose("Answer.")
EXAM = ChooseExam(TASK)
RECORDS = [
    Record(1, text="Where?", passage="The river is long.", options=("here", "here and there", "no"), answers=("no",)),
    Record(2, text="And then?", passage="The river is long.", options=("Who wrote it?", "It is"), answers=("It is",)),
    Record(3, text="Why?", options=("because", "so", "a book", "long"), answers=("because",)),
]


@pytest.fixture(params=["llama", "gpt2", "gemma3"])
def scorer(request: pytest.FixtureRequest) -> Scorer:
    model = tiny_model(request.param).double()
    return Scorer(Forward(dissect(model)), ChatTemplate(tiny_tokenizer()), max_length=256, budget=90)


def brute_force(scorer: Scorer, record: Record) -> list[float]:
    """log p(option, end of turn | question) of each option, one token after another."""
    model, found = scorer.forward.anatomy.model, []
    for option in record.options:
        tokens, total = list(TASK.asked(record, scorer.template, 256).tokens), 0.0
        for token in scorer.template.reply(option):
            logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
            total += float(logits.detach().log_softmax(-1)[token])
            tokens.append(token)
        found.append(total)
    return found


def test_scores_are_the_brute_force_sums(scorer: Scorer) -> None:
    seen: list[Event] = []
    found = EXAM.answers(scorer, RECORDS, "scoring", seen.append)
    expected = [brute_force(scorer, record) for record in RECORDS]
    for row, want in zip(found.scores, expected, strict=True):
        assert row == pytest.approx(want, rel=1e-6)
    assert found.chosen == [int(np.argmax(row)) for row in expected] and found.cut == 0
    assert isinstance(seen[-1], Progress) and (seen[-1].done, seen[-1].total) == (9, 9)

    truth = (2, 1, 0)
    log_p = [row[place] - np.logaddexp.reduce(row) for row, place in zip(expected, truth, strict=True)]
    correct = [int(np.argmax(row) == place) for row, place in zip(expected, truth, strict=True)]
    outcomes = exam_of(TASK).outcomes(scorer, RECORDS, "testing", ignore)
    assert outcomes == {"correct": correct, "log_p": pytest.approx(log_p, rel=1e-6)}
    judge = EXAM.validation(scorer, RECORDS, ignore)
    assert judge is not None and (judge.metric, judge.higher_is_better) == ("accuracy", True)
    assert judge.score() == {
        "accuracy": pytest.approx(np.mean(correct)),
        "loss": pytest.approx(-np.mean(log_p), rel=1e-6),
    }


def choices(*rows: list[float], cut: int = 0) -> Choices:
    return Choices(tuple(map(np.array, rows)), cut)


def test_an_evaluation() -> None:
    tuned = choices([-1, -2, -0.5], [-3, -1], [-5, -4, -9, -9], cut=2)
    base = choices([-3, -9, -4], [-26, -9], [-6, -4, -7, -4.5])
    # per character: -3/4, -9/14, -4/2; -26/13, -9/5; -6/7, -4/2, -7/6, -4.5/4: the second (wrong), second, first
    found = EXAM.evaluation("the test part", RECORDS, RECORDS, base, tuned, seed=1)
    accuracy = {row.name: row.metrics["accuracy"].value for row in found.rows}
    assert accuracy == {
        "tuned": pytest.approx(2 / 3),
        "base, zero-shot": pytest.approx(1 / 3),
        "base, zero-shot, per character": pytest.approx(2 / 3),
        "option most like the question (TF-IDF)": pytest.approx(2 / 3),
        "longest option": pytest.approx(1 / 3),
        "most frequent position": pytest.approx(1 / 3),
    }
    assert found.comparison.unit == "accuracy" and found.comparison.difference.value == pytest.approx(1 / 3)
    assert found.comparison.p_value == 1.0 and found.cut == 2
    (shown,) = found.shown
    assert (shown.text, shown.truth, shown.base, shown.tuned, shown.better) == (
        "The river is long.\nWhere?",
        "no",
        "here",
        "no",
        True,
    )


def test_what_chooses_without_a_model() -> None:
    train = [Record(n, text="q", options=("a", "b", "c"), answers=(right,)) for n, right in enumerate("accb")]
    records = [
        Record(1, text="Which river is long?", options=("a book", "some long river", "x"), answers=("x",)),
        Record(2, text="none of it", options=("apple", "pear"), answers=("pear",)),
        Record(3, text="The city", passage="It rained there.", options=("it rained", "the city", "x y z w v u t")),
    ]
    found = {name: choose() for name, choose in without_model(train, records).items()}
    assert found == {
        "option most like the question (TF-IDF)": [1, 0, 0],
        "longest option": [1, 0, 2],
        "most frequent position": [2, 0, 2],
    }
    assert without_model(train, records[1:2])["most frequent position"]() == [0], "the third place does not exist there"


def test_nothing_to_compare() -> None:
    records = [Record(1, text="?", options=("!", "."), answers=(".",))]
    assert [choose() for choose in without_model(records, records).values()] == [[0], [0], [1]]
