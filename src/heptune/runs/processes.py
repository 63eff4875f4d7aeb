"""Whether a process that left its number somewhere still runs."""

from __future__ import annotations

import os
from pathlib import Path


def alive(process: int) -> bool:
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        # One that ended but was never waited for (the first process of a container often waits for nobody) is gone.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return True
