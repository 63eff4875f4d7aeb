"""The tokenizer of an export, with the run's own chat template; and whether another program reads and writes alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers

from heptune.data.record import Message
from heptune.models.quiet import quiet
from heptune.shipping.parity import CONVERSATIONS, TEXTS
from heptune.tasks.template import ChatTemplate

# Text to token ids, without special tokens around it.
Encode = Callable[[str], list[int]]
# Turns, the tools that can be called, and whether the assistant is to speak, to text.
Render = Callable[[list[dict[str, Any]], list[Any] | None, bool], str]

# A conversation with a tool, a call of it and its answer.
_FUNCTION = {
    "name": "weather",
    "description": "The weather in a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
_CALL = {"id": "call12345", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
_TOOLS = json.dumps([{"type": "function", "function": _FUNCTION}])
_WITH_TOOLS = (
    Message("user", "Is it raining in Köln?"),
    Message("assistant", "", json.dumps([_CALL], ensure_ascii=False)),
    Message("tool", '{"rain": true}', tool_call_id="call12345", name="weather"),
)


def write_tokenizer(tokenizer: Any, template: ChatTemplate, folder: Path) -> None:
    """The tokenizer's files, with the template that the run froze. An encoder has none."""
    before = tokenizer.chat_template
    try:
        if not template.both_ways:
            tokenizer.chat_template = template.source
        with quiet():
            tokenizer.save_pretrained(folder)
    finally:
        tokenizer.chat_template = before


def read_tokenizer(folder: Path, template: ChatTemplate) -> tuple[bool, bool | None]:
    """Whether transformers, loading what was written, gives the same tokens, and the same conversations (None for an
    encoder, which has no template)."""
    with quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    own = None if template.both_ways else template_agrees(template, rendered_by(tokenizer))
    return tokens_agree(template, encoded_by(tokenizer)), own


def encoded_by(tokenizer: Any) -> Encode:
    """How a tokenizer of transformers reads."""
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False, verbose=False))


def rendered_by(tokenizer: Any) -> Render:
    """How a tokenizer of transformers writes conversations."""

    def render(turns: list[dict[str, Any]], tools: list[Any] | None, generate: bool) -> str:
        text = tokenizer.apply_chat_template(turns, tools=tools, tokenize=False, add_generation_prompt=generate)
        return str(text)

    return render


def tokens_agree(template: ChatTemplate, encode: Encode) -> bool:
    """Whether the fixed texts, and conversations as the template writes them, become the same tokens."""
    texts = list(TEXTS)
    if not template.both_ways:
        texts += [template.written(messages, True) for messages in CONVERSATIONS]
    return all(encode(text) == template.encode(text) for text in texts)


def template_agrees(template: ChatTemplate, render: Render) -> bool:
    """Whether conversations are written alike: by the run's template, and by the exported one. One with tools is among
    them where the template has a place for tools, calls and answers."""
    talks = [(template.prepared(messages), "") for messages in CONVERSATIONS]
    form = template.tool_form
    if form.tools and form.call and form.answer:
        talks += [(list(_WITH_TOOLS[:count]), _TOOLS) for count in (1, 2, 3)]
    for messages, tools in talks:
        turns, given = form.turns(messages, tools)
        for generate in (True, False):
            if render(turns, given or template.no_tools, generate) != template.written(messages, generate, tools):
                return False
    return True
