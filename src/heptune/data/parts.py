"""The parts of a data set: what is learned from, what judges it on the way, what judges it at the end.

A part is a file of its own, or a share of the training file. The manifest keeps where each part came from and which
records it holds, so that the same parts can be put together again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from heptune.core.errors import RunError
from heptune.core.events import Listener, Note, ignore
from heptune.data.corpus import CorpusSplit, Documents, cut, keys_of, opened
from heptune.data.readers import Dataset, locate
from heptune.data.record import Record
from heptune.data.splits import Split, content_key, sample, split

# Shares of the training file that become validation and test where no file is named for them.
VALIDATION_SHARE = 0.1
TEST_SHARE = 0.1

_NAMES = ("train", "validation", "test")


@dataclass(frozen=True)
class DataOptions:
    """How a data set is read and cut into parts.

    `validation` and `test` are files, or shares of the training file (0: none). `limit` is the most training examples.
    `columns` names columns by hand (role -> the file's column).
    """

    validation: str | Path | float | None = None
    test: str | Path | float | None = None
    limit: int | None = None
    columns: Mapping[str, str] | None = None
    skip_bad: bool = False


@dataclass(frozen=True)
class DataFiles:
    """The files of a data set, read. `validation` and `test` are None where there is no file for them."""

    train: Dataset
    validation: Dataset | None
    test: Dataset | None

    def cut(self, options: DataOptions, seed: int) -> DataParts:
        """The parts: shares are taken from the training file, stratified and without leaks, then `limit` applies."""
        reading = {"columns": dict(options.columns or {}), "skip_bad": options.skip_bad}
        if isinstance(self.train.records, Documents):
            asked = {name: _asked(getattr(options, name), getattr(self, name)) for name in _NAMES[1:]}
            return self._cut_corpus(self.train.records, asked, options.limit, seed, reading)
        shares = {
            "validation": _share(options.validation, VALIDATION_SHARE) if self.validation is None else 0.0,
            "test": _share(options.test, TEST_SHARE) if self.test is None else 0.0,
        }
        chosen = split(self.train.records, seed=seed, **shares)
        if options.limit is not None:
            kept = sample(self.train.records, chosen.train, options.limit, seed)
            chosen = Split(kept, chosen.validation, chosen.test)
        return self.assemble(chosen, reading)

    def again(self, chosen: Mapping[str, Any], reading: dict[str, Any]) -> DataParts:
        """The parts that a manifest's split describes."""
        if not isinstance(self.train.records, Documents):
            return self.assemble(Split.from_json(chosen), reading)
        was = CorpusSplit.from_json(chosen)
        return self._cut_corpus(self.train.records, was.shares, was.limit, was.seed, reading)

    def assemble(self, chosen: Split, reading: dict[str, Any]) -> DataParts:
        """The parts that `chosen` describes. `reading` is how the files were read, for the manifest."""

        def records(part: Dataset | None, indices: Sequence[int]) -> list[Record]:
            return [self.train.records[i] for i in indices] if part is None else list(part.records)

        return DataParts(
            train=records(None, chosen.train),
            validation=records(self.validation, chosen.validation),
            test=records(self.test, chosen.test),
            source={**self._origins(), **reading},
            split=chosen,
        )

    def _cut_corpus(
        self,
        documents: Documents,
        shares: Mapping[str, float | None],
        limit: int | None,
        seed: int,
        reading: dict[str, Any],
    ) -> DataParts:
        chosen, parts = cut(documents, shares, limit, seed)
        others = {name: parts[name] if (own := getattr(self, name)) is None else own.records for name in _NAMES[1:]}
        return DataParts(parts["train"], others["validation"], others["test"], {**self._origins(), **reading}, chosen)

    def _origins(self) -> dict[str, Any]:
        return {name: _origin(getattr(self, name)) for name in _NAMES}


@dataclass(frozen=True)
class DataParts:
    """The records of each part; `source` and `split` are what the manifest keeps about them."""

    train: Sequence[Record]
    validation: Sequence[Record]
    test: Sequence[Record]
    source: dict[str, Any]
    split: Split | CorpusSplit

    def place(self, index: int) -> str:
        """Where a training record stands."""
        if isinstance(self.train, Documents):
            return self.train.place(index)
        return f"{self.source['train']['path']}:{self.train[index].line}"

    def path(self, part: str) -> str | None:
        """The file of a part; None where it is a share of the training file."""
        return None if self.source[part] is None else self.source[part]["path"]

    def leaked(self) -> dict[str, int]:
        """For validation and test: how many of their records also stand in the training part."""
        parts = {"validation": self.validation, "test": self.test}
        if isinstance(self.train, Documents):
            return {n: int(np.isin(keys_of(part), self.train.keys).sum()) for n, part in parts.items()}
        known = {content_key(record) for record in self.train}
        return {name: sum(content_key(record) in known for record in part) for name, part in parts.items()}

    def held_out(self) -> tuple[str, Sequence[Record]]:
        """What a finished run is judged on, in words and as records: the test part, else the validation part."""
        if self.test:
            return "the test part", self.test
        return "the validation part (there is no test part)", self.validation


def read_files(data: str | Path, options: DataOptions, listener: Listener, *, into_memory: bool = True) -> DataFiles:
    """Reads the files of a data set; what `skip_bad` left out is told. Raises DataError as `readers.read` does.

    Not `into_memory`, the records of JSON lines stay in their files (`readers.scan`).
    """
    by_hand = (value if isinstance(value, str | Path) else None for value in (options.validation, options.test))
    found = locate(data, *by_hand)

    def loaded(path: Path) -> Dataset:
        reading: dict[str, Any] = {"columns": options.columns, "skip_bad": options.skip_bad}
        dataset = opened(path, **reading, listener=listener, into_memory=into_memory)
        if dataset.skipped:
            count, first = dataset.all_skipped, dataset.skipped[0]
            listener(Note(f"{dataset.path}: {count} bad lines left out, the first: {first}", "warning"))
        return dataset

    others = (None if path is None else loaded(path) for path in (found.validation, found.test))
    return DataFiles(loaded(found.train), *others)


def read_again(source: dict[str, Any], chosen: dict[str, Any], listener: Listener = ignore) -> DataParts:
    """A run's parts from what its manifest keeps; `RunError` when a file is gone or has changed."""
    reading = {"columns": source["columns"], "skip_bad": source["skip_bad"]}
    datasets: list[Dataset | None] = []
    for name in _NAMES:
        origin = source[name]
        if origin is None:
            datasets.append(None)
            continue
        if not Path(origin["path"]).exists():
            raise RunError(f"the run's data {origin['path']} is gone; put it back to go on with this run")
        dataset = opened(origin["path"], **reading, listener=listener)
        if dataset.sha256 != origin["sha256"]:
            raise RunError(f"{origin['path']} has changed since the run began; put the old file back, or tune anew")
        datasets.append(dataset)
    train, validation, test = datasets
    assert train is not None
    return DataFiles(train, validation, test).again(chosen, reading)


def _asked(value: str | Path | float | None, own: Dataset | None) -> float | None:
    """The share of a corpus that becomes a part: none where it has a file of its own, None where nobody said."""
    return 0.0 if own is not None else float(value) if isinstance(value, int | float) else None


def _share(value: str | Path | float | None, default: float) -> float:
    return float(value) if isinstance(value, int | float) else default


def _origin(dataset: Dataset | None) -> dict[str, Any] | None:
    if dataset is None:
        return None
    return {
        "path": str(dataset.path.resolve()),
        "sha256": dataset.sha256,
        "format": dataset.format,
        "records": len(dataset.records),
    }
