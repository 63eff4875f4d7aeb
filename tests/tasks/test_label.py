"""The task label: one label or several, seen by a linear head."""

from __future__ import annotations

import pytest

from heptune import tasks
from heptune.core.errors import BaseModelError, DataError, UsageError
from heptune.data.record import Record
from heptune.tasks.classify import Classify
from heptune.tasks.example import WHOLE
from heptune.tasks.label import Label
from heptune.tasks.options import TaskOptions
from heptune.tasks.template import ChatTemplate, PlainText
from tiny import IM_END, IM_START, tiny_encoder_tokenizer, tiny_tokenizer

SPEAKS, READS = ChatTemplate(tiny_tokenizer()), PlainText(tiny_encoder_tokenizer())


def labelled(text: str, label: str, line: int = 1) -> Record:
    return Record(line, text=text, label=label)


def several(text: str, *labels: str) -> Record:
    return Record(1, text=text, labels=labels)


ONE = [labelled("a", "sad"), labelled("b", "glad"), labelled("c", "sad"), labelled("d", "sad")]
MANY = [several("a", "x", "y"), several("b"), several("c", "z")]


def test_one_label() -> None:
    task = Label.from_records(ONE)
    assert task.labels == ("glad", "sad") and not task.several and task.classes == 2
    assert Label.from_json(task.to_json()) == task
    (example,) = task.encode(ONE[0], 7, READS, 64)  # type: ignore[arg-type]
    assert example.tokens[0] == IM_START and example.tokens[-1] == IM_END and example.record == 7
    assert example.marks == ((WHOLE, 1),) and example.targets == 1 and not any(example.supervised)


def test_several_labels_are_each_there_or_not() -> None:
    task = Label.from_records(MANY)
    assert task.labels == ("x", "y", "z") and task.several
    (example,) = task.encode(MANY[0], 0, SPEAKS, 64)
    last = len(example.tokens) - 1
    assert example.marks == ((last, 1), (last, 3), (last, 4))
    (nothing,) = task.encode(MANY[1], 0, SPEAKS, 64)
    assert [code for _, code in nothing.marks] == [0, 2, 4]
    assert len(task.scored(MANY[0], 0, SPEAKS, 64)[0].marks) == 1


@pytest.mark.parametrize(("pooling", "place"), [("first", 0), ("last", 3), ("mean", WHOLE)])
def test_where_the_head_looks(pooling: str, place: int) -> None:
    task = Label.from_records(ONE, TaskOptions(pooling=pooling))
    (example,) = task.encode(labelled("ab", "sad"), 0, READS, 64)  # type: ignore[arg-type]
    assert len(example.tokens) == 4 and example.marks[0][0] == place


def test_balanced_weights_make_every_label_weigh_the_same() -> None:
    task = Label.from_records(ONE, TaskOptions(class_weights="balanced"))
    weights = [task.encode(record, 0, SPEAKS, 64)[0].weight for record in ONE]
    assert weights == pytest.approx([4 / 6, 2.0, 4 / 6, 4 / 6]) and sum(weights) == pytest.approx(4)
    assert Label.from_json(task.to_json()) == task


def test_a_long_text_loses_its_end_and_keeps_the_marks_around_it() -> None:
    task = Label.from_records(ONE)
    (example,) = task.encode(labelled("wordy " * 50, "sad"), 0, READS, 16)  # type: ignore[arg-type]
    whole = len(READS.encode("wordy " * 50)) + 2
    assert len(example.tokens) == 16 and example.cut == whole - 16 and example.tokens[-1] == IM_END


def test_what_does_not_fit() -> None:
    with pytest.raises(DataError, match="at least 2 different labels"):
        Label.from_records(ONE[:1])
    with pytest.raises(DataError, match=r"'angry' is not among"):
        Label.from_records(ONE).encode(labelled("a", "angry"), 0, SPEAKS, 64)
    with pytest.raises(UsageError, match="no use for"):
        Label.from_records(ONE, TaskOptions(instruction="Which?"))
    with pytest.raises(UsageError, match="no use for"):
        Classify.from_records(ONE, TaskOptions(pooling="mean"))
    with pytest.raises(UsageError, match="class_weights are for texts with one label"):
        Label.from_records(MANY, TaskOptions(class_weights="balanced"))
    with pytest.raises(BaseModelError, match="this base is an encoder"):
        Classify.from_records(ONE).encode(ONE[0], 0, READS, 64)  # type: ignore[arg-type]


def test_the_task_follows_from_data_and_base() -> None:
    assert tasks.choose("labelled text") == "classify"
    assert tasks.choose("labelled text", words=False) == "label"
    assert tasks.choose("text with several labels") == "label"
    with pytest.raises(DataError, match="what can be learned is"):
        tasks.choose("conversation", words=False)
