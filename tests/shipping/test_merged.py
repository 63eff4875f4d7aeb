"""The merged model: loaded by transformers alone, in files as large as was asked for, with everything beside it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import heptune
from heptune.core.errors import TechniqueError, UsageError
from heptune.data.record import Message
from heptune.models.anatomy import dissect
from heptune.models.load import load_base
from heptune.models.quantization import dequantize, quantize
from heptune.shipping.job import Job
from heptune.techniques import _lora_peft
from heptune.tuning.use import opened
from shipping.conftest import FEW, Runs, small
from tolerances import FLOAT32, assert_near

TOKENS = torch.tensor([[1, 40, 41, 99, 200, 7, 63, 12, 300]])


def said(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.float()(input_ids=TOKENS % model.config.vocab_size, use_cache=False).logits[0]
    return found


def loaded(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def ours(run: heptune.Run) -> torch.Tensor:
    return said(opened(run, lambda event: None).model)


def test_every_file_that_a_model_has(runs: Runs, tmp_path: Path) -> None:
    run = runs("lora", kind="chat")
    heptune.export(run.folder, "hf", out=tmp_path / "out", type="bf16", max_shard_size="20KB")
    config = json.loads((tmp_path / "out/config.json").read_text("utf-8"))
    assert config["dtype"] == "bfloat16" and config["architectures"] == ["LlamaForCausalLM"]
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1, "in several files"
    generation = json.loads((tmp_path / "out/generation_config.json").read_text("utf-8"))
    assert generation["eos_token_id"] == 2 and generation["pad_token_id"] == 0
    assert (loaded(tmp_path / "out").dtype, ours(run).dtype) == (torch.bfloat16, torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    talk = [Message("system", "S"), Message("user", "U"), Message("assistant", "A"), Message("user", "V")]
    written = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in talk], tokenize=False, add_generation_prompt=True
    )
    assert written == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
        "<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n"
    )
    again = load_base(str(tmp_path / "out"))
    assert_near(said(again.model), ours(run), 0.05, "Heptune takes it for a base")


def test_what_it_says_is_what_the_run_froze_not_what_the_base_has_now(runs: Runs, bases: Any, tmp_path: Path) -> None:
    run = runs("lora")
    changed = run.manifest["template"].replace("assistant\n", "helper\n")
    copy = tmp_path / "run"
    copy.mkdir()
    (copy / "artifact").symlink_to((run.folder / "artifact").resolve())
    (copy / "manifest.json").write_text(json.dumps({**run.manifest, "template": changed}), "utf-8")
    made = heptune.export(copy, "hf", out=tmp_path / "out")
    assert all(parity.template for parity in made.parities)
    assert "helper" in (tmp_path / "out/chat_template.jinja").read_text("utf-8")


def test_a_base_in_4_bits_is_merged_with_the_weights_that_it_computed_with(runs: Runs, tmp_path: Path) -> None:
    run = runs("qlora")
    heptune.export(run.folder, "hf", out=tmp_path / "out")
    found = loaded(tmp_path / "out")
    assert_near(said(found), ours(run), FLOAT32)
    base = load_base(run.manifest["base"]["name"])
    anatomy = dissect(base.model)
    quantize(anatomy)
    dequantize(base.model)
    attached = small("lora").restore(anatomy, run.artifact)
    attached.merge()
    path = "model.layers.1.mlp.up_proj.weight"
    assert_near(found.get_parameter(path), base.model.get_parameter(path), FLOAT32, "not rounded to 4 bits again")


def test_a_base_in_bfloat16_is_merged_in_float32(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the sum of a weight of 8 bits and what was learned has more than 8 bits."""
    run = runs("lora")
    monkeypatch.setattr("heptune.tuning.base.dtype", lambda capabilities: torch.bfloat16)
    job = Job(run, "f32", 1 << 30, False, lambda event: None)
    found = job.merged()[0].model
    base = load_base(run.manifest["base"]["name"], dtype=torch.bfloat16).model.float()
    path = "model.layers.1.mlp.up_proj"
    a, b = (load_file(run.artifact / "adapter_model.safetensors")[_lora_peft.name(path, part)] for part in "AB")
    want = base.get_parameter(f"{path}.weight") + 32 / 4 * b @ a
    assert_near(found.get_parameter(f"{path}.weight"), want, FLOAT32)
    assert replace(job, type="bf16").merged()[0].model.dtype == torch.bfloat16


@pytest.mark.parametrize("technique", ["lora", "freeze", "full"])
def test_a_tied_head_stays_tied_until_something_is_learned_at_it(technique: str, runs: Runs, tmp_path: Path) -> None:
    run = runs(technique, base="tied")
    heptune.export(run.folder, "hf", out=tmp_path / "out")
    found = loaded(tmp_path / "out")
    assert found.lm_head.weight is found.model.embed_tokens.weight
    assert_near(said(found), ours(run), FLOAT32)


def test_a_lora_at_a_tied_head_unties_it(runs: Runs, tmp_path: Path) -> None:
    run = runs("lora", base="tied", targets="linear,head")
    heptune.export(run.folder, "hf", out=tmp_path / "out")
    found = loaded(tmp_path / "out")
    assert found.lm_head.weight is not found.model.embed_tokens.weight
    assert_near(said(found), ours(run), FLOAT32)


@pytest.mark.parametrize(
    ("base", "more"),
    [("gpt2", {}), ("mistral", {}), ("scaled", {}), ("llama", {"dora": True}), ("llama", {"rank_stabilised": True})],
)
def test_other_families_and_other_loras(base: str, more: dict[str, Any], runs: Runs, tmp_path: Path) -> None:
    run = runs("lora", base=base, **more)
    heptune.export(run.folder, "hf", out=tmp_path / "out")
    assert_near(said(loaded(tmp_path / "out")), ours(run), FLOAT32)
    made = heptune.export(run.folder, "peft", out=tmp_path / "peft")
    assert made.parities[0].relative < 1e-5


@pytest.mark.parametrize("onto", ["merge", "stack", "continue"])
def test_all_rounds_are_in_one_model(onto: str, runs: Runs, data: Any, tmp_path: Path) -> None:
    more: Any = {} if onto == "continue" else {"technique": small("lora", rank=2)}
    above = heptune.tune(runs("lora").folder, data["classify"], onto=onto, out=tmp_path / "two", **more, **FEW)
    heptune.export(above.folder, "hf", out=tmp_path / "out")
    assert_near(said(loaded(tmp_path / "out")), ours(above), FLOAT32)
    heptune.export(above.folder, "gguf", out=tmp_path / "gguf", type="f32")
    assert (said(loaded(tmp_path / "out")) - ours(runs("lora"))).abs().max() > 1e-3, "not the first round alone"


def test_a_soft_prompt_beneath_is_no_part_of_a_merged_model(runs: Runs, data: Any, tmp_path: Path) -> None:
    above = heptune.tune(
        runs("prompt").folder, data["classify"], technique=small("lora"), onto="stack", out=tmp_path / "two", **FEW
    )
    with pytest.raises(TechniqueError, match="what prompt learned are trained vectors before the text"):
        heptune.export(above.folder, "hf", out=tmp_path / "out")


def test_a_type_that_it_does_not_have_is_named(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--type is q8_0; hf has f32, f16, bf16"):
        heptune.export(runs("lora").folder, "hf", out=tmp_path / "out", type="q8_0")


def test_a_pretrained_model_is_exported(tmp_path: Path) -> None:
    corpus = tmp_path / "book.txt"
    corpus.write_text("\n\n".join(f"It was a dark and stormy night, number {n}." for n in range(80)), "utf-8")
    run = heptune.pretrain("llama-1m", corpus, out=tmp_path / "run", vocabulary=300, context=64, max_steps=2)
    made = heptune.export(run.folder, "gguf", out=tmp_path / "gguf", type="f32")
    assert made.parities[0].problems == []
    heptune.export(run.folder, "hf", out=tmp_path / "hf")
    assert_near(said(loaded(tmp_path / "hf")), said(loaded(run.folder / "base")), FLOAT32)
