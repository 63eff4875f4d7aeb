"""QLoRA against PEFT on bitsandbytes' own 4-bit layers: equal loss and gradient, and one artifact for both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from heptune import techniques
from heptune.engine.forward import Forward
from heptune.models.anatomy import dissect
from heptune.models.quantization import dequantize, quantize
from heptune.techniques.lora import Lora
from heptune.techniques.qlora import QLora
from laws.cases import BATCH, TOKENS, disturb, logits, saved
from reference.causal import losses_and_gradient
from tiny import tiny_model
from tolerances import FLOAT32, assert_near

peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft.*", "ignore::FutureWarning:transformers.*")

# Rows of whole blocks: others bitsandbytes 0.50.2 dequantizes wrongly on a CPU.
WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


def in_bitsandbytes() -> Any:
    """The tiny Llama with every linear layer but the head replaced by bitsandbytes' Linear4bit."""
    from bitsandbytes.nn import Linear4bit

    model = tiny_model("llama", **WIDE)
    for site in dissect(model).select(["linear"]):
        theirs = Linear4bit(
            site.in_features,
            site.out_features,
            bias=False,
            compute_dtype=torch.float32,
            compress_statistics=True,
            quant_type="nf4",
        )
        theirs.load_state_dict({"weight": model.get_submodule(site.path).weight})
        model.set_submodule(site.path, theirs)
    model.is_loaded_in_4bit = True  # where PEFT looks
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.to("cpu")  # moving it quantizes it
    return model


def test_law_4_loss_and_gradient_equal_pefts() -> None:
    anatomy = dissect(tiny_model("llama", **WIDE))
    attached = QLora(rank=3, alpha=5.0).attach(anatomy, seed=0)
    disturb(attached)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=5.0, target_modules="all-linear")
    theirs = peft.get_peft_model(in_bitsandbytes(), config).eval()
    theirs.enable_input_require_grads()  # what needs no gradient bitsandbytes rounds to bfloat16 on a CPU
    assert (
        type(theirs.get_submodule("base_model.model.model.layers.0.mlp.up_proj")).__module__ == "peft.tuners.lora.bnb"
    )
    parameters = {n.replace(".default.", "."): p for n, p in theirs.named_parameters() if p.requires_grad}
    assert parameters.keys() == attached.parameters.keys()
    with torch.no_grad():
        for name, parameter in attached.parameters.items():
            parameters[name].copy_(parameter)

    losses, gradient = losses_and_gradient(theirs, BATCH, dict(parameters))
    with Forward(anatomy).loss(BATCH) as batch:
        batch.total.backward()
    assert_near(batch.total.detach(), losses.sum(), FLOAT32, "loss")
    scale = max(float(g.abs().max()) for g in gradient.values())
    for name, parameter in attached.parameters.items():
        assert parameter.grad is not None
        assert float((parameter.grad - gradient[name]).abs().max()) <= FLOAT32 * scale, name


def test_peft_loads_what_heptune_saved_onto_its_own_4_bit_base(tmp_path: Path) -> None:
    anatomy = dissect(tiny_model("llama", **WIDE))
    attached = QLora(rank=3, alpha=5.0, rank_stabilised=True).attach(anatomy, seed=0)
    disturb(attached)
    folder = saved(attached, tmp_path / "artifact")
    theirs = peft.PeftModel.from_pretrained(in_bitsandbytes(), folder).eval()
    theirs.enable_input_require_grads()
    got = theirs(input_ids=TOKENS, use_cache=False).logits
    assert_near(got, logits(anatomy), FLOAT32)


def test_a_folder_by_peft_stays_lora_and_one_by_qlora_goes_onto_any_base(tmp_path: Path) -> None:
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=3, target_modules="all-linear")
    peft.get_peft_model(in_bitsandbytes(), config).save_pretrained(tmp_path / "theirs")
    assert techniques.recognise(tmp_path / "theirs") is Lora

    anatomy = dissect(tiny_model("llama"))
    attached = QLora(rank=3).attach(anatomy, seed=0)
    disturb(attached)
    folder = saved(attached, tmp_path / "ours")
    assert techniques.recognise(folder) is QLora
    by_name = dissect(tiny_model("llama"))
    quantize(by_name)
    Lora.restore(by_name, folder)
    assert torch.equal(logits(by_name), logits(anatomy)), "a LoRA on a base in 4 bits is a QLoRA"
    rounded = dissect(tiny_model("llama"))
    quantize(rounded)
    dequantize(rounded.model)
    theirs = peft.PeftModel.from_pretrained(rounded.model, folder).eval()
    assert_near(logits(dissect(theirs.base_model.model)), logits(anatomy), FLOAT32)
