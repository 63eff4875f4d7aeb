"""How extract is judged, on random tiny models."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import torch
from rich.console import Console

from heptune.cli.chat import print_entities
from heptune.cli.evaluate import print_evaluation
from heptune.core.errors import DataError, RunError
from heptune.core.events import Event, Progress, ignore
from heptune.data.record import Record, Span
from heptune.engine.forward import Forward
from heptune.models.anatomy import dissect
from heptune.reporting.words import evaluation_words
from heptune.runs.run import Run
from heptune.scoring import baselines
from heptune.scoring.exams import check, exam_of
from heptune.scoring.exams.extract import ExtractAnswers, ExtractExam, extracted
from heptune.scoring.score import Scorer
from heptune.tasks.classify import Classify
from heptune.tasks.extract import Entity, Extract
from heptune.tasks.template import ChatTemplate
from heptune.tuning.use import Tuned
from tiny import tiny_model, tiny_tokenizer

TASK = Extract(("LOC", "PER"), "List the entities.")
RECORDS = [
    Record(1, text="Ada met Mary.", spans=(Span(0, 3, "PER"), Span(8, 12, "PER"))),
    Record(2, text="London is long.", spans=(Span(0, 6, "LOC"),)),
    Record(3, text="Where?", spans=()),
]
NOTHING = ExtractAnswers(((), (), ()), 0)


@pytest.fixture
def scorer() -> Scorer:
    anatomy = dissect(tiny_model("llama").double())
    return Scorer(Forward(anatomy), ChatTemplate(tiny_tokenizer()), max_length=256, budget=500)


def test_the_loss_is_that_of_the_true_answers(scorer: Scorer) -> None:
    exam = exam_of(TASK)
    assert isinstance(exam, ExtractExam)
    judge = exam.validation(scorer, RECORDS, ignore)
    assert judge is not None and (judge.metric, judge.higher_is_better) == ("loss", False)
    total, tokens = 0.0, 0
    for record in RECORDS:
        (example,) = TASK.encode(record, 0, scorer.template, 256)
        ids = torch.tensor([example.tokens])
        log_p = scorer.forward.anatomy.model(input_ids=ids, use_cache=False).logits[0].detach().log_softmax(-1)
        total -= float(sum(log_p[t - 1, example.tokens[t]] for t in range(example.lead, len(example.tokens))))
        tokens += example.targets
    assert judge.score()["loss"] == pytest.approx(total / tokens, rel=1e-6)
    outcomes = exam.outcomes(scorer, RECORDS, "scoring", ignore)
    assert -sum(outcomes["log_p"]) == pytest.approx(total, rel=1e-6) and sum(outcomes["weights"]) == tokens


def test_answers_are_entities_of_the_texts(scorer: Scorer) -> None:
    seen: list[Event] = []
    answers = ExtractExam(TASK).answers(scorer, RECORDS, "scoring", seen.append)
    assert len(answers.spans) == 3 and answers.cut == 0
    for record, spans in zip(RECORDS, answers.spans, strict=True):
        text = record.text or ""
        assert all(span.type in TASK.types and text[span.start : span.end].strip() for span in spans)
        assert all(before.end <= after.start for before, after in itertools.pairwise(spans))
    assert seen[-1] == Progress("scoring", 3, 3, "replies")


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_many_answers_at_once_are_those_one_by_one(family: str) -> None:
    template = ChatTemplate(tiny_tokenizer())
    scorer = Scorer(Forward(dissect(tiny_model(family, initializer_range=0.2).double())), template, 256, budget=500)
    texts = ["Ada met Mary.", "London is long.", "", "Where?", "Ada met Mary.", "Rome, Paris; Oslo and Bonn are towns."]
    records = [Record(i, text=text, spans=()) for i, text in enumerate(texts, 1)]
    found = ExtractExam(TASK).answers(scorer, records, "scoring", ignore).spans
    anatomy = scorer.forward.anatomy
    assert found == tuple(tuple(extracted(TASK, anatomy, template, 256, text)) for text in texts)
    assert len(set(found)) > 2 and found[0] == found[4]


def test_a_text_that_is_too_long_is_read_up_to_the_limit(scorer: Scorer) -> None:
    long = Record(1, text="word " * 500, spans=())
    assert ExtractExam(TASK).answers(scorer, [long], "scoring", ignore).cut == 1
    few = dissect(tiny_model("llama", max_position_embeddings=120))
    small = Scorer(Forward(few), scorer.template, max_length=5000, budget=500)
    answers = ExtractExam(TASK).answers(small, [long], "scoring", ignore)
    assert answers.cut == 1


def test_evaluation() -> None:
    said = ExtractAnswers((RECORDS[0].spans or (), (Span(0, 6, "PER"),), ()), 1)
    train = [Record(9, text="London and Rome", spans=(Span(0, 6, "LOC"), Span(11, 15, "LOC")))]
    result = ExtractExam(TASK).evaluation("the test part", RECORDS, train, NOTHING, said, seed=0)
    assert [row.name for row in result.rows] == ["tuned", "base, zero-shot", "training entities, looked up"]
    assert list(result.rows[0].metrics) == ["F1", "precision", "recall", "macro-F1"]
    tuned, base, rival = result.rows
    assert tuned.metrics["F1"].value == pytest.approx(2 / 3) and base.metrics["F1"].value == 0
    assert rival.metrics["precision"].value == 1 and rival.metrics["recall"].value == pytest.approx(1 / 3)
    assert result.comparison.unit == "F1" and result.comparison.difference.value == pytest.approx(2 / 3)
    assert [(row.type, row.count) for row in result.per_type] == [("LOC", 1), ("PER", 2)]
    assert result.per_type[0].metrics["F1"].value == 0
    assert result.per_type[1].metrics["F1"].value == pytest.approx(4 / 5)
    assert [(shown.tuned, shown.better) for shown in result.shown] == [
        ("Ada (PER); Mary (PER)", True),
        ("London (PER)", False),
    ]
    screen = Console(width=110, markup=False, record=True, file=io.StringIO())
    print_evaluation(result, screen)
    printed = screen.export_text()
    assert "The tuned model, type by type:" in printed and "0.800" in printed and "base   none" in printed
    assert "1 examples were longer" in printed


def test_what_is_looked_up_and_better_is_told() -> None:
    train = [Record(9, text="Ada Mary London", spans=(Span(0, 3, "PER"), Span(4, 8, "PER"), Span(9, 15, "LOC")))]
    result = ExtractExam(TASK).evaluation("the test part", RECORDS, train, NOTHING, NOTHING, seed=0)
    words = evaluation_words(result.to_json())
    assert "training entities, looked up is better than the tuned model here at almost no cost" in words[-1]


def test_looking_up() -> None:
    train = [
        Record(1, text="New York, York", spans=(Span(0, 8, "LOC"), Span(10, 14, "PER"))),
        Record(2, text="York and York", spans=(Span(0, 4, "LOC"), Span(9, 13, "LOC"))),
    ]
    texts = ["New York or York", "Yorkshire, New Yorkers", "", "Old York"]
    assert baselines.looked_up(train, texts) == [
        [Span(0, 8, "LOC"), Span(12, 16, "LOC")],
        [],
        [],
        [Span(4, 8, "LOC")],
    ]


def test_records_that_cannot_be_judged() -> None:
    exam = ExtractExam(TASK)
    exam.check([*RECORDS, Record(4, text="May", spans=(Span(0, 3, "DATE"),))], "x.jsonl")
    with pytest.raises(DataError, match=r"x\.jsonl: none of .* known to the training: PERS; did you mean PER"):
        exam.check([Record(4, text="Ada", spans=(Span(0, 3, "PERS"),))], "x.jsonl")
    with pytest.raises(DataError, match=r"x\.jsonl:7: this example is labelled text"):
        check(TASK, [Record(7, text="Ada", label="a")], "x.jsonl")


def test_a_tuned_model_extracts(scorer: Scorer) -> None:
    run = Run.__new__(Run)
    run.folder = "runs/x"  # type: ignore[assignment]
    tuned = Tuned(run, TASK, scorer.forward.anatomy, scorer.template, scorer)
    text = "Ada met Mary in London, and the river is long."
    found = tuned.extract(text)
    assert all(text[entity.start : entity.end] == entity.text for entity in found)
    answers = ExtractExam(TASK).answers(scorer, [Record(1, text=text, spans=())], "scoring", ignore)
    assert [Span(entity.start, entity.end, entity.type) for entity in found] == list(answers.spans[0])
    other = Tuned(run, Classify(("a", "b"), ""), scorer.forward.anatomy, scorer.template, scorer)
    with pytest.raises(RunError, match="learned classify, not extract"):
        other.extract(text)


def test_entities_are_printed_where_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Console(width=80, markup=False)
    print_entities("[b] Ada met Mary", [Entity("PER", "Ada", 4, 7), Entity("PER", "Mary", 12, 16)], screen)
    print_entities("Where?", [], screen)
    assert capsys.readouterr().out == "[b] [Ada: PER] met [Mary: PER]\nWhere?\n(no entities)\n"


def test_no_records_no_judge(scorer: Scorer) -> None:
    assert ExtractExam(TASK).validation(scorer, [], ignore) is None
    assert np.isfinite(ExtractExam(TASK).outcomes(scorer, RECORDS, "scoring", ignore)["log_p"]).all()
