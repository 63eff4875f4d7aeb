"""Times this machine in a few seconds, once: how fast it multiplies, attends, moves bytes, and calls operations.

1. Matrix products of a training's shapes, each with a weight that is not in a cache. A `ProductTime` is fitted to them,
   by least squares on relative errors.
2. Attention on blocks of 128 rows with an additive mask, forward and backward.
3. Real training steps of small random llamas, from 24 to 720 rows. Products cost more there than alone (allocation,
   caches that others use); by how much, what a moved byte and what a call costs is fitted to the steps' times. So all
   that a step does besides is in these numbers, wherever it comes from.
4. The optimizer's step, with few large and many small tensors; and making a layer's weight out of 4 bits.

What is found lies in the user's cache folder, for each machine, device, number of threads and version of torch.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from heptune import techniques
from heptune.core.errors import HeptuneError
from heptune.core.events import Listener, Note, ignore
from heptune.engine.forward import Forward
from heptune.engine.loop import accumulate
from heptune.engine.memory import freed_memory_kept
from heptune.engine.optimizer import adamw
from heptune.engine.settings import Settings
from heptune.models.anatomy import dissect
from heptune.models.embedded import cache_folder
from heptune.models.quantization import QuantizedLinear, require_library
from heptune.planning.counting import WorkCounter
from heptune.planning.forms import Work
from heptune.planning.rates import UPDATE_BYTES, ProductTime, Rates
from heptune.runs.files import read_json, write_json
from heptune.tasks.example import Example

# Counts up whenever what is measured changes, so that older files are not used.
VERSION = 2


def calibrated(name: str, device: torch.device, dtype: str, *, again: bool, listener: Listener = ignore) -> Rates:
    """The rates of this machine, called `name`: from the cache, else (or `again`) timed now and kept there."""
    key = {
        "version": VERSION,
        "machine": name,
        "device": device.type,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    path = cached_path(key)
    if not again and (found := _cached(path, key)) is not None:
        return found
    listener(Note("timing this machine for a few seconds; the result is kept for the next time"))
    rates = measure(device, getattr(torch, dtype))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"key": key, "rates": rates.to_json()})
    except OSError as problem:
        listener(Note(f"the timing could not be kept in {path} ({problem}); it is done again the next time", "warning"))
    return rates


def cached_path(key: dict[str, Any]) -> Path:
    """Where the rates of a machine are kept."""
    words = (str(key[part]) for part in ("machine", "device", "threads", "torch"))
    return cache_folder() / "calibration" / (re.sub(r"[^A-Za-z0-9.+]+", "-", "-".join(words)) + ".json")


def _cached(path: Path, key: dict[str, Any]) -> Rates | None:
    try:
        found = read_json(path)
        return Rates.from_json(found["rates"]) if found["key"] == key else None
    except (HeptuneError, OSError, KeyError, TypeError):
        return None


def measure(device: torch.device, dtype: torch.dtype = torch.float32) -> Rates:
    """Times the machine now; see the module's docstring."""
    with freed_memory_kept(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        product = fit_products(_timed_products(device, dtype))
        attention_flops_s = _attention(device, dtype)
        moved_bytes_s, operation_s = _simple_operations(device, dtype)
        dequantized = _dequantized(device, dtype, moved_bytes_s)
        alone = Rates(product, attention_flops_s, moved_bytes_s, operation_s, moved_bytes_s, operation_s, dequantized)
        steps, updates = _steps(device, dtype)
        rates = fit_steps(alone, steps)
        update_bytes_s, update_tensor_s = fit_updates(updates)
        return replace(rates, update_bytes_s=update_bytes_s, update_tensor_s=update_tensor_s)


def _seconds(run: Callable[[], Any], device: torch.device, most_s: float = 0.006, least: int = 3) -> float:
    """The median time of a call, after one that does not count."""
    run()
    times: list[float] = []
    began = _now(device)
    while len(times) < least or (time.perf_counter() - began < most_s and len(times) < 12):
        start = _now(device)
        run()
        times.append(_now(device) - start)
    return statistics.median(times)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


# --- products ---------------------------------------------------------------------------------------------------------

# (m, k, n) and seconds.
TimedProduct = tuple[int, int, int, float]

# Elements of the store that weights are cut from, so that a weight was not used a moment ago: 128 MiB of float32.
_STORE = 1 << 25
_ROWS = (8, 32, 128, 512)
_WIDTHS = ((576, 576), (576, 192), (576, 1536), (1536, 576), (2048, 2048))
_HEAD = (576, 49152)
_RANK = 16
# Longer ones would take most of the time, and follow from the others.
_MOST = 512 * 1536 * 576


def _timed_products(device: torch.device, dtype: torch.dtype) -> list[TimedProduct]:
    store = torch.full((_STORE,), 0.01, device=device, dtype=dtype)
    place = 0

    def weight(rows: int, columns: int) -> torch.Tensor:
        nonlocal place
        if place + rows * columns > _STORE:
            place = 0
        found = store[place : place + rows * columns].view(rows, columns)
        place += rows * columns
        return found

    def filled(rows: int, columns: int) -> torch.Tensor:
        return torch.full((rows, columns), 0.5, device=device, dtype=dtype)

    def forward(m: int, k: int, n: int) -> TimedProduct:
        x = filled(m, k)
        return m, k, n, _seconds(lambda: x @ weight(n, k).T, device)

    def to_input(m: int, k: int, n: int) -> TimedProduct:
        y = filled(m, k)
        return m, k, n, _seconds(lambda: y @ weight(k, n), device)

    def to_weight(m: int, k: int, n: int) -> TimedProduct:
        y, x = filled(k, m), filled(k, n)
        return m, k, n, _seconds(lambda: y.T @ x, device)

    found = []
    for rows in _ROWS:
        for k, n in _WIDTHS:
            if rows * k * n <= _MOST:
                found += [forward(rows, k, n), to_input(rows, n, k)]
                found += [to_weight(n, rows, k)] if rows >= 128 else []
        for width in (576, 1536):
            found += [forward(rows, width, _RANK), forward(rows, _RANK, width)]
            found += [to_weight(_RANK, rows, width), to_weight(width, rows, _RANK)]
    for rows in (8, 64, 170):
        found += [forward(rows, *_HEAD), to_input(rows, *reversed(_HEAD))]
    return [*found, to_weight(_HEAD[1], 64, _HEAD[0])]


def fit_products(timed: Sequence[TimedProduct]) -> ProductTime:
    """The `ProductTime` with the least relative errors; far ones count less (Huber's weights)."""
    m, k, n, seconds = (np.array(column, dtype=float) for column in zip(*timed, strict=True))
    relative = np.stack([m * k * n, m * k, k * n, m * n, np.ones_like(m)], axis=1) / seconds[:, None]
    weight = np.ones(len(seconds))
    for _ in range(10):
        found = _non_negative(relative * weight[:, None], weight)
        weight = 1 / np.sqrt(np.maximum(np.abs(relative @ found - 1), 0.03))
    return ProductTime(*map(float, found))


def _non_negative(matrix: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The x >= 0 with the least |matrix x - wanted|. Columns are scaled to one length first."""
    from scipy.optimize import nnls

    scale = np.linalg.norm(matrix, axis=0)
    return nnls(matrix / scale, wanted)[0] / scale


# --- attention and single operations ----------------------------------------------------------------------------------


def _attention(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations per second, forward and backward, over blocks of 128 rows of grouped heads."""
    rates = []
    for kv_heads, groups, width, keys in ((3, 3, 64, 128), (3, 3, 64, 384), (12, 1, 64, 256)):
        query = torch.randn(1, kv_heads, groups * 128, width, device=device).to(dtype).requires_grad_()
        key, value = (torch.randn(1, kv_heads, keys, width, device=device).to(dtype).requires_grad_() for _ in "kv")
        mask = torch.zeros(1, 1, groups * 128, keys, device=device, dtype=dtype)

        def run(q: Any = query, k: Any = key, v: Any = value, mask: Any = mask) -> None:
            F.scaled_dot_product_attention(q, k, v, attn_mask=mask).sum().backward()

        rates.append(14 * query.numel() * keys / _seconds(run, device))
    return statistics.median(rates)


def _simple_operations(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Bytes per second of an addition of activations, and seconds of one of a few elements."""
    large = torch.randn(512, 1536, device=device).to(dtype)
    small = torch.randn(16, device=device).to(dtype)
    call = _seconds(lambda: [small + small for _ in range(50)], device) / 50
    return 3 * large.numel() * large.itemsize / _seconds(lambda: large + large, device, least=8), call


def _dequantized(device: torch.device, dtype: torch.dtype, moved_bytes_s: float) -> float:
    """Weights per second that are made out of 4 bits; where bitsandbytes is missing, what was usual beside moving."""
    try:
        require_library()
    except HeptuneError:
        return moved_bytes_s / _MOVED_FOR_A_WEIGHT
    layer = QuantizedLinear(nn.Linear(576, 1536).to(device=device, dtype=dtype))
    return 576 * 1536 / _seconds(layer.matrix, device)


# Bytes of an addition in the time of one weight: 6.5e8 weights and 2e11 bytes in a second on two cores.
_MOVED_FOR_A_WEIGHT = 300

# --- real steps -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TimedStep:
    """A pass and its time."""

    work: Work
    seconds: float


@dataclass(frozen=True)
class TimedUpdate:
    """An optimizer's step, with the clipping of gradients before it, and its time."""

    trainable: int
    tensors: int
    seconds: float


# Technique, hidden width, and rows of each pass. In the narrow model products weigh less beside all else.
_PASSES = (("lora", 576, (24, 112, 480)), ("full", 576, (112,)), ("lora", 192, (24, 720)))
_LAYERS = 4
_VOCABULARY = 8192
_TARGETS = 4


def _steps(device: torch.device, dtype: torch.dtype) -> tuple[list[TimedStep], list[TimedUpdate]]:
    """Passes and updates of a small random llama, timed; median of three after one that does not count."""
    steps, updates = [], []
    settings = Settings()
    for technique, width, sizes in _PASSES:
        anatomy = dissect(_small_llama(width, device, dtype))
        forward = Forward(anatomy)
        attached = techniques.build(technique).attach(anatomy, 0)
        parameters = attached.parameters
        optimizer = adamw(parameters, 0.0)
        for rows in sizes:
            examples = list(_examples(rows, _VOCABULARY))

            def run(forward: Any = forward, attached: Any = attached, examples: Any = examples) -> None:
                accumulate(forward, attached, examples, settings, 0)

            seconds = _seconds(run, device, most_s=0.0)
            with WorkCounter() as counter:
                run()
            steps.append(TimedStep(counter.work(), seconds))

        def update(parameters: Any = parameters, optimizer: Any = optimizer) -> None:
            torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            optimizer.step()

        seconds = _seconds(update, device, most_s=0.05)
        updates.append(TimedUpdate(sum(p.numel() for p in parameters.values()), len(parameters), seconds))
    return steps, updates


def _small_llama(width: int, device: torch.device, dtype: torch.dtype) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = width // 64
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=_LAYERS,
        num_attention_heads=heads,
        num_key_value_heads=heads // 3,
        vocab_size=_VOCABULARY,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).to(device=device, dtype=dtype).eval()


def _examples(rows: int, vocabulary: int) -> Iterator[Example]:
    """Examples of random tokens with about that many rows: 8, or fewer where they would be shorter than 12 tokens."""
    count = max(1, min(8, rows // 12))
    draw = np.random.default_rng(rows)
    for number in range(count):
        tokens = tuple(map(int, draw.integers(0, vocabulary, rows // count + 1)))
        yield Example(tokens, tuple(t >= len(tokens) - _TARGETS for t in range(len(tokens))), number)


def fit_steps(alone: Rates, steps: Sequence[TimedStep]) -> Rates:
    """The rates with which the steps' times come out best: how much more than alone products cost, and what a moved
    byte and a call cost. Each is drawn a little to what is usual, as few steps cannot tell them quite apart."""
    products = [sum(p.count * alone.product.seconds(p.m, p.k, p.n) for p in step.work.products) for step in steps]
    attention = [step.work.attention_flops / alone.attention_flops_s for step in steps]
    moved = [step.work.moved_bytes / alone.moved_bytes_s for step in steps]
    called = [step.work.operations * alone.operation_s for step in steps]
    seconds = np.array([step.seconds for step in steps])
    matrix = np.stack([products, moved, called], axis=1) / seconds[:, None]
    wanted = 1 - np.array(attention) / seconds
    drawn = _DRAWN * np.diag([1 / usual for usual in _USUAL])
    weight = np.ones(len(steps))
    for _ in range(10):  # a step that something else on the machine slowed counts less
        rows = np.concatenate([matrix * weight[:, None], drawn])
        found = _non_negative(rows, np.concatenate([wanted * weight, np.full(3, _DRAWN)]))
        weight = 1 / np.sqrt(np.maximum(np.abs(matrix @ found - wanted), 0.02) / 0.02)
    more, move, call = (max(float(cost), _LEAST) for cost in found)
    product = ProductTime(*(more * getattr(alone.product, name) for name in ProductTime.__dataclass_fields__))
    return replace(
        alone,
        product=product,
        moved_bytes_s=alone.moved_bytes_s / move,
        operation_s=alone.operation_s * call,
    )


# What products, moved bytes and calls cost in a step as a multiple of what they cost alone, where arrays are in the
# caches and nothing is recorded for a backward pass: on two cores, 14 steps gave 0.9 to 1.1, 4 to 12 and 11 to 20.
_USUAL = (1.0, 6.0, 14.0)
# How strongly the rates are drawn there, beside a step's relative error.
_DRAWN = 0.03
# Nothing costs less than this multiple.
_LEAST = 0.1


def fit_updates(updates: Sequence[TimedUpdate]) -> tuple[float, float]:
    """Bytes per second of the optimizer's step, and its seconds for each tensor."""
    seconds = np.array([update.seconds for update in updates])
    sizes = np.array([[update.trainable * UPDATE_BYTES, update.tensors] for update in updates])
    per_byte, per_tensor = _non_negative(sizes / seconds[:, None], np.ones(len(seconds)))
    return 1 / max(float(per_byte), 1e-13), float(per_tensor)
