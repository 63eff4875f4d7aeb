"""What Prompt Tuning, P-Tuning, Prefix Tuning and P-Tuning v2 have in common: a table of P trained vectors.

A network gives the table; it is a parameter itself, or a reparameterisation of one. For use the network is folded into
the table it gives, which is all that PEFT's files hold (`prompt_embeddings`). What training would go on from, the
network, stands beside them in a file of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import nn

from heptune.core.errors import TechniqueError
from heptune.core.seeds import generator
from heptune.models.anatomy import Anatomy
from heptune.models.mixture import RowChanges
from heptune.models.prefix import KeyValuePrefix
from heptune.models.shape import ModelShape
from heptune.models.virtual import VirtualTokens
from heptune.techniques import _note, _peft
from heptune.techniques._contract import Encode

TABLE = "prompt_embeddings"
NETWORK_FILE = "prompt_network.safetensors"

# Ids below this are the most frequent words of a vocabulary: byte-pair merges are ordered by frequency. Lester et al.
# 2021, section 3.2, draw from the 5,000 most common tokens.
COMMON_TOKENS = 5000

# How far the network's vectors may lie from those it gave on another machine, relative to their norm. 1e-6 is usual in
# float32. A GPU runs an LSTM with 10 bits behind the point (TF32, cuDNN's default): rounding the weights of one that
# is 576 wide to it gave 1e-4 at its start and 1e-3 with weights three times as large. Another training gives about 1.
SAME_VECTORS = 1e-2

INITS = ("vocabulary", "text", "random")


class Table(nn.Module):
    """The vectors as they are, [P, width]."""

    def __init__(self, vectors: torch.Tensor) -> None:
        super().__init__()
        self.prompt_embeddings = nn.Parameter(vectors)

    def forward(self) -> torch.Tensor:
        """[P, width]."""
        return self.prompt_embeddings


class SoftPromptSettings(Protocol):
    """What is asked of a technique of this kind beside the common contract."""

    @property
    def name(self) -> str:
        """The technique's name."""

    def peft_config(self, shape: ModelShape) -> dict[str, Any]:
        """PEFT's own settings for the folded table."""


class AttachedSoftPrompt:
    """A table of vectors inside a model: before its input (`place` gives VirtualTokens) or in every layer
    (KeyValuePrefix)."""

    def __init__(
        self,
        settings: SoftPromptSettings,
        anatomy: Anatomy,
        network: nn.Module,
        place: Callable[[AttachedSoftPrompt], KeyValuePrefix | VirtualTokens],
    ) -> None:
        if anatomy.placement.positions:
            raise TechniqueError(
                f"{settings.name}: {anatomy.shape.architecture} has virtual tokens already; detach the technique that "
                "put them in"
            )
        self.settings, self.anatomy = settings, anatomy
        for parameter in anatomy.model.parameters():
            parameter.requires_grad_(False)
        weight = anatomy.model.get_input_embeddings().weight
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self.network = network.to(device=weight.device, dtype=dtype)
        self._steps = 0
        self._folded: tuple[tuple[int, ...], torch.Tensor] | None = None
        self._place = place(self)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The network's parameters; without a reparameterisation the table alone, named as in PEFT."""
        return dict(self.network.named_parameters())

    def table(self) -> torch.Tensor:
        """The vectors, [P, width].

        Where nothing is differentiated, the network runs once for each state of its weights, and the same tensor is
        given until they change.
        """
        if torch.is_grad_enabled():
            return self.network()
        state = (self._steps, *(p._version for p in self.network.parameters()))
        if self._folded is None or self._folded[0] != state:
            self._folded = (state, self.network().clone())
        return self._folded[1]

    def begin_step(self, seed: int | None) -> None:
        """Nothing here is random. But fused optimizers change weights without counting it as a change (`_version`), so
        what was folded before this call is not used after it."""
        self._steps += 1

    def saved(self) -> dict[str, torch.Tensor]:
        """The folded table, and the network that it comes from where there is one."""
        with torch.no_grad():
            return {TABLE: self.table()} | ({} if isinstance(self.network, Table) else self.network.state_dict())

    def save(self, folder: Path, base: str) -> None:
        """Writes PEFT's two files, and the network beside them where there is one."""
        tensors = self.saved()
        config = {
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "num_layers": self.anatomy.shape.layers,
            "num_transformer_submodules": 1,
            "modules_to_save": None,
            "inference_mode": True,
            **self.settings.peft_config(self.anatomy.shape),
        }
        settings, shape = asdict(self.settings), self.anatomy.shape  # type: ignore[call-overload]
        _peft.write(folder, config, {TABLE: tensors.pop(TABLE)}, self.settings.name, settings, shape.architecture)
        if tensors:
            save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, folder / NETWORK_FILE)

    @torch.no_grad()
    def rows(self) -> RowChanges:
        """Its keys and values, or its vectors."""
        place = self._place
        if isinstance(place, KeyValuePrefix):
            return RowChanges(prefix=place.keys_and_values().contiguous())
        return RowChanges(vectors=self.table(), front=place.front, inner=place.inner)

    def merge(self) -> None:
        """A soft prompt has no place in the base's weights."""
        raise TechniqueError(f"{self.settings.name} adds positions, not weights: it cannot be merged into the base")

    def withdraw(self) -> None:
        """Takes the vectors out; the base was never changed."""
        self._place.remove()

    def detach(self) -> None:
        """The same."""
        self.withdraw()


def check(name: str, virtual_tokens: int, init: str, init_text: str) -> None:
    """Refuses settings out of range."""
    if virtual_tokens < 1:
        raise TechniqueError(f"{name}: virtual_tokens is {virtual_tokens}; it must be at least 1")
    if init not in INITS:
        raise TechniqueError(f"{name}: init is {init!r}; known: {', '.join(INITS)}")
    if (init == "text") != bool(init_text):
        raise TechniqueError(f"{name}: init is {init!r} and init_text {init_text!r}; init=text and a text go together")


def fill(network: nn.Module, tensors: dict[str, torch.Tensor], source: Path, architecture: str) -> nn.Module:
    """Gives a network its saved weights; every one must be there, of the right shape, and no other."""
    own = network.state_dict()
    wrong = sorted(own.keys() ^ tensors.keys()) or [n for n in own if own[n].shape != tensors[n].shape]
    if wrong:
        raise TechniqueError(f"{source}: tensor {wrong[0]} does not fit {architecture}; nothing was loaded")
    network.load_state_dict(tensors)
    return network


# How the table was made, which is over, and sizes that follow from the base or stand in the table's shape.
_TOLD_BY_THE_TABLE = (
    *("num_attention_heads", "num_layers", "init_weights", "prefix_projection"),
    *("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"),
    *("encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers", "encoder_dropout"),
)


def read_config(folder: Path, peft_type: str, anatomy: Anatomy, width: int) -> dict[str, Any]:
    """PEFT's settings of a folder; `width` is the token_dim that this base needs."""
    needed = ("num_virtual_tokens", "token_dim")
    understood: dict[str, tuple[Any, ...]] = {"modules_to_save": (None, []), "num_transformer_submodules": (1, None)}
    config = _peft.read_config(folder, peft_type, needed, understood, _TOLD_BY_THE_TABLE)
    if config["token_dim"] != width:
        raise TechniqueError(
            f"{folder / _peft.CONFIG_FILE}: token_dim is {config['token_dim']}, {anatomy.shape.architecture} needs "
            f"{width}; was it trained on another base? Nothing was loaded"
        )
    return config


def read_table(folder: Path, width: int, anatomy: Anatomy, positions: int) -> torch.Tensor:
    """The folded table of a PEFT folder, [positions, width]. Raises `TechniqueError` where it is something else."""
    tensors = _note.tensors(folder / _peft.WEIGHTS_FILE)
    path = folder / _peft.WEIGHTS_FILE
    if tensors.keys() != {TABLE}:
        other = sorted(tensors.keys() ^ {TABLE})[0]
        raise TechniqueError(f"{path}: tensor {other} is missing or not understood; nothing was loaded")
    if tensors[TABLE].shape != (positions, width):
        raise TechniqueError(
            f"{path}: {TABLE} is {tuple(tensors[TABLE].shape)}, {anatomy.shape.architecture} needs "
            f"{(positions, width)}; was it trained on another base? Nothing was loaded"
        )
    return tensors[TABLE]


def read_network(folder: Path, network: nn.Module, table: torch.Tensor, anatomy: Anatomy) -> nn.Module:
    """The network that Heptune saved beside the table; they must belong together."""
    tensors = _note.tensors(folder / NETWORK_FILE)
    path = folder / NETWORK_FILE
    fill(network, tensors, path, anatomy.shape.architecture)
    with torch.no_grad():
        given = network.to(table.dtype)().cpu()
    if (given - table).norm() > SAME_VECTORS * table.norm():
        raise TechniqueError(
            f"{path} does not give the vectors in {_peft.WEIGHTS_FILE}: they are of different trainings"
        )
    return network


def word_ids(anatomy: Anatomy, count: int, text: str, encode: Encode | None, seed: int, name: str) -> torch.Tensor:
    """Token ids to start from, [count]: the words of `text`, repeated or cut; without a text common words at random."""
    device = anatomy.model.get_input_embeddings().weight.device
    if not text:
        common = min(COMMON_TOKENS, anatomy.shape.vocabulary)
        return torch.from_numpy(generator(seed, name, "words").integers(0, common, count)).to(device)
    if encode is None:
        raise TechniqueError(f"{name}: starting from a text needs the base's tokenizer; attach it through heptune.tune")
    ids = encode(text)
    if not ids:
        raise TechniqueError(f"{name}: the text to start from has no tokens: {text!r}")
    return torch.tensor((ids * -(-count // len(ids)))[:count], device=device)


def embedded_words(
    anatomy: Anatomy, count: int, text: str, encode: Encode | None, seed: int, name: str
) -> torch.Tensor:
    """The embeddings of `word_ids`, [count, d]."""
    ids = word_ids(anatomy, count, text, encode, seed, name)
    with torch.no_grad():
        return anatomy.model.get_input_embeddings()(ids).clone()


@torch.no_grad()
def deviation_of_words(anatomy: Anatomy) -> float:
    """The standard deviation of the common words' embeddings as the model reads them: Gemma's scales its weights."""
    embedding = anatomy.model.get_input_embeddings()
    common = torch.arange(min(COMMON_TOKENS, anatomy.shape.vocabulary), device=embedding.weight.device)
    return float(embedding(common).float().std())


def normal(shape: tuple[int, ...], deviation: float, seed: int, name: str) -> torch.Tensor:
    """Normal numbers, a function of the seed."""
    drawn = generator(seed, name, "normal").standard_normal(shape) * deviation
    return torch.from_numpy(drawn).to(torch.float32)
