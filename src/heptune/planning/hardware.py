"""The machines that trainings are planned for: this one, and known accelerators. Imports no torch before it must."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from heptune.core.errors import UsageError
from heptune.core.events import Listener, ignore
from heptune.core.registry import unknown
from heptune.planning import limits
from heptune.planning.rates import ProductTime, Rates

TABLE = Path(__file__).with_name("accelerators.json")

# What of a data sheet's figures a training reaches; assumptions, with what they lean on.
# Products: Chowdhery et al. 2022 ("PaLM", table 3) reach 46% of the peak over whole steps, Dubey et al. 2024 ("The
# Llama 3 Herd of Models", table 4) 38 to 43%; products alone are above that, as the rest of a step comes on top here.
PRODUCT_SHARE = 0.6
# Attention with a mask: about half of what FlashAttention-2 reaches without one (Dao 2023, section 4: 50 to 73%).
ATTENTION_SHARE = 0.3
# Plain reading and writing of large arrays (BabelStream, Deakin et al. 2018, finds 80 to 95% on data centre GPUs).
BANDWIDTH_SHARE = 0.8
# Each operation that Python starts on a GPU, in seconds: a kernel's start is 4 to 5, PyTorch's own way there as much.
OPERATION_S = 1e-5
# What is read of a weight in 4 bits, its block's maximum included (models/quantization.py).
NF4_BYTES = 4.127 / 8
# What links between devices reach of their peak.
INTERCONNECT_SHARE = 0.7
# Of a card's memory, what its driver leaves to programs.
DRIVER_LEAVES = 0.98


@dataclass(frozen=True)
class Machine:
    """Where a training runs.

    `kind` is 'cpu' or 'cuda'. `memory_bytes` is what one device has in all; `available_bytes` what is free there now,
    None where that is not known. `dtype` is the type of the base's weights. `interconnect_bytes_s` is one direction of
    the link between devices. `measured` says whether the rates were timed or follow from a data sheet, named in
    `source`.
    """

    name: str
    kind: str
    devices: int
    threads: int
    memory_bytes: int
    available_bytes: int | None
    dtype: str
    rates: Rates
    interconnect_bytes_s: float
    measured: bool
    source: str

    def times(self, devices: int) -> Machine:
        """The same with that many devices."""
        if devices < 1:
            raise UsageError(f"devices is {devices}; it must be at least 1")
        return replace(self, devices=devices)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Machine:
        """What `to_json` gave."""
        return cls(**{**found, "rates": Rates.from_json(found["rates"])})


def accelerators() -> list[str]:
    """The names of the known accelerators."""
    return [entry["name"] for entry in _table()]


def _usable_gib(entry: Mapping[str, Any]) -> float:
    """What torch sees of a card's memory. A data sheet's GB are GiB, of which the driver keeps almost 2% (an RTX 4090
    shows 23.6 of 24, an A100 39.5 of 40 and 79.2 of 80); where error correction takes more, or a data sheet counts
    otherwise, the table says what is left (a T4 shows 14.6 of 16, an L40S 44.5 of 48, an H200 139.7 for 141)."""
    return float(entry.get("usable_gib", DRIVER_LEAVES * entry["memory_gb"]))


def accelerator(name: str, devices: int = 1) -> Machine:
    """A known accelerator: 'RTX 4090', 'rtx4090' and '4090' are the same.

    Raises `UsageError` with the nearest names for one that is not in the table.
    """
    entry = _by_plain_name().get(_plain(name))
    if entry is None:
        raise unknown("accelerator", name, accelerators())
    return Machine(
        name=entry["name"],
        kind="cuda",
        devices=1,
        threads=1,
        memory_bytes=round(_usable_gib(entry) * 2**30),
        available_bytes=None,
        dtype=entry["dtype"],
        rates=_assumed(entry["tflops"] * 1e12, entry["bandwidth_gb_s"] * 1e9, 2),
        interconnect_bytes_s=INTERCONNECT_SHARE * entry["interconnect_gb_s"] * 1e9,
        measured=False,
        source=entry["source"],
    ).times(devices)


def this_machine(*, device: str | None = None, again: bool = False, listener: Listener = ignore) -> Machine:
    """The machine that this process runs on; `device` as in `models.load`, by default a GPU where there is one.

    Its rates are timed in a few seconds the first time, and kept (see `planning/calibration.py`); `again` times them
    anew. They belong to the number of threads that torch uses now.
    """
    import torch

    from heptune.planning.calibration import calibrated

    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if place.type == "cuda":
        properties = torch.cuda.get_device_properties(place)
        free, total = torch.cuda.mem_get_info(place)
        name, devices, dtype = properties.name, torch.cuda.device_count(), "bfloat16"
        found = _named_in(name)
        link = INTERCONNECT_SHARE * (found["interconnect_gb_s"] if found else PCI_EXPRESS_GB_S) * 1e9
    else:
        room = limits.memory()
        free, total = room.available, room.total
        name, devices, dtype, link = processor(), 1, "float32", ETHERNET_BYTES_S
    return Machine(
        name=name,
        kind=place.type,
        devices=devices,
        threads=torch.get_num_threads(),
        memory_bytes=total,
        available_bytes=free,
        dtype=dtype,
        rates=calibrated(name, place, dtype, again=again, listener=listener),
        interconnect_bytes_s=link,
        measured=True,
        source="timed on this machine",
    )


# The link of a GPU that is not in the table: PCI Express 4.0 x16, one direction.
PCI_EXPRESS_GB_S = 32
# Between processes on different machines without accelerators: 10 gigabit Ethernet.
ETHERNET_BYTES_S = 1.25e9


def processor() -> str:
    """What the processor calls itself."""
    try:
        found = re.search(r"^model name\s*: *(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{name} ({os.cpu_count()} cores)"


def _assumed(flops_s: float, bandwidth_s: float, width: int) -> Rates:
    """Rates from a data sheet: its figures times the shares above; `width`: bytes of an element."""
    moved = BANDWIDTH_SHARE * bandwidth_s
    touch = width / moved
    return Rates(
        product=ProductTime(2 / (PRODUCT_SHARE * flops_s), touch, touch, touch, 0.0),
        attention_flops_s=ATTENTION_SHARE * flops_s,
        moved_bytes_s=moved,
        operation_s=OPERATION_S,
        update_bytes_s=moved,
        update_tensor_s=0.0,
        dequantized_elements_s=moved / (width + NF4_BYTES),
    )


@cache
def _table() -> list[dict[str, Any]]:
    return json.loads(TABLE.read_text("utf-8"))


@cache
def _by_plain_name() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for entry in _table():
        for name in (entry["name"], *entry["aliases"]):
            found[_plain(name)] = entry
    return found


def _plain(name: str) -> str:
    """'NVIDIA GeForce RTX 4090', 'rtx-4090' and '4090' are all '4090'."""
    letters = re.sub(r"[^a-z0-9]", "", name.lower())
    return re.sub(r"^(nvidia|amd)?(geforce|tesla|instinct)?(rtx(?=\d))?", "", letters)


def _named_in(name: str) -> dict[str, Any] | None:
    """The table's entry for what a driver calls the device ('NVIDIA H100 80GB HBM3'): the longest name within it."""
    plain = _plain(name)
    fitting = [known for known in _by_plain_name() if plain.startswith(known)]
    return _by_plain_name()[max(fitting, key=len)] if fitting else None
