"""How much memory is in use now."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch


def used_bytes(device: torch.device) -> int:
    """Allocated memory on a GPU; else this process's resident memory (where the system does not tell: its peak)."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
