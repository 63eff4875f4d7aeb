"""A frozen base in 4 bits: what it computes, what it weighs, what it keeps, and what it refuses."""

from __future__ import annotations

import importlib.util
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

import heptune
from heptune import techniques
from heptune.core.errors import TechniqueError, UsageError
from heptune.core.events import Event, Progress
from heptune.models import quantization
from heptune.models.anatomy import dissect, weight_of
from heptune.models.quantization import QuantizedLinear, dequantize, quantize
from reference import nf4
from tiny import FAMILIES, tiny_model
from tolerances import FLOAT32, assert_near

TOKENS = torch.tensor([[(131 * i + 17) % 320 for i in range(14)]])


def linear(out_features: int, in_features: int, bias: bool = True, scale: float = 1.0) -> nn.Linear:
    draw = torch.Generator().manual_seed(out_features + 1000 * in_features)
    module = nn.Linear(in_features, out_features, bias=bias).requires_grad_(False)
    module.weight.copy_(scale * torch.randn(out_features, in_features, generator=draw))
    return module


def conv1d(out_features: int, in_features: int) -> Conv1D:
    draw = torch.Generator().manual_seed(out_features + 1000 * in_features)
    module = Conv1D(out_features, in_features).requires_grad_(False)
    module.weight.copy_(torch.randn(in_features, out_features, generator=draw))
    module.bias.copy_(torch.randn(out_features, generator=draw))
    return module


def test_the_references_numbers_are_the_papers_quantiles() -> None:
    assert_near(nf4.quantiles().float(), nf4.NF4, 1e-6)
    assert len(nf4.dynamic_map().unique()) == 256


# Rows of whole blocks, blocks over the ends of rows, a last block that is not full, an odd number of elements, one
# block alone, several blocks of maxima (512 x 1024: 8192 blocks, 32 of maxima), and weights near zero.
SHAPES = [(64, 128), (48, 32), (32, 48), (5, 100), (7, 9), (1, 3), (512, 1024)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_the_weight_is_the_references_bit_for_bit(shape: tuple[int, int], scale: float) -> None:
    module = linear(*shape, scale=scale)
    assert torch.equal(QuantizedLinear(module).matrix(), nf4.rounded(module.weight))


def test_the_weight_is_bitsandbytes_own_where_its_rows_are_whole_blocks() -> None:
    module = linear(64, 128)
    functional = quantization._library()
    packed, state = functional.quantize_4bit(module.weight, compress_statistics=True, quant_type="nf4")
    mine = QuantizedLinear(module)
    assert torch.equal(mine.matrix(), functional.dequantize_4bit(packed, state))
    assert torch.equal(mine.packed, packed.flatten())


def test_rows_that_are_no_whole_blocks_come_back_right() -> None:
    """In the weight's own shape bitsandbytes gives something else; once it does not, blocks need not be its rows."""
    module = linear(48, 32)
    functional = quantization._library()
    packed, state = functional.quantize_4bit(module.weight, compress_statistics=True, quant_type="nf4")
    mine = QuantizedLinear(module)
    assert torch.equal(mine.packed, packed.flatten())
    assert (mine.matrix() - module.weight).norm() < 0.11 * module.weight.norm()
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        assert not torch.equal(functional.dequantize_4bit(packed, state), mine.matrix())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("module", [linear(48, 32), linear(48, 32, bias=False), conv1d(48, 32)], ids=str)
def test_the_layer_computes_with_that_weight(module: Any, dtype: torch.dtype) -> None:
    weight = nf4.rounded(module.weight)
    quantized = QuantizedLinear(module)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(3)).to(dtype)
    matrix = (weight.T if isinstance(module, Conv1D) else weight).to(dtype)
    assert quantized.in_features == 32 and quantized.out_features == 48
    assert torch.equal(weight_of(quantized, quantized.transposed), weight.T if quantized.transposed else weight)
    bias = None if module.bias is None else module.bias.to(dtype)
    quantized.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    got = quantized(x)
    assert got.dtype == dtype
    assert torch.equal(got, nn.functional.linear(x, matrix, bias))


@pytest.mark.parametrize("module", [linear(5, 4), linear(5, 4, bias=False), conv1d(5, 4)], ids=str)
def test_the_layer_passes_gradcheck(module: Any) -> None:
    quantized = QuantizedLinear(module.double())
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(quantized, (x,))


def test_casting_the_model_does_not_round_the_statistics() -> None:
    quantized = QuantizedLinear(linear(48, 32))
    before = quantized.matrix(torch.float32)
    quantized.to(torch.bfloat16)
    assert torch.equal(quantized.matrix(torch.float32), before)


def test_a_base_has_the_same_bits_whatever_type_it_was_loaded_in() -> None:
    module = linear(48, 32).bfloat16()
    wide = linear(48, 32)
    wide.weight.copy_(module.weight)
    a, b = QuantizedLinear(module), QuantizedLinear(wide)
    assert torch.equal(a.packed, b.packed) and torch.equal(a.matrix(torch.float32), b.matrix(torch.float32))


def bytes_of(module: QuantizedLinear) -> int:
    return sum(buffer.numel() * buffer.element_size() for buffer in module.buffers())


def test_a_weight_takes_little_more_than_four_bits() -> None:
    module = QuantizedLinear(linear(576, 1536, bias=False))
    elements = 576 * 1536
    assert bytes_of(module) <= 0.30 * 2 * elements, "not a third of bfloat16"
    assert bytes_of(module) == pytest.approx(elements * 4.127 / 8, rel=1e-3)
    assert not list(module.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_quantized_model_has_the_same_anatomy(family: str) -> None:
    anatomy = dissect(tiny_model(family))
    seen: list[Event] = []
    quantize(anatomy, seen.append)
    again = dissect(anatomy.model)
    assert again.sites == anatomy.sites
    assert again.shape == anatomy.shape
    linears = anatomy.select(["linear"])
    assert all(isinstance(anatomy.module(site), QuantizedLinear) for site in linears)
    assert isinstance(anatomy.head, nn.Linear) and anatomy.module(anatomy.sites[-1]) is anatomy.head
    assert seen[-1] == Progress("storing the base in 4 bits", len(linears), len(linears), "layers")
    packed = [anatomy.module(site) for site in linears]
    quantize(anatomy)
    assert [anatomy.module(site) for site in linears] == packed, "what is in 4 bits stays as it is"


def test_the_base_lets_go_of_its_file(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    file = str((tmp_path / "model.safetensors").resolve())
    if file not in Path("/proc/self/maps").read_text("utf-8"):
        pytest.skip("this version of transformers does not map the file")
    quantize(dissect(model))
    assert file not in Path("/proc/self/maps").read_text("utf-8")


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_dequantizing_leaves_an_ordinary_model(family: str) -> None:
    anatomy = dissect(tiny_model(family))
    names, kinds = list(anatomy.model.state_dict()), [type(m) for m in anatomy.model.modules()]
    quantize(anatomy)
    before = anatomy.model(input_ids=TOKENS, use_cache=False).logits
    dequantize(anatomy.model)
    assert list(anatomy.model.state_dict()) == names
    assert [type(m) for m in anatomy.model.modules()] == kinds
    assert not any(p.is_meta for p in anatomy.model.parameters())
    assert_near(anatomy.model(input_ids=TOKENS, use_cache=False).logits, before, FLOAT32)


@pytest.mark.parametrize("technique", [None, "lora", "qlora"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_one_layers_weight_is_alive_at_a_time(
    technique: str | None, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever a weight is made, none that was made before is left: nothing keeps it for the backward pass."""
    anatomy = dissect(tiny_model("llama"))
    quantize(anatomy)
    if technique is not None:
        attached = techniques.build(technique, {"rank": 2, "dropout": dropout}).attach(anatomy, seed=0)
        attached.begin_step(1)
    made: list[weakref.ref[torch.Tensor]] = []
    original = QuantizedLinear._floating

    def watched(self: QuantizedLinear, dtype: torch.dtype) -> torch.Tensor:
        assert not [ref for ref in made if ref() is not None], "an earlier weight is still alive"
        weight = original(self, dtype)
        made.append(weakref.ref(weight))
        return weight

    monkeypatch.setattr(QuantizedLinear, "_floating", watched)
    kept: list[tuple[int, ...]] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    embeddings = anatomy.model.get_input_embeddings()(TOKENS).detach().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        anatomy.model(inputs_embeds=embeddings, use_cache=False).logits.sum().backward()
    sites = anatomy.select(["linear"])
    assert len(made) == 2 * len(sites), "once forward, once backward"
    matrices = {(s.out_features, s.in_features) for s in sites} | {(s.in_features, s.out_features) for s in sites}
    assert not matrices & set(kept)


@pytest.fixture
def without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else found(name))
    quantization._library.cache_clear()


@pytest.mark.usefixtures("without_bitsandbytes")
def test_without_bitsandbytes_the_extra_is_named_and_nothing_changes() -> None:
    anatomy = dissect(tiny_model("llama"))
    before = anatomy.model(input_ids=TOKENS, use_cache=False).logits
    with pytest.raises(TechniqueError, match=r"pip install 'heptune\[qlora\]'"):
        quantize(anatomy)
    with pytest.raises(TechniqueError, match=r"pip install 'heptune\[qlora\]'"):
        techniques.build("qlora").attach(anatomy, seed=0)
    assert torch.equal(anatomy.model(input_ids=TOKENS, use_cache=False).logits, before)
    for more in ({"technique": "qlora"}, {"technique": "lora", "quantize": "nf4"}):
        with pytest.raises(TechniqueError, match=r"pip install 'heptune\[qlora\]'"):
            heptune.tune("nowhere", "nothing.jsonl", **more)


def test_a_base_that_a_technique_sits_in_is_not_quantized() -> None:
    anatomy = dissect(tiny_model("llama"))
    techniques.build("lora").attach(anatomy, seed=0)
    with pytest.raises(TechniqueError, match="quantize the base before"):
        quantize(anatomy)


@pytest.mark.parametrize("name", ["full", "freeze"])
def test_what_is_trained_is_not_quantized(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be trained"):
        heptune.tune("nowhere", "nothing.jsonl", technique=name, quantize="nf4")
    with pytest.raises(UsageError, match="known: nf4"):
        heptune.tune("nowhere", "nothing.jsonl", quantize="int3")
