from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heptune import tasks
from heptune.core.errors import DataError, UsageError
from heptune.data.record import Record
from heptune.tasks.answer import ANSWER_TOKENS, Answer
from heptune.tasks.options import TaskOptions
from heptune.tasks.template import ChatTemplate
from tiny import tiny_tokenizer

TEMPLATE = ChatTemplate(tiny_tokenizer())
TASK = Answer("Answer.")
PASSAGE = "The river is long. The book is old."


def asked(question: str, *answers: str, passage: str = PASSAGE, line: int = 1) -> Record:
    return Record(line, text=question, passage=passage, answers=answers)


def text(tokens: tuple[int, ...]) -> str:
    return TEMPLATE.tokenizer.decode(list(tokens))


def test_a_question_about_a_passage() -> None:
    (example,) = TASK.encode(asked("What is old?", "the book", "book"), 7, TEMPLATE, 400)
    assert text(example.tokens[: example.lead]) == (
        f"<|im_start|>user\nAnswer.\n\nPassage: {PASSAGE}\n\nQuestion: What is old?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert list(example.tokens[example.lead :]) == TEMPLATE.reply("the book")
    assert all(example.supervised[example.lead :]) and (example.record, example.cut) == (7, 0)
    assert TASK.scored(asked("What is old?", "the book"), 7, TEMPLATE, 400) == [example]


def test_without_a_passage_only_the_question_stands_there() -> None:
    (example,) = TASK.encode(asked("What is old?", "the book", passage=""), 0, TEMPLATE, 400)
    assert "Answer.\n\nQuestion: What is old?<|im_end|>" in text(example.tokens)


def test_a_question_without_an_answer_learns_the_word_for_it() -> None:
    (example,) = TASK.encode(asked("Who?", ""), 0, TEMPLATE, 400)
    assert list(example.tokens[example.lead :]) == TEMPLATE.reply("unanswerable")
    with pytest.raises(DataError, match="has no answer") as caught:
        TASK.encode(asked("Who?", line=5), 0, TEMPLATE, 400)
    assert caught.value.line == 5


def test_questions_about_one_passage_share_it() -> None:
    first, second = (TASK.asked(asked(q, "x"), TEMPLATE, 400).tokens for q in ("What is old?", "Where is it?"))
    common = next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    assert PASSAGE in text(first[:common])


@settings(max_examples=60, deadline=None)
@given(passage=st.text(st.characters(codec="utf-8"), max_size=80), spare=st.integers(0, 60))
def test_a_long_passage_loses_its_end_whatever_the_answer_is(passage: str, spare: int) -> None:
    limit = len(TEMPLATE.prompt(Answer("Answer.").asked(asked("Who?", passage=""), TEMPLATE, 999).messages))
    limit += spare + ANSWER_TOKENS
    kept = TASK.asked(asked("Who?", passage=passage), TEMPLATE, limit)
    whole = TASK.asked(asked("Who?", passage=passage), TEMPLATE, 9999)
    assert passage.startswith(kept.passage) and kept.question == "Who?"
    assert len(kept.tokens) <= limit - ANSWER_TOKENS and kept.cut == len(whole.tokens) - len(kept.tokens)
    assert (kept.cut == 0) <= (kept.passage == passage)
    if kept.cut and len(kept.passage) < len(passage):
        longer = asked("Who?", passage=passage[: len(kept.passage) + 1])
        assert len(TASK.asked(longer, TEMPLATE, 9999).tokens) > limit - ANSWER_TOKENS
    for answer in ("x", "a much longer answer", ""):
        (example,) = TASK.encode(asked("Who?", answer, passage=passage), 0, TEMPLATE, limit)
        assert example.tokens[: example.lead] == kept.tokens, "the prompt must not tell the answer"


def test_the_cut_does_not_look_for_the_answer() -> None:
    passage = "Long ago there was a river. " * 40 + "The book is by Ada."
    (example,) = TASK.encode(asked("Who wrote the book?", "Ada", passage=passage), 0, TEMPLATE, 256)
    assert "Ada" not in text(example.tokens[: example.lead]) and example.cut > 0
    assert text(example.tokens[example.lead :]) == "Ada<|im_end|>"


def test_a_question_longer_than_the_limit_keeps_its_beginning() -> None:
    kept = TASK.asked(asked("why " * 200, "x"), TEMPLATE, 160)
    assert kept.passage == "" and kept.question.startswith("why why") and len(kept.tokens) <= 160 - ANSWER_TOKENS


def test_a_long_answer_loses_its_end() -> None:
    answer = "because " * 100
    (example,) = TASK.encode(asked("Why?", answer, passage=""), 0, TEMPLATE, 160)
    reply = TEMPLATE.reply(answer)
    assert len(example.tokens) == 160 and example.cut == len(reply) - example.targets
    assert list(example.tokens[example.lead :]) == reply[: example.targets] and example.targets > ANSWER_TOKENS


def test_an_instruction_that_does_not_fit() -> None:
    with pytest.raises(DataError, match=r"alone needs \d+ tokens.*48 for the answer there is room for 12") as caught:
        TASK.encode(asked("Why?", "x", line=3), 0, TEMPLATE, 60)
    assert caught.value.line == 3


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([asked("a", "b")], "Answer the question about the passage in a few words."),
        ([asked("a", "so " * 20)], "Answer the question about the passage."),
        ([asked("a", "b", passage="")], "Answer the question in a few words."),
        (
            [asked("a", "b"), asked("c", "")],
            "Answer the question about the passage in a few words. If the passage does not say it, answer "
            '"unanswerable".',
        ),
        (
            [asked("a", "", passage="")],
            'Answer the question in a few words. If it cannot be answered, answer "unanswerable".',
        ),
    ],
)
def test_the_instruction_follows_from_the_records(records: list[Record], words: str) -> None:
    task = tasks.pose("answer", records)
    assert task.words == words and tasks.from_json(task.to_json()) == task


def test_options() -> None:
    assert tasks.pose("answer", [asked("a", "b")], TaskOptions(instruction="Say.")).words == "Say."
    with pytest.raises(UsageError, match="the task answer has no use for"):
        tasks.pose("answer", [asked("a", "b")], TaskOptions(system="Be kind."))


def test_it_learns_from_questions_alone() -> None:
    assert tasks.choose("question") == "answer"
    with pytest.raises(DataError, match="is a question with options, but answer learns from a question"):
        tasks.pose("answer", [Record(1, text="a", options=("b", "c"), answers=("b",))])
    assert (Answer.metric, Answer.higher_is_better) == ("loss", False)
