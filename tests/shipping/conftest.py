from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import heptune
from heptune import techniques
from tiny import IM_END, IM_START, PAD, VOCABULARY, tiny_encoder, tiny_encoder_tokenizer, tiny_model, tiny_tokenizer

# Settings that fit the tiny base, high rates that move what a few steps can move.
SMALL: dict[str, dict[str, Any]] = {
    "adapter": {"reduction": 4, "learning_rate": 0.02},
    "freeze": {"layers": 1, "learning_rate": 0.01},
    "full": {"learning_rate": 0.005},
    "lora": {"rank": 4, "learning_rate": 0.02},
    "p_tuning": {"virtual_tokens": 4, "encoder_hidden": 6, "learning_rate": 0.02},
    "p_tuning_v2": {"virtual_tokens": 5, "learning_rate": 0.1},
    "prefix": {"virtual_tokens": 5, "encoder_hidden": 8, "learning_rate": 0.02},
    "prompt": {"virtual_tokens": 5, "learning_rate": 0.1},
    "qlora": {"rank": 4, "learning_rate": 0.02},
}
FEW: dict[str, Any] = {"batch_size": 6, "max_length": 256, "max_steps": 4, "validate_every": 4}

Runs = Callable[..., heptune.Run]


def small(name: str, **more: Any) -> Any:
    return techniques.build(name, {**SMALL[name], **more})


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


def qwen2() -> transformers.PreTrainedModel:
    """Biases on q, k and v, and a tied head."""
    config = transformers.Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.1,
        pad_token_id=PAD,
        bos_token_id=IM_START,
        eos_token_id=IM_END,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.Qwen2ForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model.float().eval()


# Llama 3.1's way of stretching positions, with a beginning and factors under which a short text feels it.
LLAMA3_ROPE: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}

MODELS: dict[str, Callable[[], transformers.PreTrainedModel]] = {
    "llama": lambda: tiny_model("llama"),
    "tied": lambda: tiny_model("llama", tie_word_embeddings=True),
    "qwen2": qwen2,
    "qwen3": lambda: tiny_model("qwen3", head_dim=128),  # what transformers takes for granted when it reads GGUF
    "gpt2": lambda: tiny_model("gpt2"),
    "mistral": lambda: tiny_model("mistral"),
    "llama3": lambda: tiny_model("llama", rope_parameters=LLAMA3_ROPE),
    "linear": lambda: tiny_model(
        "qwen3", head_dim=128, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    ),
    "scaled": lambda: tiny_model("qwen3", rope_parameters=LLAMA3_ROPE),
}


def _encoder(name: str) -> transformers.PreTrainedModel:
    """RoBERTa counts positions by what is no padding, which in its tests' configuration is the tokenizer's [CLS]."""
    return tiny_encoder(name, **({"pad_token_id": PAD} if name == "roberta" else {}))


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of tiny bases, made once."""
    root = tmp_path_factory.mktemp("bases")

    def of(name: str) -> Path:
        if not (root / name).exists():
            encoder = name not in MODELS
            (_encoder(name) if encoder else MODELS[name]()).save_pretrained(root / name)
            (tiny_encoder_tokenizer() if encoder else tiny_tokenizer()).save_pretrained(root / name)
        return root / name

    return of


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file for each task."""
    root = tmp_path_factory.mktemp("data")
    words = ["river", "book", "answer", "sentence", "word"]
    labelled = [{"text": f"{words[i % 5]} {i}", "label": ["yes", "no"][i % 2]} for i in range(48)]
    several = [{"text": f"{words[i % 5]} {i}", "labels": [["a"], ["a", "b"], ["b"], []][i % 4]} for i in range(48)]
    tagged = [{"tokens": [str(i), words[i % 5], "in", "Rome"], "ner_tags": ["O", "B-X", "O", "B-Y"]} for i in range(48)]
    talks = [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(30)]
    return {
        "classify": write(root / "labelled.jsonl", labelled),
        "label": write(root / "label.jsonl", labelled),
        "several": write(root / "several.jsonl", several),
        "tag": write(root / "tagged.jsonl", tagged),
        "chat": write(root / "talks.jsonl", talks),
    }


@pytest.fixture(scope="session")
def runs(bases: Callable[[str], Path], data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Finished runs, each made once: technique, base, data, and more settings of the technique."""
    root = tmp_path_factory.mktemp("runs")

    def of(technique: str, base: str = "llama", kind: str = "classify", **more: Any) -> heptune.Run:
        name = "-".join([technique, base, kind, *(f"{key}={value}" for key, value in more.items())])
        if not (root / name).exists():
            task = {"several": "label", "label": "label", "tag": "tag"}.get(kind)
            chosen = small(technique, **more)
            # Without validation the last step is the artifact: the best one may be that before the first.
            whole = heptune.DataOptions(validation=0.0)
            heptune.tune(bases(base), data[kind], technique=chosen, task=task, out=root / name, options=whole, **FEW)
        return heptune.Run(root / name)

    return of
