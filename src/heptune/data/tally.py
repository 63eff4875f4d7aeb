"""What is counted of the records of a file while they pass, in little memory however many they are.

A record leaves 12 bytes: an 8-byte hash of what it says, and one of 4 bytes of what is to be learned of it, which is
only compared among records that say the same. Its line is found from its place, lengths are counted by value. That two
different texts share a hash is as good as impossible: for 5 million of them the odds are one in a million.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from heptune.data.record import Record
from heptune.data.splits import content_key

LISTED = 10_000  # lines that a list of a report names
_PARTS = 16  # the records are sorted in so many parts, one after the other, which bounds the memory that sorting takes
_STRETCH = 1 << 18  # records that are looked up at a time


@dataclass(frozen=True)
class Lengths:
    """One encoded example: its tokens, how many are supervised, and how many the length limit cut off."""

    tokens: int
    supervised: int
    cut: int


@dataclass(frozen=True)
class LengthSummary:
    """Tokens per example (quantiles), and in all. `supervised` is a number of tokens."""

    examples: int
    minimum: int
    median: int
    p95: int
    maximum: int
    total: int
    supervised: int

    @property
    def supervised_share(self) -> float:
        """The share of all tokens that is learnt."""
        return self.supervised / self.total if self.total else 0.0


class LengthTally:
    """The lengths of all examples. The lines are those of records with an example that has nothing to learn, or that
    the limit shortens: the first ones, and how many there are."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.supervised = self.cut_tokens = self.longest = 0
        self.unsupervised_lines: list[int] = []
        self.cut_lines: list[int] = []
        self.unsupervised = self.cut = 0

    def add(self, line: int, examples: Sequence[Lengths]) -> None:
        """Takes in the examples of one record."""
        for example in examples:
            self.counts[example.tokens] += 1
            self.supervised += example.supervised
            self.cut_tokens += example.cut
            self.longest = max(self.longest, example.tokens + example.cut)
        if not examples or not all(example.supervised for example in examples):
            self.unsupervised += 1
            self.unsupervised_lines += [line] * (len(self.unsupervised_lines) < LISTED)
        if any(example.cut for example in examples):
            self.cut += 1
            self.cut_lines += [line] * (len(self.cut_lines) < LISTED)

    def summary(self) -> LengthSummary | None:
        """None where there is no example."""
        if not self.counts:
            return None
        tokens = np.array(sorted(self.counts))
        upto = np.cumsum([self.counts[int(length)] for length in tokens])
        examples = int(upto[-1])

        def at(place: int) -> int:
            return int(tokens[np.searchsorted(upto, place, side="right")])

        # Rounding down and up gives lengths that some example really has.
        return LengthSummary(
            examples=examples,
            minimum=int(tokens[0]),
            median=at(math.floor(0.5 * (examples - 1))),
            p95=at(math.ceil(0.95 * (examples - 1))),
            maximum=int(tokens[-1]),
            total=sum(length * count for length, count in self.counts.items()),
            supervised=self.supervised,
        )


@dataclass(frozen=True)
class Repetitions:
    """The records that say the same. `duplicates` counts those that repeat an earlier one, `conflicts` the texts of
    which different things are to be learned. The lists name lines, text by text in the order of their first lines, up
    to `LISTED` lines."""

    duplicates: int
    duplicate_lines: tuple[tuple[int, ...], ...]
    conflicts: int
    conflict_lines: tuple[tuple[int, ...], ...]


class Tally:
    """The records of one file: their number, labels, lines and hashes."""

    def __init__(self) -> None:
        self.labels: Counter[str] = Counter()
        self._keys, self._learnt = array("Q"), array("I")
        # Lines follow each other but for blank and bad ones: only where they jump the place and the line are kept.
        self._jumps, self._lines, self._next = array("q"), array("q"), -1

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, record: Record) -> None:
        """Takes in the next record."""
        if record.line != self._next:
            self._jumps.append(len(self._keys))
            self._lines.append(record.line)
        self._next = record.line + 1
        self._keys.append(key_of(record))
        self._learnt.append(_learnt(record))
        for label in labels_of(record):
            self.labels[label] += 1

    def line(self, place: int) -> int:
        """The line of the record at a place, counted from 0."""
        jump = bisect_right(self._jumps, place) - 1
        return self._lines[jump] + place - self._jumps[jump]

    def repetitions(self) -> Repetitions:
        """What says the same."""
        learnt = _array(self._learnt, np.uint32)
        same, differing = _Groups(), _Groups()
        for places in self._parts():
            if not len(places):
                continue
            starts, ends = _runs(self._hashes()[places])
            many, different = ends - starts > 1, learnt[places]
            same.add(places, starts[many], ends[many])
            mixed = np.minimum.reduceat(different, starts) != np.maximum.reduceat(different, starts)
            differing.add(places, starts[mixed], ends[mixed])
        lists = [tuple(tuple(map(self.line, places)) for places in groups.first()) for groups in (same, differing)]
        return Repetitions(same.records - same.count, lists[0], differing.count, lists[1])

    def also_in(self, other: Tally, shown: int) -> tuple[int, tuple[tuple[int, int], ...]]:
        """How many records also stand in another file, and `shown` pairs (line here, first line there)."""
        known, first = np.unique(other._hashes(), return_index=True)
        count = 0
        pairs: dict[int, list[tuple[int, int]]] = {}
        for start in range(0, len(self), _STRETCH) if len(known) else ():
            keys = self._hashes()[start : start + _STRETCH]
            at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
            found = np.flatnonzero(known[at] == keys)
            count += len(found)
            for place in found.tolist():
                key = int(keys[place])
                if len(pairs.get(key, ())) < shown and (key in pairs or len(pairs) < shown):
                    there = other.line(int(first[at[place]]))
                    pairs.setdefault(key, []).append((self.line(start + place), there))
        return count, tuple(pair for same in pairs.values() for pair in same)[:shown]

    def _hashes(self) -> np.ndarray:
        return _array(self._keys, np.uint64)

    def _parts(self) -> Iterator[np.ndarray]:
        """The places of the records, part by part; within a part ordered by hash, equal ones by place."""
        hashes = self._hashes()
        bits = hashes.view(np.uint8)[::8] & (_PARTS - 1)
        for part in range(_PARTS):
            places = np.flatnonzero(bits == part)
            yield places[np.argsort(hashes[places], kind="stable")]


class _Groups:
    """Groups of places, of which only as many are kept as are listed: those that begin first."""

    def __init__(self) -> None:
        self.count = self.records = 0
        self._kept: list[np.ndarray] = []

    def add(self, places: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
        """Takes in the groups `places[start:end]`."""
        self.count += len(starts)
        self.records += int((ends - starts).sum())
        order = np.argsort(places[starts])
        enough = np.searchsorted(np.cumsum((ends - starts)[order]), LISTED) + 1
        new = _within([places[starts[i] : ends[i]] for i in order[:enough].tolist()])
        self._kept = _within(sorted([*self._kept, *new], key=lambda group: int(group[0])))

    def first(self) -> list[list[int]]:
        """The groups that are kept, in order."""
        return [group.tolist() for group in self._kept]


def _within(groups: list[np.ndarray]) -> list[np.ndarray]:
    """As many of the groups as have `LISTED` places; the last one may be cut."""
    kept, left = [], LISTED
    for group in groups:
        if left < 2:
            break
        kept.append(group[:left].copy())
        left -= len(kept[-1])
    return kept


def _runs(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of each run of equal values; there must be one."""
    edges = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    bounds = np.concatenate(([0], edges, [len(ordered)]))
    return bounds[:-1], bounds[1:]


def _array(values: array[int], type: Any) -> np.ndarray:
    return np.frombuffer(values, type) if values else np.array([], type)


def key_of(record: Record) -> int:
    """A hash of what a record says: the same in every process."""
    return _hash(content_key(record), 8)


def labels_of(record: Record) -> tuple[str, ...]:
    """The labels of a record, each once: its one label, its several, or the types of its entities."""
    if record.label is not None:
        return (record.label,)
    return tuple(dict.fromkeys(record.labels or (span.type for span in record.spans or ())))


def _learnt(record: Record) -> int:
    """A hash of what is to be learned of a record beside a conversation's turns: equal where two records do not
    contradict."""
    return _hash((record.label, sorted(record.labels or ()), record.spans, sorted(set(record.answers))), 4)


def _hash(value: Any, size: int) -> int:
    return int.from_bytes(hashlib.blake2b(repr(value).encode("utf-8"), digest_size=size).digest(), "little")
