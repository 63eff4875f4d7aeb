"""AdamW and its learning rate, both functions of the step.

AdamW itself is torch's (Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization"). Weight decay leaves out
vectors: norms and biases.
"""

from __future__ import annotations

import math

import torch
from torch import nn

BETAS = (0.9, 0.999)
EPSILON = 1e-8


def adamw(parameters: dict[str, nn.Parameter], weight_decay: float) -> torch.optim.AdamW:
    """AdamW over the named parameters; the learning rate is set at each step."""
    matrices = [p for p in parameters.values() if p.ndim > 1]
    vectors = [p for p in parameters.values() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    fused = all(p.dtype == torch.float32 and p.device.type in ("cpu", "cuda") for p in parameters.values())
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=BETAS, eps=EPSILON, fused=fused)


def learning_rate(step: int, steps: int, peak: float, warmup: float, schedule: str) -> float:
    """The learning rate of step `step` (from 0) of `steps`: a linear rise over `warmup` * steps, then `schedule`."""
    rising = round(warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    if schedule == "constant":
        return peak
    done = (step - rising) / max(1, steps - rising)
    return peak * ((1 - done) if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done)))


def state_tensors(optimizer: torch.optim.AdamW, parameters: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """The optimizer's state, named after the parameters; empty before the first step."""
    return {
        f"{name}/{key}": value.detach()
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_state(
    optimizer: torch.optim.AdamW, parameters: dict[str, nn.Parameter], tensors: dict[str, torch.Tensor]
) -> None:
    """Puts back what `state_tensors` gave."""
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        parameter = parameters[name]
        device = "cpu" if entry == "step" and parameter.device.type == "cpu" else parameter.device
        optimizer.state[parameter][entry] = value.to(device).clone()
