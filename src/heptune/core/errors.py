"""Errors that say what went wrong, what was found, the rule, and the way out.

Every error that Heptune raises on purpose is a `HeptuneError`. The command line prints its text without a traceback
and exits with its `exit_code`; anything else that escapes is a defect.
"""

from __future__ import annotations

from pathlib import Path


class HeptuneError(Exception):
    """A problem a person can solve: the message ends with how."""

    exit_code = 1


class UsageError(HeptuneError):
    """An option or an argument that makes no sense."""

    exit_code = 2


class DataError(HeptuneError):
    """Something in a data file cannot be used.

    `path` and `line` (counted from 1) name the place; both may be None where there is no single place.
    """

    def __init__(self, problem: str, *, path: str | Path | None = None, line: int | None = None) -> None:
        self.problem, self.path, self.line = problem, path, line
        places = [str(place) for place in (path, line) if place is not None]
        place = f"line {line}" if path is None and line is not None else ":".join(places)
        super().__init__(f"{place}: {problem}" if place else problem)


class BaseModelError(HeptuneError):
    """A base model that cannot be loaded or cannot do what was asked."""


class TechniqueError(HeptuneError):
    """A technique that does not fit the model, or settings out of range."""


class RunError(HeptuneError):
    """A run directory that is missing, damaged, in use, or from another version."""


class NonFiniteLossError(HeptuneError):
    """The loss or a gradient became NaN or infinite; the last good checkpoint stays."""
