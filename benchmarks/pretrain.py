"""What a new model learns from a small corpus in minutes, and what tuning it further on another brings.

    python benchmarks/pretrain.py --data ../shared/data --threads 2 --minutes 5

It runs the commands that it prints and writes docs/results/pretrain.json, from which the tables of
docs/results/pretrain.md are generated (docs/generate.py).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from commands import run

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
KEPT = ("technique", "settings", "steps", "trainable", "versions", "threads", "result", "pretrain")


def main() -> None:
    """Pre-trains on plays, tunes on tales, scores both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder that holds the sets")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--minutes", default="5", help="training time of the pre-training")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="the folder of the new run directories")
    chosen = parser.parse_args()
    plays, tales = chosen.data / "tinyshakespeare/input.txt", chosen.data / "grimm_tales/all.txt"
    first, second = chosen.out / "plays", chosen.out / "tales"
    limit = f"--batch-tokens 1024 --max-minutes {chosen.minutes}"
    commands = {
        "plays": (f"heptune pretrain llama-1m {plays} {limit} --out {first}", first),
        "tales": (
            f"heptune tune {first}/base {tales} --technique full --learning-rate 1e-3 --batch-tokens 1024 "
            f"--epochs 1 --out {second}",
            second,
        ),
    }
    found: dict[str, Any] = {}
    for name, (command, folder) in commands.items():
        score = f"heptune eval {folder}"
        run(command, chosen.threads)
        evaluation = json.loads(run(f"{score} --json", chosen.threads, captured=True))
        evaluation.pop("shown")  # the texts belong to the data set, not to this project
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        kept = {key: manifest[key] for key in KEPT if key in manifest}
        found[name] = {"commands": [command, score], "run": kept, "evaluation": evaluation}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "pretrain.json"
    path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    print(f"written to {path}; now run docs/generate.py")


if __name__ == "__main__":
    main()
