"""A GGUF file, written here with the format's own library, gives the model that it was written from."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from heptune.core.errors import BaseModelError
from heptune.models import embedded
from heptune.models.gguf_file import read_gguf
from heptune.models.load import load_base
from tiny import IM_END, IM_START, tiny_model, tiny_tokenizer

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(path, model, tokenizer, quantization=gguf.GGMLQuantizationType.F32, digits="smollm"):
    """The tiny Llama as llama.cpp's converter writes it; there, the rows of q and k are interleaved."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    vocabulary = tokenizer.get_vocab()
    words = sorted(vocabulary, key=vocabulary.get)
    kinds = [gguf.TokenType.CONTROL if i <= IM_END else gguf.TokenType.NORMAL for i in range(len(words))]
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(digits)
    writer.add_token_list(words)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(IM_START)
    writer.add_eos_token_id(IM_END)
    writer.add_pad_token_id(0)
    writer.add_chat_template(tokenizer.chat_template)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:
                rows, columns = values.shape
                values = values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        name = name.replace("model.layers.", "blk.")
        for theirs, short in NAMES.items():
            name = name.replace(theirs, short)
        kind = quantization if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        packed = gguf.quants.quantize(np.ascontiguousarray(values), kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny_model("llama"), tiny_tokenizer())


def test_the_weights_and_the_tokenizer_are_those_that_were_written(file, capfd):
    model, tokenizer = read_gguf(file)
    assert capfd.readouterr().err == ""
    original = tiny_model("llama").state_dict()
    assert model.state_dict().keys() == original.keys()
    assert all(torch.equal(value, original[name]) for name, value in model.state_dict().items())
    text = "<|im_start|>user\nThe text is positive.<|im_end|>"
    assert tokenizer(text).input_ids == tiny_tokenizer()(text).input_ids
    assert tokenizer.chat_template == tiny_tokenizer().chat_template
    assert (tokenizer.eos_token_id, tokenizer.model_max_length) == (IM_END, 1024)


def test_digits_are_split_off_where_the_file_says_so(file, tmp_path):
    whole = write_gguf(tmp_path / "x.gguf", tiny_model("llama"), tiny_tokenizer(), digits="gpt-2")
    pieces = {
        x: [piece for piece, _ in read_gguf(x)[1].backend_tokenizer.pre_tokenizer.pre_tokenize_str("a\n\n12")]
        for x in (file, whole)
    }
    assert pieces[file] == ["a", "ĊĊ", "1", "2"]
    assert pieces[whole] == ["a", "Ċ", "Ċ", "12"]


def test_the_conversion_gives_the_same_bits_as_safetensors(tmp_path):
    original = tiny_model("llama", intermediate_size=64)  # Q4_1 packs 32 numbers together
    file = write_gguf(tmp_path / "x.gguf", original, tiny_tokenizer(), gguf.GGMLQuantizationType.Q4_1)
    folder = tmp_path / "converted"
    folder.mkdir()
    embedded._convert(file, folder)
    base, direct = load_base(str(folder), device="cpu"), load_base(str(file), device="cpu")
    weights, read = base.model.state_dict(), direct.model.state_dict()
    assert all(torch.equal(weights[name], read[name]) for name in read)
    assert not torch.equal(read["lm_head.weight"], original.lm_head.weight), "the file was not quantized"
    assert not any(p.requires_grad for p in direct.model.parameters()) and len(direct.fingerprint) == 64
    assert base.tokenizer.tokenize("12\n\n3 text") == direct.tokenizer.tokenize("12\n\n3 text")


def test_a_conversion_that_changes_the_logits_is_refused(file, tmp_path, monkeypatch):
    import transformers

    def changed(*arguments, **options):
        return tiny_model("llama", seed=1)

    real = read_gguf(file)
    monkeypatch.setattr("heptune.models.gguf_file.read_gguf", lambda path: real)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", changed)
    with pytest.raises(BaseModelError, match="other logits after the conversion"):
        embedded._convert(file, tmp_path)


def test_the_tokenizer_survives_saving(file, tmp_path):
    tokenizer = read_gguf(file)[1]
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "Grüße 12\n\n3 <|im_end|>"
    assert again(text).input_ids == tokenizer(text).input_ids
    assert again.chat_template == tokenizer.chat_template
