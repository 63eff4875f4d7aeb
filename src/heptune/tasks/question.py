"""A question, perhaps about a passage, as it is put to a model, and what of it fits into the length limit.

The passage stands before the question, so that a forest computes it once for all questions about it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from heptune.core.errors import DataError
from heptune.data.record import Message
from heptune.tasks.template import ChatTemplate


@dataclass(frozen=True)
class Asked:
    """What is left of a question within the limit: its `tokens` as a prompt, and how many were `cut`."""

    instruction: str
    passage: str
    question: str
    tokens: tuple[int, ...]
    cut: int

    @property
    def messages(self) -> list[Message]:
        """The conversation that asks it."""
        return messages(self.instruction, self.passage, self.question)


def messages(instruction: str, passage: str, question: str) -> list[Message]:
    """The instruction, the passage where there is one, and the question, as one turn."""
    about = f"Passage: {passage}\n\n" if passage else ""
    return [Message("user", f"{instruction}\n\n{about}Question: {question}")]


def ask(
    instruction: str, passage: str, question: str, template: ChatTemplate, room: int, line: int, reserved: str
) -> Asked:
    """The question with as much of its passage as leaves the prompt at most `room` tokens.

    The passage keeps its beginning. Where the question alone is too long it keeps its beginning, and there is no
    passage. Raises DataError where not even an empty question fits; `reserved` says in words what else needs room.
    """

    def prompt(passage: str, question: str) -> list[int]:
        return template.prompt(messages(instruction, passage, question))

    whole = prompt(passage, question)
    if len(whole) <= room:
        return Asked(instruction, passage, question, tuple(whole), 0)
    kept = _beginning(passage, lambda text: len(prompt(text, question)), room)
    asked = question
    if kept is None:
        kept, beginning = "", _beginning(question, lambda text: len(prompt("", text)), room)
        if beginning is None:
            raise DataError(
                f"the instruction alone needs {len(prompt('', ''))} tokens, but with {reserved} there is room for "
                f"{room}; allow longer examples (--max-length) or give a shorter instruction",
                line=line,
            )
        asked = beginning
    tokens = prompt(kept, asked)
    return Asked(instruction, kept, asked, tuple(tokens), len(whole) - len(tokens))


def _beginning(text: str, length: Callable[[str], int], room: int) -> str | None:
    """The longest beginning known to take at most `room` tokens; None where not even an empty one does.

    Bisection over characters: cutting tokens could tear a character or the template's own marks apart. The result
    always fits, also where the number of tokens is not quite monotone.
    """
    if length("") > room:
        return None
    fits, too_long = 0, len(text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if length(text[:middle]) <= room:
            fits = middle
        else:
            too_long = middle
    return text[:fits]
