"""The chat template of an export: of the well-known families, tools and fixed dates included."""

from __future__ import annotations

from pathlib import Path

import pytest

from heptune.shipping.tokenizer import read_tokenizer, template_agrees, write_tokenizer
from heptune.tasks.template import ChatTemplate
from tasks.test_tools import ALL, HERMES, TOKENIZER

KNOWN = {**ALL, "hermes": HERMES}
DATED = (
    "{% for message in messages %}{{ '<|eot_id|>' + strftime_now('%d %B %Y') + message['role'] + message['content'] }}"
    "{% endfor %}{{ '<|eot_id|>' }}"
)


@pytest.mark.parametrize("name", KNOWN)
def test_a_family_speaks_as_it_did(name: str, tmp_path: Path) -> None:
    template = ChatTemplate(TOKENIZER, KNOWN[name])
    before = TOKENIZER.chat_template
    write_tokenizer(TOKENIZER, template, tmp_path)
    assert TOKENIZER.chat_template == before, "the base's own tokenizer keeps its template"
    assert read_tokenizer(tmp_path, template) == (True, True)
    assert (tmp_path / "chat_template.jinja").read_text("utf-8") == template.source


def test_one_that_writes_tools_otherwise_is_seen() -> None:
    template = ChatTemplate(TOKENIZER, ALL["qwen25"])
    other = ChatTemplate(TOKENIZER, ALL["qwen25"].replace("<tools>", "<functions>"))
    assert other.source != template.source

    def render(turns: list[dict[str, object]], tools: list[object] | None, generate: bool) -> str:
        return str(
            TOKENIZER.apply_chat_template(
                turns, tools=tools, chat_template=other.source, tokenize=False, add_generation_prompt=generate
            )
        )

    assert template_agrees(other, render) and not template_agrees(template, render)


def test_a_date_is_the_one_of_the_training(tmp_path: Path) -> None:
    template = ChatTemplate(TOKENIZER, DATED)
    write_tokenizer(TOKENIZER, template, tmp_path)
    assert read_tokenizer(tmp_path, template)[1]
    (tmp_path / "chat_template.jinja").write_text(DATED, "utf-8")
    assert not read_tokenizer(tmp_path, template)[1], "today's"
