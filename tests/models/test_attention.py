"""Attention over a forest, against one dense mask over all rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from heptune.engine.forest import plant
from heptune.engine.forward import Forward
from heptune.models import blocks
from heptune.models.anatomy import dissect
from heptune.models.attention import AttentionState, Visibility, attend, install
from heptune.tasks.example import Example
from laws.cases import BATCH
from reference.causal import loss_of
from tiny import FAMILIES, tiny_model
from tolerances import FLOAT32, FLOAT64, FLOAT64_WITH_FLOAT32_INSIDE, assert_near

HEADS, KV_HEADS, WIDTH = 4, 2, 8
CPU = torch.device("cpu")


def forest(trees: int, seed: int) -> Visibility:
    """A forest of `trees` instructions, each with questions, each with answers; instructions of up to 60 tokens."""
    draw = np.random.default_rng(seed)
    examples = []
    for tree in range(trees):
        instruction = [tree, *draw.integers(0, 9, draw.integers(1, 60))]
        for _ in range(draw.integers(1, 5)):
            question = [*instruction, *draw.integers(0, 9, draw.integers(1, 12))]
            tokens = tuple(int(t) for t in [*question, *draw.integers(0, 9, draw.integers(2, 9))])
            examples.append(Example(tokens, tuple(t >= len(question) for t in range(len(tokens))), len(examples)))
    planted = plant(examples)
    return Visibility(planted.end, planted.position, CPU)


def dense(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    seen: Visibility,
    scaling: float,
    window: int | None,
    cap: float | None,
) -> torch.Tensor:
    """[1, H, T, D] with every head's keys repeated and one [T, T] mask."""
    rows = len(seen.end)
    index = np.arange(rows)
    mask = (index[None] <= index[:, None]) & (index[:, None] < seen.end[None])
    if window is not None:
        mask &= seen.position[:, None] - seen.position[None] < window
    k, v = k.repeat_interleave(HEADS // KV_HEADS, 1), v.repeat_interleave(HEADS // KV_HEADS, 1)
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * scaling
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    weights = scores.masked_fill(~torch.from_numpy(mask), -torch.inf).softmax(-1)
    return torch.einsum("bhqk,bhkd->bqhd", weights, v)


@pytest.mark.parametrize("block_rows", [1, 5, 16, 128])
@pytest.mark.parametrize("window", [None, 1, 7, 1000])
@pytest.mark.parametrize("cap", [None, 0.8])
@pytest.mark.parametrize("trees", [1, 2, 12])
def test_blocks_equal_one_dense_mask(
    block_rows: int, window: int | None, cap: float | None, trees: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ROWS", block_rows)
    seen = forest(trees, seed=trees)
    rows = len(seen.end)
    draw = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, heads, rows, WIDTH, generator=draw, dtype=torch.float64).requires_grad_()
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    got = attend(q, k, v, seen, scaling=0.4, window=window, softcap=cap)
    want = dense(q, k, v, seen, 0.4, window, cap)
    # transformers' soft-capped attention takes its softmax in float32, and so does ours.
    tolerance = FLOAT64 if cap is None else FLOAT64_WITH_FLOAT32_INSIDE
    assert_near(got, want, tolerance, "output")
    outer = torch.randn(got.shape, generator=draw, dtype=torch.float64)
    for g, w in zip(
        torch.autograd.grad(got, [q, k, v], outer), torch.autograd.grad(want, [q, k, v], outer), strict=True
    ):
        assert_near(g, w, tolerance, "gradient")


@pytest.mark.parametrize("block_rows", [16, 128])
def test_blocks_cover_all_rows_and_waste_no_key(block_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows than one block, cuts at roots; with small blocks, keys that are one slice and keys that are not."""
    monkeypatch.setattr(blocks, "BLOCK_ROWS", block_rows)
    seen = forest(12, seed=12)
    cut = seen.blocks()
    assert len(seen.end) > 3 * block_rows and len(cut) > 3
    assert [b.start for b in cut[1:]] == [b.stop for b in cut[:-1]] and cut[-1].stop == len(seen.end)
    assert any(seen.position[b.start] == 0 for b in cut[1:])
    for window in (None, 7):
        assert all(b.visible.any(1).all() and b.visible.any(0).all() for b in seen.blocks(window))
        if block_rows == 16:
            assert {type(b.keys) for b in seen.blocks(window)} == {slice, torch.Tensor}


def test_blocks_skip_what_no_row_can_see() -> None:
    seen = forest(12, seed=12)
    computed = sum(b.visible.numel() for b in seen.blocks())
    assert computed < 0.5 * len(seen.end) ** 2


@pytest.mark.parametrize("family", FAMILIES)
def test_an_ordinary_call_is_unchanged(family: str) -> None:
    """Also with padding, and with a state over another forest that has ended."""
    tokens = torch.arange(3, 33).reshape(2, 15)
    mask = torch.ones_like(tokens)
    mask[1, 11:] = 0
    plain, ours = tiny_model(family), tiny_model(family)
    plain.set_attn_implementation("sdpa")
    state = install(ours)
    assert isinstance(state, AttentionState)
    with state.over(forest(1, seed=0)):
        pass
    with torch.no_grad():
        for arguments in ({"input_ids": tokens}, {"input_ids": tokens, "attention_mask": mask}):
            assert torch.equal(ours(**arguments).logits, plain(**arguments).logits)


def test_the_state_is_given_back_after_an_error() -> None:
    state = AttentionState()
    with pytest.raises(RuntimeError), state.over(forest(1, seed=0)):
        assert state.visibility is not None
        raise RuntimeError
    assert state.visibility is None


def test_installing_twice_shares_one_state() -> None:
    model = tiny_model("llama")
    assert install(model) is install(model)


def build(architecture: str, **settings: Any) -> Any:
    """A tiny model of an architecture that is not in tests/tiny.py."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(
        **{"vocab_size": 320, "initializer_range": 0.3, "pad_token_id": 0, **settings}
    )
    return getattr(transformers, f"{architecture}ForCausalLM")(config).eval()


LLAMA_LIKE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**LLAMA_LIKE, "num_key_value_heads": 2}
UNUSUAL: dict[str, dict[str, Any]] = {
    # soft caps on scores and logits, small enough to matter
    "Gemma2": {
        **GROUPED,
        "head_dim": 8,
        "attn_logit_softcapping": 0.5,
        "final_logit_softcapping": 2.0,
        "sliding_window": 6,
    },
    "Cohere2": {**GROUPED, "sliding_window": 6, "logit_scale": 0.3},
    "Granite": {**GROUPED, "logits_scaling": 3.0, "attention_multiplier": 0.3, "residual_multiplier": 0.7},
    # derives positions itself
    "OPT": {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
    }
    | {"max_position_embeddings": 128, "dropout": 0.0},
    # layer norm beside a parallel MLP
    "Phi": LLAMA_LIKE,
    # mixture of experts
    "Qwen3Moe": {**GROUPED, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    # these do not go through transformers' interface, or have more than it passes on: padded
    "GPTJ": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 128},
    "Bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "Falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "GptOss": {**GROUPED, "head_dim": 8, "num_local_experts": 4, "sliding_window": 6},
}
PADDED = ("GPTJ", "Bloom", "Falcon", "GptOss")


@pytest.mark.parametrize("architecture", UNUSUAL)
def test_unusual_architectures_are_exact_or_padded(architecture: str) -> None:
    """Forest or padded, the scores are those of the model's own forward before anything was installed; and the model's
    own forward stays what it was."""
    model = build(architecture, **UNUSUAL[architecture])
    tokens = torch.arange(3, 23)[None]
    with torch.no_grad():
        want = torch.stack([loss_of(model, e) for e in BATCH])
        before = model(input_ids=tokens).logits
    notes: list[Any] = []
    forward = Forward(dissect(model), listener=notes.append)
    assert forward.attends_over_forests == (architecture not in PADDED)
    assert ["padded" in note.text for note in notes] == [True] * (architecture in PADDED)
    assert_near(torch.from_numpy(forward.score(BATCH)), want, FLOAT32)
    with torch.no_grad():
        assert_near(model(input_ids=tokens).logits, before, FLOAT32)


@pytest.mark.parametrize("padded", [False, True])
def test_an_architecture_with_a_soft_cap_generates_as_its_eager_attention_does(padded: bool) -> None:
    prompt = torch.arange(3, 23).reshape(2, 10)
    mask = torch.ones_like(prompt)
    mask[0, :3] = 0 if padded else 1  # padded on the left
    results = []
    for installed in (False, True):
        model = build("Gemma2", **UNUSUAL["Gemma2"])
        if installed:
            assert install(model) is not None
        settings = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0}
        wanted = {"return_dict_in_generate": True, "output_logits": True}
        results.append(model.generate(input_ids=prompt, attention_mask=mask, **settings, **wanted))
    eager, ours = results
    assert torch.equal(ours.sequences, eager.sequences)
    assert_near(torch.stack(ours.logits), torch.stack(eager.logits), FLOAT32)
