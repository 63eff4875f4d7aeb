"""How answers are judged, on a tiny model, against one question at a time and SQuAD's rules stated plainly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from heptune.core.events import ignore
from heptune.data.record import Record
from heptune.engine.forward import Forward
from heptune.models.anatomy import dissect
from heptune.reporting.words import evaluation_words
from heptune.scoring.exams import exam_of
from heptune.scoring.exams.answer import AnswerExam, Answers, meant, sentences
from heptune.scoring.generate import Sampling, reply
from heptune.scoring.score import Scorer
from heptune.tasks.answer import ANSWER_TOKENS, Answer
from heptune.tasks.template import ChatTemplate
from questions import about_things
from reference import squad
from tiny import tiny_model, tiny_tokenizer

TASK = Answer("Answer.")
EXAM = AnswerExam(TASK)
RECORDS = about_things(10)


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    model = tiny_model("llama").double()
    return Scorer(Forward(dissect(model)), ChatTemplate(tiny_tokenizer()), max_length=400, budget=90)


def test_the_loss_is_that_of_one_example_at_a_time(scorer: Scorer) -> None:
    model, total, weights, log_p = scorer.forward.anatomy.model, 0.0, [], []
    for record in RECORDS:
        (example,) = TASK.encode(record, 0, scorer.template, 400)
        logits = model(input_ids=torch.tensor([example.tokens]), use_cache=False).logits[0].detach().log_softmax(-1)
        own = sum(float(logits[t - 1, example.tokens[t]]) for t in range(example.lead, len(example.tokens)))
        log_p.append(own)
        weights.append(example.targets)
        total -= own
    judge = EXAM.validation(scorer, RECORDS, ignore)
    assert judge is not None and (judge.metric, judge.higher_is_better) == ("loss", False)
    assert judge.score() == {"loss": pytest.approx(total / sum(weights), rel=1e-6)}
    outcomes = exam_of(TASK).outcomes(scorer, RECORDS, "testing", ignore)
    assert outcomes.keys() == {"log_p", "weights"} and outcomes["weights"] == weights
    assert outcomes["log_p"] == pytest.approx(log_p, rel=1e-6)


def test_answers_are_the_likeliest_replies(scorer: Scorer) -> None:
    found = EXAM.answers(scorer, RECORDS, "answering", ignore)
    sampling = Sampling(max_tokens=ANSWER_TOKENS)
    for record, said in zip(RECORDS, found.said, strict=True):
        asked = TASK.asked(record, scorer.template, 400).messages
        assert said == meant(reply(scorer.forward.anatomy, scorer.template, asked, sampling))
    assert (found.cut, found.lost) == (0, 0)


def test_questions_that_lose_their_answer_are_counted(scorer: Scorer) -> None:
    filler = "And so it goes on and on. " * 40
    records = [
        Record(1, text="What?", passage=f"It is red. {filler}", answers=("Red",)),
        Record(2, text="What?", passage=f"{filler} It is red.", answers=("Red",)),
        Record(3, text="What?", passage=filler, answers=("",)),
        Record(4, text="What?", passage=f"{filler} red blue", answers=("red", "goes on")),
        Record(5, text="What?", passage=filler, answers=("it does not stand there",)),
        Record(6, text="What?", passage="It is red.", answers=("red",)),
    ]
    found = EXAM.answers(scorer, records, "answering", ignore)
    assert (found.cut, found.lost) == (5, 1)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [(" red ", "red"), ("Unanswerable.", ""), ("unanswerable", ""), ("It is unanswerable", "It is unanswerable")],
)
def test_the_word_for_no_answer(text: str, meaning: str) -> None:
    assert meant(text) == meaning


def test_sentences() -> None:
    assert sentences("One. Two! Is it?  Yes\nand 3.5 more.") == ["One.", "Two!", "Is it?", "Yes", "and 3.5 more."]
    assert sentences(" \n ") == []


def test_an_evaluation() -> None:
    train, records = about_things(12), about_things(40)[12:]
    truth = tuple(record.answers[0] for record in records)
    tuned = ("The " + truth[0] + " one", "wrong", *truth[2:])
    base = (truth[0], *["red"] * (len(records) - 1))
    found = EXAM.evaluation("the test part", records, train, Answers(base, 3, 1), Answers(tuned, 3, 1), seed=4)
    said = {"tuned": tuned, "base, untouched": base}
    rows = {row.name: row.metrics for row in found.rows}
    assert list(rows) == [
        *said,
        "most similar sentence",
        "most similar training question",
        "most frequent answer",
    ]
    scores = {
        name: np.array([squad.scores(text, list(r.answers)) for text, r in zip(texts, records, strict=True)])
        for name, texts in said.items()
    }
    for name, both in scores.items():
        assert rows[name]["exact match"].value == pytest.approx(both[:, 0].mean())
        assert rows[name]["F1"].value == pytest.approx(both[:, 1].mean())
        assert rows[name]["F1"].low < rows[name]["F1"].value < rows[name]["F1"].high
    gain = scores["tuned"][:, 1].mean() - scores["base, untouched"][:, 1].mean()
    assert found.comparison.unit == "F1" and found.comparison.p_value is None
    assert found.comparison.difference.value == pytest.approx(gain)
    assert (found.examples, found.cut, found.lost) == (28, 3, 1)
    right = [f"The {p.passage.split('The ')[1].split('.')[0]}." for p in records if p.answers != ("",)]
    f1 = [squad.scores(s, list(r.answers))[1] for s, r in zip(right, [r for r in records if r.answers[0]], strict=True)]
    assert rows["most similar sentence"]["F1"].value == pytest.approx(sum(f1) / 28), "the sentence that names the thing"
    frequent = max({r.answers[0] for r in train}, key=[r.answers[0] for r in train].count)
    share = np.mean([squad.scores(frequent, list(r.answers))[0] for r in records])
    assert rows["most frequent answer"]["exact match"].value == pytest.approx(share)
    assert [shown.better for shown in found.shown] == [True, True, None] and "of" not in found.shown[0].truth
    assert found.shown[2].tuned == tuned[0] and found.shown[2].base == truth[0], "the one that became worse"
    assert found.shown[2].text.startswith("What colour is the") and "Number 12 is here." in found.shown[2].text


def test_no_answer_is_told_in_brackets() -> None:
    records = [Record(1, text="Who?", answers=("",)), Record(2, text="Where?", answers=("Unanswerable",))]
    tuned, base = Answers(("", ""), 0, 0), Answers(("Ada", "Paris"), 0, 0)
    found = EXAM.evaluation("the test part", records, records, base, tuned, seed=0)
    assert [row.name for row in found.rows][2:] == ["most similar training question", "most frequent answer"]
    assert [row.metrics["exact match"].value for row in found.rows] == [1, 0, 1, 1]
    words = evaluation_words(found.to_json())
    assert words[0].startswith("tuned is better than the untouched base by 1.000") and "F1" in words[0]
    assert words[2].startswith("most frequent answer is as good as the tuned model")
    assert found.shown[0].truth == found.shown[0].tuned == "(unanswerable)" and found.shown[0].base == "Ada"
