"""Splits are deterministic, stratified, complete, and leak nothing."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heptune.core.errors import DataError, UsageError
from heptune.data.record import Message, Record
from heptune.data.splits import PARTS, Split, content_key, sample, split


def labelled(*counts: int) -> list[Record]:
    """counts[i] different records of label str(i), in the order of a file sorted by label."""
    labels = [str(label) for label, count in enumerate(counts) for _ in range(count)]
    return [Record(line, text=f"text {line}", label=label) for line, label in enumerate(labels, 1)]


def test_the_parts_have_their_shares_of_every_label() -> None:
    records = labelled(500, 300, 150, 50)
    parts = split(records, seed=0, validation=0.1, test=0.2)
    assert [len(getattr(parts, part)) for part in PARTS] == [700, 100, 200]
    for part, share in zip(PARTS, (0.7, 0.1, 0.2), strict=True):
        counts = Counter(records[i].label for i in getattr(parts, part))
        for label, count in {"0": 500, "1": 300, "2": 150, "3": 50}.items():
            assert abs(counts[label] - share * count) <= 2


def test_many_small_labels_still_fill_every_part() -> None:
    records = labelled(*[3] * 77)
    parts = split(records, seed=3, validation=0.1, test=0.1)
    assert {records[i].label for i in parts.train} == {r.label for r in records}
    assert abs(len(parts.validation) - 23.1) <= 1
    assert abs(len(parts.test) - 23.1) <= 1


def test_another_seed_gives_another_split_and_the_same_seed_the_same() -> None:
    records = labelled(50, 50)
    first = split(records, seed=0, validation=0.2, test=0.0)
    assert first == split(list(records), seed=0, validation=0.2, test=0.0)
    assert first != split(records, seed=1, validation=0.2, test=0.0)
    assert first.test == ()
    assert split(records, seed=0, validation=0, test=0).train == tuple(range(100))


def test_a_known_split_stays_what_it_was() -> None:
    # A changed split would silently change every published score: this one was computed by the first version.
    assert split(labelled(12, 8), seed=0, validation=0.2, test=0.1) == KNOWN


KNOWN = Split(train=(0, 2, 4, 5, 6, 7, 8, 9, 11, 12, 14, 17, 18, 19), validation=(1, 3, 13, 16), test=(10, 15))


def test_a_label_that_occurs_only_in_conflicting_duplicates_is_still_learnt() -> None:
    records = labelled(30)
    records += [Record(31 + i, text=f"Text   {i}", label="rare") for i in range(1, 4)]
    for seed in range(20):
        parts = split(records, seed=seed, validation=0.3, test=0.3)
        assert "rare" in {records[i].label for i in parts.train}


@settings(deadline=None, max_examples=150)
@given(
    texts=st.lists(st.tuples(st.sampled_from("abcdefghijkl"), st.sampled_from(["x", "y", "z", None])), max_size=60),
    seed=st.integers(0, 5),
    validation=st.sampled_from([0.0, 0.1, 0.4]),
    test=st.sampled_from([0.0, 0.2, 0.5]),
)
def test_parts_are_disjoint_complete_and_share_no_text(
    texts: list[tuple[str, str | None]], seed: int, validation: float, test: float
) -> None:
    records = [Record(n, text=text, label=label) for n, (text, label) in enumerate(texts, 1)]
    try:
        parts = split(records, seed=seed, validation=validation, test=test)
    except DataError as error:
        assert "too few for a" in str(error)
        return
    every = [i for part in PARTS for i in getattr(parts, part)]
    assert sorted(every) == list(range(len(records)))
    assert all(getattr(parts, part) == tuple(sorted(getattr(parts, part))) for part in PARTS)
    contents = [{content_key(records[i]) for i in getattr(parts, part)} for part in PARTS]
    assert not (contents[0] & contents[1] or contents[0] & contents[2] or contents[1] & contents[2])
    assert {records[i].label for i in parts.train} == {record.label for record in records}
    assert (validation > 0) == bool(parts.validation)
    assert (test > 0) == bool(parts.test)
    assert Split.from_json(json.loads(json.dumps(parts.to_json()))) == parts


def test_duplicates_are_found_whatever_their_case_and_space() -> None:
    assert content_key(Record(1, text=" The  Film\n", label="a")) == content_key(Record(2, text="the film", label="b"))
    talk = (Message("user", "Hi"), Message("assistant", "Hello"))
    swapped = (Message("assistant", "Hi"), Message("user", "Hello"))
    assert content_key(Record(1, messages=talk)) != content_key(Record(2, messages=swapped))
    assert content_key(Record(1, messages=talk)) != content_key(Record(2, text="Hi Hello"))


def test_too_few_records_are_refused_with_the_way_out() -> None:
    with pytest.raises(
        DataError, match=r"3 records \(3 different ones.*too few for a validation part of 10%.*set the share"
    ):
        split(labelled(3), seed=0, validation=0.1, test=0.0)
    with pytest.raises(DataError, match=r"10 records \(1 different ones"):
        split([Record(n, text="same", label="x") for n in range(1, 11)], seed=0, validation=0.2, test=0.0)
    with pytest.raises(DataError, match="0 records"):
        split([], seed=0, validation=0.1, test=0.1)
    assert len(split(labelled(5, 5), seed=0, validation=0.1, test=0.1).train) == 8


@pytest.mark.parametrize(("validation", "test"), [(0.5, 0.5), (-0.1, 0.1), (1.0, 0.0), (0.0, float("nan"))])
def test_impossible_shares_are_refused(validation: float, test: float) -> None:
    with pytest.raises(UsageError, match="sum below 1"):
        split(labelled(50), seed=0, validation=validation, test=test)


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"train": [0, 1], "validation": [2]},
        {"train": [1, 0], "validation": [], "test": []},
        {"train": ["0"], "validation": [], "test": []},
        {"train": [0], "validation": [0], "test": []},
    ],
)
def test_a_damaged_split_is_refused(value: dict[str, object]) -> None:
    with pytest.raises(DataError, match="make it anew"):
        Split.from_json(value)


def test_a_sample_keeps_the_proportions() -> None:
    records = labelled(600, 300, 100)
    chosen = sample(records, range(1000), 100, seed=0)
    assert len(chosen) == 100
    assert chosen == tuple(sorted(chosen))
    counts = Counter(records[i].label for i in chosen)
    assert abs(counts["0"] - 60) <= 1
    assert abs(counts["1"] - 30) <= 1
    assert abs(counts["2"] - 10) <= 1
    assert chosen == sample(records, range(1000), 100, seed=0)
    assert chosen != sample(records, range(1000), 100, seed=1)


def test_a_sample_has_every_label_where_the_limit_allows() -> None:
    records = labelled(1000, 1, 1)
    assert {records[i].label for i in sample(records, range(1002), 3, seed=0)} == {"0", "1", "2"}
    assert [records[i].label for i in sample(records, range(1002), 1, seed=0)] == ["0"]


def test_a_sample_stays_within_its_indices() -> None:
    records = labelled(10, 10)
    assert sample(records, [7, 3, 12], 5, seed=0) == (3, 7, 12)
    assert set(sample(records, range(5, 15), 4, seed=0)) <= set(range(5, 15))
    with pytest.raises(UsageError, match="at least 1"):
        sample(records, range(20), 0, seed=0)
