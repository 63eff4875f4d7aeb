"""How the next token is chosen, and what is told about the choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

# Candidates that are sorted for top_p before the whole vocabulary is: the likeliest 1,024 of 49,152 tokens hold 0.999
# of the probability in nearly every position of English text, and sorting all of them takes 3 ms.
SORTED_FIRST = 1024


@dataclass(frozen=True)
class Choice:
    """`temperature` 0 takes the likeliest token. `top_p` keeps the likeliest tokens that together have this
    probability. The same `seed` gives the same tokens. `presence` and `frequency` are subtracted from the logit of a
    token that was said, once and for each time; `bias` is added to those of its tokens. `logprobs`: how many of the
    likeliest tokens' log-probabilities are told (None: not even the chosen one's)."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    presence: float = 0.0
    frequency: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None

    @property
    def plain(self) -> bool:
        """Whether it is the likeliest token of the model's own logits, and nothing is told about it."""
        return self.temperature == 0 and self.logprobs is None and not (self.presence or self.frequency or self.bias)


@dataclass(frozen=True)
class Chosen:
    """The token, its log-probability, and those of the likeliest ones (None where nothing is told)."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def choose(
    logits: torch.Tensor,
    choices: Sequence[Choice],
    said: Sequence[Sequence[int]],
    allowed: Sequence[np.ndarray | None],
) -> list[Chosen]:
    """One token for each row of `logits` [n, V]. `said` is what each sequence said so far, `allowed` the tokens that
    may come next (None: all)."""
    plain = [row for row, choice in enumerate(choices) if choice.plain and allowed[row] is None]
    found: dict[int, Chosen] = {}
    if plain:
        rows = logits if len(plain) == len(choices) else logits[plain]
        found = {row: Chosen(token) for row, token in zip(plain, rows.argmax(-1).tolist(), strict=True)}
    for row, choice in enumerate(choices):
        if row not in found:
            found[row] = _one(logits[row].float(), choice, said[row], allowed[row])
    return [found[row] for row in range(len(choices))]


def _one(logits: torch.Tensor, choice: Choice, said: Sequence[int], allowed: np.ndarray | None) -> Chosen:
    own = logits
    logits = _adjusted(logits, choice, said)
    if allowed is not None:
        kept = torch.full_like(logits, -torch.inf)
        kept[allowed] = logits[allowed]
        logits = kept
    token = int(logits.argmax()) if choice.temperature == 0 else _drawn(logits, choice, len(said))
    if choice.logprobs is None:
        return Chosen(token)
    log_p = own - own.logsumexp(-1)  # what the model said, before anything was done to it
    value, index = log_p.topk(min(choice.logprobs, len(log_p)))
    return Chosen(token, float(log_p[token]), tuple(zip(index.tolist(), value.tolist(), strict=True)))


def _adjusted(logits: torch.Tensor, choice: Choice, said: Sequence[int]) -> torch.Tensor:
    if not (choice.presence or choice.frequency or choice.bias):
        return logits
    logits = logits.clone()
    tokens = torch.tensor(said, dtype=torch.long, device=logits.device)
    if len(tokens):
        times = torch.bincount(tokens, minlength=len(logits))[: len(logits)]
        logits -= choice.frequency * times + choice.presence * (times > 0)
    for token, more in choice.bias.items():
        logits[token] += more
    return logits


def _drawn(logits: torch.Tensor, choice: Choice, place: int) -> int:
    """A token drawn at this temperature among the likeliest. What is drawn is a function of (seed, place): it does not
    depend on who else is in the batch."""
    scaled = logits / choice.temperature
    whole = scaled.logsumexp(-1)
    count = min(SORTED_FIRST, len(scaled)) if choice.top_p < 1 else len(scaled)
    value, index = scaled.topk(count)
    p = (value - whole).exp().double()
    if choice.top_p < 1 and float(p.sum()) < choice.top_p:
        value, index = scaled.sort(descending=True)
        p = (value - whole).exp().double()
    before = p.cumsum(0) - p
    p = p[before < choice.top_p]  # the first one always stays
    u = np.random.Generator(np.random.Philox(key=[choice.seed % 2**64, place])).random()
    at = int(torch.searchsorted(p.cumsum(0), u * float(p.sum()), right=True))
    return int(index[min(at, len(p) - 1)])
