"""Is a race's pick as good as trying everything? The race, then the exhaustive grid on the same data.

    python benchmarks/race.py sst2 --data ../shared/data        one set; writes docs/results/race_sst2.json

First the race runs as `heptune race` runs it. Then every candidate that it dropped goes on from its checkpoint to the
full length, which gives the bits of a training that was never dropped: together that is the exhaustive grid. All are
scored on the same test examples.

- regret: the best test score of the grid minus that of the race's winner, with its interval (the first seed of both);
  and minus that of the better finalist, which is another thing where a baseline has won
- cost: training, validating and testing, all candidates' together; the race's further seeds are part of its cost, not
  of the grid's. Steps are priced at the median of their technique's, validations and tests at theirs: what else the
  machine did meanwhile would fall on one or the other.

An interrupted benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from heptune import api
from heptune.core.events import Event, RungDecided, StageStarted
from heptune.racing import course, work
from heptune.racing.outcomes import kept_outcomes
from heptune.racing.race import Race
from heptune.runs.files import write_json
from heptune.runs.run import Run
from heptune.scoring.comparison import compare

SETS = {"sst2": "sst2", "trec": "trec", "customer_reviews": "customer_reviews/all.jsonl", "vader": "vader/amazon.jsonl"}
RESULTS = Path("docs/results")


def main() -> int:
    """Exit status 0 when everything has a result."""
    arguments = _arguments()
    folder = arguments.races / arguments.name
    made = Race(folder) if folder.exists() else _enter(arguments, folder)
    if made.values["status"] != "finished":
        made = course.run(made, course.place_of(made), tell, keep_dropped=True)
    if made.values["status"] != "finished":
        return 1
    report = _race_report(made)
    _finish_the_grid(made)
    report |= _grid_report(made, report)
    path = arguments.out or RESULTS / f"race_{arguments.name}.json"
    write_json(path, {"set": arguments.name, **report})
    print(json.dumps({k: v for k, v in report.items() if k != "grid"}, indent=1))
    print(f"everything is in {path}")
    if not arguments.keep:
        shutil.rmtree(folder)
    return 0


def tell(event: Event) -> None:
    """A line for each stage and each decision."""
    if isinstance(event, StageStarted):
        print(f"{time.strftime('%H:%M:%S')} {event.what}: {len(event.names)} to go", flush=True)
    if isinstance(event, RungDecided):
        for standing in event.standings:
            print(f"  {'+' if standing['kept'] else '-'} {standing['candidate']} {standing['metrics']}", flush=True)


def _enter(arguments: argparse.Namespace, folder: Path) -> Race:
    problem = api.problems.pose(
        arguments.data / SETS[arguments.name],
        None,
        api.DataOptions(limit=arguments.limit, skip_bad=True),
        api.TaskOptions(),
        arguments.seed,
        tell,
    )
    settings = api.Settings(
        epochs=100,
        max_steps=arguments.steps,
        batch_size=arguments.batch_size,
        validation_limit=arguments.validation_limit,
        seed=arguments.seed,
    )
    chosen = [api.registry.build(name) for name in api.registry.names()]
    terms = api.Terms(test_limit=arguments.test_limit)
    return api.enter(folder, arguments.base, problem, chosen, settings, terms, None, "here", sys.argv, tell)


def _race_report(made: Race) -> dict[str, Any]:
    """What the race concluded."""
    return {
        "winner": made.verdict["winner"],
        "words": made.verdict["words"],
        "finals": made.values["finals"],
        "finalists": [final["candidate"] for final in made.values["finals"]],
        "steps": made.steps,
        "settings": made.values["settings"],
        "versions": made.values["versions"],
        "test_examples": made.verdict["examples"],
        "scores": {c["name"]: c["score"] for c in made.verdict["contenders"]},
    }


@dataclass(frozen=True)
class Prices:
    """Medians over all that was done: seconds of a step by technique, of a validation, of a test."""

    step_s: dict[str, float]
    validation_s: float
    test_s: float

    @classmethod
    def of(cls, made: Race) -> Prices:
        """What was paid in the race and in its grid."""
        steps: dict[str, list[float]] = {}
        validations, tests = [], []
        for path in made.folder.glob("*/*/manifest.json"):
            run = Run(path.parent)
            of_technique = steps.setdefault(run.manifest["technique"]["name"], [])
            for before, event in pairwise(run.events):
                if event["event"] == "StepDone":
                    of_technique.append(event["time_s"])
                if event["event"] == "Validated" and before["event"] == "StepDone":
                    validations.append(event["at"] - before["at"])
            if (path.parent / "test.json").exists():
                tests.append(json.loads((path.parent / "test.json").read_text("utf-8"))["scoring_s"])
        return cls(
            {name: statistics.median(times) for name, times in steps.items()},
            statistics.median(validations),
            statistics.median(tests),
        )

    def training(self, technique: str, steps: int, validations: int) -> float:
        """Seconds of a training with its validations."""
        return steps * self.step_s[technique] + validations * self.validation_s


def _race_s(made: Race, prices: Prices) -> float:
    """What the race cost: everyone to the rung where it was dropped, the finalists' seeds, their tests."""
    seconds = 0.0
    reached = {s["candidate"]: rung["step"] for rung in made.values["rungs"] for s in rung["standings"]}
    reached |= {final["candidate"]: made.steps for final in made.values["finals"]}
    for name, step in reached.items():
        validations = sum(rung <= step for rung in made.rungs)
        seconds += prices.training(made.entry(name)["technique"], step, validations)
    for final in made.values["finals"]:
        further = len(final["runs"]) - 1
        seconds += further * prices.training(made.entry(final["candidate"])["technique"], made.steps, 1)
        seconds += len(final["runs"]) * prices.test_s
    return seconds


def _finish_the_grid(made: Race) -> None:
    """Every candidate to the full length, and tested."""
    place = course.place_of(made)
    threads, limit, seed = made.values["threads"], made.values["test_limit"], made.values["settings"]["seed"]
    folders = [str(made.run_folder(entry["name"])) for entry in made.values["candidates"]]
    try:
        futures = [place.submit(work.advance, folder, made.steps, threads) for folder in folders]
        for done, future in enumerate(futures, 1):
            future.result()
            print(f"{time.strftime('%H:%M:%S')} grid: {done} of {len(futures)} trained", flush=True)
        able = [folder for folder in folders if Run(folder).manifest["status"] == "finished"]
        futures = [place.submit(work.answers, folder, limit, seed, threads) for folder in able]
        for future in futures:
            future.result()
    finally:
        place.close()


def _grid_report(made: Race, report: dict[str, Any]) -> dict[str, Any]:
    outcomes: dict[str, np.ndarray] = {}
    failed = {}
    for entry in made.values["candidates"]:
        folder = made.run_folder(entry["name"])
        if (folder / "test.json").exists():
            outcomes[entry["name"]] = np.array([kept_outcomes(folder)["correct"]], dtype=float)
        else:
            failed[entry["name"]] = Run(folder).manifest.get("error", "not finished")
    prices = Prices.of(made)
    full = [prices.training(made.entry(name)["technique"], made.steps, len(made.rungs)) for name in outcomes]
    race_s, grid_s = _race_s(made, prices), sum(full) + len(full) * prices.test_s
    scores = {name: float(rows.mean()) for name, rows in outcomes.items()}
    best = max(scores, key=scores.__getitem__)
    won = next((f["candidate"] for f in report["finals"] if f["contender"] == report["winner"]), None)
    pick = won or report["winner"]
    if won is None:
        answers = json.loads((made.folder / "baselines.json").read_text("utf-8"))
        outcomes[pick] = np.array([answers[pick]["correct"]], dtype=float)
    value = float(outcomes[pick].mean())
    finalist = max((name for name in report["finalists"] if name in scores), key=scores.__getitem__)

    def apart(name: str) -> dict[str, float] | None:
        """The best of the grid minus another, one training each, over examples; None where it is the best."""
        if name == best:
            return None
        pair = {best: outcomes[best], name: outcomes[name]}
        found = compare(pair).pair(best, name).difference
        return {"value": found.value, "low": found.low, "high": found.high}

    return {
        "grid": scores,
        "failed": failed,
        "race_s": race_s,
        "grid_s": grid_s,
        "cost_share": race_s / grid_s,
        "best": best,
        "best_score": scores[best],
        "pick": pick,
        "pick_score": value,
        "regret": apart(pick),
        "best_finalist": finalist,
        "finalist_regret": apart(finalist),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("name", choices=SETS)
    add("--data", type=Path, default=Path("../shared/data"), help="the folder that holds the sets")
    add("--base", default="smollm2-135m")
    add("--limit", type=int, default=512, help="most training examples; default: 512")
    add("--steps", type=int, default=24, help="optimizer steps of a full training; default: 24")
    add("--batch-size", type=int, default=8, help="examples a step; default: 8")
    add("--validation-limit", type=int, default=48, help="examples that judge on the way; default: 48")
    add("--test-limit", type=int, default=250, help="test examples; default: 250")
    add("--seed", type=int, default=0)
    add("--races", type=Path, default=Path("races/benchmark"), help="where the races lie")
    add("--keep", action="store_true", help="keep the race's directory; full tuning takes gigabytes")
    add("--out", type=Path, help="the JSON file; default: docs/results/race_NAME.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
