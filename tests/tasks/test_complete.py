"""Complete: windows, what is learned in them, packed and alone, and the store on disk."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from heptune import tasks
from heptune.core.errors import DataError, UsageError
from heptune.core.events import Event, Progress, ignore
from heptune.data.record import Record
from heptune.engine.forward import Forward
from heptune.models.anatomy import dissect
from heptune.runs.files import UNFINISHED
from heptune.tasks.complete import Complete, windows
from heptune.tasks.example import Example
from heptune.tasks.options import TaskOptions
from heptune.tasks.store import StoredExamples, lengths, stored, targets
from heptune.tasks.template import ChatTemplate
from tiny import IM_END, IM_START, tiny_model, tiny_tokenizer
from tolerances import FLOAT32

TEMPLATE = ChatTemplate(tiny_tokenizer())
TASK = Complete()
WORDS = ("the", "capital", "of", "France", "is", "where", "river", "book", "wrote", "answer", "label")


def with_bos() -> ChatTemplate:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", IM_START)]
    )
    return ChatTemplate(tokenizer)


def document(text: str, continued: bool = False) -> Record:
    return Record(1, text=text, continued=continued)


def prose(count: int, seed: int) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choices(WORDS, k=count))


class TestEncoding:
    def test_a_document_is_its_tokens_and_its_end(self) -> None:
        (example,) = TASK.encode(document("The text is positive."), 4, TEMPLATE, 100)
        assert list(example.tokens) == [*TEMPLATE.encode("The text is positive."), IM_END]
        assert example.supervised == (False,) + (True,) * (len(example.tokens) - 1)
        assert (example.record, example.cut) == (4, 0)

    def test_a_beginning_where_the_tokenizer_puts_one(self) -> None:
        (example,) = TASK.encode(document("text"), 0, with_bos(), 100)
        assert example.tokens[0] == IM_START and list(example.tokens[1:-1]) == TEMPLATE.encode("text")

    def test_a_stretch_that_goes_on_is_not_closed(self) -> None:
        (example,) = TASK.encode(document("The text", continued=True), 0, TEMPLATE, 100)
        assert list(example.tokens) == TEMPLATE.encode("The text")

    @pytest.mark.parametrize("limit", [8, 9, 20, 41, 42, 43, 100])
    def test_windows_learn_every_token_but_the_first_once(self, limit: int) -> None:
        record = document(prose(20, 0))
        tokens = TASK.tokens(record, TEMPLATE)
        found = TASK.encode(record, 0, TEMPLATE, limit)
        learned = [token for example in found for token in example.tokens[1:]]
        assert learned == tokens[1:] and found[0].tokens[0] == tokens[0]
        assert all(len(example.tokens) <= limit for example in found)
        assert all(a.tokens[-1] == b.tokens[0] for a, b in pairwise(found))
        assert all(not e.supervised[0] and all(e.supervised[1:]) for e in found)
        assert TASK.scored(record, 0, TEMPLATE, limit) == found

    def test_one_token_teaches_nothing(self) -> None:
        assert TASK.encode(document("t", continued=True), 0, TEMPLATE, 100) == []

    def test_what_is_no_document_and_options(self) -> None:
        with pytest.raises(DataError, match="labelled text, but complete learns from plain text") as caught:
            TASK.encode(Record(7, text="a", label="b"), 0, TEMPLATE, 100)
        assert caught.value.line == 7
        with pytest.raises(UsageError, match="it takes none"):
            tasks.pose("complete", [document("a")], TaskOptions(system="Be kind."))
        assert tasks.from_json(TASK.to_json()) == TASK and (TASK.metric, TASK.higher_is_better) == ("loss", False)


@pytest.mark.parametrize("family", ["llama", "gpt2", "glm4"])
def test_packed_documents_are_kept_apart(family: str) -> None:
    """The loss of documents in one forest is that of each alone, and of the model's own forward on its tokens."""
    model = tiny_model(family)
    forward = Forward(dissect(model))
    examples = [e for n in range(5) for e in TASK.encode(document(prose(6 + 9 * n, n)), n, TEMPLATE, 30)]
    assert len(examples) > 8
    (portion,) = forward.portions(examples, 4096)
    packed = forward.score(portion)
    alone = np.array([forward.score([example])[0] for example in portion])
    own = []
    with torch.no_grad():
        for example in portion:
            log_p = model(torch.tensor([example.tokens])).logits[0].double().log_softmax(-1)
            own.append(-sum(float(log_p[t, example.tokens[t + 1]]) for t in range(len(example.tokens) - 1)))
    np.testing.assert_allclose(packed, alone, rtol=FLOAT32)
    np.testing.assert_allclose(packed, own, rtol=FLOAT32)


class TestStore:
    RECORDS = tuple(document(prose(3 * n, n), continued=n % 3 == 0) for n in range(1, 30))

    def store(self, folder: Path, mark: str = "a", max_length: int = 16) -> StoredExamples:
        return stored(folder, {"made": mark}, TASK, self.RECORDS, TEMPLATE, max_length, ignore)

    @pytest.mark.parametrize("max_length", [8, 16, 1000])
    def test_examples_are_those_of_the_task(self, tmp_path: Path, max_length: int) -> None:
        plain = [e for i, record in enumerate(self.RECORDS) for e in TASK.encode(record, i, TEMPLATE, max_length)]
        found = self.store(tmp_path / "tokens", max_length=max_length)
        assert list(found) == plain and found[-1] == plain[-1] and found[1:4] == plain[1:4]
        assert list(lengths(found)) == lengths(plain) and targets(found) == targets(plain)
        assert isinstance(found[np.int64(0)], Example) and all(type(t) is int for t in found[0].tokens)
        with pytest.raises(IndexError):
            found[len(plain)]

    def test_it_is_written_once(self, tmp_path: Path) -> None:
        folder = tmp_path / "tokens"
        heard: list[Event] = []
        first = stored(folder, {"made": 1}, TASK, self.RECORDS, TEMPLATE, 16, heard.append)
        assert any(isinstance(e, Progress) and e.what == "tokenizing" for e in heard)
        written = (folder / "tokens.bin").stat().st_mtime_ns
        assert list(stored(folder, {"made": 1}, TASK, (), TEMPLATE, 16, ignore)) == list(first), "nothing was read"
        assert (folder / "tokens.bin").stat().st_mtime_ns == written
        again = stored(folder, {"made": 2}, TASK, self.RECORDS[:3], TEMPLATE, 16, ignore)
        assert len(again) < len(first)

    def test_a_store_that_was_broken_off_is_not_there(self, tmp_path: Path) -> None:
        def break_off(event: Event) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            stored(tmp_path / "tokens", {}, TASK, self.RECORDS, TEMPLATE, 16, break_off)
        assert not (tmp_path / "tokens").exists() and not list(tmp_path.glob(f"{UNFINISHED}*"))

    def test_a_vocabulary_of_more_than_16_bits(self, tmp_path: Path) -> None:
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens([f"<{n}>" for n in range(1 << 16)])
        template = ChatTemplate(tokenizer)
        record = document("a <65535> b <65000>")
        assert max(TASK.tokens(record, template)) >= 1 << 16
        (example,) = stored(tmp_path / "tokens", {}, TASK, [record], template, 64, ignore)
        assert list(example.tokens) == TASK.tokens(record, template)
        assert json.loads((tmp_path / "tokens/store.json").read_text("utf-8"))["type"] == "uint32"

    def test_nothing_to_learn(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no document of the corpus has two tokens"):
            stored(tmp_path / "tokens", {}, TASK, [document("t", continued=True)], TEMPLATE, 16, ignore)


@settings(max_examples=100, deadline=None)
@given(count=st.integers(0, 200), limit=st.integers(2, 50))
def test_windows_cover_every_target_once(count: int, limit: int) -> None:
    found = list(windows(count, limit))
    assert [t for start, end in found for t in range(start + 1, end)] == list(range(1, count))
    assert all(end - start <= limit for start, end in found)
