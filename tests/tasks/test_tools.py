"""Tools, calls and answers through the templates of well-known families, cut down to what writes them.

In the golden strings «…» marks what is supervised: the assistant's turns, their calls included, and nothing else.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from heptune.core.errors import BaseModelError, DataError
from heptune.data.readers import read
from heptune.data.record import Message, Record
from heptune.tasks.chat import Chat
from heptune.tasks.template import ChatTemplate
from heptune.tasks.tools import ToolForm
from tiny import CHAT_TEMPLATE, tiny_tokenizer

HEADER = "'<|start_header_id|>' + {} + '<|end_header_id|>\n\n'"
LLAMA31 = (  # the tools stand in the first user turn, calls are bare JSON
    "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content']|trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system_message = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}"
    "{%- if tools is not none %}{{- 'Environment: ipython\n' }}{%- endif %}{{- system_message + '<|eot_id|>' }}"
    "{%- if tools is not none %}{%- if messages | length != 0 %}"
    "{%- set first_user_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}{%- else %}"
    "{{- raise_exception('Cannot put tools in the first user message when there is no first user message!') }}"
    "{%- endif %}{{- '<|start_header_id|>user<|end_header_id|>\n\n' -}}{{- 'Given the following functions:\n\n' }}"
    "{%- for t in tools %}{{- t | tojson(indent=4) }}{{- '\n\n' }}{%- endfor %}"
    "{{- first_user_message + '<|eot_id|>'}}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}"
    "{%- elif 'tool_calls' in message %}{%- if not message.tool_calls|length == 1 %}"
    "{{- raise_exception('This model only supports single tool-calls at once!') }}{%- endif %}"
    "{%- set tool_call = message.tool_calls[0].function %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}"
    "{{- '{\"name\": \"' + tool_call.name + '\", ' }}{{- '\"parameters\": ' }}{{- tool_call.arguments | tojson }}"
    "{{- '}' }}{{- '<|eot_id|>' }}"
    "{%- elif message.role == 'tool' or message.role == 'ipython' %}"
    "{{- '<|start_header_id|>ipython<|end_header_id|>\n\n' }}{{- message.content | tojson }}{{- '<|eot_id|>' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
_QWEN_TOOLS = (
    "{%- if tools %}{{- '<|im_start|>system\n' }}"
    "{%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] }}{%- else %}{{- 'Be helpful.' }}{%- endif %}"
    "{{- '\n\n# Tools\n\n<tools>' }}{%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}"
    "{{- '\n</tools><|im_end|>\n' }}{%- elif messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}{%- endif %}"
)
_QWEN_CALLS = (
    "{%- for tool_call in message.tool_calls %}{%- if tool_call.function is defined %}"
    '{%- set tool_call = tool_call.function %}{%- endif %}{{- \'\n<tool_call>\n{"name": "\' }}{{- tool_call.name }}'
    "{{- '\", \"arguments\": ' }}{{- tool_call.arguments | tojson }}{{- '}\n</tool_call>' }}{%- endfor %}"
)
_QWEN_ANSWERS = (  # answers in a row share one user turn
    "{%- elif message.role == 'tool' %}"
    "{%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != 'tool') %}{{- '<|im_start|>user' }}{%- endif %}"
    "{{- '\n<tool_response>\n' }}{{- message.content }}{{- '\n</tool_response>' }}"
    "{%- if loop.last or (messages[loop.index0 + 1].role != 'tool') %}{{- '<|im_end|>\n' }}{%- endif %}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
QWEN25 = (
    _QWEN_TOOLS + "{%- for message in messages %}{%- if (message.role == 'user') or (message.role == 'system' and not "
    "loop.first) or (message.role == 'assistant' and not message.tool_calls) %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{%- elif message.role == 'assistant' %}{{- '<|im_start|>' + message.role }}"
    "{%- if message.content %}{{- '\n' + message.content }}{%- endif %}" + _QWEN_CALLS + "{{- '<|im_end|>\n' }}"
) + _QWEN_ANSWERS
QWEN3 = (
    (  # thinking is written after the last question only, and always in the last turn
        _QWEN_TOOLS + "{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}"
        "{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}"
        "{%- if ns.multi_step_tool and message.role == 'user' %}"
        "{%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}{%- endif %}{%- endfor %}"
        "{%- for message in messages %}{%- if (message.role == 'user') or (message.role == 'system' "
        "and not loop.first) %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
        "{%- elif message.role == 'assistant' %}{%- set content = message.content %}{%- set reasoning_content = '' %}"
        "{%- if '</think>' in message.content %}{%- set content = message.content.split('</think>')[-1].lstrip('\n') %}"
        "{%- set reasoning_content = message.content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
        "{%- endif %}"
        "{%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and reasoning_content)) %}"
        "{{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + "
        "content.lstrip('\n') }}{%- else %}{{- '<|im_start|>' + message.role + '\n' + content }}{%- endif %}"
        "{%- if message.tool_calls %}{%- for tool_call in message.tool_calls %}"
        "{%- if (loop.first and content) or (not loop.first) %}{{- '\n' }}{%- endif %}"
        "{%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}"
        '{{- \'<tool_call>\n{"name": "\' }}{{- tool_call.name }}{{- \'", "arguments": \' }}'
        "{%- if tool_call.arguments is string %}{{- tool_call.arguments }}{%- else %}"
        "{{- tool_call.arguments | tojson }}{%- endif %}{{- '}\n</tool_call>' }}{%- endfor %}{%- endif %}"
        "{{- '<|im_end|>\n' }}"
    )
    + _QWEN_ANSWERS
)
GLM4 = (  # the first one: tools on a message of their own, a call's name as metadata
    "[gMASK]<sop>{% for item in messages %}{% if item['tools'] is defined %}<|system|>\n# 可用工具"
    "{% for tool in item['tools'] %}{% if tool['type'] == 'function' %}\n\n## {{ tool['function']['name'] }}\n\n"
    "{{ tool['function'] | tojson(indent=4) }}{% endif %}{% endfor %}{% endif %}"
    "{% if item['content'] %}<|{{ item['role'] }}|>{{ item['metadata'] }}\n{{ item['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
GLM4_0414 = (  # the prompt opens a line that a call does not begin with
    "[gMASK]<sop>{%- if tools -%}<|system|>\n# 可用工具{% for tool in tools %}"
    "{%- set function = tool.function if tool.get('function') else tool %}\n\n## {{ function.name }}\n\n"
    "{{ function | tojson(indent=4, ensure_ascii=False) }}{%- endfor %}{%- endif -%}"
    "{%- for message in messages %}{%- set meta = message.get('metadata', '') %}"
    "{%- if message['role'] in ('system', 'user', 'observation') %}<|{{ message['role'] }}|>\n{{ message['content'] }}"
    "{%- elif message['role'] == 'assistant' and not meta %}<|assistant|>\n{{ message['content'] }}"
    "{%- elif message['role'] == 'assistant' and meta %}<|assistant|>{{ meta }}\n{{ message['content'] }}"
    "{%- endif %}{%- endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
GLM45 = (
    "[gMASK]<sop>{%- if tools -%}<|system|>\n# Tools\n<tools>\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "</tools>{%- endif -%}{% for m in messages %}{%- if m.role == 'user' -%}<|user|>\n{{ m.content }}"
    "{%- elif m.role == 'assistant' -%}<|assistant|>\n<think></think>{%- if m.content.strip() -%}"
    "{{ '\n' + m.content.strip() }}{%- endif -%}{% if m.tool_calls %}{% for tc in m.tool_calls %}"
    "{{ '\n<tool_call>' + tc.function.name }}{% for k, v in tc.function.arguments.items() %}"
    "{{ '\n<arg_key>' + k + '</arg_key>\n' }}<arg_value>{{ v | tojson if v is not string else v }}</arg_value>"
    "{% endfor %}{{ '\n</tool_call>' }}{% endfor %}{% endif %}"
    "{%- elif m.role == 'tool' -%}"
    "{%- if loop.first or (messages[loop.index0 - 1].role != 'tool') %}{{- '<|observation|>' }}{%- endif %}"
    "{{- '\n<tool_response>\n' }}{{- m.content }}{{- '\n</tool_response>' }}"
    "{%- elif m.role == 'system' -%}<|system|>\n{{ m.content }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)
HERMES = (
    "{{- '<|im_start|>system\nYou are a function calling AI model. <tools> ' }}{%- for tool in tools %}"
    "{%- if tool.function is defined %}{%- set tool = tool.function %}{%- endif %}"
    "{{- '{\"type\": \"function\", \"function\": ' + tool.name + ': ' + (tool.parameters | tojson) + '}' }}"
    "{%- endfor %}{{- ' </tools><|im_end|>\n' }}"
    "{%- for message in messages %}{%- if message.role == 'user' or message.role == 'system' or "
    "(message.role == 'assistant' and message.tool_calls is not defined) %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{%- elif message.role == 'assistant' %}{{- '<|im_start|>' + message.role }}"
    "{%- for tool_call in message.tool_calls %}{{- '\n<tool_call>\n' }}{%- set tool_call = tool_call.function %}"
    "{{- '{\"name\": \"' + tool_call.name + '\", \"arguments\": ' + (tool_call.arguments|tojson) + '}' }}"
    "{{- '\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}"
    "{%- elif message.role == 'tool' %}{{- '<|im_start|>tool\n<tool_response>\n' + message.content }}"
    "{{- '\n</tool_response>' }}{{- '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
ALL = {"llama31": LLAMA31, "qwen25": QWEN25, "qwen3": QWEN3, "glm4": GLM4, "glm4_0414": GLM4_0414, "glm45": GLM45}
ALL["hermes"] = HERMES

MARKS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[gMASK]", "<sop>"]
MARKS += ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]


def tokenizer() -> PreTrainedTokenizerFast:
    plain = tiny_tokenizer()
    plain.add_special_tokens({"bos_token": "<s>", "extra_special_tokens": MARKS})
    plain.add_tokens(["<tool_call>", "</tool_call>", "</arg_value>"])
    plain.chat_template = None
    return plain


TOKENIZER = tokenizer()
TEMPLATES = {name: ChatTemplate(TOKENIZER, text) for name, text in ALL.items()}

WEATHER = {
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
TOOLS = json.dumps([{"type": "function", "function": WEATHER}])


def call(city: str, content: str = "") -> Message:
    function = {"name": "weather", "arguments": {"city": city}}
    return Message("assistant", content, json.dumps([{"id": "call_1", "type": "function", "function": function}]))


TALK = (
    Message("user", "Is it raining in Köln?"),
    call("Köln"),
    Message("tool", '{"rain": true}', "", "call_1", "weather"),
    Message("assistant", "Yes, it is."),
)


def marked(template: ChatTemplate, messages: tuple[Message, ...] = TALK, tools: str = TOOLS) -> list[str]:
    shown = []
    for segments in template.conversation(messages, tools):
        texts = [(template.tokenizer.decode(list(s.tokens)), s.supervised) for s in segments]
        shown.append("".join(f"«{text}»" if supervised else text for text, supervised in texts))
    return shown


SAID = {  # what is supervised, reply by reply
    "llama31": ['{"name": "weather", "parameters": {"city": "Köln"}}<|eot_id|>', "Yes, it is.<|eot_id|>"],
    "qwen25": [
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call><|im_end|>',
        "Yes, it is.<|im_end|>",
    ],
    "qwen3": [
        '<think>\n\n</think>\n\n<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
        "<|im_end|>",
        "<think>\n\n</think>\n\nYes, it is.<|im_end|>",
    ],
    "glm4": ['weather\n{"city": "Köln"}<|im_end|>', "\nYes, it is.<|im_end|>"],
    "glm4_0414": ['weather\n{"city": "Köln"}<|im_end|>', "Yes, it is.<|im_end|>"],
    "glm45": [
        "\n<think></think>\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Köln</arg_value>\n</tool_call>"
        "<|im_end|>",
        "\n<think></think>\nYes, it is.<|im_end|>",
    ],
    "hermes": [
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call><|im_end|>',
        "Yes, it is.<|im_end|>",
    ],
}


@pytest.mark.parametrize("name", ALL)
def test_supervised_are_the_assistants_turns_with_their_calls_and_nothing_else(name: str) -> None:
    shown = marked(TEMPLATES[name])
    said = [piece.partition("»")[0] for text in shown for piece in text.split("«")[1:]]
    assert said == SAID[name]
    for text in shown:
        unsupervised = "".join(piece.rpartition("»")[2] for piece in text.split("«"))
        assert '"description": "The weather of a city."' in unsupervised or "weather: {" in unsupervised
        assert unsupervised.index("weather") < unsupervised.index("raining in Köln") or name == "llama31"
    assert "rain" in shown[-1].rpartition("«")[0].rpartition("»" if len(shown) == 1 else "Köln")[2]


@pytest.mark.parametrize("name", ALL)
def test_what_was_called_stands_in_the_next_prompt(name: str) -> None:
    template = TEMPLATES[name]
    prompt = TOKENIZER.decode(template.prompt(TALK[:3], TOOLS))
    for part in ("weather", "Köln", "rain"):
        assert part in prompt
    last = template.conversation(TALK, TOOLS)[-1]
    before = [token for segment in last[:-1] for token in segment.tokens]
    assert before == template.prompt(TALK[:3], TOOLS)
    first = template.conversation(TALK, TOOLS)[0]
    assert list(first[0].tokens) == template.prompt(TALK[:1], TOOLS)


@pytest.mark.parametrize("name", ["llama31", "qwen25", "hermes"])
def test_the_whole_text_is_the_librarys_own(name: str) -> None:
    function = {"name": "weather", "arguments": {"city": "Köln"}}
    turns = [
        {"role": "user", "content": "Is it raining in Köln?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        },
        {"role": "tool", "content": '{"rain": true}', "tool_call_id": "call_1", "name": "weather"},
        {"role": "assistant", "content": "Yes, it is."},
    ]
    own = TOKENIZER.apply_chat_template(turns, tools=[WEATHER], chat_template=ALL[name], tokenize=False)
    if name != "hermes":  # which writes of a tool what it likes
        own = TOKENIZER.apply_chat_template(turns, tools=json.loads(TOOLS), chat_template=ALL[name], tokenize=False)
    (shown,) = marked(TEMPLATES[name])
    assert shown.replace("«", "").replace("»", "") == own.rstrip("\n")


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("llama31", ToolForm("argument", "tool_calls", "tool")),
        ("qwen25", ToolForm("argument", "tool_calls", "tool")),
        ("qwen3", ToolForm("argument", "tool_calls", "tool")),
        ("hermes", ToolForm("argument", "tool_calls", "tool")),
        ("glm45", ToolForm("argument", "tool_calls", "tool")),
        ("glm4_0414", ToolForm("argument", "metadata", "observation")),
        ("glm4", ToolForm("system", "metadata", "observation")),
    ],
)
def test_the_form_is_found_by_trying(name: str, form: ToolForm) -> None:
    assert TEMPLATES[name].tool_form == form


@pytest.mark.parametrize("name", ["glm4_0414", "glm45"])
def test_a_base_without_an_end_of_turn_stops_where_the_answer_would_stand(name: str) -> None:
    stops = set(TOKENIZER.convert_ids_to_tokens(list(TEMPLATES[name].stop_tokens)))
    assert stops == {"<|im_end|>", "<|user|>", "<|observation|>"}


def test_text_beside_a_call_and_several_calls() -> None:
    both = json.loads(call("Bonn").tool_calls) + json.loads(call("Köln").tool_calls)
    messages = (TALK[0], Message("assistant", "Let me look.", json.dumps(both)))
    (shown,) = marked(TEMPLATES["qwen25"], messages)
    assert shown.endswith(
        '<|im_start|>assistant\n«Let me look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n'
        '</tool_call>\n<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call><|im_end|>»'
    )
    with pytest.raises(BaseModelError, match="2 calls, but this base's chat template takes one call a turn"):
        TEMPLATES["glm4_0414"].conversation((TALK[0], Message("assistant", "", json.dumps(both))))
    with pytest.raises(BaseModelError, match="text beside its call"):
        TEMPLATES["glm4_0414"].conversation((TALK[0], call("Köln", "Let me look.")))
    with pytest.raises(BaseModelError, match="only supports single tool-calls"):
        TEMPLATES["llama31"].conversation(messages)


@pytest.mark.parametrize(
    ("messages", "tools", "what"),
    [
        (TALK, TOOLS, "tools that can be called"),
        (TALK, "", "an assistant's tool calls"),
        ((TALK[0], TALK[2], TALK[3]), "", "turns of the role 'tool'"),
    ],
)
def test_a_base_without_a_place_for_tools_is_told_with_the_line(
    messages: tuple[Message, ...], tools: str, what: str
) -> None:
    template = ChatTemplate(TOKENIZER)  # the default one knows no tools
    with pytest.raises(DataError, match=f"{what}, but this base's chat template has no place for tools") as caught:
        Chat().encode(Record(7, messages=messages, tools=tools), 0, template, 500)
    assert caught.value.line == 7 and str(caught.value).startswith("line 7: the conversation has")


def test_a_template_that_writes_any_role_has_no_place_for_calls() -> None:
    chatml = ChatTemplate(TOKENIZER, CHAT_TEMPLATE)
    assert chatml.tool_form == ToolForm("", "", "tool")


def test_of_several_templates_the_one_for_tools_is_taken_where_there_are_any() -> None:
    several = tokenizer()
    several.chat_template = {"default": CHAT_TEMPLATE, "tool_use": HERMES}
    with_tools, without = Record(1, messages=TALK, tools=TOOLS), Record(1, messages=(TALK[0], TALK[3]))
    assert ChatTemplate.for_records(several, [without, with_tools]).text == HERMES
    assert ChatTemplate.for_records(several, [without]).text == CHAT_TEMPLATE
    assert ChatTemplate.for_records(TOKENIZER, [with_tools]).is_default


GLAIVE = Path(__file__).resolve().parents[2].parent / "shared" / "data/llamafactory_demo/glaive_toolcall_en_demo.json"


@pytest.mark.skipif(not GLAIVE.exists(), reason="the real data is not here")
@pytest.mark.parametrize("name", ALL)
def test_real_conversations_with_tools(name: str) -> None:
    records = [record for record in read(GLAIVE).records if any(m.tool_calls for m in record.messages)]
    assert len(records) == 153 and all(record.tools for record in records)
    template = TEMPLATES[name]
    for record in records[:12]:
        examples = Chat().encode(record, 0, template, 10_000)
        said = [t for e in examples for t, s in zip(e.tokens, e.supervised, strict=True) if s]
        text = TOKENIZER.decode(said)
        for message in record.messages:
            if message.role == "assistant" and not message.tool_calls:
                assert message.content.strip() in text
            if message.role == "tool":
                assert message.content not in text
            for each in json.loads(message.tool_calls or "[]"):
                assert each["function"]["name"] in text
        replies = sum(message.role == "assistant" for message in record.messages)
        assert sum(token in template.stop_tokens for token in said) == replies
