"""How the entities of each type were found, as rows of a table."""

from __future__ import annotations

from heptune.reporting import numbers
from heptune.reporting.findings import Findings
from heptune.reporting.forest_plot import estimate_text


def by_type(found: Findings) -> tuple[list[str], list[list[str]]]:
    """The heads, and a row for each type."""
    names = list(dict.fromkeys(name for one in found.entity_types for name in one.metrics))
    rows = [
        [
            one.name,
            numbers.MISSING if one.count is None else str(one.count),
            *(estimate_text(one.metrics.get(name)) for name in names),
        ]
        for one in found.entity_types
    ]
    return ["type", "entities", *names], rows
