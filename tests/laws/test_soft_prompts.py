"""Soft prompts' own laws: what they cost a batch, what they start from, where they stand, and what they refuse."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import DynamicCache, GPTJConfig, GPTJForCausalLM

from heptune import techniques
from heptune.core.errors import BaseModelError, TechniqueError
from heptune.data.record import Message
from heptune.engine.forward import Forward, require_positions
from heptune.engine.optimizer import adamw
from heptune.models.anatomy import dissect
from heptune.models.prefix import record
from heptune.scoring.generate import Sampling, reply
from heptune.tasks.chat import Chat
from heptune.tasks.template import ChatTemplate
from heptune.techniques.p_tuning import PTuning
from heptune.techniques.p_tuning_v2 import PTuningV2
from heptune.techniques.prefix import Prefix
from heptune.techniques.prompt import Prompt
from laws.cases import BATCH, TOKENS, disturb, example, logits, saved
from tiny import VOCABULARY, tiny_model, tiny_tokenizer
from tolerances import FLOAT32, assert_near

WINDOWED = ("gemma3", "mistral")
MESSAGES = [Message("user", "What is the capital?"), Message("assistant", "Paris."), Message("user", "And the river?")]


def rows(technique: object) -> int:
    anatomy = dissect(tiny_model("llama"))
    if technique is not None:
        technique.attach(anatomy, seed=0)  # type: ignore[attr-defined]
    with torch.no_grad(), Forward(anatomy).loss(BATCH) as batch:
        return batch.rows


def test_a_prompt_is_computed_once_a_batch_and_a_prefix_not_at_all() -> None:
    plain = rows(None)
    assert rows(Prompt(7)) == plain + 7
    assert rows(PTuning(7)) == plain + 7
    assert rows(Prefix(7, encoder_hidden=4)) == rows(PTuningV2(7)) == plain
    # Behind the text each example has its own; examples with one lead share them.
    leads = {e.tokens[: e.lead] for e in BATCH}
    assert rows(PTuning(prompt_template="{p:2} text {p:3}")) == plain + 2 + 3 * len(leads)


@pytest.mark.parametrize("family", ["llama", "gpt2", *WINDOWED])
def test_words_start_as_the_base_reads_them(family: str) -> None:
    """A prefix that starts from words is, before training, those words standing before the text."""
    anatomy = dissect(tiny_model(family))
    words = [5, 9, 200, 31]
    text = [17, 40, 41, 42, 43, 44, 45]
    with torch.no_grad():
        want = anatomy.model(input_ids=torch.tensor([words + text]), use_cache=False).logits[0, len(words) :]
        cache = DynamicCache()  # without a window: all positions stay
        anatomy.model(input_ids=torch.tensor([words]), past_key_values=cache)
        found = record(anatomy, torch.tensor(words))
    layers = [t[0] for layer in cache.layers for t in (layer.keys, layer.values)]
    assert_near(found, torch.stack(layers), FLOAT32)
    for technique in (
        Prefix(4, "text", "words", encoder_hidden=4),
        PTuningV2(4, "text", "words"),
        Prompt(4, "text", "words"),
    ):
        fresh = dissect(tiny_model(family))
        technique.attach(fresh, 0, lambda text: words)
        with torch.no_grad():
            got = fresh.model(input_ids=torch.tensor([text]), use_cache=False).logits[0]
        assert_near(got, want, FLOAT32, technique.name)


@pytest.mark.parametrize(
    "technique", [Prompt(3), PTuning(3), Prefix(3, encoder_hidden=4), PTuningV2(3)], ids=lambda t: t.name
)
def test_nothing_old_is_used_after_a_step_of_a_fused_optimizer(technique: Prompt) -> None:
    """Fused AdamW changes weights without raising their version: what was folded before must not be used."""
    anatomy = dissect(tiny_model("llama"))
    attached = technique.attach(anatomy, 0)
    forward = Forward(anatomy)
    optimizer = adamw(attached.parameters, weight_decay=0.0)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    seen = []
    for step in range(3):
        attached.begin_step(None)
        with torch.no_grad():
            table = attached.network().clone()
        assert torch.equal(attached.saved()["prompt_embeddings"], table)
        seen.append((logits(anatomy), table))
        attached.begin_step(step)
        with forward.loss(BATCH) as batch:
            batch.total.backward()
        optimizer.step()
    for before, after in pairwise(seen):
        assert not torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_random_vectors_are_as_large_as_words_that_the_model_reads(family: str) -> None:
    anatomy = dissect(tiny_model(family))
    words = anatomy.model.get_input_embeddings()(torch.arange(VOCABULARY)).detach()
    vectors = Prompt(200, init="random").attach(anatomy, 0).saved()["prompt_embeddings"]
    assert float(vectors.std()) == pytest.approx(float(words.std()), rel=0.05)


def test_a_text_is_repeated_or_cut_to_the_prompts_length() -> None:
    anatomy = dissect(tiny_model("llama"))
    words = anatomy.model.get_input_embeddings().weight
    for count, ids in ((5, [3, 4, 3, 4, 3]), (1, [3])):
        technique = Prompt(count, "text", "two words")
        attached = technique.attach(dissect(tiny_model("llama")), 0, lambda text: [3, 4])
        assert torch.equal(attached.parameters["prompt_embeddings"], words[ids])
    with pytest.raises(TechniqueError, match="tokenizer"):
        Prompt(2, "text", "x").attach(anatomy, 0)
    with pytest.raises(TechniqueError, match="no tokens"):
        Prompt(2, "text", "x").attach(anatomy, 0, lambda text: [])


@pytest.mark.parametrize("name", ["prefix", "p_tuning", "prompt"])
def test_a_prompt_folded_by_peft_goes_on_from_its_vectors(name: str, tmp_path: Path) -> None:
    """Without the network beside it the folder says what is missing; with it training goes on exactly."""
    technique = techniques.build(name, {"virtual_tokens": 3, "init": "random"} if name != "p_tuning" else {})
    attached = technique.attach(dissect(tiny_model("llama")), 0)
    folder = saved(attached, tmp_path / "artifact")
    network = folder / "prompt_network.safetensors"
    assert network.exists() == (name != "prompt")
    if network.exists():
        network.unlink()
        with pytest.raises(TechniqueError, match=r"prompt_network\.safetensors"):
            techniques.get(name).restore(dissect(tiny_model("llama")), folder)


def test_a_network_of_another_training_is_refused(tmp_path: Path) -> None:
    folders = []
    for seed in (0, 1):
        attached = Prefix(3, init="random", encoder_hidden=4).attach(dissect(tiny_model("llama")), seed)
        folders.append(saved(attached, tmp_path / str(seed)))
    name = "prompt_network.safetensors"
    (folders[0] / name).write_bytes((folders[1] / name).read_bytes())
    with pytest.raises(TechniqueError, match="different trainings"):
        Prefix.restore(dissect(tiny_model("llama")), folders[0])


def test_a_network_that_ran_on_a_gpu_is_accepted(tmp_path: Path) -> None:
    """There an LSTM's weights are rounded to 10 bits behind the point before they are multiplied (TF32)."""
    attached = PTuning(20).attach(dissect(tiny_model("llama")), 0)
    with torch.no_grad():
        for parameter in attached.parameters.values():
            parameter.mul_(3)  # as training makes them grow
        exact = {name: parameter.clone() for name, parameter in attached.parameters.items()}
        for name, parameter in attached.parameters.items():
            if "mlp" not in name:
                parameter.copy_(((parameter.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32))
    folder = saved(attached, tmp_path / "artifact")
    save_file(exact, folder / "prompt_network.safetensors")
    restored = PTuning.restore(dissect(tiny_model("llama")), folder)
    for name, parameter in restored.parameters.items():
        assert torch.equal(parameter, exact[name])


@pytest.mark.parametrize(
    "source", [Prefix(3, init="random", encoder_hidden=4), PTuningV2(3, init="random")], ids=["prefix", "v2"]
)
@pytest.mark.parametrize("reparameterised", [False, True])
def test_one_tasks_prompt_starts_from_anothers(
    source: Prefix | PTuningV2, reparameterised: bool, tmp_path: Path
) -> None:
    anatomy = dissect(tiny_model("llama"))
    attached = source.attach(anatomy, 0)
    disturb(attached)
    folder = saved(attached, tmp_path / "artifact")
    fresh = dissect(tiny_model("llama"))
    started = PTuningV2(3, start_from=str(folder), reparameterised=reparameterised, encoder_hidden=4).attach(fresh, 0)
    assert_near(logits(fresh), logits(anatomy), FLOAT32)
    disturb(started)
    again = dissect(tiny_model("llama"))
    PTuningV2.restore(again, saved(started, tmp_path / "second"))
    assert torch.equal(logits(again), logits(fresh))
    run = PTuningV2(3, start_from=str(tmp_path), reparameterised=reparameterised, encoder_hidden=4)
    assert tmp_path / "artifact" == folder, "a run directory holds its artifact under this name"
    run.attach(direct := dissect(tiny_model("llama")), 0)
    assert_near(logits(direct), logits(anatomy), FLOAT32)
    with pytest.raises(TechniqueError, match="has 3 virtual tokens and virtual_tokens is 4; use --virtual-tokens 3"):
        PTuningV2(4, start_from=str(folder)).attach(dissect(tiny_model("llama")), 0)


def test_a_start_from_something_else_says_what_is_needed(tmp_path: Path) -> None:
    other = saved(Prompt(3).attach(dissect(tiny_model("llama")), 0), tmp_path / "prompt")
    for folder in (tmp_path / "missing", tmp_path, other):
        with pytest.raises(TechniqueError, match="holds no prefix; name a run of prefix or p_tuning_v2"):
            PTuningV2(3, start_from=str(folder)).attach(dissect(tiny_model("llama")), 0)


@pytest.mark.parametrize(
    "technique",
    [PTuning(prompt_template="{p:2} text {p:3}"), PTuning(5), Prompt(5), PTuningV2(5)],
    ids=lambda t: t.name,
)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_replies_see_the_prompt_where_training_put_it(technique: PTuning, family: str) -> None:
    """Each token of a greedy reply, in the second turn of a conversation, is the likeliest in the training's layout."""
    anatomy = dissect(tiny_model(family, vocab_size=VOCABULARY))
    disturb(technique.attach(anatomy, 0))
    template = ChatTemplate(tiny_tokenizer())
    forward = Forward(anatomy)
    pieces: list[str] = []
    reply(anatomy, template, MESSAGES, Sampling(max_tokens=5), pieces.append)
    lead = len(template.conversation(MESSAGES)[0][0].tokens)  # where the first reply begins
    prompt = template.prompt(MESSAGES)
    assert lead < len(prompt)
    ids: list[int] = []  # found by scoring every continuation in training's layout
    for _ in range(5):
        base = [*prompt, *ids]
        options = [example([*base, v], {lead, len(base)}, v) for v in range(VOCABULARY)]
        ids.append(int(forward.score(options).argmin()))
        if ids[-1] in template.stop_tokens:
            break
    expected = [i for i in ids if i not in template.stop_tokens]
    assert "".join(pieces) == template.tokenizer.decode(expected, skip_special_tokens=True)


@pytest.mark.parametrize("settings", [{"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 2}], ids=str)
def test_replies_are_the_models_own_whatever_habits_its_files_bring(settings: dict[str, Any]) -> None:
    """A repetition penalty looks every id of the prompt up; a virtual token has none."""
    said = []
    for habits in ({}, settings):
        anatomy = dissect(tiny_model("llama"))
        disturb(PTuning(prompt_template="{p:2} text {p:3}").attach(anatomy, 0))
        for name, value in habits.items():
            setattr(anatomy.model.generation_config, name, value)
        said.append(reply(anatomy, ChatTemplate(tiny_tokenizer()), MESSAGES, Sampling(max_tokens=12)))
    assert said[0] == said[1]


@pytest.mark.parametrize("technique", [Prompt(3), PTuning(3), Prefix(3), PTuningV2(3)], ids=lambda t: t.name)
def test_embedded_words_see_the_prompt_too(technique: Prompt) -> None:
    anatomy = dissect(tiny_model("llama"))
    disturb(technique.attach(anatomy, 0))
    words = anatomy.model.get_input_embeddings()(TOKENS)
    with torch.no_grad():
        got = anatomy.model(inputs_embeds=words, use_cache=False).logits
    assert_near(got, logits(anatomy), FLOAT32)


@pytest.mark.parametrize("technique", [Prompt(4), Prefix(4), PTuningV2(4)], ids=lambda t: t.name)
@pytest.mark.parametrize("family", ["llama", "gpt2", *WINDOWED])
def test_padding_on_the_left_changes_nothing(technique: Prompt, family: str) -> None:
    """A window is counted from where a sequence begins, and the padding before it takes no place in it."""
    anatomy = dissect(tiny_model(family))
    disturb(technique.attach(anatomy, 0))
    text, pad = TOKENS[:1, :5], torch.zeros(1, 5, dtype=torch.int64)
    padded = torch.cat([pad, text], dim=1)
    mask = torch.cat([pad, torch.ones_like(text)], dim=1)
    position = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        want = anatomy.model(input_ids=text, use_cache=False).logits
        got = anatomy.model(input_ids=padded, attention_mask=mask, position_ids=position, use_cache=False).logits
    assert_near(got[:, 5:], want, FLOAT32)
    settings = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None, "pad_token_id": 0}
    alone = anatomy.model.generate(input_ids=text, attention_mask=torch.ones_like(text), **settings)
    beside = anatomy.model.generate(input_ids=padded, attention_mask=mask, **settings)
    assert torch.equal(beside[:, 10:], alone[:, 5:])


def test_scarce_positions_are_told_with_a_way_out() -> None:
    anatomy = dissect(tiny_model("gpt2", n_positions=20))
    PTuningV2(8).attach(anatomy, 0)
    with pytest.raises(
        TechniqueError,
        match=r"takes 8 positions .* 16 tokens, but GPT2LMHeadModel has 20 .*tokens 4 or --max-length 12",
    ):
        require_positions(anatomy, BATCH)
    require_positions(dissect(tiny_model("gpt2", n_positions=20)), BATCH)


@pytest.mark.parametrize(
    "technique", [Prompt(8), PTuning(prompt_template="{p:3} text {p:5}"), PTuningV2(8)], ids=lambda t: t.name
)
def test_scarce_positions_are_told_at_use_too(technique: Prompt) -> None:
    """Training looks at its own examples; validation, evaluation and conversations may be longer."""
    anatomy = dissect(tiny_model("gpt2", n_positions=60))
    forward, template = Forward(anatomy), ChatTemplate(tiny_tokenizer())
    technique.attach(anatomy, 0)
    long = example([5] * 55, {54})
    with pytest.raises(TechniqueError, match=r"longest example has 55 tokens, .*tokens 5 or --max-length 52"):
        list(forward.portions([long], 4096))
    with pytest.raises(TechniqueError, match=r"has 60 positions; tune with --max-length 52"):
        require_positions(anatomy, [example([5] * 61, {60})])
    length = len(template.prompt(MESSAGES[:1]))
    assert length + 8 < 60 < length + 8 + 256
    reply(anatomy, template, MESSAGES[:1], Sampling(max_tokens=256))
    with pytest.raises(BaseModelError, match=r"takes 8 positions and GPT2LMHeadModel has 60 positions: none is left"):
        reply(anatomy, template, [Message("user", "What is the capital? " * 20)], Sampling(max_tokens=5))


@pytest.mark.parametrize("technique", [Prompt(3), PTuning(3), Prefix(3), PTuningV2(3)], ids=lambda t: t.name)
def test_an_attention_that_cannot_be_reached_is_refused(technique: Prompt) -> None:
    config = GPTJConfig(n_embd=32, n_layer=2, n_head=4, rotary_dim=4, vocab_size=VOCABULARY, n_positions=64)
    with pytest.raises(TechniqueError, match=r"GPTJForCausalLM .* lora, freeze, full"):
        technique.attach(dissect(GPTJForCausalLM(config).eval()), 0)


@pytest.mark.parametrize("second", [Prompt(3), PTuning(3), Prefix(3), PTuningV2(3)], ids=lambda t: t.name)
@pytest.mark.parametrize("first", [Prompt(4), PTuning(4), Prefix(4), PTuningV2(4)], ids=lambda t: t.name)
def test_one_after_another_but_not_two_at_once(first: Prompt, second: Prompt) -> None:
    """Two would each move the positions, and the later one's keys and values would stand in for the earlier one's."""
    anatomy, fresh = (dissect(tiny_model("llama")) for _ in range(2))
    attached = first.attach(anatomy, 0)
    with pytest.raises(TechniqueError, match="LlamaForCausalLM has virtual tokens already; detach"):
        second.attach(anatomy, 0)
    attached.detach()
    second.attach(anatomy, 0)
    second.attach(fresh, 0)
    assert torch.equal(logits(anatomy), logits(fresh))


_SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_EXPERTS = {"num_experts_per_tok": 1, "vocab_size": VOCABULARY, "initializer_range": 0.1, "pad_token_id": 0}
_LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 6}
_LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
# Attention sinks; keys and values of different widths; a layer without attention.
UNLIKE: dict[str, dict[str, Any]] = {
    "GptOss": {"num_local_experts": 2, "head_dim": 8, "num_key_value_heads": 2},
    "DeepseekV3": {**_LATENT, "n_routed_experts": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16},
    "Qwen3Next": {**_LINEAR, "num_experts": 2, "layer_types": ["linear_attention", "full_attention"], "head_dim": 8},
}


@pytest.mark.parametrize("technique", [Prompt(3), Prefix(3, init="random"), PTuningV2(3)], ids=lambda t: t.name)
@pytest.mark.parametrize("kind", list(UNLIKE))
def test_attention_that_takes_no_prefix_is_refused(kind: str, technique: Prompt) -> None:
    """Without words about it such a model would compute something else, with the prompt or even without it."""
    config = getattr(transformers, f"{kind}Config")(**_SMALL, **_EXPERTS, **UNLIKE[kind])
    anatomy = dissect(getattr(transformers, f"{kind}ForCausalLM")(config).eval())
    before = logits(anatomy)
    with pytest.raises(TechniqueError, match=f"{kind}ForCausalLM .* lora, freeze, full"):
        technique.attach(anatomy, 0)
    assert torch.equal(logits(anatomy), before)


def test_settings_out_of_range_are_refused() -> None:
    for settings in ({"virtual_tokens": 0}, {"init": "zero"}, {"init": "text"}, {"init_text": "words"}):
        for kind in (Prompt, Prefix, PTuningV2):
            with pytest.raises(TechniqueError, match="virtual_tokens|init"):
                kind(**settings)  # type: ignore[arg-type]
    with pytest.raises(TechniqueError, match="encoder_hidden is 0"):
        Prefix(encoder_hidden=0)
    for wrong in (
        {"encoder": "gru"},
        {"virtual_tokens": -1},
        {"prompt_template": "{p:2} words"},
        {"prompt_template": "text"},
    ):
        with pytest.raises(TechniqueError, match="p_tuning"):
            PTuning(**wrong)  # type: ignore[arg-type]
    with pytest.raises(TechniqueError, match="must agree"):
        PTuning(4, prompt_template="{p:2} text {p:3}")
    assert PTuning(prompt_template="{p:2}{text}{p:3}").places == (2, 3) and PTuning().places == (20, 0)


def test_a_chat_that_begins_with_the_assistant_keeps_its_places() -> None:
    """The lead ends at the first supervised token, which is not the first reply of the conversation then."""
    template = ChatTemplate(tiny_tokenizer())
    talk = [Message("assistant", "Hello."), Message("user", "Hi."), Message("assistant", "What?"), Message("user", "x")]
    anatomy = dissect(tiny_model("llama"))
    disturb(PTuning(prompt_template="{p:1} text {p:2}").attach(anatomy, 0))
    assert isinstance(reply(anatomy, template, Chat().messages(talk), Sampling(max_tokens=2)), str)
