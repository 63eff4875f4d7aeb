"""Sublayer junctions: where the output of attention or MLP meets the residual that it is added to.

A decoder layer consists of two sublayers, each a chain of modules. With r for what enters a chain and h for what
leaves it, a layer with input x and output y computes

    one after the other     r = x, then r = x + h_attention, then y = r + h_mlp
    side by side            r = x for both, and y = x + h_attention + h_mlp    (GPT-NeoX, Phi, Cohere)
    norm behind the sum     r = x, then r = norm(x + h_attention), then y = norm(r + h_mlp)    (BERT and its kin)

A chain begins with the norm before the sublayer, if there is one, and ends with the norm behind it, if there is one
(GLM-4, Gemma 3, OLMo 2). Which modules those are is not looked up by name: a few tokens run through the model, and
each child of a layer follows the one whose output it reads. The sums above are then checked on what was recorded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from heptune.core.errors import TechniqueError
from heptune.models.anatomy import Anatomy

SUBLAYERS = ("attention", "mlp")

# The layer's own sum rounds at most twice, by half an eps of |x| + |h_attention| + |h_mlp| each time.
_ROUNDINGS = 4


@dataclass(frozen=True)
class Junction:
    """One sublayer of one layer. The first input of the module at `entry` is r, the output of that at `exit` is h."""

    layer: int
    sublayer: str  # one of SUBLAYERS
    entry: str
    exit: str


@dataclass(frozen=True)
class _Call:
    """What one module read and gave in the probe."""

    path: str
    read: torch.Tensor
    gave: torch.Tensor


def junctions(anatomy: Anatomy) -> tuple[Junction, ...]:
    """Both junctions of every layer, attention first. Runs a few tokens through the model.

    Raises `TechniqueError` where a layer does not add its sublayers' outputs to the residual as they are.
    """
    found: list[Junction] = []
    for layer, calls in enumerate(_probe(anatomy)):
        behind = None if anatomy.causal else _norm_behind(anatomy, layer)
        if behind is not None:
            found += behind
            continue
        *children, whole = calls
        chains = _chains(children)
        named = {_sublayer(anatomy, chain): chain for chain in chains}
        if len(chains) != 2 or named.keys() != set(SUBLAYERS):
            raise _refusal(anatomy, layer, f"{len(chains)} chains of modules end in it, not attention and MLP")
        attention, mlp = named["attention"], named["mlp"]
        times = Counter(call.path for call in children)
        twice = next((c.path for chain in chains for c in (chain[0], chain[-1]) if times[c.path] > 1), None)
        if twice is not None:
            raise _refusal(anatomy, layer, f"{twice} runs more than once in it")
        if not _adds_up(whole, attention, mlp):
            raise _refusal(anatomy, layer, "the sums differ from what it computes")
        found += [Junction(layer, part, named[part][0].path, named[part][-1].path) for part in SUBLAYERS]
    return tuple(found)


@torch.no_grad()
def _norm_behind(anatomy: Anatomy, layer: int) -> list[Junction] | None:
    """Both junctions of a layer that normalises its sums; None where it does not. h leaves the sites attention.o and
    mlp.down; the layer itself reads the first r, and mlp.up the second."""
    own = {site.role: site.path for site in anatomy.sites if site.layer == layer}
    if not {"attention.o", "mlp.up", "mlp.down"} <= own.keys():
        return None
    places = {"layer": f"{anatomy.layers_path}.{layer}", **own}
    norms = {n: m for n, m in anatomy.layers[layer].named_modules() if isinstance(m, nn.LayerNorm)}
    calls: list[_Call] = []
    handles = [
        module.register_forward_hook(_recorder(name, calls), with_kwargs=True)
        for name, module in [*((n, anatomy.model.get_submodule(p)) for n, p in places.items()), *norms.items()]
    ]
    try:
        with _evaluating(anatomy.model):
            anatomy.states(input_ids=_few_tokens(anatomy))
    finally:
        for handle in handles:
            handle.remove()
    at = {call.path: call for call in calls}
    pairs = ((at["layer"].read, at["attention.o"].gave), (at["mlp.up"].read, at["mlp.down"].gave))
    sums = [at[name].read for name in norms if name in at]
    if not all(any(_is_sum(total, r, h) for total in sums) for r, h in pairs):
        return None
    entries = (places["layer"], own["mlp.up"])
    exits = (own["attention.o"], own["mlp.down"])
    return [Junction(layer, part, a, b) for part, a, b in zip(SUBLAYERS, entries, exits, strict=True)]


def _few_tokens(anatomy: Anatomy) -> torch.Tensor:
    device = next(anatomy.model.parameters()).device
    return torch.tensor([[(7919 * i + 11) % anatomy.shape.vocabulary for i in range(6)]], device=device)


def insert(
    anatomy: Anatomy, junction: Junction, change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> tuple[RemovableHandle, RemovableHandle]:
    """From now on `change(h, r)` stands in the place of h, until both handles are removed.

    h and r: [..., d]. Recomputing a layer's activations runs both hooks again, in the same order.
    """
    residual: list[torch.Tensor] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        residual[:] = [_first_input(args, kwargs)]

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        changed = change(_first_output(output), residual.pop())
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return (
        anatomy.model.get_submodule(junction.entry).register_forward_pre_hook(enter, with_kwargs=True),
        anatomy.model.get_submodule(junction.exit).register_forward_hook(leave),
    )


def _first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _first_output(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def _probe(anatomy: Anatomy) -> list[list[_Call]]:
    """For each layer the calls of its children, in the order in which they ended, and last its own."""
    calls: dict[str, list[_Call]] = {}
    layers = [f"{anatomy.layers_path}.{index}" for index in range(len(anatomy.layers))]
    handles = []
    for path, layer in zip(layers, anatomy.layers, strict=True):
        for name, module in [(path, layer), *((f"{path}.{n}", child) for n, child in layer.named_children())]:
            handles.append(module.register_forward_hook(_recorder(name, calls.setdefault(path, [])), with_kwargs=True))
    try:
        with _evaluating(anatomy.model):
            anatomy.states(input_ids=_few_tokens(anatomy))
    finally:
        for handle in handles:
            handle.remove()
    return [_last_run(calls[path], path) for path in layers]


def _last_run(calls: list[_Call], layer: str) -> list[_Call]:
    """What ran in the probe itself: a soft prompt's keys and values are recorded by a run of their own before it."""
    ends = [place for place, call in enumerate(calls) if call.path == layer]
    return calls[ends[-2] + 1 :] if len(ends) > 1 else calls


def _recorder(path: str, calls: list[_Call]) -> Callable[..., None]:
    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        read, gave = args[0] if args else kwargs.get("hidden_states"), _first_output(output)
        # A module that hands its input on (dropout in evaluation) is no link of a chain: Phi calls one for both.
        if isinstance(read, torch.Tensor) and isinstance(gave, torch.Tensor) and not _same(read, gave):
            calls.append(_Call(path, read, gave))

    return record


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout inside the block; each module's own mode is put back behind it."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """The same memory; recorded tensors stay alive, so no address is given out twice."""
    return a.data_ptr() == b.data_ptr() and a.numel() == b.numel()


def _chains(calls: list[_Call]) -> list[list[_Call]]:
    """From each call whose output no other child reads, back along what was read: [first, ..., last]."""
    chains = []
    for last in calls:
        if any(_same(last.gave, other.read) for other in calls):
            continue
        chain = [last]
        while (before := next((c for c in calls if _same(c.gave, chain[0].read)), None)) is not None:
            chain.insert(0, before)
        chains.append(chain)
    return chains


def _sublayer(anatomy: Anatomy, chain: list[_Call]) -> str:
    paths = [site.path for site in anatomy.sites if site.role.startswith("attention.")]
    inside = any(path.startswith(call.path + ".") for call in chain for path in paths)
    return "attention" if inside else "mlp"


def _adds_up(whole: _Call, attention: list[_Call], mlp: list[_Call]) -> bool:
    """Whether the layer's output is one of the two sums in the module's docstring."""
    x, y, h_attention, h_mlp = whole.read, whole.gave, attention[-1].gave, mlp[-1].gave
    if not _same(attention[0].read, x):
        return False
    if _same(mlp[0].read, x):
        return _is_sum(y, x, h_attention, h_mlp)
    return _is_sum(mlp[0].read, x, h_attention) and _is_sum(y, mlp[0].read, h_mlp)


def _is_sum(total: torch.Tensor, *terms: torch.Tensor) -> bool:
    if any(term.numel() != total.numel() for term in terms):
        return False
    rows = [term.double().view_as(total) for term in terms]  # OPT's MLP works on [B * T, d]
    exact, size = sum(rows), sum(row.abs() for row in rows)
    bound = _ROUNDINGS * torch.finfo(total.dtype).eps * size
    return bool(((total.double() - exact).abs() <= bound).all())


def _refusal(anatomy: Anatomy, layer: int, found: str) -> TechniqueError:
    return TechniqueError(
        f"{anatomy.shape.architecture} has no sublayer junctions: layer {layer} must add the outputs of its attention "
        f"and its MLP to the residual as they are, but {found}. LoRA and QLoRA work at linear sites, prompts and "
        "prefixes before the sequence; those need no junction"
    )
