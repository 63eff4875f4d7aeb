"""Shapes in closed form are those of the models themselves, and parameter counts are those that were published."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import tiny
from heptune.core.errors import BaseModelError
from heptune.core.events import Note
from heptune.models.anatomy import dissect
from heptune.models.catalog import describe, entries, find
from heptune.models.embedded import EMBEDDED
from heptune.models.families import NOT_IN_TRANSFORMERS, families, shape_of
from heptune.models.shape import ModelShape
from tiny import FAMILIES, tiny_model

IN_TRANSFORMERS = sorted(set(families()) - NOT_IN_TRANSFORMERS)


def of_model(config: object) -> ModelShape:
    with torch.device("meta"):
        return dissect(AutoModelForCausalLM.from_config(config)).shape


@pytest.mark.parametrize("family", IN_TRANSFORMERS)
def test_the_closed_form_is_the_models_own_shape(family: str) -> None:
    """With transformers' own defaults, a real size, whether the configuration spells them out or leaves them out."""
    config = AutoConfig.for_model(family)
    real = of_model(config)
    assert shape_of(config.to_dict()) == real
    assert shape_of({"model_type": family}) == real


@pytest.mark.parametrize("family", IN_TRANSFORMERS)
def test_every_setting_that_changes_the_shape_is_followed(family: str) -> None:
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 90}
    sizes |= {
        "max_position_embeddings": 77,
        "tie_word_embeddings": not AutoConfig.for_model(family).tie_word_embeddings,
    }
    if family not in ("gpt2", "gptj"):
        sizes["intermediate_size"] = 56
    own = {
        "gpt2": {"n_inner": 56},
        "gptj": {"n_inner": 56, "rotary_dim": 4},
        "gpt_neox": {"attention_bias": False},
        "glm4_moe": {"n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "use_qk_norm": True}
        | {"n_shared_experts": 2, "first_k_dense_replace": 2, "n_group": 1, "topk_group": 1},
        "qwen3_moe": {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "mlp_only_layers": [1]},
        "mixtral": {"num_local_experts": 6, "num_experts_per_tok": 3},
    }.get(family, {})
    if family not in ("gpt2", "gptj", "gpt_neox", "phi3", "smollm3", "olmo2"):
        own |= {"head_dim": 20}
    if family not in ("gpt2", "gptj", "gpt_neox"):
        own |= {"num_key_value_heads": 2}
    if family in ("llama", "qwen3", "gemma2", "gemma3_text", "glm", "glm4", "olmo2", "smollm3"):
        own |= {"attention_bias": not getattr(AutoConfig.for_model(family), "attention_bias", False)}
    if family in ("llama", "smollm3"):
        own |= {"mlp_bias": True}
    config = AutoConfig.for_model(family, **sizes, **own, pad_token_id=0)
    assert shape_of(config.to_dict()) == of_model(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tests_own_tiny_models_have_closed_forms(family: str) -> None:
    model = tiny_model(family)
    assert shape_of(model.config.to_dict()) == dissect(model).shape


@pytest.mark.parametrize("name", sorted(entries()))
def test_the_published_parameter_count_comes_out(name: str) -> None:
    """Exactly where it was published exactly; else within 1%, or as it is rounded."""
    entry = entries()[name]
    counted = entry.shape.parameters
    if entry.published.isdigit():
        assert counted == int(entry.published)
        return
    value = float(entry.published.removesuffix("B")) * 1e9
    digits = len(entry.published.removesuffix("B").replace(".", "").strip("0"))
    rounded = round(counted, digits - 1 - math.floor(math.log10(counted)))
    assert abs(counted / value - 1) < 0.01 or rounded == value


def test_a_token_passes_through_the_published_part_of_a_mixture_of_experts() -> None:
    """Active parameters, in billions, as the papers round them."""
    published = {"mixtral-8x7b": 12.9, "qwen3-30b-a3b": 3.3, "qwen3-235b-a22b": 22, "glm-4.5": 32, "glm-4.5-air": 12}
    for name, billions in published.items():
        shape = entries()[name].shape
        words = shape.vocabulary * shape.hidden  # some count the input's embeddings, some do not
        assert min(abs(shape.active_parameters - x * words - 1e9 * billions) for x in (0, 1, 2)) < 0.02e9 * billions, (
            name
        )


@pytest.mark.parametrize("name", sorted(n for n, e in entries().items() if e.form_of is None))
def test_a_catalog_configuration_is_one_that_transformers_understands(name: str) -> None:
    entry = entries()[name]
    assert entry.config["model_type"] in CONFIG_MAPPING
    config = CONFIG_MAPPING[entry.config["model_type"]].from_dict(dict(entry.config))
    assert shape_of(config.to_dict()) == entry.shape


@pytest.mark.parametrize("name", ["llama-3.2-1b", "qwen3-30b-a3b", "glm-4.5-air", "gemma-3-27b", "gpt2-xl", "phi-4"])
def test_a_catalog_base_has_the_shape_of_the_built_model(name: str) -> None:
    entry = entries()[name]
    assert of_model(CONFIG_MAPPING[entry.config["model_type"]].from_dict(dict(entry.config))) == entry.shape


def test_a_family_outside_transformers_says_which_form_stands_in_and_why() -> None:
    outside = {n for n, e in entries().items() if e.config["model_type"] in NOT_IN_TRANSFORMERS}
    assert outside == {"glm-130b", "chatglm-6b", "chatglm2-6b", "chatglm3-6b", "visualglm-6b"}
    for name in outside:
        entry = entries()[name]
        assert entry.form_of in CONFIG_MAPPING and entry.why_form and entry.note
        assert describe(name).tunable is None and describe(name).form_family == entry.form_of


def test_names_and_hub_ids_are_found() -> None:
    assert find("GLM_130B") is entries()["glm-130b"]
    assert find("meta-llama/llama-3.1-8b-instruct") is entries()["llama-3.1-8b"]
    assert find("llama") is None
    assert describe("meta-llama/Llama-3.1-8B-Instruct").tunable == "meta-llama/Llama-3.1-8B-Instruct"
    assert describe("llama-3.1-8b").tunable == "meta-llama/Llama-3.1-8B"
    assert describe("smollm2-135m").tunable == "smollm2-135m"


def test_a_hub_id_stands_for_one_base() -> None:
    ids = [hub_id for entry in entries().values() for hub_id in entry.hub]
    assert len(ids) == len(set(ids)) and all(entry.source for entry in entries().values())


def test_a_name_of_nothing_gets_the_nearest() -> None:
    with pytest.raises(BaseModelError, match=r"no base 'llama-3.1-9b'; did you mean .*llama-3.1-8b"):
        describe("llama-3.1-9b")
    with pytest.raises(BaseModelError, match=r"no folder or file ./models/mine"):
        describe("./models/mine")


def test_a_folder_needs_no_weights(tmp_path: Path) -> None:
    model = tiny_model("glm4")
    model.config.save_pretrained(tmp_path)
    facts = describe(str(tmp_path))
    assert facts.shape == dissect(model).shape and facts.tunable == str(tmp_path) and facts.form_family == "glm4"


def test_a_family_without_closed_form_is_built_without_memory(tmp_path: Path) -> None:
    config = AutoConfig.for_model("phi", hidden_size=32, intermediate_size=48, num_hidden_layers=2, vocab_size=90)
    config.num_attention_heads = 4
    config.architectures = ["PhiForCausalLM"]
    config.save_pretrained(tmp_path)
    told: list[object] = []
    facts = describe(str(tmp_path), listener=told.append)
    assert facts.shape == of_model(config)
    assert any(isinstance(event, Note) and "phi model" in event.text for event in told)


def test_a_base_that_needs_its_own_code_is_refused(tmp_path: Path) -> None:
    """ChatGLM's own config.json has other names than the catalog: it is not guessed at."""
    config = {"model_type": "chatglm", "num_layers": 2, "auto_map": {"AutoModel": "modeling_chatglm.ChatGLM"}}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(BaseModelError, match="needs its own Python code"):
        describe(str(tmp_path))


def test_an_empty_folder_is_refused_as_the_loader_does(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"has no config.json"):
        describe(str(tmp_path))


def test_a_gguf_file_is_known_by_its_header(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in {
        "block_count": 2,
        "context_length": 64,
        "embedding_length": 32,
        "feed_forward_length": 48,
    }.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_uint32("llama.attention.head_count", 4)
    writer.add_uint32("llama.attention.head_count_kv", 2)
    writer.add_uint32("llama.vocab_size", tiny.VOCABULARY)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    shape = describe(str(path)).shape
    assert (shape.family, shape.layers, shape.hidden, shape.kv_heads) == ("llama", 2, 32, 2)


def test_a_missing_size_is_named() -> None:
    with pytest.raises(BaseModelError, match="hidden_size = 'wide'"):
        shape_of({"model_type": "llama", "hidden_size": "wide"})
    with pytest.raises(BaseModelError, match="no closed form is known for the model type 'bert'"):
        shape_of({"model_type": "bert"})


def test_an_embedded_encoder_is_described_without_fetching_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_fetch(*arguments: Any, **more: Any) -> Path:
        pytest.fail("its weights would come with it")

    monkeypatch.setattr("heptune.models.load.fetch", no_fetch)
    monkeypatch.setattr("heptune.models.embedded.fetch", no_fetch)
    facts = describe("minilm")
    assert facts.both_ways and facts.tunable == "minilm"
    # As all-MiniLM-L6-v2 has them without its pooling layer.
    assert (facts.shape.parameters, facts.shape.layers, facts.shape.hidden) == (22_565_376, 6, 384)
    assert all(find(name) is not None or EMBEDDED[name].config for name in EMBEDDED)
