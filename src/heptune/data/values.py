"""Values of a row's columns: checked, and shown in messages. A `DataError` from here has no place yet."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from heptune.core.errors import DataError

Row = Mapping[str, Any]


def string(row: Row, name: str) -> str:
    """A column that must hold a string that is not blank."""
    value = row[name]
    if not isinstance(value, str):
        raise DataError(f"column {name!r} is {shown(value)}; it must be a string")
    if not value.strip():
        raise DataError(f"column {name!r} is empty; fill it or take the row out")
    return value


def optional_string(row: Row, name: str | None) -> str:
    """A column that may be absent, null or blank: then the empty string."""
    value = row.get(name) if name else None
    if not isinstance(value, str | None):
        raise DataError(f"column {name!r} is {shown(value)}; it must be a string")
    return value or ""


def label(row: Row, name: str) -> str:
    """Strings as they are; numbers and booleans as JSON writes them (1, 0.5, true)."""
    value = row[name]
    if (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    ):
        raise DataError(
            f"the label (column {name!r}) is {shown(value)}; every row needs one, take the row out otherwise"
        )
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    raise DataError(f"the label (column {name!r}) is {shown(value)}; it must be one string, number or boolean")


def listed(names: Iterable[str], limit: int = 20) -> str:
    """Names for a message, quoted, the first `limit` of them, long ones shortened."""
    every = list(names)
    more = f" and {len(every) - limit} more" if len(every) > limit else ""
    return (", ".join(shown(name) for name in every[:limit]) or "none") + more


def shown(value: Any) -> str:
    """A value for a message: short, on one line, never a nested structure."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:40] + "…")
    text = json.dumps(value)
    return f"the value {text if len(text) <= 40 else text[:40] + '…'}"
