"""llama.cpp, through llama-cpp-python where that is installed, asked for parity."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from heptune.shipping.parity import Asked

MISSING = (
    "llama.cpp itself has not read the file: llama-cpp-python is not installed (`pip install 'heptune[llama-cpp]'`)"
)
# Longer than any prompt with its reply and than a held-out record. A batch is as long: each is computed as one.
_LENGTH = 512


def is_there() -> bool:
    """Whether llama-cpp-python is installed; does not import it."""
    return importlib.util.find_spec("llama_cpp") is not None


@contextmanager
def opened(model: Path, stops: Sequence[int], lora: Path | None = None) -> Iterator[LlamaVoice]:
    """A GGUF file in llama.cpp, with a LoRA on it where one is named."""
    import llama_cpp

    settings: dict[str, Any] = {"n_ctx": _LENGTH, "n_batch": _LENGTH, "n_ubatch": _LENGTH, "logits_all": True}
    # Keys and values in float32 as well, so that what is compared is the file.
    settings |= {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32, "verbose": False}
    settings["n_threads"] = settings["n_threads_batch"] = torch.get_num_threads()
    loaded = llama_cpp.Llama(str(model), lora_path=None if lora is None else str(lora), **settings)
    try:
        yield LlamaVoice(loaded, stops)
    finally:
        loaded.close()


class LlamaVoice:
    """A model in llama.cpp."""

    def __init__(self, loaded: Any, stops: Sequence[int]) -> None:
        self.loaded, self.stops = loaded, set(stops)

    def logits(self, asked: Asked) -> torch.Tensor:
        """[T, V]."""
        self.loaded.reset()
        self.loaded.eval(list(asked.tokens))
        return torch.from_numpy(np.array(self.loaded.scores[: len(asked.tokens)], np.float32))

    def greedy(self, asked: Asked, count: int) -> list[int]:
        """One token after the other, with llama.cpp's cache."""
        self.loaded.reset()
        self.loaded.eval(list(asked.tokens))
        said: list[int] = []
        while len(said) < count:
            said.append(int(np.argmax(self.loaded.scores[self.loaded.n_tokens - 1])))
            if said[-1] in self.stops:
                break
            if len(said) < count:
                self.loaded.eval(said[-1:])
        return said

    def encode(self, text: str) -> list[int]:
        """The tokens of a text without special tokens around it."""
        return list(self.loaded.tokenize(text.encode(), add_bos=False, special=True))
