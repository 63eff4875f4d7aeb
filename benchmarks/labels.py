"""How fast many labels are scored: all of a text's labels in one forest, beside one forward pass for each label.

    python benchmarks/labels.py --data ../shared/data --threads 1

The set is banking77, whose 77 labels all stand in the instruction. For each text both ways score every label exactly:
log p(label, end of turn | text).

- plain: the prompt and one label as one call of the transformers model, batch of 1, no cache, logits only where the
  label is predicted (`logits_to_keep`, which spares it most of the head's work); 77 calls a text
- forest: `Scorer.labels`, which `heptune eval` and `heptune chat` use; one call a text
- together: the same with all texts at once, as `heptune eval` does it; texts then share the instruction too

Plain and forest take turns, text by text, and the other one begins each time; one label and one forest are scored
before, untimed. Their scores have to agree, or nothing is written. Results go to docs/results/labels.json; the tables
are made by docs/generate.py. On one core a text takes minutes: nearly all of it is the plain calls.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from heptune.data.readers import read
from heptune.data.record import Record
from heptune.data.splits import sample
from heptune.engine.forward import Forward
from heptune.models.anatomy import dissect
from heptune.models.load import load_base
from heptune.runs.files import write_json
from heptune.scoring.score import Scorer
from heptune.tasks.classify import Classify
from heptune.tasks.example import Example
from heptune.tasks.template import ChatTemplate
from heptune.tuning.training import SCORING_ROWS

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "labels.json"
# float32 sums in another order; what is wrong differs by 1e-2 and more.
AGREE = 1e-4


class Differ(Exception):
    """The two ways do not give the same scores."""


@torch.no_grad()
def plain(model: torch.nn.Module, candidates: Sequence[Example]) -> np.ndarray:
    """log p(label, end of turn | text) of every label, [labels], one call of the model each."""
    found = []
    for candidate in candidates:
        tokens, lead = torch.tensor([candidate.tokens]), candidate.lead
        targets = tokens[0, lead:]
        logits = model(input_ids=tokens, use_cache=False, logits_to_keep=len(targets) + 1).logits[0, :-1]
        found.append(float(logits.double().log_softmax(-1)[torch.arange(len(targets)), targets].sum()))
    return np.array(found)


def measure(model: torch.nn.Module, scorer: Scorer, task: Classify, records: Sequence[Record]) -> dict[str, Any]:
    """Both ways over the records, in turn. `model` is a plain one of the same weights."""

    def candidates(record: Record) -> tuple[Example, ...]:
        return task.candidates(record, 0, scorer.template, scorer.max_length)

    ways = {
        "plain": lambda record: plain(model, candidates(record)),
        "forest": lambda record: scorer.labels(task, [record], "scoring")[0],
    }
    plain(model, candidates(records[0])[:1])
    ways["forest"](records[0])
    texts, scores = [], []
    for number, record in enumerate(records):
        own = candidates(record)
        timed: dict[str, Any] = {"prompt_tokens": own[0].lead, "label_tokens": sum(each.targets for each in own)}
        found = {}
        for name in ("plain", "forest") if number % 2 == 0 else ("forest", "plain"):
            began = time.perf_counter()
            found[name] = ways[name](record)
            timed[f"{name}_s"] = time.perf_counter() - began
        texts.append(timed)
        scores.append(found)
        print(f"{number + 1}/{len(records)}: {timed['plain_s']:.2f} s, {timed['forest_s']:.2f} s", flush=True)
    began = time.perf_counter()
    together = scorer.labels(task, records, "scoring")
    together_s = time.perf_counter() - began
    want = np.array([found["plain"] for found in scores])
    got = (np.array([found["forest"] for found in scores]), together)
    difference = max(float((np.abs(each - want) / np.abs(want)).max()) for each in got)
    if difference > AGREE:
        raise Differ(f"the scores differ by {difference:.2g} of their size, more than {AGREE:g}")
    return {"texts": texts, "together_s": together_s, "largest_difference": difference, **ratios(texts, together_s)}


def ratios(texts: Sequence[dict[str, Any]], together_s: float) -> dict[str, Any]:
    """How many times faster, text by text, and all texts together."""
    each = [text["plain_s"] / text["forest_s"] for text in texts]
    return {
        "ratio": {"median": statistics.median(each), "min": min(each), "max": max(each)},
        "ratio_together": sum(text["plain_s"] for text in texts) / together_s,
    }


def main() -> int:
    """Measures and keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder that holds the sets")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    task = Classify.from_records(read(chosen.data / "banking77" / "train.jsonl").records)
    held_out = read(chosen.data / "banking77" / "test.jsonl").records
    records = [held_out[i] for i in sample(held_out, range(len(held_out)), chosen.texts, seed=0)]
    base, other = load_base(chosen.base, dtype=torch.float32), load_base(chosen.base, dtype=torch.float32)
    scorer = Scorer(Forward(dissect(base.model)), ChatTemplate(base.tokenizer), chosen.max_length, SCORING_ROWS)
    try:
        found = measure(other.model.eval(), scorer, task, records)
    except Differ as error:
        print(error, file=sys.stderr)
        return 1
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    report = {
        "base": chosen.base,
        "machine": machine,
        "labels": len(task.labels),
        "threads": chosen.threads,
        **found,
        "versions": versions,
    }
    write_json(chosen.out, report)
    ratio = found["ratio"]
    print(f"{ratio['median']:.1f} times faster ({ratio['min']:.1f} to {ratio['max']:.1f}); now run docs/generate.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
