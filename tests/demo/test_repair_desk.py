"""The demo's data keeps what its card promises."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib import resources
from itertools import combinations

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline

from heptune.demo import DATA

LABELS = {
    "plumbing",
    "electrical",
    "heating",
    "locksmith",
    "carpentry",
    "pest control",
    "cleaning",
    "appliances",
}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower().replace("'", ""))


def test_it_is_found_as_package_data() -> None:
    packaged = resources.files("heptune.demo").joinpath("repair_desk.jsonl")
    assert packaged.read_bytes() == DATA.read_bytes()
    assert resources.files("heptune.demo").joinpath("README.md").is_file()


def test_file_is_ascii_with_one_object_a_line() -> None:
    raw = DATA.read_bytes()
    assert raw.isascii() and raw.endswith(b"\n") and b"\r" not in raw
    for line in raw.decode("ascii").splitlines():
        row = json.loads(line)
        assert set(row) == {"text", "label"}
        assert row["text"] == row["text"].strip() and "  " not in row["text"] and row["text"].isprintable()


def test_54_messages_for_each_of_eight_labels(rows: list[dict[str, str]]) -> None:
    assert Counter(row["label"] for row in rows) == dict.fromkeys(LABELS, 54)


def test_length_is_8_to_40_words(rows: list[dict[str, str]]) -> None:
    assert [row["text"] for row in rows if not 8 <= len(row["text"].split()) <= 40] == []


def test_no_message_stands_twice(rows: list[dict[str, str]]) -> None:
    normalised = Counter(" ".join(words(row["text"])) for row in rows)
    assert [text for text, count in normalised.items() if count > 1] == []


def test_no_two_messages_are_nearly_alike(rows: list[dict[str, str]]) -> None:
    bags = [(row["text"], frozenset(words(row["text"]))) for row in rows]
    alike = [
        (a, b) for (a, bag_a), (b, bag_b) in combinations(bags, 2) if len(bag_a & bag_b) > 0.6 * len(bag_a | bag_b)
    ]
    assert alike == []


@pytest.mark.parametrize("label", sorted(LABELS))
def test_most_messages_do_not_name_their_label(rows: list[dict[str, str]], label: str) -> None:
    texts = [" ".join(words(row["text"])) for row in rows if row["label"] == label]
    assert sum(label in text for text in texts) < len(texts) / 2


def test_labels_are_mixed_through_the_file(rows: list[dict[str, str]]) -> None:
    for start in range(0, len(rows), 54):
        assert {row["label"] for row in rows[start : start + 54]} == LABELS


def test_card_names_every_label_and_the_size(rows: list[dict[str, str]]) -> None:
    card = DATA.with_name("README.md").read_text(encoding="utf-8")
    assert f"{len(rows)} short messages" in card and "Apache-2.0" in card
    assert [label for label in LABELS if f"| `{label}` |" not in card] == []
    example = next(line for line in card.splitlines() if line.startswith('    {"text"'))
    assert json.loads(example) in rows


def test_word_counts_alone_learn_something_but_not_all(rows: list[dict[str, str]]) -> None:
    """Below the band the labels would be noise to a small model; above it a list of keywords would do."""
    classifier = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(max_iter=1000)
    )
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    accuracy = cross_val_score(classifier, texts, labels, cv=folds).mean()
    assert 0.70 <= accuracy <= 0.88
