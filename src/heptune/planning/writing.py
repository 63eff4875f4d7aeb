"""Writes the book of forms (see `planning/book.py`): `python -m heptune.planning.writing`.

Traces every technique at its default settings on every family below (encoders with a linear head), in float32 and,
where the base stays frozen, bfloat16, with and without recomputation, and with the base in 4 bits. With families named,
only theirs are made anew.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields, replace

import torch

from heptune import techniques
from heptune.core.errors import HeptuneError
from heptune.planning import book
from heptune.planning.book import Variant
from heptune.planning.trace import trace

FAMILIES = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2", "gptj", "gpt_neox", "glm"),
    *("glm4", "glm4_moe", "qwen3_moe", "mixtral", "smollm3", "olmo2"),
)
ENCODERS = ("bert", "distilbert", "modernbert")

EVERY = (*FAMILIES, *ENCODERS)


def entries(family: str) -> Iterator[Variant]:
    """What is traced for one family, with a head of its own; an encoder's linear heads look at rows or at means."""
    for variant in _entries(family):
        heads = ("rows", "means") if family in ENCODERS else ("",)
        yield from (replace(variant, head=head) for head in heads)


def _entries(family: str) -> Iterator[Variant]:
    for name in techniques.names():
        kind = techniques.get(name)
        trains_base = "trains_base" in kind.capabilities
        quantizes = "quantizes_base" in kind.capabilities
        settings = asdict(techniques.build(name))  # type: ignore[call-overload]
        for dtype in ("float32",) if trains_base else ("float32", "bfloat16"):
            for recompute in (False, True):
                for quantized in (True,) if quantizes else (False,) if trains_base else (False, True):
                    yield Variant(family, name, settings, dtype, recompute, quantized)


def main(families: list[str]) -> None:
    """Writes the book; the families that are not named keep their entries."""
    torch.set_num_threads(1)
    old = book.read()
    made = {
        name: json.dumps(old["forms"][number], separators=(",", ":"))
        for name, number in old["entries"].items()
        if name.split("|")[0] not in (families or EVERY)
    }
    for family in families or EVERY:
        for own in entries(family):
            tied = replace(own, tied=True)
            try:
                made[own.key] = _traced(own)
                if family in ENCODERS:
                    continue
                # A frozen head costs the same.
                trains_base = "trains_base" in techniques.get(own.technique).capabilities
                made[tied.key] = _traced(tied) if trains_base else made[own.key]
            except HeptuneError as error:
                print(f"{own.key}: {error}", file=sys.stderr)
        _write(made)
        print(f"{family}: {len(made)} entries, {book.BOOK.stat().st_size / 1e6:.2f} MB")


def _traced(variant: Variant) -> str:
    arguments = {f.name: getattr(variant, f.name) for f in fields(variant) if f.name != "family"}
    return json.dumps(trace(variant.family, **arguments).to_json(), separators=(",", ":"))


def _write(made: dict[str, str]) -> None:
    """Equal forms are stored once."""
    numbers = {text: number for number, text in enumerate(dict.fromkeys(made.values()))}
    forms = ",\n".join(numbers)
    names = json.dumps({name: numbers[text] for name, text in sorted(made.items())}, indent=0)
    text = f'{{"forms":[\n{forms}\n],\n"entries":{names}}}\n'
    book.BOOK.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main(sys.argv[1:])
