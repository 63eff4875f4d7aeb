"""LoRA: low-rank adaptation of linear layers

Principle
    The base's weights stay frozen. Beside each chosen matrix W runs a product of two thin ones:

        y = W x + s * B A x        s = alpha / rank   (rank-stabilised: alpha / sqrt(rank))

    A [rank, in] starts random, B [out, rank] starts at zero, so nothing changes until training does. What is learned
    is an update of W whose rank is at most `rank`: adapting to a task needs few directions.

    With `dora`, a magnitude m [out] is trained apart from the direction of each output's weights:

        y = (m / ||W + s B A||) (W + s B A) x + b     m starts as ||W||, so nothing changes here either

Advantages
    Trains 0.1 to 5% of the parameters, so optimizer and gradients take almost no memory. Learns as well as full
    fine-tuning on small and medium data when it sits on all linear layers. The result is megabytes, folds into the
    base's weights without any cost at use, and is read by PEFT and whatever reads PEFT's files.

Costs
    trainable elements: the sum over its sites of rank * (in + out), with `dora` out more. A few percent more
    arithmetic per token; `dora` adds a whole W + s B A and its norm to each pass, which small batches feel.
    Activations are kept as in full fine-tuning, so a long batch still needs memory.

Use it when
    you want one safe choice: a few hundred to a few hundred thousand examples, a model that should keep what it knows,
    several tasks on one base.

Rather not when
    the data is a new language or a large corpus (full fine-tuning has more room), or memory does not even hold the
    frozen base (then quantize the base).

Paper
    Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1. Rank-stabilised scaling:
    Kalajdzievski 2023. DoRA: Liu et al. 2024, sections 4.1 and 4.3. All linear layers and a learning rate about ten
    times that of full tuning: Schulman et al. 2025, "LoRA Without Regret".

Differs from the paper
    The paper adapts the attention's query and value matrices; the default here is every linear layer but the head,
    which later work found better at the same number of parameters. Dropout is off by default; with `dora` it acts on
    A's input alone, where PEFT drops the base's input as well.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import nn

from heptune.core.errors import TechniqueError
from heptune.core.seeds import derive
from heptune.models.anatomy import Anatomy, weight_of
from heptune.models.mixture import RowChanges, SiteChange
from heptune.models.quantization import dequantize
from heptune.models.shape import ModelShape, Site
from heptune.techniques import _lora_peft, _note, _peft
from heptune.techniques._contract import Cost, Encode
from heptune.techniques._lora_peft import Size


@dataclass(frozen=True)
class Lora:
    """LoRA's hyperparameters.

    Attributes:
        rank: width of the bottleneck, 1 or more. 16: little is gained above on data of up to some 10,000 examples.
        alpha: numerator of the scale s. Twice the rank is the common choice (s = 2).
        targets: roles of linear sites: attention.q, mlp.down, ..., attention, mlp, linear (all but the head), head.
        dropout: probability of dropping an input of A during training, 0 to below 1. In a forest one mask is shared by
            all who share a token.
        rank_stabilised: s = alpha / sqrt(rank) instead of alpha / rank (Kalajdzievski 2023); for ranks above 32.
        dora: train each output's magnitude apart from its direction (DoRA, Liu et al. 2024).
        learning_rate: peak learning rate. 6e-4 was the best of 7e-5 to 2e-3 on SST-2 and TREC after ten steps
            (docs/results/techniques.md); published comparisons of longer trainings take 1e-4 to 5e-4.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ("linear",)
    dropout: float = 0.0
    rank_stabilised: bool = False
    dora: bool = False
    learning_rate: float = 5e-4

    name: ClassVar[str] = "lora"
    capabilities: ClassVar[frozenset[str]] = frozenset({"mergeable", "detachable", "identity_start"})

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise TechniqueError(f"{self.name}: rank is {self.rank}; it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise TechniqueError(f"{self.name}: dropout is {self.dropout}; it must be at least 0 and below 1")
        if not self.targets:
            raise TechniqueError(f"{self.name}: targets is empty; name at least one role, e.g. 'linear'")

    def attach(self, anatomy: Anatomy, seed: int, encode: Encode | None = None) -> AttachedLora:
        """Puts a LoRA beside every chosen site. A is drawn as in PEFT (uniform, +-1/sqrt(in)); B is zero."""
        sizes = dict.fromkeys(anatomy.select(self.targets), Size(self.rank, self.alpha))
        return self._put(anatomy, sizes, seed)

    def _put(self, anatomy: Anatomy, sizes: Mapping[Site, Size], seed: int, own_head: bool = False) -> AttachedLora:
        return AttachedLora(self, anatomy, sizes, seed, own_head)

    def cost(self, shape: ModelShape) -> Cost:
        """Trainable: rank * (in + out) over the sites, with DoRA out more. Activations: each site keeps A x; and x,
        once for all sites that read the same one (q, k, v; gate, up); with DoRA its output, too."""
        sites = shape.select(self.targets)
        magnitudes = sum(s.out_features for s in sites) if self.dora else 0
        trainable = sum(self.rank * (s.in_features + s.out_features) for s in sites) + magnitudes
        inputs = {(s.layer, _INPUT_OF.get(s.role, s.role)): s.in_features for s in sites}
        kept = self.rank * len(sites) + sum(inputs.values()) + magnitudes
        return Cost(trainable, 2 * trainable, activations=kept)

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether a folder holds a LoRA in PEFT's layout."""
        return _peft.recognises(folder, cls.name, "LORA")

    @classmethod
    def restore(cls, anatomy: Anatomy, folder: Path) -> AttachedLora:
        """Attaches a LoRA that Heptune or PEFT saved; its sites and ranks come from its tensors.

        Raises `TechniqueError` naming the setting or tensor that is not understood; nothing is half-loaded.
        """
        stored = _lora_peft.read(folder, anatomy)
        config = stored.config
        settings = _note.settings(folder / _peft.WEIGHTS_FILE, cls, anatomy.shape.architecture) or cls(
            rank=config["r"],
            alpha=config["lora_alpha"],
            targets=tuple(dict.fromkeys(site.role for site in stored.sizes)),
            dropout=config.get("lora_dropout") or 0.0,
            rank_stabilised=bool(config.get("use_rslora")),
            dora=bool(config.get("use_dora")),
        )
        return settings._put(anatomy, stored.sizes, seed=0, own_head=stored.own_head).fill(stored.tensors)


# Sites that read the same input.
_INPUT_OF = {
    "attention.q": "attention",
    "attention.k": "attention",
    "attention.v": "attention",
    "attention.qkv": "attention",
    "mlp.gate": "mlp",
    "mlp.up": "mlp",
    "mlp.gate_up": "mlp",
}


class _LoraFunction(torch.autograd.Function):
    """y = x W^T + b + s (x A^T) B^T with W and b frozen. Keeps x and x A^T for the backward pass, nothing else.

    x [n, in], W [out, in], A [rank, in], B [out, rank]. `matrix()` gives W, now and again in the backward pass: where
    it is stored in 4 bits, it is made each time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        matrix: Callable[[], torch.Tensor],
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        low = x @ a.T
        y = F.linear(x, matrix(), bias)
        ctx.save_for_backward(x, low, a, b)
        ctx.matrix, ctx.scale = matrix, scale
        return y.addmm_(low, b.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, low, a, b = ctx.saved_tensors
        d_y = grad_outputs[0].contiguous()
        d_low = (d_y @ b).mul_(ctx.scale)
        d_a = d_low.T @ x if ctx.needs_input_grad[3] else None
        d_b = (low.T @ d_y).mul_(ctx.scale).T.contiguous() if ctx.needs_input_grad[4] else None
        d_x = (d_y @ ctx.matrix()).addmm_(d_low, a) if ctx.needs_input_grad[0] else None
        return d_x, None, None, d_a, d_b, None


class LoraLinear(nn.Module):
    """A linear site with its LoRA. `base` is the base's own module, untouched; or one with another LoRA, frozen."""

    A: nn.Parameter

    def __init__(self, base: nn.Module, site: Site, settings: Lora, size: Size, seed: int) -> None:
        super().__init__()
        self.base, self.site = base, site
        self.in_features, self.out_features = site.in_features, site.out_features
        self.scale = size.alpha / (math.sqrt(size.rank) if settings.rank_stabilised else size.rank)
        self.dropout = settings.dropout
        self.training_step_seed: int | None = None
        weight = base.A if isinstance(base, LoraLinear) else weight_of(base, site.transposed)
        dtype = weight.dtype if weight.dtype == torch.float64 else torch.float32
        draw = torch.Generator().manual_seed(derive(seed, "lora", site.path))
        bound = 1 / math.sqrt(site.in_features)  # Kaiming uniform with a = sqrt(5), PEFT's default
        a = torch.empty(size.rank, site.in_features, dtype=torch.float32).uniform_(-bound, bound, generator=draw)
        self.A = nn.Parameter(a.to(device=weight.device, dtype=dtype))
        self.B = nn.Parameter(torch.zeros(site.out_features, size.rank, device=weight.device, dtype=dtype))
        self.magnitude = nn.Parameter(self.norm()) if settings.dora else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        a, b = self.A.to(x.dtype), self.B.to(x.dtype)
        dropping = self.dropout and self.training_step_seed is not None
        if dropping or isinstance(self.base, LoraLinear):
            y = self.base(x) + self.scale * ((x * self._keep(x) if dropping else x) @ a.T @ b.T)
        else:
            flat = x.reshape(-1, self.in_features)
            matrix = partial(weight_of, self.base, self.site.transposed)
            y = _LoraFunction.apply(flat, matrix, self.base.bias, a, b, self.scale)
            y = y.view(*x.shape[:-1], self.out_features)
        return y if self.magnitude is None else self._stretched(y, self.magnitude / self.norm() - 1)

    @torch.no_grad()
    def change(self) -> SiteChange:
        """What it makes of y [n, out], which the site gives for x [n, in] without it: in place, for use, not for
        training."""
        a, b = self.A.T.contiguous(), self.B.T.contiguous()
        more = None if self.magnitude is None else self.magnitude / self.norm() - 1

        def onto(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            y.addmm_(x @ a.to(x.dtype), b.to(x.dtype), alpha=self.scale)
            return y if more is None else self._stretched(y, more)

        return onto

    def _stretched(self, y: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
        """DoRA: (m / ||W + s B A||) (W + s B A) x + b, from y = (W + s B A) x + b and more = m / ||W + s B A|| - 1.

        As y plus a difference, so that it is y, bit for bit, where m is the norm.
        """
        return y + more.to(y.dtype) * (y if self.bias is None else y - self.bias)

    @property
    def bias(self) -> torch.Tensor | None:
        """The base's own, [out]."""
        return self.base.bias

    def frozen(self) -> torch.Tensor:
        """W [out, in]: the base's own, or what the LoRA beneath makes of it."""
        if isinstance(self.base, LoraLinear):
            return self.base.updated()
        return weight_of(self.base, self.site.transposed)

    @torch.no_grad()
    def norm(self) -> torch.Tensor:
        """||W + s B A|| of each output, [out]. The gradient takes it for a constant (DoRA's paper, section 4.3)."""
        updated = self.frozen().to(self.A.dtype)
        norm = torch.linalg.vector_norm(torch.addmm(updated, self.B, self.A, alpha=self.scale), dim=1)
        return norm.clamp_min(torch.finfo(norm.dtype).tiny)  # some heads are filled up with rows of zeros

    def _keep(self, x: torch.Tensor) -> torch.Tensor:
        """The dropout mask of this step: a function of (step seed, site), so recomputing and resuming give it again."""
        assert self.training_step_seed is not None
        draw = torch.Generator(device=x.device).manual_seed(derive(self.training_step_seed, self.site.path))
        keep = torch.rand(x.shape, generator=draw, device=x.device) >= self.dropout
        return keep.to(x.dtype) / (1 - self.dropout)

    def updated(self) -> torch.Tensor:
        """W + s B A (with DoRA rescaled), [out, in] in float64."""
        matrix = self.frozen().double() + self.scale * (self.B.double() @ self.A.double())
        if self.magnitude is not None:
            matrix = matrix * (self.magnitude / self.norm()).double()[:, None]
        return matrix

    def merged(self) -> torch.Tensor:
        """The weight that merging gives, `updated` in the base's own orientation."""
        return self.updated().T if self.site.transposed else self.updated()


class AttachedLora:
    """LoRA inside a model. `own_head`: a trained copy of the whole head stands in for it, as PEFT's modules_to_save."""

    def __init__(
        self, settings: Lora, anatomy: Anatomy, sizes: Mapping[Site, Size], seed: int, own_head: bool = False
    ) -> None:
        self.settings, self.anatomy, self.sizes = settings, anatomy, sizes
        for parameter in anatomy.model.parameters():
            parameter.requires_grad_(False)
        self.modules: dict[str, LoraLinear] = {}
        for site, size in sizes.items():
            module = LoraLinear(anatomy.module(site), site, settings, size, seed)
            anatomy.model.set_submodule(site.path, module)
            self.modules[site.path] = module
        self.head: nn.Module | None = None
        if own_head:
            path, head = anatomy.output_head
            self.head = copy.deepcopy(head).requires_grad_(True)
            anatomy.model.set_submodule(path, self.head)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """A, B and DoRA's magnitude of every site, and the head if it is trained, named as PEFT names them."""
        parts = ("A", "B", *(("magnitude",) if self.settings.dora else ()))
        found = {_lora_peft.name(path, part): getattr(m, part) for path, m in self.modules.items() for part in parts}
        if self.head is not None:
            head = self.head.named_parameters()
            found |= {_lora_peft.name(self.anatomy.output_head[0], part): parameter for part, parameter in head}
        return found

    def begin_step(self, seed: int | None) -> None:
        """Fixes the dropout masks until the next call; None switches dropout off."""
        for module in self.modules.values():
            module.training_step_seed = seed

    def saved(self) -> dict[str, torch.Tensor]:
        """The trained tensors."""
        return dict(self.parameters)

    def save(self, folder: Path, base: str) -> None:
        """Writes adapter_config.json and adapter_model.safetensors, which PEFT reads."""
        settings, own_head = self.settings, self.head is not None
        config = _lora_peft.config_of(settings, base, self.anatomy, self.sizes, (LoraLinear,), own_head)
        architecture = self.anatomy.shape.architecture
        _peft.write(folder, config, self.saved(), settings.name, asdict(settings), architecture)

    @torch.no_grad()
    def fill(self, tensors: dict[str, torch.Tensor]) -> Self:
        """Takes the trained tensors from others that fit."""
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[name])
        return self

    def rows(self) -> RowChanges:
        """Its change of every site."""
        return RowChanges({path: (module.change(),) for path, module in self.modules.items()}, head=self.head)

    @torch.no_grad()
    def merge(self) -> None:
        """Writes W + s B A into every base weight and takes the LoRA out; it cannot be detached afterwards.

        A base in 4 bits becomes an ordinary one with the weights that it computed with: rounded anew, the sum would
        lose what was learned. Raises `TechniqueError` where the LoRA stands on another one.
        """
        beneath = next((path for path, module in self.modules.items() if isinstance(module.base, LoraLinear)), None)
        if beneath is not None:
            raise TechniqueError(
                f"{self.settings.name}: another LoRA stands beneath at {beneath}; merge that one first"
            )
        dequantize(self.anatomy.model)
        model = self.anatomy.model
        embedding = model.get_input_embeddings().weight
        for path, module in self.modules.items():
            if module.base.weight is embedding:  # a tied head gets its own weight; the input embeddings stay
                module.base.weight = nn.Parameter(embedding.detach().clone(), requires_grad=False)
                model.config.tie_word_embeddings = False
            weight = module.base.weight
            weight.copy_(module.merged().to(weight.dtype))
            model.set_submodule(path, module.base)
        if self.head is not None:
            self.head.requires_grad_(False)
            model.config.tie_word_embeddings = False
        self.modules, self.head = {}, None

    def detach(self) -> None:
        """Puts the base's own modules back; they were never changed."""
        self.withdraw()

    def withdraw(self) -> None:
        """The same, whether their weights are what they were before or in 4 bits."""
        for path, module in self.modules.items():
            self.anatomy.model.set_submodule(path, module.base)
        if self.head is not None:
            self.anatomy.model.set_submodule(*self.anatomy.output_head)
        self.modules, self.head = {}, None


TECHNIQUE = Lora
