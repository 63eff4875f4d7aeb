"""How the report writes numbers. What is missing or not finite is a dash."""

from __future__ import annotations

import math
from collections.abc import Iterable

from heptune.core.units import format_bytes, format_seconds

MISSING = "–"
MINUS = "\N{MINUS SIGN}"

BYTE_UNITS = ((1, "B"), (2**10, "KiB"), (2**20, "MiB"), (2**30, "GiB"), (2**40, "TiB"))
TIME_UNITS = ((1e-3, "ms"), (1.0, "s"), (60.0, "min"), (3600.0, "h"))


def finite(value: object) -> float | None:
    """The value as a number; None where it is none, or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def score(value: float | None) -> str:
    """0.9134 -> '0.913'; beyond 1000 four digits are enough."""
    if value is None:
        return MISSING
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.4g}"


def signed(value: float | None) -> str:
    """0.021 -> '+0.021'."""
    return MISSING if value is None else f"{value:+.3f}".replace("-", MINUS)


def percent(share: float | None) -> str:
    """0.083 -> '+8 %'."""
    if share is None:
        return MISSING
    written = "0%" if abs(share) < 0.005 else f"{share:+.0%}"
    return written.replace("-", MINUS).replace("%", "\N{NARROW NO-BREAK SPACE}%")


def p_value(value: float | None) -> str:
    """0.0312 -> '0.031'."""
    if value is None:
        return MISSING
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}" if value < 0.01 else f"{value:.3f}"


def memory(count: float | None) -> str:
    """As `format_bytes`."""
    return MISSING if count is None else format_bytes(count)


def duration(time_s: float | None) -> str:
    """As `format_seconds`; below a second in milliseconds."""
    if time_s is None:
        return MISSING
    if time_s == 0:
        return "0 s"
    return f"{time_s * 1000:.3g} ms" if 0 < time_s < 1 else format_seconds(time_s)


def plain(value: float) -> str:
    """A label of an axis: no more digits than it has."""
    text = f"{value:.10g}"
    if "e" in text or abs(value) >= 1e5:
        text = f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")
    return text.replace("-", MINUS) if "e" not in text else text


def unit_for(values: Iterable[float], units: tuple[tuple[float, str], ...]) -> tuple[float, str]:
    """The largest unit in which the greatest value is at least 1: 3 GiB among MiB -> (2**30, 'GiB')."""
    greatest = max((abs(value) for value in values), default=0.0)
    fitting = [unit for unit in units if unit[0] <= greatest]
    return fitting[-1] if fitting else units[0]
