"""From a request to what is asked of an engine."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from heptune.core.errors import BaseModelError, DataError, HeptuneError
from heptune.data.calls import calls_of, tools_of
from heptune.data.record import Message
from heptune.scoring.exams.extract import ANSWER_TOKENS, guided
from heptune.scoring.exams.tag import tagged
from heptune.scoring.generate import Walk
from heptune.scoring.grammar import Vocabulary
from heptune.service import wire
from heptune.service.choice import Choice, Chosen
from heptune.service.fleet import Fleet, Served
from heptune.service.listening import Ears
from heptune.service.refusal import Refusal, refusal_of
from heptune.service.reply import CANCELLED, FAILED, End, Piece, Reply
from heptune.service.text import Growing
from heptune.tasks.classify import Classify
from heptune.tasks.extract import Entity, Extract, entities, read
from heptune.tasks.label import Label
from heptune.tasks.tag import Tag
from heptune.tuning.use import label_probabilities

# OpenAI's default for completions; chat has none there, see `Limits.reply_tokens`.
COMPLETION_TOKENS = 16


@dataclass(frozen=True)
class Limits:
    """What one request may ask for. `reply_tokens` is the length of a chat's reply where the request gives none."""

    body_bytes: int = 4 << 20
    max_tokens: int = 4096
    reply_tokens: int = 1024
    replies: int = 64
    request_s: float = 600.0


@dataclass(frozen=True)
class Heard:
    """One reply of a request, and what it says as it comes."""

    reply: Reply
    ears: Ears


@dataclass
class Told:
    """All that a reply has said."""

    text: str = ""
    chosen: list[Chosen] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    reason: str = ""

    def hear(self, said: Piece | End) -> None:
        """Takes a piece or the end; raises `Refusal` where the end is none."""
        if isinstance(said, End):
            if said.reason == FAILED:
                raise Refusal(503, f"the reply could not be made: {said.error}", "engine_error")
            if said.reason == CANCELLED:
                raise Refusal(503, "the reply was broken off: the server stops, or the model was unloaded", "cancelled")
            self.reason = said.reason
            return
        if said.chosen is not None:
            self.chosen.append(said.chosen)
            self.offsets.append(len(self.text))
        self.text += said.text


class Asking:
    """What can be asked of a fleet. Texts become tokens in one thread of its own: tokenizers are not for several."""

    def __init__(self, fleet: Fleet, limits: Limits | None = None) -> None:
        self.fleet, self.limits = fleet, limits or Limits()
        self._preparing = ThreadPoolExecutor(1, "heptune-prompts")

    def close(self) -> None:
        """Ends the thread."""
        self._preparing.shutdown(wait=False, cancel_futures=True)

    async def prepare(self, work: Callable[[], Any]) -> Any:
        """Runs what takes a while beside the engine, and turns its errors into refusals."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._preparing, work)
        except DataError as error:
            raise Refusal(400, str(error)) from None
        except HeptuneError as error:
            raise refusal_of(error) from None

    def model(self, name: str) -> Served:
        """The model of this name; `Refusal` 404 where there is none."""
        found = self.fleet.models.get(name)
        if found is None:
            served = ", ".join(self.fleet.models)
            raise Refusal(404, f"there is no model {name!r}; served: {served}", "model_not_found", "model")
        return found

    def speaker(self, name: str) -> Served:
        """The same, if it says anything."""
        served = self.model(name)
        if not served.engine.generates:
            raise Refusal(400, f"{name} stands on an encoder, which says nothing; ask /v1/classify or /v1/extract")
        return served

    # ---- text

    async def chat(self, request: wire.ChatRequest) -> list[Heard]:
        """The replies to a conversation, on their way."""
        served = self.speaker(request.model)

        def tokens() -> list[int]:
            tools = "" if request.tool_choice == "none" else tools_of(request.tools or [], "tools")
            return served.chat_tokens([_message(each) for each in request.messages], tools)

        prompt = await self.prepare(tokens)
        told = (request.top_logprobs or 0) if request.logprobs else None
        return self._submit(served, request, [prompt], request.limit or self.limits.reply_tokens, told, request.limit)

    async def complete(self, request: wire.CompletionRequest) -> list[Heard]:
        """How texts go on, on their way; those of one prompt side by side."""
        served = self.speaker(request.model)
        vocabulary = served.engine.anatomy.shape.vocabulary

        def tokens() -> list[list[int]]:
            found = []
            for prompt in request.prompts:
                if isinstance(prompt, str):
                    found.append(served.text_tokens(prompt))
                elif max(prompt) >= vocabulary:
                    raise Refusal(400, f"token {max(prompt)} is not among the {vocabulary} of {request.model}")
                else:
                    found.append(served.plain_tokens(prompt))
            return found

        prompts = await self.prepare(tokens)
        limit = request.max_tokens or COMPLETION_TOKENS
        return self._submit(served, request, prompts, limit, request.logprobs, request.max_tokens)

    def _submit(
        self,
        served: Served,
        request: wire.Sampled,
        prompts: Sequence[list[int]],
        limit: int,
        told: int | None,
        asked: int | None,
    ) -> list[Heard]:
        count = request.n or 1
        if count * len(prompts) > self.limits.replies:
            raise Refusal(400, f"the request is for {count * len(prompts)} replies; at most {self.limits.replies}")
        if limit > self.limits.max_tokens:
            raise Refusal(400, f"max_tokens is {limit}; this server gives at most {self.limits.max_tokens}")
        vocabulary = served.engine.anatomy.shape.vocabulary
        bias = {int(token): more for token, more in (request.logit_bias or {}).items()}
        foreign = next((token for token in bias if token >= vocabulary), None)
        if foreign is not None:
            raise Refusal(400, f"logit_bias names token {foreign}, which is not among the {vocabulary}")
        seed = secrets.randbits(63) if request.seed is None else request.seed
        heard: list[Heard] = []
        for prompt in prompts:
            room = self._room(served, prompt, limit if asked is not None else 1)
            for number in range(count):
                choice = Choice(
                    temperature=1.0 if request.temperature is None else request.temperature,
                    top_p=1.0 if request.top_p is None else request.top_p,
                    seed=seed + number,
                    presence=request.presence_penalty or 0.0,
                    frequency=request.frequency_penalty or 0.0,
                    bias=bias,
                    logprobs=told,
                )
                heard.append(self._reply(served, prompt, min(limit, room), choice, request.stops))
        self._enter(heard)
        return heard

    def _room(self, served: Served, prompt: Sequence[int], needed: int) -> int:
        """How many tokens may follow a prompt. Raises `Refusal` where there are fewer than needed."""
        limit = served.engine.anatomy.shape.max_positions
        if limit is None:
            return self.limits.max_tokens
        if len(prompt) + needed > limit:
            words = sum(token >= 0 for token in prompt)
            raise Refusal(
                400,
                f"the prompt has {words} tokens and the reply may have {needed}, but {served.name} has "
                f"{served.max_positions} positions; shorten one of them",
                "context_length_exceeded",
            )
        return limit - len(prompt)

    def _reply(
        self,
        served: Served,
        prompt: Sequence[int],
        limit: int,
        choice: Choice,
        stops: Sequence[str] = (),
        walk: Walk | None = None,
    ) -> Heard:
        ears, template = Ears(), served.template
        text = Growing(template.tokenizer, stops)
        ends = frozenset(template.stop_tokens)
        return Heard(Reply(served, served.rows, list(prompt), limit, choice, ends, text, ears, walk), ears)

    def _enter(self, heard: Sequence[Heard]) -> None:
        """All of a request's replies wait for their place, or none of them does."""
        try:
            for each in heard:
                each.reply.model.engine.submit(each.reply)
        except HeptuneError as error:
            give_up(heard)
            raise refusal_of(error) from None

    # ---- labels and entities

    async def classify(self, request: wire.InputRequest) -> wire.ClassifyAnswer:
        """The labels of texts."""
        served = self.model(request.model)
        task = served.task
        if not isinstance(task, Classify | Label):
            raise Refusal(400, f"{request.model} {_learned(served)}; /v1/classify is for runs that learned labels")
        several = isinstance(task, Label) and task.several
        found = await self._alone(
            served, lambda: label_probabilities(task, served.scorer, served.calibration, request.texts)
        )
        data = []
        for index, probabilities in enumerate(found):
            likeliest = next(iter(probabilities))
            labels = [label for label, p in probabilities.items() if p > 0.5] if several else [likeliest]
            label, p = (None, None) if several else (likeliest, probabilities[likeliest])
            data.append(
                wire.Labelled(index=index, label=label, labels=labels, probability=p, probabilities=probabilities)
            )
        return wire.ClassifyAnswer(model=request.model, data=data)

    async def _alone(self, served: Served, work: Callable[[], Any]) -> Any:
        try:
            return await asyncio.wrap_future(served.alone(work))
        except HeptuneError as error:
            raise refusal_of(error) from None

    async def extract(self, request: wire.InputRequest) -> wire.ExtractAnswer:
        """The entities of texts."""
        served = self.model(request.model)
        task = served.task
        if isinstance(task, Tag):
            spans = await self._alone(served, lambda: [tagged(task, served.scorer, text) for text in request.texts])
            found = [entities(text, each) for text, each in zip(request.texts, spans, strict=True)]
        elif isinstance(task, Extract):
            found = await self._listed(served, task, request.texts)
        else:
            raise Refusal(400, f"{request.model} {_learned(served)}; /v1/extract is for runs that learned entities")
        data = [
            wire.Extracted(
                index=index,
                entities=[wire.FoundEntity(text=e.text, type=e.type, start=e.start, end=e.end) for e in each],
            )
            for index, each in enumerate(found)
        ]
        return wire.ExtractAnswer(model=request.model, data=data)

    async def _listed(self, served: Served, task: Extract, texts: Sequence[str]) -> list[list[Entity]]:
        """Entities that a model lists in words: replies that only valid lists pass."""
        max_length, template = served.scorer.max_length, served.template

        def prepared() -> list[tuple[str, list[int], Any]]:
            found = []
            for text in texts:
                left, guide = guided(task, served.engine.anatomy, template, max_length, text)
                found.append((left, served.chat_tokens(task.messages(left)), guide))
            return found

        asked = await self.prepare(prepared)
        heard = []
        for _, prompt, guide in asked:
            limit = min(ANSWER_TOKENS, self._room(served, prompt, 1))
            try:
                heard.append(self._reply(served, prompt, limit, Choice(), walk=Walk(guide, limit)))
            except BaseModelError as error:
                raise Refusal(400, str(error)) from None
        self._enter(heard)
        try:
            await asyncio.gather(*(told(each) for each in heard))
        except BaseException:
            give_up(heard)
            raise
        vocabulary = Vocabulary.of(template.tokenizer)
        return [
            entities(left, read(left, vocabulary.text(each.reply.said)))
            for (left, _, _), each in zip(asked, heard, strict=True)
        ]


def _learned(served: Served) -> str:
    return "is a base" if served.task is None else f"learned {served.task.name}"


def _message(given: wire.ChatMessage) -> Message:
    role = "system" if given.role == "developer" else given.role
    calls = ""
    if given.tool_calls:
        try:
            calls = calls_of({"tool_calls": [call.model_dump() for call in given.tool_calls]}, 0)
        except DataError as error:
            raise Refusal(400, str(error), param="messages") from None
    return Message(role, given.text, calls, given.tool_call_id or "", given.name or "")


def give_up(heard: Sequence[Heard]) -> None:
    """Nobody waits for these any more."""
    for each in heard:
        each.reply.model.engine.cancel(each.reply)


async def told(heard: Heard) -> Told:
    """A whole reply."""
    found = Told()
    async for said in heard.ears.pieces():
        found.hear(said)
    return found
