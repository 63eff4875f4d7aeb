"""Replies, token by token, with a key/value cache."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from heptune.core.errors import BaseModelError, UsageError
from heptune.core.events import Listener, Progress, ignore
from heptune.core.seeds import derive
from heptune.data.record import Message
from heptune.engine.decode import Allowed, as_example, continued
from heptune.engine.forest import portions
from heptune.engine.forward import Forward
from heptune.models.anatomy import Anatomy, Placement
from heptune.models.quiet import quiet
from heptune.models.shape import ModelShape
from heptune.scoring.grammar import Guide
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


# Rows of the prompts that are continued together. Their keys and values are kept: 94 MB in float32 for smollm2-135m.
ROWS_AT_ONCE = 2048

# Some bases bring such habits in generation_config.json (Qwen2.5 a repetition penalty). With them the likeliest token
# is another one, and a penalty looks up the logit of every id in the prompt: a virtual token has none.
_AS_THE_MODEL_SAYS: dict[str, Any] = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0}


def reply(
    anatomy: Anatomy,
    template: ChatTemplate,
    messages: Sequence[Message],
    sampling: Sampling,
    on_text: Callable[[str], None] | None = None,
    guide: Guide | None = None,
    tools: str = "",
) -> str:
    """The assistant's reply to a conversation, without its end of turn. `on_text` receives the text as it grows.
    `tools` are those that it may call, as in `Record.tools`; a call is the text that the template has for it.

    A reply ends where the model's positions do. With a `guide` it is valid, and complete, whatever the model. Raises
    `BaseModelError` where the conversation leaves no positions, or too few for any valid reply.
    """
    return _generated(
        anatomy, template, prompt_ids(anatomy.placement, template, messages, tools), sampling, on_text, guide
    )


def continuation(
    anatomy: Anatomy,
    template: ChatTemplate,
    prompt: Sequence[int],
    sampling: Sampling,
    on_text: Callable[[str], None] | None = None,
) -> str:
    """How a document goes on whose beginning is `prompt`, up to its end. The rest is as in `reply`."""
    if not prompt:
        raise UsageError("there is nothing to go on from; write the beginning of a text")
    return _generated(anatomy, template, placed(anatomy.placement, prompt, 1), sampling, on_text)


def _generated(
    anatomy: Anatomy,
    template: ChatTemplate,
    prompt: list[int],
    sampling: Sampling,
    on_text: Callable[[str], None] | None,
    guide: Guide | None = None,
) -> str:
    model = anatomy.model
    device = next(model.parameters()).device
    tokens = torch.tensor([prompt], device=device)
    choice: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        choice = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    streamer = _Pieces(template, on_text) if on_text is not None else None
    limit = min(sampling.max_tokens, _room(anatomy, prompt))
    if guide is not None:
        choice["logits_processor"] = LogitsProcessorList(
            [_Guided(Walk(guide, limit), len(prompt), template.stop_tokens)]
        )
    with quiet(), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(derive(sampling.seed, "reply", *prompt))
        output = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=limit,
            eos_token_id=list(template.stop_tokens),
            pad_token_id=template.stop_tokens[0],
            streamer=streamer,
            **_AS_THE_MODEL_SAYS,
            **choice,
        )
    said = output[0, len(prompt) :].tolist()
    return _said(template, said, guide)


def replies(
    forward: Forward,
    template: ChatTemplate,
    conversations: Sequence[Sequence[Message]],
    max_tokens: int,
    what: str,
    listener: Listener = ignore,
    guide: Callable[[int], Guide] | None = None,
) -> list[str]:
    """What `reply` says to each conversation at temperature 0, many at a time (see `engine/decode.py`). `guide` makes
    the guide of the conversation with that number.

    Where an architecture cannot attend over a forest it is one after the other. Raises `BaseModelError` as `reply`.
    """
    anatomy, total = forward.anatomy, len(conversations)
    said = [""] * total
    if not forward.attends_over_forests:
        for i, messages in enumerate(conversations):
            said[i] = reply(
                anatomy, template, messages, Sampling(max_tokens=max_tokens), guide=guide(i) if guide else None
            )
            listener(Progress(what, i + 1, total, "replies"))
        return said
    prompts = [
        as_example(prompt_ids(anatomy.placement, template, messages, ""), i) for i, messages in enumerate(conversations)
    ]
    done = 0
    for portion in portions(prompts, ROWS_AT_ONCE):
        tokens = [list(example.tokens[:-1]) for example in portion]
        limits = [min(max_tokens, _room(anatomy, prompt)) for prompt in tokens]
        guides = [guide(example.record) if guide else None for example in portion]
        found = continued(forward, tokens, template.stop_tokens, limits, _allowing(guides, limits))
        for example, new, each in zip(portion, found, guides, strict=True):
            said[example.record] = _said(template, new, each)
        done += len(portion)
        listener(Progress(what, done, total, "replies"))
    return said


def prompt_ids(placement: Placement, template: ChatTemplate, messages: Sequence[Message], tools: str) -> list[int]:
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
    return placed(placement, prompt, lead)


def placed(placement: Placement, prompt: Sequence[int], lead: int) -> list[int]:
    """The prompt with the virtual tokens that stand before its first answer, which begins at `lead`."""
    if not placement.inner:
        return list(prompt)
    example = Example((*prompt, 0), tuple(t >= lead for t in range(len(prompt) + 1)), 0)
    return list(example.with_virtual_tokens(placement.front, placement.inner).tokens[:-1])


def _room(anatomy: Anatomy, prompt: list[int]) -> int:
    return room(anatomy.shape, anatomy.placement.positions, prompt)


def room(shape: ModelShape, taken: int, prompt: Sequence[int]) -> int:
    """How many tokens may follow a prompt under a technique that takes some positions. Raises `BaseModelError` where
    there are none."""
    limit = shape.max_positions
    if limit is None:
        return sys.maxsize
    words = sum(token >= 0 for token in prompt)
    if words + taken >= limit:
        beside = f", the technique takes {taken} positions" if taken else ""
        raise BaseModelError(
            f"the conversation has {words} tokens{beside} and {shape.architecture} has {limit} positions: none "
            "is left for a reply; begin a new conversation, or a shorter one"
        )
    return limit - words - taken


class Walk:
    """A guide's way along a reply of at most `limit` tokens as it grows."""

    def __init__(self, guide: Guide, limit: int) -> None:
        needed = guide.grammar.cost(guide.grammar.start)
        if needed > limit:
            raise BaseModelError(
                f"{limit} tokens are left for the reply, but the shortest valid one has {needed:.0f}; allow a longer "
                "reply or give a shorter text"
            )
        self.guide, self.limit = guide, limit
        self.state, self.read = guide.grammar.start, 0

    def allowed(self, said: Sequence[int]) -> np.ndarray:
        """The tokens that may come next; none where the reply is complete."""
        for token in said[self.read :]:
            self.state = self.guide.after(self.state, token)
        self.read = len(said)
        if self.guide.closed(self.state):
            return np.empty(0, np.int64)
        return self.guide.allowed(self.state, self.limit - self.read)


class _Guided(LogitsProcessor):
    """Leaves the allowed tokens their scores and takes those of all others away; a closed reply can only end."""

    def __init__(self, walk: Walk, start: int, stop_tokens: Sequence[int]) -> None:
        self.walk, self.start, self.stop_tokens = walk, start, list(stop_tokens)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """The scores of the next token, [1, vocabulary]."""
        found = self.walk.allowed(input_ids[0, self.start :].tolist())
        allowed = torch.tensor(found if len(found) else self.stop_tokens, device=scores.device)
        kept = torch.full_like(scores, -torch.inf)
        kept[:, allowed] = scores[:, allowed]
        return kept  # type: ignore[return-value]


def _allowing(guides: Sequence[Guide | None], limits: Sequence[int]) -> Allowed | None:
    walks = [Walk(guide, limit) for guide, limit in zip(guides, limits, strict=True) if guide is not None]
    return (lambda number, said: walks[number].allowed(said)) if walks else None


def _said(template: ChatTemplate, tokens: list[int], guide: Guide | None) -> str:
    return _text(template, tokens) if guide is None else guide.vocabulary.text(tokens)


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
