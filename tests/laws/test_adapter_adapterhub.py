"""Adapters against AdapterHub's library: artifacts go both ways, with equal logits.

The library pins another transformers, so its side lies in tests/fixtures/adapterhub, made by make.py there. The way
back is checked by hand in its environment: HEPTUNE_ADAPTERHUB_OUT=FOLDER pytest this file, then make.py --check FOLDER.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from heptune import techniques
from heptune.core.errors import TechniqueError
from heptune.models.anatomy import Anatomy, dissect
from heptune.techniques.adapter import Adapter
from laws.cases import assert_same_state, disturb, saved, state
from tolerances import FLOAT32, assert_near

FIXTURES = Path(__file__).parents[1] / "fixtures/adapterhub"

# What the library's presets are here.
PRESETS = {
    "seq_bn": Adapter(),
    "double_seq_bn": Adapter(variant="houlsby"),
    "par_bn": Adapter(variant="parallel", reduction=2),
    "more": Adapter(reduction=5, activation="gelu", leave_out=(0,), scaling=0.5),
}
BOTH_WAYS = [(family, preset) for family in ("llama", "gpt2") for preset in PRESETS]


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("adapterhub_base", FIXTURES / "base.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BASES = _module()


@torch.no_grad()
def _logits(anatomy: Anatomy) -> torch.Tensor:
    return anatomy.model(input_ids=BASES.TOKENS, use_cache=False).logits


def _base(family: str) -> Anatomy:
    return dissect(BASES.base(family))


@pytest.mark.parametrize(("family", "preset"), BOTH_WAYS)
def test_heptune_loads_what_the_library_saved(family: str, preset: str) -> None:
    folder = FIXTURES / family / preset
    assert techniques.recognise(folder) is Adapter
    anatomy = _base(family)
    before = _logits(anatomy)
    attached = Adapter.restore(anatomy, folder)
    wanted = load_file(folder / "logits.safetensors")["logits"]
    assert float((wanted - before).abs().max()) > 0.1
    assert_near(_logits(anatomy), wanted, FLOAT32)
    own, chosen = attached.settings, PRESETS[preset]
    assert (own.variant, own.reduction, own.leave_out) == (chosen.variant, chosen.reduction, chosen.leave_out)
    assert (own.own_activation, own.own_scaling) == (chosen.own_activation, chosen.own_scaling)


@pytest.mark.parametrize(("family", "preset"), BOTH_WAYS)
def test_what_heptune_saves_is_what_the_library_would(family: str, preset: str, tmp_path: Path) -> None:
    anatomy = _base(family)
    attached = PRESETS[preset].attach(anatomy, seed=0)
    disturb(attached)
    folder = saved(attached, tmp_path / "artifact")
    ours = load_file(folder / "adapter.safetensors")
    theirs = load_file(FIXTURES / family / preset / "adapter.safetensors")
    renamed = {name.replace(".fixture.", ".heptune."): tensor for name, tensor in theirs.items()}
    assert {n: (t.shape, t.dtype) for n, t in ours.items()} == {n: (t.shape, t.dtype) for n, t in renamed.items()}

    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    library = json.loads((FIXTURES / family / preset / "adapter_config.json").read_text("utf-8"))
    # Names are each side's own; how the training began is Heptune's for all variants, the library's for parallel only.
    library["config"]["init_weights"] = "mam_adapter"
    assert config == {**library, "name": "heptune", "model_name": "tiny"}
    # The library takes an integer for no scaling at all; of the reduction it takes either.
    own = {key: type(value) for key, value in config["config"].items() if key != "reduction_factor"}
    assert own == {key: type(value) for key, value in library["config"].items() if key != "reduction_factor"}

    if out := os.environ.get("HEPTUNE_ADAPTERHUB_OUT"):
        target = Path(out) / family / preset
        shutil.copytree(folder, target)
        save_file({"logits": _logits(anatomy).contiguous()}, target / "logits.safetensors")


def test_the_prefix_of_a_model_without_head_is_put_back(tmp_path: Path) -> None:
    folder = shutil.copytree(FIXTURES / "llama/seq_bn", tmp_path / "bare")
    tensors = load_file(folder / "adapter.safetensors")
    save_file({name.removeprefix("model."): t for name, t in tensors.items()}, folder / "adapter.safetensors")
    anatomy = _base("llama")
    Adapter.restore(anatomy, folder)
    assert_near(_logits(anatomy), load_file(folder / "logits.safetensors")["logits"], FLOAT32)


def _edited(folder: Path, tmp_path: Path, **config: Any) -> Path:
    """A copy of an artifact whose configuration says something else; `whole` replaces keys of the top level."""
    copy = shutil.copytree(folder, tmp_path / "edited")
    path = copy / "adapter_config.json"
    whole = json.loads(path.read_text("utf-8"))
    whole |= config.pop("whole", {})
    whole["config"] |= config
    path.write_text(json.dumps(whole), "utf-8")
    return copy


def _refusal(folder: Path, family: str = "llama") -> str:
    anatomy = _base(family)
    before, before_logits = state(anatomy), _logits(anatomy)
    with pytest.raises(TechniqueError) as caught:
        Adapter.restore(anatomy, folder)
    assert_same_state(state(anatomy), before)
    assert torch.equal(_logits(anatomy), before_logits)
    return str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ln_before", True),
        ("ln_after", True),
        ("use_gating", True),
        ("phm_layer", True),
        ("inv_adapter", "nice"),
        ("cross_adapter", True),
        ("output_adapter", False),
        ("mh_adapter", True),
        ("original_ln_before", False),
        ("original_ln_after", False),
        ("residual_before_ln", "post_add"),
        ("adapter_residual_before_ln", True),
        ("stochastic_depth", 0.1),
        ("scaling", "learned"),
        ("scaling", "channel"),
        ("reduction_factor", {"0": 8, "default": 16}),
        ("leave_out", [0.5]),
        ("non_linearity", "leakyrelu"),
        ("a_newer_field", 1),
        ("architecture", "lora"),
    ],
)
def test_fields_that_are_not_understood_are_refused_by_name(field: str, value: Any, tmp_path: Path) -> None:
    message = _refusal(_edited(FIXTURES / "llama/seq_bn", tmp_path, **{field: value}))
    # With a second place and the first one's input, what does not fit is the input.
    expected = "original_ln_before" if field == "mh_adapter" else field
    assert f"{expected} = " in message


@pytest.mark.parametrize(
    ("field", "value"), [("version", "3.2.1"), ("model_type", "gptj"), ("hidden_size", 48), ("model_type", None)]
)
def test_another_base_or_library_is_refused_by_name(field: str, value: Any, tmp_path: Path) -> None:
    assert field in _refusal(_edited(FIXTURES / "llama/seq_bn", tmp_path, whole={field: value}))


def test_what_only_matters_in_training_is_read_over(tmp_path: Path) -> None:
    folder = _edited(FIXTURES / "llama/seq_bn", tmp_path, dropout=0.1, init_weights="houlsby", init_weights_seed=3)
    anatomy = _base("llama")
    Adapter.restore(anatomy, folder)
    assert_near(_logits(anatomy), load_file(folder / "logits.safetensors")["logits"], FLOAT32)


def test_fields_that_an_older_version_lacks_have_the_librarys_defaults(tmp_path: Path) -> None:
    folder = shutil.copytree(FIXTURES / "llama/seq_bn", tmp_path / "older")
    path = folder / "adapter_config.json"
    whole = json.loads(path.read_text("utf-8"))
    for field in ("stochastic_depth", "leave_out", "scaling", "init_weights_seed"):
        del whole["config"][field]
    path.write_text(json.dumps({**whole, "version": "adapters.1.0.0"}), "utf-8")
    anatomy = _base("llama")
    Adapter.restore(anatomy, folder)
    assert_near(_logits(anatomy), load_file(folder / "logits.safetensors")["logits"], FLOAT32)


def test_the_other_familys_adapter_is_refused() -> None:
    assert "GPT2LMHeadModel" in _refusal(FIXTURES / "llama/seq_bn", "gpt2")
    assert "LlamaForCausalLM" in _refusal(FIXTURES / "gpt2/seq_bn", "llama")


def test_a_pickle_is_not_read_and_the_way_out_is_said(tmp_path: Path) -> None:
    folder = shutil.copytree(FIXTURES / "llama/seq_bn", tmp_path / "pickled")
    (folder / "adapter.safetensors").rename(folder / "pytorch_adapter.bin")
    assert techniques.recognise(folder) is Adapter
    assert "use_safetensors=True" in _refusal(folder)


@pytest.mark.parametrize(
    ("head", "refused"),
    [
        ({"config": None, "model_class": "LlamaForCausalLM"}, None),
        ({"config": {"head_type": "causal_lm"}, "model_class": "LlamaAdapterModel"}, None),
        ({"config": {"head_type": "classification"}, "model_class": "LlamaAdapterModel"}, "head_type"),
        ({"config": None, "model_class": "LlamaForSequenceClassification"}, "model_class"),
        ([], "head_config.json"),
    ],
    ids=str,
)
def test_a_head_that_was_trained_with_the_adapter_is_refused(head: Any, refused: str | None, tmp_path: Path) -> None:
    folder = shutil.copytree(FIXTURES / "llama/seq_bn", tmp_path / "headed")
    (folder / "head_config.json").write_text(json.dumps(head), "utf-8")
    if refused is None:
        Adapter.restore(_base("llama"), folder)
    else:
        assert refused in _refusal(folder)


def test_other_methods_of_the_library_and_peft_are_not_recognised(tmp_path: Path) -> None:
    lora = {"config": {"architecture": "lora", "r": 8, "alpha": 8}, "name": "x", "version": "adapters.1.3.0"}
    for content in (lora, {"peft_type": "LORA", "r": 8}, [], None, {"config": None}):
        (tmp_path / "adapter_config.json").write_text(json.dumps(content), "utf-8")
        assert not Adapter.recognises(tmp_path)
    folder = FIXTURES / "llama/seq_bn"
    assert [name for name in techniques.names() if techniques.get(name).recognises(folder)] == ["adapter"]
