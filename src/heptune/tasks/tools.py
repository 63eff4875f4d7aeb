"""How a chat template takes tools, calls of them and their answers: found by trying, since templates differ.

Most take what transformers documents: tools as the variable `tools`, an assistant's `tool_calls`, answers as turns of
the role `tool`. GLM-4's take a call's name as `metadata` of a turn whose content is the arguments, and the answer as
the role `observation`; its first one takes the tools with the system message.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from heptune.core.errors import BaseModelError
from heptune.data.record import Message

Turn = dict[str, Any]
# The turns as a template gets them, the tools, and whether the assistant is to begin: as text.
Render = Callable[[list[Turn], list[Any] | None, bool], str]

ARGUMENT, SYSTEM = "argument", "system"
CALLS, METADATA = "tool_calls", "metadata"

# Lower-case letters, so that no template trims or escapes them.
_NAME, _VALUE, _ANSWER = "qzxname", "qzxvalue", "qzxanswer"
_TOOLS = [{"type": "function", "function": {"name": _NAME, "description": "x", "parameters": {"type": "object"}}}]
_CALL = Message(
    "assistant",
    "",
    json.dumps([{"id": "qzxqzxqzx", "type": "function", "function": {"name": _NAME, "arguments": {"x": _VALUE}}}]),
)
_USER = {"role": "user", "content": "hello"}


@dataclass(frozen=True)
class ToolForm:
    """What a template takes: `tools` as ARGUMENT or with the SYSTEM message, calls as CALLS or METADATA,
    answers as turns of the role `answer`. Each is '' where the template has no place for it."""

    tools: str
    call: str
    answer: str

    @classmethod
    def of(cls, text: str, render: Render) -> ToolForm:
        """Finds what the template with the source `text` takes. GLM-4's forms are tried where it mentions metadata
        alone: some templates write any role, which is no place for it."""
        calls = [CALLS, *((METADATA,) if METADATA in text else ())]
        answers = ["observation", "tool"] if METADATA in text else ["tool"]
        asked = [_USER, {"role": "assistant", "content": "wait"}]

        def shows(words: Sequence[str], turns: list[Turn], tools: list[Any] | None = None) -> bool:
            try:
                written = render(turns, tools, False)
            except BaseModelError:
                return False
            return all(word in written for word in words)

        def first(forms: Sequence[str], passes: Callable[[str], bool]) -> str:
            return next((form for form in forms if passes(form)), "")

        def answered(role: str) -> bool:
            calls_before = ([_USER, _called(_CALL, call)] for call in calls)
            return any(shows([_ANSWER], [*before, _answer(role)]) for before in (asked, *calls_before))

        return cls(
            first((ARGUMENT, SYSTEM), lambda form: shows([_NAME], *_given([_USER], _TOOLS, form))),
            first(calls, lambda form: shows([_NAME, _VALUE], [_USER, _called(_CALL, form)])),
            first(answers, answered),
        )

    def turns(self, messages: Sequence[Message], tools: str) -> tuple[list[Turn], list[Any] | None]:
        """What the template is given for `messages` and `tools`. Raises `BaseModelError` where it has no place."""
        roles = {message.role for message in messages}
        for place, wanted, what in (
            (self.tools, tools, "tools that can be called"),
            (self.call, any(message.tool_calls for message in messages), "an assistant's tool calls"),
            (self.answer, "tool" in roles, "turns of the role 'tool'"),
        ):
            if wanted and not place:
                raise BaseModelError(
                    f"the conversation has {what}, but this base's chat template has no place for tools; "
                    "use a base whose template knows them (Qwen2.5's and Llama 3.1's do), leave such conversations "
                    "out, or write what they say into the contents and give no 'tools'"
                )
        turns = [self._turn(message) for message in messages]
        return _given(turns, json.loads(tools), self.tools) if tools else (turns, None)

    def _turn(self, message: Message) -> Turn:
        if message.tool_calls:
            return _called(message, self.call)
        if message.role != "tool":
            return {"role": message.role, "content": message.content}
        more = {key: value for key in ("tool_call_id", "name") if (value := getattr(message, key))}
        return {"role": self.answer, "content": message.content, **more}

    def after_a_call(self, render: Render) -> str:
        """What a template writes between a call and its answer: where a base stops that has no other end."""
        if not (self.call and self.answer):
            return ""
        turns = [_USER, _called(_CALL, self.call)]
        called, answered = render(turns, None, False), render([*turns, _answer(self.answer)], None, False)
        return answered.removeprefix(called) if answered.startswith(called) else ""


def _answer(role: str) -> Turn:
    return {"role": role, "content": _ANSWER, "tool_call_id": "qzxqzxqzx", "name": _NAME}


def _called(message: Message, form: str) -> Turn:
    calls = json.loads(message.tool_calls)
    if form != METADATA:
        return {"role": "assistant", "content": message.content, "tool_calls": calls}
    if len(calls) > 1 or message.content:
        beside = f"{len(calls)} calls" if len(calls) > 1 else "text beside its call"
        raise BaseModelError(
            f"a turn has {beside}, but this base's chat template takes one call a turn and nothing else; "
            "divide the turn, or use another base"
        )
    function = calls[0]["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {"role": "assistant", "metadata": function["name"], "content": arguments}


def _given(turns: list[Turn], tools: list[Any], form: str) -> tuple[list[Turn], list[Any] | None]:
    if form == ARGUMENT:
        return turns, tools
    has_system = bool(turns) and turns[0]["role"] == "system"
    system = turns[0] if has_system else {"role": "system", "content": ""}
    return [{**system, "tools": tools}, *turns[has_system:]], None
