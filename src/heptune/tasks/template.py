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

import contextlib
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from heptune.core.errors import BaseModelError
from heptune.data.record import Message, Record
from heptune.tasks.tools import ToolForm

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
    - `both_ways`: whether the base is an encoder (see `PlainText`)
    - `stop_tokens`: the tokens that end a reply: end-of-sequence, and the template's end of turn
    - `bos`, `eos`: what the tokenizer puts before a plain text, and what ends one; None where there is no such token
    - `tool_form`: how it takes tools, calls and their answers; `no_tools`: what tells it that there are none

    Raises BaseModelError when the template cannot be rendered, or when nothing can end a reply.
    """

    both_ways = False

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str | None = None) -> None:
        self.tokenizer = tokenizer
        own = tokenizer.get_chat_template() if text is None and tokenizer.chat_template else text
        self.text: str = own or DEFAULT_TEMPLATE
        self.is_default = self.text == DEFAULT_TEMPLATE
        self._replies: dict[str, tuple[int, ...]] = {}
        self._joins_first_word = self._starts_with_space_mark()
        self.bos = self._automatic_bos()
        self.eos: int | None = tokenizer.eos_token_id
        self.no_tools: list[Any] | None = None
        self.no_tools = self._absent_tools()
        self._has_system = self._shows("system", [Message("system", _PROBE), Message("user", "hello")])
        self._end, self.stop_tokens = self._find_ends()
        self._require_an_end()

    @classmethod
    def for_records(cls, tokenizer: PreTrainedTokenizerBase, records: Iterable[Record]) -> ChatTemplate:
        """The tokenizer's own template; of several (Hermes 2 Pro's) the one for tools where the records have any."""
        several = isinstance(tokenizer.chat_template, dict) and "tool_use" in tokenizer.chat_template
        with_tools = several and any(r.tools or any(m.tool_calls for m in r.messages) for r in records)
        return cls(tokenizer, tokenizer.get_chat_template("tool_use") if with_tools else None)

    @cached_property
    def tool_form(self) -> ToolForm:
        """How this template takes tools, calls and their answers."""
        return ToolForm.of(self.text, self._fill)

    @cached_property
    def writes_bos_twice(self) -> bool:
        """Whether the begin-of-sequence token would stand twice if the tokenizer read the template's text as it reads
        any text. Here it stands once."""
        begun = self._ids(self._render([Message("user", _PROBE)], generate=True))
        automatic = [] if self.bos is None else [self.bos]
        bos = self.tokenizer.bos_token_id
        return bos is not None and [*automatic, *begun][:2] == [bos, bos]

    def prompt(self, messages: Sequence[Message], tools: str = "") -> list[int]:
        """The tokens up to where the assistant begins to speak, after `messages`. `tools` as in `Record.tools`."""
        segments = self._segments(self._prompt_parts(self.prepared(messages), tools))
        return [token for segment in segments for token in segment.tokens]

    def reply(self, text: str) -> list[int]:
        """The supervised tokens of one reply: `text` as the template writes it, and the end of the turn."""
        if text not in self._replies:
            messages = [Message("user", _PROBE), Message("assistant", text)]
            written = self._reply_text(messages, self._render(messages[:1], generate=True))
            self._replies[text] = tuple(self._encode(written, at_start=False))
        return list(self._replies[text])

    def conversation(self, messages: Sequence[Message], tools: str = "") -> list[list[Segment]]:
        """The training sequences of a conversation, each a list of segments, unsupervised and supervised in turn.

        One sequence where the template renders every reply as it was said; otherwise one per reply, each being
        `prompt(messages before it)` and the reply. A first message by the assistant is context: nothing asks for it.
        What follows the last reply is left out. Without any reply the one sequence has nothing supervised. `tools` as
        in `Record.tools`.
        """
        messages = self.prepared(messages)
        replies = _reply_places(messages)
        if not replies:
            return [self._segments([(self._render(messages, generate=False, tools=tools), False)])]
        parts, _ = self._split(messages, self._render(messages, generate=False, tools=tools), tools)
        if parts is not None:
            return [self._segments(parts)]
        sequences = []
        for i in replies:
            before = self._segments(self._prompt_parts(messages[:i], tools))
            opening = Segment(tuple(token for segment in before for token in segment.tokens), False)
            prompt = self._render(messages[:i], generate=True, tools=tools)
            written = self._reply_text(messages[: i + 1], prompt, tools)
            sequences.append([opening, Segment(tuple(self._encode(written, at_start=False)), True)])
        return sequences

    def prepared(self, messages: Sequence[Message]) -> list[Message]:
        """`messages` as this template can take them: a system message it has no place for goes into the first turn."""
        prepared = list(messages)
        if prepared and prepared[0].role == "system" and not self._has_system:
            system, *rest = prepared
            if rest and rest[0].role == "user":
                return [Message("user", f"{system.content}\n\n{rest[0].content}"), *rest[1:]]
            return [Message("user", system.content), *rest]
        return prepared

    def written(self, messages: Sequence[Message], generate: bool, tools: str = "") -> str:
        """A conversation as text; with `generate` up to where the assistant begins to speak. `tools` as in
        `Record.tools`."""
        return self._render(messages, generate=generate, tools=tools)

    @property
    def source(self) -> str:
        """The Jinja source that writes as this template does, wherever it is rendered: with its fixed date."""
        return _FIXED_DATE + self.text if "strftime_now" in self.text else self.text

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

    def _prompt_parts(self, messages: list[Message], tools: str) -> list[tuple[str, bool]]:
        """The prompt's text, cut at the replies in it exactly as `conversation` cuts it."""
        whole = self._render(messages, generate=True, tools=tools)
        parts, at = self._split(messages, whole, tools)
        return [*parts, (whole[at:], False)] if parts is not None else [(whole, False)]

    def _split(self, messages: list[Message], whole: str, tools: str) -> tuple[list[tuple[str, bool]] | None, int]:
        """Cut `whole` into (text, supervised) up to the end of its last reply, and say where that is.

        None where some reply does not stand in `whole` as it was said.
        """
        parts: list[tuple[str, bool]] = []
        at = 0
        for i in _reply_places(messages):
            before = self._render(messages[:i], generate=True, tools=tools)
            written = self._reply_text(messages[: i + 1], before, tools)
            if len(before) < at or not whole.startswith(before + written):
                return None, 0
            parts += [(before[at:], False), (written, True)]
            at = len(before) + len(written)
        return parts, at

    def _reply_text(self, messages: list[Message], prompt: str, tools: str = "") -> str:
        """The last message, which is the assistant's, as it follows `prompt`: up to and with the end of the turn."""
        rendered = self._render(messages, generate=False, tools=tools)
        if rendered.startswith(prompt):
            written = rendered[len(prompt) :]
        elif messages[-1].tool_calls:  # calls begin where other replies do, whatever the prompt opens behind that
            other = self._render([*messages[:-1], Message("assistant", _PROBE)], generate=False, tools=tools)
            same = os.path.commonprefix([rendered, other[: other.rfind(_PROBE)]])  # noqa: RUF071 (by character)
            written = rendered[len(same) :]
        else:  # the prompt opens what finished turns do not show, such as DeepSeek-R1's <think>
            opened = prompt[len(os.path.commonprefix([prompt, rendered])) :]  # noqa: RUF071 (by character, as wanted)
            written = messages[-1].content.strip().removeprefix(opened.strip()) + self._end
        stop = written.rfind(self._end) if self._end else -1
        if stop >= 0:
            return written[: stop + len(self._end)]
        return written.rstrip() + self._eos_text()

    def _eos_text(self) -> str:
        return str(self.tokenizer.eos_token or "")

    def _render(self, messages: Sequence[Message], generate: bool, tools: str = "") -> str:
        if not tools and not any(message.tool_calls or message.role == "tool" for message in messages):
            return self._fill([{"role": m.role, "content": m.content} for m in messages], None, generate)
        turns, given = self.tool_form.turns(messages, tools)
        return self._fill(turns, given, generate)

    def _fill(self, turns: list[dict[str, Any]], tools: list[Any] | None, generate: bool) -> str:
        import jinja2  # here, so that the command line starts without it

        try:
            return str(
                self.tokenizer.apply_chat_template(
                    turns,
                    tools=self.no_tools if tools is None else tools,
                    chat_template=self.source,
                    tokenize=False,
                    add_generation_prompt=generate,
                )
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError) as error:
            roles = ", ".join(turn["role"] for turn in turns) or "none"
            raise BaseModelError(
                f"this base's chat template cannot render a conversation with the roles: {roles} ({error}); "
                "change the order of the turns or use another base"
            ) from error

    def _absent_tools(self) -> list[Any] | None:
        """What says that there are no tools: nothing, or an empty list where a template goes through it (Hermes 2)."""
        empty: list[Any] = []
        for absent in (None, empty):
            with contextlib.suppress(BaseModelError):
                self._fill([{"role": "user", "content": _PROBE}], absent, True)
                return absent
        return None

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
            while n == 0 and tokens[:2] == [self.tokenizer.bos_token_id] * 2:  # by the template and by the tokenizer
                tokens = tokens[1:]
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
        if not end:
            stops |= {i for i in self._ids(self.tool_form.after_a_call(self._fill).lstrip())[:1] if i in added}
        return end, tuple(sorted(stops))

    def _require_an_end(self) -> None:
        """A tuned model says what it was shown: without an end that is one token it would never stop."""
        last = self.reply(_PROBE)[-1:]
        if last and last[0] not in self.stop_tokens:
            raise BaseModelError(
                f"a reply would end with {self.tokenizer.decode(last)!r}, which is no token that ends a turn: this "
                "base's tokenizer reads its special tokens as plain text; set `split_special_tokens` to false in its "
                "tokenizer_config.json"
            )


class PlainText:
    """What tasks with a linear head ask of `ChatTemplate`, for a base that does not speak: an encoder."""

    text = ""
    both_ways = True
    is_default = False
    writes_bos_twice = False
    stop_tokens: tuple[int, ...] = ()

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
