from __future__ import annotations

import pytest

from heptune import tasks
from heptune.core.errors import DataError, UsageError
from heptune.data.record import Record
from heptune.tasks.choose import Choose, right
from heptune.tasks.options import TaskOptions
from heptune.tasks.template import ChatTemplate
from tiny import tiny_tokenizer

TEMPLATE = ChatTemplate(tiny_tokenizer())
TASK = Choose("Answer.")
PASSAGE = "The man turned on the faucet."


def asked(
    *options: str, answer: str = "", passage: str = PASSAGE, question: str = "What then?", line: int = 1
) -> Record:
    return Record(line, text=question, passage=passage, options=options, answers=(answer or options[0],))


def text(tokens: tuple[int, ...]) -> str:
    return TEMPLATE.tokenizer.decode(list(tokens))


def test_each_option_is_a_reply_to_the_same_prompt() -> None:
    record = asked("It rained.", "Water flowed.", "Nothing, at all.", answer="Water flowed.")
    candidates = TASK.candidates(record, 4, TEMPLATE, 300)
    prompt = (
        f"<|im_start|>user\nAnswer.\n\nPassage: {PASSAGE}\n\nQuestion: What then?<|im_end|>\n<|im_start|>assistant\n"
    )
    for candidate, option in zip(candidates, record.options, strict=True):
        assert text(candidate.tokens[: candidate.lead]) == prompt
        assert list(candidate.tokens[candidate.lead :]) == TEMPLATE.reply(option) and all(
            candidate.supervised[candidate.lead :]
        )
        assert (candidate.record, candidate.cut) == (4, 0)
    assert TASK.encode(record, 4, TEMPLATE, 300) == [candidates[1]]
    assert TASK.scored(record, 4, TEMPLATE, 300) == list(candidates)


def test_a_long_passage_loses_its_end_and_the_longest_option_stays_whole() -> None:
    record = asked("Yes.", "Because of the river, I think.", passage=PASSAGE * 40)
    candidates = TASK.candidates(record, 0, TEMPLATE, 128)
    assert len({candidate.tokens[: candidate.lead] for candidate in candidates}) == 1
    assert max(len(candidate.tokens) for candidate in candidates) in range(120, 129)
    assert all(candidate.cut > 0 and "<|im_end|>" in text(candidate.tokens[-1:]) for candidate in candidates)
    kept = TASK.asked(record, TEMPLATE, 128)
    assert record.passage.startswith(kept.passage) and kept.question == "What then?"


def test_options_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="for the longest option there is room for") as caught:
        TASK.encode(asked("x " * 100, "y", line=8), 0, TEMPLATE, 128)
    assert caught.value.line == 8


@pytest.mark.parametrize("answers", [(), ("c",), ("a", "b")])
def test_the_right_option_is_exactly_one_of_them(answers: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"must be exactly one of: 'a', 'b'") as caught:
        right(Record(6, text="q", options=("a", "b"), answers=answers))
    assert caught.value.line == 6


def test_posing() -> None:
    task = tasks.pose(tasks.choose("question with options"), [asked("a", "b")])
    assert task == Choose("Answer the question about the passage.") == tasks.from_json(task.to_json())
    assert tasks.pose("choose", [asked("a", "b", passage="")]).words == "Answer the question."
    assert tasks.pose("choose", [asked("a", "b")], TaskOptions(instruction="Say.")).words == "Say."
    with pytest.raises(UsageError, match="the task choose has no use for"):
        tasks.pose("choose", [asked("a", "b")], TaskOptions(replies="last"))
    assert (Choose.metric, Choose.higher_is_better) == ("accuracy", True)
