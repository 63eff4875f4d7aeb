"""Encoding by pieces: the tokens of many texts from those of their words, to the same tokens.

A byte-level BPE first cuts a text into words by a regular expression and then encodes each word alone. In the
expressions of GPT-2 and of its successors a blank stands only at the beginning of an alternative or among other white
space, and nothing looks back. So a lone blank between two characters that are no white space always begins a new word:
a text may be cut there, and what a piece becomes need be found out once.

For every other tokenizer, and for one whose added tokens or normalizer could reach over such a place, texts are encoded
whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PLACE = re.compile(r"(?<=\S) (?=\S)")
_OTHER_BLANK = re.compile(r"\s | \s|^ | $")  # one that is not alone, or at an end
_MOST = 1 << 15  # pieces that are remembered
_LONGEST = 24  # characters of a piece that is remembered
# What the alternatives of a known expression may be; in any order and number.
_ALTERNATIVES = {
    "'s|'t|'re|'ve|'m|'ll|'d",
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r" ?\p{L}+",
    r" ?\p{N}+",
    r" ?[^\s\p{L}\p{N}]+",
    r"\s+(?!\S)",
    r"\s+",
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    r"\p{N}{1,3}",
    r"\p{N}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
}


_START = "\n"  # no piece that follows a blank begins with white space


def _pieces(text: str) -> list[str]:
    """The text cut at its lone blanks, which are left out."""
    marked = _START + text
    # Most texts have no other blanks; then this is faster by far.
    return _PLACE.split(marked) if _OTHER_BLANK.search(text) else marked.split(" ")


class Pieces:
    """Encodes texts with one tokenizer, without special tokens around them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.divides = _divides(tokenizer)
        self._known: dict[str, list[int]] = {}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text; what has to be encoded is encoded together, on all cores."""
        if not self.divides:
            return self._encode(texts)
        if len(self._known) > _MOST:
            self._known.clear()
        known = self._known
        cut = [_pieces(text) for text in texts]
        new = list({piece for pieces in cut for piece in pieces if piece not in known})
        # The blank that a piece was cut off at begins it; what begins a text is marked instead.
        written = [piece[1:] if piece[0] == _START else " " + piece for piece in new]
        known.update(zip(new, self._encode(written), strict=True))
        tokens = [[token for piece in pieces for token in known[piece]] for pieces in cut]
        for piece in new:
            if len(piece) > _LONGEST:
                del known[piece]
        return tokens

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        leave = {"return_attention_mask": False, "return_token_type_ids": False}
        return list(self.tokenizer(list(texts), add_special_tokens=False, verbose=False, **leave)["input_ids"])


def _divides(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether texts may be cut at lone blanks."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    parts: dict[str, Any] = json.loads(backend.to_str())
    normalizer = (parts.get("normalizer") or {"type": "NFC"})["type"]
    added = parts.get("added_tokens", [])
    return (
        parts["model"]["type"] == "BPE"
        and normalizer == "NFC"
        and not any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in added)
        and not any(_PLACE.search(f"a{token['content']}a") for token in added)
        and _cuts_at_blanks(parts.get("pre_tokenizer"))
    )


def _cuts_at_blanks(pre_tokenizer: dict[str, Any] | None) -> bool:
    """Whether a pre-tokenizer is made of known parts, and one of them cuts a text into words as described above."""
    if pre_tokenizer is None:
        return False
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    cuts = False
    for step in steps:
        if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
            cuts = cuts or step.get("use_regex", True)
        elif step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
            if not _known(step["pattern"].get("Regex", "")):
                return False
            cuts = cuts or _takes_the_blank(step["pattern"]["Regex"])
        elif step["type"] != "Digits":
            return False
    return cuts


def _known(expression: str) -> bool:
    return all(part in _ALTERNATIVES for part in _alternatives(expression))


def _takes_the_blank(expression: str) -> bool:
    return bool({r" ?\p{L}+", r"[^\r\n\p{L}\p{N}]?\p{L}+"} & set(_alternatives(expression)))


def _alternatives(expression: str) -> Iterable[str]:
    """The alternatives of a regular expression, the contractions as one."""
    for contractions in ("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'s|'t|'re|'ve|'m|'ll|'d"):
        if expression.startswith(contractions + "|"):
            return [contractions, *expression[len(contractions) + 1 :].split("|")]
    return expression.split("|")
