"""Ollama's Modelfile: a Go template that writes what the run's Jinja template writes, or none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import heptune
from heptune.data.record import Message
from heptune.shipping.modelfile import Turns, of_lora, of_model
from heptune.tasks.chat import Chat
from heptune.tasks.template import ChatTemplate
from shipping.conftest import Runs
from tiny import CHAT_TEMPLATE, tiny_tokenizer

# What SmolLM2, Llama 3 and Zephyr write: a default system message, a mark at the very beginning, trimmed contents.
DEFAULT_SYSTEM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for message in messages %}{% set content = '<h>' + message['role'] + '</h>\n\n' + message['content'] | trim + "
    "'<|im_end|>' %}{% if loop.index0 == 0 %}{% set content = '<|im_start|>' + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<h>assistant</h>\n\n' }}{% endif %}"
)
# The system message inside the first question: more than what stands around each role.
INSIDE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST]' }}{% if loop.last and "
    "messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\n' }}{% endif %}"
    "{{ message['content'] + '[/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
)


def in_go(text: str, messages: list[Message]) -> str:
    """A Go template of the few forms that are written here, executed: one condition before a range of conditions."""
    alone, _, rest = text.rpartition("{{ range .Messages }}")
    said = ""
    if alone:
        first = re.fullmatch(r'\{\{ if ne \(index \.Messages 0\)\.Role "system" \}\}(.*)\{\{ end \}\}', alone, re.S)
        assert first is not None
        said = first[1] if messages[0].role != "system" else ""
    body, ending, opening = rest.partition("{{ end }}{{ end }}")
    assert ending and "{{ end }}" not in body + opening
    _, *branches = re.split(r'\{\{ (?:else )?if eq \.Role "(\w+)" \}\}', body)
    writes = dict(zip(branches[::2], branches[1::2], strict=True))
    return said + "".join(writes[m.role].replace("{{ .Content }}", m.content) for m in messages) + opening


TALKS = [
    [Message("user", "One?")],
    [Message("system", "Be brief."), Message("user", "One?")],
    [Message("system", "S"), Message("user", "U"), Message("assistant", "A\n\nB"), Message("user", "V")],
    [Message("user", "U"), Message("assistant", "A"), Message("user", "V")],
]


@pytest.mark.parametrize("source", [CHAT_TEMPLATE, DEFAULT_SYSTEM, LLAMA3])
def test_the_go_template_writes_what_the_run_writes(source: str) -> None:
    template = ChatTemplate(tiny_tokenizer(), source)
    turns = Turns.of(template)
    assert turns is not None
    for talk in TALKS:
        assert in_go(turns.in_go(), talk) == template.written(talk, True) == turns.written(talk, True)


def test_a_template_that_go_cannot_say_is_left_out() -> None:
    template = ChatTemplate(tiny_tokenizer(), INSIDE)
    assert Turns.of(template) is None
    text = of_model("x.gguf", template, Chat(), 2048)
    assert "TEMPLATE" not in text and text.startswith("FROM ./x.gguf\n# The base's chat template is more than")
    braces = CHAT_TEMPLATE.replace("'<|im_start|>' + message['role']", "'{{x<|im_start|>' + message['role']")
    assert Turns.of(ChatTemplate(tiny_tokenizer(), braces)) is None, "Go would read them"


def test_stops_system_and_room() -> None:
    template = ChatTemplate(tiny_tokenizer())
    text = of_model("x.gguf", template, Chat(system='Say "yes".'), 4096)
    assert text.endswith('SYSTEM """Say "yes"."""\nPARAMETER stop "<|im_end|>"\nPARAMETER num_ctx 4096\n')
    text = of_lora("y.gguf", "owner/base", template, Chat(), 2048)
    assert text.startswith("# base.gguf is owner/base as a GGUF file") and "\nADAPTER ./y.gguf\n" in text
    assert "SYSTEM" not in text


def test_it_lies_beside_the_file(runs: Runs, tmp_path: Path) -> None:
    heptune.export(runs("lora", kind="chat").folder, "gguf", out=tmp_path / "out")
    text = (tmp_path / "out/Modelfile").read_text("utf-8")
    (path,) = (tmp_path / "out").glob("*.gguf")
    assert text.startswith(f'FROM ./{path.name}\nTEMPLATE """') and text.endswith("PARAMETER num_ctx 1024\n")
