"""The task tag: every token of a text has a tag for a linear head, and what is read back is the entities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heptune import tasks
from heptune.core.errors import DataError
from heptune.data.record import Record, Span
from heptune.engine.forward import Forward
from heptune.models.anatomy import dissect
from heptune.scoring.exams.tag import TagExam, tagged_spans
from heptune.scoring.score import Scorer, readout_of
from heptune.tasks.tag import Tag
from heptune.tasks.template import ChatTemplate, PlainText
from tiny import tiny_encoder, tiny_encoder_tokenizer, tiny_tokenizer

SPEAKS, READS = ChatTemplate(tiny_tokenizer()), PlainText(tiny_encoder_tokenizer())
ADA = Record(1, text="Ada Lovelace wrote in London.", spans=(Span(0, 12, "PER"), Span(22, 28, "LOC")))
TASK = Tag.from_records([ADA])


@pytest.mark.parametrize("template", [SPEAKS, READS])
def test_every_own_token_is_marked_and_no_special_one(template: ChatTemplate) -> None:
    assert TASK.tags == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER") and TASK.classes == 5
    (example,) = TASK.encode(ADA, 3, template, 64)
    own = len(template.encode(ADA.text or ""))
    first = 1 if template is READS else 0
    assert [t for t, _ in example.marks] == list(range(first, first + own))
    codes = [code for _, code in example.marks]
    assert codes[0] == 3 and set(codes) == {0, 1, 2, 3, 4} and codes[-1] == 0 and example.record == 3
    assert example.lost == 0


def test_what_the_length_limit_takes_is_counted() -> None:
    (example,) = TASK.encode(ADA, 0, READS, 8)  # type: ignore[arg-type]
    assert example.cut > 0 and example.lost == 2, "one entity is shortened, one gone"
    strange = Record(1, text="Ada met Bob", spans=(Span(8, 11, "ROBOT"),))
    assert TASK.encode(strange, 0, READS, 64)[0].lost == 1  # type: ignore[arg-type]


@given(st.text("ab cé 中\n", min_size=1, max_size=30).filter(lambda t: bool(t.strip())), st.data())
@settings(deadline=None, max_examples=60)
def test_the_right_tags_give_the_entities_back(text: str, data: st.DataObject) -> None:
    places = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    spans = tuple(
        Span(a, b, "LOC")
        for a, b in zip(places[::2], places[1::2], strict=False)
        if text[a:b] == text[a:b].strip() != ""
    )
    record = Record(1, text=text, spans=spans)
    scorer = scorer_of()
    (example,) = TASK.encode(record, 0, scorer.template, 64)
    logits = np.full((len(example.marks), TASK.classes), -5.0)
    logits[np.arange(len(example.marks)), [code for _, code in example.marks]] = 5.0
    found = tagged_spans(TASK, scorer, text, logits)
    _, offsets, _ = scorer.template.located(text, 64)
    borders = {place for token in offsets for place in token}
    if all({span.start, span.end} <= borders for span in spans):
        assert found == spans
    elif example.lost == 0:
        for span in spans:  # a token that holds more than the entity cannot be cut
            assert any(s.start <= span.start and span.end <= s.end for s in found)


def scorer_of() -> Scorer:
    forward = Forward(dissect(tiny_encoder("bert")))
    forward.readout = readout_of(TASK, forward.anatomy, 0)
    return Scorer(forward, READS, 64, 500)  # type: ignore[arg-type]


def test_the_exam_reads_valid_sequences_and_scores_them() -> None:
    scorer = scorer_of()
    records = [ADA, Record(2, text="Nothing here.", spans=()), Record(3, text="Paris!", spans=(Span(0, 5, "LOC"),))]
    exam = TagExam(TASK)
    judge = exam.validation(scorer, records, lambda event: None)
    assert judge is not None and judge.metric == "f1"
    scores = judge.score()
    assert 0 <= scores["f1"] <= 1 and scores["loss"] > 0
    tuned = exam.answers(scorer, records, "tagging", lambda event: None)
    base = exam.untouched(scorer, records, records, lambda event: None)
    result = exam.evaluation("a part", records, records, base, tuned, 0)
    assert [row.name for row in result.rows][:2] == ["tuned", "base, linear probe"]
    found = exam.outcomes(scorer, records, "tagging", lambda event: None)
    assert len(found["log_p"]) == 3 and found["weights"][0] == len(READS.encode(ADA.text or ""))


def test_what_cannot_be_tagged() -> None:
    with pytest.raises(DataError, match="nothing to tag"):
        Tag.from_records([Record(1, text="a", spans=())])
    assert tasks.choose("text with entities") == "extract"
    assert tasks.choose("text with entities", words=False) == "tag"
    assert Tag.from_json(TASK.to_json()) == TASK
