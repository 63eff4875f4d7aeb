"""Lineages: runs that go on from one another in rounds, and which of them serves.

A round's manifest names its parent, how it goes on from it, and a fingerprint of what the parent left. The fingerprint
holds the parent's own parent's, so one comparison at each link proves the whole chain. Which round serves stands in
the first run's folder (`serving.json`), whole or absent.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heptune.core.errors import RunError
from heptune.runs.files import read_json, sha256, write_json
from heptune.runs.run import Run

# How a round goes on: the same adapter is trained on; the old one is merged into the base; a new one stands on the old.
CONTINUE, MERGE, STACK = WAYS = ("continue", "merge", "stack")

SERVING_FILE = "serving.json"


def is_run(path: str | Path) -> bool:
    """Whether a run directory is there."""
    return (Path(path).expanduser() / "manifest.json").is_file()


def number(run: Run) -> int:
    """Which round a run is; 1 for one that started from a base."""
    return int(run.manifest["round"]["number"]) if "round" in run.manifest else 1


def way(run: Run) -> str | None:
    """How a run goes on from its parent, one of `WAYS`; None for one that started from a base."""
    return run.manifest["round"]["onto"] if "round" in run.manifest else None


def fingerprint(run: Run) -> str:
    """A SHA-256 of everything that a later round stands on: base, technique, artifact, and the rounds before."""
    manifest = run.manifest
    files = sorted(path for path in run.artifact.rglob("*") if path.is_file())
    what = {
        "base": manifest["base"]["fingerprint"],
        "technique": manifest["technique"]["name"],
        "quantize": manifest["settings"].get("quantize"),
        "onto": way(run),
        "parent": manifest["round"]["parent"]["fingerprint"] if "round" in manifest else None,
        "files": {path.relative_to(run.artifact).as_posix(): sha256(path) for path in files},
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def link(parent: Run, onto: str) -> dict[str, Any]:
    """What the manifest of a new round keeps of its parent. Raises `RunError` for a parent that is not finished."""
    require_finished(parent)
    found = {"path": str(parent.folder.resolve()), "fingerprint": fingerprint(parent)}
    return {"number": number(parent) + 1, "onto": onto, "parent": found}


def require_finished(run: Run) -> None:
    """Raises `RunError` for a run that has nothing to go on from."""
    status = run.manifest["status"]
    if status != "finished":
        raise RunError(f"{run.folder} is not finished (status: {status}); finish it with `heptune resume {run.folder}`")


def parent(run: Run) -> Run | None:
    """The run that this one goes on from; None for one that started from a base.

    Raises `RunError` when it is gone, or no longer what it was.
    """
    folder = _parent_folder(run)
    if folder is None:
        return None
    if not is_run(folder):
        raise RunError(f"{run.folder} goes on from {folder}, which is gone; put that run back to use this one")
    found = Run(folder)
    if not (folder / "artifact").is_dir() or fingerprint(found) != run.manifest["round"]["parent"]["fingerprint"]:
        raise RunError(
            f"{run.folder} goes on from {folder}, which has changed since (its artifact, base or earlier rounds "
            "differ); put the old one back, or tune this round anew"
        )
    return found


def chain(run: Run) -> list[Run]:
    """Every round up to this run, the first one first. Raises `RunError` as `parent` does."""
    rounds = [run]
    while (before := parent(rounds[0])) is not None:
        rounds.insert(0, before)
    return rounds


def root(run: Run) -> Run:
    """The first run of a lineage. Raises `RunError` when one on the way there is gone."""
    while (folder := _parent_folder(run)) is not None:
        if not is_run(folder):
            raise RunError(f"{run.folder} goes on from {folder}, which is gone; put that run back")
        run = Run(folder)
    return run


def serving(run: Run) -> Run:
    """The round of this run's lineage that serves: the one that was promoted last, else the first."""
    first = root(run)
    served = _record(first)["served"]
    if not served:
        return first
    folder = _located(served[-1], first.folder)
    if not is_run(folder):
        raise RunError(
            f"{folder} was promoted to serve, but is gone; promote another round, or `heptune rollback {first.folder}`"
        )
    return Run(folder)


def promote(folder: str | Path, *, force: bool = False) -> Run:
    """Lets a run serve for its lineage, and returns it.

    Raises `RunError` for a run that is not finished, and, without `force`, for one that forgot more than its guard
    allows, or was not compared with its parent yet.
    """
    run = Run(folder)
    require_finished(run)
    first = chain(run)[0]
    if not force:
        _require_guarded(run)
    record = _record(first)
    if record["served"] and _located(record["served"][-1], first.folder).resolve() == run.folder.resolve():
        return run
    record["served"].append(str(run.folder.resolve()))
    _write(first, record, "promote", run, forced=force)
    return run


def rollback(folder: str | Path) -> Run:
    """Lets the round serve that served before the one that does now, and returns it. `folder` is any run of the
    lineage. Raises `RunError` where nothing served before, or what did is gone."""
    first = root(Run(folder))
    record = _record(first)
    if not record["served"]:
        raise RunError(
            f"{first.folder} serves for its lineage and nothing served before; there is nothing to go back to"
        )
    record["served"].pop()
    target = _located(record["served"][-1], first.folder) if record["served"] else first.folder
    if not is_run(target):
        raise RunError(f"{target} served before, but is gone; promote another round with `heptune promote RUN`")
    _write(first, record, "rollback", Run(target))
    return Run(target)


def promoted_below(folder: Path) -> list[Path]:
    """The first runs of the lineages below a folder in which a round was promoted."""
    return sorted(path.parent for path in folder.rglob(SERVING_FILE) if _record(Run(path.parent))["served"])


def history(run: Run) -> list[dict[str, Any]]:
    """Who was promoted and rolled back to in a run's lineage, oldest first: `at`, `action`, `run`, `forced`."""
    found: list[dict[str, Any]] = _record(root(run))["history"]
    return found


@dataclass(frozen=True)
class Listed:
    """A run among others: `depth` in the tree of rounds, and whether it serves for a lineage of several rounds."""

    run: Run
    depth: int
    serves: bool


def list_runs(folder: str | Path = "runs") -> list[Listed]:
    """The runs below a folder, each round below the one that it goes on from, oldest first. What is no readable run is
    left out; `RunError` where the folder does not exist."""
    if not Path(folder).is_dir():
        raise RunError(f"there is no folder {folder}; name the one that holds the runs: `heptune runs FOLDER`")
    runs = {run.folder.resolve(): run for run in map(readable, Path(folder).rglob("manifest.json")) if run is not None}
    children: dict[Path | None, list[Run]] = {}
    for run in sorted(runs.values(), key=lambda run: (str(run.manifest.get("created", "")), str(run.folder))):
        above = _parent_folder(run)
        place = above.resolve() if above is not None and above.resolve() in runs else None
        children.setdefault(place, []).append(run)
    return [listed for first in children.get(None, []) for listed in _tree(first, children)]


def _tree(first: Run, children: Mapping[Path | None, list[Run]]) -> list[Listed]:
    """A run and the rounds that go on from it, depth first."""
    found: list[tuple[Run, int]] = []
    open_ends = [(first, 0)]
    while open_ends:
        run, depth = open_ends.pop()
        found.append((run, depth))
        open_ends += [(later, depth + 1) for later in reversed(children.get(run.folder.resolve(), []))]
    in_service = _serving_or_none(first) if len(found) > 1 or "round" in first.manifest else None
    return [Listed(run, depth, run.folder.resolve() == in_service) for run, depth in found]


def _serving_or_none(run: Run) -> Path | None:
    try:
        return serving(run).folder.resolve()
    except RunError:
        return None


def readable(path: Path) -> Run | None:
    """The run of a `manifest.json`; None where that is damaged, or another program's."""
    try:
        run = Run(path.parent)
    except RunError:
        return None
    return run if {"base", "technique", "task", "status"} <= run.manifest.keys() else None


def guard_words(guarded: Mapping[str, Any]) -> list[str]:
    """What the comparison with the parent found, one sentence for each round, and what follows from it."""
    lines = []
    for each in guarded["rounds"]:
        head = f"round {each['round']} ({each['data']}, {each['examples']} examples of {each['part']})"
        if each["difference"] is None:
            lines.append(f"{head}: not measured, {each['why']}")
            continue
        change = f"{each['metric']} {each['parent']:.4f} -> {each['now']:.4f}"
        lines.append(f"{head}: {change}, {_moved(each)}")
    limit = guarded["limit"]
    lost = [
        f"{each['lost']:.4f} {each['metric']} on round {each['round']}" for each in guarded["rounds"] if each["refused"]
    ]
    if lost:
        lines.append(f"Refused: it lost {', '.join(lost)}; the guard allows {limit:g}.")
    elif limit is not None:
        lines.append(f"Nothing was lost beyond the {limit:g} that the guard allows.")
    return lines


def _moved(each: Mapping[str, Any]) -> str:
    """'lost 0.0500 [0.0100, 0.0900]': how far and in which direction, with the interval where there is one."""
    difference, lost = each["difference"], each["lost"]
    ends = [difference["low"], difference["high"]]
    word = "unchanged" if lost == 0 else "lost" if lost > 0 else "gained"
    if None in ends:
        return f"{word} {abs(lost):.4f}"
    # The interval is that of what the word names: of the loss where something was lost.
    sign = 1 if (difference["value"] >= 0) else -1
    low, high = sorted(sign * end for end in ends)
    return f"{word} {abs(lost):.4f} [{low:.4f}, {high:.4f}]"


def _require_guarded(run: Run) -> None:
    if "round" not in run.manifest:
        return
    guarded = run.manifest.get("guarded")
    if guarded is None:
        raise RunError(
            f"{run.folder} was not compared with its parent yet; `heptune resume {run.folder}` does it (or promote it "
            "all the same with --force)"
        )
    if guarded["refused"]:
        raise RunError(f"{run.folder} is not promoted. {guard_words(guarded)[-1]} --force promotes it all the same")


def _parent_folder(run: Run) -> Path | None:
    """Where a run's parent is now; None for one that started from a base."""
    return _located(run.manifest["round"]["parent"]["path"], run.folder) if "round" in run.manifest else None


def _located(path: str, near: Path) -> Path:
    """Where a run is now: where it was, or beside another of its lineage, as when a folder of runs was moved."""
    beside = near.resolve().parent / Path(path).name
    return Path(path) if is_run(path) or not is_run(beside) else beside


def _record(first: Run) -> dict[str, Any]:
    path = first.folder / SERVING_FILE
    record: dict[str, Any] = read_json(path) if path.exists() else {"served": [], "history": []}
    return record


def _write(first: Run, record: dict[str, Any], action: str, run: Run, forced: bool = False) -> None:
    """`served`: who is to serve, last, and who did before; `history`: all that was done."""
    at = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    record["history"].append({"at": at, "action": action, "run": str(run.folder.resolve()), "forced": forced})
    with first.locked():
        write_json(first.folder / SERVING_FILE, record)
