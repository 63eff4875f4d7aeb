"""Prefix Tuning: trained keys and values before every sequence, in every layer

Principle
    The base's weights stay frozen. In every layer, P keys and P values stand before those of the sequence, and every
    token attends to them:

        attention(q, [K_prefix; K], [V_prefix; V])

    Training them directly is unstable, so they come from a small table through a network (the reparameterisation):

        [K_prefix, V_prefix of all layers] = start + W_2 tanh(W_1 E + b_1) + b_2        E [P, width of the keys]

    After training only the keys and values are kept; the network is needed to go on training, not for use.

Advantages
    Reaches every layer directly, so it learns more than a prompt before the input at the same number of positions. No
    weight changes, so many tasks share one base, each with its own prefix. The artifact is small, and at use it costs
    attention to P more keys and nothing else.

Costs
    kept elements: P * 2 * layers * K * D (K key/value heads of width D). Trained elements while training: those of
    the network, w * P + (w + 1) * h + (h + 1) * 2 * layers * w with w = K * D and a hidden layer of h, which is many
    times more. Every sequence loses P positions. No extra rows are computed.

Use it when
    the output has to take a certain form (generation from tables, a style), examples are few (100 to some thousand),
    and many tasks share one base.

Rather not when
    the result has to be merged into the weights, positions are scarce, or the base is small and the task far from what
    it knows: LoRA is easier to train.

Paper
    Li & Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", sections 4.2, 4.3 and 7.4 (starting
    from the activations of real words).

Differs from the paper
    The activations of real words are added to the network's output, whose last layer starts at zero, where the paper's
    code fits the network to them: the start is then exact. On SST-2 that made no difference that could be resolved (15
    steps on smollm2-135m: validation loss 0.45 from words, 0.41 from a random network). The table is as wide as the
    keys (K * D), as in PEFT. In layers with a sliding window the prefix leaves the window like any other position, as
    in PEFT.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from heptune.core.errors import TechniqueError
from heptune.core.seeds import derive
from heptune.models.anatomy import Anatomy
from heptune.models.prefix import KeyValuePrefix, record
from heptune.models.shape import ModelShape
from heptune.techniques import _note, _peft, _soft_prompt
from heptune.techniques._contract import Cost, Encode
from heptune.techniques._soft_prompt import AttachedSoftPrompt, Table


@dataclass(frozen=True)
class Prefix:
    """Prefix Tuning's hyperparameters.

    Attributes:
        virtual_tokens: P, the positions that the prompt takes.
        init: what the prompt starts as: vocabulary (common words, drawn at random), text (the words of init_text), or
            random.
        init_text: the text whose words the prompt starts as, repeated or cut to its length.
        reparameterised: whether keys and values come from the network, or are trained themselves.
        encoder_hidden: width of the network's hidden layer.
        learning_rate: peak learning rate. On TREC 1e-4 and 3e-4 were better than 1e-3 and 3e-3 after ten steps
            (docs/results/techniques.md), on SST-2 1e-3 learned well and 5e-3 not at all after fifteen.
    """

    virtual_tokens: int = 20
    init: str = "vocabulary"
    init_text: str = ""
    reparameterised: bool = True
    encoder_hidden: int = 512
    learning_rate: float = 5e-4

    name: ClassVar[str] = "prefix"
    capabilities: ClassVar[frozenset[str]] = frozenset({"detachable", "kv_prefix", "slow_start", "starts_from_text"})

    def __post_init__(self) -> None:
        check(self)

    def attach(self, anatomy: Anatomy, seed: int, encode: Encode | None = None) -> AttachedSoftPrompt:
        """Puts keys and values before every layer's own."""
        return attach_prefix(self, anatomy, seed, encode)

    def cost(self, shape: ModelShape) -> Cost:
        """The network's elements, or those of the keys and values; no rows."""
        return prefix_cost(self, shape)

    def peft_config(self, shape: ModelShape) -> dict[str, Any]:
        """As PEFT's PrefixTuningConfig names it."""
        return prefix_config(self, shape)

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether a folder holds a prefix in PEFT's layout; PEFT's without a projection is P-Tuning v2."""
        return _peft.recognises(folder, cls.name, "PREFIX_TUNING", prefix_projection=True)

    @classmethod
    def restore(cls, anatomy: Anatomy, folder: Path) -> AttachedSoftPrompt:
        """Puts in a prefix that Heptune or PEFT saved.

        PEFT keeps the computed keys and values alone: its network is lost, and training goes on from them directly.
        """
        return restore_prefix(cls, anatomy, folder)


class Reparameterisation(nn.Module):
    """start + W_2 tanh(W_1 E + b_1) + b_2: [P, 2 L K D]. Names and shapes are those of PEFT's PrefixEncoder."""

    def __init__(self, positions: int, width: int, hidden: int, out: int, start: torch.Tensor | None) -> None:
        super().__init__()
        self.embedding = nn.Embedding(positions, width)
        self.transform = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, out))
        self.register_buffer("start", start)
        if start is not None:
            nn.init.zeros_(self.transform[2].weight)
            nn.init.zeros_(self.transform[2].bias)

    def forward(self) -> torch.Tensor:
        """[P, 2 L K D]."""
        given = self.transform(self.embedding.weight)
        return given if self.start is None else self.start + given


def check(settings: Any) -> None:
    """Refuses settings out of range."""
    _soft_prompt.check(settings.name, settings.virtual_tokens, settings.init, settings.init_text)
    if settings.encoder_hidden < 1:
        raise TechniqueError(f"{settings.name}: encoder_hidden is {settings.encoder_hidden}; it must be at least 1")


def attach_prefix(settings: Any, anatomy: Anatomy, seed: int, encode: Encode | None) -> AttachedSoftPrompt:
    """A prefix with its start: the keys and values of words, or random numbers."""
    start = None
    if settings.init != "random":
        ids = _soft_prompt.word_ids(anatomy, settings.virtual_tokens, settings.init_text, encode, seed, settings.name)
        with torch.no_grad():
            start = _as_table(record(anatomy, ids))
    return _attach(settings, anatomy, _network(settings, anatomy.shape, start, seed))


def start_from(settings: Any, anatomy: Anatomy, folder: Path, seed: int) -> AttachedSoftPrompt:
    """A prefix that starts from the one in another artifact (or the run that left it), whatever technique gave it."""
    shape, folder = anatomy.shape, folder.expanduser()
    folder = folder / "artifact" if (folder / "artifact").is_dir() else folder
    if not any(_peft.recognises(folder, name, "PREFIX_TUNING") for name in (Prefix.name, settings.name)):
        raise TechniqueError(
            f"{settings.name}: start_from is {folder}, which holds no prefix; name a run of prefix or {settings.name}, "
            "or the folder of its artifact"
        )
    config = _soft_prompt.read_config(folder, "PREFIX_TUNING", anatomy, shape.kv_heads * shape.head_width)
    count = config["num_virtual_tokens"]
    if count != settings.virtual_tokens:
        raise TechniqueError(
            f"{settings.name}: the prefix in {folder} has {count} virtual tokens and virtual_tokens is "
            f"{settings.virtual_tokens}; use --virtual-tokens {count}"
        )
    start = _soft_prompt.read_table(folder, _width(shape), anatomy, count)
    return _attach(settings, anatomy, _network(settings, shape, start, seed))


def restore_prefix(kind: Any, anatomy: Anatomy, folder: Path) -> AttachedSoftPrompt:
    """A prefix from a folder of Heptune's or PEFT's."""
    shape = anatomy.shape
    config = _soft_prompt.read_config(folder, "PREFIX_TUNING", anatomy, shape.kv_heads * shape.head_width)
    settings = _note.settings(folder / _peft.WEIGHTS_FILE, kind, shape.architecture) or kind(
        config["num_virtual_tokens"], init="random", reparameterised=False
    )
    table = _soft_prompt.read_table(folder, _width(shape), anatomy, settings.virtual_tokens)
    if not settings.reparameterised:
        return _attach(settings, anatomy, Table(table))
    starts_at_zero = settings.init == "random" and not getattr(settings, "start_from", "")
    start = None if starts_at_zero else torch.zeros_like(table)
    network = _soft_prompt.read_network(folder, _network(settings, shape, start, seed=0), table, anatomy)
    return _attach(settings, anatomy, network)


def prefix_cost(settings: Any, shape: ModelShape) -> Cost:
    """Trained elements: P * 2 L K D, or those of the network."""
    out, inner = _width(shape), shape.kv_heads * shape.head_width
    trainable = settings.virtual_tokens * out
    if settings.reparameterised:
        network = (inner + 1) * settings.encoder_hidden + (settings.encoder_hidden + 1) * out
        trainable = settings.virtual_tokens * inner + network
    return Cost(trainable, 2 * trainable)


def prefix_config(settings: Any, shape: ModelShape) -> dict[str, Any]:
    """PEFT's settings; heads and width are those of keys and values, which differ from the queries' in most models."""
    return {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": settings.virtual_tokens,
        "token_dim": shape.kv_heads * shape.head_width,
        "num_attention_heads": shape.kv_heads,
        "encoder_hidden_size": settings.encoder_hidden if settings.reparameterised else None,
        "prefix_projection": settings.reparameterised,
    }


def _width(shape: ModelShape) -> int:
    return 2 * shape.layers * shape.kv_heads * shape.head_width


def _network(settings: Any, shape: ModelShape, start: torch.Tensor | None, seed: int) -> nn.Module:
    positions, out = settings.virtual_tokens, _width(shape)
    if not settings.reparameterised:
        # PEFT's start is as large as here; keys and values of real words are larger still.
        return Table(_soft_prompt.normal((positions, out), 1.0, seed, settings.name) if start is None else start)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, settings.name, "network"))
        return Reparameterisation(positions, shape.kv_heads * shape.head_width, settings.encoder_hidden, out, start)


def _attach(settings: Any, anatomy: Anatomy, network: nn.Module) -> AttachedSoftPrompt:
    shape = anatomy.shape

    def place(own: AttachedSoftPrompt) -> KeyValuePrefix:
        def keys_and_values(ids: torch.Tensor | None) -> torch.Tensor:
            table = own.table().view(settings.virtual_tokens, 2 * shape.layers, shape.kv_heads, shape.head_width)
            return table.permute(1, 2, 0, 3)

        return KeyValuePrefix(anatomy, settings.virtual_tokens, keys_and_values)

    return AttachedSoftPrompt(settings, anatomy, network, place)


def _as_table(recorded: torch.Tensor) -> torch.Tensor:
    """[2 L, K, P, D] -> [P, 2 L K D], PEFT's layout."""
    return recorded.permute(2, 0, 1, 3).flatten(1)


TECHNIQUE = Prefix
