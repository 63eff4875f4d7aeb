"""The sizes of a causal language model, and its linear sites, without the model itself. Imports no torch.

A linear site is one matrix y = Wx + b, named by its role:

    attention.q  attention.k  attention.v  attention.o     or fused: attention.qkv
    mlp.gate  mlp.up  mlp.down                             or fused: mlp.gate_up
    head                                                   hidden state -> logits
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from heptune.core.errors import TechniqueError
from heptune.core.registry import nearest

ROLES = (
    "attention.q",
    "attention.k",
    "attention.v",
    "attention.qkv",
    "attention.o",
    "mlp.gate",
    "mlp.up",
    "mlp.gate_up",
    "mlp.down",
    "head",
)


@dataclass(frozen=True)
class Site:
    """One linear place. `weight` is stored [out, in], or [in, out] where `transposed` (GPT-2's Conv1D)."""

    layer: int | None
    role: str
    path: str
    in_features: int
    out_features: int
    transposed: bool


@dataclass(frozen=True)
class ModelShape:
    """The sizes that costs are computed from. Counts are elements; a tied head counts once.

    `embedding` is the width of a word's embedding; `heads` are those of queries, `kv_heads` those of keys and values,
    all `head_width` wide; `max_positions` is None where the configuration names no limit. `family` is transformers'
    model type. `active_parameters` are those that one token passes through (fewer than `parameters` in a mixture of
    experts). `experts` stand in a layer that has any, each `expert_width` wide inside.
    """

    architecture: str
    family: str
    hidden: int
    layers: int
    vocabulary: int
    parameters: int
    active_parameters: int
    layer_parameters: tuple[int, ...]
    final_norm_parameters: int
    head_parameters: int
    head_tied: bool
    sites: tuple[Site, ...]
    embedding: int
    heads: int
    kv_heads: int
    head_width: int
    max_positions: int | None
    experts: int = 0
    expert_width: int = 0

    def select(self, roles: Iterable[str]) -> tuple[Site, ...]:
        """The sites with these roles: names of `ROLES`, a part ('attention', 'mlp'), 'linear' (all but the head), or
        'all'. A role whose fused form stands in this architecture (attention.q in attention.qkv) is refused by name."""
        chosen: list[Site] = []
        present = Counter(site.role for site in self.sites)
        for role in roles:
            if role in ("linear", "all-linear"):
                found = [s for s in self.sites if s.role != "head"]
            elif role == "all":
                found = list(self.sites)
            else:
                found = [s for s in self.sites if s.role == role or s.role.split(".")[0] == role]
            if not found:
                raise TechniqueError(self._missing(role, present))
            chosen += [s for s in found if s not in chosen]
        return tuple(s for s in self.sites if s in chosen)

    def _missing(self, role: str, present: Counter[str]) -> str:
        available = ", ".join(f"{name} ({count})" for name, count in present.items())
        part, _, letter = role.partition(".")
        for fused in present:
            if fused.startswith(part + ".") and letter and letter in re.split("_|(?=[qkv])", fused.partition(".")[2]):
                return f"{role} is fused into {fused} in {self.architecture}; use {fused}. Sites here: {available}"
        close = nearest(role, [*ROLES, "linear", "all", "attention", "mlp"])
        hint = f" (nearest: {', '.join(close)})" if close else ""
        return f"{self.architecture} has no linear site {role!r}{hint}. Sites here: {available}"
