"""Dividing records into training, validation and test parts, so that nothing leaks and the parts look alike.

Everything here is a pure function of (records, seed). Records that say the same always land in one part.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from heptune.core.errors import DataError, UsageError
from heptune.core.seeds import generator
from heptune.data.corpus import Documents
from heptune.data.record import Record

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Indices into the records, ascending; the three parts are disjoint."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]

    def to_json(self) -> dict[str, list[int]]:
        """The parts as JSON values."""
        return {part: list(indices) for part, indices in asdict(self).items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Split:
        """The split that `to_json` wrote. Raises DataError when a part is missing, damaged, or overlaps another."""
        parts = [value.get(part) for part in PARTS]
        if not all(isinstance(p, list) and all(type(i) is int and i >= 0 for i in p) and p == sorted(p) for p in parts):
            raise DataError(f"a split needs ascending record numbers under each of {', '.join(PARTS)}; make it anew")
        every = [i for part in parts if part is not None for i in part]
        if len(set(every)) < len(every):
            raise DataError("a split has the same record twice; make it anew")
        return cls(*(tuple(part) for part in parts if part is not None))


def content_key(record: Record) -> Hashable:
    """What a record says, without case and white space: equal for records that are duplicates. What is to be learned
    of it (label, entities, answers) is no part."""
    if record.messages:
        return tuple((message.role, _normalised(message.said)) for message in record.messages)
    if record.passage or record.options:
        return tuple(map(_normalised, (record.text or "", record.passage, *sorted(record.options))))
    return _normalised(record.text or "")


def _normalised(text: str) -> str:
    return " ".join(text.split()).casefold()


def split(records: Sequence[Record], *, seed: int, validation: float, test: float) -> Split:
    """Divide records into three parts; `validation` and `test` are shares of the records, 0 for no such part.

    Labelled text is stratified by label, duplicates stay together, and every label keeps at least one training record.
    Method: the groups of duplicates, shuffled within their label, are dealt out one after the other to the part that is
    most behind its share. A part's share of all records, and of each label, is thereby met within about one group.
    Raises UsageError for shares out of range, DataError when a wanted part would stay empty.
    """
    shares = {"train": 1 - validation - test, "validation": validation, "test": test}
    if not (0 <= validation < 1 and 0 <= test < 1 and shares["train"] > 1e-9):
        raise UsageError(
            f"validation {validation} and test {test} are no shares that leave something to train on; "
            "each must be at least 0, their sum below 1, e.g. 0.1 and 0.1"
        )
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        groups[content_key(record)].append(index)

    behind = dict.fromkeys(PARTS, 0.0)
    parts: dict[str, list[int]] = {part: [] for part in PARTS}
    learnt: set[str | None] = set()
    for group in _in_strata(records, list(groups.values()), seed):
        labels = {records[index].label for index in group}
        for part, share in shares.items():
            behind[part] += share * len(group)
        wanted = [part for part in PARTS if shares[part] > 0]
        part = max(wanted, key=behind.__getitem__) if labels <= learnt else "train"
        learnt |= labels if part == "train" else set()
        behind[part] -= len(group)
        parts[part] += group

    empty = [part for part in PARTS if shares[part] > 0 and not parts[part]]
    if empty:
        raise DataError(
            f"{len(records)} records ({len(groups)} different ones, {len(learnt)} labels that each keep a training "
            f"record) are too few for a {empty[0]} part of {shares[empty[0]]:.0%}; "
            f"add records, give a {empty[0]} file, or set the share to 0"
        )
    return Split(*(tuple(sorted(parts[part])) for part in PARTS))


def _in_strata(records: Sequence[Record], groups: list[list[int]], seed: int) -> list[list[int]]:
    """The groups shuffled, then gathered by the label of their first record, labels in order of appearance."""
    strata: dict[str | None, list[list[int]]] = {records[group[0]].label: [] for group in groups}
    for position in generator(seed, "split").permutation(len(groups)):
        strata[records[groups[position][0]].label].append(groups[position])
    return [group for stratum in strata.values() for group in stratum]


def sample(records: Sequence[Record], indices: Iterable[int], limit: int, seed: int) -> tuple[int, ...]:
    """At most `limit` of the indices, ascending: each label in proportion, and at least once if `limit` allows.

    Raises UsageError when `limit` is below 1.
    """
    if limit < 1:
        raise UsageError(f"a sample of {limit} records holds nothing; the limit must be at least 1")
    every = sorted(indices)
    if len(every) <= limit:
        return tuple(every)
    if isinstance(records, Documents):  # they have no labels, and are not read for that
        return tuple(every[i] for i in records.take(every).some(limit, seed, "sample"))
    sizes = Counter(records[index].label for index in every)
    seen: Counter[str | None] = Counter()
    order: list[tuple[bool, float, int]] = []
    for position in generator(seed, "sample").permutation(len(every)):
        label = records[every[position]].label
        # The rank within its label, as a share of that label: taking the lowest takes the same share of every label.
        order.append((seen[label] > 0, (seen[label] + 0.5) / sizes[label], every[position]))
        seen[label] += 1
    return tuple(sorted(index for _, _, index in sorted(order)[:limit]))
