"""Race and run directories written by hand, in the form that racing and tuning leave them."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

RATES = {"lora": (2e-4, 5e-4, 1e-3), "qlora": (5e-4,), "adapter": (1e-3, 3e-3), "prefix": (1e-2, 3e-2)}
RATES |= {"prompt": (3e-2, 1e-1), "p_tuning": (1e-3,), "p_tuning_v2": (1e-2, 3e-2), "full": (2e-5,), "freeze": (1e-4,)}
REACH = {"lora": 0.93, "qlora": 0.925, "adapter": 0.915, "prefix": 0.86, "prompt": 0.8, "p_tuning": 0.74}
REACH |= {"p_tuning_v2": 0.88, "full": 0.928, "freeze": 0.84}
SIZE = {"lora": 9.3, "qlora": 9.3, "adapter": 14.0, "prefix": 2.2, "prompt": 0.1, "p_tuning": 0.4, "p_tuning_v2": 2.2}
SIZE |= {"full": 513.0, "freeze": 57.0}
MEMORY = {"lora": 1.9, "qlora": 1.2, "adapter": 1.8, "prefix": 1.6, "prompt": 1.7, "p_tuning": 1.75, "p_tuning_v2": 1.6}
MEMORY |= {"full": 4.4, "freeze": 1.5}
SERVING = {"lora": "merges into the base: nothing", "qlora": "merges into the base: nothing", "full": "nothing"}
SERVING |= {"adapter": "1.2M more parameters", "prefix": "32 more keys and values", "prompt": "32 more positions"}
LABELS = ["accept", "billing", "delivery", "other", "repair", "return"]
LADDER = (30, 60, 120, 240)
SHA = "0123456789abcdef" * 4


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")


def interval(value: float, half: float = 0.025) -> dict[str, float]:
    return {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half * 0.8), "level": 0.95}


def manifest(technique: str, rate: float, **more: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "heptune": "0.1.0",
        "status": "finished",
        "created": "2026-05-02T10:00:00+0200",
        "base": {"name": "smollm2-135m", "from": "hub", "revision": "abc", "fingerprint": SHA},
        "technique": {
            "name": technique,
            "settings": {"rank": 8, "targets": ["attention.q", "attention.v"], "bias": None},
        },
        "task": {"name": "classify", "labels": LABELS, "instruction": "Classify the text."},
        "data": {
            "train": {"path": "/data/repair desk.jsonl", "sha256": SHA, "format": "jsonl", "records": 432},
            "validation": None,
            "test": None,
            "columns": {},
            "skip_bad": False,
        },
        "split": {"train": list(range(346)), "validation": list(range(346, 389)), "test": list(range(389, 432))},
        "settings": {"epochs": 3.0, "learning_rate": rate, "batch_tokens": 2048, "seed": 0, "recompute": False},
        "versions": {"torch": "2.13.0", "transformers": "5.23.0", "python": "3.11.9"},
        "threads": 2,
        "steps": LADDER[-1],
        **more,
    }


def accuracy(technique: str, offset: float, step: int) -> float:
    return 0.17 + (REACH[technique] - offset - 0.17) * (1 - math.exp(-step / 55))


def write_run(folder: Path, technique: str, rate: float, last: int, offset: float, seed: int, **more: Any) -> None:
    draw = random.Random(f"{technique} {rate} {seed}")
    events: list[dict[str, Any]] = [{"event": "TrainingStarted", "step": 0, "planned_steps": LADDER[-1]}]
    events.append({"event": "Note", "text": "2 examples are longer than 1024 tokens and were cut", "level": "warning"})
    for step in range(1, last + 1):
        loss = 0.25 + offset + (2.4 + draw.random() * 0.05) * math.exp(-step / 45) + draw.gauss(0, 0.08)
        events.append(
            {
                "event": "StepDone",
                "step": step,
                "loss": max(loss, 0.02),
                "time_s": 2.1 + REACH[technique] / 4 + draw.gauss(0, 0.1),
            }
        )
        if step % 15 == 0:
            value = round(accuracy(technique, offset, step) + draw.gauss(0, 0.012), 4)
            metrics = {"accuracy": min(value, 1.0), "loss": loss}
            events.append({"event": "Validated", "step": step, "metrics": metrics, "metric": "accuracy", "best": True})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events), "utf-8")
    result = {}
    if last == LADDER[-1]:
        result = {"result": {"reason": "finished", "steps": last, "time_s": 2.13 * last, "tokens": 400_000}}
        result["result"] |= {"peak_memory_bytes": int(MEMORY[technique] * 2**30), "best_step": last - 15}
        result["result"] |= {"artifact_bytes": int(SIZE[technique] * 2**20)}
        result["result"] |= {"first_validation": {"accuracy": 0.2}, "best_validation": {"accuracy": 0.9}}
    status = "finished" if last == LADDER[-1] else "interrupted"
    write(folder / "manifest.json", manifest(technique, rate, **{"status": status, **result, **more}))


def candidates() -> list[dict[str, Any]]:
    made, draw = [], random.Random(7)
    for technique, rates in RATES.items():
        for rate in rates:
            name = f"{technique}-{rate:g}"
            predicted = {"memory_bytes": int(MEMORY[technique] * (1 + draw.gauss(0.02, 0.06)) * 2**30)}
            predicted |= {"time_s": 511 * (1 + draw.gauss(0, 0.08)), "step_s": 2.1 * (1 + draw.gauss(0, 0.08))}
            made.append({"name": name, "technique": technique, "settings": {"rank": 8}, "learning_rate": rate})
            made[-1] |= {"run": f"candidates/{name}", "predicted": predicted}
    return made


def write_race(folder: Path, status: str = "finished", rungs_done: int = len(LADDER)) -> Path:
    """Nine techniques, fifteen candidates, four rungs, a final with three seeds and a verdict."""
    draw = random.Random(0)
    all_of_them = candidates()
    offset = {c["name"]: 0.0 if n == 0 else draw.random() * 0.12 for n, c in enumerate(all_of_them)}
    seen: set[str] = set()
    for c in all_of_them:  # the second or first rate of a technique is its good one
        if c["technique"] not in seen and draw.random() < 0.5:
            offset[c["name"]] = 0.005
            seen.add(c["technique"])
    alive, last, rungs = [c["name"] for c in all_of_them], {}, []
    technique_of = {c["name"]: c["technique"] for c in all_of_them}
    keep = dict(zip(LADDER, (11, 8, 6, 6), strict=True))
    for step in LADDER[:rungs_done]:
        score = {n: accuracy(technique_of[n], offset[n], step) + draw.gauss(0, 0.004) for n in alive}
        alive.sort(key=lambda n: -score[n])
        kept = alive[: keep[step]]
        if step == LADDER[-1]:  # the best candidate of each technique goes to the finals
            kept = [n for n in kept if n == next(m for m in kept if technique_of[m] == technique_of[n])]
        standings = []
        for n in alive:
            why = "among the best" if n in kept else f"{kept[-1]} is ahead by {score[kept[-1]] - score[n]:.3f}"
            memory = int(MEMORY[technique_of[n]] * 2**30)
            standings.append({"candidate": n, "metrics": {"accuracy": score[n]}, "score": score[n], "trend": 0.002})
            standings[-1] |= {"time_s": step * 2.1, "memory_bytes": memory, "kept": n in kept, "why": why}
            last[n] = step
        rungs.append({"step": step, "standings": standings})
        alive = kept
    for c in all_of_them:
        write_run(folder / c["run"], c["technique"], c["learning_rate"], last.get(c["name"], 12), offset[c["name"]], 0)
    race = {
        **{key: value for key, value in manifest("lora", 5e-4).items() if key not in ("technique", "steps", "status")},
        "status": status,
        "command": ["/usr/local/bin/heptune", "race", "smollm2-135m", "repair desk.jsonl", "--minutes", "60"],
        "budget": {"time_s": 3600},
        "seed": 0,
        "parallel": 1,
        "candidates": all_of_them,
        "ladder": [{"step": step} for step in LADDER],
        "rungs": rungs,
        "cost": {"time_s": 3410.0, "tokens": 5_200_000},
        "exhaustive_cost_estimate": {"time_s": 11_500.0},
    }
    finals = alive[:4] if rungs_done == len(LADDER) else []
    race["finals"] = [final(folder, name, technique_of[name], offset[name]) for name in finals]
    write(folder / "race.json", race)
    if finals and status == "finished":
        write(folder / "verdict.json", verdict(finals, technique_of))
    return folder


def final(folder: Path, name: str, technique: str, offset: float) -> dict[str, Any]:
    runs = [{"seed": 0, "run": f"candidates/{name}"}]
    for seed in (1, 2):
        runs.append({"seed": seed, "run": f"finals/{name}-seed{seed}"})
        write_run(folder / runs[-1]["run"], technique, 1e-3, LADDER[-1], offset, seed)
    return {"contender": technique, "candidate": name, "runs": runs}


def verdict(finals: list[str], technique_of: dict[str, str]) -> dict[str, Any]:
    draw = random.Random(1)
    contenders = []
    for number, name in enumerate(finals):
        technique = technique_of[name]
        value = round(REACH[technique] - 0.004 * number, 4)
        seeds = [{"seed": s, "score": value + draw.gauss(0, 0.006), "run": f"finals/{name}-seed{s}"} for s in range(3)]
        contenders.append({"name": technique, "kind": "technique", "candidate": name, "score": interval(value)})
        contenders[-1] |= {"metrics": {"accuracy": interval(value), "macro-F1": interval(value - 0.02, 0.03)}}
        contenders[-1] |= {"seeds": seeds, "time_s": 511.2 + 40 * number, "cost_rank": number + 1}
        contenders[-1] |= {"memory_bytes": int(MEMORY[technique] * 2**30), "tied_with_best": number < 3}
        contenders[-1] |= {"artifact_bytes": int(SIZE[technique] * 2**20), "pareto": number != 2}
        contenders[-1] |= {"serving": {"positions": 0, "parameters": 0, "words": SERVING.get(technique, "")}}
    for name, value in (
        ("base, zero-shot", 0.41),
        ("TF-IDF + logistic regression", 0.83),
        ("most frequent label", 0.24),
    ):
        contenders.append({"name": name, "kind": "baseline", "candidate": None, "score": interval(value, 0.04)})
        contenders[-1] |= {"metrics": {"accuracy": interval(value, 0.04), "macro-F1": interval(value / 2, 0.05)}}
    best = contenders[0]["name"]
    comparisons = [
        {"a": best, "b": other["name"], "p_value": 0.04 * n, "p_adjusted": min(0.12 * n, 1.0), "tie": n in (1, 2)}
        | {
            "difference": {"value": 0.006 * n, "low": -0.01 + 0.005 * n, "high": 0.02 * n, "level": 0.95},
            "mcnemar": None,
        }
        for n, other in enumerate(contenders[1:], 1)
    ]
    return {
        "metric": "accuracy",
        "higher_is_better": True,
        "part": "the test part",
        "examples": 430,
        "level": 0.95,
        "winner": best,
        "words": [
            f"{best} fits best: accuracy 0.930 [0.905, 0.950]. It is not told apart from {contenders[1]['name']}.",
            f"{contenders[1]['name']} scores as well and costs less; take it where memory is short.",
            "Every tuned contender beats the word-count model.",
        ],
        "contenders": contenders,
        "comparisons": comparisons,
        "labels": LABELS,
        "confusion": {c["name"]: confusion(c["score"]["value"], 72, len(LABELS)) for c in contenders[:2]},
        "differing": differing(best, contenders[1]["name"]),
    }


def confusion(share: float, each: int, size: int) -> list[list[int]]:
    draw = random.Random(size)
    lines = [[0] * size for _ in range(size)]
    for truth in range(size):
        for _ in range(each):
            said = truth if draw.random() < share else min(size - 1, int(draw.random() ** 2 * size))
            lines[truth][said] += 1
    return lines


def differing(a: str, b: str) -> list[dict[str, Any]]:
    return [
        {"text": "The hinge broke after a week. Can somebody come and look at it, or do I have to send the door back?"}
        | {"truth": "repair", "answers": {a: "repair", b: "return"}},
        {"text": "Ich habe zweimal bezahlt, bitte den zweiten Betrag zurück.\nDanke!", "truth": "billing"}
        | {"answers": {a: "return", b: "billing"}},
        {"text": "شكراً، وصل الطرد أمس", "truth": "delivery", "answers": {a: "delivery", b: "accept"}},
    ]
