"""How much memory this process may use: the machine's, less where the system confines it. Imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

# Version 1 writes about 2^63 where nothing is limited.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True)
class Memory:
    """Bytes. `total`: what the process could have with nothing else running. `available`: what it could have now."""

    total: int
    available: int


def memory(root: Path = Path("/")) -> Memory:
    """The machine's memory within the limits of control groups (containers, batch systems). `root` is for tests."""
    total, available = _of_machine(root)
    for limit, used in _groups(root):
        total, available = min(total, limit), min(available, max(0, limit - used))
    return Memory(total, min(available, total))


def _of_machine(root: Path) -> tuple[int, int]:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        table = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
        return table["MemTotal"], table.get("MemAvailable", table["MemTotal"])
    except (OSError, KeyError, ValueError, IndexError):
        total = _physical()
        return total, total


def _physical() -> int:
    """Where /proc does not tell: all physical memory."""
    if os.name == "nt":
        import ctypes

        class Status(ctypes.Structure):
            """Windows' MEMORYSTATUSEX."""

            _fields_ = (
                ("length", ctypes.c_ulong),
                ("load", ctypes.c_ulong),
                *((name, ctypes.c_ulonglong) for name in ("total", "free", "pages", "left", "all", "rest", "more")),
            )

        status = Status(length=ctypes.sizeof(Status))
        ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined]
        return int(status.total)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _groups(root: Path) -> list[tuple[int, int]]:
    """(limit, used) of the control groups that this process is in, and of those around them. Version 1 has a folder for
    each controller, version 2 one for all."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            top, names = root / "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        # Inside a container the path may be the host's; then only the top is there, and it is the container's own.
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts) + 1):
            limit, used = (_number(top.joinpath(*parts[:depth]) / name) for name in names)
            if limit is not None and limit < _NO_LIMIT:
                found.append((limit, used or 0))
    return found


def _number(path: Path) -> int | None:
    """None where there is no such file, or it says 'max'."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
