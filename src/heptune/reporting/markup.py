"""HTML and SVG as nested calls. Whatever is not markup already is escaped, so no text of a person can become markup."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable
from typing import Any

# HTML allows no control characters but these: tab, line feed, carriage return.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")
_VOID = frozenset({"meta", "br", "hr", "col"})


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def cleaned(text: str) -> str:
    """The text without what no page can hold: control characters and halves of surrogate pairs."""
    return _CONTROL.sub("\ufffd", text.encode("utf-8", "replace").decode("utf-8"))


def escaped(text: str) -> Markup:
    """The text as HTML shows it, also inside attributes."""
    return text if isinstance(text, Markup) else Markup(html.escape(cleaned(text)))


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """One element: `tag("p", "a < b", class_="note")`.

    Children are text, markup, iterables of them, or None. An attribute that is None is left out; `class_` is written
    class, `aria_label` aria-label; numbers get two decimals, which is finer than a screen.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def join(parts: Any, between: str = "") -> Markup:
    """All parts one after the other."""
    return Markup(between.join(_flat(parts)))


def _flat(part: Any) -> Iterable[str]:
    if part is None:
        return
    if isinstance(part, str):
        yield escaped(part)
    elif isinstance(part, Iterable):
        for inner in part:
            yield from _flat(inner)
    else:
        yield escaped(str(part))


def _value(value: Any) -> str:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a drawing has no place for a number that is not finite")
        return f"{value:.2f}".rstrip("0").rstrip(".") or "0"
    return escaped(str(value))
