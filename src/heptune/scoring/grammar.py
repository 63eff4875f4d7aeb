"""Constrained decoding: at every token the model chooses among those alone that keep its answer valid.

A grammar is an automaton over bytes; it knows which bytes may follow and when the answer is closed. It is walked along
the tokenizer's vocabulary, whose tokens are bytes too, sorted so that those with a common beginning stand together. So
every way to cut an answer into tokens is open to the model, and none that leads to an invalid answer (Willard and Louf
2023 do the same for regular languages). What a state allows is computed when it is first reached, and kept.

An answer also ends: `cost` is a number of tokens in which a state can be closed for sure. A token is allowed only where
what follows it can still be closed within the tokens that are left.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol
from weakref import WeakKeyDictionary

import numpy as np

from heptune.core.errors import BaseModelError
from heptune.tasks.extract import locate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_QUOTE = ord('"')
_PROBE = '[{"type": "A", "text": "a b, c"}]'


class Grammar(Protocol):
    """What an answer may look like. States are hashable; what they are is the grammar's own business."""

    @property
    def start(self) -> Any:
        """The state before the first byte."""

    def following(self, state: Any) -> Iterable[int]:
        """The bytes that may come next; none where the answer is closed."""

    def step(self, state: Any, byte: int) -> Any:
        """The state after a byte that may come next."""

    def cost(self, state: Any) -> float:
        """Tokens that are enough to close the answer from here; one of the ways to do so costs one less after each
        token. 0 where it is closed, infinity where it cannot be."""


# ---- the vocabulary


class Vocabulary:
    """A tokenizer's tokens as the bytes that they stand for. Added tokens, special ones among them, are left out.

    Raises BaseModelError for a tokenizer whose tokens are neither bytes nor SentencePiece's pieces.
    """

    _known: ClassVar[WeakKeyDictionary[Any, Vocabulary]] = WeakKeyDictionary()

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        read = _reader(tokenizer)
        added = set(tokenizer.added_tokens_decoder)
        found: dict[bytes, list[int]] = {}
        for piece, number in tokenizer.get_vocab().items():
            if number not in added:
                found.setdefault(read(piece), []).append(number)
        found.pop(b"", None)
        self.tokens = sorted(found)
        self.ids = [tuple(found[token]) for token in self.tokens]
        self.bytes_of = {number: token for token, numbers in found.items() for number in numbers}
        self._longest = max(map(len, self.tokens), default=0)
        self._spelled: dict[bytes, tuple[float, ...]] = {}
        probe = tokenizer.encode(_PROBE, add_special_tokens=False)
        if self.text(probe).removeprefix(" ") != _PROBE:
            raise BaseModelError("this base's tokenizer does not give back what it was given, so it cannot be guided")

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
        """The vocabulary of a tokenizer, made once."""
        if tokenizer not in cls._known:
            cls._known[tokenizer] = cls(tokenizer)
        return cls._known[tokenizer]

    def text(self, tokens: Iterable[int]) -> str:
        """What tokens say; those that were left out say nothing."""
        return b"".join(self.bytes_of.get(token, b"") for token in tokens).decode("utf-8", errors="replace")

    def narrowed(self, low: int, high: int, beginning: bytes) -> tuple[int, int]:
        """The places in `tokens`, of those in [low, high), of tokens with this beginning, whose last byte is new."""
        low = bisect_left(self.tokens, beginning, low, high)
        if beginning[-1] == 255:
            return low, high
        return low, bisect_left(self.tokens, beginning[:-1] + bytes([beginning[-1] + 1]), low, high)

    def spelled(self, text: bytes) -> tuple[float, ...]:
        """For each place in `text`, its end included: the fewest tokens that are exactly what stands from there on."""
        if text not in self._spelled:
            fewest = [0.0] * (len(text) + 1)
            for start in range(len(text) - 1, -1, -1):
                ends = range(start + 1, min(len(text), start + self._longest) + 1)
                fewest[start] = min((1 + fewest[end] for end in ends if self._has(text[start:end])), default=math.inf)
            self._spelled[text] = tuple(fewest)
        return self._spelled[text]

    def _has(self, token: bytes) -> bool:
        place = bisect_left(self.tokens, token)
        return place < len(self.tokens) and self.tokens[place] == token


def _reader(tokenizer: PreTrainedTokenizerBase) -> Any:
    """What turns a piece of the vocabulary into bytes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.loads(backend.to_str())["decoder"] if backend is not None else None
    parts = (decoder or {}).get("decoders", [decoder or {}])
    kinds = {part.get("type") for part in parts}
    if "ByteLevel" in kinds:
        alphabet = {ord(character): byte for character, byte in _byte_alphabet().items()}
        return lambda piece: piece.translate(alphabet).encode("latin-1", errors="ignore")
    if "Metaspace" in kinds or any(part.get("pattern") == {"String": "▁"} for part in parts):
        fallback = re.compile("<0x([0-9A-F]{2})>")

        def read(piece: str) -> bytes:
            byte = fallback.fullmatch(piece) if "ByteFallback" in kinds else None
            return bytes.fromhex(byte[1]) if byte else piece.replace("▁", " ").encode()

        return read
    found = ", ".join(sorted(str(kind) for kind in kinds if kind)) or "no decoder"
    raise BaseModelError(
        f"this base's tokenizer has {found}, but guided answers need byte-level tokens or SentencePiece's; "
        "use another base"
    )


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for the 256 bytes: printable ones stand for themselves, the others for what comes from 256."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


# ---- a grammar along a vocabulary


@dataclass(frozen=True)
class _Choices:
    """What a state allows: token ids, the cost of the state after each, and that state."""

    ids: np.ndarray
    costs: np.ndarray
    after: dict[int, Any]


class Guide:
    """A grammar along a vocabulary: which tokens may come next.

    Raises BaseModelError where the vocabulary cannot write any answer.
    """

    def __init__(self, grammar: Grammar, vocabulary: Vocabulary) -> None:
        self.grammar, self.vocabulary = grammar, vocabulary
        self._choices: dict[Any, _Choices] = {}

    def closed(self, state: Any) -> bool:
        """Whether the answer is complete: nothing may follow."""
        return self.grammar.cost(state) == 0

    def allowed(self, state: Any, left: float = math.inf) -> np.ndarray:
        """The ids of the tokens that may come next when `left` tokens are left, this one included. Not empty where the
        state is not closed and its cost is no more than `left`."""
        found = self._of(state)
        return found.ids[found.costs <= left - 1]

    def after(self, state: Any, token: int) -> Any:
        """The state after an allowed token."""
        return self._of(state).after[token]

    def _of(self, state: Any) -> _Choices:
        if state not in self._choices:
            self._choices[state] = self._walk(state)
        return self._choices[state]

    def _walk(self, state: Any) -> _Choices:
        grammar, vocabulary = self.grammar, self.vocabulary
        ids: list[int] = []
        costs: list[float] = []
        after: dict[int, Any] = {}
        waiting = [(0, len(vocabulary.tokens), b"", state)]
        while waiting:
            low, high, beginning, reached = waiting.pop()
            for byte in grammar.following(reached):
                longer = beginning + bytes([byte])
                first, behind = vocabulary.narrowed(low, high, longer)
                if first == behind:
                    continue
                next_state = grammar.step(reached, byte)
                if vocabulary.tokens[first] == longer:
                    cost = grammar.cost(next_state)
                    if cost < math.inf:
                        ids += vocabulary.ids[first]
                        costs += [cost] * len(vocabulary.ids[first])
                        after |= dict.fromkeys(vocabulary.ids[first], next_state)
                    first += 1
                if first < behind:
                    waiting.append((first, behind, longer, next_state))
        return _Choices(np.array(ids, dtype=np.int64), np.array(costs), after)


# ---- the entities of a text


@dataclass(frozen=True)
class _Listing:
    """Inside what stands between two texts. `alive` are the numbers of the continuations that fit the `at` bytes so
    far; the next entity begins at the character `behind` or later."""

    first: bool
    alive: tuple[int, ...]
    at: int
    behind: int


@dataclass(frozen=True)
class _Quoting:
    """Inside an entity's text. `places` are the bytes of the passage that may come next: one for each place where what
    was said of the text so far stands. Empty before the first byte."""

    behind: int
    said: int
    places: tuple[int, ...]


@dataclass(frozen=True)
class _Closed:
    pass


_CLOSED = _Closed()


class EntityList:
    """The answers that the task extract knows about one text: a JSON list in the layout of `tasks.extract.written`,
    with known types, and with texts that stand in the passage one behind the other, found as `tasks.extract.read` does.

    Since each entity stands behind the one before it, no list is longer than the passage. Raises BaseModelError for
    what the vocabulary cannot write.
    """

    def __init__(self, types: Sequence[str], passage: str, vocabulary: Vocabulary) -> None:
        self.passage = passage.rstrip()
        units = [_escaped(character) for character in self.passage]
        self._bytes = b"".join(units)
        # What may stand before the first text and before later ones: first what closes the list, then each type.
        heads = [b'{"type": "' + _escaped(kind) + b'", "text": "' for kind in types]
        self._continuations = {
            True: [b"[]", *(b"[" + head for head in heads)],
            False: [b"}]", *(b"}, " + head for head in heads)],
        }
        self._heads = {first: [vocabulary.spelled(c) for c in texts] for first, texts in self._continuations.items()}
        self._tail = vocabulary.spelled(b'"')[0] + vocabulary.spelled(b"}]")[0]
        for text, fewest in zip(self._continuations[True], self._heads[True], strict=True):
            if fewest[0] + self._tail == math.inf:
                raise BaseModelError(
                    f"this base's tokenizer has no tokens for {text.decode()!r}; give the type another name"
                )
        self._prepare(units, vocabulary)
        self.start = self._listing(True, 0)

    def _prepare(self, units: list[bytes], vocabulary: Vocabulary) -> None:
        """For each byte where an entity may begin or end, and each one's tokens to a place where it may end."""
        size, count = len(self._bytes), len(units)
        self._character: list[int | None] = [None] * (size + 1)  # the number of the character that begins at a byte
        self._rest = [math.inf] * (size + 1)  # tokens from a byte inside an entity to where it may end
        self._begin = [math.inf] * (count + 1)  # tokens of the cheapest one-character text at a character or later
        self._starts: dict[int, list[int]] = {}  # the bytes where an entity may begin, by what stands there
        self._character[size] = count
        at, onward = size, math.inf  # onward: from a blank's end to where an entity may end
        ends = [0.0 if not character.isspace() else math.inf for character in self.passage]
        for number in range(count - 1, -1, -1):
            fewest = vocabulary.spelled(units[number])
            beyond = min(ends[number], onward)
            at -= len(units[number])
            for offset in range(1, len(units[number])):
                self._rest[at + offset] = fewest[offset] + beyond
            self._character[at] = number
            onward = fewest[0] + beyond
            self._rest[at] = 0.0 if number and ends[number - 1] == 0 else onward
            self._begin[number] = min(self._begin[number + 1], fewest[0] if ends[number] == 0 else math.inf)
            if ends[number] == 0:
                self._starts.setdefault(self._bytes[at], []).append(at)
        self._rest[size] = 0.0
        for places in self._starts.values():
            places.reverse()
        self._byte_of = [byte for byte, number in enumerate(self._character) if number is not None]

    def _listing(self, first: bool, behind: int) -> _Listing:
        more = self._begin[min(behind, len(self.passage))] < math.inf
        count = len(self._continuations[first]) if more else 1
        return _Listing(first, tuple(range(count)), 0, behind)

    def following(self, state: Any) -> Iterable[int]:
        """The bytes that may come next; none where the list is closed."""
        if isinstance(state, _Listing):
            return {self._continuations[state.first][n][state.at] for n in state.alive}
        if not isinstance(state, _Quoting):
            return ()
        if not state.said:
            first = self._byte_of[state.behind]
            return [byte for byte, places in self._starts.items() if places[-1] >= first]
        found = {self._bytes[place] for place in state.places if place < len(self._bytes)}
        return found | {_QUOTE} if self._may_end(state) else found

    def step(self, state: Any, byte: int) -> Any:
        """The state after a byte that may come next."""
        if isinstance(state, _Listing):
            return self._listed(state, byte)
        if not state.said:
            starts = self._starts[byte]
            places = starts[bisect_left(starts, self._byte_of[state.behind]) :]
            return _Quoting(state.behind, 1, tuple(place + 1 for place in places))
        if byte == _QUOTE and self._may_end(state):
            return self._listing(False, self._end(state))
        size = len(self._bytes)
        places = [place + 1 for place in state.places if place < size and self._bytes[place] == byte]
        return _Quoting(state.behind, state.said + 1, tuple(places))

    def cost(self, state: Any) -> float:
        """Tokens that are enough to close the list: with the shortest type and text where one has been begun."""
        if isinstance(state, _Listing):
            fewest = self._heads[state.first]
            entity = self._begin[min(state.behind, len(self.passage))] + self._tail
            return min(fewest[n][state.at] + (entity if n else 0) for n in state.alive)
        if not isinstance(state, _Quoting):
            return 0
        if not state.said:
            return self._begin[state.behind] + self._tail
        return min(self._rest[place] for place in state.places) + self._tail

    def _listed(self, state: _Listing, byte: int) -> Any:
        texts, at = self._continuations[state.first], state.at + 1
        alive = tuple(n for n in state.alive if texts[n][state.at] == byte)
        if len(alive) > 1 or at < len(texts[alive[0]]):
            return _Listing(state.first, alive, at, state.behind)
        return _Quoting(state.behind, 0, ()) if alive[0] else _CLOSED

    def _may_end(self, state: _Quoting) -> bool:
        """Whether what was said ends with a whole character that is no blank: at all places or at none."""
        number = self._character[state.places[0]]
        return number is not None and not self.passage[number - 1].isspace()

    def _end(self, state: _Quoting) -> int:
        """The character behind the entity that was said, where `tasks.extract.read` finds it."""
        start, end = self._character[state.places[0] - state.said], self._character[state.places[0]]
        text = self.passage[start:end]
        return locate(self.passage, text, state.behind) + len(text)


def _escaped(text: str) -> bytes:
    """A text as it stands between the quotes of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1].encode()
