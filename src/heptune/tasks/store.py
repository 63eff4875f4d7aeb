"""A corpus as tokens on disk, so that training takes no more memory for a larger one.

    tokens.bin     the tokens of all documents, one after the other: 16 bits each, or 32 for a larger vocabulary
    bounds.npy     where each document begins and ends among them
    store.json     what they were made from

One pass writes it, whole or absent. Both files are mapped into memory; an example is made when it is asked for. What
stays in memory is 4 bytes for each example and 8 for each document, and the order of the examples. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from heptune.core.errors import DataError
from heptune.core.events import Listener, Note, Progress
from heptune.data.record import Record
from heptune.runs.files import new_folder, read_json, write_json
from heptune.tasks.complete import Complete, window
from heptune.tasks.example import Example
from heptune.tasks.template import ChatTemplate

_TOKENS, _BOUNDS, _FACTS = "tokens.bin", "bounds.npy", "store.json"
_TOLD = 200  # documents between two words on progress


class StoredExamples(Sequence[Example]):
    """The windows of all documents of a store, as `Complete.encode` cuts them, none longer than `max_length` tokens.

    `lengths` [n] are their tokens, `targets` is the number of supervised tokens of all.
    """

    def __init__(self, folder: Path, max_length: int) -> None:
        facts = read_json(folder / _FACTS)
        self.max_length = max_length
        self._tokens = np.memmap(folder / _TOKENS, dtype=facts["type"], mode="r")
        self._bounds = np.load(folder / _BOUNDS, mmap_mode="r")
        counts = np.diff(self._bounds)
        # A document of n tokens has ceil((n - 1) / (max_length - 1)) windows.
        each = -(-np.maximum(counts - 1, 0) // (max_length - 1))
        self._ends = np.cumsum(each)  # [documents]: the number of windows up to each one's end
        self.lengths = np.full(int(self._ends[-1]), max_length, dtype=np.int32)
        last = self._ends[each > 0] - 1
        self.lengths[last] = (counts - (each - 1) * (max_length - 1))[each > 0]
        self.targets = int(np.maximum(counts - 1, 0).sum())

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, at: int) -> Example: ...
    @overload
    def __getitem__(self, at: slice) -> list[Example]: ...
    def __getitem__(self, at: int | slice) -> Example | list[Example]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        at = range(len(self))[at]
        document = int(np.searchsorted(self._ends, at, "right"))
        before = int(self._ends[document - 1]) if document else 0
        start = int(self._bounds[document]) + (at - before) * (self.max_length - 1)
        return window(self._tokens[start : start + int(self.lengths[at])].tolist(), document)


def stored(
    folder: Path,
    made_from: dict[str, Any],
    task: Complete,
    records: Sequence[Record],
    template: ChatTemplate,
    max_length: int,
    listener: Listener,
) -> StoredExamples:
    """The examples of a corpus from the store in `folder`, which is written first where it is not there, or was made
    from something else than `made_from` (JSON values that tell corpus, parts and tokenizer apart).

    Raises DataError where no document has two tokens.
    """
    mark = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    if not (folder / _FACTS).is_file() or read_json(folder / _FACTS)["made_from"] != mark:
        _write(folder, mark, task, records, template, listener)
    examples = StoredExamples(folder, max_length)
    if not examples:
        raise DataError("no document of the corpus has two tokens: there is nothing to learn; give more text")
    return examples


def _write(
    folder: Path,
    mark: str,
    task: Complete,
    records: Sequence[Record],
    template: ChatTemplate,
    listener: Listener,
) -> None:
    kind = np.dtype(np.uint16 if len(template.tokenizer) <= 1 << 16 else np.uint32)
    bounds = np.zeros(len(records) + 1, dtype=np.int64)
    with new_folder(folder) as made:
        with (made / _TOKENS).open("wb") as file:
            for number, record in enumerate(records, 1):
                tokens = np.array(task.tokens(record, template), dtype=kind)
                tokens.tofile(file)
                bounds[number] = bounds[number - 1] + len(tokens)
                if number % _TOLD == 0 or number == len(records):
                    listener(Progress("tokenizing", number, len(records), "documents"))
        np.save(made / _BOUNDS, bounds)
        write_json(made / _FACTS, {"made_from": mark, "type": kind.name, "tokens": int(bounds[-1])})
    listener(Note(f"{len(records)} documents are {bounds[-1]} tokens; they stay on disk in {folder}"))


def lengths(examples: Sequence[Example]) -> Sequence[int] | np.ndarray:
    """The tokens of each example; stored ones are not read for it."""
    return examples.lengths if isinstance(examples, StoredExamples) else [len(example.tokens) for example in examples]


def targets(examples: Sequence[Example]) -> int:
    """The supervised tokens of all examples; stored ones are not read for it."""
    return examples.targets if isinstance(examples, StoredExamples) else sum(e.targets for e in examples)
