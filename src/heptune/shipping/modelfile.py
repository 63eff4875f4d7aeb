"""Ollama's Modelfile: which file, how a conversation is written, where a reply ends.

Ollama writes conversations by Go templates, and of a GGUF's own Jinja templates it knows only those that it has a Go
version of. A template that puts something before and behind what each role says is found out by probing and written in
Go; any other is left to Ollama, and the Modelfile says so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from heptune.core.errors import BaseModelError
from heptune.data.record import Message
from heptune.models.anatomy import Anatomy
from heptune.shipping.parity import CONVERSATIONS
from heptune.tasks.chat import Chat
from heptune.tasks.template import ChatTemplate

# What the roles say in the probes: letters that no template trims or escapes.
_SYSTEM, _FIRST, _REPLY, _SECOND = "qzxs", "qzxu", "qzxa", "qzxv"


@dataclass(frozen=True)
class Turns:
    """What a template puts around what is said: by role before and behind it; `alone` at the beginning where no system
    message stands there, and `opening` where the assistant is to speak."""

    around: dict[str, tuple[str, str]]
    alone: str
    opening: str

    @classmethod
    def of(cls, template: ChatTemplate) -> Turns | None:
        """Found by probing and proven on the fixed conversations; None for a template that is not of this kind."""
        try:
            first = template.written([Message("user", _FIRST)], False)
            asked = template.written([Message("user", _FIRST)], True)
            turns = [Message("user", _FIRST), Message("assistant", _REPLY)]
            answered = template.written(turns, False)
            again = template.written([*turns, Message("user", _SECOND)], False)
            told = template.written([Message("system", _SYSTEM), Message("user", _FIRST)], False)
            before, behind = _around(first, _FIRST)
            _, end = _around(answered, _REPLY)
            inner = again[again.index(_REPLY) + len(_REPLY) : again.index(_SECOND)]
            user = inner.removeprefix(end)
            start = answered[answered.index(_FIRST) + len(_FIRST) + len(behind) : answered.index(_REPLY)]
            system, between = told[: told.index(_SYSTEM)], told[told.index(_SYSTEM) + len(_SYSTEM) : told.index(_FIRST)]
            around = {
                "system": (system, between.removesuffix(user)),
                "user": (user, behind),
                "assistant": (start, end),
            }
            found = cls(around, before.removesuffix(user), asked.removeprefix(first))
            alike = all(
                found.written(each, ask) == template.written(each, ask)
                for each in CONVERSATIONS
                for ask in (True, False)
            )
        except (BaseModelError, ValueError):
            return None
        return found if alike and "{{" not in found.all and '"""' not in found.all else None

    @property
    def all(self) -> str:
        """Everything that it writes of its own."""
        return "".join([self.alone, self.opening, *(part for pair in self.around.values() for part in pair)])

    def written(self, messages: Sequence[Message], generate: bool) -> str:
        """A conversation, as Ollama would write it."""
        text = "" if messages[0].role == "system" else self.alone
        for message in messages:
            before, behind = self.around[message.role]
            text += before + message.content + behind
        return text + (self.opening if generate else "")

    def in_go(self) -> str:
        """As a Go template over Ollama's `.Messages`."""
        branches = ""
        for number, (role, (before, behind)) in enumerate(self.around.items()):
            condition = f'{"else if" if number else "if"} eq .Role "{role}"'
            branches += f"{{{{ {condition} }}}}{before}{{{{ .Content }}}}{behind}"
        alone = ""
        if self.alone:
            alone = f'{{{{ if ne (index .Messages 0).Role "system" }}}}{self.alone}{{{{ end }}}}'
        return f"{alone}{{{{ range .Messages }}}}{branches}{{{{ end }}}}{{{{ end }}}}{self.opening}"


def of_model(file: str, template: ChatTemplate, task: Any, context: int) -> str:
    """The Modelfile of a whole model; `context` is the tokens of the longest conversation."""
    return f"FROM ./{file}\n{_speaking(template, task, context)}"


def of_lora(file: str, base: str, template: ChatTemplate, task: Any, context: int) -> str:
    """The Modelfile of a LoRA on a base that lies beside it."""
    head = f"# base.gguf is {base} as a GGUF file: put it into this folder, or name where it is.\n"
    return f"{head}FROM ./base.gguf\nADAPTER ./{file}\n{_speaking(template, task, context)}"


def context_of(anatomy: Anatomy, longest: int) -> int:
    """Room for a conversation: what the run was trained with, 2048 tokens at least, if the base has as many."""
    return min(max(longest, 2048), anatomy.shape.max_positions or 2048)


def _speaking(template: ChatTemplate, task: Any, context: int) -> str:
    turns = Turns.of(template)
    if turns is None:
        text = "# The base's chat template is more than Ollama's templates say; what it finds in the file is used.\n"
    else:
        bos = str(template.tokenizer.bos_token or "") if template.bos is not None else ""
        text = f'TEMPLATE """{turns.in_go().removeprefix(bos) if bos else turns.in_go()}"""\n'
    if isinstance(task, Chat) and task.system and '"""' not in task.system:
        text += f'SYSTEM """{task.system}"""\n'
    for stop in template.stop_tokens:
        text += f"PARAMETER stop {json.dumps(template.tokenizer.decode([stop]), ensure_ascii=False)}\n"
    return f"{text}PARAMETER num_ctx {context}\n"


def _around(text: str, said: str) -> tuple[str, str]:
    before, found, behind = text.partition(said)
    if not found:
        raise ValueError(said)
    return before, behind
