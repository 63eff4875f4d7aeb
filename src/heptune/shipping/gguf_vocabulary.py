"""A tokenizer as GGUF has it: tokens, merges, the name of how text is cut, special tokens, the chat template.

llama.cpp cuts text by rules of its own, one set for each family, chosen by name (`tokenizer.ggml.pre`). So a tokenizer
is written only where it is byte-level BPE and cuts text in one of the ways that have a name; any other would be read
otherwise than the model was trained.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import gguf

from heptune.core.errors import BaseModelError
from heptune.tasks.template import ChatTemplate

# The expressions of Qwen 2 and 3 and of Llama 3, as in their tokenizer.json: they differ in how many digits stay whole.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {_WORDS % r"\p{N}": "qwen2", _WORDS % r"\p{N}{1,3}": "llama-bpe"}


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer: `kinds` are llama.cpp's types of tokens, `cut` its name for how text is
    cut."""

    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    merges: tuple[str, ...]
    cut: str

    @classmethod
    def of(cls, tokenizer: Any, size: int) -> Vocabulary:
        """The vocabulary of a tokenizer, filled up to the `size` of the model's; a token without an embedding is left
        out, since the model could not be given it. Raises `BaseModelError` for one that GGUF has no name for."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise BaseModelError(f"this base's tokenizer ({type(tokenizer).__name__}) {_NO_NAME}")
        state = json.loads(backend.to_str())
        model = state["model"]
        cut = _cut(state)
        if model["type"] != "BPE" or model.get("byte_fallback") or cut is None:
            how = f"{model['type']}, {json.dumps(state['pre_tokenizer'])[:200]}"
            raise BaseModelError(f"this base's tokenizer ({how}) {_NO_NAME}")
        known = {number: token for token, number in model["vocab"].items()}
        kinds = dict.fromkeys(known, gguf.TokenType.NORMAL)
        for added in state["added_tokens"]:
            known[added["id"]] = added["content"]
            special = added["special"]
            kinds[added["id"]] = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
        tokens = tuple(known.get(number, f"[PAD{number}]") for number in range(size))
        types = tuple(int(kinds.get(number, gguf.TokenType.UNUSED)) for number in range(size))
        merges = tuple(pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
        return cls(tokens, types, merges, cut)


_NO_NAME = (
    "cuts text in a way that GGUF has no name for here (known: byte-level BPE as in GPT-2, SmolLM, Qwen 2 and 3, Llama "
    "3); choose --to hf, which llama.cpp's own convert_hf_to_gguf.py can go on from"
)


def write(writer: gguf.GGUFWriter, vocabulary: Vocabulary, tokenizer: Any, template: ChatTemplate) -> None:
    """Adds the tokenizer's section to a file."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.cut)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types(list(vocabulary.kinds))
    writer.add_token_merges(list(vocabulary.merges))
    writer.add_add_bos_token(template.bos is not None)
    writer.add_add_space_prefix(False)
    special = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unk": tokenizer.unk_token_id,
        "pad": tokenizer.pad_token_id,
    }
    for name, number in special.items():
        if number is not None and number < len(vocabulary.tokens):
            getattr(writer, f"add_{name}_token_id")(number)
    others = [stop for stop in template.stop_tokens if stop != tokenizer.eos_token_id]
    if others:  # llama.cpp ends a reply at the end of a turn as well as at the end of a text
        writer.add_eot_token_id(others[0])
    writer.add_chat_template(template.source)


def _cut(state: dict[str, Any]) -> str | None:
    """llama.cpp's name for how this tokenizer cuts text, None where there is none."""
    steps = state["pre_tokenizer"] or {}
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    *before, last = steps
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space") or _normalises(state):
        return None
    if not before:
        return "gpt-2" if last.get("use_regex", True) else None
    if len(before) > 1:
        return None
    if before[0]["type"] == "Digits" and before[0]["individual_digits"] and last.get("use_regex", True):
        return "smollm"
    if before[0]["type"] == "Split" and not last.get("use_regex", True):
        return _SPLITS.get(before[0]["pattern"].get("Regex", ""))
    return None


def _normalises(state: dict[str, Any]) -> bool:
    """Whether text is changed before it is cut. Qwen's NFC is what nearly all text has already; llama.cpp leaves it."""
    found = state.get("normalizer")
    return found is not None and found["type"] != "NFC"
