"""Reading JSON that may be incomplete: a value of the wrong kind counts as missing, never as a crash.

A race that is still under way, and one that another version wrote, lack this or that; a report tells the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from heptune.core.errors import RunError
from heptune.reporting.findings import Estimate
from heptune.reporting.numbers import finite
from heptune.runs.files import read_json


def mapping(value: Any) -> dict[str, Any]:
    """The value where it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def objects(value: Any) -> list[dict[str, Any]]:
    """The JSON objects of a list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list | tuple) else []


def strings(value: Any) -> tuple[str, ...]:
    """The values of a list as text; one text alone counts as a list of one."""
    if isinstance(value, str):
        return (value,)
    return tuple(text(item) for item in value) if isinstance(value, list) else ()


def text(value: Any) -> str:
    """The value as text, '' where there is none."""
    return "" if value is None else str(value)


def whole(value: Any) -> int | None:
    """The value as a whole number."""
    number = finite(value)
    return None if number is None else round(number)


def estimate(value: Any) -> Estimate | None:
    """An interval, or a bare number as an estimate without one."""
    interval = mapping(value)
    number = finite(interval.get("value") if interval else value)
    if number is None:
        return None
    low, high = finite(interval.get("low")), finite(interval.get("high"))
    return Estimate(number) if low is None or high is None else Estimate(number, min(low, high), max(low, high))


def estimates(value: Any) -> dict[str, Estimate]:
    """Those metrics that have a value."""
    found = {name: estimate(item) for name, item in mapping(value).items()}
    return {name: item for name, item in found.items() if item is not None}


def counts(value: Any, size: int) -> tuple[tuple[int, ...], ...]:
    """A confusion matrix; empty where it is not `size` x `size`."""
    if not isinstance(value, list) or len(value) != size or not size:
        return ()
    lines = tuple(tuple(max(whole(n) or 0, 0) for n in line) if isinstance(line, list) else () for line in value)
    return lines if all(len(line) == size for line in lines) else ()


def optional_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where the file is missing, damaged or just being written."""
    try:
        return mapping(read_json(path))
    except (RunError, OSError):
        return {}


def inner(folder: Path, name: Any) -> Path | None:
    """The folder `name` inside `folder`; None where the name is missing or leads out of it."""
    if not isinstance(name, str) or not name:
        return None
    path = folder / name
    return path if path.resolve().is_relative_to(folder.resolve()) else None
