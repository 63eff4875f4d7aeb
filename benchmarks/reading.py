"""How fast a large file is checked, and in how much memory.

    python benchmarks/reading.py

It writes JSON lines of 1 GB into a temporary folder: labelled texts made of the demo's messages, one in fifty a
repetition of an earlier row, and bad lines at the end. `heptune check` works through them in a process of its own. What
it counts must be what was written. Then a file of 200 MB is read into memory, as `heptune tune` does it, in another
process.

Seconds are those of the whole process: on the clock, and those that the processor spent on it. Memory is the kernel's
own peak of resident memory (Linux, macOS). The figures go to docs/results/reading.json; docs/generate.py makes the
tables.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "reading.json"
DEMO = Path(__file__).resolve().parent.parent / "src/heptune/demo/repair_desk.jsonl"
SEED = 20_241_105
REPEATED = 50  # one row in so many repeats an earlier one
REMEMBERED = 10_000  # rows that may be repeated
BAD = (
    '{"text": "A row without a label."}',
    '{"text": "A label that is null.", "label": null}',
    '{"text": "", "label": "carpentry"}',
    '["no", "object"]',
    '{"text": "half a character \\ud83d", "label": "carpentry"}',
    '{"text": "broken off in the mid',
)
FLOOR = """
import sys
from heptune.models.load import load_tokenizer
from heptune.tasks.template import ChatTemplate
from heptune.tuning import checking
ChatTemplate(load_tokenizer(sys.argv[1]))
"""
READ = """
import json, os, sys
from heptune.data.readers import read
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before = resident()
records = read(sys.argv[1], skip_bad=True).records
print(json.dumps({"records": len(records), "before": before, "after": resident()}))
"""


def main() -> None:
    """Writes the files, measures, keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=1000, help="size of the file that is checked, in 10^6 bytes")
    parser.add_argument("--read-mb", type=float, default=200, help="size of the file that is read into memory")
    parser.add_argument("--base", default="smollm2-135m", help="whose tokenizer counts the lengths")
    parser.add_argument("--folder", type=Path, help="where the files are written for a while (default: the system's)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        path = Path(folder) / "big.jsonl"
        report: dict[str, Any] = {"machine": _machine(), "base": chosen.base}
        floor = _measured([sys.executable, "-c", FLOOR, chosen.base])[1]["peak_memory_bytes"]
        report["check"] = {"floor_bytes": floor} | checked(path, write(path, round(chosen.mb * 1e6)), chosen.base)
        print(json.dumps(report["check"], indent=1), flush=True)
        report["read"] = read(path, write(path, round(chosen.read_mb * 1e6)))
        print(json.dumps(report["read"], indent=1), flush=True)
    chosen.out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    print(f"written to {chosen.out}; now run docs/generate.py")


def write(path: Path, size: int) -> dict[str, int]:
    """Writes a file of `size` bytes and a little more; says what it holds."""
    chance = random.Random(SEED)
    messages = [json.loads(line) for line in DEMO.read_text("utf-8").splitlines()]
    earlier: list[str] = []
    held = {"bytes": 0, "records": 0, "duplicates": 0, "bad_lines": len(BAD)}
    with path.open("w", encoding="utf-8", newline="\n") as file:
        while held["bytes"] < size:
            if earlier and chance.random() * REPEATED < 1:
                line = chance.choice(earlier)
                held["duplicates"] += 1
            else:
                some = chance.choices(messages, k=chance.randint(1, 8))
                text = " ".join(message["text"] for message in some) + f" (Ticket {held['records']})"
                row = {"id": held["records"], "text": text, "label": some[0]["label"]}
                line = json.dumps(row, ensure_ascii=False) + "\n"
                if len(earlier) < REMEMBERED:
                    earlier.append(line)
                else:
                    earlier[chance.randrange(REMEMBERED)] = line
            held["records"] += 1
            held["bytes"] += file.write(line)
        file.write("\n".join(BAD))
    held["bytes"] = path.stat().st_size
    return held


def checked(path: Path, held: dict[str, int], base: str) -> dict[str, Any]:
    """`heptune check` on the file, measured; raises where it counts something else than there is."""
    command = [sys.executable, "-m", "heptune.cli.main", "check", str(path), "--skip-bad", "--base", base]
    said, cost = _measured(command)
    wanted = {"records": held["records"], "bad lines left out": held["bad_lines"], "duplicates": held["duplicates"]}
    for name, count in wanted.items():
        found = re.search(rf"^{name} +(\d+)", said, re.M)
        assert found is not None and int(found[1]) == count, f"{name}: {count} written, but it says\n{said}"
    tokens = re.search(r"^tokens +(\d+),", said, re.M)
    assert tokens is not None, said
    return {
        "command": f"heptune check big.jsonl --skip-bad --base {base}",
        **held,
        "tokens": int(tokens[1]),
        **cost,
    }


def read(path: Path, held: dict[str, int]) -> dict[str, Any]:
    """The file read into memory: what is resident before and after, and at the peak."""
    said, cost = _measured([sys.executable, "-c", READ, str(path)])
    found = json.loads(said)
    assert found["records"] == held["records"], (found, held)
    return {**held, "before_bytes": found["before"], "after_bytes": found["after"], **cost}


def _measured(command: list[str]) -> tuple[str, dict[str, Any]]:
    """What a command prints, its seconds, and its peak of resident memory in bytes."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"{' '.join(command)} ended with {process.returncode}: {said}"
    return said, {
        "seconds": round(time.monotonic() - began, 1),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


def _machine() -> str:
    parallel = os.environ.get("TOKENIZERS_PARALLELISM", "true").lower() not in ("false", "0", "off", "no", "f", "n")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{platform.machine()}, the tokenizer on {cores if parallel else 1} of {cores} cores"


if __name__ == "__main__":
    main()
