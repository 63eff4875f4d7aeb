"""Templates against golden renderings, and the law prompt + reply == conversation for arbitrary texts.

In the golden strings «…» marks what is supervised.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from heptune.core.errors import BaseModelError
from heptune.data.record import Message
from heptune.tasks.template import DEFAULT_TEMPLATE, ChatTemplate
from tiny import tiny_tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GLM4 = (
    "[gMASK]<sop>{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
QWEN3 = (  # thinking is shown in the last turn only
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{% set answer = m['content'].split('</think>')[-1].lstrip('\n') %}"
    "{% set thought = m['content'].split('</think>')[0].split('<think>')[-1].strip('\n')"
    " if '</think>' in m['content'] else '' %}"
    "{{ '<|im_start|>assistant\n' }}"
    "{% if loop.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{{ answer + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
R1 = (  # the prompt opens a thought that finished turns do not show
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ '<|assistant|>' + m['content'].split('</think>')[-1] + '<|im_end|>' }}"
    "{% else %}{{ '<|user|>' + m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}"
)
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "{{ '<|start_header_id|>' + m['role'] + '\n' + m['content'] | trim + '<|eot_id|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant\n' }}{% endif %}"
)
PHI3 = (  # the end-of-sequence token closes the whole text, behind the last end of turn
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|eot_id|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
ALL = {"chatml": CHATML, "llama3": LLAMA3, "glm4": GLM4, "qwen3": QWEN3, "r1": R1, "gemma": GEMMA, "phi3": PHI3}
ALL["default"] = DEFAULT_TEMPLATE

EXTRA = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[gMASK]", "<sop>"]
EXTRA += ["<|system|>", "<|user|>", "<|assistant|>"]


def tokenizer(**changes: str | None) -> PreTrainedTokenizerFast:
    plain = tiny_tokenizer()
    plain.add_special_tokens({"bos_token": "<s>", "extra_special_tokens": EXTRA})
    plain.chat_template = None
    for name, value in changes.items():
        setattr(plain, name, value)
    return plain


def greedy_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and merges that reach across where replies begin and end: text cut elsewhere gives other tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), (":", "Ġ"), ("Ċ", "a"), ("Ċ", "U")]
    vocabulary = [*alphabet, *("".join(pair) for pair in merges)]
    bpe = Tokenizer(models.BPE({token: n for n, token in enumerate(vocabulary)}, merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    special = {"eos_token": "<|im_end|>", "bos_token": "<s>", "extra_special_tokens": ["<|im_start|>", *EXTRA]}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **special)


TOKENIZER = tokenizer()
GREEDY = greedy_tokenizer()
TEMPLATES = {name: ChatTemplate(TOKENIZER, text) for name, text in ALL.items()}
GREEDY_TEMPLATES = {name: ChatTemplate(GREEDY, text) for name, text in ALL.items()}


def talk(*turns: str) -> list[Message]:
    """'s:', 'u:', 'a:', 't:' give the role."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [Message(roles[turn[0]], turn[2:]) for turn in turns]


def marked(template: ChatTemplate, messages: list[Message]) -> list[str]:
    shown = []
    for segments in template.conversation(messages):
        texts = [(template.tokenizer.decode(list(s.tokens)), s.supervised) for s in segments]
        shown.append("".join(f"«{text}»" if supervised else text for text, supervised in texts))
    return shown


TWO_TURNS = talk("s:Be kind.", "u:Hi", "a:Hello!", "u:Bye", "a:See you.")


@pytest.mark.parametrize(
    ("name", "golden"),
    [
        (
            "chatml",
            [
                "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
                "<|im_start|>assistant\n«Hello!<|im_end|>»\n<|im_start|>user\nBye<|im_end|>\n"
                "<|im_start|>assistant\n«See you.<|im_end|>»"
            ],
        ),
        (
            "llama3",
            [
                "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
                "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\n«Hello!<|eot_id|>»"
                "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\n«See you.<|eot_id|>»"
            ],
        ),
        (
            "glm4",  # the end that was added is not in the next prompt, so each reply is a sequence of its own
            [
                "[gMASK]<sop><|system|>\nBe kind.<|user|>\nHi<|assistant|>\n«Hello!<|im_end|>»",
                "[gMASK]<sop><|system|>\nBe kind.<|user|>\nHi<|assistant|>\nHello!<|user|>\nBye"
                "<|assistant|>\n«See you.<|im_end|>»",
            ],
        ),
        (
            "qwen3",
            [
                "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
                "<|im_start|>assistant\n«<think>\n\n</think>\n\nHello!<|im_end|>»",
                "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
                "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
                "<|im_start|>assistant\n«<think>\n\n</think>\n\nSee you.<|im_end|>»",
            ],
        ),
        (
            "gemma",
            [
                "<|start_header_id|>user\nBe kind.\n\nHi<|eot_id|>\n"
                "<|start_header_id|>assistant\n«Hello!<|eot_id|>»\n<|start_header_id|>user\nBye<|eot_id|>\n"
                "<|start_header_id|>assistant\n«See you.<|eot_id|>»"
            ],
        ),
        (
            "phi3",
            [
                "<|system|>\nBe kind.<|eot_id|>\n<|user|>\nHi<|eot_id|>\n<|assistant|>\n«Hello!<|eot_id|>»\n"
                "<|user|>\nBye<|eot_id|>\n<|assistant|>\n«See you.<|eot_id|>»"
            ],
        ),
        (
            "default",
            ["Be kind.\n\nUser: Hi\nAssistant:« Hello!<|im_end|>»\nUser: Bye\nAssistant:« See you.<|im_end|>»"],
        ),
    ],
)
def test_golden_renderings(name: str, golden: list[str]) -> None:
    assert marked(TEMPLATES[name], TWO_TURNS) == golden


def test_thinking_in_the_data_is_supervised_in_its_own_turn() -> None:
    messages = talk("u:Hi", "a:<think>\nPolite.\n</think>\n\nHello!", "u:Bye", "a:See you.")
    first, second = marked(TEMPLATES["qwen3"], messages)
    assert first.endswith("assistant\n«<think>\nPolite.\n</think>\n\nHello!<|im_end|>»")
    assert "Polite" not in second and "assistant\nHello!<|im_end|>" in second


def test_a_prompt_that_opens_a_thought_is_continued_without_opening_it_twice() -> None:
    template = TEMPLATES["r1"]
    assert marked(template, talk("u:Hi", "a:Hello!")) == ["<|user|>Hi<|assistant|><think>\n«Hello!<|im_end|>»"]
    assert marked(template, talk("u:Hi", "a:<think>\nPolite.\n</think>Hello!")) == [
        "<|user|>Hi<|assistant|><think>\n«\nPolite.\n</think>Hello!<|im_end|>»"
    ]


CONTENT = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    [
        "",
        " ",
        "\n",
        "a <|im_end|> b",
        "User: x\nAssistant: y",
        "  spaced  ",
        "<think>\nhm\n</think>\n\nyes",
        "naïve 中文 🙂",
    ]
)


@pytest.mark.parametrize("templates", [TEMPLATES, GREEDY_TEMPLATES], ids=["plain", "greedy"])
@pytest.mark.parametrize("name", ALL)
@settings(max_examples=60, deadline=None)
@given(contents=st.lists(CONTENT, min_size=2, max_size=7), system=st.none() | CONTENT)
def test_prompt_and_reply_are_the_training_sequence(
    templates: dict[str, ChatTemplate], name: str, contents: list[str], system: str | None
) -> None:
    template = templates[name]
    messages = [] if system is None else [Message("system", system)]
    messages += [Message("user" if n % 2 == 0 else "assistant", text) for n, text in enumerate(contents)]
    places = [i for i, message in enumerate(messages) if message.role == "assistant"]
    sequences = template.conversation(messages)
    if len(sequences) == 1:
        tokens: list[int] = []
        seen = 0
        for segment in sequences[0]:
            if segment.supervised:
                assert template.prompt(messages[: places[seen]]) == tokens
                assert template.reply(messages[places[seen]].content) == list(segment.tokens)
                seen += 1
            tokens += segment.tokens
        assert seen == len(places)
    else:
        assert len(sequences) == len(places)
        for place, (before, reply) in zip(places, sequences, strict=True):
            assert not before.supervised and reply.supervised
            assert template.prompt(messages[:place]) == list(before.tokens)
            assert template.reply(messages[place].content) == list(reply.tokens)
    for segments in sequences:
        for segment in segments:
            if segment.supervised:
                assert segment.tokens[-1] in template.stop_tokens


def test_tokens_are_those_of_the_library_where_it_does_not_split_otherwise() -> None:
    for name in ("chatml", "llama3", "glm4", "phi3"):
        turns = [{"role": "user", "content": "Which label fits?"}]
        ids = TOKENIZER.apply_chat_template(turns, chat_template=ALL[name], add_generation_prompt=True)["input_ids"]
        assert TEMPLATES[name].prompt(talk("u:Which label fits?")) == list(ids)


@pytest.mark.parametrize(
    ("name", "stops"),
    [
        ("chatml", ["<|im_end|>"]),
        ("llama3", ["<|im_end|>", "<|eot_id|>"]),
        ("glm4", ["<|im_end|>", "<|user|>"]),
        ("phi3", ["<|im_end|>", "<|eot_id|>"]),
        ("default", ["<|im_end|>"]),
    ],
)
def test_stop_tokens(name: str, stops: list[str]) -> None:
    assert set(TEMPLATES[name].stop_tokens) == set(TOKENIZER.convert_tokens_to_ids(stops))


def test_default_template_is_used_where_the_tokenizer_has_none() -> None:
    assert ChatTemplate(TOKENIZER).is_default and ChatTemplate(TOKENIZER).text == DEFAULT_TEMPLATE
    own = ChatTemplate(tokenizer(chat_template=CHATML))
    assert not own.is_default and own.text == CHATML
    assert not ChatTemplate(tokenizer(chat_template=CHATML), LLAMA3).is_default
    assert ChatTemplate(tokenizer(chat_template=CHATML), LLAMA3).text == LLAMA3


def with_automatic_bos() -> PreTrainedTokenizerFast:
    automatic = tokenizer()
    bos = automatic.convert_tokens_to_ids("<s>")
    automatic.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    assert automatic.encode("x")[0] == bos
    return automatic


@pytest.mark.parametrize("text", [CHATML, LLAMA3])
def test_begin_of_sequence_stands_once_where_the_tokenizer_or_the_template_puts_it(text: str) -> None:
    bos = TOKENIZER.convert_tokens_to_ids("<s>")
    messages = talk("u:Hi", "a:Hello!", "u:Bye", "a:So long.")
    automatic = ChatTemplate(with_automatic_bos(), text)
    assert automatic.prompt(messages[:1])[0] == bos
    (segments,) = automatic.conversation(messages)
    assert [t for s in segments for t in s.tokens].count(bos) == 1
    assert segments[0].tokens[0] == bos
    assert automatic.prompt(messages).count(bos) == 1
    assert ChatTemplate(TOKENIZER, text).prompt(messages[:1]).count(bos) == (1 if text == LLAMA3 else 0)


@pytest.mark.parametrize("gap", ["", " "])
@pytest.mark.parametrize("legacy", [False, True], ids=["mistral", "llama2"])
def test_a_sentencepiece_reply_gets_no_space_of_its_own(legacy: bool, gap: str) -> None:
    vocabulary = ["▁", *"abcdefghijklmnopqrstuvwxyzINST[]/\n", "▁f", "▁fo", "▁foo", "</s>", "<unk>"]
    merges = [("▁", "f"), ("▁f", "o"), ("▁fo", "o")]
    bpe = Tokenizer(models.BPE({token: n for n, token in enumerate(vocabulary)}, merges, unk_token="<unk>"))
    if legacy:
        bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    spaced = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>", unk_token="<unk>")
    text = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        f"{{% else %}}{{{{ '{gap}' + m.content + eos_token }}}}{{% endif %}}{{% endfor %}}"
    )
    template = ChatTemplate(spaced, text)
    assert spaced.convert_ids_to_tokens(template.reply("foo")) == [*(["▁foo"] if gap else "foo"), "</s>"]
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "foo"}]
    whole = spaced.apply_chat_template(turns, chat_template=text)["input_ids"]
    assert template.prompt(talk("u:hi")) + template.reply("foo") == list(whole)


def test_a_reply_that_spells_the_end_of_turn_is_kept_whole() -> None:
    (shown,) = marked(TEMPLATES["chatml"], talk("u:Which token?", "a:It is <|im_end|> here."))
    assert shown.endswith("assistant\n«It is <|im_end|> here.<|im_end|>»")


def test_the_date_is_fixed() -> None:
    dated = "{{ strftime_now('%d %b %Y') + '\n' }}" + CHATML
    assert TOKENIZER.decode(ChatTemplate(TOKENIZER, dated).prompt(talk("u:Hi"))).startswith("26 Jul 2024\n<|im_start|>")
    assert ChatTemplate(TOKENIZER, dated).text == dated


def test_tool_turns_pass_where_the_template_knows_them_and_are_named_where_not() -> None:
    messages = talk("u:Sum?", "a:call", "t:4", "a:Four.")
    assert marked(TEMPLATES["chatml"], messages) == [
        "<|im_start|>user\nSum?<|im_end|>\n<|im_start|>assistant\n«call<|im_end|>»\n<|im_start|>tool\n4<|im_end|>\n"
        "<|im_start|>assistant\n«Four.<|im_end|>»"
    ]
    for name in ("gemma", "default"):
        with pytest.raises(BaseModelError, match=r"'tool'.*no place for tool"):
            TEMPLATES[name].conversation(messages)


def test_a_system_message_alone_becomes_the_user_turn_where_there_is_no_place_for_it() -> None:
    assert marked(TEMPLATES["gemma"], talk("s:Be kind.", "a:Hello!")) == [
        "<|start_header_id|>user\nBe kind.<|eot_id|>\n<|start_header_id|>assistant\n«Hello!<|eot_id|>»"
    ]


def test_a_greeting_is_context_and_what_follows_the_last_reply_is_left_out() -> None:
    (shown,) = marked(TEMPLATES["chatml"], talk("a:Welcome.", "u:Hi", "a:Hello!", "u:Bye"))
    assert shown == (
        "<|im_start|>assistant\nWelcome.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n«Hello!<|im_end|>»"
    )
    (only_user,) = marked(TEMPLATES["chatml"], talk("u:Hi"))
    assert "«" not in only_user


def test_errors_name_the_problem() -> None:
    with pytest.raises(BaseModelError, match="nothing can end a reply"):
        ChatTemplate(tokenizer(eos_token=None), "{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}")
    with pytest.raises(BaseModelError, match="cannot render"):
        ChatTemplate(TOKENIZER, "{{ messages[0]['role'] }}{% if")
    with pytest.raises(BaseModelError, match="leaves out what the assistant says"):
        ChatTemplate(TOKENIZER, "{{ messages[0]['content'] }}")
    strict = "{% if messages[0].role != 'user' %}{{ raise_exception('must start with user') }}{% endif %}" + CHATML
    with pytest.raises(BaseModelError, match=r"roles: assistant, user.*must start with user"):
        ChatTemplate(TOKENIZER, strict).prompt(talk("a:Hi", "u:Hi"))
    with pytest.raises(BaseModelError, match="roles: none"):
        TEMPLATES["chatml"].prompt([])
