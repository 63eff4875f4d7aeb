"""Numbers with units, read from and written for people."""

from __future__ import annotations

import re

from heptune.core.errors import UsageError


def format_bytes(count: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def parse_seconds(text: str) -> float:
    """'90s' -> 90, '10m' -> 600, '1.5h' -> 5400; a bare number is minutes."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h|)\s*", text)
    if found is None or float(found[1]) <= 0:
        raise UsageError(f"{text!r} is no time; write e.g. 90s, 10m or 2h")
    return float(found[1]) * {"s": 1, "m": 60, "min": 60, "": 60, "h": 3600}[found[2]]


def format_count(count: float) -> str:
    """4884480 -> '4.88M'."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= limit:
            return f"{count / limit:.3g}{unit}"
    return f"{count:.0f}"


def format_seconds(time_s: float) -> str:
    """3725 -> '1 h 02 min'; 65.2 -> '1 min 05 s'; 4.26 -> '4.3 s'."""
    if time_s < 10:
        return f"{time_s:.1f} s"
    seconds = round(time_s)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


_BYTES = {"": 1, "b": 1}
_BYTES |= {f"{letter}{end}": 1000**power for power, letter in enumerate("kmgt", 1) for end in ("", "b")}
_BYTES |= {f"{letter}i{end}": 1024**power for power, letter in enumerate("kmgt", 1) for end in ("", "b")}


def parse_bytes(text: str) -> int:
    """'24GB' -> 24 * 10**9; '24GiB' -> 24 * 2**30; '512 MiB', '1.5tb', '1000' (bytes). Raises `UsageError`."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", text.lower())
    if found is None or found[2] not in _BYTES:
        raise UsageError(
            f"{text!r} is no amount of memory; write a number with a unit: 24GB (24 * 10^9 bytes) or 24GiB (24 * 2^30)"
        )
    return round(float(found[1]) * _BYTES[found[2]])
