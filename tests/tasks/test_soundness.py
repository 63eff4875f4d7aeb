"""What is looked for before anything is trained, each with a made-up tokenizer or template that has it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from heptune import api, tasks
from heptune.core.errors import BaseModelError
from heptune.core.events import Event, Note
from heptune.data.readers import read
from heptune.data.record import Message, Record
from heptune.tasks.chat import Chat
from heptune.tasks.example import Example
from heptune.tasks.soundness import Ends, about_base, about_ends, ends_of
from heptune.tasks.template import ChatTemplate
from tiny import CHAT_TEMPLATE, IM_END, IM_START, tiny_model, tiny_tokenizer

TEMPLATE = ChatTemplate(tiny_tokenizer())
RECORD = Record(
    1,
    messages=(
        Message("user", "Hi"),
        Message("assistant", "Hello!"),
        Message("user", "Bye"),
        Message("assistant", "See you."),
    ),
)
BOS_FIRST = "{{ bos_token }}" + CHAT_TEMPLATE


def begin_of_sequence_tokenizer(*, automatic: bool) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    if automatic:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )
    return tokenizer


class TestEnds:
    def test_every_reply_ends_with_a_supervised_end(self) -> None:
        examples = Chat().encode(RECORD, 0, TEMPLATE, 200)
        assert ends_of(examples, TEMPLATE) == Ends(2, 0, 0)
        assert about_ends(Ends(2, 0, 0), 200) == []

    def test_a_reply_that_the_limit_cuts_is_counted(self) -> None:
        (whole,) = Chat().encode(RECORD, 0, TEMPLATE, 200)
        for limit in range(1, len(whole.tokens)):
            examples = Chat().encode(RECORD, 0, TEMPLATE, limit)
            ends = ends_of(examples, TEMPLATE)
            first, second = whole.supervised[limit - 1], whole.tokens[limit - 1] == IM_END
            assert ends.cut == (first and not second), limit
            assert ends.endless == 0
        (note,) = about_ends(Ends(2, 1, 0), 40)
        assert note == Note("1 of 2 replies are cut by the limit of 40 tokens: how they end is not learned", "warning")

    def test_a_reply_without_an_end_is_refused(self) -> None:
        (whole,) = Chat().encode(RECORD, 0, TEMPLATE, 200)
        for place in [t for t, token in enumerate(whole.tokens) if token == IM_END and whole.supervised[t]]:
            hidden = tuple(s and t != place for t, s in enumerate(whole.supervised))
            ends = ends_of([whole, Example(whole.tokens, hidden, 1)], TEMPLATE)
            assert ends == Ends(4, 0, 1)
            with pytest.raises(BaseModelError, match=r"1 of 4 replies do not end .* would not stop"):
                about_ends(ends, 200)

    def test_they_are_told_when_the_examples_are_made(self) -> None:
        heard: list[Event] = []
        (whole,) = Chat().encode(RECORD, 0, TEMPLATE, 200)
        tasks.encode(Chat(), [RECORD], TEMPLATE, len(whole.tokens) - 2, heard.append)
        texts = [event.text for event in heard if isinstance(event, Note)]
        assert any(text.startswith("1 of 2 replies are cut") for text in texts)
        broken = ChatTemplate(tiny_tokenizer())
        broken.stop_tokens = (IM_START,)
        with pytest.raises(BaseModelError, match="2 of 2 replies do not end"):
            tasks.encode(Chat(), [RECORD], broken, 200, heard.append)

    def test_a_tokenizer_that_reads_its_marks_as_text_is_refused(self) -> None:
        tokenizer = tiny_tokenizer()
        tokenizer.split_special_tokens = True
        assert len(tokenizer.encode("<|im_end|>", add_special_tokens=False)) > 1
        with pytest.raises(BaseModelError, match="reads its special tokens as plain text"):
            ChatTemplate(tokenizer)


class TestBase:
    def test_nothing_to_tell_of_a_sound_base(self) -> None:
        assert about_base("tiny", TEMPLATE) == []

    def test_a_pad_that_ends_replies_is_told(self) -> None:
        tokenizer = tiny_tokenizer()
        tokenizer.pad_token = "<|im_end|>"
        (note,) = about_base("tiny", ChatTemplate(tokenizer))
        assert note.level == "info" and note.text.startswith("tiny pads with <|im_end|>, which also ends a reply")
        tokenizer.pad_token = None
        assert about_base("tiny", ChatTemplate(tokenizer)) == []

    def test_the_default_template_is_told(self) -> None:
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = None
        (note,) = about_base("tiny", ChatTemplate(tokenizer))
        assert note.level == "warning" and "no chat template" in note.text

    @pytest.mark.parametrize(
        ("automatic", "text", "twice", "times"),
        [
            (True, BOS_FIRST, True, 1),
            (False, "{{ bos_token }}" + BOS_FIRST, True, 1),
            (True, "{{ bos_token }}" + BOS_FIRST, True, 1),
            (True, CHAT_TEMPLATE, False, 1),
            (False, BOS_FIRST, False, 1),
            (False, CHAT_TEMPLATE, False, 0),
        ],
    )
    def test_begin_of_sequence_stands_once(self, automatic: bool, text: str, twice: bool, times: int) -> None:
        tokenizer = begin_of_sequence_tokenizer(automatic=automatic)
        template = ChatTemplate(tokenizer, text)
        assert template.writes_bos_twice == twice
        told = [note.text for note in about_base("tiny", template)]
        assert told == [t for t in told if "<s> would stand twice" in t] and len(told) == twice
        prompt = template.prompt(RECORD.messages[:1])
        (segments,) = template.conversation(RECORD.messages)
        whole = [token for segment in segments for token in segment.tokens]
        for tokens in (prompt, whole):
            assert tokens[:times] == [tokenizer.bos_token_id] * times
            assert tokens.count(tokenizer.bos_token_id) == times


def test_check_tells_them(tmp_path: Path) -> None:
    tokenizer = begin_of_sequence_tokenizer(automatic=True)
    tokenizer.pad_token, tokenizer.chat_template = "<|im_end|>", BOS_FIRST
    base = tmp_path / "base"
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(base)
    tokenizer.save_pretrained(base)
    data = tmp_path / "talk.jsonl"
    lines = [json.dumps({"prompt": f"Say {n}.", "completion": f"It is {n}, as you said."}) for n in range(24)]
    data.write_text("\n".join(lines), "utf-8")
    template = ChatTemplate(tokenizer)
    (example,) = Chat().encode(read(data).records[0], 0, template, 500)
    found = api.check(data, base=str(base), max_length=len(example.tokens) - 1).report.findings
    texts = {(finding.severity, finding.text.split(",")[0]) for finding in found}
    assert ("info", "<s> would stand twice before a conversation") in texts
    assert any(severity == "info" and "pads with <|im_end|>" in text for severity, text in texts)
    assert any(severity == "warning" and "24 of 24 replies are cut" in text for severity, text in texts)
