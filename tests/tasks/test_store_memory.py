"""Memory does not grow with the corpus: measured in processes of their own, on corpora of a few and of many MB."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Reads a corpus, cuts it into parts, writes its tokens, lays out an epoch and makes examples. Prints how far anonymous
# memory rose on the way (pages of mapped files can be dropped at any time).
PROGRAM = """
import json, sys, threading, time
from pathlib import Path
from heptune.core.events import ignore
from heptune.data.parts import DataOptions, read_files
from heptune.engine.batches import Batches
from heptune.tasks.complete import Complete
from heptune.tasks.store import lengths, stored
from heptune.tasks.template import ChatTemplate
from tiny import tiny_tokenizer

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

template = ChatTemplate(tiny_tokenizer())
options = DataOptions()
def work(corpus, folder):
    parts = read_files(corpus, options, ignore).cut(options, 0)
    examples = stored(Path(folder), {}, Complete(), parts.train, template, 256, ignore)
    batches = Batches(lengths(examples), 0, 2048)
    for step in range(50):
        for at in batches.step(step):
            examples[at]
    return len(examples), int(examples.targets)

work(sys.argv[1], sys.argv[3])  # what is allocated once is there before anything is measured
before, most, over = anonymous(), 0, threading.Event()
def watch():
    global most
    while not over.wait(0.005):
        most = max(most, anonymous())
watcher = threading.Thread(target=watch)
watcher.start()
count, tokens = work(sys.argv[2], sys.argv[4])
over.set()
watcher.join()
print(json.dumps({"grown": most - before, "windows": count, "tokens": tokens}))
"""


def corpus(path: Path, megabytes: float) -> Path:
    paragraph = "What is the capital of France? The text is positive, and who wrote the book nobody knows. "
    with path.open("w", encoding="utf-8") as file:
        for number in range(int(megabytes * 2**20) // 600):
            file.write(f"Number {number}. {paragraph * 6}"[:598] + "\n\n")
    return path


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell anonymous memory")
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    small = corpus(tmp_path / "small.txt", 0.25)
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    grown = {}
    for megabytes in (1, 12):
        large = corpus(tmp_path / f"{megabytes}.txt", megabytes)
        words = [sys.executable, "-c", PROGRAM, str(small), str(large)]
        folders = [str(tmp_path / f"{megabytes}-{name}") for name in ("small", "large")]
        done = subprocess.run(
            [*words, *folders], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
        )
        assert done.returncode == 0, done.stderr
        grown[megabytes] = json.loads(done.stdout)
    assert grown[12]["tokens"] > 10 * grown[1]["tokens"]
    # Index, lengths and the order of the windows take some 50 bytes for each KB of text: 0.5 MB here. The allocator's
    # mood moves the figure by two to three MB. The text or its tokens, held once, would be 11 MB or more.
    assert grown[12]["grown"] - grown[1]["grown"] < 5 << 20, grown
