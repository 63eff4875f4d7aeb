"""Where a planned training would run: how much memory one device has for it, and how fast it is. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from heptune.core.errors import UsageError
from heptune.core.events import Listener, ignore
from heptune.core.units import format_bytes, parse_bytes
from heptune.planning.hardware import Machine, accelerator, this_machine
from heptune.planning.memory import resident_bytes

# On a GPU beside what is alive: the driver's context with the kernels of torch (400 to 600 MiB on recent cards) and
# cuBLAS's workspaces; and the share of what a step allocates that torch's caching allocator loses to rounding and
# gaps. Assumed: no GPU was at hand to measure them.
CONTEXT_BYTES = 600 * 2**20
CACHING_SHARE = 0.05


@dataclass(frozen=True)
class Target:
    """A place for a training.

    `kind` is 'cpu' or 'cuda'. `memory_bytes` is what one of its `devices` has for this training, `dtype` the type of a
    frozen base's weights there. `machine` holds its rates, None where only an amount of memory was named.
    """

    name: str
    kind: str
    devices: int
    memory_bytes: int
    dtype: str
    machine: Machine | None
    said: str

    def held_bytes(self, live: float, standing: float, quantized: bool = False) -> int:
        """What a device holds when `live` bytes are alive at the peak, `standing` of them all the time: the process or
        the driver, and the allocator's losses, come on top. `quantized`: the base lies in 4 bits."""
        if self.kind == "cpu":
            return resident_bytes(live, standing, quantized)
        return round(CONTEXT_BYTES + live + CACHING_SHARE * (live - standing))

    def to_json(self) -> dict[str, Any]:
        """What of it a plan depends on."""
        return {
            "name": self.name,
            "kind": self.kind,
            "devices": self.devices,
            "memory_bytes": self.memory_bytes,
            "dtype": self.dtype,
            "said": self.said,
            "machine": None if self.machine is None else self.machine.to_json(),
        }


def target(
    gpu: str | None = None,
    memory: str | int | None = None,
    devices: int | None = None,
    *,
    machine: Machine | None = None,
    listener: Listener = ignore,
) -> Target:
    """The target that was named: a known GPU, an amount of memory of one (or both), a `Machine`, else this machine.

    Raises `UsageError` for what is unknown.
    """
    if devices is not None and devices < 1:
        raise UsageError(f"devices is {devices}; it must be at least 1")
    size = parse_bytes(memory) if isinstance(memory, str) else memory
    if size is not None and size <= 0:
        raise UsageError(f"memory is {memory}; it must be above 0, e.g. 24GB")
    if gpu is not None:
        known = accelerator(gpu)
        own = size or known.memory_bytes
        return _named(replace(known, devices=devices or 1), own, f"{known.name} with {format_bytes(own)}, not measured")
    if size is not None:
        count = devices or 1
        words = f"any GPU with {format_bytes(size)}" if count == 1 else f"{count} GPUs with {format_bytes(size)} each"
        said = f"{words}; how fast it is was not said (--gpu), so no times"
        return Target(words, "cuda", count, size, "bfloat16", None, said)
    found = machine or this_machine(listener=listener)
    count = devices if devices is not None else 1
    free = found.memory_bytes if found.available_bytes is None else found.available_bytes
    said = f"this machine, {found.name}: {format_bytes(free)} are free of {format_bytes(found.memory_bytes)}"
    return _named(found.times(count), free, said)


def _named(machine: Machine, memory: int, said: str) -> Target:
    return Target(machine.name, machine.kind, machine.devices, memory, machine.dtype, machine, said)
