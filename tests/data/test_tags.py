"""Every scheme says the same of the same entities, and what none allows is refused where it stands."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heptune.data.tags import SCHEMES, Chunk, Scheme, TagError, chunks, scheme_of

BY_NAME = {scheme.name: scheme for scheme in SCHEMES}
CHUNKS = [Chunk(0, 1, "PER"), Chunk(1, 3, "PER"), Chunk(4, 7, "LOC")]
WRITTEN = {
    "IOB1": "I-PER B-PER I-PER O I-LOC I-LOC I-LOC",
    "IOB2": "B-PER B-PER I-PER O B-LOC I-LOC I-LOC",
    "IOBES": "S-PER B-PER E-PER O B-LOC I-LOC E-LOC",
    "BILOU": "U-PER B-PER L-PER O B-LOC I-LOC L-LOC",
}


@pytest.mark.parametrize("name", WRITTEN)
def test_one_sentence_in_every_scheme(name: str) -> None:
    tags = WRITTEN[name].split()
    assert scheme_of([tags]) == BY_NAME[name]
    assert chunks(tags, BY_NAME[name]) == CHUNKS


@st.composite
def sentences(draw: st.DrawFn) -> tuple[int, list[Chunk]]:
    """A sentence's length and its entities."""
    found, token = [], 0
    for _ in range(draw(st.integers(0, 5))):
        token += draw(st.integers(0, 2))
        length = draw(st.integers(1, 4))
        found.append(Chunk(token, token + length, draw(st.sampled_from(["PER", "B-X", "creative work"]))))
        token += length
    return token + draw(st.integers(0, 2)), found


def write(length: int, found: list[Chunk], scheme: str) -> list[str]:
    """The tags of a sentence, written independently of how they are read."""
    tags, before = ["O"] * length, Chunk(-1, -1, "")
    for chunk in found:
        size = chunk.end - chunk.first
        if scheme == "IOB1":
            letters = ["B" if (before.end, before.type) == (chunk.first, chunk.type) else "I"] + ["I"] * (size - 1)
        elif scheme == "IOB2":
            letters = ["B"] + ["I"] * (size - 1)
        else:
            last, single = ("E", "S") if scheme == "IOBES" else ("L", "U")
            letters = [single] if size == 1 else ["B", *["I"] * (size - 2), last]
        tags[chunk.first : chunk.end] = [f"{letter}-{chunk.type}" for letter in letters]
        before = chunk
    return tags


@settings(deadline=None, max_examples=150)
@given(drawn=st.lists(sentences(), min_size=1, max_size=4))
@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_in_a_scheme_is_read_back(name: str, drawn: list[tuple[int, list[Chunk]]]) -> None:
    written = [write(length, found, name) for length, found in drawn]
    scheme = scheme_of(written)
    assert [chunks(tags, scheme) for tags in written] == [found for _, found in drawn]


@settings(deadline=None, max_examples=150)
@given(tags=st.lists(st.sampled_from([f"{x}-{y}" for x in "BIESLU" for y in "XY"] + ["O", "B", "x"]), max_size=8))
def test_any_tags_are_read_as_written_or_refused(tags: list[str]) -> None:
    scheme = scheme_of([tags])
    try:
        found = chunks(tags, scheme)
    except TagError as problem:
        assert 0 <= problem.token < len(tags)
        return
    if not scheme.untyped:
        assert write(len(tags), found, scheme.name) == tags
    assert sum(c.end - c.first for c in found) == sum(tag != "O" for tag in tags)


def test_the_scheme_with_fewest_faults_is_that_of_the_file() -> None:
    good = ["B-X", "I-X", "O"]
    assert scheme_of([good, ["O", "I-X"], ["B-X"]]) == BY_NAME["IOB2"]
    assert scheme_of([["I-X", "O"], ["I-X"], good]) == BY_NAME["IOB1"]
    assert scheme_of([[], ["O"]]) == replace(BY_NAME["IOB2"], untyped=True)


def test_tags_without_a_type() -> None:
    tags = ["O", "B", "I", "B"]
    assert scheme_of([tags]).untyped
    assert chunks(tags, scheme_of([tags])) == [Chunk(1, 3, "entity"), Chunk(3, 4, "entity")]
    mixed = scheme_of([["B-X", "I-X"], ["B", "I-X"]])
    with pytest.raises(TagError, match="'B' of token 1 is invalid in IOB2: a tag is O, or one of B, I with a type"):
        chunks(["B", "I-X"], mixed)


INVALID = [
    ("IOB2", "B-X O I-X", 2, "'I-X' of token 3 is invalid in IOB2: it goes on with an entity, but none of its type"),
    ("IOB2", "B-X I-Y", 1, "none of its type is open"),
    ("IOB2", "B-X I-X E-X", 2, "a tag is O, or one of B, I with a type: B-PER"),
    ("IOB1", "I-X O B-X", 2, "only stands directly after an entity of its type"),
    ("IOB1", "I-X B-Y", 1, "only stands directly after an entity of its type"),
    ("IOBES", "B-X I-X O", 1, "its entity needs an E tag at its end"),
    ("IOBES", "B-X S-X", 0, "its entity needs an E tag at its end"),
    ("IOBES", "O E-X", 1, "none of its type is open"),
    ("BILOU", "U-X B-X", 1, "its entity needs an L tag at its end"),
    ("IOB2", "B- O", 0, "'B-' of token 1"),
    ("IOB2", "o O", 0, "'o' of token 1"),
]


@pytest.mark.parametrize(("name", "tags", "token", "part"), INVALID, ids=[f"{i[0]} {i[1]}" for i in INVALID])
def test_invalid_tags_are_named(name: str, tags: str, token: int, part: str) -> None:
    scheme: Scheme = BY_NAME[name]
    with pytest.raises(TagError) as caught:
        chunks(tags.split(), scheme)
    assert caught.value.token == token
    assert part in caught.value.problem
