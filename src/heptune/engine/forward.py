"""From examples to a loss: lays a batch out, runs the decoder once, and takes the loss where there are targets.

The model stays in evaluation mode: the dropout that some old architectures carry in their base is off, so that a step
is a pure function of its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from heptune.core.errors import BaseModelError, TechniqueError
from heptune.core.events import Listener, Note, ignore
from heptune.engine import forest as layout
from heptune.engine.loss import cross_entropy
from heptune.models.anatomy import Anatomy
from heptune.models.attention import Visibility, install
from heptune.tasks.example import Example
from heptune.tasks.store import lengths

# The self-test accepts the forest when its losses agree with one example at a time to this relative difference. Both
# are float32 sums in different orders: 1e-6 is typical, wrong attention gives 1e-2 and more. bfloat16 keeps 8 bits.
SELF_TEST_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}


@dataclass(frozen=True)
class BatchLoss:
    """`total`: the weighted summed loss (differentiable). `losses` [M], `example` [M]: each target's own loss in nats
    and the index of its example. `rows`: the rows that were computed."""

    total: torch.Tensor
    losses: torch.Tensor
    example: torch.Tensor
    rows: int


class Forward:
    """Runs examples through a model, as a forest where the architecture allows it, padded otherwise.

    `recompute` trades time for memory: a layer's activations are dropped and computed again in the backward pass.
    """

    def __init__(self, anatomy: Anatomy, recompute: bool = False, listener: Listener = ignore) -> None:
        self.anatomy = anatomy
        self.device = next(anatomy.model.parameters()).device
        anatomy.model.eval()
        self._transform = _logits_transform(anatomy)
        self._state = install(anatomy.model)
        if self._state is not None and not self._agrees():
            self._state = None
            anatomy.model.set_attn_implementation("sdpa" if anatomy.model._supports_sdpa else "eager")
        if self._state is None:
            name = type(anatomy.model).__name__
            listener(Note(f"{name} cannot attend over a forest; its batches are padded, which is slower", "warning"))
        if recompute:
            _recompute_layers(anatomy)

    @property
    def attends_over_forests(self) -> bool:
        """Whether batches are forests (else they are padded)."""
        return self._state is not None

    def portions(self, examples: Sequence[Example], budget: int, share: bool = True) -> Iterator[list[Example]]:
        """Cuts examples into lists of at most `budget` rows each, in the layout that they will have. Raises
        `TechniqueError` where one is too long beside the technique's own positions."""
        require_positions(self.anatomy, examples)
        placed = self._placed(examples)
        if self._state is None:
            return layout.padded_portions(placed, budget)
        return layout.portions(placed, budget, share)

    @contextmanager
    def loss(self, examples: Sequence[Example], share: bool = True) -> Iterator[BatchLoss]:
        """The loss of a batch, each target with weight 1. `total.backward()` belongs inside the `with` block."""
        placed = self._placed(examples)
        batch = layout.plant(placed, share) if self._state is not None else layout.pad(placed)
        row, token, example = (
            torch.from_numpy(a).to(self.device) for a in (batch.target_row, batch.target_token, batch.target_example)
        )
        with self._hidden(batch) as hidden:
            weight = torch.ones(len(row), device=self.device)
            total, losses = cross_entropy(hidden, self._head(), row, token, weight, self._transform)
            yield BatchLoss(total, losses, example, batch.rows)

    @torch.no_grad()
    def score(self, examples: Sequence[Example]) -> np.ndarray:
        """Each example's summed loss (nats): -log p(targets | what stands before them), float64 [n]."""
        with self.loss(examples) as batch:
            sums = torch.zeros(len(examples), dtype=torch.float64)
            return sums.index_add_(0, batch.example.cpu(), batch.losses.double().cpu()).numpy()

    def _placed(self, examples: Sequence[Example]) -> list[Example]:
        """The examples with the technique's virtual tokens in their places."""
        placement = self.anatomy.placement
        return [example.with_virtual_tokens(placement.front, placement.inner) for example in examples]

    def _head(self) -> torch.nn.Module:
        """The head as it is now: a technique may have replaced it."""
        return self.anatomy.model.get_submodule(self.anatomy.head_path)

    @contextmanager
    def _hidden(self, batch: layout.Forest | layout.Padded) -> Iterator[torch.Tensor]:
        """The decoder's last hidden states, [rows, d]."""
        if isinstance(batch, layout.Padded):
            token, mask = (torch.from_numpy(a).to(self.device) for a in (batch.token, batch.mask))
            output = self.anatomy.decoder(input_ids=token, attention_mask=mask, use_cache=False)
            yield output.last_hidden_state.flatten(0, 1)
            return
        assert self._state is not None
        token, position = (torch.from_numpy(a).to(self.device)[None] for a in (batch.token, batch.position))
        with self._state.over(Visibility(batch.end, batch.position, self.device)):
            output = self.anatomy.decoder(
                input_ids=token, position_ids=position, attention_mask=_no_mask(self.device), use_cache=False
            )
            yield output.last_hidden_state[0]

    def _agrees(self) -> bool:
        """Whether a small forest gives the losses of its examples one at a time (through the model's own forward)."""
        examples = _self_test_examples(self.anatomy.shape.vocabulary)
        model = self.anatomy.model
        try:
            got = self.score(examples)
        except (NotImplementedError, RuntimeError, TypeError, ValueError):
            return False
        with torch.no_grad():
            alone = [_plain_loss(model, example, self.device) for example in self._placed(examples)]
        tolerance = SELF_TEST_TOLERANCE.get(next(model.parameters()).dtype, 3e-2)
        return bool(np.allclose(got, alone, rtol=tolerance, atol=tolerance))


def require_positions(anatomy: Anatomy, examples: Sequence[Example]) -> None:
    """Raises `TechniqueError` where the technique's own positions leave too few for the longest example."""
    taken, limit = anatomy.placement.positions, anatomy.shape.max_positions
    longest = max(lengths(examples), default=0)
    if limit is None or taken == 0 or taken + longest <= limit:
        return
    ways = [f"--virtual-tokens {limit - longest}"] if limit > longest else []
    ways += [f"--max-length {limit - taken}"] if limit > taken else []
    raise TechniqueError(
        f"the technique takes {taken} positions and the longest example has {longest} tokens, but "
        f"{anatomy.shape.architecture} has {limit} positions; tune with {' or '.join(ways) or 'fewer of both'}"
    )


def _no_mask(device: torch.device) -> torch.Tensor:
    """A four-dimensional mask: transformers takes it as ready-made and builds none. Forest attention never reads it."""
    return torch.zeros(1, 1, 1, 1, device=device)


def _plain_loss(model: torch.nn.Module, example: Example, device: torch.device) -> float:
    logits = model(input_ids=torch.tensor([example.tokens], device=device), use_cache=False).logits[0].double()
    log_p = logits.log_softmax(-1)
    return -sum(float(log_p[t - 1, example.tokens[t]]) for t, s in enumerate(example.supervised) if s)


def _self_test_examples(vocabulary: int) -> list[Example]:
    """Three short examples, two of which share their beginning; ids are spread over the vocabulary."""
    ids = [(7919 * i + 11) % vocabulary for i in range(40)]
    shared = ids[:9]
    rows = [(*shared, *ids[9:14]), (*shared, *ids[20:28]), tuple(ids[28:38])]
    return [Example(tuple(r), tuple(t >= len(r) - 3 for t in range(len(r))), i) for i, r in enumerate(rows)]


def _logits_transform(anatomy: Anatomy) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What this architecture does to logits after its head, found by its configuration and proven on a probe."""
    config = anatomy.model.config
    scale = getattr(config, "logit_scale", None)
    divide = getattr(config, "logits_scaling", None)
    cap = getattr(config, "final_logit_softcapping", None)

    def transform(logits: torch.Tensor) -> torch.Tensor:
        logits = logits * scale if scale is not None else logits
        logits = logits / divide if divide is not None else logits
        return torch.tanh(logits / cap) * cap if cap is not None else logits

    chosen = transform if (scale, divide, cap) != (None, None, None) else None
    device = next(anatomy.model.parameters()).device
    tokens = torch.tensor([[(7919 * i + 11) % anatomy.shape.vocabulary for i in range(5)]], device=device)
    with torch.no_grad():
        expected = anatomy.model(input_ids=tokens, use_cache=False).logits
        hidden = anatomy.decoder(input_ids=tokens, use_cache=False).last_hidden_state
        got = anatomy.model.get_submodule(anatomy.head_path)(hidden)
        got = got if chosen is None else chosen(got)
    tolerance = SELF_TEST_TOLERANCE.get(expected.dtype, 3e-2)
    if not torch.allclose(got.to(expected.dtype), expected, rtol=tolerance, atol=tolerance):
        raise BaseModelError(
            f"{type(anatomy.model).__name__} does something to its logits that is not understood: head(decoder(x)) "
            f"differs from the model's own by {float((got - expected).abs().max()):.3g}; "
            "this architecture cannot be tuned yet"
        )
    return chosen


def _recompute_layers(anatomy: Anatomy) -> None:
    for layer in anatomy.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
