"""How a conversation becomes tokens, with the parts marked that the model learns to say.

A base brings its own chat template (Jinja source in its tokenizer). It is frozen into the artifact and used the same
when training, chatting and scoring. Three rules keep those three alike:

- Text is cut where the assistant begins to speak and where it ends, and each part is turned into tokens alone. So
  training sees the very tokens that generation continues from, and `prompt + reply` is the training sequence.
- What is supervised is the rendering of a reply up to and including the token that ends the turn. Where the
  template writes no such token (GLM-4) the tokenizer's end-of-sequence token is added: a tuned model has to stop.
- Some templates render earlier turns otherwise than the last one (Qwen3 drops their thinking). What a model says last
  is then not what stands there in the next turn, so every reply becomes a training sequence of its own.

A template that prints today's date is given a fixed one: the same run must give the same tokens tomorrow.
Text that contains a special token's spelling is read as that token, as transformers' own `apply_chat_template` does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import jinja2

from heptune.core.errors import BaseModelError
from heptune.data.record import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] }}{{ eos_token }}{{ '\\n' }}"
    "{% else %}{{ raise_exception('only the roles system, user and assistant are supported') }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For a tokenizer without a template. The prompt ends before the space, which byte-level vocabularies keep with the
word that follows it."""

# Llama 3 and SmolLM3 print the date. A macro of the same name stands before the environment's function. The date is
# the one that Llama 3.1's template falls back to.
_FIXED_DATE = (
    "{% macro strftime_now(format) %}{{ format | replace('%d', '26') | replace('%b', 'Jul') | replace('%B', 'July')"
    " | replace('%m', '07') | replace('%Y', '2024') | replace('%y', '24') | replace('%A', 'Friday')"
    " | replace('%a', 'Fri') | replace('%H', '00') | replace('%M', '00') | replace('%S', '00') }}{% endmacro %}"
)

_PROBE = "qzx"  # content of the probe conversations; lower-case letters, so that no template trims or escapes it


class Segment(NamedTuple):
    """A run of tokens of a conversation; `supervised` says whether the model learns to say it."""

    tokens: tuple[int, ...]
    supervised: bool


class ChatTemplate:
    """The chat template of one tokenizer.

    - `text`: the Jinja source to use; None takes the tokenizer's own, or `DEFAULT_TEMPLATE` where it has none
    - `is_default`: whether `DEFAULT_TEMPLATE` is in use
    - `stop_tokens`: the tokens that end a reply: end-of-sequence, and the template's end of turn
    - `bos`, `eos`: what the tokenizer puts before a plain text, and what ends one; None where there is no such token

    Raises BaseModelError when the template cannot be rendered, or when nothing can end a reply.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str | None = None) -> None:
        self.tokenizer = tokenizer
        own = tokenizer.get_chat_template() if text is None and tokenizer.chat_template else text
        self.text: str = own or DEFAULT_TEMPLATE
        self.is_default = self.text == DEFAULT_TEMPLATE
        self._replies: dict[str, tuple[int, ...]] = {}
        self._joins_first_word = self._starts_with_space_mark()
        self.bos = self._automatic_bos()
        self.eos: int | None = tokenizer.eos_token_id
        self._has_system = self._shows("system", [Message("system", _PROBE), Message("user", "hello")])
        self._has_tool = self._shows(
            "tool", [Message("user", "hello"), Message("assistant", "wait"), Message("tool", _PROBE)]
        )
        self._end, self.stop_tokens = self._find_ends()

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens up to where the assistant begins to speak, after `messages`."""
        segments = self._segments(self._prompt_parts(self._prepared(messages)))
        return [token for segment in segments for token in segment.tokens]

    def reply(self, text: str) -> list[int]:
        """The supervised tokens of one reply: `text` as the template writes it, and the end of the turn."""
        if text not in self._replies:
            messages = [Message("user", _PROBE), Message("assistant", text)]
            written = self._reply_text(messages, self._render(messages[:1], generate=True))
            self._replies[text] = tuple(self._encode(written, at_start=False))
        return list(self._replies[text])

    def conversation(self, messages: Sequence[Message]) -> list[list[Segment]]:
        """The training sequences of a conversation, each a list of segments, unsupervised and supervised in turn.

        One sequence where the template renders every reply as it was said; otherwise one per reply, each being
        `prompt(messages before it)` and the reply. A first message by the assistant is context: nothing asks for it.
        What follows the last reply is left out. Without any reply the one sequence has nothing supervised.
        """
        messages = self._prepared(messages)
        replies = _reply_places(messages)
        if not replies:
            return [self._segments([(self._render(messages, generate=False), False)])]
        parts, _ = self._split(messages, self._render(messages, generate=False))
        if parts is not None:
            return [self._segments(parts)]
        sequences = []
        for i in replies:
            before = self._segments(self._prompt_parts(messages[:i]))
            opening = Segment(tuple(token for segment in before for token in segment.tokens), False)
            written = self._reply_text(messages[: i + 1], self._render(messages[:i], generate=True))
            sequences.append([opening, Segment(tuple(self._encode(written, at_start=False)), True)])
        return sequences

    def encode(self, text: str) -> list[int]:
        """The tokens of a plain text, without the template and without special tokens."""
        return self._ids(text)

    def document(self, text: str, max_length: int) -> tuple[list[int], int]:
        """A plain text as the base reads one, without the template: its tokens, and how many the limit cut off."""
        tokens = [*([] if self.bos is None else [self.bos]), *self._ids(text)]
        return tokens[:max_length], max(0, len(tokens) - max_length)

    def located(self, text: str, max_length: int) -> tuple[list[int], list[tuple[int, int]], int]:
        """The same, and for each token the characters [start, end) of the text that it stands for (0, 0: none)."""
        lead = [] if self.bos is None else [self.bos]
        return _located(self.tokenizer, text, lead, [], max_length)

    # ---- text

    def _prompt_parts(self, messages: list[Message]) -> list[tuple[str, bool]]:
        """The prompt's text, cut at the replies in it exactly as `conversation` cuts it."""
        whole = self._render(messages, generate=True)
        parts, at = self._split(messages, whole)
        return [*parts, (whole[at:], False)] if parts is not None else [(whole, False)]

    def _split(self, messages: list[Message], whole: str) -> tuple[list[tuple[str, bool]] | None, int]:
        """Cut `whole` into (text, supervised) up to the end of its last reply, and say where that is.

        None where some reply does not stand in `whole` as it was said.
        """
        parts: list[tuple[str, bool]] = []
        at = 0
        for i in _reply_places(messages):
            before = self._render(messages[:i], generate=True)
            written = self._reply_text(messages[: i + 1], before)
            if len(before) < at or not whole.startswith(before + written):
                return None, 0
            parts += [(before[at:], False), (written, True)]
            at = len(before) + len(written)
        return parts, at

    def _reply_text(self, messages: list[Message], prompt: str) -> str:
        """The last message, which is the assistant's, as it follows `prompt`: up to and with the end of the turn."""
        rendered = self._render(messages, generate=False)
        if rendered.startswith(prompt):
            written = rendered[len(prompt) :]
        else:  # the prompt opens what finished turns do not show, such as DeepSeek-R1's <think>
            opened = prompt[len(os.path.commonprefix([prompt, rendered])) :]  # noqa: RUF071 (by character, as wanted)
            written = messages[-1].content.strip().removeprefix(opened.strip()) + self._end
        stop = written.rfind(self._end) if self._end else -1
        if stop >= 0:
            return written[: stop + len(self._end)]
        return written.rstrip() + self._eos_text()

    def _eos_text(self) -> str:
        return str(self.tokenizer.eos_token or "")

    def _prepared(self, messages: Sequence[Message]) -> list[Message]:
        """`messages` as this template can take them: a system message it has no place for goes into the first turn."""
        prepared = list(messages)
        if any(message.role == "tool" for message in prepared) and not self._has_tool:
            raise BaseModelError(
                "the conversation has a turn of the role 'tool', but this base's chat template has no place for tool "
                "turns; leave such conversations out or use a base whose template knows tools"
            )
        if prepared and prepared[0].role == "system" and not self._has_system:
            system, *rest = prepared
            if rest and rest[0].role == "user":
                return [Message("user", f"{system.content}\n\n{rest[0].content}"), *rest[1:]]
            return [Message("user", system.content), *rest]
        return prepared

    def _render(self, messages: Sequence[Message], generate: bool) -> str:
        text = _FIXED_DATE + self.text if "strftime_now" in self.text else self.text
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    turns, chat_template=text, tokenize=False, add_generation_prompt=generate
                )
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError) as error:
            roles = ", ".join(message.role for message in messages) or "none"
            raise BaseModelError(
                f"this base's chat template cannot render a conversation with the roles: {roles} ({error}); "
                "change the order of the turns or use another base"
            ) from error

    def _shows(self, role: str, messages: list[Message]) -> bool:
        try:
            return _PROBE in self._render(messages, generate=True)
        except BaseModelError:
            return False

    # ---- tokens

    def _segments(self, parts: list[tuple[str, bool]]) -> list[Segment]:
        segments = []
        for n, (text, supervised) in enumerate(parts):
            tokens = self._encode(text, at_start=n == 0)
            if n == 0 and self.bos is not None and tokens[:1] != [self.bos]:
                tokens = [self.bos, *tokens]
            segments.append(Segment(tuple(tokens), supervised))
        return segments

    def _encode(self, text: str, at_start: bool) -> list[int]:
        """The tokens of `text` alone.

        SentencePiece vocabularies (Llama 2, Mistral, Phi 3) put a space before the first word of whatever they are
        given. Inside a conversation that space would be one too many, so the text is read behind a line break there.
        """
        if at_start or not self._joins_first_word:
            return self._ids(text)
        anchor, joined = self._ids("\n"), self._ids("\n" + text)
        return joined[len(anchor) :] if joined[: len(anchor)] == anchor else self._ids(text)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def _starts_with_space_mark(self) -> bool:
        first = self._ids(_PROBE)[:1]
        return bool(first) and str(self.tokenizer.convert_ids_to_tokens(first)[0]).startswith("\u2581")

    def _automatic_bos(self) -> int | None:
        """The begin-of-sequence token, where the tokenizer puts one before a plain text."""
        bos = self.tokenizer.bos_token_id
        return bos if bos is not None and self.tokenizer.encode(_PROBE)[:1] == [bos] else None

    def _find_ends(self) -> tuple[str, tuple[int, ...]]:
        """The text that ends a turn ('' where the template writes none), and all tokens that end a reply."""
        turns = [Message("user", "hello"), Message("assistant", _PROBE), Message("user", "hello")]
        rendered = self._render(turns[:2], generate=False)
        if _PROBE not in rendered:
            raise BaseModelError(
                "this base's chat template leaves out what the assistant says; give it another template"
            )
        added = {i: str(token) for i, token in self.tokenizer.added_tokens_decoder.items() if str(token).strip()}
        ends = [i for i in self._ids(rendered.rpartition(_PROBE)[2]) if i in added][:1]
        end = added[ends[0]] if ends else ""
        stops = {*ends, *([] if self.eos is None else [self.eos])}
        if not stops:
            raise BaseModelError(
                "nothing can end a reply: the tokenizer has no end-of-sequence token and the chat template writes no "
                "end of turn; set `eos_token` in the base's tokenizer_config.json"
            )
        # A base without an end of turn stops where the next turn's mark would stand (GLM-4: <|user|>).
        following = self._render(turns, generate=False).rpartition(_PROBE)[2].lstrip()
        stops |= {i for i in self._ids(following)[:1] if i in added}
        return end, tuple(sorted(stops))


class PlainText:
    """What tasks with a linear head ask of `ChatTemplate`, for a base that does not speak: an encoder."""

    text = ""
    is_default = False

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._lead, self._end = _surroundings(tokenizer)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text without special tokens."""
        return list(self.tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def document(self, text: str, max_length: int) -> tuple[list[int], int]:
        """A text between the special tokens that the encoder was trained with ([CLS] ... [SEP]); what the limit cut
        off is counted."""
        own = self.encode(text)
        room = max_length - len(self._lead) - len(self._end)
        return [*self._lead, *own[:room], *self._end], max(0, len(own) - room)

    def located(self, text: str, max_length: int) -> tuple[list[int], list[tuple[int, int]], int]:
        """The same, and for each token the characters [start, end) of the text that it stands for (0, 0: none)."""
        return _located(self.tokenizer, text, self._lead, self._end, max_length)

    @property
    def prompt(self) -> NoReturn:
        """Nothing is asked of an encoder in words."""
        raise BaseModelError(
            "this base is an encoder: it reads texts and cannot answer in words. With a linear head it can learn label "
            "(classes of a text) and tag (entities): choose --task label or --task tag, or another base"
        )

    reply = conversation = prompt


def _located(
    tokenizer: PreTrainedTokenizerBase, text: str, lead: list[int], end: list[int], max_length: int
) -> tuple[list[int], list[tuple[int, int]], int]:
    if not tokenizer.is_fast:
        raise BaseModelError(
            "this base's tokenizer does not tell which characters a token stands for (it is no fast tokenizer), so "
            "entities cannot be tagged with it; extract them in words, or take another base"
        )
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    own, offsets = list(found["input_ids"]), [(int(a), int(b)) for a, b in found["offset_mapping"]]
    room = max_length - len(lead) - len(end)
    none = (0, 0)
    places = [*[none] * len(lead), *offsets[:room], *[none] * len(end)]
    return [*lead, *own[:room], *end], places, max(0, len(own) - room)


def _surroundings(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens before and behind a single text."""
    inner = tokenizer.encode(_PROBE, add_special_tokens=False)
    whole = tokenizer.encode(_PROBE)
    start = next((i for i in range(len(whole)) if whole[i : i + len(inner)] == inner), 0)
    return whole[:start], whole[start + len(inner) :]


def _reply_places(messages: Sequence[Message]) -> list[int]:
    return [i for i, message in enumerate(messages) if message.role == "assistant" and i > 0]
