"""What tuning is worth on a real data set: trains with the settings below, scores the test part, keeps the figures.

    python benchmarks/quality.py sst2 --data ../shared/data --threads 2

It runs the two commands that it prints, `heptune tune` and `heptune eval`, and writes docs/results/NAME.json. The
tables in the README and in docs/results are generated from that file (docs/generate.py).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import commands

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
SETTINGS = "--limit 2000 --batch-size 16 --learning-rate 5e-4 --epochs"
WORDS, ENCODER = "smollm2-135m", "minilm"


@dataclass(frozen=True)
class Set:
    """A base, a data set in the folder of the sets ({data} in what follows), how it is tuned, and how it is scored."""

    base: str
    data: str
    tune: str
    score: str = ""


# What encoders learn with a linear head, what small decoders answer in words, and what they say.
SETS = {
    "sst2": Set(WORDS, "sst2", f"{SETTINGS} 1"),
    "trec": Set(WORDS, "trec", f"{SETTINGS} 2"),
    "minilm_sst2": Set(ENCODER, "sst2", "--limit 2000 --batch-size 16 --epochs 2"),
    "minilm_trec": Set(ENCODER, "trec", "--limit 2000 --batch-size 16 --epochs 3"),
    "minilm_banking77": Set(ENCODER, "banking77", "--batch-size 32 --epochs 2"),
    "minilm_ncbi_disease": Set(ENCODER, "ncbi_disease", "--batch-size 16 --epochs 3"),
    "minilm_wnut17": Set(ENCODER, "wnut17", "--batch-size 16 --epochs 3"),
    "minilm_wikigold": Set(ENCODER, "wikigold/all.jsonl", "--batch-size 16 --epochs 3"),
    "copa": Set(WORDS, "copa/train.jsonl", "--test {data}/copa/dev.jsonl --batch-size 8 --epochs 2"),
    "pubmedqa": Set(
        WORDS,
        "pubmedqa",
        "--column answers=final_decision --batch-size 8 --epochs 1 --max-length 512",
        "--limit 100 --column answers=final_decision",
    ),
    "wikigold": Set(WORDS, "wikigold/all.jsonl", "--task extract --batch-size 16 --epochs 1", "--limit 120"),
    "chitchat": Set(WORDS, "chitchat", "--column messages=turns --batch-tokens 2048 --epochs 1 --max-length 512"),
}


def main() -> None:
    """Tunes and scores one set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SETS)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder that holds the sets")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="the folder of the new run directory")
    chosen = parser.parse_args()
    run = chosen.out / chosen.name
    one = SETS[chosen.name]
    settings = one.tune.format(data=chosen.data)
    tune = f"heptune tune {one.base} {chosen.data / one.data} {settings} --out {run}"
    score = f"heptune eval {run} {one.score}".strip()
    commands.run(tune, chosen.threads)
    evaluation = json.loads(commands.run(f"{score} --json", chosen.threads, captured=True))
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
