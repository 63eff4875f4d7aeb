"""How fast do LoRA and soft prompts train on a CPU: transformers' Trainer with PEFT, TRL's SFTTrainer, and Heptune.

    python benchmarks/train_cpu.py --base FOLDER_OR_ID --threads 2 --out docs/results/train_cpu.json

Every measurement is one process (contenders in one process disturb each other's heap), the contenders take turns
inside a round, and each round starts with another one. Reported are real (non-padding) tokens per second, the ratio
to the padded Trainer with the same technique in the same round and its spread over the rounds, the resident peak above
the loaded model, and the losses side by side. `--contender NAME` measures one contender in this process and prints one
line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from contenders import (
    ALPHA,
    BY_DEFAULT,
    CONTENDERS,
    LEARNING_RATE,
    PREFIX_TOKENS,
    PROMPT_TOKENS,
    RANK,
    SOFT_LEARNING_RATE,
    contender,
)
from workloads import WORKLOADS


def main() -> int:
    """Exit status 0 when every measurement came through, 1 otherwise."""
    arguments = _arguments()
    if arguments.contender:
        print(json.dumps(measure(arguments)))
        return 0
    runs = [run for number in range(arguments.rounds) for run in one_round(arguments, number)]
    summaries = {name: summary(runs, name) for name in arguments.workload}
    report = {
        "machine": machine(),
        "settings": {
            "base": Path(arguments.base).name,
            "rank": RANK,
            "alpha": ALPHA,
            "learning_rate": LEARNING_RATE,
            "prompt_tokens": PROMPT_TOKENS,
            "prefix_tokens": PREFIX_TOKENS,
            "soft_learning_rate": SOFT_LEARNING_RATE,
            "rounds": arguments.rounds,
            "steps": arguments.steps,
            "warmup": arguments.warmup,
            "threads": arguments.threads,
        },
        "summary": summaries,
        "runs": runs,
    }
    for name in arguments.workload:
        print("\n".join(table(name, summaries[name])))
    print(", ".join(f"{package} {version}" for package, version in sorted(all_versions(runs).items())))
    if arguments.out:
        write(arguments.out, report)
        print(f"written to {arguments.out}")
    failed = [run for run in runs if "error" in run]
    for run in failed:
        print(f"{run['contender']} on {run['workload']}, round {run['round']}: {run['error']}", file=sys.stderr)
    return 1 if failed else 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures one contender on one workload in this process."""
    workload = WORKLOADS[arguments.workload[0]]()
    load_before = os.getloadavg()[0]
    with contextlib.redirect_stdout(sys.stderr):  # trainers print their logs
        found = contender(arguments.contender)(
            workload, arguments.base, arguments.steps, arguments.warmup, arguments.threads
        )
    return asdict(found) | {"tokens_per_second": found.tokens_per_second, "load_before": load_before}


def one_round(arguments: argparse.Namespace, number: int) -> list[dict[str, Any]]:
    """Every contender once on every workload, each in a process of its own; round k starts with contender k."""
    threads = str(arguments.threads)
    environment = os.environ | {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
    }
    runs = []
    for workload in arguments.workload:
        chosen = arguments.contenders or BY_DEFAULT[workload]
        shift = number % len(chosen)
        for name in (*chosen[shift:], *chosen[:shift]):
            options = {
                "--contender": name,
                "--workload": workload,
                "--base": arguments.base,
                "--steps": str(arguments.steps),
                "--warmup": str(arguments.warmup),
                "--threads": threads,
            }
            command = [sys.executable, __file__, *(text for option in options.items() for text in option)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            run: dict[str, Any] = {"workload": workload, "contender": name, "round": number}
            if done.returncode:
                run["error"] = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            else:
                run |= json.loads(done.stdout.splitlines()[-1])
            runs.append(run)
            said = run.get("error") or f"{run['tokens_per_second']:.1f} tokens/s"
            print(f"round {number + 1}, {workload}, {name}: {said}", file=sys.stderr, flush=True)
    return runs


def summary(runs: list[dict[str, Any]], workload: str) -> dict[str, dict[str, Any]]:
    """Per contender: medians over the rounds, ratios taken within a round, losses of the first round."""
    good = [run for run in runs if run["workload"] == workload and "error" not in run]
    speed = {(run["contender"], run["round"]): run["tokens_per_second"] for run in good}
    rounds = sorted({run["round"] for run in good})
    losses = {run["contender"]: run["losses"] for run in reversed(good)}

    def best_trl(number: int) -> float | None:
        return max((speed[n, number] for n in ("trl", "trl-packed") if (n, number) in speed), default=None)

    found = {}
    for name in dict.fromkeys(run["contender"] for run in good):
        own = [run for run in good if run["contender"] == name]
        baseline = CONTENDERS[name].baseline
        reference = losses.get(baseline)
        of_lora = baseline == CONTENDERS["trl"].baseline
        found[name] = {
            "baseline": baseline,
            "tokens_per_second": statistics.median(run["tokens_per_second"] for run in own),
            "ratio_to_trainer": _spread([_ratio(speed.get((name, r)), speed.get((baseline, r))) for r in rounds]),
            "ratio_to_best_trl": _spread([_ratio(speed.get((name, r)), best_trl(r)) for r in rounds if of_lora]),
            "peak_memory_mib": statistics.median(run["peak_memory_bytes"] for run in own) / 2**20,
            "tokens": sum(own[0]["tokens"]),
            "supervised": sum(own[0]["supervised"]),
            "first_loss": own[0]["losses"][0],
            "last_loss": own[0]["losses"][-1],
            "largest_loss_difference": (
                max(abs(a - b) for a, b in zip(own[0]["losses"], reference, strict=True))
                if own[0]["same_order"] and reference is not None
                else None
            ),
        }
    return found


def _ratio(speed: float | None, reference: float | None) -> float | None:
    return None if speed is None or reference is None else speed / reference


def _spread(ratios: list[float | None]) -> dict[str, float] | None:
    known = [ratio for ratio in ratios if ratio is not None]
    return {"median": statistics.median(known), "min": min(known), "max": max(known)} if known else None


def table(workload: str, rows: dict[str, dict[str, Any]]) -> list[str]:
    """A Markdown table, one line per contender."""

    def ratio(spread: dict[str, float] | None) -> str:
        return f"{spread['median']:.2f} ({spread['min']:.2f}-{spread['max']:.2f})" if spread else "-"

    lines = [
        "",
        f"### {workload}",
        "",
        "| contender | real tokens/s | x trainer (min-max) | x best TRL (min-max) | peak above the model, MiB "
        "| tokens (supervised) | loss first, last | largest loss difference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        difference = row["largest_loss_difference"]
        lines.append(
            f"| {name} | {row['tokens_per_second']:.1f} | {ratio(row['ratio_to_trainer'])} "
            f"| {ratio(row['ratio_to_best_trl'])} | {row['peak_memory_mib']:.0f} "
            f"| {row['tokens']} ({row['supervised']}) | {row['first_loss']:.6f}, {row['last_loss']:.6f} "
            f"| {'not comparable' if difference is None else f'{difference:.1e}'} |"
        )
    return [*lines, ""]


def all_versions(runs: list[dict[str, Any]]) -> dict[str, str]:
    """Every package version that any measurement named."""
    return {package: version for run in runs for package, version in run.get("versions", {}).items()}


def machine() -> dict[str, str | int | None]:
    """What it ran on."""
    cpu = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {"cpu": cpu[1] if cpu else platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}


def write(path: Path, report: dict[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    partial.replace(path)


def _arguments() -> argparse.Namespace:
    def names(known: dict[str, Any]) -> Any:
        def parse(text: str) -> list[str]:
            for name in (chosen := text.split(",")):
                if name not in known:
                    raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
            return chosen

        return parse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--base", required=True, help="a causal language model with its tokenizer: a folder, or a hub id")
    add("--workload", type=names(WORKLOADS), default=list(WORKLOADS), help="comma-separated; default: all")
    add("--contenders", type=names(CONTENDERS), help="comma-separated; default: LoRA's, on short the soft prompts'")
    add("--rounds", type=int, default=3, help="how often each contender runs; default: 3")
    add("--steps", type=int, default=6, help="timed optimizer steps; default: 6")
    add("--warmup", type=int, default=2, help="untimed optimizer steps before them; default: 2")
    add("--threads", type=int, default=2, help="torch threads; no more than free cores; default: 2")
    add("--out", type=Path, help="where the JSON report goes; default: nowhere")
    add("--contender", choices=CONTENDERS, help="measure this one alone, in this process, and print JSON")
    add("--json", action="store_true", help="accepted with --contender, which always prints JSON")
    arguments = parser.parse_args()
    for option in ("rounds", "steps", "threads"):
        if getattr(arguments, option) < 1:
            parser.error(f"--{option} is {getattr(arguments, option)}; it must be at least 1")
    if arguments.warmup < 0:
        parser.error(f"--warmup is {arguments.warmup}; it must be at least 0")
    if arguments.contender and len(arguments.workload) > 1:
        parser.error("--contender measures one workload; name it with --workload")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
