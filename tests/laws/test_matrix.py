"""The published matrix is what happens when everything in it is tried."""

from __future__ import annotations

import json

import pytest

from heptune import techniques
from laws.matrix import FAMILIES, WRITTEN, cells


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("technique", techniques.names())
def test_the_matrix_is_what_was_written(technique: str, family: str) -> None:
    written = json.loads(WRITTEN.read_text("utf-8"))
    assert cells(technique, family) == written[technique][family], "run laws.matrix and look at what changed"
