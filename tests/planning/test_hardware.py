"""Machines: the table of accelerators, this machine's memory, and what is written and read back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from heptune.core.errors import UsageError
from heptune.core.units import parse_bytes
from heptune.planning import hardware, limits
from heptune.planning.hardware import Machine, accelerator, accelerators


@pytest.mark.parametrize(
    "text, expected",
    [
        ("24GB", 24 * 10**9),
        ("24GiB", 24 * 2**30),
        ("24 gb", 24 * 10**9),
        ("1.5TiB", 3 * 2**39),
        ("512M", 512 * 10**6),
        ("8Gi", 8 * 2**30),
        ("1000", 1000),
        (".5kB", 500),
    ],
)
def test_amounts_of_memory_are_read(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "24 GBit", "-3GB", "1,5GB", "24GB more", "many"])
def test_what_is_no_amount_of_memory_says_how_to_write_one(text: str) -> None:
    with pytest.raises(UsageError, match="24GiB"):
        parse_bytes(text)


def test_every_accelerator_has_plausible_figures_and_a_source() -> None:
    table = json.loads(hardware.TABLE.read_text())
    assert len(table) >= 30
    for entry in table:
        assert set(entry) - {"usable_gib"} == {
            *("name", "aliases", "memory_gb", "tflops", "bandwidth_gb_s", "interconnect_gb_s", "dtype", "source")
        }
        assert 6 <= entry["memory_gb"] <= 300 and 10 <= entry["tflops"] <= 3000, entry["name"]
        assert 200 <= entry["bandwidth_gb_s"] <= 10_000 and 10 <= entry["interconnect_gb_s"] <= 1000, entry["name"]
        # Operations for each byte: from 30 (T4 and older cards on memory-rich boards) to 500.
        assert 30 <= 1000 * entry["tflops"] / entry["bandwidth_gb_s"] <= 500, entry["name"]
        assert 0.9 <= accelerator(entry["name"]).memory_bytes / 2**30 / entry["memory_gb"] < 1, entry["name"]
        assert entry["dtype"] in ("bfloat16", "float16") and len(entry["source"]) > 10
    plain = [hardware._plain(name) for entry in table for name in (entry["name"], *entry["aliases"])]
    assert len(plain) == len(set(plain)), "two entries answer to one name"


@pytest.mark.parametrize("name", ["RTX 4090", "rtx4090", "4090", "rtx-4090", "NVIDIA GeForce RTX 4090", "geforce_4090"])
def test_an_accelerator_is_found_however_it_is_written(name: str) -> None:
    assert accelerator(name).name == "RTX 4090"


@pytest.mark.parametrize(
    "name, seen_gib",
    [
        ("3060", 11.76),
        ("a100", 79.2),
        ("A100 40GB", 39.5),
        ("h100", 79.1),
        ("H200", 139.7),
        ("4090", 23.64),
        ("t4", 14.56),
        ("l40s", 44.53),
    ],
)
def test_a_card_without_a_size_is_the_usual_one_and_has_what_torch_sees(name: str, seen_gib: float) -> None:
    """`seen_gib`: the total capacity in torch's own messages (for the 3060: 98% of 12)."""
    assert 0.985 * seen_gib <= accelerator(name).memory_bytes / 2**30 <= seen_gib + 1e-6


def test_an_unknown_accelerator_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"did you mean .*RTX 4090"):
        accelerator("RTX 4091")


def test_the_drivers_names_lead_to_their_entries() -> None:
    def found(name: str) -> str | None:
        entry = hardware._named_in(name)
        return entry["name"] if entry else None

    assert found("NVIDIA H100 80GB HBM3") == "H100"
    assert found("NVIDIA H100 PCIe") == "H100 PCIe"
    assert found("Tesla T4") == "T4"
    assert found("NVIDIA GeForce RTX 4070 Ti SUPER") == "RTX 4070 Ti Super"
    assert found("Quadro 400") is None


def test_rates_follow_the_data_sheet() -> None:
    slow, fast = accelerator("RTX 4060"), accelerator("H100")
    assert fast.rates.product.inner < slow.rates.product.inner
    assert fast.rates.moved_bytes_s > slow.rates.moved_bytes_s
    assert not fast.measured and "data sheet" in fast.source


def test_a_machine_is_written_and_read_back() -> None:
    for name in accelerators():
        machine = accelerator(name, devices=4)
        assert Machine.from_json(json.loads(json.dumps(machine.to_json()))) == machine


def test_fewer_than_one_device_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        accelerator("H100", devices=0)


def test_the_table_imports_no_torch() -> None:
    program = (
        "import sys; from heptune.planning import hardware, time; hardware.accelerator('4090'); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def files(root: Path, **contents: str) -> Path:
    for name, text in contents.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = "MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:   12000000 kB\n"


def test_memory_without_control_groups_is_the_machines(tmp_path: Path) -> None:
    root = files(tmp_path, proc__meminfo=MEMINFO)
    assert limits.memory(root) == limits.Memory(16_000_000 * 1024, 12_000_000 * 1024)


def test_memory_is_what_control_groups_of_version_2_leave(tmp_path: Path) -> None:
    """The tightest of the groups around the process counts; 'max' is no limit."""
    root = files(
        tmp_path,
        proc__meminfo=MEMINFO,
        proc__self__cgroup="0::/user/job\n",
        sys__fs__cgroup__user__job__memory_dot_max="max\n",
        sys__fs__cgroup__user__memory_dot_max="4000000000\n",
        sys__fs__cgroup__user__memory_dot_current="1000000000\n",
    )
    assert limits.memory(root) == limits.Memory(4 * 10**9, 3 * 10**9)


def test_memory_is_what_control_groups_of_version_1_leave(tmp_path: Path) -> None:
    """Inside a container the group's path may be the host's: the top folder is the container's own then."""
    root = files(
        tmp_path,
        proc__meminfo=MEMINFO,
        proc__self__cgroup="5:devices:/\n4:cpuacct,memory:/docker/abc\n0::/\n",
        sys__fs__cgroup__memory__memory_dot_limit_in_bytes="2000000000\n",
        sys__fs__cgroup__memory__memory_dot_usage_in_bytes="2500000000\n",
    )
    assert limits.memory(root) == limits.Memory(2 * 10**9, 0)


def test_version_1s_largest_number_is_no_limit(tmp_path: Path) -> None:
    root = files(
        tmp_path,
        proc__meminfo=MEMINFO,
        proc__self__cgroup="4:memory:/\n",
        sys__fs__cgroup__memory__memory_dot_limit_in_bytes="9223372036854771712\n",
    )
    assert limits.memory(root).total == 16_000_000 * 1024


def test_this_processs_memory_is_found() -> None:
    room = limits.memory()
    assert 0 <= room.available <= room.total and room.total > 2**28
