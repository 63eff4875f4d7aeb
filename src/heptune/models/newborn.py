"""New small models: their configuration by name, their tokenizer, their first weights.

A name is an architecture and a size, such as llama-5m. The size fixes the width; as many layers are stacked as come
nearest to the named number of parameters, embeddings included. Torch is imported only where weights are made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heptune.core.errors import BaseModelError, UsageError
from heptune.core.registry import unknown
from heptune.models.families import shape_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT, TURN_BEGINS, TURN_ENDS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
MARKS = (END_OF_TEXT, TURN_BEGINS, TURN_ENDS)
# Every byte has a token, so that any text can be encoded, and so has every mark.
LEAST_VOCABULARY = 256 + len(MARKS)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    f"{{{{ '{TURN_BEGINS}' + message['role'] + '\\n' + message['content'] + '{TURN_ENDS}\\n' }}}}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{{{{ '{TURN_BEGINS}assistant\\n' }}}}{{% endif %}}"
)


@dataclass(frozen=True)
class Size:
    """How wide a model of about so many parameters is, and the learning rate that it is trained with."""

    parameters: float
    hidden: int
    heads: int
    learning_rate: float


# Widths and heads so that about six layers come out. The rates fall with the width, as in Yang et al. 2022 (muP).
SIZES = {
    "1m": Size(1e6, 96, 4, 3e-3),
    "5m": Size(5e6, 256, 8, 2e-3),
    "20m": Size(20e6, 384, 6, 1e-3),
}
FAMILIES = ("llama", "gpt2", "glm4")
NAMES = tuple(f"{family}-{size}" for family in FAMILIES for size in SIZES)
_MOST_LAYERS = 64

VOCABULARY, CONTEXT = 4096, 256
# How a pre-training differs from a tuning, by the names of the settings: the usual decay of weights (Brown et al. 2020,
# appendix B).
PRETRAINING: dict[str, Any] = {"weight_decay": 0.1}


def with_size(name: str, size: str | None) -> str:
    """The name of a new model whose size is told apart from its architecture: 'llama', '5m' -> 'llama-5m'. Raises
    UsageError for a size that is not known, and for one beside a name that has one already."""
    if size is None:
        return name
    if size not in SIZES:
        raise unknown("size", size, SIZES)
    if name not in FAMILIES:
        raise UsageError(f"--size goes with an architecture ({', '.join(FAMILIES)}), not with {name}; leave one out")
    return f"{name}-{size}"


def configuration(name: str, vocabulary: int, context: int) -> dict[str, Any]:
    """The configuration of a new model: of a name among `NAMES`, or a config.json whose vocabulary is replaced.

    Raises UsageError for a name that is not known and for a vocabulary that leaves no room for a layer,
    BaseModelError for a configuration that cannot be used.
    """
    if Path(name).suffix == ".json":
        return _from_file(Path(name), vocabulary, context)
    if name not in NAMES:
        raise unknown("new model", name, (*NAMES, "a config.json"))
    family, _, size = name.rpartition("-")
    wanted = SIZES[size]
    sizes = [
        shape_of(_sized(family, wanted, layers, vocabulary, context)).parameters for layers in range(1, _MOST_LAYERS)
    ]
    if sizes[0] > 1.5 * wanted.parameters:
        raise UsageError(
            f"with a vocabulary of {vocabulary} and a context of {context}, {name} would have {sizes[0]:,} parameters "
            "in one layer; take a smaller vocabulary or a larger size"
        )
    nearest = min(range(len(sizes)), key=lambda i: abs(sizes[i] - wanted.parameters))
    return _sized(family, wanted, nearest + 1, vocabulary, context)


def usual_rate(name: str, parameters: int) -> float:
    """The learning rate for a new model of that name, or of so many parameters."""
    size = SIZES.get(name.rpartition("-")[2])
    if size is not None:
        return size.learning_rate
    near = min(SIZES.values(), key=lambda known: abs(known.parameters - parameters))
    return near.learning_rate if parameters < 5e7 else 5e-4


def _sized(family: str, size: Size, layers: int, vocabulary: int, context: int) -> dict[str, Any]:
    marks = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    common = {"model_type": family, "vocab_size": vocabulary, "tie_word_embeddings": True, **marks}
    if family == "gpt2":
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        sizes = {"n_embd": size.hidden, "n_layer": layers, "n_head": size.heads, "n_positions": context}
        return {**common, "architectures": ["GPT2LMHeadModel"], **sizes, **dropout}
    architecture = {"llama": "LlamaForCausalLM", "glm4": "Glm4ForCausalLM"}[family]
    return {
        **common,
        "architectures": [architecture],
        "hidden_size": size.hidden,
        # 8/3 of the width: three matrices then weigh as much as the two of a plain MLP (Shazeer 2020).
        "intermediate_size": round(8 / 3 * size.hidden / 32) * 32,
        "num_hidden_layers": layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads if family == "llama" else size.heads // 2,
        "head_dim": size.hidden // size.heads,
        "max_position_embeddings": context,
    }


def _from_file(path: Path, vocabulary: int, context: int) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text("utf-8"))
        kind = config["model_type"]
    except OSError as error:
        raise BaseModelError(f"{path} cannot be read ({error.strerror}); name a config.json") from None
    except (ValueError, KeyError, TypeError) as error:
        raise BaseModelError(f"{path} is no configuration with a model_type ({error})") from None
    config |= {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    limit = config.get("max_position_embeddings", config.get("n_positions"))
    if isinstance(limit, int) and limit < context:
        raise UsageError(f"{path} has {limit} positions, fewer than the context of {context}; take --context {limit}")
    if not isinstance(kind, str):
        raise BaseModelError(f"{path} has the model_type {kind!r}; it must be a name that transformers knows")
    return config


def train_tokenizer(texts: Iterable[str], vocabulary: int, context: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE of at most `vocabulary` tokens, learned from `texts`: fewer where they hold no more pairs.

    `<|endoftext|>` begins and ends a document; turns of a chat stand between `<|im_start|>` and `<|im_end|>`.
    Raises UsageError for fewer tokens than bytes and marks need.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if vocabulary < LEAST_VOCABULARY:
        raise UsageError(
            f"the vocabulary is {vocabulary}; 256 bytes and {len(MARKS)} marks need at least {LEAST_VOCABULARY} tokens"
        )
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(MARKS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learned.train_from_iterator(texts, trainer)
    learned.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", pair=f"{END_OF_TEXT} $A $B", special_tokens=[(END_OF_TEXT, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=learned,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_BEGINS, TURN_ENDS],
        clean_up_tokenization_spaces=False,
        model_max_length=context,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def write_newborn(folder: Path, config: dict[str, Any], tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
    """A base with random weights in an existing folder: config.json, safetensors, tokenizer. The same seed gives the
    same weights. Raises BaseModelError where transformers cannot make the model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from heptune.core.seeds import derive
    from heptune.models.quiet import quiet

    try:
        settings = {key: value for key, value in config.items() if key != "model_type"}
        made = AutoConfig.for_model(config["model_type"], **settings)
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "newborn"))
            model = AutoModelForCausalLM.from_config(made, dtype=torch.float32)
    except Exception as problem:
        text = str(problem).strip().splitlines() or [type(problem).__name__]
        raise BaseModelError(f"transformers cannot make a model of this configuration: {text[0]}") from problem
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
