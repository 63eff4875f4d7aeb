"""Records that are encoded together become the same examples as one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers

from heptune import tasks
from heptune.core.errors import DataError
from heptune.data.record import Message, Record, Span
from heptune.tasks.ahead import Together
from heptune.tasks.chat import Chat
from heptune.tasks.classify import Classify
from heptune.tasks.options import TaskOptions
from heptune.tasks.pieces import Pieces
from heptune.tasks.template import ChatTemplate, PlainText
from tiny import tiny_tokenizer

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
DIVIDING: dict[str, Any] = {
    "GPT-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "SmolLM2": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "Llama 3": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA_3), "isolated"), BYTES]),
    "Qwen": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")), "isolated"), BYTES]
    ),
}
WHOLE: dict[str, Any] = {
    "a blank before all": pre_tokenizers.ByteLevel(add_prefix_space=True),
    "no words": BYTES,
    "words over blanks": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\w+ \w+"), "isolated"), BYTES]),
    "inverted": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA_3), "isolated", invert=True), BYTES]),
    "white space": pre_tokenizers.Whitespace(),
}
PARTS = [
    "a",
    "The",
    "text",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "1",
    "23",
    "'s",
    "'S",
    "é",
    "e\u0301",
    "日",
    "😀",
    ".",
    ", ",
    "(",
]
PARTS += ["\xa0", "\x1c", "\x85", "\u3000", "<|im_end|>", "<|im_start|>", " x", "-", "\u0301"]
TEXTS = st.lists(
    st.lists(
        st.sampled_from(PARTS),
        max_size=14,
    ).map("".join),
    max_size=6,
)


def one_by_one(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


@pytest.mark.parametrize("kind", [*DIVIDING, *WHOLE])
@settings(deadline=None, max_examples=150)
@given(texts=TEXTS)
def test_pieces_give_the_tokens_of_the_whole(kind: str, texts: list[str]) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = {**DIVIDING, **WHOLE}[kind]
    pieces = Pieces(tokenizer)
    assert pieces.divides == (kind in DIVIDING)
    expected = one_by_one(tokenizer, texts)
    assert pieces.encode(texts) == expected
    assert pieces.encode(texts[::-1]) == expected[::-1], "now from memory"


def test_what_could_reach_over_a_blank_is_not_divided() -> None:
    stripping, over, upper = tiny_tokenizer(), tiny_tokenizer(), tiny_tokenizer()
    stripping.add_tokens([AddedToken("<x>", rstrip=True)])
    over.add_tokens([AddedToken("New York")])
    upper.backend_tokenizer.normalizer = normalizers.Replace(" ", "_")
    for tokenizer in (stripping, over, upper):
        pieces = Pieces(tokenizer)
        assert not pieces.divides
        texts = ["in New York <x> now", "New York"]
        assert pieces.encode(texts) == one_by_one(tokenizer, texts)
    composed = tiny_tokenizer()
    composed.backend_tokenizer.normalizer = normalizers.NFC()
    assert Pieces(composed).divides


def test_memory_for_pieces_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heptune.tasks.pieces._MOST", 10)
    tokenizer = tiny_tokenizer()
    pieces = Pieces(tokenizer)
    for start in range(0, 100, 5):
        texts = [f"word{n} {'long' * n}" for n in range(start, start + 5)]
        assert pieces.encode(texts) == one_by_one(tokenizer, texts)
        assert len(pieces._known) <= 10 + 10
        assert all(len(piece) <= 24 for piece in pieces._known)


LABELLED = [Record(n, text=f"A text, number {n}. " * (1 + n % 7), label="ab"[n % 2]) for n in range(40)]
TALKS = [
    Record(n, messages=(Message("user", f"Hi {n}"), Message("assistant", "Hello! " * n), Message("user", "Bye")) * 2)
    for n in range(1, 20)
]


@pytest.mark.parametrize("max_length", [70, 1024])
def test_the_examples_are_those_of_the_task(max_length: int) -> None:
    template = ChatTemplate(tiny_tokenizer())
    for task, records in ((Classify(("a", "b"), "Which?"), LABELLED), (Chat("Be kind."), TALKS)):
        together = Together(task, template, max_length)  # type: ignore[arg-type]
        expected = [task.encode(record, 0, ChatTemplate(tiny_tokenizer()), max_length) for record in records]
        assert any(example.cut for examples in expected for example in examples) == (max_length == 70)
        assert together.encode(records[:7]) + together.encode(records[7:]) == expected
        assert [task.encode(record, 0, template, max_length) for record in records] == expected, (
            "nothing is left behind"
        )


ENTITIES = [
    Record(n, text=f"Ada met {n} of them. " * (1 + n % 5), spans=(Span(0, 3, "PER"),) if n % 2 else ())
    for n in range(12)
]
QUESTIONS = [Record(n, text=f"What is {n}?", passage="It is so. " * n, answers=(str(n),)) for n in range(1, 12)]
OPTIONS = [Record(n, text=f"Is it {n}?", options=("yes", "no"), answers=("no",)) for n in range(1, 12)]
DOCUMENTS = [Record(n, text=f"A text, number {n}. " * (1 + n % 7), continued=n % 3 == 0) for n in range(12)]


@pytest.mark.parametrize("max_length", [90, 1024])
@pytest.mark.parametrize(
    ("name", "records"),
    [
        ("extract", ENTITIES),
        ("tag", ENTITIES),
        ("answer", QUESTIONS),
        ("choose", OPTIONS),
        ("complete", DOCUMENTS),
        ("label", LABELLED),
    ],
)
def test_the_examples_of_every_other_task(name: str, records: list[Record], max_length: int) -> None:
    task = tasks.pose(name, records, TaskOptions(instruction="?") if name in ("extract", "answer", "choose") else None)
    template = ChatTemplate(tiny_tokenizer())
    expected = [task.encode(record, 0, ChatTemplate(tiny_tokenizer()), max_length) for record in records]
    assert Together(task, template, max_length).encode(records) == expected


def test_an_encoder_reads_texts_one_by_one() -> None:
    template = PlainText(tiny_tokenizer())
    for name, records in (("label", LABELLED), ("tag", ENTITIES)):
        task = tasks.pose(name, records)
        expected = [task.encode(record, 0, template, 64) for record in records]  # type: ignore[arg-type]
        assert Together(task, template, 64).encode(records) == expected


def test_texts_are_encoded_together_and_not_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate(tiny_tokenizer())
    together = Together(Classify(("a", "b"), "Which?"), template, 1024)
    monkeypatch.setattr(ChatTemplate, "_ids", lambda self, text: pytest.fail(f"{text!r} was encoded alone"))
    assert len(together.encode(LABELLED)) == 40


def test_errors_are_those_of_the_task() -> None:
    together = Together(Classify(("a", "b"), "Which?"), ChatTemplate(tiny_tokenizer()), 1024)
    with pytest.raises(DataError, match="the label 'c' is not among those") as caught:
        together.encode([*LABELLED, Record(77, text="t", label="c")])
    assert caught.value.line == 77


def test_the_real_tokenizer_divides(tmp_path: Path) -> None:
    from heptune.core.errors import BaseModelError
    from heptune.models.load import load_tokenizer

    try:
        tokenizer = load_tokenizer("smollm2-135m")
    except BaseModelError as error:
        pytest.skip(f"the embedded base cannot be had here: {error}")
    pieces = Pieces(tokenizer)
    assert pieces.divides
    texts = [f"{record.text}  (No. 12 of\n 30)" for record in LABELLED]
    assert pieces.encode(texts) == one_by_one(tokenizer, texts)
