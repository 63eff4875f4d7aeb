"""LoRA: low-rank adaptation of linear layers

Principle
    The base's weights stay frozen. Beside each chosen matrix W runs a product of two thin ones:

        y = W x + s * B A x        s = alpha / rank   (rank-stabilised: alpha / sqrt(rank))

    A [rank, in] starts random, B [out, rank] starts at zero, so nothing changes until training does. What is learned
    is an update of W whose rank is at most `rank`: adapting to a task needs few directions.

Advantages
    Trains 0.1 to 5% of the parameters, so optimizer and gradients take almost no memory. Learns as well as full
    fine-tuning on small and medium data when it sits on all linear layers. The result is megabytes, folds into the
    base's weights without any cost at use, and is read by PEFT and whatever reads PEFT's files.

Costs
    trainable elements: the sum over its sites of rank * (in + out). A few percent more arithmetic per token.
    Activations are kept as in full fine-tuning, so a long batch still needs memory.

Use it when
    you want one safe choice: a few hundred to a few hundred thousand examples, a model that should keep what it knows,
    several tasks on one base.

Rather not when
    the data is a new language or a large corpus (full fine-tuning has more room), or memory does not even hold the
    frozen base (then quantize the base).

Paper
    Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1. Rank-stabilised scaling:
    Kalajdzievski 2023. All linear layers and a learning rate about ten times that of full tuning: Schulman et al. 2025,
    "LoRA Without Regret".

Differs from the paper
    The paper adapts the attention's query and value matrices; the default here is every linear layer but the head,
    which later work found better at the same number of parameters. Dropout is off by default.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from heptune.core.errors import TechniqueError
from heptune.core.seeds import derive
from heptune.models.anatomy import Anatomy, ModelShape, Site, weight_of
from heptune.techniques import _note, _peft
from heptune.techniques._contract import Cost, Encode


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
        learning_rate: peak learning rate. 2e-4 is the middle of the range that published comparisons find good.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ("linear",)
    dropout: float = 0.0
    rank_stabilised: bool = False
    learning_rate: float = 2e-4

    name: ClassVar[str] = "lora"
    capabilities: ClassVar[frozenset[str]] = frozenset({"mergeable", "detachable", "identity_start"})

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise TechniqueError(f"lora: rank is {self.rank}; it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise TechniqueError(f"lora: dropout is {self.dropout}; it must be at least 0 and below 1")
        if not self.targets:
            raise TechniqueError("lora: targets is empty; name at least one role, e.g. 'linear'")

    @property
    def scale(self) -> float:
        """s, by which the product B A is multiplied."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)

    def attach(self, anatomy: Anatomy, seed: int, encode: Encode | None = None) -> AttachedLora:
        """Puts a LoRA beside every chosen site. A is drawn as in PEFT (uniform, +-1/sqrt(in)); B is zero."""
        return AttachedLora(self, anatomy, anatomy.select(self.targets), seed)

    def cost(self, shape: ModelShape) -> Cost:
        """Trainable: rank * (in + out) over the sites. Activations: each site keeps A x; and x, once for all sites
        that read the same one (q, k, v; gate, up)."""
        sites = shape.select(self.targets)
        trainable = sum(self.rank * (s.in_features + s.out_features) for s in sites)
        inputs = {(s.layer, _INPUT_OF.get(s.role, s.role)): s.in_features for s in sites}
        return Cost(trainable, 2 * trainable, activations=self.rank * len(sites) + sum(inputs.values()))

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether a folder holds a LoRA in PEFT's layout."""
        return _peft.recognises(folder, cls.name, "LORA")

    @classmethod
    def restore(cls, anatomy: Anatomy, folder: Path) -> AttachedLora:
        """Attaches a LoRA that Heptune or PEFT saved; its sites and ranks come from its tensors.

        Raises `TechniqueError` naming the setting or tensor that is not understood; nothing is half-loaded.
        """
        config = _peft.read_config(folder, "LORA", ("r", "lora_alpha"), _UNDERSTOOD)
        tensors = _note.tensors(folder / _peft.WEIGHTS_FILE)
        prefix, suffix = "base_model.model.", ".lora_A.weight"
        ranks = {n[len(prefix) : -len(suffix)]: int(t.shape[0]) for n, t in tensors.items() if n.endswith(suffix)}
        known = {site.path for site in anatomy.sites}
        foreign = sorted(ranks.keys() - known)
        if foreign or not ranks:
            what = f"{foreign[0]} is no linear site of {anatomy.shape.architecture}" if foreign else "it holds no LoRA"
            raise TechniqueError(f"{folder}: {what}; nothing was loaded")
        sites = tuple(site for site in anatomy.sites if site.path in ranks)
        settings = _note.settings(folder / _peft.WEIGHTS_FILE, cls, anatomy.shape.architecture) or cls(
            rank=config["r"],
            alpha=config["lora_alpha"],
            targets=tuple(dict.fromkeys(site.role for site in sites)),
            dropout=config.get("lora_dropout", 0.0),
            rank_stabilised=config.get("use_rslora", False),
        )
        attached = AttachedLora(settings, anatomy, sites, seed=0, ranks=ranks)
        try:
            attached.fill(tensors, folder)
        except TechniqueError:
            attached.detach()
            raise
        return attached


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

    x [n, in], W [out, in], A [rank, in], B [out, rank].
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        low = x @ a.T
        y = F.linear(x, weight, bias)
        ctx.save_for_backward(x, low, weight, a, b)
        ctx.scale = scale
        return y.addmm_(low, b.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, low, weight, a, b = ctx.saved_tensors
        d_y = grad_outputs[0].contiguous()
        d_low = (d_y @ b).mul_(ctx.scale)
        d_a = d_low.T @ x if ctx.needs_input_grad[3] else None
        d_b = (low.T @ d_y).mul_(ctx.scale).T.contiguous() if ctx.needs_input_grad[4] else None
        d_x = (d_y @ weight).addmm_(d_low, a) if ctx.needs_input_grad[0] else None
        return d_x, None, None, d_a, d_b, None


class LoraLinear(nn.Module):
    """A linear site with its LoRA. `base` is the base's own module, untouched."""

    def __init__(self, base: nn.Module, site: Site, settings: Lora, rank: int, seed: int) -> None:
        super().__init__()
        self.base, self.site = base, site
        self.in_features, self.out_features = site.in_features, site.out_features
        self.scale = settings.alpha / (math.sqrt(rank) if settings.rank_stabilised else rank)
        self.dropout = settings.dropout
        self.training_step_seed: int | None = None
        weight = base.weight
        dtype = weight.dtype if weight.dtype == torch.float64 else torch.float32
        draw = torch.Generator().manual_seed(derive(seed, "lora", site.path))
        bound = 1 / math.sqrt(site.in_features)  # Kaiming uniform with a = sqrt(5), PEFT's default
        a = torch.empty(rank, site.in_features, dtype=torch.float32).uniform_(-bound, bound, generator=draw)
        self.A = nn.Parameter(a.to(device=weight.device, dtype=dtype))
        self.B = nn.Parameter(torch.zeros(site.out_features, rank, device=weight.device, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        weight = weight_of(self.base, self.site.transposed)
        a, b = self.A.to(x.dtype), self.B.to(x.dtype)
        if self.dropout and self.training_step_seed is not None:
            return F.linear(x, weight, self.base.bias) + self.scale * ((x * self._keep(x)) @ a.T @ b.T)
        flat = x.reshape(-1, self.in_features)
        y = _LoraFunction.apply(flat, weight, self.base.bias, a, b, self.scale)
        return y.view(*x.shape[:-1], self.out_features)

    def _keep(self, x: torch.Tensor) -> torch.Tensor:
        """The dropout mask of this step: a function of (step seed, site), so recomputing and resuming give it again."""
        assert self.training_step_seed is not None
        draw = torch.Generator(device=x.device).manual_seed(derive(self.training_step_seed, self.site.path))
        keep = torch.rand(x.shape, generator=draw, device=x.device) >= self.dropout
        return keep.to(x.dtype) / (1 - self.dropout)

    def delta(self) -> torch.Tensor:
        """What merging adds to the base's weight, in its own orientation: s B A."""
        update = self.scale * (self.B @ self.A)
        return update.T if self.site.transposed else update


class AttachedLora:
    """LoRA inside a model."""

    def __init__(
        self, settings: Lora, anatomy: Anatomy, sites: tuple[Site, ...], seed: int, ranks: dict[str, int] | None = None
    ) -> None:
        self.settings, self.anatomy, self.sites = settings, anatomy, sites
        for parameter in anatomy.model.parameters():
            parameter.requires_grad_(False)
        self.modules: dict[str, LoraLinear] = {}
        for site in sites:
            rank = settings.rank if ranks is None else ranks[site.path]
            module = LoraLinear(anatomy.module(site), site, settings, rank, seed)
            anatomy.model.set_submodule(site.path, module)
            self.modules[site.path] = module

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """A and B of every site, named as PEFT names them."""
        return {
            f"base_model.model.{path}.lora_{letter}.weight": getattr(module, letter)
            for path, module in self.modules.items()
            for letter in ("A", "B")
        }

    def begin_step(self, seed: int | None) -> None:
        """Fixes the dropout masks until the next call; None switches dropout off."""
        for module in self.modules.values():
            module.training_step_seed = seed

    def saved(self) -> dict[str, torch.Tensor]:
        """A and B of every site."""
        return dict(self.parameters)

    def save(self, folder: Path, base: str) -> None:
        """Writes adapter_config.json and adapter_model.safetensors, which PEFT reads."""
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": self.settings.rank,
            "lora_alpha": self.settings.alpha,
            "lora_dropout": self.settings.dropout,
            "use_rslora": self.settings.rank_stabilised,
            "target_modules": self._module_names(),
            "bias": "none",
            "fan_in_fan_out": any(site.transposed for site in self.sites),
            "modules_to_save": None,
            "use_dora": False,
            "rank_pattern": {p: m.A.shape[0] for p, m in self.modules.items() if m.A.shape[0] != self.settings.rank},
            "alpha_pattern": {},
            "init_lora_weights": True,
            "inference_mode": True,
        }
        _peft.write(
            folder, config, self.saved(), self.settings.name, asdict(self.settings), self.anatomy.shape.architecture
        )

    def fill(self, tensors: dict[str, torch.Tensor], source: Path) -> None:
        """Takes A and B from tensors; every one must be there, of the right shape, and no other."""
        own = self.parameters
        if tensors.keys() != own.keys():
            missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
            raise TechniqueError(
                f"{source}: its tensors do not fit: {len(missing)} are missing (first: {missing[:1]}) and {len(extra)} "
                f"are not understood (first: {extra[:1]}); nothing was loaded"
            )
        for name, parameter in own.items():
            if tensors[name].shape != parameter.shape:
                raise TechniqueError(
                    f"{source}: {name} is {tuple(tensors[name].shape)}, this base needs {tuple(parameter.shape)}; "
                    "was it trained on another base?"
                )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name])

    @torch.no_grad()
    def merge(self) -> None:
        """Adds s B A to every base weight and takes the LoRA out; it cannot be detached afterwards."""
        embedding = self.anatomy.model.get_input_embeddings().weight
        for path, module in self.modules.items():
            if module.base.weight is embedding:  # a tied head gets its own weight; the input embeddings stay
                module.base.weight = nn.Parameter(embedding.detach().clone(), requires_grad=False)
                self.anatomy.model.config.tie_word_embeddings = False
            weight = module.base.weight
            weight.copy_((weight.double() + module.delta().double()).to(weight.dtype))
            self.anatomy.model.set_submodule(path, module.base)
        self.modules = {}

    def detach(self) -> None:
        """Puts the base's own modules back; they were never changed."""
        for path, module in self.modules.items():
            self.anatomy.model.set_submodule(path, module.base)
        self.modules = {}

    def _module_names(self) -> list[str]:
        """PEFT's target_modules: a bare name where it means exactly our sites, else full paths."""
        chosen = {site.path for site in self.sites}
        linears = [path for path, m in self.anatomy.model.named_modules() if isinstance(m, nn.Linear | LoraLinear)]
        linears += [s.path for s in self.anatomy.sites if s.transposed]
        names = {path.rpartition(".")[2] for path in chosen}
        if all(path in chosen for path in linears if path.rpartition(".")[2] in names and not path.endswith(".base")):
            return sorted(names)
        return sorted(chosen)


# PEFT settings that change what the tensors mean, with the values under which they mean what Lora computes.
_UNDERSTOOD: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    # The other initialisations (pissa, olora, corda, loftq, ...) change the base's weights too.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
    "modules_to_save": (None, []),
    "layer_replication": (None,),
    "alpha_pattern": ({}, None),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "use_qalora": (False, None),
    "use_bdlora": (None, False),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "megatron_config": (None,),
    "monteclora_config": (None,),
    "velora_config": (None,),
    "kasa_config": (None,),
}


TECHNIQUE = Lora
