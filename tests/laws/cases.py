"""What the laws run over: every registered technique, in several settings, in several architectures.

A new technique is found by its file and runs with its default settings; settings that fit the tiny models, or that
reach another path of its code, are added to `VARIANTS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from heptune import techniques
from heptune.models.anatomy import Anatomy, dissect
from heptune.tasks.example import Example
from tiny import FAMILIES, VOCABULARY, tiny_model

# Every variant runs in these (grouped queries, Conv1D with tied head, fused gate_up with norms around each sublayer,
# windows with norms of q and k, fused qkv with parallel residual); the first variant of each technique in the rest too.
MAIN_FAMILIES = ("llama", "gpt2", "glm4", "gemma3", "gpt_neox")

_FUSED_QKV = ("gpt2", "gpt_neox", "phi3")

# technique -> variant -> settings. "query" is replaced by the family's own role for it.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "lora": {
        "linear": {"rank": 3, "alpha": 6.0},
        "query": {"rank": 2, "targets": ("query",)},
        "all": {"rank": 2, "targets": ("all",), "rank_stabilised": True},
        "dora": {"rank": 2, "dora": True},
    },
    "qlora": {
        "linear": {"rank": 3, "alpha": 6.0},
        "query": {"rank": 2, "targets": ("query",)},
        "all": {"rank": 2, "targets": ("all",), "rank_stabilised": True},
        "dora": {"rank": 2, "dora": True},
    },
    "prompt": {"random": {"virtual_tokens": 3, "init": "random"}, "vocabulary": {"virtual_tokens": 7}},
    "p_tuning": {
        "lstm": {"virtual_tokens": 3, "encoder_hidden": 5},
        "mlp": {"virtual_tokens": 4, "encoder": "mlp"},
        "none": {"virtual_tokens": 2, "encoder": "none"},
        "around": {"prompt_template": "{p:2} text {p:3}", "encoder_hidden": 4},
    },
    "prefix": {
        "random": {"virtual_tokens": 3, "init": "random", "encoder_hidden": 6},
        "raw": {"virtual_tokens": 8, "init": "random", "reparameterised": False},
    },
    "p_tuning_v2": {"random": {"virtual_tokens": 3, "init": "random"}},
    "adapter": {
        "pfeiffer": {"reduction": 4},
        "houlsby": {"variant": "houlsby", "reduction": 4},
        "parallel": {"variant": "parallel", "reduction": 2},
        "upper_layers": {"reduction": 4, "leave_out": (0,), "activation": "gelu", "scaling": 0.5},
        "tanh": {"variant": "houlsby", "reduction": 100, "leave_out": (1,), "activation": "tanh"},
    },
    "freeze": {"one_layer": {"layers": 1}, "and_head": {"layers": 1, "head": True}},
}


@dataclass(frozen=True)
class Case:
    """One technique with its settings in one architecture."""

    technique: str
    variant: str
    family: str

    def __str__(self) -> str:
        return f"{self.technique}-{self.variant}-{self.family}"

    def build(self) -> Any:
        settings = dict(VARIANTS.get(self.technique, {}).get(self.variant, {}))
        if settings.get("targets") == ("query",):
            settings["targets"] = ("attention.qkv" if self.family in _FUSED_QKV else "attention.q",)
        return techniques.build(self.technique, settings)

    def base(self, dtype: torch.dtype = torch.float64) -> Anatomy:
        """The tiny model, taken apart; the same weights every time."""
        return dissect(tiny_model(self.family).to(dtype))

    def trained(self, dtype: torch.dtype = torch.float64) -> tuple[Anatomy, Any]:
        """The model with the technique inside, as if it had been trained: no tensor is at its start."""
        anatomy = self.base(dtype)
        attached = self.build().attach(anatomy, seed=0)
        disturb(attached)
        return anatomy, attached


def _variants(technique: str) -> list[str]:
    return list(VARIANTS.get(technique, {"default": {}}))


def _cases() -> list[Case]:
    cases = []
    for technique in techniques.names():
        first, *others = _variants(technique)
        cases += [Case(technique, first, family) for family in FAMILIES]
        cases += [Case(technique, variant, family) for variant in others for family in MAIN_FAMILIES]
    return cases


CASES = _cases()
# One case for each technique and main family: for laws whose code does not depend on the settings.
MAIN_CASES = [Case(t, _variants(t)[0], family) for t in techniques.names() for family in MAIN_FAMILIES]


def with_capability(capability: str, cases: list[Case] = CASES) -> list[Case]:
    """The cases whose technique claims it."""
    return [case for case in cases if capability in techniques.get(case.technique).capabilities]


def without_capability(capability: str) -> list[Case]:
    """One case of each technique that does not claim it."""
    claims = {case.technique for case in with_capability(capability)}
    return [case for case in MAIN_CASES if case.technique not in claims and case.family == MAIN_FAMILIES[0]]


def disturb(attached: Any) -> None:
    """Adds a little noise to every trained tensor, the same every time."""
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in attached.parameters.values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64).to(parameter.dtype))


def example(tokens: list[int], supervised: set[int], record: int = 0) -> Example:
    """Tokens, and the places of those that are targets."""
    return Example(tuple(tokens), tuple(t in supervised for t in range(len(tokens))), record)


def _ids(start: int, count: int) -> list[int]:
    return [(131 * (start + i) + 17) % VOCABULARY for i in range(count)]


_INSTRUCTION = _ids(0, 9)
_QUESTION = _INSTRUCTION + _ids(20, 4)
# A shared instruction and a shared question with different answers, a lead that is a prefix of another, a dialogue with
# an unsupervised turn between two supervised ones, a duplicate, one of two tokens, and one that shares nothing. All are
# longer or shorter than the windows (6) of the families that have one.
BATCH = [
    example(_QUESTION + _ids(30, 1), {13}, 0),
    example(_QUESTION + _ids(31, 3), {13, 14, 15}, 1),
    example(_INSTRUCTION + _ids(40, 7), {12, 13, 15}, 2),
    example(_INSTRUCTION + _ids(50, 2), {9, 10}, 3),
    example(_ids(60, 12), {3, 4, 8, 11}, 4),
    example(_QUESTION + _ids(30, 1), {13}, 5),
    example(_ids(80, 2), {1}, 6),
]

TOKENS = torch.tensor([_ids(0, 14), _ids(100, 14)])


@torch.no_grad()
def logits(anatomy: Anatomy) -> torch.Tensor:
    """What the model says about two sequences: [2, 14, V]."""
    return anatomy.model(input_ids=TOKENS, use_cache=False).logits


def state(anatomy: Anatomy) -> dict[str, torch.Tensor]:
    """A copy of everything that the model consists of."""
    return {name: tensor.clone() for name, tensor in anatomy.model.state_dict().items()}


def assert_same_state(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    """The same names in the same order, with the same bits."""
    assert list(got) == list(want)
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor), name


def saved(attached: Any, folder: Path) -> Path:
    """The folder, with what the technique wrote into it."""
    folder.mkdir()
    attached.save(folder, "tiny")
    return folder
