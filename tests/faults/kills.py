"""Kills trainings, races and exports at random moments, goes on, and compares with what was never disturbed.

    python tests/faults/kills.py --kills 100 --seed 1        (`make faults`)

Each victim works on a tiny base in a forked process, is killed with SIGKILL after a random part of the time that it
takes, and starts again, several times; then it may finish. Its weights, its optimizer's state and its log of losses
must have the bits of the undisturbed one's. Every kill's victim and moment are printed; the seed gives them again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The folder of `tiny` and its kin, when this file is run by itself.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SETTINGS: dict[str, Any] = {"epochs": 2, "batch_size": 6, "validate_every": 4, "max_length": 256, "save_minutes": 0.0}
SMALL: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4, "dropout": 0.1},
    "qlora": {"rank": 4, "dropout": 0.1},
    "freeze": {"layers": 1},
    "prefix": {"virtual_tokens": 5, "encoder_hidden": 8},
    "p_tuning": {"prompt_template": "{p:3} text {p:2}", "encoder_hidden": 6},
    "p_tuning_v2": {"virtual_tokens": 5},
}


@dataclass(frozen=True)
class Victim:
    """Something that can be killed. `work` does it in `folder`, from wherever it is; `state` is all that must be the
    same afterwards."""

    name: str
    work: Callable[[Path], None]
    state: Callable[[Path], Any]


def victims(place: Path) -> list[Victim]:
    """Every technique's training, a second round, a race, and exports; `place` gets the base and the data."""
    import heptune
    from heptune import techniques
    from tiny import tiny_model, tiny_tokenizer

    base, data, parent = place / "base", place / "data.jsonl", place / "parent"
    tiny_model("llama").save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    words = ["river", "book", "answer", "sentence", "capital", "helpful", "word", "label"]
    rows = [{"text": f"{words[i % 8]} {words[i % 5]} {i}", "label": ["yes", "no"][i % 2]} for i in range(48)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    heptune.tune(base, data, technique="lora", out=parent, **SETTINGS)

    def training(name: str, start: Path, **more: Any) -> Victim:
        def work(folder: Path) -> None:
            if not (folder / "manifest.json").exists():
                technique = techniques.build(name, SMALL.get(name))
                heptune.tune(start, data, technique=technique, out=folder, **SETTINGS, **more)
            elif heptune.Run(folder).manifest["status"] != "finished":
                heptune.resume(folder)

        return Victim("a second round" if start == parent else name, work, run_state)

    def race(folder: Path) -> None:
        if (folder / "race.json").exists():
            heptune.resume_race(folder)
            return
        terms = heptune.Terms(rates=(1.0, 3.0), words=False, budget_tokens=60_000)
        knobs = {key: value for key, value in SETTINGS.items() if key not in ("validate_every", "save_minutes")}
        heptune.race(str(base), data, techniques=["lora", "prompt"], terms=terms, out=folder, **knobs)

    def exporting(kind: str) -> Victim:
        def work(folder: Path) -> None:
            if not folder.exists():
                heptune.export(parent, kind, out=folder)

        return Victim(f"export to {kind}", work, export_state)

    found = [training(name, base) for name in techniques.names()]
    found += [training("lora", parent, onto="stack"), Victim("a race", race, race_state)]
    return [*found, *(exporting(kind) for kind in ("hf", "gguf"))]


def run_state(folder: Path) -> Any:
    """Weights, optimizer's state, losses and the best step of a run."""
    from heptune.runs.run import Run

    run = Run(folder)
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    files = [*newest.glob("*.safetensors"), *(folder / "artifact").glob("*.safetensors")]
    losses = [(e["step"], e["loss"], e["gradient_norm"]) for e in run.events if e["event"] == "StepDone"]
    assert run.manifest["status"] == "finished"
    return {f"{f.parent.name}/{f.name}": f.read_bytes() for f in files}, losses, run.manifest["result"]["best_step"]


def race_state(folder: Path) -> Any:
    """Each candidate's artifact and losses, and what the verdict says but for measured costs."""
    from heptune.racing.race import Race
    from heptune.runs.run import Run

    race = Race(folder)
    assert race.values["status"] == "finished"
    judged = sorted((c["name"], str(c["score"]), str(c["seeds"])) for c in race.verdict["contenders"])
    found: dict[str, Any] = {}
    for manifest in sorted(folder.rglob("manifest.json")):
        run = Run(manifest.parent)
        weights = [file.read_bytes() for file in sorted((run.folder / "artifact").glob("*.safetensors"))]
        losses = [(e["step"], e["loss"]) for e in run.events if e["event"] == "StepDone"]
        found[str(manifest.parent.relative_to(folder))] = (weights, losses)
    return found, judged


def export_state(folder: Path) -> Any:
    """Every file of an export. A killed one leaves the folder whole or not at all."""
    compared = json.loads((folder / "parity.json").read_text("utf-8")) | {"written": ""}  # which says when
    files = {f.relative_to(folder): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}
    named = ("parity.json", "README.md")  # the page names its own folder
    return {str(path): content for path, content in files.items() if path.name not in named}, compared


def sitting(work: Callable[[], None], kill_after_s: float | None = None) -> int | None:
    """Does some work in a forked process; its exit code, or None where it was killed. Forking spares every sitting the
    seconds that imports take."""
    child = os.fork()
    if child == 0:
        os.setsid()
        quiet = os.open(os.devnull, os.O_WRONLY)
        told = os.dup(2)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        try:
            work()
        except BaseException as error:
            os.write(told, f"\n{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)
    end = time.monotonic() + (kill_after_s if kill_after_s is not None else 600)
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def attack(victim: Victim, place: Path, kills: int, draw: random.Random) -> tuple[int, list[str]]:
    """Kills a victim so many times; how often it was hit, and what went wrong."""
    whole, cut, takes, hits = place / "whole", place / "cut", 0.0, 0
    for folder in (place / "warm", whole):  # the first one takes longer
        began = time.monotonic()
        if sitting(lambda folder=folder: victim.work(folder)) != 0:  # type: ignore[misc]
            return 0, [f"{victim.name}: the undisturbed one failed"]
        takes = time.monotonic() - began
    for _ in range(kills):
        moment = draw.random() * takes
        code = sitting(lambda: victim.work(cut), moment)
        print(f"{victim.name}: after {moment:.3f} of {takes:.3f} s: {'killed' if code is None else code}", flush=True)
        if code not in (0, None):
            return hits, [f"{victim.name}: going on failed after a kill"]
        hits += code is None
        if code == 0:  # finished before it could be killed: from the beginning
            shutil.rmtree(cut)
    if sitting(lambda: victim.work(cut)) != 0:
        return hits, [f"{victim.name}: it did not come to its end"]
    problems = [] if victim.state(whole) == victim.state(cut) else [f"{victim.name}: not the same bits"]
    left = [path.name for path in place.rglob(".unfinished-*")]
    return hits, problems + [f"{victim.name}: left behind: {name}" for name in left]


def main(arguments: list[str] | None = None) -> int:
    """Attacks all victims in turn until enough were hit; prints survived / tried."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--each", type=int, default=4, help="kills of a victim before it may finish")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--only", default="", help="victims whose name has this in it")
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}")
    import torch

    torch.set_num_threads(1)
    draw, tally, problems = random.Random(options.seed), Counter[str](), []
    with tempfile.TemporaryDirectory() as folder:
        every = [victim for victim in victims(Path(folder)) if options.only in victim.name]
        while sum(tally.values()) < options.kills and not problems:
            for victim in every:
                place = Path(folder) / f"{victim.name}-{sum(tally.values())}".replace(" ", "-")
                place.mkdir()
                hits, found = attack(victim, place, options.each, draw)
                tally[victim.name] += hits
                problems += found
                shutil.rmtree(place)
                if sum(tally.values()) >= options.kills:
                    break
    for name, hits in tally.items():
        print(f"{name}: {hits} kills")
    print("\n".join(problems) or f"survived {sum(tally.values())} of {sum(tally.values())} kills")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
