"""What a base is made of, before any of its weights is read: its shape, from a name, a folder or a hub's config.json.

Well-known bases stand in `catalog.json`: the numbers of their configuration, the parameters that were published and
where. They need no network. For others config.json alone is read or fetched. Imports torch only where a configuration
has no closed form (see `models/families.py`) or a hub has to be asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from heptune.core.errors import BaseModelError
from heptune.core.events import Listener, Note, ignore
from heptune.core.registry import nearest
from heptune.models.embedded import EMBEDDED
from heptune.models.families import NOT_IN_TRANSFORMERS, families, shape_of
from heptune.models.shape import ModelShape

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Entry:
    """A base of the catalog.

    `config` has the names of its config.json. `published` is the parameter count that `source` states, exact
    ('8030261248') or rounded ('130B'). `hub`: the ids under which it lies on the hub. `form_of`: for a family that
    transformers does not have, the nearest one that it has, and `why_form`. `note`: what to know before tuning it.
    """

    name: str
    title: str
    config: Mapping[str, Any]
    published: str
    source: str
    hub: tuple[str, ...] = ()
    form_of: str | None = None
    why_form: str | None = None
    note: str | None = None

    @property
    def shape(self) -> ModelShape:
        """Its sizes, in closed form."""
        return shape_of(self.config)


@dataclass(frozen=True)
class BaseFacts:
    """What is known of a base without its weights.

    `name` is what was asked for, `tunable` what `heptune tune` takes for it (None: it cannot be tuned, `note` says
    why). `form_family` is the family whose forms of memory and work it is planned with. `origin` says in words where
    the sizes come from. `config` is its config.json. `entry` is its place in the catalog, if it has one.
    """

    name: str
    shape: ModelShape
    config: Mapping[str, Any]
    origin: str
    form_family: str
    tunable: str | None
    note: str | None = None
    entry: Entry | None = None
    both_ways: bool = False


@cache
def entries() -> dict[str, Entry]:
    """The catalog by name."""
    found = json.loads(Path(__file__).with_name("catalog.json").read_text("utf-8"))
    return {name: Entry(name, **{**values, "hub": tuple(values["hub"])}) for name, values in found.items()}


def find(name: str) -> Entry | None:
    """The catalog's base of that name or hub id; capitals and underscores do not matter."""
    plain = name.lower().replace("_", "-")
    by_id = {hub_id.lower().replace("_", "-"): entry for entry in entries().values() for hub_id in entry.hub}
    return entries().get(plain) or by_id.get(plain)


def describe(name: str, *, listener: Listener = ignore) -> BaseFacts:
    """The facts of a base: a folder, a GGUF file, a name of the catalog, or a hub id. No weights are read.

    Raises `BaseModelError` for a name that is none of these, and for a base that Heptune could not load.
    """
    path = Path(name).expanduser()
    if path.is_dir() or path.is_file():
        return _facts(name, _local_config(name, path), f"{path}", name, listener)
    if (entry := find(name)) is not None:
        in_hub = name if name in entry.hub else (entry.hub[0] if entry.hub else None)
        tunable = entry.name if entry.name in EMBEDDED and name == entry.name else in_hub
        family = entry.form_of or entry.shape.family
        return BaseFacts(
            name=name,
            shape=entry.shape,
            config=entry.config,
            origin=entry.source,
            form_family=family,
            tunable=None if entry.form_of else tunable,
            note=entry.note,
            entry=entry,
        )
    if name in EMBEDDED:
        return _facts(name, EMBEDDED[name].config, "an embedded base", name, listener)
    if _HUB_ID.fullmatch(name):
        from heptune.models.load import read_config

        return _facts(name, read_config(name, listener=listener), f"config.json of {name} on the hub", name, listener)
    if "/" in name or "\\" in name or name.startswith((".", "~")):
        raise BaseModelError(f"there is no folder or file {name}; {_KNOWN}")
    close = nearest(name, entries())
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise BaseModelError(f"there is no base {name!r}; {hint}{_KNOWN}")


_KNOWN = (
    "a base is a name of the catalog (llama-3.1-8b, qwen3-8b, glm-4-9b, ...; `heptune plan --bases` lists "
    "them), a folder with config.json, a .gguf file, or a hub id of the form owner/name"
)


def _local_config(name: str, path: Path) -> Mapping[str, Any]:
    """config.json of a folder; whatever is unusual about it is left to the loader, which says what is wrong."""
    try:
        config = json.loads((path / "config.json").read_text("utf-8"))
        if config["model_type"] in set(families()) - NOT_IN_TRANSFORMERS:
            return config
    except (OSError, ValueError, KeyError, TypeError):
        pass
    from heptune.models.load import read_config

    return read_config(name)


def _facts(name: str, config: Mapping[str, Any], origin: str, tunable: str, listener: Listener) -> BaseFacts:
    family, both_ways = config.get("model_type"), False
    if family in families() and family not in NOT_IN_TRANSFORMERS:
        shape = shape_of(config)
    else:
        from heptune.models.load import both_ways_of

        listener(Note(f"the sizes of a {family} model are read off the model itself, built without weights"))
        both_ways = both_ways_of(config)
        shape = _dissected(config, both_ways)
    return BaseFacts(name, shape, config, origin, shape.family, tunable, both_ways=both_ways)


def _dissected(config: Mapping[str, Any], both_ways: bool) -> ModelShape:
    """The shape of a family without a closed form: the model is built without memory and taken apart."""
    import torch
    from transformers import AutoModel, AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from heptune.models.anatomy import dissect, without_pooler

    try:
        made = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
        with torch.device("meta"):
            model = AutoModel.from_config(made) if both_ways else AutoModelForCausalLM.from_config(made)
    except Exception as problem:
        raise BaseModelError(
            f"transformers cannot build a {config.get('model_type')} model from its config.json "
            f"({type(problem).__name__}: {problem}); take a base whose architecture it knows"
        ) from problem
    return dissect(without_pooler(model)).shape
