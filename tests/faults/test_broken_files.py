"""Every broken file gives records or an error made for people that names the place: in bounded time and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Goes through all files in a process that may not take much memory; prints a line for each that does something else.
PROGRAM = """
import json, resource, signal, sys, tempfile, time
from pathlib import Path
from faults.broken import files, places
from heptune.core.errors import DataError, UsageError
from heptune.core.events import ignore
from heptune.data.corpus import opened
from heptune.data.readers import read
from heptune.tuning.checking import check

LIMIT_S = 120.0  # what hangs; a check may have to fetch a base first
def too_long(signum, frame):
    raise TimeoutError
signal.signal(signal.SIGALRM, too_long)
folder = Path(tempfile.mkdtemp(dir=sys.argv[1]))
tally = {"files": 0, "records": 0, "refused": 0, "readings": 0}
wrong, slowest = [], (0.0, "")
def attempt(path, what, how):
    global slowest
    tally["readings"] += 1
    began = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        how(path)
        found = "records"
    except (DataError, UsageError) as error:
        found = "refused"
        text = str(error)
        text.encode()
        if not text.strip() or (what != "check" and path.name not in text):  # a check may be about all labels
            wrong.append(f"{path.name}: {what}: the error does not name the file: {text[:200]}")
    except BaseException as error:
        found = "wrong"
        wrong.append(f"{path.name}: {what}: {type(error).__name__}: {str(error)[:200]}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    slowest = max(slowest, (time.perf_counter() - began, f"{path.name}: {what}"))
    return found
def all_of(path):
    tally["files"] += 1
    ways = {
        "read": lambda p: read(p),
        "read, bad lines left out": lambda p: read(p, skip_bad=True),
        "open": lambda p: len(opened(p, listener=ignore).records),
        "check": lambda p: check(p),
    }
    found = [attempt(path, what, how) for what, how in ways.items()]
    tally["records" if "records" in found else "refused"] += 1
good = folder / "good.jsonl"
good.write_text("".join(json.dumps({"text": f"a {n}", "label": "xy"[n % 2]}) + "\\n" for n in range(20)))
check(good)  # what is loaded once is there before anything is measured
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name, content in files():
    path = folder / name
    path.write_bytes(content)
    all_of(path)
    path.unlink()
for path in places(folder):
    all_of(path)
tally["memory_bytes"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
print(json.dumps({"tally": tally, "wrong": wrong, "slowest": slowest}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="pipes and devices are Linux's")
def test_broken_files_give_records_or_clean_errors(tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found["tally"], "slowest:", found["slowest"])
    assert not found["wrong"], "\n".join(found["wrong"])
    assert found["tally"]["files"] >= 250
    # The bombs would unpack to 200 MiB each; the largest file itself has 8 MB.
    assert found["tally"]["memory_bytes"] < 600 << 20, found["tally"]
