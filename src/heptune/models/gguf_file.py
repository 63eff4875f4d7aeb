"""Reads a GGUF file, dequantized, into an ordinary transformers model and its tokenizer."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from heptune.models.quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# These kinds split every digit off before anything else: llama.cpp, src/llama-vocab.cpp, "\\p{N}" as the first
# expression. transformers 5.23 reads them without that step, and "\n\n1" then becomes other tokens than the base
# was trained on.
_SINGLE_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}


def read_gguf(path: Path, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and the tokenizer of the GGUF file `path`, weights dequantized to `dtype`, no trace of the quantizer.

    Raises whatever transformers raises for an architecture or a quantization that it cannot read.
    """
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM

    place = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name, "local_files_only": True}
    # The dequantization's progress bar obeys no switch of transformers.
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        model = AutoModelForCausalLM.from_pretrained(**place, dtype=dtype, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(**place, trust_remote_code=False)
    # With these the model counts as quantized and save_pretrained refuses it, although its weights are plain.
    for attribute in ("hf_quantizer", "is_quantized", "quantization_method"):
        if hasattr(model, attribute):
            delattr(model, attribute)
    for attribute in ("quantization_config", "_model_name_or_path"):
        if hasattr(model.config, attribute):
            delattr(model.config, attribute)
    fields = GGUFReader(path).fields
    kind = fields["tokenizer.ggml.pre"].contents() if "tokenizer.ggml.pre" in fields else None
    if kind in _SINGLE_DIGITS:
        _split_digits(tokenizer)
    tokenizer.model_max_length = getattr(model.config, "max_position_embeddings", tokenizer.model_max_length)
    return model, tokenizer


def _split_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
