from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heptune.reporting.markup import Markup, cleaned, escaped, join, tag


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, attrs))

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.text())
def test_any_text_comes_back_as_text_from_content_and_attribute(text: str) -> None:
    reader = Reader()
    reader.feed(tag("p", text, title=text))
    reader.close()
    assert reader.tags == [("p", [("title", cleaned(text))])]
    assert reader.text == cleaned(text)


def test_halves_of_pairs_and_control_characters_can_be_written() -> None:
    assert cleaned("a\ud800b\x00c\n") == "a?b\ufffdc\n"
    tag("p", "\udfff\x1b[31m").encode("utf-8")


def test_markup_is_not_escaped_twice_and_nothing_else_passes_for_it() -> None:
    assert tag("p", tag("b", "<")) == "<p><b>&lt;</b></p>"
    assert join(["<", [None, Markup("<br>")], 3]) == "&lt;<br>3"
    assert type(escaped(str(Markup("<b>")[:1]))) is Markup and escaped(Markup("<b>")[:1]) == "&lt;"


def test_numbers_of_attributes_are_short_and_finite() -> None:
    assert tag("g", x=1.0, y=0.126, z=None, aria_label="n") == '<g x="1" y="0.13" aria-label="n"></g>'
    assert tag("g", x=-0.001) == '<g x="-0"></g>'
    with pytest.raises(ValueError, match="not finite"):
        tag("g", x=float("nan"))
