"""How often the verdict is right: simulated races whose truth is known.

    python benchmarks/verdict.py --rounds 1000

A contender answers an example right where a sum of normal parts is above zero: its own level, its seed's effect, and
(together of variance one) how hard the example is, how this technique takes it, how this one trained model takes it. So
the true accuracy of a technique is known exactly. Every line of the table is one kind of race, told in points of
accuracy; each counts over its rounds

- together: all intervals of the race hold the truth at once (promised: 95 %)
- told apart wrongly: some pair of equal contenders is called different (promised: at most 5 %)
- each score: a contender's own interval holds its truth (promised: 95 %)
- half width: the median half width of the interval of the first pair
- power: the share of races in which a difference of 2, 5 and 10 points between two techniques is found
- optimism: the winner's score minus its truth, where the gap is zero and costs are drawn by lot

Results go to docs/results/verdict.json; docs/generate.py makes the table.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtri
from scipy.stats import norm

from heptune.core.seeds import generator
from heptune.racing.decision import Contender, Serving, decide
from heptune.runs.files import write_json
from heptune.scoring.comparison import Comparison, compare

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "verdict.json"
ACCURACY = 0.85
# How alike models' answers are, as shares of the latent variance: hardness, technique, single model. The correlation
# of the latent values is 0.4, 0.7 and 0.9 between models of one technique.
ALIKE = {"little": (0.3, 0.1, 0.6), "middling": (0.5, 0.2, 0.3), "much": (0.75, 0.15, 0.1)}
GAPS = (0.02, 0.05, 0.10)
DRAWS = 2000


@dataclass(frozen=True)
class Kind:
    """One kind of race. `seed_points`: standard deviation of a technique's accuracy over seeds, in points; with
    `uneven`, half that for every other technique and more for the rest, the mean variance being the same."""

    examples: int
    seed_points: float
    techniques: int
    seeds: int = 2
    baselines: int = 0
    alike: str = "middling"
    uneven: bool = False


KINDS = (
    *(Kind(n, points, 2) for n in (100, 500, 2000) for points in (0.3, 1.5)),
    *(Kind(500, 1.0, 3, alike=alike) for alike in ALIKE),
    *(Kind(n, 1.0, 3, baselines=4) for n in (100, 500, 2000)),
    Kind(500, 1.0, 5, baselines=4),
    Kind(500, 1.0, 1, baselines=4),
    Kind(500, 1.0, 3, seeds=3, baselines=4),
    Kind(500, 1.0, 3, seeds=5, baselines=4),
    Kind(500, 1.0, 3, baselines=4, uneven=True),
    Kind(2000, 1.5, 4, uneven=True),
)


def race(random: np.random.Generator, kind: Kind, gap: float) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Answers and true accuracies. The first technique is better by `gap` than the others; baselines are worse by
    0 (as good as the other techniques), 5, 15 and 30 points."""
    hard, taste, single = (math.sqrt(share) for share in ALIKE[kind.alike])
    spread = kind.seed_points / 100 / norm.pdf(ndtri(ACCURACY))
    easy = random.standard_normal(kind.examples)
    answers, truth = {}, {}
    for c in range(kind.techniques):
        own = spread * ((0.5, math.sqrt(1.75))[c % 2] if kind.uneven else 1.0)
        share = ACCURACY + (gap if c == 0 else 0.0)
        level = float(ndtri(share)) * math.sqrt(1 + own**2)
        latent = level + hard * easy + taste * random.standard_normal(kind.examples)
        latent = latent + own * random.standard_normal((kind.seeds, 1))
        answers[f"technique {c}"] = latent + single * random.standard_normal((kind.seeds, kind.examples)) > 0
        truth[f"technique {c}"] = share
    for c, less in enumerate((0.0, 0.05, 0.15, 0.30)[: kind.baselines]):
        latent = float(ndtri(ACCURACY - less)) + hard * easy
        latent = latent + math.hypot(taste, single) * random.standard_normal(kind.examples)
        answers[f"baseline {c}"] = latent[None] > 0
        truth[f"baseline {c}"] = ACCURACY - less
    return {name: rows.astype(float) for name, rows in answers.items()}, truth


def judged(answers: dict[str, np.ndarray], seed: int) -> Comparison:
    """The comparison as a race makes it."""
    return compare(answers, trained=[name for name in answers if name[0] == "t"], draws=DRAWS, seed=seed)


def winner(answers: dict[str, np.ndarray], result: Comparison, random: np.random.Generator) -> str:
    """The verdict's winner where costs have nothing to do with scores."""
    serving = Serving(0, 0, 0.0, "")
    contenders = [
        Contender(name, "technique", rows, float(random.integers(100, 1000)), 0, 0, serving)
        for name, rows in answers.items()
    ]
    scores = {name: interval.value for name, interval in result.scores.items()}
    near = {(p.a, p.b): result.near(p.a, p.b) for p in result.pairs}
    return decide(contenders, scores, {(p.a, p.b): p.tie for p in result.pairs}, near).winner


def measured(kind: Kind, rounds: int) -> dict[str, Any]:
    """What the head of this file lists, for one kind of race."""
    random = generator(0, "verdict", *map(str, asdict(kind).values()))
    together = wrong = hits = scores = 0
    widths, optimism = [], []
    for n in range(rounds):
        answers, truth = race(random, kind, 0.0)
        result = judged(answers, n)
        inside = [p.difference.low <= truth[p.a] - truth[p.b] <= p.difference.high for p in result.pairs]
        together += all(inside)
        wrong += any(not p.tie for p in result.pairs if truth[p.a] == truth[p.b])
        hits += sum(i.low <= truth[name] <= i.high for name, i in result.scores.items())
        scores += len(truth)
        first = result.pairs[-1].difference  # pairs stand in the order of names: the last are techniques
        widths.append((first.high - first.low) / 2)
        chosen = winner(answers, result, random)
        optimism.append(result.scores[chosen].value - truth[chosen])
    power = {}
    for gap in GAPS if kind.techniques > 1 else ():
        found = 0
        for n in range(rounds // 2):
            answers, _ = race(random, kind, gap)
            found += not judged(answers, n).pair("technique 0", "technique 1").tie
        power[f"{100 * gap:g}"] = found / (rounds // 2)
    return {
        **asdict(kind),
        "rounds": rounds,
        "together": together / rounds,
        "told_apart_wrongly": wrong / rounds,
        "each_score": hits / scores,
        "half_width": float(np.median(widths)),
        "power": power,
        "optimism": float(np.mean(optimism)),
        "optimism_error": float(np.std(optimism) / math.sqrt(rounds)),
    }


def main() -> int:
    """Exit status 1 where a promise is broken by more than luck explains (four standard errors)."""
    parser = argparse.ArgumentParser(description="Simulated races with known truth.")
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows, began = [], time.monotonic()
    for n, kind in enumerate(KINDS, 1):
        rows.append(measured(kind, arguments.rounds))
        print(f"{n} of {len(KINDS)}, {time.monotonic() - began:.0f} s: {rows[-1]}", flush=True)
    write_json(arguments.out, {"accuracy": ACCURACY, "alike": ALIKE, "races": rows})
    luck = 4 * math.sqrt(0.05 * 0.95 / arguments.rounds)
    broken = [row for row in rows if row["together"] < 0.95 - luck or row["told_apart_wrongly"] > 0.05 + luck]
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
