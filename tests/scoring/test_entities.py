"""Entity scores against seqeval's strict mode."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval import metrics as seqeval
from seqeval.scheme import IOB2

from heptune.data.record import Span
from heptune.scoring import entities
from heptune.tasks import bio

TAGS = bio.names(["LOC", "PER", "creative-work"])
REFERENCES = {"F1": seqeval.f1_score, "precision": seqeval.precision_score, "recall": seqeval.recall_score}


@st.composite
def tagged_texts(draw: st.DrawFn) -> tuple[list[list[str]], list[list[str]]]:
    lengths = draw(st.lists(st.integers(0, 6), min_size=2, max_size=5))
    true = [[draw(st.sampled_from(TAGS)) for _ in range(length)] for length in lengths]
    said = [[tag if draw(st.booleans()) else draw(st.sampled_from(TAGS)) for tag in text] for text in true]
    return true, said


def counted(true: list[list[str]], said: list[list[str]]) -> entities.Counts:
    return entities.count([bio.chunks(text) for text in true], [bio.chunks(text) for text in said])


@settings(max_examples=150, deadline=None)
@given(tagged_texts())
def test_scores_are_those_of_seqeval(sample: tuple[list[list[str]], list[list[str]]]) -> None:
    true, said = sample
    counts = counted(true, said)
    if not counts.types:
        return
    sums = counts.true.sum(0), counts.said.sum(0), counts.hits.sum(0)
    for name, reference in REFERENCES.items():
        rules = {"mode": "strict", "scheme": IOB2, "zero_division": 0}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            micro, macro, types = (reference(true, said, average=how, **rules) for how in ("micro", "macro", None))
        measure = entities.MEASURES[name]
        assert measure(*(s.sum() for s in sums)) == pytest.approx(micro)
        assert measure(*sums) == pytest.approx(types)
        assert measure(*sums).mean() == pytest.approx(macro)
    one = np.random.default_rng(0).choice(counts.types)
    assert entities.macro(counts).value == pytest.approx(
        seqeval.f1_score(true, said, average="macro", mode="strict", scheme=IOB2, zero_division=0)
    )
    assert entities.of_type(counts, str(one))["F1"].value == pytest.approx(
        entities.f1(*sums)[counts.types.index(str(one))]
    )


def test_by_hand() -> None:
    truth = [{("PER", 0, 3), ("LOC", 5, 9)}, {("PER", 1, 2)}]
    said = [{("PER", 0, 3), ("LOC", 5, 8)}, set()]
    counts = entities.count(truth, said)
    assert counts.types == ("LOC", "PER")
    found = entities.micro(counts)
    assert found["precision"].value == 1 / 2 and found["recall"].value == 1 / 3 and found["F1"].value == 2 / 5
    assert entities.of_type(counts, "PER")["F1"].value == pytest.approx(2 / 3)
    assert entities.of_type(counts, "LOC")["F1"].value == 0
    assert entities.macro(counts).value == pytest.approx(1 / 3)
    assert entities.macro(counts, "recall").value == pytest.approx(1 / 4)


def test_intervals_are_over_texts() -> None:
    truth = [{("PER", 0, 3)}] * 40
    said = [{("PER", 0, 3)} if n % 2 else set() for n in range(40)]
    found = entities.micro(entities.count(truth, said))
    assert found["recall"].value == 0.5 and 0.3 < found["recall"].low < 0.4 < 0.6 < found["recall"].high < 0.7
    assert (found["precision"].low, found["precision"].high) == (1, 1)


def test_nothing_there_and_nothing_said() -> None:
    counts = entities.count([set(), set()], [set(), set()])
    assert entities.micro(counts)["F1"].value == entities.macro(counts).value == 0


def test_the_same_entity_said_twice_counts_once() -> None:
    counts = entities.count([{("PER", 0, 3)}], [[("PER", 0, 3), ("PER", 0, 3)]])
    assert (counts.said.sum(), counts.hits.sum()) == (1, 1)


def test_the_difference_is_paired() -> None:
    truth = [{("PER", n, n + 1)} for n in range(30)]
    good = entities.count(truth, truth)
    bad = entities.count(truth, [set()] * 15 + truth[15:])
    same = entities.f1_difference(good, good)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert entities.f1_difference(good, bad).value == pytest.approx(1 - 2 / 3)
    assert entities.f1_difference(good, bad).low > 0


def test_spans_as_entities() -> None:
    assert entities.entities([Span(1, 2, "A"), Span(1, 2, "A")]) == {("A", 1, 2)}
