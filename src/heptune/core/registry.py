"""Finding things by name, with the nearest names when there is no such thing."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from heptune.core.errors import HeptuneError, UsageError


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names most like `name`, best first; underscores, hyphens and case do not matter."""

    def plain(text: str) -> str:
        return text.lower().replace("_", "").replace("-", "")

    by_plain = {plain(k): k for k in known}
    return [by_plain[m] for m in difflib.get_close_matches(plain(name), by_plain, n=count, cutoff=0.4)]


def unknown(kind: str, name: str, known: Iterable[str], error: type[HeptuneError] = UsageError) -> HeptuneError:
    """The error for a name that is not known: the nearest names first, then all of them."""
    names = sorted(known)
    close = nearest(name, names)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return error(f"there is no {kind} named {name!r}; {hint}known: {', '.join(names)}")
