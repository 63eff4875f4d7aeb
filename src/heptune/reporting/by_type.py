"""How the entities of each type were found, as rows of a table."""

from __future__ import annotations

from heptune.reporting import numbers
from heptune.reporting.findings import Findings
from heptune.reporting.forest_plot import estimate_text


def by_type(found: Findings) -> tuple[list[str], list[list[str]]]:
    """The heads, and a row for each type."""
    names = list(dict.fromkeys(name for kind in found.kinds for name in kind.metrics))
    rows = [
        [
            kind.name,
            numbers.MISSING if kind.count is None else str(kind.count),
            *(estimate_text(kind.metrics.get(name)) for name in names),
        ]
        for kind in found.kinds
    ]
    return ["type", "entities", *names], rows
