"""Many replies at once: the same as one after the other, whatever stands beside them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest

from heptune import techniques
from heptune.core.errors import BaseModelError
from heptune.core.events import Event, Progress
from heptune.data.record import Message
from heptune.engine.forward import Forward
from heptune.models.anatomy import dissect
from heptune.scoring import generate
from heptune.scoring.generate import Sampling, replies, reply
from heptune.scoring.grammar import Guide, Vocabulary
from heptune.tasks.template import ChatTemplate
from tiny import FAMILIES, tiny_model, tiny_tokenizer

TEMPLATE = ChatTemplate(tiny_tokenizer())
PASSAGE = "A shared instruction stands before every example. "
ASKED = (
    PASSAGE + "Where is the river?",
    PASSAGE + "Who wrote the book, and when?",
    PASSAGE,
    "Hi",
    "Hi",
    PASSAGE + "Where is the river?" * 4,
)
CONVERSATIONS = [[Message("user", text)] for text in ASKED]
CONVERSATIONS.append([*CONVERSATIONS[0], Message("assistant", "Here."), Message("user", "Sure?")])
TOKENS = 12


def one_by_one(forward: Forward, template: ChatTemplate = TEMPLATE) -> list[str]:
    sampling = Sampling(max_tokens=TOKENS)
    return [reply(forward.anatomy, template, conversation, sampling) for conversation in CONVERSATIONS]


@pytest.mark.parametrize("family", FAMILIES)
def test_replies_are_those_of_transformers(family: str) -> None:
    forward = Forward(dissect(tiny_model(family, initializer_range=0.2).double()))
    assert forward.attends_over_forests
    seen: list[Event] = []
    said = replies(forward, TEMPLATE, CONVERSATIONS, TOKENS, "answering", seen.append)
    assert said == one_by_one(forward) and len(set(said)) > 2
    assert isinstance(seen[-1], Progress) and (seen[-1].done, seen[-1].total) == (7, 7)


@pytest.mark.parametrize(
    ("technique", "settings"),
    [
        ("prompt", {"virtual_tokens": 5}),
        ("p_tuning", {"virtual_tokens": 5}),
        ("p_tuning", {"prompt_template": "{p:3} text {p:2}"}),
        ("prefix", {"virtual_tokens": 5}),
        ("lora", {}),
    ],
)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_replies_of_tuned_models(family: str, technique: str, settings: dict[str, Any]) -> None:
    anatomy = dissect(tiny_model(family).double())
    forward = Forward(anatomy)
    plain = one_by_one(forward)
    attached = techniques.build(technique, settings).attach(anatomy, 3, TEMPLATE.encode)
    for _, parameter in sorted(attached.parameters.items()):
        parameter.data.add_(0.5 * (1 + parameter.data.abs()))
    said = replies(forward, TEMPLATE, CONVERSATIONS, TOKENS, "answering")
    assert said == one_by_one(forward) != plain


def test_what_stands_beside_a_prompt_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Forward(dissect(tiny_model("llama").double()))
    together = replies(forward, TEMPLATE, CONVERSATIONS, TOKENS, "answering")
    assert replies(forward, TEMPLATE, CONVERSATIONS[::-1], TOKENS, "answering") == together[::-1]
    monkeypatch.setattr(generate, "ROWS_AT_ONCE", 1)
    assert replies(forward, TEMPLATE, CONVERSATIONS, TOKENS, "answering") == together
    assert replies(forward, TEMPLATE, [], TOKENS, "answering") == []


def test_a_reply_stops_where_the_turn_or_the_positions_end() -> None:
    longest = max(len(TEMPLATE.prompt(conversation)) for conversation in CONVERSATIONS)
    forward = Forward(dissect(tiny_model("llama", max_position_embeddings=longest + 5).double()))
    said = replies(forward, TEMPLATE, CONVERSATIONS, TOKENS, "answering")
    assert said == one_by_one(forward)
    ends = ChatTemplate(tiny_tokenizer())
    ends.stop_tokens = (*TEMPLATE.stop_tokens, *TEMPLATE.encode("me"))
    assert replies(forward, ends, CONVERSATIONS, TOKENS, "answering") == one_by_one(forward, ends) != said
    with pytest.raises(BaseModelError, match="none is left for a reply"):
        replies(forward, TEMPLATE, [[Message("user", PASSAGE * 20)]], TOKENS, "answering")


@dataclass(frozen=True)
class _Letters:
    """So many letters a and b."""

    count: int
    start = 0

    def following(self, state: int) -> Iterable[int]:
        return b"ab" if state < self.count else b""

    def step(self, state: int, byte: int) -> int:
        return state + 1

    def cost(self, state: int) -> float:
        return self.count - state


@pytest.mark.parametrize("family", FAMILIES)
def test_guided_replies_are_those_one_by_one(family: str) -> None:
    forward = Forward(dissect(tiny_model(family, initializer_range=0.2).double()))
    vocabulary = Vocabulary.of(TEMPLATE.tokenizer)

    def guide(number: int) -> Guide:
        return Guide(_Letters(number % 4 * 4), vocabulary)

    said = replies(forward, TEMPLATE, CONVERSATIONS, TOKENS, "answering", guide=guide)
    sampling = Sampling(max_tokens=TOKENS)
    for number, conversation in enumerate(CONVERSATIONS):
        assert said[number] == reply(forward.anatomy, TEMPLATE, conversation, sampling, guide=guide(number))
        assert len(said[number]) == number % 4 * 4 and set(said[number]) <= set("ab")
    with pytest.raises(BaseModelError, match="12 tokens are left for the reply, but the shortest valid one has 16"):
        replies(forward, TEMPLATE, CONVERSATIONS, TOKENS, "answering", guide=lambda _: Guide(_Letters(16), vocabulary))


def test_an_architecture_that_cannot_attend_over_a_forest(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Forward(dissect(tiny_model("llama").double()))
    together = replies(forward, TEMPLATE, CONVERSATIONS, TOKENS, "answering")
    monkeypatch.setattr(Forward, "attends_over_forests", property(lambda self: False))
    monkeypatch.setattr(generate, "continued", None)
    seen: list[Event] = []
    assert replies(forward, TEMPLATE, CONVERSATIONS, TOKENS, "answering", seen.append) == together
    assert len(seen) == len(CONVERSATIONS)
