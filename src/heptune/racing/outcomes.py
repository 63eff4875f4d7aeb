"""What a model answered on the test part, example by example."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from heptune.data.record import Record
from heptune.data.splits import sample
from heptune.runs.files import read_json
from heptune.tuning import problem as problems


def tested_on(manifest: dict[str, Any], limit: int | None, seed: int) -> Sequence[Record]:
    """The records that the verdict is spoken on: the test part, at most `limit` of them, the same for everyone."""
    _, records = problems.again(manifest).parts.held_out()
    if limit is None or limit >= len(records):
        return records
    return [records[i] for i in sample(records, range(len(records)), limit, seed)]


def kept_outcomes(folder: Path) -> dict[str, Any]:
    """What `work.answers` wrote."""
    values: dict[str, Any] = read_json(folder / "test.json")
    return values
