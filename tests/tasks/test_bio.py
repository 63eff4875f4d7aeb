from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.scheme import IOB2, Tokens

from heptune.data.record import Span
from heptune.tasks import bio
from tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TYPES = ("LOC", "PER", "creative-work")
TAGS = bio.names(TYPES)


def offsets(text: str) -> list[tuple[int, int]]:
    return TOKENIZER(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]


@st.composite
def texts_with_spans(draw: st.DrawFn) -> tuple[str, tuple[Span, ...]]:
    """Any text with entities that do not overlap."""
    text = draw(st.text(st.characters(codec="utf-8"), max_size=40) | st.text("ab é🤗 \n", max_size=40))
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=8)))
    pairs = list(itertools.pairwise(cuts))
    chosen = [pair for pair in pairs if draw(st.booleans())]
    return text, tuple(Span(start, end, draw(st.sampled_from(TYPES))) for start, end in chosen)


def test_names() -> None:
    assert bio.names(["b", "a"]) == ("O", "B-b", "I-b", "B-a", "I-a")


def test_a_byte_level_token_with_its_blank_belongs_to_the_word() -> None:
    text = "is the capital of France?"
    places = offsets(text)
    span = Span(text.index("the"), text.index("the") + 3, "LOC")
    tagged = bio.tag(text, [span], places)
    start, end = places[tagged.tags.index("B-LOC")]
    assert text[start:end] == " the"
    assert bio.spans(text, tagged.tags, places) == (span,)


@settings(max_examples=400, deadline=None)
@given(texts_with_spans())
def test_round_trip(sample: tuple[str, tuple[Span, ...]]) -> None:
    """What is read back is each entity, widened to its tokens; the entity itself where no token reaches beyond it."""
    text, spans = sample
    places = offsets(text)
    tagged = bio.tag(text, spans, places)
    entities = [span for span in (bio.trimmed(span, text) for span in spans) if span]
    assert tagged.shortened == 0
    read = bio.spans(text, tagged.tags, places)
    assert len(read) + tagged.lost == len(entities)
    for span in read:
        assert text[span.start : span.end].strip() == text[span.start : span.end] != ""
    for before, after in itertools.pairwise(read):
        assert before.end <= after.start
    for span in entities:
        touched = [place for place in places if max(place[0], span.start) < min(place[1], span.end)]
        beyond = text[touched[0][0] : span.start] + text[span.end : max(end for _, end in touched)]
        shared = any(
            max(start, other.start) < min(end, other.end)
            for start, end in touched
            for other in entities
            if other is not span
        )
        if not beyond.strip() and not shared:
            assert span in read


@settings(max_examples=200, deadline=None)
@given(texts_with_spans(), st.integers(0, 40))
def test_what_the_limit_cuts_is_counted(sample: tuple[str, tuple[Span, ...]], limit: int) -> None:
    text, spans = sample
    places = [(n, n + 1) for n in range(len(text))][:limit]  # one token for each character: nothing is shared
    tagged = bio.tag(text, spans, places)
    entities = [span for span in (bio.trimmed(span, text) for span in spans) if span]
    assert tagged.lost == sum(span.start >= limit for span in entities)
    assert tagged.shortened == sum(span.start < limit < span.end for span in entities)
    kept = tuple(Span(span.start, min(span.end, limit), span.type) for span in entities if span.start < limit)
    cut = [bio.trimmed(span, text[:limit]) for span in kept]
    assert bio.spans(text, tagged.tags, places) == tuple(span for span in cut if span)


def test_entities_that_share_tokens() -> None:
    text, places = "abcd", [(0, 2), (2, 4)]
    assert bio.tag(text, [Span(0, 1, "PER"), Span(1, 2, "LOC")], places) == bio.Tagged(("B-PER", "O"), lost=1)
    assert bio.tag(text, [Span(0, 1, "PER"), Span(1, 4, "LOC")], places) == bio.Tagged(("B-PER", "B-LOC"))
    nested = [Span(0, 4, "PER"), Span(0, 2, "LOC")]
    assert bio.tag(text, nested, places) == bio.Tagged(("B-PER", "I-PER"), lost=1)


def test_a_token_that_stands_for_nothing_has_no_tag() -> None:
    assert bio.tag("ab", [Span(0, 2, "PER")], [(0, 0), (0, 2), (0, 0)]).tags == ("O", "B-PER", "O")
    assert bio.tag("  ", [Span(0, 2, "PER")], [(0, 2)]) == bio.Tagged(("O",))


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(TAGS), max_size=12))
def test_tags_are_read_as_strictly_as_seqeval_does(tags: list[str]) -> None:
    expected = [(entity.tag, entity.start, entity.end) for entity in Tokens(tags, IOB2).entities]
    assert bio.chunks(tags) == expected


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_the_likeliest_valid_sequence_is_that_of_trying_all(length: int, seed: int) -> None:
    tags = bio.names(["A", "B"])
    log_p = np.log(np.random.default_rng(seed).dirichlet(np.ones(len(tags)), length))

    def valid(path: tuple[int, ...]) -> bool:
        named = [tags[i] for i in path]
        inside = sum(name.startswith("I-") for name in named)
        return inside == sum(end - start - 1 for _, start, end in bio.chunks(named))

    paths = [path for path in itertools.product(range(len(tags)), repeat=length) if valid(path)]
    best = max(paths, key=lambda path: sum(log_p[t, i] for t, i in enumerate(path)))
    assert bio.likeliest(log_p, tags) == list(best)


def test_a_tag_without_any_probability_is_not_chosen() -> None:
    log_p = np.full((3, 3), -np.inf)
    log_p[0, 0] = log_p[1, 1] = log_p[2, 2] = 0.0
    assert bio.likeliest(log_p, bio.names(["A"])) == [0, 1, 2]


@pytest.mark.parametrize("before, after, fine", [("O", "I-A", False), ("B-B", "I-A", False), ("I-A", "I-A", True)])
def test_transitions(before: str, after: str, fine: bool) -> None:
    tags = bio.names(["A", "B"])
    assert bio.transitions(tags)[tags.index(before), tags.index(after)] == fine
