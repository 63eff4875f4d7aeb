"""What tuning is worth on a real data set: trains with the settings below, scores the test part, keeps the figures.

    python benchmarks/quality.py sst2 --data ../shared/data --threads 2

It runs the two commands that it prints, `heptune tune` and `heptune eval`, and writes docs/results/NAME.json. The
tables in the README and in docs/results are generated from that file (docs/generate.py).
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
SETTINGS = "--limit 2000 --batch-size 16 --learning-rate 5e-4 --epochs"
SETS = {"sst2": f"{SETTINGS} 1", "trec": f"{SETTINGS} 2"}


def main() -> None:
    """Tunes and scores one set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SETS)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder that holds the sets")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="the folder of the new run directory")
    chosen = parser.parse_args()
    run = chosen.out / chosen.name
    tune = f"heptune tune {chosen.base} {chosen.data / chosen.name} {SETS[chosen.name]} --out {run}"
    score = f"heptune eval {run}"
    for command in (tune, score):
        print(f"$ {command}", flush=True)
    heptune = [sys.executable, "-m", "heptune.cli.main"]
    threads = ["--threads", chosen.threads]
    subprocess.run([*heptune, *shlex.split(tune)[1:], *threads], check=True)
    done = subprocess.run([*heptune, *shlex.split(score)[1:], "--json", *threads], check=True, stdout=subprocess.PIPE)
    evaluation = json.loads(done.stdout)
    evaluation.pop("shown")  # the examples belong to the data set, not to this project
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    kept = ("technique", "settings", "steps", "trainable", "versions", "threads", "result")
    report = {"commands": [tune, score], "run": {key: manifest[key] for key in kept}, "evaluation": evaluation}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{chosen.name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    print(f"written to {path}; now run docs/generate.py")


if __name__ == "__main__":
    main()
