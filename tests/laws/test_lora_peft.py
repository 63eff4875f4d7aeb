"""LoRA against PEFT: the same loss and gradient on equal weights, and artifacts that go both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from heptune.core.errors import TechniqueError
from heptune.engine.forward import Forward
from heptune.models.anatomy import dissect
from heptune.techniques.lora import Lora
from laws.cases import BATCH, TOKENS, assert_same_state, disturb, logits, saved, state
from reference.causal import losses_and_gradient
from tiny import tiny_model
from tolerances import FLOAT32, FLOAT64_WITH_FLOAT32_INSIDE, assert_near

peft = pytest.importorskip("peft")

# PEFT warns that Conv1D's fan_in_fan_out was set to what it needs, and that a base without a hub name has no card.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft.*", "ignore::FutureWarning:transformers.*")

FAMILIES = ("llama", "gpt2", "gpt_neox", "phi3")


def _peft_parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """PEFT's trained parameters under the names of its files."""
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    files = {n: n.replace(".default.", ".").replace(".modules_to_save.", ".") for n in trained}
    return {files[n].replace("magnitude_vector.weight", "magnitude_vector"): p for n, p in trained.items()}


def _with_peft(family: str, dtype: torch.dtype, **settings: Any) -> Any:
    torch.manual_seed(0)  # PEFT draws from torch's global generator
    config = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
    model = peft.get_peft_model(tiny_model(family).to(dtype), config, autocast_adapter_dtype=False).eval()
    with torch.no_grad():
        for parameter in _peft_parameters(model).values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def _logits(model: Any) -> torch.Tensor:
    return model(input_ids=TOKENS, use_cache=False).logits


@pytest.mark.parametrize("ours", [{}, {"rank_stabilised": True}, {"dora": True}], ids=str)
@pytest.mark.parametrize("family", [*FAMILIES, "glm4", "gemma3"])
def test_law_4_loss_and_gradient_equal_pefts(family: str, ours: dict[str, bool]) -> None:
    anatomy = dissect(tiny_model(family).double())
    attached = Lora(rank=3, alpha=5.0, **ours).attach(anatomy, seed=0)
    disturb(attached)
    theirs = _with_peft(
        family,
        torch.float64,
        r=3,
        lora_alpha=5.0,
        use_rslora=attached.settings.rank_stabilised,
        use_dora=attached.settings.dora,
        target_modules=[site.path for site in attached.sizes],
    )
    parameters = _peft_parameters(theirs)
    assert parameters.keys() == attached.parameters.keys()
    with torch.no_grad():
        for name, parameter in attached.parameters.items():
            parameters[name].copy_(parameter)

    losses, gradient = losses_and_gradient(theirs, BATCH, dict(parameters))
    with Forward(anatomy).loss(BATCH) as batch:
        batch.total.backward()
    assert_near(batch.total.detach(), losses.sum(), FLOAT64_WITH_FLOAT32_INSIDE, "loss")
    for name, parameter in attached.parameters.items():
        assert parameter.grad is not None
        assert_near(parameter.grad, gradient[name], FLOAT64_WITH_FLOAT32_INSIDE, name)


@pytest.mark.parametrize("targets", [("linear",), ("attention",), ("attention.o",), ("mlp.down", "head")], ids=str)
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT on a tied head: it would need untying before merging
def test_peft_loads_what_heptune_saved(family: str, dora: bool, targets: tuple[str, ...], tmp_path: Path) -> None:
    anatomy = dissect(tiny_model(family))
    attached = Lora(rank=3, alpha=5.0, targets=targets, rank_stabilised=True, dora=dora).attach(anatomy, seed=0)
    disturb(attached)
    folder = saved(attached, tmp_path / "artifact")
    theirs = peft.PeftModel.from_pretrained(tiny_model(family), folder, is_trainable=True).eval()
    # Every tensor has its place and no place was left at its start: PEFT only warns about either.
    got = _peft_parameters(theirs)
    assert got.keys() == attached.parameters.keys()
    for name, parameter in attached.parameters.items():
        assert torch.equal(got[name], parameter), name
    assert_near(_logits(theirs), logits(anatomy), FLOAT32)


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 6},
    "rslora": {"r": 4, "lora_alpha": 6, "use_rslora": True, "lora_dropout": 0.1},
    "one_layer": {"r": 4, "layers_to_transform": [1]},
    "gaussian": {"r": 4, "init_lora_weights": "gaussian"},
    "dora": {"r": 4, "lora_alpha": 6, "use_dora": True},
    "own_head": {"r": 4, "modules_to_save": ["head"]},
    "everything": {
        "r": 4,
        "rank_pattern": {"mlp.*": 3},
        "alpha_pattern": {r".*\.1\..*": 5},
        "use_dora": True,
        "modules_to_save": ["head"],
    },
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("family", [*FAMILIES, "qwen3"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT on a tied head
def test_heptune_loads_what_peft_saved(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    # PEFT takes "all-linear" only where no layers are chosen.
    names = sorted({site.path.rpartition(".")[2] for site in dissect(tiny_model(family)).select(["linear"])})
    chosen: Any = names if "layers_to_transform" in settings else "all-linear"
    if "modules_to_save" in settings:
        settings = {**settings, "modules_to_save": [dissect(tiny_model(family)).head_path]}
    theirs = _with_peft(family, torch.float32, target_modules=chosen, **settings)
    theirs.save_pretrained(tmp_path / "theirs")
    anatomy = dissect(tiny_model(family))
    before = state(anatomy)
    attached = Lora.restore(anatomy, tmp_path / "theirs")
    assert attached.parameters.keys() == load_file(tmp_path / "theirs" / "adapter_model.safetensors").keys()
    assert attached.settings.rank == 4 and attached.settings.rank_stabilised == settings.get("use_rslora", False)
    assert_near(logits(anatomy), _logits(theirs), FLOAT32)

    folder = saved(attached, tmp_path / "ours")
    back = peft.PeftModel.from_pretrained(tiny_model(family), folder, is_trainable=True).eval()
    assert _peft_parameters(back).keys() == attached.parameters.keys()
    assert_near(_logits(back), _logits(theirs), FLOAT32)

    with Forward(anatomy).loss(BATCH) as batch:
        batch.total.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in attached.parameters.values())
    attached.detach()
    assert_same_state(state(anatomy), before)
    attached = Lora.restore(anatomy, folder)
    attached.merge()
    assert_near(logits(anatomy), _logits(theirs), FLOAT32)
    anatomy.model.save_pretrained(tmp_path / "merged")
    merged = dissect(type(anatomy.model).from_pretrained(tmp_path / "merged"))
    assert_near(logits(merged), _logits(theirs), FLOAT32)


@pytest.mark.parametrize("stabilised", [False, True])
def test_rank_patterns_go_both_ways(stabilised: bool, tmp_path: Path) -> None:
    settings = {
        "r": 4,
        "lora_alpha": 6,
        "use_rslora": stabilised,
        "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 8},
    }
    theirs = _with_peft("llama", torch.float32, target_modules=["q_proj", "v_proj", "up_proj"], **settings)
    theirs.save_pretrained(tmp_path / "theirs")
    anatomy = dissect(tiny_model("llama"))
    attached = Lora.restore(anatomy, tmp_path / "theirs")
    ranks = {name: int(p.shape[0]) for name, p in attached.parameters.items() if "lora_A" in name}
    assert sorted(ranks.values()) == [2, 2, 4, 4, 4, 8]
    assert_near(logits(anatomy), _logits(theirs), FLOAT32)

    back = peft.PeftModel.from_pretrained(tiny_model("llama"), saved(attached, tmp_path / "ours")).eval()
    assert_near(_logits(back), _logits(theirs), FLOAT32)


@pytest.mark.parametrize(
    ("setting", "more"),
    [
        ("modules_to_save = 'embed_tokens'", {"modules_to_save": ["lm_head", "embed_tokens"]}),
        ("bias", {"bias": "all"}),
        ("bias", {"bias": "lora_only"}),
        ("lora_bias", {"lora_bias": True}),
        ("init_lora_weights", {"init_lora_weights": "pissa"}),
        ("init_lora_weights", {"init_lora_weights": "olora"}),
    ],
    ids=str,
)
def test_what_changes_the_tensors_meaning_is_refused_by_name(
    setting: str, more: dict[str, Any], tmp_path: Path
) -> None:
    _with_peft("llama", torch.float32, target_modules=["q_proj"], **more).save_pretrained(tmp_path)
    anatomy = dissect(tiny_model("llama"))
    before = logits(anatomy)
    with pytest.raises(TechniqueError, match=setting):
        Lora.restore(anatomy, tmp_path)
    assert torch.equal(logits(anatomy), before)


# A newer PEFT's field; fields of 0.21.2 that change what the tensors mean.
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("some_new_field", True),
        ("some_new_number", 0.5),
        ("layer_replication", [[0, 2]]),
        ("target_parameters", ["mlp.experts.gate_up_proj"]),
        ("trainable_token_indices", [1]),
        ("alora_invocation_tokens", [1]),
        ("use_qalora", True),
        ("use_bdlora", {"nblocks": 2}),
        ("arrow_config", {"top_k": 2}),
        ("velora_config", {"a": 1}),
        ("loftq_config", {"loftq_bits": 4}),
        ("ensure_weight_tying", True),
    ],
)
def test_a_field_that_is_not_understood_is_refused_by_name(field: str, value: Any, tmp_path: Path) -> None:
    _with_peft("llama", torch.float32, target_modules=["q_proj"]).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text("utf-8"))
    for off in (None, False, {}, []):
        path.write_text(json.dumps({**config, field: off}), "utf-8")
        Lora.restore(dissect(tiny_model("llama")), tmp_path)
    path.write_text(json.dumps({**config, field: value}), "utf-8")
    anatomy = dissect(tiny_model("llama"))
    before = state(anatomy)
    with pytest.raises(TechniqueError, match=f"the field {field} is not understood"):
        Lora.restore(anatomy, tmp_path)
    assert_same_state(state(anatomy), before)


def test_other_techniques_of_peft_are_not_recognised(tmp_path: Path) -> None:
    config = peft.IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[])
    peft.get_peft_model(tiny_model("llama"), config).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text("utf-8"))["peft_type"] == "IA3"
    assert not Lora.recognises(tmp_path)
    with pytest.raises(TechniqueError):
        Lora.restore(dissect(tiny_model("llama")), tmp_path)
