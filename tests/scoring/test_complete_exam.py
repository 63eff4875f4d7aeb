"""How complete is judged: losses against the model's own forward, bits per byte, continuations, and the byte model."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

from heptune.core.errors import DataError, UsageError
from heptune.core.events import Event, Progress, ignore
from heptune.data.record import Record
from heptune.engine.forward import Forward
from heptune.models.anatomy import dissect
from heptune.scoring.byte_model import ORDER, ByteModel
from heptune.scoring.exams import exam_of, validation
from heptune.scoring.exams.complete import _beginnings, _sample
from heptune.scoring.generate import Sampling, continuation
from heptune.scoring.score import Scorer
from heptune.tasks.complete import Complete
from heptune.tasks.template import ChatTemplate
from tiny import tiny_model, tiny_tokenizer

TASK = Complete()
TEXTS = ("The river is wide, and the book is long.", "Où est la rivière? €", "t", "Who wrote the book, and when? " * 5)
RECORDS = [Record(n, text=text) for n, text in enumerate(TEXTS)]


def scorer(seed: int = 0) -> Scorer:
    model = tiny_model("llama", seed=seed).double()
    return Scorer(Forward(dissect(model)), ChatTemplate(tiny_tokenizer()), max_length=24, budget=90)


def own_nats(judge: Scorer, record: Record) -> float:
    """The windows' losses by the model's own forward."""
    total = 0.0
    for example in TASK.encode(record, 0, judge.template, judge.max_length):
        with torch.no_grad():
            log_p = judge.forward.anatomy.model(torch.tensor([example.tokens])).logits[0].log_softmax(-1)
        total -= sum(float(log_p[t, example.tokens[t + 1]]) for t in range(len(example.tokens) - 1))
    return total


def test_losses_tokens_and_bytes_of_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heptune.scoring.exams.complete._AT_A_TIME", 3)
    judge = scorer()
    heard: list[Event] = []
    found = exam_of(TASK).answers(judge, RECORDS, "scoring", heard.append)
    assert found.document.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(found.losses, [own_nats(judge, record) for record in RECORDS], rtol=1e-6)
    tokens = [TASK.tokens(record, judge.template) for record in RECORDS]
    assert found.tokens.tolist() == [len(each) - 1 for each in tokens]
    # The first token of a document is not predicted: its bytes do not count.
    firsts = [len(judge.template.tokenizer.decode(each[:1]).encode()) for each in tokens]
    sizes = [len(text.encode()) - first for text, first in zip(TEXTS, firsts, strict=True)]
    assert found.size.tolist() == [max(1, size) for size in sizes]
    last = [event for event in heard if isinstance(event, Progress)][-1]
    assert (last.done, last.total, last.unit) == (4, 4, "documents")


def test_validation_and_outcomes_tell_the_same() -> None:
    judge = scorer()
    nats = sum(own_nats(judge, record) for record in RECORDS)
    found = exam_of(TASK).answers(judge, RECORDS, "scoring", ignore)
    made = validation(TASK, judge, RECORDS, ignore)
    assert made is not None and (made.metric, made.higher_is_better) == ("loss", False)
    score = made.score()
    assert score["loss"] == pytest.approx(nats / found.tokens.sum(), rel=1e-6)
    assert score["bits per byte"] == pytest.approx(nats / math.log(2) / found.size.sum(), rel=1e-6)
    outcomes = exam_of(TASK).outcomes(judge, RECORDS, "scoring", ignore)
    assert outcomes["log_p"] == pytest.approx((-found.losses).tolist()) and outcomes["weights"] == found.tokens.tolist()
    nothing = [Record(1, text="t", continued=True)]
    assert validation(TASK, judge, nothing, ignore) is None and validation(TASK, judge, [], ignore) is None
    with pytest.raises(DataError, match="no document has two tokens"):
        exam_of(TASK).answers(judge, nothing, "scoring", ignore)


def test_the_evaluation_compares_with_the_base_and_the_byte_model() -> None:
    exam = exam_of(TASK)
    base, tuned = (exam.answers(scorer(seed), RECORDS, "scoring", ignore) for seed in (0, 1))
    train = [Record(1, text="The river is wide. Who wrote the book?")]
    result = exam.evaluation("the test part", RECORDS, train, base, tuned, seed=0)
    assert [row.name for row in result.rows] == ["tuned", "base, untouched", "order-5 byte model"]
    for row, nats in zip(result.rows, (tuned.losses, base.losses), strict=False):
        assert row.metrics["loss"].value == pytest.approx(nats.sum() / tuned.tokens.sum())
        assert row.metrics["perplexity"].value == pytest.approx(math.exp(nats.sum() / tuned.tokens.sum()))
        assert row.metrics["bits per byte"].value == pytest.approx(nats.sum() / math.log(2) / tuned.size.sum())
        assert row.metrics["loss"].low <= row.metrics["loss"].value <= row.metrics["loss"].high
    model = ByteModel.of([b"The river is wide. Who wrote the book?"])
    spelled = [model.nats([text.encode()])[0][-size:].sum() for text, size in zip(TEXTS, tuned.size, strict=True)]
    bits = result.rows[2].metrics["bits per byte"].value
    assert bits == pytest.approx(sum(spelled) / math.log(2) / tuned.size.sum())
    difference = (tuned.losses - base.losses).sum() / tuned.tokens.sum()
    assert result.comparison.difference.value == pytest.approx(difference)
    assert [(shown.text, shown.better) for shown in result.shown] == [(text, None) for text, _ in _beginnings(RECORDS)]
    assert all(shown.base != shown.tuned for shown in result.shown)


def test_beginnings_and_the_sample_of_the_training_text(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _beginnings(RECORDS)[0] == ("The river is wide,", " and the book is long.")
    assert len(_beginnings(RECORDS)) == 2, "a document of one word has no beginning"
    monkeypatch.setattr("heptune.scoring.exams.complete._COUNTED_BYTES", 25)
    many = [Record(n, text=f"{n:010}") for n in range(200)]
    assert _sample(many) == [b"0000000000", b"0000000064", b"00000"]
    assert _sample([]) == []


def test_continuations_are_the_likeliest_tokens() -> None:
    judge = scorer()
    model, template = judge.forward.anatomy.model, judge.template
    prompt = TASK.prompt("The river", template)
    pieces: list[str] = []
    said = continuation(judge.forward.anatomy, template, prompt, Sampling(max_tokens=8), pieces.append)
    tokens = list(prompt)
    for _ in range(8):
        tokens.append(int(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
        if tokens[-1] in template.stop_tokens:
            break
    assert said == template.tokenizer.decode(tokens[len(prompt) :], skip_special_tokens=True) == "".join(pieces)
    with pytest.raises(UsageError, match="write the beginning"):
        continuation(judge.forward.anatomy, template, [], Sampling())


class TestByteModel:
    TRAIN = (b"the river ran under the bridge", b"the book and the other book", "où était le théâtre".encode())

    def reference(self, context: bytes, byte: int) -> float:
        """Witten-Bell as its equation says, with dictionaries."""
        counts: dict[bytes, Counter[int]] = defaultdict(Counter)
        for text in self.TRAIN:
            padded = bytes(ORDER) + text
            for at in range(ORDER, len(padded)):
                for k in range(ORDER + 1):
                    counts[padded[at - k : at]][padded[at]] += 1
        p = 1 / 256
        for k in range(ORDER + 1):
            seen = counts.get(context[len(context) - k :])
            if seen:
                p = (seen[byte] + len(seen) * p) / (sum(seen.values()) + len(seen))
        return p

    def test_it_is_its_equation(self) -> None:
        model = ByteModel.of(self.TRAIN)
        texts = [b"the other river", b"x", "le théâtre".encode()]
        for text, nats in zip(texts, model.nats(texts), strict=True):
            padded = bytes(ORDER) + text
            wanted = [self.reference(padded[at : at + ORDER], padded[at + ORDER]) for at in range(len(text))]
            np.testing.assert_allclose(np.exp(-nats), wanted, rtol=1e-12)

    @pytest.mark.parametrize("context", [b"", b"the r", b"zzzzz", b"\xc3"])
    def test_probabilities_add_up_to_one(self, context: bytes) -> None:
        model = ByteModel.of(self.TRAIN)
        total = sum(float(np.exp(-model.nats([context + bytes([byte])])[0][-1])) for byte in range(256))
        assert total == pytest.approx(1.0, abs=1e-12)
