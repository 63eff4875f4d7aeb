"""Stored forms: the common architectures with every technique at its default settings. Imports no torch.

`python -m heptune.planning.writing` makes `book.json.gz` again.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from heptune.planning.forms import StepForm

BOOK = Path(__file__).with_name("book.json.gz")

# Settings that give a size a value (see `forms.sizes_of`), and those that change neither memory nor work.
_SIZES = ("rank", "reduction", "virtual_tokens", "encoder_hidden")
_WITHOUT_EFFECT = ("alpha", "rank_stabilised", "learning_rate", "scaling", "init", "init_text", "start_from")


def structure(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What of a technique's settings decides the form: not sizes, and nothing that has no effect."""
    found = {n: v for n, v in settings.items() if n not in (*_SIZES, *_WITHOUT_EFFECT)}
    if "dropout" in found:
        found["dropout"] = bool(found["dropout"])
    if "targets" in found:
        found["targets"] = sorted(found["targets"])
    template = found.pop("prompt_template", "")
    if "{p:" in str(template):
        before, _, behind = str(template).partition("text")
        found["prompt_template"] = f"{'{p}' if '{p:' in before else ''}text{'{p}' if '{p:' in behind else ''}"
    return found


@dataclass(frozen=True)
class Variant:
    """What decides a form. `family`: transformers' model type. `dtype`: of the base's weights, 'float32' or 'bfloat16'.
    `recompute`: whether activations are computed again. `quantized`: the base lies in 4 bits. `tied`: the head is the
    embedding. `head`: where a linear head looks, at 'rows' or at 'means' of examples; '' where words are learned."""

    family: str
    technique: str
    settings: Mapping[str, Any]
    dtype: str = "float32"
    recompute: bool = False
    quantized: bool = False
    tied: bool = False
    head: str = ""

    @property
    def key(self) -> str:
        """Its name in the book: equal where the forms are."""
        settings = json.dumps(structure(self.settings), sort_keys=True)
        ways = [name for name in ("recompute", "quantized", "tied") if getattr(self, name)]
        head = [f"head at {self.head}"] if self.head else []
        return "|".join([self.family, self.technique, settings, self.dtype, *ways, *head])


# Encoders that compute as another one does; a test compares.
ALIKE = dict.fromkeys(("roberta", "xlm-roberta", "camembert", "electra"), "bert")


def find(variant: Variant) -> StepForm | None:
    """The stored form; None where there is none (`planning.trace` makes it then)."""
    book = read()
    variant = replace(variant, family=ALIKE.get(variant.family, variant.family))
    number = book["entries"].get(variant.key)
    return None if number is None else StepForm.from_json(book["forms"][number])


@cache
def read() -> dict[str, Any]:
    """The whole book: forms, and each entry's number among them."""
    if not BOOK.is_file():
        return {"forms": [], "entries": {}}
    found: dict[str, Any] = json.loads(gzip.decompress(BOOK.read_bytes()))
    return found
