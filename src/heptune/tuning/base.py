"""The base of a run: loaded as its technique needs it, checked against the manifest, stored in 4 bits where asked."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers

from heptune.core.errors import RunError, UsageError
from heptune.core.events import Listener
from heptune.data.record import Record
from heptune.engine.settings import Settings
from heptune.models.anatomy import Anatomy, is_encoder
from heptune.models.load import Base, load_base
from heptune.models.quantization import quantize, require_library
from heptune.runs.run import Run
from heptune.tasks.template import ChatTemplate, PlainText
from heptune.techniques._contract import Technique

# The folder, inside a pre-training's run, of the base as it began.
INITIAL = "initial"

AnyTechnique = Technique | type[Technique]


def load(name: str, technique: AnyTechnique, listener: Listener, beneath: Iterable[AnyTechnique] = ()) -> Base:
    """The base called `name`, in the type that the technique trains in, or those of earlier rounds `beneath` it did."""
    capabilities = technique.capabilities.union(*(each.capabilities for each in beneath))
    return load_base(name, dtype=dtype(capabilities), listener=listener)


def load_again(run: Run, technique: AnyTechnique, listener: Listener, beneath: Iterable[AnyTechnique] = ()) -> Base:
    """The base that a run began with; `RunError` where it is another one by now. A pre-training has its own inside, and
    may have been moved with it."""
    known = run.manifest["base"]
    name = str(run.folder / INITIAL) if "pretrain" in run.manifest else known["name"]
    base = load(name, technique, listener, beneath)
    if base.fingerprint != known["fingerprint"]:
        raise RunError(
            f"the base {base.name} is not the one this run began with (its weights or tokenizer differ); "
            "put the old one back, or tune anew"
        )
    return base


def dtype(capabilities: frozenset[str]) -> torch.dtype | None:
    """Weights that are trained themselves are float32 everywhere: small updates vanish in bfloat16."""
    return torch.float32 if "trains_base" in capabilities else None


def template_of(base: Base, text: str | None = None, records: Iterable[Record] = ()) -> ChatTemplate:
    """How this base reads and speaks: its chat template for these records, or `text`, the one that a run froze; an
    encoder's stand-in, which serves tasks with a linear head and refuses the others."""
    if is_encoder(base.model.config):
        return PlainText(base.tokenizer)  # type: ignore[return-value]
    return ChatTemplate.for_records(base.tokenizer, records) if text is None else ChatTemplate(base.tokenizer, text)


def described(name: str, loaded: Base) -> dict[str, Any]:
    """What a manifest keeps of a base."""
    path = Path(name).expanduser()
    return {
        "name": str(path.resolve()) if path.exists() else name,
        "from": loaded.folder_or_id,
        "revision": loaded.revision,
        "fingerprint": loaded.fingerprint,
    }


def check_quantization(technique: Technique | type[Technique], settings: Settings) -> None:
    """Before anything is loaded: the library is there, and nothing that is trained would be stored in 4 bits."""
    if settings.quantize is not None and "trains_base" in technique.capabilities:
        raise UsageError(
            f"{technique.name} trains the base's own weights, and a weight in 4 bits cannot be trained; "
            "leave quantize out, or take a technique that keeps the base frozen"
        )
    if settings.quantize is not None or "quantizes_base" in technique.capabilities:
        require_library()


def quantize_where_asked(
    anatomy: Anatomy, technique: Technique | type[Technique], settings: Settings, listener: Listener
) -> None:
    """Stores the base in 4 bits where the run or its technique says so, before anything is attached to it."""
    if settings.quantize is not None or "quantizes_base" in technique.capabilities:
        quantize(anatomy, listener)


def versions() -> dict[str, str]:
    """What the bits of a run depend on beside the run itself."""
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
    }
