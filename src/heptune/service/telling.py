"""From replies to an answer: whole, or piece by piece."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from pydantic import BaseModel

from heptune.core.errors import BaseModelError, DataError
from heptune.data.calls import call_in
from heptune.scoring.grammar import Vocabulary
from heptune.service import wire
from heptune.service.asking import Heard, Told, told
from heptune.service.choice import Chosen
from heptune.service.fleet import Served
from heptune.service.reply import End, Piece

# What minus infinity is told as, which JSON does not have: as OpenAI.
LEAST_LOGPROB = -9999.0


def usage(heard: Sequence[Heard], count: int) -> wire.Usage:
    """Of a request with `count` replies to each of its prompts."""
    replies = [each.reply for each in heard]
    own = [reply.prompt - reply.rows.positions - reply.rows.inner for reply in replies]
    prompt, said = sum(own[::count]), sum(len(reply.said) for reply in replies)
    cached = wire.CachedTokens(cached_tokens=min(prompt, sum(reply.cached for reply in replies[::count])))
    return wire.Usage(
        prompt_tokens=prompt, completion_tokens=said, total_tokens=prompt + said, prompt_tokens_details=cached
    )


async def chat_answer(request: wire.ChatRequest, heard: Sequence[Heard]) -> wire.ChatAnswer:
    """The whole answer of a chat."""
    choices = []
    for index, found in enumerate(await asyncio.gather(*(told(each) for each in heard))):
        calls = _calls(found.text) if request.tools else None
        said = wire.Said(role="assistant", content=None if calls else found.text, tool_calls=calls)
        logprobs = _chat_logprobs(heard[index], found.chosen) if request.logprobs else None
        reason = "tool_calls" if calls else found.reason
        choices.append(wire.ChatChoice(index=index, message=said, logprobs=logprobs, finish_reason=reason))
    return wire.ChatAnswer(
        id=f"chatcmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=request.model,
        choices=choices,
        usage=usage(heard, len(heard)),
    )


async def chat_stream(request: wire.ChatRequest, heard: Sequence[Heard]) -> AsyncIterator[str]:
    """The answer of a chat, piece by piece. With tools a reply is held back until it is known whether it is a call."""
    name, created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())

    def chunk(choices: list[wire.ChatChunkChoice], used: wire.Usage | None = None) -> str:
        return _event(wire.ChatChunk(id=name, created=created, model=request.model, choices=choices, usage=used))

    def one(index: int, said: wire.Said, reason: str | None = None, logprobs: Any = None) -> str:
        return chunk([wire.ChatChunkChoice(index=index, delta=said, logprobs=logprobs, finish_reason=reason)])

    for index in range(len(heard)):
        yield one(index, wire.Said(role="assistant", content=""))
    whole = [Told() for _ in heard]
    async for index, said in _together(heard):
        found = whole[index]
        found.hear(said)
        if isinstance(said, Piece):
            logprobs = _chat_logprobs(heard[index], [said.chosen]) if request.logprobs and said.chosen else None
            if not request.tools and (said.text or logprobs):
                yield one(index, wire.Said(content=said.text), logprobs=logprobs)
            continue
        calls = _calls(found.text) if request.tools else None
        if request.tools:
            yield one(index, wire.Said(content=None if calls else found.text, tool_calls=calls))
        yield one(index, wire.Said(), "tool_calls" if calls else found.reason)
    if request.stream_options is not None and request.stream_options.include_usage:
        yield chunk([], usage(heard, len(heard)))
    yield DONE


async def completion_answer(request: wire.CompletionRequest, heard: Sequence[Heard]) -> wire.CompletionAnswer:
    """The whole answer of a completion."""

    def logprobs(index: int, each: Told) -> wire.CompletionLogprobs | None:
        return None if request.logprobs is None else _completion_logprobs(heard[index], each.chosen, each.offsets)

    found = await asyncio.gather(*(told(each) for each in heard))
    choices = [
        wire.CompletionChoice(
            index=index,
            text=each.text,
            logprobs=logprobs(index, each),
            finish_reason=each.reason,
        )
        for index, each in enumerate(found)
    ]
    return wire.CompletionAnswer(
        id=f"cmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=request.model,
        choices=choices,
        usage=usage(heard, request.n or 1),
    )


async def completion_stream(request: wire.CompletionRequest, heard: Sequence[Heard]) -> AsyncIterator[str]:
    """The answer of a completion, piece by piece."""
    name, created = f"cmpl-{uuid.uuid4().hex}", int(time.time())

    def chunk(choices: list[wire.CompletionChoice], used: wire.Usage | None = None) -> str:
        return _event(wire.CompletionAnswer(id=name, created=created, model=request.model, choices=choices, usage=used))

    whole = [Told() for _ in heard]
    async for index, said in _together(heard):
        found = whole[index]
        before = len(found.text)
        found.hear(said)
        if isinstance(said, End):
            yield chunk([wire.CompletionChoice(index=index, text="", finish_reason=found.reason)])
            continue
        logprobs = None
        if request.logprobs is not None and said.chosen is not None:
            logprobs = _completion_logprobs(heard[index], [said.chosen], [before])
        if said.text or logprobs:
            yield chunk([wire.CompletionChoice(index=index, text=said.text, logprobs=logprobs)])
    if request.stream_options is not None and request.stream_options.include_usage:
        yield chunk([], usage(heard, request.n or 1))
    yield DONE


DONE = "data: [DONE]\n\n"


def _event(value: BaseModel) -> str:
    return f"data: {value.model_dump_json(exclude_none=False)}\n\n"


async def _together(heard: Sequence[Heard]) -> AsyncIterator[tuple[int, Piece | End]]:
    """What several replies say, in the order in which it comes."""
    said: asyncio.Queue[tuple[int, Piece | End]] = asyncio.Queue()

    async def pass_on(index: int) -> None:
        async for piece in heard[index].ears.pieces():
            said.put_nowait((index, piece))

    tasks = [asyncio.ensure_future(pass_on(index)) for index in range(len(heard))]
    try:
        left = len(heard)
        while left:
            index, piece = await said.get()
            left -= isinstance(piece, End)
            yield index, piece
    finally:
        for task in tasks:
            task.cancel()


def _calls(text: str) -> list[dict[str, Any]] | None:
    """The calls that a reply consists of, as Hermes, Qwen and Llama 3 write them; None where it is no call."""
    parts = [part.strip() for part in text.replace("</tool_call>", "<tool_call>").split("<tool_call>") if part.strip()]
    try:
        written = [json.loads(calls) for part in parts if (calls := call_in(part))]
    except DataError:
        return None
    if not parts or len(written) < len(parts):
        return None
    return [
        {
            "index": index,
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {
                "name": call["function"]["name"],
                "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
            },
        }
        for index, call in enumerate(call for calls in written for call in calls)
    ]


class _Spelling:
    """How tokens are told: as text and as bytes."""

    def __init__(self, served: Served) -> None:
        self.tokenizer = served.template.tokenizer
        try:
            self.bytes_of = Vocabulary.of(self.tokenizer).bytes_of
        except BaseModelError:
            self.bytes_of = {}

    def text(self, token: int) -> str:
        return str(self.tokenizer.decode([token]))

    def bytes(self, token: int) -> list[int] | None:
        found = self.bytes_of.get(token)
        return None if found is None else list(found)


def _chat_logprobs(heard: Heard, chosen: Sequence[Chosen]) -> wire.ChatLogprobs:
    spelling = _Spelling(heard.reply.model)

    def top(token: int, value: float) -> dict[str, Any]:
        return {"token": spelling.text(token), "logprob": _told(value), "bytes": spelling.bytes(token)}

    def entry(each: Chosen) -> wire.TokenLogprob:
        likeliest = [wire.TopLogprob(**top(*pair)) for pair in each.top]
        return wire.TokenLogprob(**top(each.token, each.logprob or 0.0), top_logprobs=likeliest)

    return wire.ChatLogprobs(content=[entry(each) for each in chosen])


def _completion_logprobs(heard: Heard, chosen: Sequence[Chosen], offsets: Sequence[int]) -> wire.CompletionLogprobs:
    spelling = _Spelling(heard.reply.model)
    return wire.CompletionLogprobs(
        tokens=[spelling.text(each.token) for each in chosen],
        token_logprobs=[_told(each.logprob or 0.0) for each in chosen],
        top_logprobs=[{spelling.text(t): _told(value) for t, value in each.top} for each in chosen],
        text_offset=list(offsets),
    )


def _told(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)
