from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heptune import tasks
from heptune.core.errors import DataError, UsageError
from heptune.data.record import Message, Record
from heptune.tasks.chat import Chat
from heptune.tasks.classify import Classify
from heptune.tasks.example import Example
from heptune.tasks.options import TaskOptions
from heptune.tasks.template import ChatTemplate
from tiny import tiny_tokenizer

TEMPLATE = ChatTemplate(tiny_tokenizer())
GLM4 = ChatTemplate(
    tiny_tokenizer(),
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}",
)
SENTIMENT = Classify(("negative", "positive"), "Which label fits?")


def labelled(text: str, label: str, line: int = 1) -> Record:
    return Record(line=line, text=text, label=label)


def conversation(*contents: str, line: int = 1) -> Record:
    roles = ("user", "assistant")
    return Record(line=line, messages=tuple(Message(roles[n % 2], text) for n, text in enumerate(contents)))


def marked(example: Example) -> str:
    """The text with every run of supervised tokens in «…»."""
    lead = TEMPLATE.tokenizer.decode(list(example.tokens[: example.lead]))
    rest = TEMPLATE.tokenizer.decode(list(example.tokens[example.lead :]))
    assert all(example.supervised[example.lead :])
    return f"{lead}«{rest}»"


def test_names_and_choice() -> None:
    assert tasks.names() == ["classify", "chat", "extract", "answer", "choose", "complete", "label", "tag"]
    assert tasks.get("classify") is Classify and tasks.get("chat") is Chat
    assert tasks.choose(labelled("a", "b").kind) == "classify"
    assert tasks.choose(conversation("a", "b").kind) == "chat"
    assert tasks.choose(Record(line=1, text="only text").kind) == "complete"
    with pytest.raises(DataError, match=r"no records.*labelled text \(task classify\), conversation \(task chat\)"):
        tasks.choose("no records")
    with pytest.raises(UsageError, match="did you mean classify"):
        tasks.get("clasify")


@pytest.mark.parametrize("task", [SENTIMENT, Chat(), Chat("Be kind."), Chat(replies="last")])
def test_json_round_trip(task: Classify | Chat) -> None:
    assert tasks.from_json(task.to_json()) == task


def test_what_chooses_the_best_checkpoint() -> None:
    assert (Classify.metric, Classify.higher_is_better) == ("accuracy", True)
    assert (Chat.metric, Chat.higher_is_better) == ("loss", False)


class TestClassify:
    def test_from_records(self) -> None:
        records = [labelled("x", "sad"), labelled("y", "happy"), labelled("z", "sad")]
        task = Classify.from_records(records)
        assert task.labels == ("happy", "sad")
        assert task.instruction == "Classify the text. Answer with exactly one of these labels: happy, sad."
        assert Classify.from_records(records, TaskOptions(instruction="Mood?")).instruction == "Mood?"

    def test_rendering(self) -> None:
        (example,) = SENTIMENT.encode(labelled("Fine food.", "positive"), 7, TEMPLATE, 200)
        assert marked(example) == (
            "<|im_start|>user\nWhich label fits?\n\nText: Fine food.<|im_end|>\n"
            "<|im_start|>assistant\n«positive<|im_end|>»"
        )
        assert (example.record, example.cut) == (7, 0)

    def test_candidates_share_the_prompt_and_hold_the_target(self) -> None:
        record = labelled("Fine food.", "positive")
        candidates = SENTIMENT.candidates(record, 3, TEMPLATE, 200)
        assert [marked(c).rpartition("«")[2] for c in candidates] == ["negative<|im_end|>»", "positive<|im_end|>»"]
        assert len({c.tokens[: c.lead] for c in candidates}) == 1
        assert SENTIMENT.encode(record, 3, TEMPLATE, 200) == [candidates[1]]

    @settings(max_examples=60, deadline=None)
    @given(text=st.text(st.characters(codec="utf-8"), max_size=80), spare=st.integers(0, 60))
    def test_a_long_text_loses_its_end_and_nothing_else(self, text: str, spare: int) -> None:
        longest = max(len(TEMPLATE.reply(label)) for label in SENTIMENT.labels)
        limit = len(TEMPLATE.prompt(SENTIMENT.messages(""))) + longest + spare
        record = labelled(text, "negative")
        candidates = SENTIMENT.candidates(record, 0, TEMPLATE, limit)
        whole = TEMPLATE.prompt(SENTIMENT.messages(text))
        prompts = [TEMPLATE.prompt(SENTIMENT.messages(text[:n])) for n in range(len(text) + 1)]
        assert SENTIMENT.encode(record, 0, TEMPLATE, limit) == [candidates[0]]
        for example, label in zip(candidates, SENTIMENT.labels, strict=True):
            lead = list(example.tokens[: example.lead])
            assert list(example.tokens[example.lead :]) == TEMPLATE.reply(label)
            assert len(example.tokens) <= limit
            assert example.cut == len(whole) - len(lead)
            assert lead in prompts, "the prompt must be that of a beginning of the text"
            if example.cut:  # one more character would not have fitted
                kept = max(n for n, prompt in enumerate(prompts) if prompt == lead)
                assert len(prompts[kept + 1]) > limit - longest
            else:
                assert lead == whole

    def test_very_long_text(self) -> None:
        (example,) = SENTIMENT.encode(labelled("good " * 40_000, "positive"), 0, TEMPLATE, 128)
        assert 120 <= len(example.tokens) <= 128 and example.cut > 40_000
        assert marked(example).endswith("<|im_end|>\n<|im_start|>assistant\n«positive<|im_end|>»")

    def test_instruction_that_does_not_fit(self) -> None:
        need = len(TEMPLATE.prompt(SENTIMENT.messages(""))) + max(len(TEMPLATE.reply(x)) for x in SENTIMENT.labels)
        assert SENTIMENT.encode(labelled("long text", "positive"), 0, TEMPLATE, need)[0].cut > 0
        with pytest.raises(DataError, match=rf"need {need} tokens.*may have {need - 1}") as caught:
            SENTIMENT.encode(labelled("long text", "positive", line=9), 0, TEMPLATE, need - 1)
        assert caught.value.line == 9

    def test_unknown_label(self) -> None:
        with pytest.raises(DataError, match=r"'positiv' is not among.*did you mean 'positive'") as caught:
            SENTIMENT.encode(labelled("text", "positiv", line=4), 0, TEMPLATE, 100)
        assert caught.value.line == 4
        with pytest.raises(DataError, match="known: 'negative', 'positive'"):
            SENTIMENT.encode(labelled("text", "", line=4), 0, TEMPLATE, 100)

    def test_no_two_labels(self) -> None:
        with pytest.raises(DataError, match="only 'good'"):
            Classify.from_records([labelled("a", "good"), labelled("b", "good")])
        with pytest.raises(DataError, match="found none"):
            Classify.from_records([])

    @pytest.mark.parametrize("record", [conversation("a", "b", line=2), Record(line=2, text="plain")])
    def test_records_of_another_kind(self, record: Record) -> None:
        with pytest.raises(DataError, match=record.kind) as caught:
            tasks.pose("classify", [labelled("a", "good"), record])
        assert caught.value.line == 2


class TestChat:
    RECORD = conversation("Hi", "Hello!", "Bye", "See you.")

    def test_every_reply_is_supervised(self) -> None:
        (example,) = Chat().encode(self.RECORD, 5, TEMPLATE, 200)
        said = [t for t, s in zip(example.tokens, example.supervised, strict=True) if s]
        assert TEMPLATE.tokenizer.decode(said) == "Hello!<|im_end|>See you.<|im_end|>"
        assert example.tokens[: example.lead] == tuple(TEMPLATE.prompt(self.RECORD.messages[:1]))
        assert (example.record, example.cut) == (5, 0)

    def test_the_last_reply_alone_is_supervised_on_request(self) -> None:
        task = Chat.from_records([self.RECORD], TaskOptions(system="Be kind.", replies="last"))
        assert task == Chat("Be kind.", "last")
        (example,) = task.encode(self.RECORD, 5, TEMPLATE, 200)
        (all_replies,) = Chat("Be kind.").encode(self.RECORD, 5, TEMPLATE, 200)
        assert example.tokens == all_replies.tokens
        assert list(example.tokens[example.lead :]) == TEMPLATE.reply("See you.")
        assert example.targets == len(TEMPLATE.reply("See you.")) < all_replies.targets
        (alone,) = Chat(replies="last").encode(self.RECORD, 5, GLM4, 200)
        assert alone == Chat().encode(self.RECORD, 5, GLM4, 200)[-1]
        assert task.scored(self.RECORD, 5, TEMPLATE, 200) == [example]
        assert task.scored(self.RECORD, 5, TEMPLATE, example.lead) == []

    def test_what_follows_the_last_reply_does_not_matter(self) -> None:
        asked_again = Record(line=1, messages=(*self.RECORD.messages, Message("user", "And?")))
        last = Chat(replies="last")
        assert last.encode(asked_again, 0, TEMPLATE, 200) == last.encode(self.RECORD, 0, TEMPLATE, 200)

    def test_runs_of_before_learned_all_replies(self) -> None:
        assert Chat.from_json({"name": "chat", "system": None}) == Chat()

    def test_options_of_other_tasks_are_refused(self) -> None:
        with pytest.raises(UsageError, match="the task chat has no use for; it takes system, replies"):
            Chat.from_records([self.RECORD], TaskOptions(instruction="Talk."))
        with pytest.raises(UsageError, match="the task classify has no use for"):
            Classify.from_records([labelled("x", "a"), labelled("y", "b")], TaskOptions(replies="last"))

    def test_one_example_per_reply_where_the_template_demands_it(self) -> None:
        examples = Chat().encode(self.RECORD, 5, GLM4, 200)
        shown = [(GLM4.tokenizer.decode(list(e.tokens)), e.targets, e.record) for e in examples]
        assert shown == [
            ("<user>Hi<assistant>Hello!<|im_end|>", len(GLM4.reply("Hello!")), 5),
            ("<user>Hi<assistant>Hello!<user>Bye<assistant>See you.<|im_end|>", len(GLM4.reply("See you.")), 5),
        ]

    @pytest.mark.parametrize("limit", [1, 10, 25, 30])
    def test_cut_at_the_end(self, limit: int) -> None:
        (whole,) = Chat().encode(self.RECORD, 0, TEMPLATE, 10_000)
        (cut,) = Chat().encode(self.RECORD, 0, TEMPLATE, limit)
        assert cut == Example(whole.tokens[:limit], whole.supervised[:limit], 0, len(whole.tokens) - limit)

    def test_nothing_supervised_is_returned_and_counted(self) -> None:
        (example,) = Chat().encode(conversation("good " * 50, "Yes."), 0, TEMPLATE, 20)
        assert example.targets == 0 and example.cut > 0 and len(example.tokens) == 20

    def test_system_message(self) -> None:
        (example,) = Chat("Be kind.").encode(self.RECORD, 0, TEMPLATE, 200)
        assert TEMPLATE.tokenizer.decode(list(example.tokens)).startswith("<|im_start|>system\nBe kind.<|im_end|>\n")
        own = Record(line=1, messages=(Message("system", "Be brief."), *self.RECORD.messages))
        (example,) = Chat("Be kind.").encode(own, 0, TEMPLATE, 200)
        assert "kind" not in TEMPLATE.tokenizer.decode(list(example.tokens))

    def test_the_first_token_is_never_a_target(self) -> None:
        text = (
            "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        )
        silent = ChatTemplate(tiny_tokenizer(), text)
        (example,) = Chat().encode(conversation("", "Yes."), 0, silent, 50)
        assert example.tokens == tuple(silent.reply("Yes."))
        assert example.supervised == (False,) + (True,) * (len(example.tokens) - 1)

    def test_errors_name_the_line(self) -> None:
        with pytest.raises(DataError, match="labelled text, but chat needs a conversation") as caught:
            Chat().encode(labelled("a", "b", line=8), 0, TEMPLATE, 100)
        assert caught.value.line == 8
        plain = tiny_tokenizer()
        plain.chat_template = None
        tool = Record(line=3, messages=(Message("user", "a"), Message("tool", "b"), Message("assistant", "c")))
        with pytest.raises(DataError, match="no place for tool") as caught:
            Chat().encode(tool, 0, ChatTemplate(plain), 100)
        assert caught.value.line == 3
