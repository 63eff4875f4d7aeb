"""A workload's passes are those that a training computes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from heptune import tasks, techniques
from heptune.core.errors import UsageError
from heptune.core.events import ignore
from heptune.data.parts import DataOptions, read_files
from heptune.data.record import Message, Record
from heptune.engine.forward import Forward
from heptune.engine.loop import accumulate, batches_of
from heptune.engine.settings import Settings
from heptune.models.anatomy import dissect
from heptune.models.readout import Readout
from heptune.planning.estimate import Candidate, mean_pass
from heptune.planning.workload import EstimatedTemplate, Placement, assumed, lay_out, of_data
from heptune.tasks.template import ChatTemplate, PlainText
from tiny import tiny_encoder, tiny_encoder_tokenizer, tiny_model, tiny_tokenizer


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"text": f"text {n} " * (1 + n % 7), "label": ("good", "bad")[n % 2]} for n in range(60)]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.mark.parametrize("technique", ["lora", "prompt", "p_tuning"])
@pytest.mark.parametrize("causal", [True, False])
def test_rows_and_marks_of_a_linear_head_are_those_of_the_loop(technique: str, causal: bool, data: Path) -> None:
    settings = Settings(batch_size=9, micro_tokens=150, max_length=40)
    parts = read_files(data, DataOptions(), ignore).cut(DataOptions(), 0)
    task = tasks.pose("label", parts.train)
    template = ChatTemplate(tiny_tokenizer()) if causal else PlainText(tiny_encoder_tokenizer())
    workload = of_data(task, parts, template, settings, "data", causal)
    assert (workload.classes, workload.head) == (2, "rows" if causal else "means")
    chosen = techniques.build(technique, {"virtual_tokens": 4} if technique != "lora" else {})
    layout = lay_out(workload, settings, Candidate.of(chosen).placement)
    anatomy = dissect(tiny_model("llama") if causal else tiny_encoder("bert"))
    forward = Forward(anatomy)
    forward.readout = Readout(anatomy, task.classes, False, 0)  # type: ignore[attr-defined]
    chosen.attach(anatomy, 0)
    examples = tasks.encode(task, parts.train, template, settings.max_length, ignore)  # type: ignore[arg-type]
    seen = {"rows": 0, "targets": 0, "passes": 0}
    for step in batches_of(examples, settings).epoch(0):
        for portion in forward.portions([examples[i] for i in step], settings.micro_tokens):
            with torch.no_grad(), forward.loss(portion) as found:
                seen["rows"] += found.rows
                seen["targets"] += len(found.losses)
                seen["passes"] += 1
    assert seen["rows"] == layout.rows
    assert seen["targets"] == sum(one.targets for one in layout.passes) == len(examples)
    assert seen["passes"] == len(layout.passes) * layout.repeats
    assert sum(one.own or 0 for one in layout.passes) == sum(len(example.tokens) for example in examples)


def test_marks_are_counted_without_the_tokenizer_too(tmp_path: Path) -> None:
    rows = [{"text": "Ada Lovelace left London.", "spans": [{"start": 0, "end": 12, "label": "PER"}]}] * 3
    path = tmp_path / "entities.jsonl"
    path.write_text("".join(json.dumps(row | {"text": f"{row['text']} {n}"}) + "\n" for n, row in enumerate(rows * 20)))
    parts = read_files(path, DataOptions(), ignore).cut(DataOptions(), 0)
    workload = of_data(tasks.pose("tag", parts.train), parts, None, Settings(), "data", causal=False)
    (example, *_) = workload.encode(512).train
    assert workload.head == "rows" and len(example.marks) == len(example.tokens) == 7  # 27 characters by four
    with pytest.raises(UsageError, match="cannot learn classify; it learns label or tag"):
        assumed("classify", causal=False)


@pytest.mark.parametrize("technique", ["lora", "prompt", "prefix"])
@pytest.mark.parametrize("family", ["llama", "gptj"])
@pytest.mark.parametrize("share", [True, False])
def test_rows_and_targets_are_those_of_the_loop(technique: str, family: str, share: bool, data: Path) -> None:
    settings = Settings(batch_size=9, micro_tokens=300, share=share)
    parts = read_files(data, DataOptions(), ignore).cut(DataOptions(), 0)
    task = tasks.pose("classify", parts.train)
    template = ChatTemplate(tiny_tokenizer())
    workload = of_data(task, parts, template, settings, "data")
    layout = lay_out(workload, settings, Candidate.of(technique).placement, padded=family == "gptj")

    if family == "gptj":
        from transformers import GPTJConfig, GPTJForCausalLM

        torch.manual_seed(0)
        sizes = {"n_embd": 32, "n_layer": 1, "n_head": 4, "rotary_dim": 4, "vocab_size": 320, "n_positions": 1024}
        model = GPTJForCausalLM(GPTJConfig(**sizes)).eval()
        if technique != "lora":
            pytest.skip("nothing can be put before sequences of this family")
    else:
        model = tiny_model(family)
    anatomy = dissect(model)
    forward = Forward(anatomy)
    assert forward.attends_over_forests == (family != "gptj")
    attached = techniques.build(technique).attach(anatomy, 0)
    examples = tasks.encode(task, parts.train, template, settings.max_length, ignore)
    batches = batches_of(examples, settings)
    rows = sum(
        accumulate(forward, attached, [examples[i] for i in step], settings, number)[1]
        for number, step in enumerate(batches.epoch(0))
    )
    assert layout.steps == len(batches.epoch(0)) and layout.repeats == 1
    assert layout.rows == rows
    assert sum(one.targets for one in layout.passes) == layout.supervised == sum(e.targets for e in examples)
    assert max(one.rows for one in layout.largest) >= max(one.rows for one in layout.passes)


def test_a_sample_stands_for_all(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {n} " * (1 + n % 11), "completion": "answer " * (1 + n % 5)} for n in range(3000)]
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    settings = Settings()
    parts = read_files(path, DataOptions(), ignore).cut(DataOptions(), 0)
    task, template = tasks.pose("chat", parts.train), ChatTemplate(tiny_tokenizer())
    layout = lay_out(of_data(task, parts, template, settings, "many"), settings, Placement())
    examples = tasks.encode(task, parts.train, template, settings.max_length, ignore)
    assert layout.tokens == pytest.approx(sum(len(e.tokens) for e in examples), rel=0.05)
    assert layout.steps == pytest.approx(batches_of(examples, settings).steps(1), rel=0.05)
    assert layout.longest_example == max(len(e.tokens) for e in examples), "the longest are looked for among all"


def test_an_assumed_workload_says_so_and_shares_nothing() -> None:
    workload = assumed(None, 100, 64)
    assert workload.assumed and "100 examples of 64 tokens" in workload.said[0]
    layout = lay_out(workload, Settings(batch_size=10), Placement())
    assert layout.steps == pytest.approx(10) and layout.rows == pytest.approx(100 * 63)
    front = lay_out(workload, Settings(batch_size=10), Placement(front=20))
    assert front.rows == pytest.approx(layout.rows + 10 * 20), "virtual tokens in front are computed once a pass"
    inner = lay_out(workload, Settings(batch_size=10), Placement(inner=20))
    assert inner.rows == pytest.approx(layout.rows + 100 * 20), "those inside once an example"
    with pytest.raises(UsageError, match="no task named"):
        assumed("chatt")


def test_length_and_micro_tokens_bound_the_largest_pass() -> None:
    workload = assumed(None, 200, 512)
    whole = lay_out(workload, Settings(batch_tokens=4096), Placement())
    assert max(one.rows for one in whole.largest) == 8 * 511
    cut = lay_out(workload, Settings(batch_tokens=4096, micro_tokens=1024), Placement())
    assert max(one.rows for one in cut.largest) == 2 * 511 and cut.rows == whole.rows
    short = lay_out(workload, Settings(batch_tokens=4096, max_length=128), Placement())
    assert short.longest_example == 128 and short.rows < whole.rows / 3


def test_the_mean_pass_keeps_sums() -> None:
    layout = lay_out(assumed(None, 50, 100), Settings(batch_size=7), Placement())
    mean = mean_pass(layout.passes)
    assert mean.rows == pytest.approx(sum(p.rows for p in layout.passes) / len(layout.passes), abs=0.5)
    half = mean_pass(layout.passes, 0.5)
    assert half.rows == pytest.approx(mean.rows / 2, abs=1)


def test_conversations_with_tools_are_estimated_too() -> None:
    calls = '[{"type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}}]'
    turns = (Message("user", "Is it wet?"), Message("assistant", "", calls), Message("tool", "yes"))
    whole = Record(1, messages=(*turns, Message("assistant", "It is.")), tools='[{"function": {"name": "weather"}}]')
    template = EstimatedTemplate()
    (with_tools,) = tasks.encode(tasks.Chat(), [whole], template, 500, ignore)  # type: ignore[arg-type]
    (without,) = tasks.encode(tasks.Chat(), [replace(whole, tools="")], template, 500, ignore)  # type: ignore[arg-type]
    assert len(with_tools.tokens) - len(without.tokens) == len(template.encode(whole.tools))
    assert with_tools.targets == without.targets == len(template.reply(calls)) + len(template.reply("It is."))


def test_estimated_tokens_share_what_texts_share() -> None:
    template = EstimatedTemplate()
    a, b = (template.prompt([Message("user", "the same instruction. " + text)]) for text in ("one text", "another"))
    common = next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    assert common >= 4 + len("the same instruction. ") // 4
    record = Record(1, messages=(Message("user", "hello there"), Message("assistant", "good day to you")))
    (example,) = tasks.Chat().encode(record, 0, template, 100)  # type: ignore[arg-type]
    assert example.targets == len(template.reply("good day to you"))
