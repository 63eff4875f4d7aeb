"""PEFT's folder, loaded by PEFT as its own readers would, without anything of the export's."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import heptune
from heptune import techniques
from heptune.core.errors import TechniqueError, UsageError
from heptune.shipping import vllm
from heptune.tuning.use import opened
from shipping.conftest import FEW, Runs, small
from tolerances import FLOAT32, assert_near

peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

TOKENS = torch.tensor([[1, 40, 41, 99, 200, 7, 63, 12, 300]])
IN_PEFT = [name for name in techniques.names() if name not in ("adapter", "freeze", "full", "qlora")]


def said(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS), use_cache=False).logits
    return found[0, -TOKENS.shape[1] :]


def base_of(run: heptune.Run) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(run.manifest["base"]["name"]).eval()


@pytest.mark.parametrize("name", IN_PEFT)
def test_peft_says_what_the_run_says_and_the_base_does_not(name: str, runs: Runs, tmp_path: Path) -> None:
    run = runs(name)
    heptune.export(run.folder, "peft", out=tmp_path / "out")
    config = json.loads((tmp_path / "out/adapter_config.json").read_text("utf-8"))
    assert config["base_model_name_or_path"] == run.manifest["base"]["name"]
    theirs = said(peft.PeftModel.from_pretrained(base_of(run), tmp_path / "out").eval())
    assert_near(theirs, said(opened(run, lambda event: None).model), FLOAT32, name)
    assert (theirs - said(base_of(run))).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["prefix", "p_tuning_v2", "prompt", "p_tuning"])
def test_the_keys_and_values_make_a_cache_for_any_program(name: str, runs: Runs, tmp_path: Path) -> None:
    run = runs(name)
    heptune.export(run.folder, "peft", out=tmp_path / "out")
    tensors = load_file(tmp_path / "out/prefix_kv.safetensors")
    model = base_of(run)
    cache = transformers.DynamicCache(config=model.config)
    for layer in range(model.config.num_hidden_layers):
        cache.update(tensors[f"key.{layer}"][None], tensors[f"value.{layer}"][None], layer)
    assert len(tensors) == 2 * model.config.num_hidden_layers
    before = cache.get_seq_length()
    assert before == techniques.build(name, run.manifest["technique"]["settings"]).virtual_tokens
    with torch.no_grad():
        mask = torch.ones(1, before + TOKENS.shape[1], dtype=torch.long)
        found = model(input_ids=TOKENS, attention_mask=mask, past_key_values=cache).logits[0]
    assert_near(found, said(opened(run, lambda event: None).model), FLOAT32, name)


def test_the_next_step_is_vllm_for_a_lora_and_says_why_not_for_the_rest(runs: Runs, tmp_path: Path) -> None:
    run = runs("lora")
    made = heptune.export(run.folder, "peft", out=tmp_path / "lora")
    (line,) = [step.words for step in made.next if step.words.startswith("vllm")]
    base = run.manifest["base"]["name"]
    words = ["vllm", "serve", base, "--enable-lora", "--max-lora-rank", "8", "--lora-modules"]
    assert shlex.split(line) == [*words, f"{run.folder.name}={tmp_path / 'lora'}"]
    program = next(step.words for step in made.next if step.language == "py" and step.words)
    names: dict[str, Any] = {}
    exec(program, names)
    assert_near(said(names["model"].eval()), said(opened(run, lambda event: None).model), FLOAT32)
    made = heptune.export(runs("lora", dora=True).folder, "peft", out=tmp_path / "dora")
    assert any("vLLM does not take it: it has no DoRA" in step.what for step in made.next)
    made = heptune.export(runs("prompt").folder, "peft", out=tmp_path / "prompt")
    assert any("vLLM does not take it: it takes LoRA alone" in step.what for step in made.next)
    assert not any(step.words.startswith("vllm") for step in made.next)


def test_what_vllm_refuses() -> None:
    plain = {"peft_type": "LORA", "r": 9, "rank_pattern": {"q_proj": 17}, "modules_to_save": None}
    assert vllm.refusals(plain) == [] and vllm.max_rank(plain) == 32
    assert vllm.refusals({**plain, "modules_to_save": ["classifier"]}) == []
    assert "lm_head" in vllm.refusals({**plain, "modules_to_save": ["lm_head"]})[0]
    assert "512" in vllm.refusals({**plain, "r": 600})[0]
    assert "LoRA alone" in vllm.refusals({"peft_type": "PREFIX_TUNING"})[0]


def test_pseudo_tokens_behind_the_text_are_refused(bases: Any, data: Any, tmp_path: Path) -> None:
    chosen = small("p_tuning", virtual_tokens=5, prompt_template="{p:3} text {p:2}")
    run = heptune.tune(bases("llama"), data["classify"], technique=chosen, out=tmp_path / "run", **FEW)
    with pytest.raises(TechniqueError, match="pseudo tokens between the text and the answer"):
        heptune.export(run.folder, "peft", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_round_on_others_is_refused_and_without_peft_it_says_how(
    runs: Runs, data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    above = heptune.tune(
        runs("lora").folder, data["classify"], technique=small("prompt"), onto="merge", out=tmp_path / "two", **FEW
    )
    with pytest.raises(UsageError, match=r"stands on what 1 earlier round learned.*choose --to hf"):
        heptune.export(above.folder, "peft", out=tmp_path / "out")
    monkeypatch.setattr("heptune.shipping.peft_folder.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install peft"):
        heptune.export(runs("lora").folder, "peft", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
