"""The parts of a data set: what is learned from, what judges it on the way, what judges it at the end.

A part is a file of its own, or a share of the training file. The manifest keeps where each part came from and which
records it holds, so that the same parts can be put together again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heptune.core.errors import RunError
from heptune.core.events import Listener, Note
from heptune.data.readers import Dataset, locate, read, scan
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
        shares = {
            "validation": _share(options.validation, VALIDATION_SHARE) if self.validation is None else 0.0,
            "test": _share(options.test, TEST_SHARE) if self.test is None else 0.0,
        }
        chosen = split(self.train.records, seed=seed, **shares)
        if options.limit is not None:
            kept = sample(self.train.records, chosen.train, options.limit, seed)
            chosen = Split(kept, chosen.validation, chosen.test)
        return self.assemble(chosen, {"columns": dict(options.columns or {}), "skip_bad": options.skip_bad})

    def assemble(self, chosen: Split, reading: dict[str, Any]) -> DataParts:
        """The parts that `chosen` describes. `reading` is how the files were read, for the manifest."""

        def records(part: Dataset | None, indices: Sequence[int]) -> list[Record]:
            return [self.train.records[i] for i in indices] if part is None else list(part.records)

        origins = {name: _origin(getattr(self, name)) for name in _NAMES}
        return DataParts(
            train=records(None, chosen.train),
            validation=records(self.validation, chosen.validation),
            test=records(self.test, chosen.test),
            source={**origins, **reading},
            split=chosen,
        )


@dataclass(frozen=True)
class DataParts:
    """The records of each part; `source` and `split` are what the manifest keeps about them."""

    train: list[Record]
    validation: list[Record]
    test: list[Record]
    source: dict[str, Any]
    split: Split

    def place(self, index: int) -> str:
        """Where a training record stands."""
        return f"{self.source['train']['path']}:{self.train[index].line}"

    def path(self, part: str) -> str | None:
        """The file of a part; None where it is a share of the training file."""
        return None if self.source[part] is None else self.source[part]["path"]

    def leaked(self) -> dict[str, int]:
        """For validation and test: how many of their records also stand in the training part."""
        known = {content_key(record) for record in self.train}
        parts = {"validation": self.validation, "test": self.test}
        return {name: sum(content_key(record) in known for record in part) for name, part in parts.items()}

    def held_out(self) -> tuple[str, list[Record]]:
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

    def opened(path: Path) -> Dataset:
        opener = read if into_memory else scan
        dataset = opener(path, columns=options.columns, skip_bad=options.skip_bad, listener=listener)
        if dataset.skipped:
            count, first = dataset.all_skipped, dataset.skipped[0]
            listener(Note(f"{dataset.path}: {count} bad lines left out, the first: {first}", "warning"))
        return dataset

    others = (None if path is None else opened(path) for path in (found.validation, found.test))
    return DataFiles(opened(found.train), *others)


def read_again(source: dict[str, Any], chosen: dict[str, Any]) -> DataParts:
    """A run's parts from what its manifest keeps; `RunError` when a file is gone or has changed."""
    reading = {"columns": source["columns"], "skip_bad": source["skip_bad"]}
    datasets: list[Dataset | None] = []
    for name in _NAMES:
        origin = source[name]
        if origin is None:
            datasets.append(None)
            continue
        if not Path(origin["path"]).is_file():
            raise RunError(f"the run's data {origin['path']} is gone; put it back to go on with this run")
        dataset = read(origin["path"], **reading)
        if dataset.sha256 != origin["sha256"]:
            raise RunError(f"{origin['path']} has changed since the run began; put the old file back, or tune anew")
        datasets.append(dataset)
    train, validation, test = datasets
    assert train is not None
    return DataFiles(train, validation, test).assemble(Split.from_json(chosen), reading)


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
