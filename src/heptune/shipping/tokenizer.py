"""The tokenizer of an export, with the run's own chat template; and whether another program reads and writes alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers

from heptune.models.quiet import quiet
from heptune.shipping.parity import CONVERSATIONS, TEXTS
from heptune.tasks.template import ChatTemplate

# Text to token ids, without special tokens around it.
Encode = Callable[[str], list[int]]
# Turns, and whether the assistant is to speak, to text.
Render = Callable[[list[dict[str, str]], bool], str]


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
    return lambda turns, generate: tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generate)


def tokens_agree(template: ChatTemplate, encode: Encode) -> bool:
    """Whether the fixed texts, and conversations as the template writes them, become the same tokens."""
    texts = list(TEXTS)
    if not template.both_ways:
        texts += [template.written(messages, True) for messages in CONVERSATIONS]
    return all(encode(text) == template.encode(text) for text in texts)


def template_agrees(template: ChatTemplate, render: Render) -> bool:
    """Whether conversations are written alike: by the run's template, and by the exported one."""
    for messages in CONVERSATIONS:
        for generate in (True, False):
            prepared = template.prepared(messages)
            turns = [{"role": message.role, "content": message.content} for message in prepared]
            if render(turns, generate) != template.written(prepared, generate):
                return False
    return True
