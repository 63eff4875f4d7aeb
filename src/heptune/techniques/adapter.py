"""Adapter Tuning: small bottleneck networks between the frozen sublayers

Principle
    The base's weights stay frozen. Where the output h of a sublayer (attention or MLP) meets the residual r that it is
    added to, a small network A is put in:

        A(x) = scaling * (Up act(Down x + a) + b)

        pfeiffer    h + A(h + r)    after the MLP
        houlsby     h + A(h)        after the attention and after the MLP
        parallel    h + A(r)        beside the MLP

    What stands there takes the place of h and is added to r as before. Down [m, d] with its bias a leads from the width
    d of the hidden states to m = d / reduction, act is a non-linear function, and Up [d, m] with its bias b leads back.
    Up and b start at zero, so nothing changes until training does. LoRA changes weights; A is a layer of its own, and
    its non-linearity is what no change of a weight can do.

Advantages
    Few parameters (reduction 16: about d * d / 8 for each A), a small file for each task, and the base can be had back
    at any time. It needs no linear layer of a certain kind, only the residual stream. `leave_out` spares the lowest
    layers: the backward pass then stops above them, which saves time and memory.

Costs
    trainable elements for each A: 2 d m + m + d. It cannot be merged into the base, so every token pays for it at use
    too: 4 d m operations for each A, and two small matrix products that wait for each other.

Use it when
    several tasks share one frozen base and each should be a small file that is put in and taken out; when files must go
    to or come from AdapterHub.

Rather not when
    speed at use counts or the result must be an ordinary model (LoRA merges, an adapter does not), or an architecture
    scales what it adds to the residual (Granite): there is no plain sum to sit in, and Heptune refuses.

Paper
    Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", section 2.1 (houlsby). Pfeiffer et al. 2020,
    "MAD-X", and 2021, "AdapterFusion", which keep the one after the MLP (pfeiffer). He et al. 2022, "Towards a Unified
    View of Parameter-Efficient Transfer Learning", sections 3.3 and 4 (parallel, scaling). Rücklé et al. 2021,
    "AdapterDrop" (layers without one).

Differs from the paper
    The equations are those of AdapterHub's library for decoders. Houlsby et al. also train the layer norms and start Up
    near zero; here the norms stay frozen and Up starts at zero, as He et al. have it. Pfeiffer et al. worked with norms
    behind each sum, and their A reads the normed sum; a decoder has no norm there. He et al.'s parallel A reads what
    the MLP reads; in decoders with a norm before the MLP that would be the normed r, and A reads r itself. `leave_out`
    is fixed for a run; AdapterDrop can also draw it anew for each step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from heptune.core.errors import TechniqueError
from heptune.core.registry import unknown
from heptune.core.seeds import derive
from heptune.models.anatomy import Anatomy
from heptune.models.junctions import Junction, insert, junctions
from heptune.models.mixture import RowChanges
from heptune.models.shape import ModelShape
from heptune.techniques import _adapterhub, _note
from heptune.techniques._contract import Cost, Encode

Change = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (h, r) -> what stands in the place of h


@dataclass(frozen=True)
class Variant:
    """Which sublayers get an A, what it reads, and what AdapterHub's library presets."""

    sublayers: tuple[str, ...]
    reads: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (h, r) -> x
    activation: str
    scaling: float


VARIANTS = {
    "pfeiffer": Variant(("mlp",), lambda h, r: h + r, "relu", 1.0),
    "houlsby": Variant(("attention", "mlp"), lambda h, r: h, "swish", 1.0),
    "parallel": Variant(("mlp",), lambda h, r: r, "relu", 4.0),
}

# name -> the function, and how many [.., m] arrays its backward pass and Up's keep: those of relu and tanh need the
# value that Up reads, the others need their input beside it.
ACTIVATIONS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], int]] = {
    "relu": (F.relu, 1),
    "tanh": (torch.tanh, 1),
    "gelu": (F.gelu, 2),
    "swish": (F.silu, 2),
    "silu": (F.silu, 2),
}


@dataclass(frozen=True)
class Adapter:
    """Adapter Tuning's hyperparameters.

    Attributes:
        variant: pfeiffer (one after each MLP), houlsby (after each attention and each MLP), parallel (beside each MLP).
        reduction: hidden width over bottleneck width, above 0; the bottleneck has at least one unit. One default for
            all variants, so that they compare: AdapterHub's own is 16 for pfeiffer and houlsby, 2 for parallel.
        activation: relu, swish (or silu), gelu or tanh. Not set: the variant's own, swish for houlsby, else relu.
        scaling: factor of A's output. Not set: the variant's own, 4 for parallel (He et al. 2022), else 1.
        leave_out: layers without an adapter, counted from 0 (AdapterDrop). Leaving out the lowest ones shortens the
            backward pass.
        learning_rate: peak learning rate. 3e-4 was the best of 1e-4 to 3e-3 on SST-2, 1e-3 on TREC
            (docs/results/techniques.md); Houlsby et al. searched 3e-5 to 3e-3.
    """

    variant: str = "pfeiffer"
    reduction: float = 16
    activation: str | None = None
    scaling: float | None = None
    leave_out: tuple[int, ...] = ()
    learning_rate: float = 5e-4

    name: ClassVar[str] = "adapter"
    capabilities: ClassVar[frozenset[str]] = frozenset({"detachable", "identity_start"})

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise unknown("variant of adapter", self.variant, VARIANTS, TechniqueError)
        if self.own_activation not in ACTIVATIONS:
            raise unknown("activation of adapter", self.own_activation, ACTIVATIONS, TechniqueError)
        if not 0 < self.reduction < math.inf:
            raise TechniqueError(f"adapter: reduction is {self.reduction}; it must be above 0, e.g. 16")
        if not math.isfinite(self.own_scaling) or self.own_scaling == 0:
            raise TechniqueError(f"adapter: scaling is {self.own_scaling}; it must be a number other than 0")

    @property
    def own_activation(self) -> str:
        """The activation, the variant's where none was chosen."""
        return self.activation if self.activation is not None else VARIANTS[self.variant].activation

    @property
    def own_scaling(self) -> float:
        """The scaling, the variant's where none was chosen."""
        return self.scaling if self.scaling is not None else VARIANTS[self.variant].scaling

    def width(self, hidden: int) -> int:
        """m, the units of the bottleneck."""
        return max(1, int(hidden // self.reduction))  # as AdapterHub rounds

    def layers(self, shape: ModelShape) -> list[int]:
        """The layers that get adapters. Raises `TechniqueError` where `leave_out` does not fit the model."""
        foreign = [layer for layer in self.leave_out if not 0 <= layer < shape.layers]
        if foreign:
            raise TechniqueError(
                f"adapter: leave_out names layer {foreign[0]}, but {shape.architecture} has the layers 0 to "
                f"{shape.layers - 1}"
            )
        chosen = [layer for layer in range(shape.layers) if layer not in self.leave_out]
        if not chosen:
            raise TechniqueError(f"adapter: leave_out names all layers of {shape.architecture}; keep at least one")
        return chosen

    def attach(self, anatomy: Anatomy, seed: int, encode: Encode | None = None) -> AttachedAdapter:
        """Puts an A into every chosen junction. Down is drawn uniformly from +-1/sqrt(d) (Kaiming with a = sqrt(5), as
        AdapterHub's start for He et al.); Up is zero."""
        return AttachedAdapter(self, anatomy, seed)

    def cost(self, shape: ModelShape) -> Cost:
        """Trainable: 2 d m + m + d for each A. Activations: each A keeps its input and its bottleneck, and what the
        activation function needs beside that."""
        count = len(self.layers(shape)) * len(VARIANTS[self.variant].sublayers)
        d, m = shape.hidden, self.width(shape.hidden)
        trainable = count * (2 * d * m + m + d)
        return Cost(trainable, 2 * trainable, activations=count * (d + ACTIVATIONS[self.own_activation][1] * m))

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether a folder holds a bottleneck adapter in AdapterHub's layout."""
        return _adapterhub.recognises(folder, cls.name)

    @classmethod
    def restore(cls, anatomy: Anatomy, folder: Path) -> AttachedAdapter:
        """Attaches an adapter that Heptune or AdapterHub's library (as safetensors) saved.

        Raises `TechniqueError` naming the field or tensor that is not understood; nothing is half-loaded.
        """
        config = _adapterhub.read_config(folder, anatomy)
        tensors = _adapterhub.read_tensors(folder, anatomy, str(config["name"]))
        settings = _note.settings(folder / _adapterhub.WEIGHTS_FILE, cls, anatomy.shape.architecture)
        if settings is None:
            settings = cls(**_adapterhub.settings_of(folder, config, ACTIVATIONS))
        attached = AttachedAdapter(settings, anatomy, seed=0)
        try:
            attached.fill(tensors, folder)
        except TechniqueError:
            attached.detach()
            raise
        return attached


class Bottleneck(nn.Module):
    """A(x) = scaling * (Up act(Down x + a) + b). Not part of the base: it stands beside it."""

    def __init__(self, settings: Adapter, base: nn.Module, hidden: int, seed: int) -> None:
        super().__init__()
        weight = next(base.parameters())
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        width = settings.width(hidden)
        self.activation = ACTIVATIONS[settings.own_activation][0]
        self.scaling = settings.own_scaling
        draw = torch.Generator().manual_seed(seed)
        bound = 1 / math.sqrt(hidden)
        down = torch.empty(width, hidden, dtype=torch.float32).uniform_(-bound, bound, generator=draw)
        self.down = nn.Parameter(down.to(device=weight.device, dtype=dtype))
        self.down_bias = nn.Parameter(torch.zeros(width, device=weight.device, dtype=dtype))
        self.up = nn.Parameter(torch.zeros(hidden, width, device=weight.device, dtype=dtype))
        self.up_bias = nn.Parameter(torch.zeros(hidden, device=weight.device, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., d] -> [..., d]."""
        low = self.activation(F.linear(x, self.down.to(x.dtype), self.down_bias.to(x.dtype)))
        return F.linear(low, self.up.to(x.dtype), self.up_bias.to(x.dtype)) * self.scaling


class AttachedAdapter:
    """Adapters inside a model. They hang on hooks: the base's modules and state stay what they are."""

    def __init__(self, settings: Adapter, anatomy: Anatomy, seed: int) -> None:
        self.settings, self.anatomy = settings, anatomy
        variant, layers = VARIANTS[settings.variant], settings.layers(anatomy.shape)
        chosen = [j for j in junctions(anatomy) if j.layer in layers and j.sublayer in variant.sublayers]
        for parameter in anatomy.model.parameters():
            parameter.requires_grad_(False)
        self.modules: dict[tuple[int, str], Bottleneck] = {}
        self._changes: dict[Junction, Change] = {}
        self._hooks: list[Any] = []
        for junction in chosen:
            module = Bottleneck(
                settings,
                anatomy.layers[junction.layer],
                anatomy.shape.hidden,
                derive(seed, "adapter", junction.layer, junction.sublayer),
            )
            self.modules[junction.layer, junction.sublayer] = module
            self._changes[junction] = _change(module, variant)
            self._hooks += insert(anatomy, junction, self._changes[junction])

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The four tensors of every A, named as AdapterHub names them."""
        return {
            _adapterhub.tensor_name(f"{self.anatomy.layers_path}.{layer}", sublayer, part): parameter
            for (layer, sublayer), module in self.modules.items()
            for part, parameter in zip(
                _adapterhub.PARTS, (module.down, module.down_bias, module.up, module.up_bias), strict=True
            )
        }

    def begin_step(self, seed: int | None) -> None:
        """Nothing here is random."""

    def saved(self) -> dict[str, torch.Tensor]:
        """The trained parameters."""
        return dict(self.parameters)

    def save(self, folder: Path, base: str) -> None:
        """Writes adapter_config.json and adapter.safetensors, which AdapterHub's library reads."""
        settings = self.settings
        chosen = {**asdict(settings), "activation": settings.own_activation, "scaling": settings.own_scaling}
        _adapterhub.write(folder, self.anatomy, base, self.saved(), settings.name, asdict(settings), chosen)

    def fill(self, tensors: dict[str, torch.Tensor], source: Path) -> None:
        """Takes the adapters' tensors; every one must be there, of the right shape, and no other."""
        own, architecture = self.parameters, self.anatomy.shape.architecture
        if tensors.keys() != own.keys():
            missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
            raise TechniqueError(
                f"{source}: its tensors do not fit {architecture}: {len(missing)} are missing (first: {missing[:1]}) "
                f"and {len(extra)} are not understood (first: {extra[:1]}); nothing was loaded"
            )
        for name, parameter in own.items():
            if tensors[name].shape != parameter.shape:
                raise TechniqueError(
                    f"{source}: {name} is {tuple(tensors[name].shape)}, its settings and {architecture} make it "
                    f"{tuple(parameter.shape)}; nothing was loaded"
                )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name])

    def rows(self) -> RowChanges:
        """Its change of every junction."""
        return RowChanges(junctions={junction: (change,) for junction, change in self._changes.items()})

    def merge(self) -> None:
        """Refused: A is not linear, so no weight of the base can take it in."""
        raise TechniqueError("adapter: an adapter is not linear and cannot be merged into the base; keep it beside it")

    def withdraw(self) -> None:
        """Takes the hooks away; the base was never changed."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self.modules, self._changes = [], {}, {}

    def detach(self) -> None:
        """The same."""
        self.withdraw()


def _change(module: Bottleneck, variant: Variant) -> Change:
    """What stands in the place of h."""
    return lambda h, r: h + module(variant.reads(h, r))


TECHNIQUE = Adapter
