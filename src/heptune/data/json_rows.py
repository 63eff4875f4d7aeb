"""JSON text to rows, with an error that says where and what to do."""

from __future__ import annotations

import json
import re
from typing import Any

from heptune.core.errors import DataError
from heptune.data.values import Row, shown

SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # in a file that is UTF-8 a surrogate can only be an escape


def loads(text: str) -> tuple[Any, Exception | None]:
    """The value and no problem, or the problem. ValueError also covers integers of thousands of digits."""
    try:
        return json.loads(text), None
    except (ValueError, RecursionError) as error:
        return None, error


def json_problem(text: str, problem: Exception) -> str:
    """What `loads` found wrong, in words."""
    if isinstance(problem, json.JSONDecodeError):
        rest = text[problem.pos :].split("\n")[0]
        found = shown(rest) if rest.strip() else "the end of the line" if problem.pos < len(text) else "the end"
        reason = problem.msg[0].lower() + problem.msg[1:]
        return f"not valid JSON at column {problem.colno}: {reason}, found {found}; correct it"
    if isinstance(problem, RecursionError):
        return "the JSON is nested too deeply to be read; a row is an object of strings, numbers and short lists"
    return f"not valid JSON: {str(problem).split(';')[0]}; write such a number as a string"


def json_row(content: str) -> Row:
    """The row that one line of JSON lines holds. Raises DataError without a place."""
    value, problem = loads(content)
    if problem is not None:
        raise DataError(json_problem(content, problem))
    return as_row(value, surrogates=_ESCAPED_SURROGATE.search(content) is not None)


def as_row(value: Any, *, surrogates: bool = True) -> Row:
    """One parsed JSON value as a row. Raises DataError without a place. `surrogates` says whether there may be any."""
    if is_pair(value):
        value = {**value[1], "text": value[0]}
    if not isinstance(value, dict):
        raise DataError(f'the row is {shown(value)}; it must be an object such as {{"text": …, "label": …}}')
    if surrogates:
        require_whole_characters(value)
    return value


def require_whole_characters(value: Any) -> None:
    """Refuses a parsed JSON value with half a character in it. Raises DataError without a place."""
    try:
        surrogate = SURROGATE.search(json.dumps(value, ensure_ascii=False))
    except RecursionError as error:
        raise DataError(json_problem("", error)) from None
    if surrogate:
        raise DataError(
            f"the row contains the lone surrogate \\u{ord(surrogate[0]):04x}, half a character that no text can hold; "
            "write the whole pair or the character itself"
        )


def is_pair(value: Any) -> bool:
    """Whether this is a text with its annotations, as spaCy has them: ["Ada", {"entities": [[0, 3, "PER"]]}]."""
    if not (isinstance(value, list) and len(value) == 2):
        return False
    return isinstance(value[0], str) and isinstance(value[1], dict) and "entities" in value[1]
