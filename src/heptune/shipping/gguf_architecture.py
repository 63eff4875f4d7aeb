"""The Llama-like architectures in GGUF: what a file says of the model, what its tensors are called and how they lie.

The rotary embedding turns pairs of numbers: in transformers one of a head's first half with one of its second, in
llama.cpp's architecture "llama" neighbours. There the rows of q and k are written in another order: within each head,
row 2 i is row i of the first half and row 2 i + 1 row i of the second. "qwen2" and "qwen3" turn as transformers does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import torch

from heptune.core.errors import BaseModelError
from heptune.models.anatomy import Anatomy

# transformers' class -> llama.cpp's name of the architecture.
ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
# How far the ways of stretching rotary positions are written: a divisor for each frequency, which llama.cpp reads of
# "llama" alone (rope_freqs), or one for all of them.
_ROPES = {
    "llama": ("default", "linear", "llama3"),
    "qwen2": ("default", "linear"),
    "qwen3": ("default", "linear"),
}
ROPE_FREQUENCIES = "rope_freqs.weight"
_NUMBERS = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}


@dataclass(frozen=True)
class Architecture:
    """A model's architecture in GGUF. `heads` and `kv_heads` are what q's and k's rows are cut into."""

    name: str
    layers: int
    heads: int
    kv_heads: int

    @classmethod
    def of(cls, anatomy: Anatomy) -> Architecture:
        """Raises `BaseModelError` for a model that is none of them, or has what the file could not say."""
        shape = anatomy.shape
        require(shape.architecture, anatomy.model.config)
        return cls(ARCHITECTURES[shape.architecture], shape.layers, shape.heads, shape.kv_heads)

    def tensor_name(self, path: str) -> str:
        """What a parameter of transformers is called: model.layers.0.mlp.up_proj.weight -> blk.0.ffn_up.weight."""
        found = gguf.get_tensor_name_map(_NUMBERS[self.name], self.layers).get_name(path, (".weight", ".bias"))
        if found is None:
            raise BaseModelError(f"{path} has no place in GGUF's architecture {self.name}; choose --to hf")
        return str(found)

    def in_order(self, path: str, rows: torch.Tensor) -> torch.Tensor:
        """A tensor of a parameter's output rows, [out, ...], as its rows lie in GGUF."""
        heads = self._turned(path)
        if not heads:
            return rows
        return rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)

    def out_of_order(self, path: str, rows: torch.Tensor) -> torch.Tensor:
        """The inverse of `in_order`."""
        heads = self._turned(path)
        if not heads:
            return rows
        return rows.reshape(heads, len(rows) // heads // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)

    def _turned(self, path: str) -> int:
        if self.name != "llama":
            return 0
        return self.heads if ".q_proj" in path else self.kv_heads if ".k_proj" in path else 0


def require(architecture: str, config: Any) -> None:
    """Raises `BaseModelError` for an architecture (transformers' class) that is not written, or a configuration with
    what the file could not say."""
    way = "choose --to hf, which llama.cpp's own convert_hf_to_gguf.py can go on from"
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise BaseModelError(f"{architecture} is not written as GGUF here (known: {known}); {way}")
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    rope = config.rope_parameters or {}
    problem = ""
    if window is not None and window < config.max_position_embeddings:
        problem = f"attention that sees {window} tokens back (sliding_window)"
    elif rope.get("rope_type", "default") not in _ROPES[ARCHITECTURES[architecture]]:
        problem = f"rotary positions scaled by {rope['rope_type']!r}"
    elif rope.get("partial_rotary_factor", 1.0) != 1.0:
        problem = "rotary positions in a part of each head"
    elif config.hidden_act not in ("silu", "swish"):
        problem = f"the activation {config.hidden_act}"
    if problem:
        raise BaseModelError(f"{architecture} has {problem}, which is not written as GGUF here; {way}")


def describe(writer: gguf.GGUFWriter, anatomy: Anatomy) -> None:
    """Adds what a file says of the model: sizes, norms, rotary positions."""
    shape, config = anatomy.shape, anatomy.model.config
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_width)
    writer.add_value_length(shape.head_width)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.rope_parameters.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(config.rope_parameters["factor"]))


def rope_divisors(anatomy: Anatomy) -> torch.Tensor | None:
    """By what Llama 3.1 divides the frequencies of its rotary positions, [D / 2]; None where they are plain or all
    divided by one number."""
    config = anatomy.model.config
    if config.rope_parameters.get("rope_type") != "llama3":
        return None
    width = anatomy.shape.head_width
    plain = float(config.rope_parameters["rope_theta"]) ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    return (plain / anatomy.decoder.rotary_emb.inv_freq.double().cpu()).float()


def parameters(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """A model's parameters, each once: a tied head is left out, since readers take the embeddings for it."""
    for name, parameter in model.named_parameters():  # gives a shared one once, under its first name
        yield name, parameter.detach()


def packed(tensor: torch.Tensor, kind: str) -> tuple[np.ndarray, gguf.GGMLQuantizationType]:
    """A tensor's bytes and their type. Norms and biases stay float32; a matrix whose rows are no multiple of q8_0's
    blocks of 32 is f16, as llama.cpp's own converter has it."""
    values = tensor.float().cpu().contiguous().numpy()
    chosen = gguf.GGMLQuantizationType[kind.upper()]
    if values.ndim == 1:
        chosen = gguf.GGMLQuantizationType.F32
    elif kind == "q8_0" and values.shape[-1] % gguf.GGML_QUANT_SIZES[chosen][0]:
        chosen = gguf.GGMLQuantizationType.F16
    return gguf.quantize(values, chosen), chosen
