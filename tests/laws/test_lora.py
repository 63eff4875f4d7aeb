"""LoRA's own laws: its autograd function, what it keeps for the backward pass, its dropout, and a tied head."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from heptune import techniques
from heptune.core.errors import TechniqueError, UsageError
from heptune.engine.forward import Forward
from heptune.models.anatomy import dissect
from heptune.techniques._lora_peft import Size
from heptune.techniques.lora import Lora, LoraLinear, _LoraFunction
from laws.cases import BATCH, TOKENS, Case, disturb, logits, saved
from tiny import tiny_model
from tolerances import FLOAT32, assert_near


@pytest.mark.parametrize("bias", [True, False])
def test_the_autograd_function_passes_gradcheck(bias: bool) -> None:
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int, grad: bool = True) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).requires_grad_(grad)

    x, a, b, weight = random(5, 4), random(2, 4), random(3, 2), random(3, 4, grad=False)
    offset = random(3, grad=False) if bias else None
    assert torch.autograd.gradcheck(
        lambda x, a, b: _LoraFunction.apply(x, lambda: weight, offset, a, b, 1.7), (x, a, b)
    )


@pytest.mark.parametrize("targets", [("linear",), ("all",), ("attention.o",), ("attention", "mlp.down")], ids=str)
@pytest.mark.parametrize("family", ["llama", "glm4", "gpt2", "gpt_neox"])
@pytest.mark.parametrize(("name", "dora"), [("lora", False), ("qlora", False), ("lora", True)])
def test_activations_are_what_the_sites_keep(name: str, dora: bool, family: str, targets: tuple[str, ...]) -> None:
    """Counts the distinct tensors that LoRA's modules save for the backward pass, weights and vectors excepted."""
    technique = techniques.build(name, {"rank": 3, "targets": targets, "dora": dora})
    anatomy = dissect(tiny_model(family))
    technique.attach(anatomy, seed=0)
    own = {p.data_ptr() for p in anatomy.model.parameters()}
    # Kept alive until the end: a freed tensor's address could be given out again.
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own and tensor.ndim > 1:
            kept[tensor.data_ptr()] = tensor
        return tensor

    def watched(module: LoraLinear) -> None:
        plain = module.forward

        def forward(x: torch.Tensor) -> torch.Tensor:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                return plain(x)

        module.forward = forward  # type: ignore[method-assign]

    for module in anatomy.model.modules():
        if isinstance(module, LoraLinear):
            watched(module)
    anatomy.model(input_ids=TOKENS, use_cache=False)
    rows = TOKENS.numel()
    assert sum(t.numel() for t in kept.values()) == rows * technique.cost(anatomy.shape).activations


def test_dropout_is_a_function_of_the_steps_seed() -> None:
    anatomy = dissect(tiny_model("llama"))
    attached = Lora(rank=4, dropout=0.5).attach(anatomy, seed=0)
    disturb(attached)
    forward = Forward(anatomy)

    def gradient(seed: int | None) -> list[torch.Tensor]:
        attached.begin_step(seed)
        with forward.loss(BATCH) as batch:
            return list(torch.autograd.grad(batch.total, list(attached.parameters.values())))

    first, again, other, off = gradient(1), gradient(1), gradient(2), gradient(None)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, off, strict=True))


def test_dropout_recomputed_in_the_backward_pass_is_the_same() -> None:
    gradients = []
    for recompute in (False, True):
        anatomy = dissect(tiny_model("llama"))
        attached = Lora(rank=4, dropout=0.5).attach(anatomy, seed=0)
        disturb(attached)
        forward = Forward(anatomy, recompute=recompute)
        attached.begin_step(3)
        with forward.loss(BATCH) as batch:
            gradients.append(torch.autograd.grad(batch.total, list(attached.parameters.values())))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_dropout_keeps_the_expectation() -> None:
    site = next(s for s in dissect(tiny_model("llama")).sites if s.role == "attention.q")
    base = torch.nn.Linear(site.in_features, site.out_features)
    module = LoraLinear(base, site, Lora(rank=4, dropout=0.25), Size(4, 32.0), seed=0)
    module.training_step_seed = 1
    keep = module._keep(torch.ones(200, 200))
    assert set(keep.unique().tolist()) == {0.0, float(torch.tensor(1.0) / 0.75)}
    assert abs(float(keep.mean()) - 1) < 0.015  # 40,000 draws: the standard error is 0.003


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "gemma3"])
def test_merging_into_a_tied_head_leaves_the_input_embeddings(family: str, tmp_path: Path) -> None:
    overrides = {"tie_word_embeddings": True}
    anatomy = dissect(tiny_model(family, **overrides))
    assert anatomy.shape.head_tied
    embeddings = anatomy.model.get_input_embeddings().weight.clone()
    attached = Lora(rank=2, targets=("head",)).attach(anatomy, seed=0)
    disturb(attached)
    unmerged = logits(anatomy)
    attached.merge()
    assert torch.equal(anatomy.model.get_input_embeddings().weight, embeddings)
    assert_near(logits(anatomy), unmerged, FLOAT32)
    anatomy.model.save_pretrained(tmp_path)
    loaded = dissect(type(anatomy.model).from_pretrained(tmp_path))
    assert torch.equal(logits(loaded), logits(anatomy))


def test_dora_where_the_head_has_rows_of_zeros() -> None:
    anatomy = dissect(tiny_model("llama"))
    with torch.no_grad():
        anatomy.head.weight[-3:] = 0
    before = logits(anatomy)
    attached = Lora(rank=2, targets=("head",), dora=True).attach(anatomy, seed=0)
    assert torch.equal(logits(anatomy), before)
    with Forward(anatomy).loss(BATCH) as batch:
        batch.total.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in attached.parameters.values())
    attached.merge()
    assert_near(logits(anatomy), before, FLOAT32)


def test_a_restored_lora_on_the_head_can_be_trained_on(tmp_path: Path) -> None:
    case = Case("lora", "all", "llama")
    _, attached = case.trained(torch.float32)
    folder = saved(attached, tmp_path / "artifact")
    anatomy = case.base(torch.float32)
    techniques.get("lora").restore(anatomy, folder)
    with Forward(anatomy).loss(BATCH) as batch:
        batch.total.backward()


def test_settings_out_of_range_are_refused() -> None:
    for settings in ({"rank": 0}, {"dropout": 1.0}, {"dropout": -0.1}, {"targets": ()}):
        with pytest.raises(TechniqueError):
            Lora(**settings)
    with pytest.raises(TechniqueError, match=r"attention\.qkv"):
        Lora(targets=("attention.q",)).attach(dissect(tiny_model("gpt2")), seed=0)


def test_settings_given_as_text_are_converted() -> None:
    text = {"rank": "8", "alpha": "4.5", "targets": "attention.q, mlp", "rank-stabilised": "yes"}
    assert techniques.build("lora", text) == Lora(8, 4.5, ("attention.q", "mlp"), rank_stabilised=True)
    with pytest.raises(UsageError, match="rank takes int, got 'many'"):
        techniques.build("lora", {"rank": "many"})
    with pytest.raises(UsageError, match="did you mean rank"):
        techniques.build("lora", {"ranks": 8})
    with pytest.raises(TechniqueError, match="did you mean lora"):
        techniques.build("lorra")
