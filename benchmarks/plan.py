"""The planner put to the test: predicted against measured memory and time of training steps.

    python benchmarks/plan.py --threads 2

Every combination of model, technique and batch is one process: some real optimizer steps as in a training, then (not
timed) one more that a tracker follows. Before and after it the machine is timed as the planner does it, and the mean of
both predictions counts: what a shared machine gives changes within seconds. Three things are predicted without running
anything, and compared:

    live        bytes of all tensors at the peak of a step: the tracker's; on a GPU torch's own count
    resident    the process's resident memory at the peak, by the kernel's count (not on a GPU)
    time        seconds of an optimizer step: the median of at least three, after one that does not count

What is done is kept in docs/results/plan.json after each combination, and not done again without --again: interrupted,
the program goes on where it was. Predictions are made anew in each call, with the rates that were timed when the
combination was measured. `--only memory` or `--only time` measures one kind alone. On Linux it is also kept how many
cores other processes took meanwhile; what they took more than `--quiet` cores from is measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from heptune import techniques
from heptune.core.units import format_seconds
from heptune.models.embedded import fetch
from heptune.planning import book
from heptune.planning.book import Variant
from heptune.planning.forms import Pass, StepForm, sizes_of
from heptune.planning.hardware import Machine
from heptune.planning.memory import resident_bytes, training_memory
from heptune.planning.time import dequantized_weights, step_seconds
from heptune.planning.workload import marked_pass
from heptune.runs.files import read_json, write_json
from heptune.tasks.example import WHOLE, Example

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "plan.json"
QUANTITIES = {"memory": ("live", "resident"), "time": ("time",)}
SEED = 20_240_607


@dataclass(frozen=True)
class Batch:
    """`examples` of `own` tokens each behind `shared` ones that all have; the last `supervised` are targets. Or a
    linear head looks at their `head`: 'means', or 'rows' (every token)."""

    examples: int
    own: int
    supervised: int
    shared: int = 0
    head: str = ""

    def make(self, vocabulary: int) -> list[Example]:
        """Random token ids: time and memory depend on lengths alone."""
        random = np.random.Generator(np.random.Philox(SEED))
        shared = random.integers(100, vocabulary, self.shared)
        made = []
        for number in range(self.examples):
            tokens = tuple(map(int, [*shared, *random.integers(100, vocabulary, self.own)]))
            if self.head:
                places = [WHOLE] if self.head == "means" else range(len(tokens))
                made.append(Example.marked(tokens, tuple((place, number % CLASSES) for place in places), number))
                continue
            made.append(Example(tokens, tuple(t >= len(tokens) - self.supervised for t in range(len(tokens))), number))
        return made


BATCHES = {
    "chat": Batch(3, 100, 40),
    "labels": Batch(12, 26, 3, shared=60),
    "short": Batch(12, 30, 3),
    "long": Batch(1, 500, 200),
    "tiny": Batch(1, 40, 4),
    "topics": Batch(16, 40, 0, head="means"),
    "tags": Batch(16, 40, 0, head="rows"),
}
CLASSES = 77  # of linear heads

# transformers' configuration classes with real-ish sizes, at most 150 million parameters: two cores have to manage.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "smollm2-135m": ("", {}),
    "minilm": ("", {}),
    "gpt2-124m": ("GPT2Config", {}),
    "qwen3-8-layers": (
        "Qwen3Config",
        {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 8, "num_attention_heads": 16}
        | {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 16384, "tie_word_embeddings": True},
    ),
    "glm4-6-layers": (
        "Glm4Config",
        {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 12}
        | {"num_key_value_heads": 2, "head_dim": 64, "vocab_size": 32768, "pad_token_id": 0},
    ),
    "gemma2-6-layers": (
        "Gemma2Config",
        {"hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 4}
        | {"num_key_value_heads": 2, "head_dim": 256, "vocab_size": 49152, "sliding_window": 128},
    ),
}

ALL = tuple(techniques.names())


def combinations() -> list[str]:
    """'MODEL TECHNIQUE BATCH' of all that is measured."""
    chosen: list[tuple[str, Iterable[str], Iterable[str]]] = [
        ("smollm2-135m", ALL, ("chat", "labels")),
        ("gpt2-124m", ALL, ("short",)),
        ("qwen3-8-layers", ("lora", "full", "prompt", "qlora", "freeze"), ("chat",)),
        ("glm4-6-layers", ("lora", "adapter", "prefix", "p_tuning"), ("labels",)),
        ("gemma2-6-layers", ("lora", "full", "prompt", "p_tuning_v2"), ("chat",)),
        ("smollm2-135m", ("lora",), ("long", "short", "tiny")),
        ("smollm2-135m", ("p_tuning_v2", "full"), ("long",)),
        ("glm4-6-layers", ("lora",), ("long", "tiny")),
        ("minilm", ("lora", "full", "adapter", "prompt", "p_tuning_v2"), ("topics",)),
        ("minilm", ("lora",), ("tags",)),
    ]
    return [f"{m} {t} {b}" for m, names, batches in chosen for b in batches for t in names]


def main() -> int:
    """Exit status 0 when every combination has a result, 1 otherwise."""
    arguments = _arguments()
    if arguments.combination:
        print(json.dumps(measure(arguments)))
        return 0
    report: dict[str, Any] = read_json(arguments.out) if arguments.out.exists() else {"machines": [], "rows": {}}
    wanted = [q for kind in arguments.only or QUANTITIES for q in QUANTITIES[kind]]
    rows = report["rows"]
    chosen = [name for name in combinations() if re.search(arguments.match, name)]
    todo = [name for name in chosen if arguments.again or not _measured(rows.get(name, {}), wanted)]
    began, before = time.monotonic(), None
    for count, name in enumerate(todo, 1):
        if arguments.minutes and time.monotonic() - began > 60 * arguments.minutes:
            break
        before = before or _undisturbed([*_options(arguments), "--combination", "machine"], arguments.quiet)
        found = _undisturbed([*_options(arguments), "--combination", name], arguments.quiet)
        after = _undisturbed([*_options(arguments), "--combination", "machine"], arguments.quiet)
        found = next((each for each in (found, before, after) if "error" in each), found)
        if "error" not in found:
            found["machines"] = [_place(report, before), _place(report, after)]
            found["measured"] = rows.get(name, {}).get("measured", {}) | found["measured"]
        rows[name] = found
        before = None if "error" in after else after
        _write(arguments.out, report)
        spent = format_seconds(time.monotonic() - began)
        print(f"{count} of {len(todo)} ({spent}): {name}: {_said(report, name, arguments.trace)}", flush=True)
    for name in chosen:
        if "measured" in rows.get(name, {}):
            rows[name]["predicted"] = predicted(report, name, arguments.trace)
    _write(arguments.out, report)
    print(f"everything is in {arguments.out}; now run docs/generate.py")
    return 0 if all(_measured(rows.get(name, {}), wanted) for name in chosen) else 1


def _measured(row: dict[str, Any], wanted: list[str]) -> bool:
    return all(name in row.get("measured", {}) for name in wanted)


def _said(report: dict[str, Any], name: str, trace: bool) -> str:
    row = report["rows"][name]
    if "error" in row:
        return str(row["error"])
    row["predicted"] = predicted(report, name, trace)
    pairs = ((q, row["predicted"][q], value) for q, value in row["measured"].items() if value is not None)
    return ", ".join(f"{q} {value:.4g} predicted {100 * (guess / value - 1):+.0f}%" for q, guess, value in pairs)


def _place(report: dict[str, Any], machine: dict[str, Any]) -> int:
    """Where a timed machine stands in the report; put there where it is not yet."""
    known = report["machines"]
    place = next((number for number, each in enumerate(known) if each is machine), len(known))
    if place == len(known):
        known.append(machine)
    return place


def _write(path: Path, report: dict[str, Any]) -> None:
    """Keeps the report, without the machines that no row has any more."""
    measured = [row for row in report["rows"].values() if "machines" in row]
    used = sorted({number for row in measured for number in row["machines"]})
    report["machines"] = [report["machines"][number] for number in used]
    for row in measured:
        row["machines"] = [used.index(number) for number in row["machines"]]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, report)


def _options(arguments: argparse.Namespace) -> list[str]:
    only = ["--only", *arguments.only] if arguments.only else []
    return ["--threads", str(arguments.threads), "--steps", str(arguments.steps), *only]


def _in_own_process(options: list[str]) -> dict[str, Any]:
    """What this program prints with these options; or the end of what went wrong, as {'error': ...}."""
    environment = {**os.environ, "OMP_NUM_THREADS": options[1]}
    command = [sys.executable, __file__, *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


# How often a disturbed measurement is made again, and how long a quiet machine is waited for, in seconds.
_TRIES = 4
_PATIENCE_S = 60.0


def _undisturbed(options: list[str], most: float | None) -> dict[str, Any]:
    """What this program prints, with the cores that others took meanwhile; of several tries the least disturbed."""
    tries: list[dict[str, Any]] = []
    while not tries or (len(tries) < _TRIES and "error" not in tries[-1] and tries[-1]["others"] > (most or math.inf)):
        until = time.monotonic() + _PATIENCE_S
        while most is not None and time.monotonic() < until and _others(lambda: time.sleep(2))[1] > most:
            pass
        found, others = _others(lambda: _in_own_process(options))
        tries.append({**found, "others": round(others, 3)})
    return min(tries, key=lambda found: ("error" in found, found["others"]))


def _others(run: Callable[[], Any]) -> tuple[Any, float]:
    """What `run` gives, and how many cores processes other than this one's took meanwhile; 0 where it is not known."""
    began, busy, own = time.monotonic(), _busy_s(), _own_s()
    found = run()
    return found, max(0.0, _busy_s() - busy - (_own_s() - own)) / (time.monotonic() - began)


def _own_s() -> float:
    return sum(os.times()[:4])


def _busy_s() -> float:
    """Processor time of everything on this machine, all cores together."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, stat.read_text().split("\n")[0].split()[1:])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


# --- in a process of its own: what happens ---------------------------------------------------------------------------


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """One combination; or 'machine': the machine's rates, timed now."""
    import torch

    torch.set_num_threads(arguments.threads)
    if arguments.combination == "machine":
        from heptune.planning.hardware import this_machine

        return this_machine(again=True).to_json()
    from heptune.engine.forward import Forward
    from heptune.engine.headed import Headed
    from heptune.engine.loop import accumulate
    from heptune.engine.memory import freed_memory_kept
    from heptune.engine.optimizer import adamw
    from heptune.engine.settings import Settings
    from heptune.models.anatomy import dissect
    from heptune.models.quantization import quantize
    from heptune.models.readout import Readout
    from heptune.planning.live import LiveTracker, tensors_of

    model_name, technique_name, batch_name = arguments.combination.split()
    settings, kinds = Settings(), arguments.only or list(QUANTITIES)
    technique = techniques.build(technique_name)
    model = _model(model_name)
    device = next(model.parameters()).device
    if "trains_base" in technique.capabilities:
        model.float()
    anatomy = dissect(model)
    if "quantizes_base" in technique.capabilities:
        quantize(anatomy)
    forward = Forward(anatomy)
    attached = technique.attach(anatomy, 0)
    originals = (getattr(attached, "_originals", None) or {}).values()  # what detaching puts back
    if BATCHES[batch_name].head:
        forward.readout = Readout(anatomy, CLASSES, False, 0)
        attached = Headed(attached, forward.readout)
    parameters = attached.parameters
    optimizer = adamw(parameters, settings.weight_decay)
    batch = BATCHES[batch_name].make(anatomy.shape.vocabulary)

    def step(number: int) -> None:
        accumulate(forward, attached, batch, settings, number)
        torch.nn.utils.clip_grad_norm_(parameters.values(), settings.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    peak = _Peak(device)
    seconds: list[float] = []
    with freed_memory_kept():
        for number in range(1 + (arguments.steps if "time" in kinds else 1)):
            began = time.perf_counter()
            step(number)
            seconds.append(time.perf_counter() - began)
        found: dict[str, Any] = {"time": statistics.median(seconds[1:])} if "time" in kinds else {}
        if "memory" in kinds:
            found |= peak.found()
        if "memory" in kinds and device.type != "cuda":
            state = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
            with LiveTracker([*tensors_of(model), *parameters.values(), *originals, *state]) as tracker:
                step(1)
            found["live"] = tracker.peak_bytes
    passes = [_pass(forward, portion, settings.share) for portion in forward.portions(batch, settings.micro_tokens)]
    return {
        "measured": found,
        "passes": [asdict(one) for one in passes],
        "rows": sum(one.rows for one in passes),
        "tensors": len(parameters),
        "steps_s": [round(s, 4) for s in seconds],
        "device": device.type,
    }


def _model(name: str) -> Any:
    """The base where a training has it; random weights but for the embedded base."""
    import torch
    from transformers import AutoModelForCausalLM

    from heptune.models.load import load_base

    if not MODELS[name][0]:
        return load_base(name).model
    place = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(_config(name), dtype=torch.float32)
    return model.to(place, torch.bfloat16 if place == "cuda" else torch.float32).eval().requires_grad_(False)


def _config(name: str) -> Any:
    import transformers

    kind, settings = MODELS[name]
    if not kind:
        return transformers.AutoConfig.from_pretrained(fetch(name))
    return getattr(transformers, kind)(**settings)


def _pass(forward: Any, portion: list[Example], share: bool) -> Pass:
    """The sizes of the pass over these examples."""
    from heptune.engine.forest import pad, plant

    placement = forward.anatomy.placement
    placed = [example.with_virtual_tokens(placement.front, placement.inner) for example in portion]
    if placed[0].marks:
        return marked_pass(placed, forward.anatomy.causal)
    targets = sum(example.targets for example in placed)
    if not forward.attends_over_forests:
        batch = pad(placed)
        return Pass(batch.rows, batch.rows * batch.token.shape[1], targets, len(placed))
    forest = plant(placed, share)
    return Pass.of(forest.end, forest.position, targets, len(placed))


class _Peak:
    """The peak since this was made: torch's count on a GPU, else the kernel's of resident memory (Linux)."""

    def __init__(self, device: Any) -> None:
        import torch

        from heptune.engine.memory import give_back

        self.device = device
        give_back()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5")  # the kernel forgets the peak that loading left

    def found(self) -> dict[str, int | None]:
        """Bytes, by quantity."""
        import torch

        if self.device.type == "cuda":
            return {"live": torch.cuda.max_memory_allocated(self.device), "resident": None}
        if sys.platform != "linux":
            return {"resident": None}
        status = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
        assert status is not None
        return {"resident": int(status[1]) * 1024}


# --- what is predicted -----------------------------------------------------------------------------------------------


def predicted(report: dict[str, Any], name: str, trace: bool) -> dict[str, float]:
    """Live and resident bytes and a step's seconds, from sizes alone."""
    model, technique_name, batch = name.split()
    head, classes = BATCHES[batch].head, CLASSES if BATCHES[batch].head else 0
    row, shape = report["rows"][name], _shape(model)
    technique = techniques.build(technique_name)
    machines = [_machine(report["machines"][number]) for number in row["machines"]]
    machine = machines[0]
    quantized = "quantizes_base" in technique.capabilities
    dtype = "float32" if "trains_base" in technique.capabilities else machine.dtype
    form = _form(model, technique_name, dtype, quantized, head, trace)
    cost, settings = technique.cost(shape).with_head(classes, shape.hidden), asdict(technique)  # type: ignore[call-overload]
    sizes = [sizes_of(shape, settings, Pass(**one), classes) for one in row["passes"]]
    shared: dict[str, Any] = {"dtype_bytes": 4 if dtype == "float32" else 2, "quantized": quantized}
    memory = max((training_memory(shape, cost, form, s, **shared) for s in sizes), key=lambda m: m.total)
    works = [form.work(s, shape.layers) for s in sizes]
    dequantized = dequantized_weights(shape) if quantized else 0.0
    times = [step_seconds(works, cost.trainable, m, row["tensors"], dequantized=dequantized) for m in machines]
    return {
        "live": memory.total,
        "resident": resident_bytes(memory.total, memory.weights + memory.optimizer, quantized),
        "time": statistics.mean(times),
    }


def _machine(found: dict[str, Any]) -> Machine:
    return Machine.from_json({name: value for name, value in found.items() if name != "others"}).times(1)


@cache
def _shape(model: str) -> Any:
    """The model's sizes, from its configuration alone."""
    from heptune.models.catalog import describe

    if model == "minilm":
        return describe(str(fetch(model))).shape
    import torch
    from transformers import AutoModelForCausalLM

    from heptune.models.anatomy import dissect

    with torch.device("meta"):
        return dissect(AutoModelForCausalLM.from_config(_config(model))).shape


@cache
def _form(model: str, technique: str, dtype: str, quantized: bool, head: str, trace: bool) -> StepForm:
    """The book's formulas, or (where it has none, or with `trace`) those read off a tiny model now."""
    shape, settings = _shape(model), asdict(techniques.build(technique))  # type: ignore[call-overload]
    found = None
    if not trace:
        found = book.find(Variant(shape.family, technique, settings, dtype, False, quantized, shape.head_tied, head))
    if found is None:
        from heptune.planning.trace import trace as traced

        ways = {"dtype": dtype, "quantized": quantized, "tied": shape.head_tied, "head": head}
        found = traced(shape.family, technique, settings, **ways)
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--threads", type=int, default=2, help="torch threads; no more than free cores; default: 2")
    add("--steps", type=int, default=3, help="timed steps of each combination, at least 3; default: 3")
    add("--only", nargs="+", choices=list(QUANTITIES), help="measure one kind alone; default: both")
    add("--match", default="", help="combinations that this regular expression is found in; default: all")
    add("--minutes", type=float, help="begin no further combination after this long")
    add("--quiet", type=float, help="measure again what other processes took more than this many cores from")
    add("--again", action="store_true", help="measure what is measured already")
    add("--trace", action="store_true", help="read formulas off tiny models instead of taking the stored ones")
    add("--out", type=Path, default=RESULTS, help=f"where the report is; default: {RESULTS.name} in docs/results")
    add("--combination", help="measure this one alone, in this process, and print JSON")
    arguments = parser.parse_args()
    if arguments.threads < 1:
        parser.error(f"--threads is {arguments.threads}; it must be at least 1")
    if arguments.steps < 3:
        parser.error(f"--steps is {arguments.steps}; a median needs at least 3")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
