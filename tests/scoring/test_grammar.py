"""Constrained decoding: what is allowed is exactly what some valid answer begins with, and every answer ends."""

from __future__ import annotations

import functools
import itertools
import json
import random
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from heptune.core.errors import BaseModelError
from heptune.data.record import Message, Span
from heptune.models.anatomy import dissect
from heptune.scoring.generate import Sampling, reply
from heptune.scoring.grammar import EntityList, Guide, Vocabulary
from heptune.tasks.extract import flat, locate, read, written
from heptune.tasks.template import ChatTemplate
from tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
VOCABULARY = Vocabulary.of(TOKENIZER)
TYPES = ("PER", "PERSON", 'the "odd" one', "地名")
PASSAGES = st.text(st.characters(codec="utf-8"), max_size=30) | st.text('ab "\\\n\té🤗', max_size=30)


@functools.cache
def sentence_pieces() -> PreTrainedTokenizerBase:
    """Pieces with ▁ for the blank, and a piece for each byte, as in Llama 2."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", "a", "b", '"', "{", '{"', "é", "▁the"]
    model = models.BPE({piece: n for n, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@functools.cache
def few_bytes() -> PreTrainedTokenizerBase:
    """Byte-level tokens without a token for each byte: é only together with the blank before it, other letters not."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = "".join(map(chr, range(32, 127)))
    trainer = trainers.BpeTrainer(vocab_size=200, initial_alphabet=[], show_progress=False)
    tokenizer.train_from_iterator([*letters, *[" é"] * 9, "ab é"], trainer)
    kept = {piece: n for n, piece in enumerate(p for p in tokenizer.get_vocab() if p not in ("Ã", "©", "Ã©"))}
    values = json.loads(tokenizer.to_str())
    values["model"]["vocab"], values["model"]["merges"] = kept, []
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(values)))


def test_the_tokenizer_that_lacks_bytes_lacks_them() -> None:
    pieces = set(few_bytes().get_vocab())
    assert not {"Ã", "©", "Ã©"} & pieces


@settings(max_examples=100, deadline=None)
@given(PASSAGES)
def test_tokens_are_the_bytes_of_what_they_say(text: str) -> None:
    for tokenizer in (TOKENIZER, sentence_pieces()):
        tokens = tokenizer.encode(text, add_special_tokens=False)
        assert Vocabulary.of(tokenizer).text(tokens) == text


def test_special_tokens_say_nothing() -> None:
    assert VOCABULARY.text([1, *TOKENIZER.encode("ab"), 2]) == "ab"
    assert not set(VOCABULARY.bytes_of) & set(TOKENIZER.all_special_ids)


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    words = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    words.decoder = decoders.WordPiece()
    with pytest.raises(BaseModelError, match="WordPiece, but guided answers need"):
        Vocabulary(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]"))


def test_the_fewest_tokens_are_those_of_trying_all() -> None:
    tokens = set(VOCABULARY.tokens)

    def tried(text: bytes) -> float:
        ends = [end for end in range(1, len(text) + 1) if text[:end] in tokens]
        return min((1 + tried(text[end:]) for end in ends), default=float("inf")) if text else 0

    for text in (b"", b"the text", b'": "', "é 🤗".encode()):
        assert VOCABULARY.spelled(text) == tuple(tried(text[start:]) for start in range(len(text) + 1))


def answers(passage: str, types: tuple[str, ...]) -> Iterator[str]:
    """All valid answers, by trying all lists of all substrings."""
    parts = {passage[i:j] for i in range(len(passage)) for j in range(i + 1, len(passage) + 1)}
    parts = {part for part in parts if part.strip() == part}

    def lists(behind: int) -> Iterator[list[dict[str, str]]]:
        yield []
        for kind, part in itertools.product(types, parts):
            at = locate(passage, part, behind)
            if at >= 0:
                yield from ([{"type": kind, "text": part}, *rest] for rest in lists(at + len(part)))

    for entities in lists(0):
        yield json.dumps(entities, ensure_ascii=False)


@pytest.mark.parametrize("passage", ["", " ", "ab", "a b", " a\n", 'a"', "aba", "é a"])
@pytest.mark.parametrize("tokenizer", [TOKENIZER, sentence_pieces()], ids=["bytes", "pieces"])
def test_what_is_allowed_is_what_some_valid_answer_begins_with(
    passage: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    vocabulary = Vocabulary.of(tokenizer)
    guide = Guide(EntityList(("x", "xy"), passage, vocabulary), vocabulary)
    valid = {answer.encode() for answer in answers(passage, ("x", "xy"))}
    beginnings = {answer[:end] for answer in valid for end in range(len(answer) + 1)}
    draw = random.Random(0)
    reached = {b"": guide.grammar.start}
    for _ in range(300):
        said, state = draw.choice(list(reached.items()))
        allowed = {vocabulary.bytes_of[token] for token in guide.allowed(state).tolist()}
        assert allowed == {token for token in vocabulary.tokens if said + token in beginnings}
        assert guide.closed(state) == (said in valid)
        for token in guide.allowed(state).tolist():
            reached[said + vocabulary.bytes_of[token]] = guide.after(state, token)


@settings(max_examples=200, deadline=None)
@given(PASSAGES, st.sampled_from(["bytes", "pieces", "few"]), st.integers(0, 60), st.randoms(use_true_random=False))
def test_every_walk_ends_in_time_with_a_valid_answer(passage: str, kind: str, spare: int, draw: random.Random) -> None:
    tokenizer = {"bytes": TOKENIZER, "pieces": sentence_pieces(), "few": few_bytes()}[kind]
    types = TYPES if kind != "few" else TYPES[:3]
    vocabulary = Vocabulary.of(tokenizer)
    guide = Guide(EntityList(types, passage, vocabulary), vocabulary)
    state, said = guide.grammar.start, []
    left = int(guide.grammar.cost(state)) + spare
    while not guide.closed(state):
        allowed = guide.allowed(state, left).tolist()
        said.append(draw.choice(allowed))
        state, left = guide.after(state, said[-1]), left - 1
        assert guide.grammar.cost(state) <= left
    require_valid(passage, types, vocabulary.text(said))


def require_valid(passage: str, types: tuple[str, ...], answer: str) -> None:
    entities = json.loads(answer)
    assert json.dumps(entities, ensure_ascii=False) == answer
    assert all(set(entity) == {"type", "text"} and entity["type"] in types for entity in entities)
    spans = read(passage, answer)
    assert [passage[span.start : span.end] for span in spans] == [entity["text"] for entity in entities]
    assert all(entity["text"].strip() == entity["text"] != "" for entity in entities)
    assert all(before.end <= after.start for before, after in itertools.pairwise(spans))


@settings(max_examples=100, deadline=None)
@given(PASSAGES, st.data())
def test_what_is_learned_is_allowed(passage: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(passage)), max_size=6)))
    spans = [Span(start, end, data.draw(st.sampled_from(TYPES))) for start, end in itertools.pairwise(cuts)]
    answer = written(passage, flat(passage, spans))
    if read(passage, answer) != flat(passage, spans):
        return
    guide = Guide(EntityList(TYPES, passage, VOCABULARY), VOCABULARY)
    state = guide.grammar.start
    for token in TOKENIZER.encode(answer, add_special_tokens=False):
        assert token in guide.allowed(state)
        state = guide.after(state, token)
    assert guide.closed(state)


def test_what_stands_only_in_a_token_with_its_blank_is_never_begun_with() -> None:
    vocabulary = Vocabulary.of(few_bytes())
    guide = Guide(EntityList(("x",), "éé é ab", vocabulary), vocabulary)
    state = guide.grammar.start
    for token in few_bytes().encode('[{"type": "x", "text": "', add_special_tokens=False):
        state = guide.after(state, token)
    assert {vocabulary.bytes_of[token] for token in guide.allowed(state).tolist()} <= {b"a", b"b", b"ab"}


@pytest.mark.parametrize("temperature", [0.0, 3.0])
@settings(max_examples=10, deadline=None)
@given(passage=PASSAGES, seed=st.integers(0, 99))
def test_a_random_model_gives_valid_answers_only(temperature: float, passage: str, seed: int) -> None:
    template = ChatTemplate(TOKENIZER)
    guide = Guide(EntityList(TYPES, passage, VOCABULARY), VOCABULARY)
    sampling = Sampling(max_tokens=60, temperature=temperature, seed=seed)
    anatomy = dissect(tiny_model("llama", seed=seed % 3))
    require_valid(passage, TYPES, reply(anatomy, template, [Message("user", passage)], sampling, guide=guide))


def test_the_likeliest_allowed_token_is_taken() -> None:
    template, passage = ChatTemplate(TOKENIZER), "The river is long, and the book is good."
    anatomy = dissect(tiny_model("gpt2"))
    guide = Guide(EntityList(("PER", "LOC"), passage, VOCABULARY), VOCABULARY)
    messages = [Message("user", passage)]
    said = reply(anatomy, template, messages, Sampling(max_tokens=40), guide=guide)
    tokens, state, left = template.prompt(messages), guide.grammar.start, 40
    start = len(tokens)
    while not guide.closed(state):
        logits = anatomy.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].detach()
        allowed = guide.allowed(state, left).tolist()
        tokens.append(max(allowed, key=lambda token: logits[token].item()))
        state, left = guide.after(state, tokens[-1]), left - 1
    assert said == VOCABULARY.text(tokens[start:]) and len(said) > 2


def test_where_positions_end_the_answer_is_closed_before() -> None:
    template, passage = ChatTemplate(TOKENIZER), "The river is long."
    messages = [Message("user", passage)]
    used = len(template.prompt(messages))
    guide = Guide(EntityList(("PER",), passage, VOCABULARY), VOCABULARY)
    needed = int(guide.grammar.cost(guide.grammar.start))
    for spare in range(0, 40, 5):
        anatomy = dissect(tiny_model("llama", max_position_embeddings=used + needed + spare))
        require_valid(passage, ("PER",), reply(anatomy, template, messages, Sampling(), guide=guide))
    anatomy = dissect(tiny_model("llama", max_position_embeddings=used + needed - 1))
    with pytest.raises(BaseModelError, match=f"the shortest valid one has {needed}"):
        reply(anatomy, template, messages, Sampling(), guide=guide)


def test_a_type_that_the_tokenizer_cannot_write() -> None:
    with pytest.raises(BaseModelError, match="give the type another name"):
        EntityList(("人",), "a", Vocabulary.of(few_bytes()))
