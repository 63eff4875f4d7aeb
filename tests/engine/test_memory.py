"""What is given back to the system."""

from __future__ import annotations

import gc
import sys

import pytest
import torch

from heptune.engine.memory import give_back, used_bytes

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_what_a_cycle_holds_is_given_back() -> None:
    """As a base that a candidate of a race has left behind in its process."""
    gc.disable()
    try:
        give_back()
        before = used_bytes(CPU)
        holder: list[object] = [torch.ones(2**14) for _ in range(2**11)]  # pieces of 64 KiB: the allocator's own
        holder.append(holder)
        assert used_bytes(CPU) - before > 100 * 2**20
        del holder
        assert used_bytes(CPU) - before > 100 * 2**20
        give_back()
        assert used_bytes(CPU) - before < 30 * 2**20
    finally:
        gc.enable()
