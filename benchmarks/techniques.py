"""All techniques on one real data set under one budget: what each is worth, and what it costs.

    python benchmarks/techniques.py sst2 --data ../shared/data --threads 2

Every technique takes the same number of optimizer steps on the same batches in the same order, and so learns from the
same supervised tokens. First its learning rate is chosen: short runs at multiples of its default, judged after their
last step on the validation part by the label log-loss (accuracy decides between equal ones); when the best rate lies at
the edge of the grid, the grid is extended once beyond it. Then one full run without validation, whose last step's
weights `heptune eval` scores on the test part.

Each run is one process: the commands that are printed. What is done is kept in docs/results/techniques_NAME.json after
each technique and not done again without --again. A run that fails is recorded with its error.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from heptune import techniques
from heptune.core.errors import HeptuneError
from heptune.core.units import format_seconds
from heptune.data.readers import locate
from heptune.runs.files import write_json
from heptune.runs.run import Run

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
SETS = ("sst2", "trec")
# The options that decide what is measured; results under other ones cannot stand in one table.
SETTINGS = ("base", "limit", "batch_size", "steps", "search_steps", "rates", "validation_limit", "test_limit", "seed")


class Failed(Exception):
    """A command failed, or did not do what was asked."""


def main() -> int:
    """Exit status 0 when every technique has a result, 1 otherwise."""
    arguments = _arguments()
    path = arguments.out or RESULTS / f"techniques_{arguments.name}.json"
    report = opened(path, arguments)
    results = report["techniques"]
    todo = [name for name in arguments.techniques if arguments.again or not measured(results, name)]
    for name in arguments.techniques:
        if name not in todo:
            print(f"{name} is measured already (--again measures it once more)", flush=True)
    if todo and "base_resident_bytes" not in report:
        report["base_resident_bytes"] = in_own_process(resident_with_base, arguments.base)
    bench, began = Bench(arguments, report), time.monotonic()
    for count, name in enumerate(todo, 1):
        results[name] = bench.measure(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, report)
        spent = time.monotonic() - began
        left = format_seconds(spent / count * (len(todo) - count))
        said = results[name].get("error") or f"accuracy {results[name]['metrics']['accuracy']['value']:.3f}"
        print(f"{name}: {said}; {count} of {len(todo)} in {format_seconds(spent)}, about {left} left", flush=True)
    print(f"everything is in {path}; now run docs/generate.py")
    return 0 if all(measured(results, name) for name in arguments.techniques) else 1


def opened(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """What an earlier call left, or the beginning of a report. Leaves the program when it does not fit these settings.

    With --again and other settings everything is measured anew.
    """
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    fresh: dict[str, Any] = {"set": arguments.name, "settings": settings, "techniques": {}}
    if not path.exists():
        return fresh
    report: dict[str, Any] = json.loads(path.read_text("utf-8"))
    differ = [name for name in SETTINGS if report["settings"].get(name) != settings[name]]
    if differ and not arguments.again:
        found = ", ".join(f"--{n.replace('_', '-')} {report['settings'].get(n)} -> {settings[n]}" for n in differ)
        raise SystemExit(f"{path} was measured with other settings ({found}); give the same, --again, or another --out")
    return fresh if differ else report


def measured(results: dict[str, Any], name: str) -> bool:
    """Whether there is a result that is no failure."""
    return "error" not in results.get(name, {"error": "not measured"})


class Bench:
    """Measures techniques on one data set; each command is a process of its own."""

    def __init__(self, arguments: argparse.Namespace, report: dict[str, Any]) -> None:
        self.arguments, self.report = arguments, report
        self.folder = arguments.runs / arguments.name
        self.parts = locate(arguments.data / arguments.name)

    def measure(self, name: str) -> dict[str, Any]:
        """One technique: the search, the full run and its scores; or its error, with what was found before it."""
        search: list[dict[str, Any]] = []
        try:
            self.search(name, search)
            rate = best(search)["learning_rate"]
            rates = sorted(trial["learning_rate"] for trial in search)
            chosen = {"learning_rate": rate, "at_the_edge": len(rates) > 1 and rate in (rates[0], rates[-1])}
            return chosen | {"search": search} | self.full(name, rate)
        except (Failed, HeptuneError) as error:
            return {"error": str(error), "search": search}

    def search(self, name: str, trials: list[dict[str, Any]]) -> None:
        """Adds the trials: the grid from below, then one rate beyond the edge where the best lies at it."""
        default = techniques.build(name).learning_rate
        for factor in sorted(self.arguments.rates):
            trials.append(self.trial(name, rounded(default * factor)))
        if all("error" in trial for trial in trials):
            raise Failed(f"every learning rate failed; the last one: {trials[-1]['error']}")
        if (beyond := beyond_the_edge(trials)) is not None:
            trials.append(self.trial(name, beyond))

    def trial(self, name: str, rate: float) -> dict[str, Any]:
        """A short run at one rate, and what the validation part says after its last step."""
        folder = self.folder / name / f"search-{rate:g}"
        validation = f"--validation {self.parts.validation}" if self.parts.validation else ""
        options = f"{validation} --validation-limit {self.arguments.validation_limit}"
        try:
            run = self.tune(name, rate, self.arguments.search_steps, folder, options)
        except Failed as error:
            return {"learning_rate": rate, "error": str(error)}
        metrics = [event["metrics"] for event in run.events if event["event"] == "Validated"][-1]
        self.drop(folder)
        print(f"  {', '.join(f'{key} {value:.4f}' for key, value in metrics.items())}", flush=True)
        if not math.isfinite(metrics["loss"]):
            return {"learning_rate": rate, "error": f"the validation loss is {metrics['loss']}"}
        return {"learning_rate": rate, **metrics}

    def full(self, name: str, rate: float) -> dict[str, Any]:
        """The whole budget at the chosen rate, scored on the test part."""
        folder = self.folder / name / "full"
        run = self.tune(name, rate, self.arguments.steps, folder, "--validation 0")
        self.check_budget(name, run.manifest["result"])
        score = f"heptune eval {folder} --limit {self.arguments.test_limit}"
        evaluation = json.loads(self.command(f"{score} --json"))
        rows = {row["name"]: row["metrics"] for row in evaluation["rows"]}
        self.report["test_examples"] = evaluation["examples"]
        self.report["baselines"] = {row: metrics for row, metrics in rows.items() if row != "tuned"}
        result, steps = run.manifest["result"], [event for event in run.events if event["event"] == "StepDone"]
        training_s = sum(step["time_s"] for step in steps)
        self.drop(folder)
        kept = ("steps", "tokens", "supervised_tokens", "peak_memory_bytes", "artifact_bytes")
        return {
            "metrics": rows["tuned"],
            "trainable": run.manifest["trainable"],
            "training_s": training_s,
            "tokens_per_second": result["tokens"] / training_s,
            "rows": sum(step["rows"] for step in steps),
            **{key: result[key] for key in kept},
            "settings": run.manifest["technique"]["settings"],
            "heptune": run.manifest["heptune"],
            "versions": run.manifest["versions"],
            "threads": run.manifest["threads"],
            "commands": [self.tune_line(name, rate, self.arguments.steps, folder, "--validation 0"), score],
        }

    def check_budget(self, name: str, result: dict[str, Any]) -> None:
        """All techniques of one table learn from the same tokens."""
        for other, found in self.report["techniques"].items():
            for key in ("steps", "tokens", "supervised_tokens"):
                if other != name and "error" not in found and found[key] != result[key]:
                    raise Failed(f"{result[key]} {key}, but {other} took {found[key]}: not one budget")

    def tune(self, name: str, rate: float, steps: int, folder: Path, validation: str) -> Run:
        """One training from the beginning; what an earlier one left in its folder is removed."""
        shutil.rmtree(folder, ignore_errors=True)
        self.command(self.tune_line(name, rate, steps, folder, validation))
        run = Run(folder)
        if (taken := run.manifest["result"]["steps"]) != steps:
            raise Failed(f"{taken} steps were taken instead of {steps}")
        return run

    def tune_line(self, name: str, rate: float, steps: int, folder: Path, validation: str) -> str:
        """The command. `--epochs` leaves room for all steps; `--max-steps` ends the run."""
        a = self.arguments
        test = f"--test {self.parts.test}" if self.parts.test else ""
        text = (
            f"heptune tune {a.base} {self.parts.train} {validation} {test} --technique {name} --learning-rate {rate:g} "
            f"--limit {a.limit} --batch-size {a.batch_size} --epochs {math.ceil(steps * a.batch_size / a.limit) + 1} "
            f"--max-steps {steps} --validate-every {steps} --save-minutes 1000 --seed {a.seed} --out {folder}"
        )
        return " ".join(text.split())

    def command(self, line: str) -> str:
        """Prints and runs one command in a process of its own and returns its standard output."""
        print(f"$ {line}", flush=True)
        threads = str(self.arguments.threads)
        environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        command = [sys.executable, "-m", "heptune.cli.main", *shlex.split(line)[1:], "--threads", threads]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            said = [text.strip() for text in done.stderr.splitlines() if text.strip()]
            print("\n".join(said[-3:]), flush=True)
            # What is recorded is the error's first clause, without the place of the data on this machine.
            last = (said or [f"exit status {done.returncode}"])[-1].removeprefix("error: ").partition("; ")[0]
            raise Failed(last.replace(str(self.arguments.data.resolve()), str(self.arguments.data)))
        return done.stdout

    def drop(self, folder: Path) -> None:
        """A run of full tuning takes gigabytes."""
        if not self.arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)


def best(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """The trial with the lowest validation loss; the higher accuracy decides between equal ones."""
    return min((t for t in trials if "error" not in t), key=lambda trial: (trial["loss"], -trial["accuracy"]))


def beyond_the_edge(trials: list[dict[str, Any]]) -> float | None:
    """The next rate of the grid, in its own ratio, when the best trial is its lowest or highest; else None."""
    rates = sorted(trial["learning_rate"] for trial in trials)
    chosen = best(trials)["learning_rate"]
    if len(rates) < 2 or chosen not in (rates[0], rates[-1]):
        return None
    return rounded(rates[0] ** 2 / rates[1] if chosen == rates[0] else rates[-1] ** 2 / rates[-2])


def rounded(rate: float) -> float:
    """Three significant digits, as printed."""
    return float(f"{rate:.3g}")


def in_own_process(measure: Callable[[str], int], argument: str) -> int:
    """A function's result, taken in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (argument,))


def resident_with_base(base: str) -> int:
    """Resident bytes of a process that has loaded the base in float32, every weight touched, and nothing else."""
    import torch

    from heptune.engine.memory import freed_memory_kept, used_bytes
    from heptune.models.load import load_base

    model = load_base(base, dtype=torch.float32, device="cpu").model
    with freed_memory_kept():  # gives back at its end what loading left in the heap
        for weight in model.parameters():
            weight.detach().sum()
    return used_bytes(torch.device("cpu"))


def _arguments() -> argparse.Namespace:
    def numbers(text: str) -> list[float]:
        if not (found := [float(part) for part in text.split(",")]) or min(found) <= 0:
            raise argparse.ArgumentTypeError(f"{text!r} must be factors above 0, e.g. 0.33,1,3")
        return found

    def chosen(text: str) -> list[str]:
        for name in (found := text.split(",")):
            if name not in techniques.names():
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(techniques.names())}")
        return found

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("name", choices=SETS)
    add("--data", type=Path, default=Path("../shared/data"), help="the folder that holds the sets")
    add("--base", default="smollm2-135m")
    add("--techniques", type=chosen, default=techniques.names(), help="comma-separated; default: all")
    add("--threads", type=int, default=2, help="no more than free cores; default: 2")
    add("--limit", type=int, default=960, help="most training examples; default: 960")
    add("--batch-size", type=int, default=16, help="examples a step; default: 16")
    add("--steps", type=int, default=60, help="optimizer steps of the full run; default: 60")
    add("--search-steps", type=int, default=15, help="optimizer steps of a search run; default: 15")
    add("--rates", type=numbers, default=[1 / 3, 1.0, 3.0], help="factors of the default rate; default: 1/3,1,3")
    add("--validation-limit", type=int, default=200, help="examples that judge a rate; default: 200")
    add("--test-limit", type=int, default=500, help="test examples, each label in proportion; default: 500")
    add("--seed", type=int, default=0)
    add("--again", action="store_true", help="measure once more what is measured already")
    add("--keep", action="store_true", help="keep the run directories; full tuning takes gigabytes for each")
    add("--runs", type=Path, default=Path("runs/techniques"), help="the folder of the run directories")
    add("--out", type=Path, help="the JSON file; default: docs/results/techniques_NAME.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
