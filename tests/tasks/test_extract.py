from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heptune import tasks
from heptune.core.errors import DataError, UsageError
from heptune.core.events import Event, Note, ignore
from heptune.data.record import Record, Span
from heptune.tasks.extract import Entity, Extract, entities, flat, locate, read, stands_alone, written
from heptune.tasks.options import TaskOptions
from heptune.tasks.template import ChatTemplate
from tiny import tiny_tokenizer

TEMPLATE = ChatTemplate(tiny_tokenizer())
TASK = Extract(("LOC", "PER"), "List the entities.")
ADA = "Ada Lovelace met Mary in London. Ada left London."


def record(text: str, *spans: tuple[str, str], line: int = 1) -> Record:
    """`spans` are (type, text) in order, each at its first place behind the one before."""
    found, at = [], 0
    for kind, part in spans:
        start = text.index(part, at)
        at = start + len(part)
        found.append(Span(start, at, kind))
    return Record(line, text=text, spans=tuple(found))


RECORD = record(ADA, ("PER", "Ada Lovelace"), ("PER", "Mary"), ("LOC", "London"), ("PER", "Ada"), ("LOC", "London"))


def texts_with_spans(alphabet: st.SearchStrategy[str]) -> st.SearchStrategy[Record]:
    @st.composite
    def made(draw: st.DrawFn) -> Record:
        text = draw(st.text(alphabet, max_size=60))
        cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=8)))
        pairs = [pair for pair in itertools.pairwise(cuts) if draw(st.booleans())]
        return Record(1, text=text, spans=tuple(Span(*pair, draw(st.sampled_from(TASK.types))) for pair in pairs))

    return made()


ANY = st.characters(codec="utf-8") | st.sampled_from('ab "\\\n🤗')


def test_from_records() -> None:
    task = Extract.from_records([RECORD, record("none")])
    assert task.types == ("LOC", "PER")
    assert task.instruction == (
        'List the entities in the text as JSON, in the order of the text: [{"type": "LOC", "text": "..."}], or [] if '
        "there are none. Types: LOC, PER."
    )
    assert Extract.from_records([RECORD], TaskOptions(instruction="Who?")).instruction == "Who?"
    assert tasks.from_json(task.to_json()) == task
    assert tasks.choose(RECORD.kind) == "extract"
    with pytest.raises(DataError, match="no example has an entity"):
        Extract.from_records([record("none")])
    with pytest.raises(UsageError, match="system is 'x', which the task extract has no use for"):
        Extract.from_records([RECORD], TaskOptions(system="x"))


def test_rendering() -> None:
    (example,) = TASK.encode(RECORD, 7, TEMPLATE, 500)
    read_part = TEMPLATE.tokenizer.decode(list(example.tokens[: example.lead]))
    learned = TEMPLATE.tokenizer.decode(list(example.tokens[example.lead :]))
    assert all(example.supervised[example.lead :])
    assert read_part == f"<|im_start|>user\nList the entities.\n\nText: {ADA}<|im_end|>\n<|im_start|>assistant\n"
    assert learned == (
        '[{"type": "PER", "text": "Ada Lovelace"}, {"type": "PER", "text": "Mary"}, {"type": "LOC", "text": "London"}, '
        '{"type": "PER", "text": "Ada"}, {"type": "LOC", "text": "London"}]<|im_end|>'
    )
    assert (example.record, example.cut, example.lost) == (7, 0, 0)
    assert list(example.tokens) == TEMPLATE.prompt(TASK.messages(ADA)) + TEMPLATE.reply(
        learned.removesuffix("<|im_end|>")
    )
    assert TASK.scored(RECORD, 7, TEMPLATE, 500) == [example]
    (nothing,) = TASK.encode(record("none"), 0, TEMPLATE, 500)
    assert TEMPLATE.tokenizer.decode(list(nothing.tokens[nothing.lead :])) == "[]<|im_end|>"


@settings(max_examples=60, deadline=None)
@given(texts_with_spans(ANY), st.integers(0, 120))
def test_a_long_text_loses_its_end_and_the_entities_there(sample: Record, spare: int) -> None:
    text = sample.text or ""
    limit = len(TEMPLATE.prompt(TASK.messages(""))) + len(TEMPLATE.reply("[]")) + spare
    (example,) = TASK.encode(sample, 0, TEMPLATE, limit)
    assert len(example.tokens) <= limit
    whole = flat(text, sample.spans or ())

    def of(end: int) -> list[int]:
        kept = [span for span in whole if span.end <= end]
        return TEMPLATE.prompt(TASK.messages(text[:end])) + TEMPLATE.reply(written(text, kept))

    every = [of(end) for end in range(len(text) + 1)]
    fitting = [end for end, tokens in enumerate(every) if tokens == list(example.tokens)]
    assert fitting and example.cut == len(every[-1]) - len(example.tokens)
    assert example.lost in {len(sample.spans or ()) - sum(s.end <= end for s in whole) for end in fitting}
    if example.cut:
        assert len(every[max(fitting) + 1]) > limit
    assert TASK.shortened(text, TEMPLATE, 10_000) == text


def test_what_is_not_learned_is_told() -> None:
    said: list[Event] = []
    long = record("word " * 120 + "Ada", ("PER", "Ada"))
    nested = Record(1, text="New York", spans=(Span(0, 8, "LOC"), Span(4, 8, "PER")))
    examples = tasks.encode(TASK, [long, nested, RECORD], TEMPLATE, 320, said.append)
    assert [example.lost for example in examples] == [1, 1, 0]
    assert "2 entities stand behind the limit of 320 tokens, or overlap another, and are not learned" in [
        event.text for event in said if isinstance(event, Note)
    ]
    quiet: list[Event] = []
    tasks.encode(TASK, [RECORD], TEMPLATE, 500, quiet.append)
    assert not quiet


def test_instruction_that_does_not_fit() -> None:
    need = len(TEMPLATE.prompt(TASK.messages(""))) + len(TEMPLATE.reply("[]"))
    assert TASK.encode(RECORD, 0, TEMPLATE, need)[0].lost == 5
    with pytest.raises(DataError, match=f"needs {need} tokens, but there is room for {need - 1}") as caught:
        TASK.encode(record("long", line=9), 0, TEMPLATE, need - 1)
    assert caught.value.line == 9


def test_unknown_types_are_not_listed() -> None:
    (example,) = TASK.encode(record("Ada in May", ("PER", "Ada"), ("DATE", "May")), 0, TEMPLATE, 500)
    assert example.lost == 1
    assert "May" not in TEMPLATE.tokenizer.decode(list(example.tokens[example.lead :]))


def test_records_of_another_kind() -> None:
    with pytest.raises(DataError, match="labelled text, but extract learns from text with entities"):
        tasks.pose("extract", [RECORD, Record(2, text="a", label="b")])


def test_shortened_fits() -> None:
    need = len(TEMPLATE.prompt(TASK.messages("")))
    for room in range(need, need + 30):
        left = TASK.shortened(ADA, TEMPLATE, room)
        assert ADA.startswith(left) and len(TEMPLATE.prompt(TASK.messages(left))) <= room
        if left != ADA:
            assert len(TEMPLATE.prompt(TASK.messages(ADA[: len(left) + 1]))) > room
    with pytest.raises(DataError, match="there is room for 3"):
        TASK.shortened(ADA, TEMPLATE, 3)


class TestReading:
    def test_mentions_are_read_in_order(self) -> None:
        assert read(ADA, written(ADA, RECORD.spans or ())) == list(RECORD.spans or ())

    @settings(max_examples=300, deadline=None)
    @given(texts_with_spans(ANY) | texts_with_spans(st.sampled_from("ab ")))
    def test_round_trip(self, sample: Record) -> None:
        """What was listed is read back, up to the first text that is found elsewhere."""
        text = sample.text or ""
        spans = flat(text, sample.spans or ())
        found = read(text, written(text, spans))
        behind = 0
        for n, span in enumerate(spans):
            part = text[span.start : span.end]
            places = [at for at in range(behind, len(text)) if text.startswith(part, at)]
            words = [at for at in places if stands_alone(text, at, at + len(part))]
            if (words or places)[0] != span.start:
                return
            assert found[n] == span
            behind = span.end
        assert found == spans

    def test_a_word_of_its_own_goes_before_a_part_of_one(self) -> None:
        assert locate("UNESCO and UN", "UN", 0) == 11
        assert locate("UNESCO", "UN", 0) == 0
        assert locate("UNESCO", "UN", 1) == -1
        assert locate("東京都と東京", "東京", 0) == 0  # no blanks part the words there
        assert locate("U.N. (UN) x1", "UN", 0) == 6

    def test_what_does_not_stand_there_is_left_out(self) -> None:
        answer = json.dumps([{"type": "PER", "text": "Mary"}, {"type": "PER", "text": "Ada Lovelace"}])
        assert read(ADA, answer) == [Span(17, 21, "PER")]


def test_flat() -> None:
    spans = [Span(4, 8, "A"), Span(0, 9, "B"), Span(0, 3, "C"), Span(8, 9, "D"), Span(9, 12, "E")]
    assert flat("New York ab ", spans) == [Span(0, 8, "B"), Span(9, 11, "E")]


def test_entities_carry_their_text() -> None:
    assert entities(ADA, [Span(17, 21, "PER")]) == [Entity("PER", "Mary", 17, 21)]


def test_nothing_listens() -> None:
    assert len(tasks.encode(TASK, [RECORD], TEMPLATE, 500, ignore)) == 1
