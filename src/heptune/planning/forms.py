"""The memory and the work of a training step as formulas in the model's sizes. Imports no torch.

A form belongs to an architecture family, a technique with its settings, and a type of the weights. It was read off a
real step on tiny models (see `planning/trace.py`) and holds for any sizes:

    bytes(L) = max_i [ base_i + (L - L0) * slope_i ]

Each i is a moment of the step, `base` what is alive then with L0 layers, `slope` what each further layer adds; both are
polynomials, like 4*T*d + 8*T*f, in these sizes:

    T    rows of the pass                          d    hidden width
    U    targets                                   f    width of the MLP
    C    rows of one chunk of logits               q    heads * head width
    c    rows of a second one, 0 where one is      kv   key/value heads * head width
         enough                                    H    heads          K    key/value heads
    B    examples, l = T / B                       D    head width     G    H / K
    b    query rows of one attention block         V    vocabulary     E    width of a word's embedding
    k    keys that the widest block meets          r    rank           m    units of a bottleneck
    N    attention blocks                          P    virtual tokens
    Ng   those whose keys are gathered             Z    positions that the model has
    g    as k, where keys are gathered: copied     e    width of a prompt encoder
    j    k + P                                     X    experts        w    width of an expert
    Y    classes of a linear head                  O    rows that are an example's own: T without virtual tokens

    R, Rp, Rg, Rj, Rk: the sums over all blocks but one of rows, rows * keys, gathered keys, rows * (keys + P), and
    keys + P

    pairs, keys, gathered: the sums over all blocks of rows * keys, keys, and gathered keys; pairsP, keysP: of
    rows * (keys + P) and keys + P
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from heptune.models.blocks import BLOCK_ROWS, cuts, keys_of
from heptune.models.shape import ModelShape

# Elements of one chunk of logits, as in engine/loss.py.
CHUNK_ELEMENTS = 1 << 23

# A monomial is written 'T*d', the constant one ''. A polynomial gives each its coefficient.
Polynomial = dict[str, float]

# A trained parameter is float32, and so is its gradient.
GRADIENT_BYTES = 4

PARTS = ("activations", "logits", "gradients", "workspace")


@dataclass(frozen=True)
class Pass:
    """What one forward and backward pass computes on.

    `rows`: T, virtual tokens among them included (where batches are padded, the padding too). `pairs`: the sum over
    attention blocks of query rows * keys. `targets`: supervised tokens, or a linear head's marks. `examples`: how many.

    What follows is found by `of`; where it is not given it is estimated. `blocks`: attention blocks. `keys`: the sum of
    the blocks' keys, `gathered`: those of the `gathering` blocks, whose keys do not stand in one piece (they are
    copied), `widest`: the most keys of one block. `own`: rows that are no virtual tokens; None: all of them.
    """

    rows: int
    pairs: int
    targets: int
    examples: int
    blocks: int | None = None
    keys: int | None = None
    gathered: int = 0
    gathering: int = 0
    widest: int | None = None
    own: int | None = None

    @classmethod
    def of(
        cls,
        end: np.ndarray,
        position: np.ndarray,
        targets: int,
        examples: int,
        window: int | None = None,
        begin: np.ndarray | None = None,
        own: int | None = None,
    ) -> Pass:
        """The pass over a forest (`end`, `position`: see `engine/forest.py`; `begin`: see `engine/marked.py`), counted
        on its attention blocks."""
        pairs = keys = gathered = gathering = widest = blocks = 0
        for start, stop in cuts(position):
            found, _ = keys_of(end, position, start, stop, window, begin)
            pairs += (stop - start) * len(found)
            keys += len(found)
            widest = max(widest, len(found))
            blocks += 1
            if found[-1] - found[0] + 1 != len(found):
                gathered += len(found)
                gathering += 1
        return cls(len(end), pairs, targets, examples, blocks, keys, gathered, gathering, widest, own)


@dataclass(frozen=True)
class Product:
    """`count` products of a [m, k] with a [k, n] matrix: 2 * count * m * k * n operations."""

    count: float
    m: float
    k: float
    n: float


@dataclass(frozen=True)
class Work:
    """One forward and backward pass; the optimizer's step is not in it.

    `attention_flops`: floating point operations of attention's own products. `moved_bytes`: bytes that all other
    operations read and write. `operations`: how many operations are called, products included, views not.
    """

    products: tuple[Product, ...]
    attention_flops: float
    moved_bytes: float
    operations: float


@dataclass(frozen=True)
class Line:
    """One moment of the step: what is alive with L0 layers, and what each further layer adds, by part (`PARTS`)."""

    base: dict[str, Polynomial]
    slope: dict[str, Polynomial]

    @property
    def newest(self) -> Polynomial:
        """One gradient of each size that there is: float32 has 4 bytes."""
        return {m: float(GRADIENT_BYTES) for m in (*self.base.get("gradients", {}), *self.slope.get("gradients", {}))}

    def parts(self, sizes: Mapping[str, float], more: float) -> dict[str, float]:
        """Bytes of each part with `more` layers than L0."""
        return {
            part: value(self.base.get(part, {}), sizes) + more * value(self.slope.get(part, {}), sizes)
            for part in PARTS
        }


@dataclass(frozen=True)
class Counted:
    """Counted work: (count, m, k, n) of the products, and the rest; [with L0 layers, of each further layer]."""

    products: tuple[tuple[tuple[float, float], Polynomial, Polynomial, Polynomial], ...] = ()
    attention_flops: tuple[Polynomial, Polynomial] = ({}, {})
    moved_bytes: tuple[Polynomial, Polynomial] = ({}, {})
    operations: tuple[Polynomial, Polynomial] = ({}, {})

    def work(self, sizes: Mapping[str, float], more: float) -> Work:
        """The work at these sizes with `more` layers than L0."""
        products = tuple(
            Product(count[0] + more * count[1], value(m, sizes), value(k, sizes), value(n, sizes))
            for count, m, k, n in self.products
        )
        rest = (
            value(base, sizes) + more * value(slope, sizes)
            for base, slope in (self.attention_flops, self.moved_bytes, self.operations)
        )
        return Work(products, *rest)


@dataclass(frozen=True)
class StepForm:
    """The memory and work of a step in closed form.

    `base_layers` is L0; where `exact`, the form holds for that many layers alone (settings that name layers). `lines`
    are the training step's moments, `forward_lines` those of a pass without gradient. `attached` is what the technique
    keeps beside the base: its parameters, and whatever else it holds.
    """

    base_layers: int
    exact: bool
    lines: tuple[Line, ...]
    forward_lines: tuple[Line, ...]
    attached: tuple[Polynomial, Polynomial]
    counted: Counted
    forward_counted: Counted

    def live_bytes(self, sizes: Mapping[str, float], layers: int, accumulating: bool = False) -> float:
        """The peak of what the step allocates beyond parameters, buffers and optimizer state, gradients included."""
        return sum(self.parts(sizes, layers, accumulating).values())

    def parts(self, sizes: Mapping[str, float], layers: int, accumulating: bool = False) -> dict[str, float]:
        """What is alive at the peak, in bytes.

        activations: kept by the forward pass for the backward pass. logits: a chunk of them and what is made of it.
        gradients: of the trained parameters. workspace: everything else.

        `accumulating`: the pass is not the step's first. All gradients are there from its beginning, and each new one
        stands beside them until it is added: at most as much as the largest.
        """
        if not accumulating:
            return self._peak(self.lines, sizes, layers)
        more = self._more(layers)
        moments = [line.parts(sizes, more) for line in self.lines]
        everything = max(parts["gradients"] for parts in moments)
        largest = max((value({m: c}, sizes) for line in self.lines for m, c in line.newest.items()), default=0.0)
        for parts in moments:
            parts["gradients"] = everything + min(parts["gradients"], largest)
        return max(moments, key=lambda parts: sum(parts.values()))

    def forward_bytes(self, sizes: Mapping[str, float], layers: int) -> float:
        """The peak of what a pass without gradient allocates."""
        return sum(self._peak(self.forward_lines, sizes, layers).values())

    def attached_bytes(self, sizes: Mapping[str, float], layers: int) -> float:
        """What the technique keeps beside the base: its parameters, and whatever else it holds."""
        base, slope = self.attached
        return value(base, sizes) + self._more(layers) * value(slope, sizes)

    def work(self, sizes: Mapping[str, float], layers: int) -> Work:
        """The work of a forward and backward pass."""
        return self.counted.work(sizes, self._more(layers))

    def forward_work(self, sizes: Mapping[str, float], layers: int) -> Work:
        """The work of a pass without gradient."""
        return self.forward_counted.work(sizes, self._more(layers))

    def _peak(self, lines: tuple[Line, ...], sizes: Mapping[str, float], layers: int) -> dict[str, float]:
        return max((line.parts(sizes, self._more(layers)) for line in lines), key=lambda parts: sum(parts.values()))

    def _more(self, layers: int) -> int:
        if self.exact and layers != self.base_layers:
            raise ValueError(f"this form holds for {self.base_layers} layers, not for {layers}; trace it again")
        return layers - self.base_layers

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "layers": self.base_layers,
            "exact": self.exact,
            "lines": [[line.base, line.slope] for line in self.lines],
            "forward_lines": [[line.base, line.slope] for line in self.forward_lines],
            "attached": list(self.attached),
            "counted": _counted_to_json(self.counted),
            "forward_counted": _counted_to_json(self.forward_counted),
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> StepForm:
        """What `to_json` gave."""
        return cls(
            base_layers=found["layers"],
            exact=found["exact"],
            lines=tuple(Line(*line) for line in found["lines"]),
            forward_lines=tuple(Line(*line) for line in found["forward_lines"]),
            attached=_pair(found["attached"]),
            counted=_counted_from_json(found["counted"]),
            forward_counted=_counted_from_json(found["forward_counted"]),
        )


def _counted_to_json(counted: Counted) -> list[Any]:
    products = [[list(count), m, k, n] for count, m, k, n in counted.products]
    return [products, list(counted.attention_flops), list(counted.moved_bytes), list(counted.operations)]


def _counted_from_json(found: list[Any]) -> Counted:
    products = tuple(((count[0], count[1]), m, k, n) for count, m, k, n in found[0])
    return Counted(products, _pair(found[1]), _pair(found[2]), _pair(found[3]))


def _pair(found: list[Polynomial]) -> tuple[Polynomial, Polynomial]:
    return found[0], found[1]


def value(polynomial: Polynomial, sizes: Mapping[str, Any]) -> Any:
    """The value of a polynomial at these sizes (numbers, or arrays of them)."""
    total: Any = 0.0
    for monomial, coefficient in polynomial.items():
        product: Any = coefficient
        for symbol in monomial.split("*") if monomial else ():
            product *= sizes[symbol]
        total += product
    return total


_TEMPLATE_COUNT = re.compile(r"\{p:(\d+)\}")
# What techniques take where nothing is said, as their own files have it.
VIRTUAL_TOKENS = 20


def sizes_of(shape: ModelShape, settings: Mapping[str, Any], batch: Pass, classes: int = 0) -> dict[str, float]:
    """The value of every size (see the module's docstring) for a model, a technique's settings, a pass, and the classes
    of a linear head."""
    positions = virtual_tokens(settings)
    encoder = settings.get("encoder_hidden") or (
        shape.embedding // 2 if settings.get("encoder", "lstm") == "lstm" else shape.embedding
    )
    rows, targets = float(batch.rows), float(batch.targets)
    chunk = min(targets, float(max(1, CHUNK_ELEMENTS // shape.vocabulary)))
    block = float(min(BLOCK_ROWS, batch.rows))
    blocks = float(batch.blocks if batch.blocks is not None else -(-batch.rows // BLOCK_ROWS))
    keys = float(batch.keys if batch.keys is not None else batch.pairs / block)
    widest = float(batch.widest if batch.widest is not None else min(2 * batch.pairs / rows, rows))
    gathered = min(widest, float(batch.gathered))
    met = widest + positions
    pairs = float(batch.pairs)
    return {
        "T": rows,
        "O": float(batch.rows if batch.own is None else batch.own),
        "U": targets,
        "C": chunk,
        "c": min(chunk, targets - chunk),
        "B": float(batch.examples),
        "l": rows / max(1, batch.examples),
        "d": float(shape.hidden),
        "f": float(mlp_width(shape)),
        "V": float(shape.vocabulary),
        "Y": float(classes),
        "q": float(shape.heads * shape.head_width),
        "kv": float(shape.kv_heads * shape.head_width),
        "H": float(shape.heads),
        "K": float(shape.kv_heads),
        "G": shape.heads / shape.kv_heads,
        "D": float(shape.head_width),
        "E": float(shape.embedding),
        "X": float(shape.experts),
        "w": float(shape.expert_width),
        "r": float(settings.get("rank", 0)),
        "P": float(positions),
        "e": float(encoder),
        "m": float(max(1, int(shape.hidden // float(settings.get("reduction", 1))))),
        "b": block,
        "k": widest,
        "N": blocks,
        "Ng": float(batch.gathering),
        "Z": float(shape.max_positions or 0),
        "g": gathered,
        "j": met,
        "R": rows - block,
        "Rp": max(0.0, pairs - block * widest),
        "Rg": batch.gathered - gathered,
        "Rj": max(0.0, pairs + rows * positions - block * met),
        "Rk": max(0.0, keys + blocks * positions - met),
        "pairs": pairs,
        "pairsP": pairs + rows * positions,
        "keys": keys,
        "keysP": keys + blocks * positions,
        "gathered": float(batch.gathered),
    }


def virtual_tokens(settings: Mapping[str, Any]) -> int:
    """P of a technique's settings; 0 where it has none."""
    template = settings.get("prompt_template")
    if template:
        return sum(map(int, _TEMPLATE_COUNT.findall(template)))
    if "virtual_tokens" not in settings:
        return 0
    return VIRTUAL_TOKENS if settings["virtual_tokens"] is None else int(settings["virtual_tokens"])


def mlp_width(shape: ModelShape) -> int:
    """f: what the MLP's last matrix reads; where there are experts alone, what an expert's does."""
    found = (site for site in shape.sites if site.role in ("mlp.down", "mlp.up", "mlp.gate"))
    site = next(found, None)
    if site is None:
        return shape.expert_width
    return site.in_features if site.role == "mlp.down" else site.out_features
