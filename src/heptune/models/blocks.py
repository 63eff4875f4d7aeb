"""Which keys each block of query rows meets in a forest, as numpy arrays. Imports no torch.

Attention cuts the rows of a forest into blocks (see `models/attention.py`); what attention costs is counted on the
same blocks.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# Query rows of one block. Smaller blocks skip more invisible keys, larger ones make fewer calls; 64 to 256 measured
# alike on two cores, 128 least.
BLOCK_ROWS = 128


def cuts(position: np.ndarray) -> Iterator[tuple[int, int]]:
    """Row ranges of about BLOCK_ROWS, cut where a new tree begins when one begins in the second half of a block."""
    rows = len(position)
    roots = np.flatnonzero(position == position.min())
    start = 0
    while start < rows:
        stop = min(start + BLOCK_ROWS, rows)
        inside = roots[(roots > start + BLOCK_ROWS // 2) & (roots <= stop)]
        if stop < rows and len(inside):
            stop = int(inside[-1])
        yield start, stop
        start = stop


def keys_of(
    end: np.ndarray,
    position: np.ndarray,
    start: int,
    stop: int,
    window: int | None,
    begin: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The rows whose keys at least one of the query rows [start, stop) sees: int64 [k], and who sees which, bool
    [stop - start, k]. Row k is seen by the rows from begin[k] (None: from k itself on) to end[k] - 1."""
    first = np.arange(len(end)) if begin is None else begin
    candidates = np.flatnonzero((first < stop) & (end > start))
    query = np.arange(start, stop)[:, None]
    visible = (first[candidates][None] <= query) & (query < end[candidates][None])
    if window is not None:
        distance = position[start:stop, None] - position[candidates][None]
        visible &= (distance if begin is None else np.abs(distance)) < window
        seen = visible.any(0)
        candidates, visible = candidates[seen], visible[:, seen]
    return candidates, visible
