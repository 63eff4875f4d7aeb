"""From examples to a loss: lays a batch out, runs the decoder once, and takes the loss where there are targets.

Targets are words, predicted by the model's own head, or classes that a `Readout` sees (`Example.marks`).

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
from transformers import Cache

from heptune.core.errors import BaseModelError, TechniqueError
from heptune.core.events import Listener, Note, ignore
from heptune.engine import forest as layout
from heptune.engine import marked
from heptune.engine.loss import cross_entropy
from heptune.models.anatomy import Anatomy
from heptune.models.attention import Visibility, install
from heptune.models.readout import Readout
from heptune.models.slots import Step
from heptune.tasks.example import Example
from heptune.tasks.store import lengths

# The self-test accepts the forest when its losses agree with one example at a time to this relative difference. Both
# are float32 sums in different orders: 1e-6 is typical, wrong attention gives 1e-2 and more. bfloat16 keeps 8 bits.
SELF_TEST_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}


@dataclass(frozen=True)
class BatchLoss:
    """`total`: the summed loss, each target with its example's weight (differentiable). `losses` [M], `example` [M]:
    each target's own loss in nats and the index of its example. `rows`: the rows that were computed."""

    total: torch.Tensor
    losses: torch.Tensor
    example: torch.Tensor
    rows: int


class Forward:
    """Runs examples through a model, as a forest where the architecture allows it, padded otherwise.

    `recompute` trades time for memory: a layer's activations are dropped and computed again in the backward pass.
    `readout` is the linear head of a task that has one; an encoder can do nothing without.
    """

    readout: Readout | None = None

    def __init__(self, anatomy: Anatomy, recompute: bool = False, listener: Listener = ignore) -> None:
        self.anatomy = anatomy
        self.device = next(anatomy.model.parameters()).device
        anatomy.model.eval()
        self._transform = _logits_transform(anatomy) if anatomy.causal else None
        self._state = install(anatomy.model, anatomy.layers)
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
        if any(example.marks for example in placed):
            return marked.portions(placed, budget, padded=self._state is None)
        if self._state is None:
            return layout.padded_portions(placed, budget)
        return layout.portions(placed, budget, share)

    @contextmanager
    def loss(self, examples: Sequence[Example], share: bool = True) -> Iterator[BatchLoss]:
        """The loss of a batch. `total.backward()` belongs inside the `with` block."""
        placed = self._placed(examples)
        if any(example.marks for example in placed):
            with self._seen(placed) as (seen, code, example, rows):
                losses = self._head_of_marks().losses(seen, code)
                weight = torch.tensor([e.weight for e in placed], device=self.device)[example]
                total = (losses.double() * weight.double()).sum().to(losses.dtype)
                yield BatchLoss(total, losses.detach(), example, rows)
            return
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

    @torch.no_grad()
    def _sees_the_same(self, examples: Sequence[Example]) -> bool:
        texts = [Example.marked(e.tokens, tuple((t, 0) for t in range(len(e.tokens))), e.record) for e in examples]
        placed = self._placed(texts)
        try:
            with self._seen(placed) as (got, _, _, _):
                together = got.double()
        except (NotImplementedError, RuntimeError, TypeError, ValueError):
            return False
        front = self.anatomy.placement.front + self.anatomy.placement.inner
        alone = [self.anatomy.states(input_ids=torch.tensor([e.tokens], device=self.device))[0, front:] for e in placed]
        want = torch.cat(alone).double()
        tolerance = SELF_TEST_TOLERANCE.get(next(self.anatomy.model.parameters()).dtype, 3e-2)
        return bool((together - want).norm() <= tolerance * want.norm())

    @torch.no_grad()
    def logits(self, examples: Sequence[Example]) -> np.ndarray:
        """What the readout says at every mark, in the order of examples and their marks: float64 [M, C]."""
        with self._seen(self._placed(examples)) as (seen, _, _, _):
            return self._head_of_marks()(seen).double().cpu().numpy()

    @torch.no_grad()
    def features(self, examples: Sequence[Example]) -> np.ndarray:
        """The hidden states that a readout would see, one of every mark: float32 [M, d]."""
        with self._seen(self._placed(examples)) as (seen, _, _, _):
            return seen.float().cpu().numpy()

    def _head_of_marks(self) -> Readout:
        if self.readout is None:
            raise BaseModelError("these examples are for a linear head, and the model has none")
        return self.readout

    @contextmanager
    def _seen(self, examples: Sequence[Example]) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]]:
        """The hidden states at the marks [M, d], the marks' codes and examples [M], and the rows that were computed."""
        batch = marked.lay_out(examples, causal=self.anatomy.causal, padded=self._state is None)
        row, code, example = (torch.from_numpy(a).to(self.device) for a in (batch.row, batch.code, batch.example))
        with self._states_of(batch) as hidden:
            if int(batch.row.max()) >= batch.rows:
                hidden = torch.cat([hidden, _means(hidden, batch, len(examples))])
            yield hidden.index_select(0, row), code, example, batch.rows

    @contextmanager
    def _states_of(self, batch: marked.Marked) -> Iterator[torch.Tensor]:
        """The last hidden states of every row, [T, d]."""
        token, position = (torch.from_numpy(a).to(self.device) for a in (batch.token, batch.position))
        if batch.width is not None:
            mask = torch.from_numpy(~batch.filling).to(self.device, torch.int64)
            shape = (-1, batch.width)
            yield self.anatomy.states(input_ids=token.view(shape), attention_mask=mask.view(shape)).flatten(0, 1)
            return
        assert self._state is not None
        begin = None if self.anatomy.causal else batch.begin
        with self._state.over(Visibility(batch.end, batch.position, self.device, begin)):
            yield self.anatomy.states(
                input_ids=token[None],
                position_ids=(position + self.anatomy.first_position)[None],
                attention_mask=_no_mask(self.device),
            )[0]

    @torch.no_grad()
    def likeliest(
        self,
        token: np.ndarray,
        position: np.ndarray,
        visibility: Visibility,
        cache: Cache,
        rows: np.ndarray,
        allowed: Sequence[np.ndarray] | None = None,
    ) -> np.ndarray:
        """Computes rows behind those that `cache` holds, adds them to it, and gives the token that is likeliest after
        each of the `rows` among them; of those that are `allowed` there, if given. For architectures that attend over
        forests."""
        assert self._state is not None
        ids, place = (torch.from_numpy(a).to(self.device)[None] for a in (token, position))
        with self._state.over(visibility):
            output = self.anatomy.decoder(
                input_ids=ids,
                position_ids=place,
                attention_mask=_no_mask(self.device),
                past_key_values=cache,
                use_cache=True,
            )
        logits = self.next_token(output.last_hidden_state[0, torch.from_numpy(rows).to(self.device)])
        if allowed is not None:
            kept = torch.full_like(logits, -torch.inf)
            for row, tokens in enumerate(allowed):
                kept[row, tokens] = logits[row, tokens]
            logits = kept
        return logits.argmax(-1).cpu().numpy()

    @torch.no_grad()
    def hidden_in(self, step: Step, token: np.ndarray, position: np.ndarray) -> torch.Tensor:
        """The last hidden states of a step of growing sequences, [T, d]. For architectures that attend over forests."""
        assert self._state is not None
        ids, place = (torch.from_numpy(a).to(self.device)[None] for a in (token, position))
        with self._state.stepping(step):
            output = self.anatomy.decoder(
                input_ids=ids, position_ids=place, attention_mask=_no_mask(self.device), use_cache=False
            )
        step.done()
        found: torch.Tensor = output.last_hidden_state[0]
        return found

    @torch.no_grad()
    def next_token(self, hidden: torch.Tensor) -> torch.Tensor:
        """The logits of the token after each of these hidden states: [n, d] -> [n, vocabulary]."""
        logits = self._head()(hidden)
        found: torch.Tensor = logits if self._transform is None else self._transform(logits)
        return found

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
        """Whether a small forest gives the losses of its examples one at a time (through the model's own forward); of
        an encoder whether texts in one row have the hidden states that they have alone."""
        examples = _self_test_examples(self.anatomy.shape.vocabulary)
        model = self.anatomy.model
        if not self.anatomy.causal:
            return self._sees_the_same(examples)
        try:
            got = self.score(examples)
        except (NotImplementedError, RuntimeError, TypeError, ValueError):
            return False
        with torch.no_grad():
            alone = [_plain_loss(model, example, self.device) for example in self._placed(examples)]
        tolerance = SELF_TEST_TOLERANCE.get(next(model.parameters()).dtype, 3e-2)
        return bool(np.allclose(got, alone, rtol=tolerance, atol=tolerance))


def _means(hidden: torch.Tensor, batch: marked.Marked, examples: int) -> torch.Tensor:
    """The mean of each example's own rows, [n, d]."""
    owner = torch.from_numpy(batch.owner).to(hidden.device)
    own = owner >= 0
    sums = hidden.new_zeros(examples, hidden.shape[1]).index_add(0, owner[own], hidden[own])
    return sums / torch.bincount(owner[own], minlength=examples)[:, None].to(hidden.dtype)


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
