"""New models: sizes near their names, tokenizers that encode any text, weights that follow from the seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from heptune.core.errors import BaseModelError, UsageError
from heptune.data.record import Message
from heptune.models.families import shape_of
from heptune.models.load import load_base
from heptune.models.newborn import (
    FAMILIES,
    NAMES,
    SIZES,
    configuration,
    train_tokenizer,
    usual_rate,
    with_size,
    write_newborn,
)
from heptune.tasks.template import ChatTemplate

LINES = ["The river ran under the old stone bridge.", "Nobody crossed the bridge after dark.", "Où est la rivière ?"]
TOKENIZER = train_tokenizer(LINES * 3, 310, 64)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("vocabulary", [1024, 4096])
def test_a_model_has_about_as_many_parameters_as_its_name_says(name: str, vocabulary: int) -> None:
    config = configuration(name, vocabulary, 256)
    wanted = SIZES[name.rpartition("-")[2]].parameters
    made = AutoConfig.for_model(config["model_type"], **{k: v for k, v in config.items() if k != "model_type"})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == shape_of(config).parameters
    assert abs(count / wanted - 1) < 0.12


def test_unknown_names_and_too_large_vocabularies() -> None:
    with pytest.raises(UsageError, match="did you mean llama-5m"):
        configuration("lama-5m", 4096, 256)
    with pytest.raises(UsageError, match="smaller vocabulary or a larger size"):
        configuration("llama-1m", 50_000, 256)


def test_a_configuration_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "llama", "vocab_size": 9, "max_position_embeddings": 128}), "utf-8")
    assert configuration(str(path), 300, 128)["vocab_size"] == 300
    with pytest.raises(UsageError, match="take --context 128"):
        configuration(str(path), 300, 256)
    path.write_text("[]", "utf-8")
    with pytest.raises(BaseModelError, match="no configuration with a model_type"):
        configuration(str(path), 300, 128)
    with pytest.raises(BaseModelError, match="cannot be read"):
        configuration(str(tmp_path / "none.json"), 300, 128)
    with pytest.raises(BaseModelError, match="transformers cannot make a model"):
        write_newborn(tmp_path, {"model_type": "no-such-model"}, TOKENIZER, 0)


def test_learning_rates_fall_with_the_size() -> None:
    rates = [usual_rate(f"gpt2-{size}", 0) for size in SIZES] + [usual_rate("config.json", 10**9)]
    assert rates == sorted(rates, reverse=True) and len(set(rates)) == len(rates)
    assert usual_rate("config.json", 900_000) == usual_rate("llama-1m", 0)


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=60).filter(lambda t: "<|" not in t))
def test_any_text_comes_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text, add_special_tokens=False)) == text


def test_the_tokenizer_learns_words_and_knows_its_marks() -> None:
    assert len(TOKENIZER) == 310
    assert len(TOKENIZER.encode(" the", add_special_tokens=False)) == 1
    assert TOKENIZER.encode("a")[0] == TOKENIZER.bos_token_id == TOKENIZER.eos_token_id == 0
    template = ChatTemplate(TOKENIZER)
    assert (template.bos, template.eos) == (0, 0) and not template.is_default
    (segments,) = template.conversation([Message("user", "Hi"), Message("assistant", "Hello.")])
    shown = [(TOKENIZER.decode(list(segment.tokens)), segment.supervised) for segment in segments]
    assert shown == [
        ("<|endoftext|><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", False),
        ("Hello.<|im_end|>", True),
    ]
    with pytest.raises(UsageError, match="at least 259 tokens"):
        train_tokenizer(LINES, 200, 64)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_follow_from_the_seed_and_load_as_a_base(family: str, tmp_path: Path) -> None:
    config = configuration(f"{family}-1m", len(TOKENIZER), 64)
    marks = []
    for number, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_newborn(folder, config, TOKENIZER, seed)
        marks.append(load_base(str(folder)).fingerprint)
    assert marks[0] == marks[1] != marks[2]


def test_a_size_may_be_told_apart_from_its_architecture() -> None:
    assert [with_size(family, size) for family in FAMILIES for size in SIZES] == list(NAMES)
    assert with_size("llama-5m", None) == "llama-5m" and with_size("own.json", None) == "own.json"
    with pytest.raises(UsageError, match=r"--size goes with an architecture \(llama, gpt2, glm4\), not with llama-5m"):
        with_size("llama-5m", "1m")
    with pytest.raises(UsageError, match="there is no size named '7m'"):
        with_size("llama", "7m")
