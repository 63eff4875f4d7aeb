"""Models of transformers and PEFT that are asked for parity. T tokens, V vocabulary, M marks, C classes, d width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from heptune.models.quiet import quiet
from heptune.shipping.parity import Asked
from heptune.tasks.example import WHOLE


class PlainVoice:
    """A causal model, called as anybody calls it."""

    def __init__(self, model: Any, stops: Sequence[int]) -> None:
        self.model, self.stops = model.eval(), list(stops)
        self.device = next(model.parameters()).device

    @torch.no_grad()
    def logits(self, asked: Asked) -> torch.Tensor:
        """[T, V]; of the last T positions where virtual tokens stand before them."""
        ids = torch.tensor([list(asked.tokens)], device=self.device)
        with quiet():
            found = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
        return found[-len(asked.tokens) :].cpu()

    @torch.no_grad()
    def greedy(self, asked: Asked, count: int) -> list[int]:
        """Through `generate`, with a cache."""
        ids = torch.tensor([list(asked.tokens)], device=self.device)
        with quiet():
            out = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                do_sample=False,
                repetition_penalty=1.0,
                no_repeat_ngram_size=0,
                eos_token_id=self.stops,
                pad_token_id=self.stops[0],
            )
        return [int(token) for token in out[0, ids.shape[1] :]]


class HeadVoice:
    """A model whose hidden states a linear head reads, z = W h + b. `states` gives those of a text's tokens, [T, d];
    `weight` [C, d], `bias` [C]."""

    def __init__(
        self, states: Callable[[torch.Tensor], torch.Tensor], weight: torch.Tensor, bias: torch.Tensor
    ) -> None:
        self.states, self.weight, self.bias = states, weight.detach(), bias.detach()

    @torch.no_grad()
    def logits(self, asked: Asked) -> torch.Tensor:
        """[M, C]."""
        with quiet():
            states = self.states(torch.tensor([list(asked.tokens)], device=self.weight.device))[-len(asked.tokens) :]
        rows = [states.mean(0) if place == WHOLE else states[place] for place in asked.places]
        return F.linear(torch.stack(rows).to(self.weight.dtype), self.weight, self.bias).cpu()

    def greedy(self, asked: Asked, count: int) -> list[int]:
        """It says nothing."""
        return []


class TaggerVoice(HeadVoice):
    """A model of transformers that gives classes for every token itself."""

    def __init__(self, model: Any) -> None:
        self.model = model.eval()

    @torch.no_grad()
    def logits(self, asked: Asked) -> torch.Tensor:
        """[M, C]."""
        with quiet():
            found = self.model(input_ids=torch.tensor([list(asked.tokens)])).logits[0].float()
        return found[list(asked.places)]
