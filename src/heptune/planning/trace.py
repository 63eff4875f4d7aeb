"""Reads the memory and the work of a training step off the real step, on tiny models, as formulas.

The real code runs: a model of the architecture, the technique attached to it, the forward pass over a forest, the
backward pass, the optimizer's step. Every storage that appears and disappears is followed, and every operation is
counted. That is done at three sets of sizes; as the same operations run in the same order in all of them, each storage
has three numbers of bytes, and of all products of sizes one has their ratios (see `planning/symbols.py`).

So the memory over time is known in symbols, and its local maxima are the lines of a `StepForm`. What each layer adds is
the difference between a model with one layer more and this one: the events of both are laid side by side from the
front and from the back, and what does not pair was the layer between.

Attention works in blocks of rows, whose number grows with the batch. A specimen has three blocks, each with its own
numbers of rows and keys. At any moment one is being worked on; of the others what is alive stands for all the others.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers import PretrainedConfig

from heptune import techniques
from heptune.engine import loss as loss_module
from heptune.engine.forward import Forward
from heptune.engine.headed import Headed
from heptune.engine.loop import accumulate
from heptune.engine.optimizer import adamw
from heptune.engine.settings import Settings
from heptune.models.anatomy import dissect
from heptune.models.attention import Block, Visibility
from heptune.models.blocks import BLOCK_ROWS
from heptune.models.quantization import quantize
from heptune.models.quiet import quiet
from heptune.models.readout import Readout
from heptune.planning.forms import CHUNK_ELEMENTS, Counted, Line, Polynomial, StepForm, value
from heptune.planning.live import LiveTracker, tensors_of
from heptune.planning.specimens import SPECIMENS, Sizes, specimen
from heptune.planning.symbols import Symbols
from heptune.tasks.example import WHOLE, Example

__all__ = ["LiveTracker", "tensors_of", "trace"]

# Tracing runs on a CPU: what a kernel of another device keeps for itself is not seen there either.
_FORWARD, _BACKWARD, _OPTIMIZER = "forward", "backward", "optimizer"
_PHASES = (_FORWARD, _BACKWARD, _OPTIMIZER)


@dataclass
class _Storage:
    size: int
    source: str
    phase: str
    died: str | None = None
    gradient: bool = False


@dataclass(frozen=True)
class _Call:
    """One operation that computes something: elements are told in bytes."""

    name: str
    read: tuple[int, ...]
    made: tuple[int, ...]
    product: tuple[int, int, int, int] | None  # how often, m, k, n
    attention: int  # floating point operations of attention's kernel


@dataclass
class _Recording:
    """What happened in order: ('+', storage, phase), ('-', storage, phase), ('call', index, phase)."""

    storages: list[_Storage] = field(default_factory=list)
    calls: list[_Call] = field(default_factory=list)
    events: list[tuple[str, int, str]] = field(default_factory=list)


class _Recorder(LiveTracker):
    """Writes down what a `LiveTracker` sees."""

    def __init__(self, known: Sequence[torch.Tensor]) -> None:
        self.recording = _Recording()
        self.phase = _FORWARD
        super().__init__(known)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if torch._C._current_autograd_node() is not None:
            self.phase = _BACKWARD
        elif self.phase == _BACKWARD:
            self.phase = _OPTIMIZER
        return super().__torch_dispatch__(func, types, args, kwargs)

    def allocated(self, number: int, size: int, source: str) -> None:
        self.recording.storages.append(_Storage(size, source, self.phase))
        if source != "known":
            self.recording.events.append(("+", number, self.phase))

    def freed(self, number: int) -> None:
        self.recording.storages[number].died = self.phase
        if self.recording.storages[number].source != "known":
            self.recording.events.append(("-", number, self.phase))

    def called(self, func: Any, given: list[torch.Tensor], made: list[torch.Tensor]) -> None:
        # The optimizer's step is one for all passes of a step, and counted apart (see `planning/time.py`).
        if func.is_view or str(func).startswith("profiler.") or self.phase == _OPTIMIZER:
            return
        name = str(func)
        read, wrote = (tuple(t.numel() * t.itemsize for t in group) for group in (given, made))
        self.recording.calls.append(_Call(name, read, wrote, _product(name, given), _attention(name, given)))
        self.recording.events.append(("call", len(self.recording.calls) - 1, self.phase))

    def mark_gradients(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        for parameter in parameters.values():
            if parameter.grad is not None:
                self.recording.storages[self._see(parameter.grad, "read")].gradient = True


def _product(name: str, given: list[torch.Tensor]) -> tuple[int, int, int, int] | None:
    kind = name.removeprefix("aten.").partition(".")[0]
    if kind in ("mm", "bmm", "_grouped_mm"):
        left, right = given[0], given[1]
    elif kind in ("addmm", "addmm_", "baddbmm", "baddbmm_"):
        left, right = given[1], given[2]
    else:
        return None
    count = left.shape[0] if left.ndim == 3 and kind != "_grouped_mm" else 1
    return count, left.shape[-2], left.shape[-1], right.shape[-1]


def _attention(name: str, given: list[torch.Tensor]) -> int:
    if "scaled_dot_product" not in name:
        return 0
    query, key = (given[1], given[2]) if "backward" in name else (given[0], given[1])
    # A multiplication and an addition each, in two products forward and five backward (the scores are made again).
    return (10 if "backward" in name else 4) * query.numel() * key.shape[-2]


@dataclass(frozen=True)
class _Specimens:
    """The same run at every set of sizes."""

    recordings: tuple[_Recording, ...]
    symbols: Symbols


def trace(
    architecture: str | PretrainedConfig,
    technique: str,
    settings: Mapping[str, Any] | None = None,
    *,
    dtype: str = "float32",
    recompute: bool = False,
    quantized: bool = False,
    tied: bool | None = None,
    layers: int | None = None,
    head: str = "",
) -> StepForm:
    """The form of a technique on an architecture: transformers' model type, or a configuration.

    `dtype`: the type of the base's weights. `tied`: whether the head is the embedding; None: as the configuration says.
    `layers`: the base's number of layers, where settings name layers one by one; the form holds for that number alone.
    `head`: where a linear head looks; see `book.Variant`.
    """
    run = _Run(architecture, technique, dict(settings or {}), getattr(torch, dtype), recompute, quantized, tied, head)
    few = layers if layers is not None else run.base_layers()
    training, scoring, kept = run.record(few)
    if layers is not None:
        nothing: Polynomial = {}
        return StepForm(
            base_layers=few,
            exact=True,
            lines=_lines(training, training),
            forward_lines=_lines(scoring, scoring),
            attached=(kept, nothing),
            counted=_counted(training, training, None, few),
            forward_counted=_counted(scoring, scoring, None, few),
        )
    more_training, more_scoring, more_kept = run.record(few + 1)
    fewer_training, fewer_scoring, _ = run.record(few, blocks=2)
    training_pieces, scoring_pieces = zip(*map(run.operations_in_one_piece, (few, few + 1)), strict=True)
    return StepForm(
        base_layers=few,
        exact=False,
        lines=_lines(training, more_training),
        forward_lines=_lines(scoring, more_scoring),
        attached=(kept, _minus(more_kept, kept)),
        counted=_counted(training, more_training, (fewer_training, training_pieces), few),
        forward_counted=_counted(scoring, more_scoring, (fewer_scoring, scoring_pieces), few),
    )


@dataclass(frozen=True)
class _Run:
    architecture: str | PretrainedConfig
    technique: str
    settings: dict[str, Any]
    dtype: torch.dtype
    recompute: bool
    quantized: bool
    tied: bool | None
    head: str

    def base_layers(self) -> int:
        """L0: two, or more where the settings count layers from the top."""
        counted = self.settings.get("layers", getattr(techniques.get(self.technique), "layers", None))
        return counted + 1 if isinstance(counted, int) else 2

    def record(self, layers: int, blocks: int = 3) -> tuple[_Specimens, _Specimens, Polynomial]:
        """A training step, a pass without gradient, and what the technique keeps beside the base."""
        with _one_thread():
            each = [self._record(sizes, layers, blocks) for sizes in SPECIMENS]
        symbols = _symbols([sizes for *_, sizes in each])
        training, scoring = tuple(found[0] for found in each), tuple(found[1] for found in each)
        total: Polynomial = {}
        for sizes in zip(*(found[2] for found in each), strict=True):
            total = _plus(total, _identify(symbols, sizes))
        return _Specimens(training, symbols), _Specimens(scoring, symbols), total

    def operations_in_one_piece(self, layers: int) -> tuple[int, int]:
        """How many operations a training step and a pass without gradient call where there are two attention blocks and
        the keys of both stand in one piece."""
        with _one_thread():
            training, scoring, *_ = self._record(SPECIMENS[0], layers, 2, gathered=False)
        return len(training.calls), len(scoring.calls)

    def _record(
        self, sizes: Sizes, layers: int, blocks: int, gathered: bool = True
    ) -> tuple[_Recording, _Recording, list[int], dict[str, int]]:
        model = specimen(self.architecture, sizes, layers, self.dtype, self.tied)
        anatomy = dissect(model)
        technique = techniques.build(self.technique, self._sized(sizes, anatomy.shape.hidden))
        if self.quantized or "quantizes_base" in technique.capabilities:
            quantize(anatomy)
        with quiet():
            forward = Forward(anatomy, self.recompute)
        with quiet(), _Recorder(tensors_of(model)) as attaching:
            attached = technique.attach(anatomy, 0)
        kept = [s.size for s in attaching.recording.storages if s.died is None and s.source not in ("known", "read")]
        placement = anatomy.placement
        if self.head:
            forward.readout = Readout(anatomy, sizes.Y, False, 0)
            kept += [parameter.nbytes for parameter in forward.readout.parameters()]
            attached = Headed(attached, forward.readout)
            examples = _marked_examples(sizes, blocks, placement.front + placement.inner, self.head)
        else:
            virtual = placement.front + sizes.B * placement.inner
            examples = _examples(sizes, blocks, virtual, forward.attends_over_forests)
        optimizer = adamw(attached.parameters, 0.0)
        settings = Settings(micro_tokens=10**6)

        def step(recorder: _Recorder | None) -> None:
            accumulate(forward, attached, examples, settings, 0)
            if recorder is not None:
                recorder.mark_gradients(attached.parameters)
            torch.nn.utils.clip_grad_norm_(attached.parameters.values(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        with _cut_as(sizes, blocks, gathered):
            step(None)
            state = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
            known = [*tensors_of(model), *attached.parameters.values(), *state]
            with _Recorder(known) as training:
                step(training)
            attached.begin_step(None)
            with _Recorder(known) as scoring, torch.no_grad():
                forward.score(examples)
        found = _values(sizes, anatomy.shape, blocks, placement, forward.attends_over_forests)
        if self.head:
            own = sum(len(example.tokens) for example in examples)
            found |= {"O": own, "Y": sizes.Y, "U": sum(len(example.marks) for example in examples)}
        return training.recording, scoring.recording, kept, found

    def _sized(self, sizes: Sizes, hidden: int) -> dict[str, Any]:
        """The settings with the specimen's sizes in place of their own."""
        kind = techniques.get(self.technique)
        own: dict[str, float] = {"rank": sizes.r, "virtual_tokens": sizes.P, "encoder_hidden": sizes.e}
        own["reduction"] = hidden / (sizes.m + 0.5)
        found = {**self.settings, **{name: new for name, new in own.items() if hasattr(kind, name)}}
        template = str(self.settings.get("prompt_template", ""))
        if "{p:" in template:
            parts = template.count("{p:")
            counts = iter([sizes.P] if parts == 1 else [sizes.P - 3, 3])
            text = template
            for piece in [p for p in template.split("{") if p.startswith("p:")]:
                text = text.replace("{" + piece.split("}")[0] + "}", f"<p:{next(counts)}>", 1)
            found["prompt_template"] = text.replace("<p:", "{p:").replace(">", "}")
        found.pop("start_from", None)
        found.pop("init_text", None)
        if "init_text" in self.settings and self.settings.get("init") == "text":
            found["init"] = "vocabulary"
        return found


@contextmanager
def _one_thread() -> Iterator[None]:
    """Threads of so small a model only wait for each other: on busy cores a trace of a second took minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _rows(sizes: Sizes, blocks: int) -> int:
    return sum(sizes.blocks[:blocks])


def _examples(sizes: Sizes, blocks: int, virtual: int, forest: bool) -> list[Example]:
    """Examples with `_rows` rows in a forest, virtual tokens in front included; and with U = C + c targets."""
    targets = [(sizes.C + sizes.c) // sizes.B] * sizes.B
    lengths = [sizes.l] * sizes.B
    if forest:
        rows = _rows(sizes, blocks) - virtual
        lengths = [rows // sizes.B] * sizes.B
        lengths[-1] += rows - sum(lengths)
    targets[-1] += sizes.C + sizes.c - sum(targets)
    draw = np.random.default_rng(0)
    examples = []
    for number, (length, supervised) in enumerate(zip(lengths, targets, strict=True)):
        tokens = (number, *map(int, draw.integers(sizes.B, sizes.V, length)))  # one behind the last row: a target
        if supervised > length:
            raise AssertionError(f"a specimen's example has {length} rows and {supervised} targets")
        examples.append(Example(tokens, tuple(t > length - supervised for t in range(length + 1)), number))
    return examples


def _marked_examples(sizes: Sizes, blocks: int, virtual: int, head: str) -> list[Example]:
    """Examples with `_rows` rows, each one's virtual tokens included; with U = C + c marks, or one mark each."""
    own = _rows(sizes, blocks) - sizes.B * virtual
    lengths = [own // sizes.B] * sizes.B
    lengths[-1] += own - sum(lengths)
    marks = [(sizes.C + sizes.c) // sizes.B] * sizes.B
    marks[-1] += sizes.C + sizes.c - sum(marks)
    examples = []
    for number, (length, count) in enumerate(zip(lengths, marks, strict=True)):
        tokens = tuple(2 + (number + t) % (sizes.V - 2) for t in range(length))
        places = [WHOLE] if head == "means" else [t % length for t in range(count)]
        examples.append(Example.marked(tokens, tuple((place, number % sizes.Y) for place in places), number))
    return examples


@contextmanager
def _cut_as(sizes: Sizes, blocks: int, gathered: bool) -> Iterator[None]:
    """Attention and the loss are cut into blocks and chunks of the specimen's sizes. Keys are those of a forest with a
    shared root: those of the first block in one piece, the others `gathered`. Which row sees which changes no size."""
    rows = _rows(sizes, blocks)

    def own_blocks(self: Visibility, window: int | None = None) -> list[Block]:
        if window not in self._blocks:
            found, start = [], 0
            for number, (count, keys) in enumerate(zip(sizes.blocks[:blocks], sizes.keys[:blocks], strict=True)):
                chosen = torch.arange(keys) % rows if gathered and number else slice(0, keys)
                found.append(Block(start, start + count, chosen, torch.ones(count, keys, dtype=torch.bool)))
                start += count
            self._blocks[window] = found
        return self._blocks[window]

    with (
        mock.patch.object(Visibility, "blocks", own_blocks),
        mock.patch.object(loss_module, "CHUNK_ELEMENTS", sizes.C * sizes.V),
    ):
        yield


def _values(sizes: Sizes, shape: Any, blocks: int, placement: Any, forest: bool) -> dict[str, int]:
    found = {
        "T": _rows(sizes, blocks) if forest else sizes.B * sizes.l,
        "U": sizes.C + sizes.c,
        "C": sizes.C,
        "c": sizes.c,
        "B": sizes.B,
        "P": sizes.P,
        "d": shape.hidden,
        "q": shape.heads * shape.head_width,
        "kv": shape.kv_heads * shape.head_width,
        "f": sizes.f,
        "H": shape.heads,
        "K": shape.kv_heads,
        "D": shape.head_width,
        "V": sizes.V,
        "r": sizes.r,
        "m": sizes.m,
        "e": sizes.e,
        "G": shape.heads // shape.kv_heads,
        "E": shape.embedding,
        "X": sizes.X,
        "w": sizes.w,
        "Z": sizes.Z,
    }
    if not forest:
        return {**found, "l": sizes.l}
    for i in range(blocks):
        found |= {f"b{i}": sizes.blocks[i], f"k{i}": sizes.keys[i], f"j{i}": sizes.keys[i] + sizes.P}
    return found


_ROW_SYMBOLS = ("T", "O", "U", "C", "c", "B", "P", "l", *(f"{s}{i}" for i in range(3) for s in "bkj"))


def _symbols(values: Sequence[dict[str, int]]) -> Symbols:
    columns = {name: [found[name] for found in values] for name in values[0]}
    rows = {name: column for name, column in columns.items() if name in _ROW_SYMBOLS}
    return Symbols(rows, {name: column for name, column in columns.items() if name not in rows})


def _identify(symbols: Symbols, counts: Sequence[int]) -> Polynomial:
    found = symbols.find(counts)
    return found if found is not None else symbols.nearest(counts)


# --- memory: from recordings to lines -------------------------------------------------------------------------------

_Raw = dict[str, dict[str, float]]  # part -> polynomial, blocks still told apart: 'b1', 'k1'


@dataclass(frozen=True)
class _Moment:
    """What is alive at one event. `active`: the attention block that is being worked on, if any ever was."""

    alive: _Raw
    active: int | None
    highest: bool  # something is freed next


@dataclass(frozen=True)
class _Timeline:
    """By phase: the moments, and each event's kind and monomials, by which runs are laid side by side."""

    moments: dict[str, list[_Moment]]
    signatures: dict[str, list[tuple[str, ...]]]


def _timeline(run: _Specimens) -> _Timeline:
    first, *others = run.recordings
    if any(r.events != first.events for r in others):
        raise AssertionError("the same step ran differently at other sizes")
    sizes = [_storage_size(run, i) for i in range(len(first.storages))]
    parts = [_part(first.storages[i], sizes[i]) for i in range(len(sizes))]
    moments: dict[str, list[_Moment]] = defaultdict(list)
    signatures: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    alive: dict[str, dict[str, float]] = {}
    active: int | None = None
    events = [event for event in first.events if event[0] != "call"]
    for place, (kind, number, phase) in enumerate(events):
        sign = 1 if kind == "+" else -1
        if kind == "+":
            active = next((block for m in sizes[number] for block in [_block(m)] if block is not None), active)
        own = dict(alive.get(parts[number], {}))
        for monomial, coefficient in sizes[number].items():
            own[monomial] = own.get(monomial, 0.0) + sign * coefficient
            if abs(own[monomial]) < 1e-9:
                del own[monomial]
        alive = {**alive, parts[number]: own}
        highest = kind == "+" and (place + 1 == len(events) or events[place + 1][0] == "-")
        moments[phase].append(_Moment(alive, active, highest))
        signatures[phase].append((kind, *sorted(sizes[number])))
    return _Timeline(moments, signatures)


def _storage_size(run: _Specimens, number: int) -> Polynomial:
    found = _identify(run.symbols, [r.storages[number].size for r in run.recordings])
    if "index_select" in run.recordings[0].storages[number].source:
        found = {
            "*".join(f"g{s[1:]}" if s[0] == "k" and s[1:].isdigit() else s for s in m.split("*")): c
            for m, c in found.items()
        }
    return found


def _part(storage: _Storage, size: Polynomial) -> str:
    if storage.gradient:
        return "gradients"
    symbols = {symbol for monomial in size for symbol in monomial.split("*")}
    if ("V" in symbols and symbols & {"C", "c", "U", "T"}) or ("Y" in symbols and symbols & {"U", "B"}):
        return "logits"
    if storage.phase == _FORWARD and storage.died not in (_FORWARD, None):
        return "activations"
    return "workspace"


def _block(monomial: str) -> int | None:
    return next((int(s[1:]) for s in monomial.split("*") if s[0:1] in "bkjg" and s[1:].isdigit()), None)


# What stands for the sums over all blocks but the active one.
_OTHERS = {("b", "k"): "Rp", ("b", "j"): "Rj", ("b",): "R", ("g",): "Rg", ("j",): "Rk", ("k",): "k", ("b", "g"): "Rp"}
_ALL = {
    ("b", "k"): ("pairs",),
    ("b", "j"): ("pairsP",),
    ("b",): ("T",),
    ("g",): ("g", "Rg"),
    ("j",): ("keysP",),
    ("k",): ("keys",),
    ("b", "g"): ("pairs",),
}


def _split(monomial: str) -> tuple[tuple[str, ...], list[str]]:
    """The block's own symbols without its number, and the others."""
    symbols = monomial.split("*") if monomial else []
    own = tuple(sorted(s[0] for s in symbols if s[0] in "bkjg" and s[1:].isdigit()))
    return own, [s for s in symbols if not (s[0] in "bkjg" and s[1:].isdigit())]


def _seen_from(raw: Polynomial, active: int, giant: int) -> Polynomial:
    """A polynomial with `active` as the one block that is worked on and `giant` in the place of all others."""
    found: Polynomial = {}
    for monomial, coefficient in raw.items():
        block = _block(monomial)
        name = monomial
        if block is not None:
            own, rest = _split(monomial)
            if block not in (active, giant):
                continue
            inside = list(own) if block == active else [_OTHERS.get(own, "*".join(own))]
            name = "*".join(sorted([*inside, *rest]))
        else:
            name = "*".join(sorted(monomial.split("*")))
        found[name] = found.get(name, 0.0) + coefficient
    return _joined(found)


# What the active block and all others have alike is told by the sums over all of them.
_SUMS = {"R": (["b"], "T"), "Rp": (["b", "k"], "pairs"), "Rj": (["b", "j"], "pairsP"), "Rg": (["g"], "gathered")}
_SUMS["Rk"] = (["j"], "keysP")


def _joined(found: Polynomial) -> Polynomial:
    for monomial in list(found):
        symbols = monomial.split("*")
        for others, (own, total) in _SUMS.items():
            if others in symbols:
                rest = [s for s in symbols if s != others]
                active = "*".join(sorted([*rest, *own]))
                common = min(found[monomial], found.get(active, 0.0))
                if common > 0:
                    found[monomial] -= common
                    found[active] -= common
                    name = "*".join(sorted([*rest, total]))
                    found[name] = found.get(name, 0.0) + common
    return {m: c for m, c in found.items() if abs(c) > 1e-9}


def _lines(few: _Specimens, more: _Specimens) -> tuple[Line, ...]:
    """The moments of a step that may be its peak, none of which is below another in every coefficient."""
    short = _timeline(few)
    long = short if more is few else _timeline(more)
    found: list[Line] = []
    for phase in _PHASES:
        ours, theirs = short.moments[phase], long.moments[phase]
        front = _common(short.signatures[phase], long.signatures[phase])
        back = _common(short.signatures[phase][::-1], long.signatures[phase][::-1])
        shift = len(theirs) - len(ours)
        for place, moment in enumerate(ours):
            if not moment.highest:
                continue
            pairs = {place} if place < front else set()
            pairs |= {place + shift} if len(ours) - place <= back else set()
            for other in pairs:
                found += _lines_of(moment, theirs[other])
    return _undominated(found)


def _common(a: Sequence[Any], b: Sequence[Any]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _lines_of(short: _Moment, long: _Moment) -> Iterator[Line]:
    blocks = {block for part in short.alive.values() for m in part for block in [_block(m)] if block is not None}
    actives = [short.active] if short.active is not None else sorted(blocks) or [0]
    for active in actives:
        for giant in sorted(blocks - {active}) or [active]:
            base = {part: _seen_from(raw, active, giant) for part, raw in short.alive.items()}
            long_active = long.active if long.active is not None else active
            far = {part: _seen_from(raw, long_active, giant) for part, raw in long.alive.items()}
            slope = {part: _minus(far.get(part, {}), base.get(part, {})) for part in {*base, *far}}
            yield Line(_without_empty(base), _without_empty(slope))


def _without_empty(parts: _Raw) -> _Raw:
    return {part: polynomial for part, polynomial in sorted(parts.items()) if polynomial}


def _undominated(lines: list[Line]) -> tuple[Line, ...]:
    """The fewest lines that reach the maximum of all, to `_NEAR`, wherever `_plausible` sizes lie."""
    sizes, more = _plausible()
    values = np.array([value(_total(line.base), sizes) + more * value(_total(line.slope), sizes) for line in lines])
    wanted = values.max(0) * (1 - _NEAR)
    missing = np.ones(len(more), dtype=bool)
    kept: list[int] = []
    while missing.any():
        reached = values >= wanted
        best = int((reached & missing).sum(1).argmax())
        kept.append(best)
        missing &= ~reached[best]
    # The moment with all gradients is never the peak where they are small; what they are in full is known by it alone.
    own = np.array([_part_values(line, "gradients", sizes, more) for line in lines])
    fullest = int(own.sum(1).argmax())
    return tuple(lines[i] for i in dict.fromkeys([*kept, fullest]))


def _part_values(line: Line, part: str, sizes: dict[str, Any], more: np.ndarray) -> np.ndarray:
    found = value(line.base.get(part, {}), sizes) + more * value(line.slope.get(part, {}), sizes)
    return np.broadcast_to(found, more.shape)


# How far the kept lines may stay below the peak, and at how many combinations of sizes that is looked at.
_NEAR, _SAMPLES = 5e-3, 4000


@cache
def _plausible() -> tuple[dict[str, Any], np.ndarray]:
    """Sizes of models (down to those of tests), techniques and batches as they occur, and the layers beyond L0."""
    draw = np.random.default_rng(0)

    def between(low: float, high: float) -> np.ndarray:
        return np.exp(draw.uniform(np.log(low), np.log(high), _SAMPLES)).round()

    rows, examples = between(8, 16384), between(1, 64)
    d, kv_heads, groups = between(16, 8192), between(1, 16), between(1, 12)
    width = 2 * between(4, 128)
    block = np.minimum(BLOCK_ROWS, rows)
    blocks = np.ceil(rows / block)
    widest = np.maximum(block, (rows * draw.uniform(0, 1, _SAMPLES)).round())
    keys = np.where(blocks > 1, widest * (1 + (blocks - 1) * draw.uniform(0.4, 1, _SAMPLES)), widest)
    gathered = np.where(draw.uniform(0, 1, _SAMPLES) < 0.5, 0, keys - block)
    positions = between(1, 200)
    vocabulary = between(100, 260000)
    targets = np.maximum(1, (rows * draw.uniform(0, 1, _SAMPLES)).round())
    chunk = np.minimum(targets, np.maximum(1, CHUNK_ELEMENTS // vocabulary))
    g, met = np.minimum(widest, gathered), widest + positions
    classes = np.random.default_rng(1).integers(2, 200, _SAMPLES)
    return {
        "T": rows,
        "O": np.maximum(examples, rows - examples * positions),
        "U": targets,
        "C": chunk,
        "c": np.minimum(chunk, targets - chunk),
        "B": examples,
        "l": rows / examples,
        "d": d,
        "f": (d * draw.uniform(1, 8, _SAMPLES)).round(),
        "V": vocabulary,
        "Y": classes,
        "q": kv_heads * groups * width,
        "kv": kv_heads * width,
        "H": kv_heads * groups,
        "K": kv_heads,
        "G": groups,
        "D": width,
        "E": d,
        "X": between(2, 256),
        "w": between(256, 16384),
        "r": between(1, 256),
        "P": positions,
        "e": between(16, 4096),
        "m": np.maximum(1, d // between(1, 64)),
        "b": block,
        "k": widest,
        "N": blocks,
        "Ng": np.where(gathered > 0, blocks - 1, 0),
        "Z": between(512, 131072),
        "g": g,
        "j": met,
        "R": rows - block,
        "Rp": block * (keys - widest),
        "Rg": gathered - g,
        "Rj": block * (keys + blocks * positions - met),
        "Rk": keys + blocks * positions - met,
        "pairs": block * keys,
        "pairsP": block * (keys + blocks * positions),
        "gathered": gathered,
        "keysP": keys + blocks * positions,
    }, between(1, 100) - 1


def _total(parts: _Raw) -> Polynomial:
    found: Polynomial = {}
    for polynomial in parts.values():
        found = _plus(found, polynomial)
    return found


def _plus(a: Polynomial, b: Polynomial, factor: float = 1.0) -> Polynomial:
    found = {m: a.get(m, 0.0) + factor * b.get(m, 0.0) for m in {**a, **b}}
    return {m: c for m, c in found.items() if abs(c) > 1e-9}


def _minus(a: Polynomial, b: Polynomial) -> Polynomial:
    return _plus(a, b, -1.0)


# --- work: from recordings to counts --------------------------------------------------------------------------------


@dataclass
class _Tally:
    """Everything that a run computes."""

    products: Counter[str] = field(default_factory=Counter)
    shapes: dict[str, tuple[Polynomial, Polynomial, Polynomial]] = field(default_factory=dict)
    attention: Polynomial = field(default_factory=dict)
    of_blocks: Polynomial = field(default_factory=dict)  # moved bytes that are told by a block's sizes
    moved: Polynomial = field(default_factory=dict)
    operations: int = 0


def _tally(run: _Specimens) -> _Tally:
    found = _Tally()
    for calls in zip(*(r.calls for r in run.recordings), strict=True):
        found.operations += 1
        if calls[0].attention:
            found.attention = _plus(found.attention, _over_blocks(_identify(run.symbols, [c.attention for c in calls])))
        elif calls[0].product is not None:
            _add_product(found, run.symbols, [c.product for c in calls if c.product is not None])
        else:
            for tensors in (zip(*(c.read for c in calls), strict=True), zip(*(c.made for c in calls), strict=True)):
                for counts in tensors:
                    raw = _identify(run.symbols, counts)
                    own = {m: c for m, c in raw.items() if _block(m) is not None}
                    found.of_blocks = _plus(found.of_blocks, _over_blocks(own))
                    found.moved = _plus(found.moved, _minus(raw, own))
    return found


def _add_product(found: _Tally, symbols: Symbols, products: list[tuple[int, int, int, int]]) -> None:
    shape = [_identify(symbols, column) for column in list(zip(*products, strict=True))[1:]]
    if any("c" in m.split("*") for side in shape for m in side):
        return
    shape = [_over_chunks(side) for side in shape]
    if len({count for count, *_ in products} | {1}) > 1 or any(_block(m) is not None for side in shape for m in side):
        flops = _identify(symbols, [2 * count * m * k * n for count, m, k, n in products])
        found.attention = _plus(found.attention, _over_blocks(flops))
        return
    name = repr(shape)
    found.products[name] += 1
    found.shapes[name] = (shape[0], shape[1], shape[2])


def _over_chunks(raw: Polynomial) -> Polynomial:
    """The sum over all chunks of logits, from what the first one has."""
    found: Polynomial = {}
    for monomial, coefficient in raw.items():
        symbols = monomial.split("*")
        if "c" not in symbols:
            found = _plus(found, {"*".join("U" if s == "C" else s for s in symbols): coefficient})
    return found


def _over_blocks(raw: Polynomial) -> Polynomial:
    """The sum over all blocks, from what the middle one has."""
    found: Polynomial = {}
    for monomial, coefficient in raw.items():
        block = _block(monomial)
        own, rest = _split(monomial)
        if block not in (None, 1):
            continue
        for total in _ALL.get(own, ("*".join(own),)) if block is not None else ("",):
            name = "*".join(sorted(s for s in (total, *rest) if s))
            found = _plus(found, {name: coefficient})
    return found


def _counted(
    few: _Specimens, more: _Specimens, fewer: tuple[_Specimens, tuple[int, int]] | None, layers: int
) -> Counted:
    """`fewer`: the run with two blocks instead of three, and how many operations two blocks have with all keys in one
    piece, with as many layers and with one more."""
    short = _tally(few)
    long = short if more is few else _tally(more)
    less = short if fewer is None else _tally(fewer[0])
    each = Counter(long.products)
    each.subtract(short.products)
    shapes = {**long.shapes, **short.shapes}
    products = tuple(
        ((float(short.products[name]), float(each[name])), *shapes[name]) for name in sorted(shapes, key=str)
    )
    # All work in blocks is done in layers, so a further layer has its share of what a further block adds.
    per_block = _minus(short.moved, less.moved)
    moved = _over_chunks(_plus(short.of_blocks, _with_blocks(short.moved, per_block)))
    moved_slope = _plus(
        _minus(long.of_blocks, short.of_blocks),
        _with_blocks(_minus(long.moved, short.moved), {m: c / layers for m, c in per_block.items()}),
    )
    called, called_slope = _called(short.operations, long.operations, less.operations, fewer and fewer[1], layers)
    return Counted(
        products,
        (short.attention, _minus(long.attention, short.attention)),
        (moved, moved_slope if more is not few else {}),
        (called, called_slope if more is not few else {}),
    )


def _called(
    short: int, long: int, less: int, pieces: tuple[int, int] | None, layers: int
) -> tuple[Polynomial, Polynomial]:
    """How many operations are called: alone + N * plain + Ng * copying, and the same of each further layer.

    `short` and `long` have three blocks, two of them gathering, `less` has one of each kind; `pieces`, two that do not
    gather. Copying is done in every layer; a block's mask is made once for all of them.
    """
    if pieces is None:
        return {"": float(short)}, {"": float(long - short)}
    copying = float(less - pieces[0])
    plain = short - less - copying
    more = float(long - short)
    in_layer = more - (pieces[1] - pieces[0]) - 2 * copying / layers
    called = {"": short - 3 * plain - 2 * copying, "N": plain, "Ng": copying}
    return called, {"": more - 3 * in_layer - 2 * copying / layers, "N": in_layer, "Ng": copying / layers}


def _with_blocks(counted: Polynomial, per_block: Polynomial) -> Polynomial:
    """What three blocks need, and `per_block` for each further one."""
    more = {"*".join(sorted(["N", *(m.split("*") if m else [])])): c for m, c in per_block.items()}
    return _plus(_plus(counted, per_block, -3.0), more)
