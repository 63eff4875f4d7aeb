"""What a second round brings, and what it forgets: films first, then products, in several ways.

    python benchmarks/rounds.py --data ../shared/data --threads 2

Each second round goes on from the same first one and is compared with it on what both hold out, under a guard of 0.02.
It runs the commands that it prints and writes docs/results/rounds.json; the tables are made by docs/generate.py.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from commands import run

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
REFUSED = 3  # the exit status of a round that its guard refuses
WAYS = {
    "continued": "",
    "continued, with replay": "--replay 0.25",
    "stacked": "--onto stack",
    "merged, then prompt": "--onto merge --technique prompt",
}


def main() -> None:
    """Tunes the first round, then a second one in every way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder that holds the sets")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--out", type=Path, default=Path("runs/rounds"), help="the folder of the new run directories")
    chosen = parser.parse_args()
    films = chosen.out / "films"
    first = f"heptune tune minilm {chosen.data / 'sst2'} --limit 2000 --batch-size 16 --epochs 2 --out {films}"
    run(first, chosen.threads)
    found: dict[str, Any] = {"first": first, "second": {}}
    for number, (way, options) in enumerate(WAYS.items(), 1):
        out = chosen.out / f"products-{number}"
        products = chosen.data / "customer_reviews" / "all.jsonl"
        knobs = f"--skip-bad --batch-size 16 --epochs 1 --guard 0.02 {options}".strip()
        command = f"heptune tune {films} {products} {knobs} --out {out}"
        run(command, chosen.threads, accepted=(0, REFUSED))
        manifest = json.loads((out / "manifest.json").read_text("utf-8"))
        guarded = manifest["guarded"]
        for each in guarded["rounds"]:
            del each["run"]  # where it lies on this machine
        time_s = manifest["result"]["time_s"]
        found["second"][way] = {"command": command, "guarded": guarded, "time_s": time_s}
        found |= {"versions": manifest["versions"], "threads": manifest["threads"]}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "rounds.json"
    path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    print(f"written to {path}; now run docs/generate.py")


if __name__ == "__main__":
    main()
