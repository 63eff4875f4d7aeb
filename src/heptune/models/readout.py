"""A linear head on hidden states: classes of a text, or of each of its tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from heptune.core.seeds import generator
from heptune.models.anatomy import Anatomy

# The deviation of its first weights, as in BERT's classifiers (Devlin et al. 2019).
_DEVIATION = 0.02


class Readout(nn.Module):
    """z = W h + b for hidden states h [M, d], in float32 whatever the model computes in: [M, C].

    `independent`: each class is decided by itself, yes or no (several labels); otherwise one of the classes is right.
    """

    def __init__(self, anatomy: Anatomy, classes: int, independent: bool, seed: int) -> None:
        super().__init__()
        device = next(anatomy.model.parameters()).device
        drawn = generator(seed, "readout").standard_normal((classes, anatomy.shape.hidden)) * _DEVIATION
        dtype = torch.float64 if next(anatomy.model.parameters()).dtype == torch.float64 else torch.float32
        self.independent = independent
        self.weight = nn.Parameter(torch.from_numpy(drawn).to(device, dtype))
        self.bias = nn.Parameter(torch.zeros(classes, device=device, dtype=dtype))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[M, d] -> [M, C]."""
        return F.linear(hidden.to(self.weight.dtype), self.weight, self.bias)

    def losses(self, hidden: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """What each mark costs in nats, [M]: hidden [M, d], code [M].

        The code is the right class. Where classes are independent it is 2 c + y: class c is there (y = 1) or not (0).
        """
        logits = self(hidden)
        if not self.independent:
            return torch.logsumexp(logits, dim=1) - logits.gather(1, code[:, None])[:, 0]
        chosen = logits.gather(1, (code // 2)[:, None])[:, 0]
        return F.softplus(torch.where(code % 2 == 1, -chosen, chosen))
