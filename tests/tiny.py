"""Random tiny models of many families, and a tiny tokenizer: what the tests prove equations with.

`from tiny import tiny_model, tiny_tokenizer`. Building takes milliseconds; the same seed gives the same weights.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 320
PAD, IM_START, IM_END = 0, 1, 2

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# What the families that are built like Llama share: grouped-query attention, four heads on two key/value heads.
_LLAMA_LIKE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
}
_WITHOUT_HEAD_DIM = {key: value for key, value in _LLAMA_LIKE.items() if key != "head_dim"}

# family -> (configuration class, model class, settings). Where a family has something of its own, it is switched on:
# windows shorter than the tests' texts, a head width that is not hidden / heads, layers without rotary positions.
_FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", _LLAMA_LIKE),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**_LLAMA_LIKE, "head_dim": 16, "tie_word_embeddings": True}),
    "glm": ("GlmConfig", "GlmForCausalLM", _LLAMA_LIKE),
    "glm4": ("Glm4Config", "Glm4ForCausalLM", _LLAMA_LIKE),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"n_embd": 32, "n_inner": 48, "n_layer": 2, "n_head": 4, "n_positions": 1024}
        | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    ),
    "gpt_neox": (
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        {key: value for key, value in _WITHOUT_HEAD_DIM.items() if key != "num_key_value_heads"},
    ),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**_LLAMA_LIKE, "sliding_window": 6}),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {**_LLAMA_LIKE, "head_dim": 16, "query_pre_attn_scalar": 16, "num_hidden_layers": 3, "sliding_window": 6}
        | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {**_WITHOUT_HEAD_DIM, "original_max_position_embeddings": 1024}),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM", {**_WITHOUT_HEAD_DIM, "no_rope_layers": [1, 0]}),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", _WITHOUT_HEAD_DIM),
}

FAMILIES = tuple(_FAMILIES)


def tiny_model(family: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random causal model of `family` (see FAMILIES) in float32, in evaluation mode; no more than 64 wide.

    `overrides` go to the family's configuration. Biases and norm weights are random too, so that forgetting one shows.
    """
    config_class, model_class, settings = _FAMILIES[family]
    tokens = {"pad_token_id": PAD, "bos_token_id": IM_START, "eos_token_id": IM_END}
    common = {"vocab_size": VOCABULARY, "initializer_range": 0.1, **tokens}
    config = getattr(transformers, config_class)(**{**common, **settings, **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, model_class)(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model.float().eval()


@functools.cache
def _trained_bytes() -> str:
    """A byte-level BPE of VOCABULARY entries as JSON: any text can be encoded, common English pieces are one token."""
    lines = [
        "The text is positive. The text is negative. Which label fits this sentence best?",
        "system user assistant You are a helpful assistant. Answer with one word, please.",
        "A shared instruction stands before every example, and the answer stands behind it.",
        "What is the capital of France? Where is the river? Who wrote the book, and when?",
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer.to_str()


_ENCODER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
_ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertConfig", "BertModel", {**_ENCODER, "pad_token_id": PAD}),
    "roberta": ("RobertaConfig", "RobertaModel", {**_ENCODER, "pad_token_id": 1}),
    "distilbert": (
        "DistilBertConfig",
        "DistilBertModel",
        {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 256},
    ),
    "electra": ("ElectraConfig", "ElectraModel", {**_ENCODER, "embedding_size": 32}),
    "modernbert": (
        "ModernBertConfig",
        "ModernBertModel",
        {**_ENCODER, "local_attention": 6, "global_attn_every_n_layers": 2, "pad_token_id": PAD}
        | {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "deberta-v2": (
        "DebertaV2Config",
        "DebertaV2Model",
        {**_ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
        | {"norm_rel_ebd": "layer_norm", "position_buckets": 16, "share_att_key": True},
    ),
}
ENCODERS = tuple(_ENCODERS)


def tiny_encoder(family: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random encoder of `family` (see ENCODERS) in float32, in evaluation mode, without a pooling layer."""
    config_class, model_class, settings = _ENCODERS[family]
    settings = {**settings, **overrides}
    config = getattr(transformers, config_class)(vocab_size=VOCABULARY, initializer_range=0.2, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, model_class)(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model.float().eval()


def tiny_encoder_tokenizer() -> PreTrainedTokenizerFast:
    """The same words between <|im_start|> and <|im_end|>, as [CLS] and [SEP] are put around a text."""
    tokenizer = Tokenizer.from_str(_trained_bytes())
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", IM_START), ("<|im_end|>", IM_END)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", cls_token="<|im_start|>", sep_token="<|im_end|>"
    )


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of 320 entries with a ChatML template; ids 0, 1, 2: <|pad|>, <|im_start|>, <|im_end|> (the end)."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained_bytes()),
        pad_token="<|pad|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
