"""Replies, token by token, with a key/value cache."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from heptune.core.errors import BaseModelError
from heptune.core.seeds import derive
from heptune.data.record import Message
from heptune.models.anatomy import Anatomy, Placement
from heptune.models.quiet import quiet
from heptune.tasks.example import Example
from heptune.tasks.template import ChatTemplate


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. `temperature` 0 always takes the likeliest; `top_p` keeps the likeliest tokens that
    together have this probability; the same `seed` gives the same reply."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


# Some bases bring such habits in generation_config.json (Qwen2.5 a repetition penalty). With them the likeliest token
# is another one, and a penalty looks up the logit of every id in the prompt: a virtual token has none.
_AS_THE_MODEL_SAYS: dict[str, Any] = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0}


def reply(
    anatomy: Anatomy,
    template: ChatTemplate,
    messages: Sequence[Message],
    sampling: Sampling,
    on_text: Callable[[str], None] | None = None,
    tools: str = "",
) -> str:
    """The assistant's reply to a conversation, without its end of turn. `on_text` receives the text as it grows.
    `tools` are those that it may call, as in `Record.tools`; a call is the text that the template has for it.

    A reply ends where the model's positions do. Raises `BaseModelError` where the conversation leaves none.
    """
    prompt = _prompt(anatomy.placement, template, messages, tools)
    model = anatomy.model
    device = next(model.parameters()).device
    tokens = torch.tensor([prompt], device=device)
    choice: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        choice = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    streamer = _Pieces(template, on_text) if on_text is not None else None
    with quiet(), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(derive(sampling.seed, "reply", *prompt))
        output = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=min(sampling.max_tokens, _room(anatomy, prompt)),
            eos_token_id=list(template.stop_tokens),
            pad_token_id=template.stop_tokens[0],
            streamer=streamer,
            **_AS_THE_MODEL_SAYS,
            **choice,
        )
    return _text(template, output[0, len(prompt) :].tolist())


def _prompt(placement: Placement, template: ChatTemplate, messages: Sequence[Message], tools: str) -> list[int]:
    """The prompt's ids. Virtual tokens in front are the model's own business; where some stand before the answer, all
    of them stand among the ids, in the places that they have in training: before the first reply."""
    prompt = template.prompt(messages, tools)
    if not placement.inner:
        return prompt
    lead = 0
    for segment in template.conversation([*messages, Message("assistant", "x")], tools)[-1]:
        if segment.supervised:
            break
        lead += len(segment.tokens)
    example = Example((*prompt, 0), tuple(t >= lead for t in range(len(prompt) + 1)), 0)
    return list(example.with_virtual_tokens(placement.front, placement.inner).tokens[:-1])


def _room(anatomy: Anatomy, prompt: list[int]) -> int:
    """How many tokens may follow the prompt."""
    taken, limit = anatomy.placement.positions, anatomy.shape.max_positions
    if limit is None:
        return sys.maxsize
    words = sum(token >= 0 for token in prompt)
    if words + taken >= limit:
        beside = f", the technique takes {taken} positions" if taken else ""
        raise BaseModelError(
            f"the conversation has {words} tokens{beside} and {anatomy.shape.architecture} has {limit} positions: none "
            "is left for a reply; begin a new conversation, or a shorter one"
        )
    return limit - words - taken


def _text(template: ChatTemplate, tokens: list[int]) -> str:
    while tokens and tokens[-1] in template.stop_tokens:
        tokens = tokens[:-1]
    return template.tokenizer.decode(tokens, skip_special_tokens=True)


class _Pieces(BaseStreamer):
    """Hands over text as soon as it is certain: a character of several tokens waits for its last one."""

    def __init__(self, template: ChatTemplate, on_text: Callable[[str], None]) -> None:
        self.template, self.on_text = template, on_text
        self.tokens: list[int] | None = None  # None until the prompt has passed
        self.shown = 0

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt first, then one token at a time."""
        if self.tokens is None:
            self.tokens = []
            return
        self.tokens += value.flatten().tolist()
        self._show(final=False)

    def end(self) -> None:
        """Hands over what is left."""
        self._show(final=True)

    def _show(self, final: bool) -> None:
        text = _text(self.template, self.tokens or [])
        if final or not text.endswith("�"):
            self.on_text(text[self.shown :])
            self.shown = len(text)
