"""One training as its run directory tells it: curves, costs, what it takes to do it again."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

from heptune.engine.settings import Settings
from heptune.reporting.findings import Points
from heptune.reporting.numbers import finite
from heptune.reporting.reading import mapping, objects, optional_json, strings, text, whole
from heptune.tasks.options import TaskOptions

LINE = 92  # letters of a command in one line; the page's column holds about as many


@dataclass(frozen=True)
class Training:
    """A run directory's manifest and events; both may be empty."""

    manifest: dict[str, Any]
    events: tuple[dict[str, Any], ...]

    @classmethod
    def read(cls, folder: Path | None) -> Training:
        """What a run directory holds so far."""
        if folder is None:
            return cls({}, ())
        return cls(optional_json(folder / "manifest.json"), tuple(_events(folder / "events.jsonl")))

    @property
    def technique(self) -> str:
        """The technique's name."""
        return text(mapping(self.manifest.get("technique")).get("name"))

    @property
    def result(self) -> dict[str, Any]:
        """What came out; empty before the end."""
        return mapping(self.manifest.get("result"))

    @property
    def predicted(self) -> dict[str, Any]:
        """What was predicted before it began."""
        return mapping(self.manifest.get("predicted"))

    @property
    def loss(self) -> Points:
        """(step, training loss)."""
        return _points((e.get("step"), e.get("loss")) for e in self.events if e.get("event") == "StepDone")

    @property
    def metric(self) -> str:
        """The metric that chose the best step."""
        return next((text(e.get("metric")) for e in self.events if e.get("event") == "Validated"), "")

    def validation(self, metric: str) -> Points:
        """(step, value) of one metric of the validations."""
        validated = (e for e in self.events if e.get("event") == "Validated")
        return _points((e.get("step"), mapping(e.get("metrics")).get(metric)) for e in validated)

    @property
    def best_step(self) -> int | None:
        """The step whose weights are kept."""
        return whole(self.result.get("best_step"))

    @property
    def step_s(self) -> float | None:
        """The median wall time of a step: single steps wait for a disk or a busy machine."""
        times = [finite(e.get("time_s")) for e in self.events if e.get("event") == "StepDone"]
        known = [time for time in times if time is not None]
        return median(known) if known else None

    @property
    def memory_bytes(self) -> float | None:
        """The peak, or the most that a step reported where the run has not ended."""
        peak = finite(self.result.get("peak_memory_bytes"))
        seen = [finite(e.get("memory_bytes")) for e in self.events if e.get("event") == "StepDone"]
        return peak if peak is not None else max((m for m in seen if m is not None), default=None)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Each warning of the run, once."""
        notes = (e for e in self.events if e.get("event") == "Note" and e.get("level") == "warning")
        return tuple(dict.fromkeys(text(e.get("text")) for e in notes))


def _events(path: Path) -> list[dict[str, Any]]:
    """The lines that are whole; the last may be just being written."""
    found: list[dict[str, Any]] = []
    if not path.is_file():
        return found
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            found += objects([json.loads(line)])
        except ValueError:
            continue
    return found


def _points(pairs: Any) -> Points:
    """The pairs of numbers, ascending; of a step that was taken twice (after a resume), the later."""
    known = {}
    for step, value in pairs:
        at, found = finite(step), finite(value)
        if at is not None and found is not None:
            known[at] = found
    return tuple(sorted(known.items()))


def tune_command(manifest: dict[str, Any], folder: Path) -> str:
    """The command that does a run again, in a new folder: every setting of the technique, and what is not a default."""
    if command := strings(manifest.get("command")):
        return command_line(*command)
    data, technique = mapping(manifest.get("data")), mapping(manifest.get("technique"))
    train = text(mapping(data.get("train")).get("path"))
    earlier = mapping(manifest.get("round"))
    start = text(mapping(earlier.get("parent")).get("path")) or text(mapping(manifest.get("base")).get("name"))
    words = ["heptune", "tune", near(start), near(train), *_round(earlier)]
    words += ["--technique", text(technique.get("name"))]
    task = mapping(manifest.get("task"))
    words += ["--task", text(task["name"])] if task.get("name") else []
    for option in fields(TaskOptions):
        if (value := task.get(option.name)) and value != option.default:
            words += _option(option.name, value)
    words += _parts(data, mapping(manifest.get("split")))
    for role, column in mapping(data.get("columns")).items():
        words += ["--column", f"{role}={column}"]
    words += ["--skip-bad"] if data.get("skip_bad") is True else []
    usual = {field.name: field.default for field in fields(Settings)}
    chosen = mapping(manifest.get("settings"))
    for name, value in mapping(technique.get("settings")).items():
        if name not in usual or chosen.get(name) is None:  # one that both have (the learning rate): the training's wins
            words += _option(name, value)
    for name, value in chosen.items():
        if name in usual and value != usual[name]:
            words += _option(name, value)
    if threads := whole(manifest.get("threads")):
        words += ["--threads", str(threads)]
    return command_line(*words, "--out", f"{near(str(folder))}-again")


def _round(earlier: dict[str, Any]) -> list[str]:
    """The options with which a round went on from an earlier one."""
    words = ["--onto", text(earlier["onto"])] if earlier.get("onto") else []
    for option, value in (("--guard", earlier.get("guard")), ("--replay", mapping(earlier.get("replay")).get("share"))):
        words += [option, f"{value:g}"] if finite(value) is not None else []
    return words


def _parts(data: dict[str, Any], split: dict[str, Any]) -> list[str]:
    """The options that give the same parts. Shares themselves are not kept, but how many records came of them."""
    words = []
    records = whole(mapping(data.get("train")).get("records")) or 0
    taken = {part: len(chosen) for part, chosen in split.items() if isinstance(chosen, list)}
    for part in ("validation", "test"):
        origin = mapping(data.get(part))
        if origin.get("path"):
            words += [f"--{part}", near(text(origin["path"]))]
        elif part in taken and records:
            share = taken[part] / records
            usual = round(share, 2)  # what a person would have written; a split meets its share within a few records
            words += [f"--{part}", f"{usual:g}" if abs(usual * records - taken[part]) <= 2 else f"{share:.4g}"]
    if records and taken.get("train", 0) > 0 and sum(taken.values()) < records:
        words += ["--limit", str(taken["train"])]
    return words


def _option(name: str, value: Any) -> list[str]:
    option = name.replace("_", "-")
    if value is None or value in ([], ""):
        return []
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    if isinstance(value, list):
        return [f"--{option}", ",".join(map(str, value))]
    return [f"--{option}", f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)]


def command_line(*words: str) -> str:
    """A command to copy; a long one is broken before its options, as a shell takes it.

    However the program was called (/usr/bin/heptune, main.py), here it is `heptune`.
    """
    first, *rest = words
    if Path(first).name in ("heptune", "heptune.exe", "main.py", "__main__.py"):
        first = "heptune"
    lines, line = [], shlex.quote(first)
    for number, word in enumerate(rest):
        value = rest[number + 1] if number + 1 < len(rest) and not rest[number + 1].startswith("--") else ""
        long = len(line) + len(word) + (len(value) if word.startswith("--") else 0) + 2 > LINE
        if long and word.startswith("--"):
            lines.append(line)
            line = f"  {shlex.quote(word)}"
        else:
            line += f" {shlex.quote(word)}"
    return " \\\n".join([*lines, line])


def near(path: str) -> str:
    """A path as seen from the current folder where it lies inside that, else as it is."""
    if not os.path.isabs(path):
        return path
    here = os.path.relpath(path) if os.path.splitdrive(path)[0] == os.path.splitdrive(os.getcwd())[0] else path
    return path if here.startswith("..") else here


def facts(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """What has to be the same for the same result: base, versions, threads, seed."""
    base, settings = mapping(manifest.get("base")), mapping(manifest.get("settings"))
    seed = manifest.get("seed", settings.get("seed"))
    rows = [
        ("base", near(text(base.get("name")))),
        ("base revision", text(base.get("revision"))),
        ("base fingerprint", text(base.get("fingerprint"))),
        ("goes on from", near(text(mapping(mapping(manifest.get("round")).get("parent")).get("path")))),
        ("heptune", text(manifest.get("heptune"))),
        *((name, text(version)) for name, version in mapping(manifest.get("versions")).items()),
        ("threads", text(manifest.get("threads"))),
        ("in parallel", text(manifest.get("parallel"))),
        ("seed", text(seed)),
        ("begun", text(manifest.get("created"))),
    ]
    return [(name, value) for name, value in rows if value]


def data_files(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Each data file with its records and hash, and how many records each part got."""
    data, split = mapping(manifest.get("data")), mapping(manifest.get("split"))
    rows = []
    for part in ("train", "validation", "test"):
        origin, chosen = mapping(data.get(part)), split.get(part)
        if origin:
            told = f"{near(text(origin.get('path')))}, {text(origin.get('records'))} records, sha256 "
            rows.append((f"{part} file", told + text(origin.get("sha256"))))
        if isinstance(chosen, list) and chosen:
            rows.append((f"{part} part", f"{len(chosen)} records of the train file"))
    return rows


def shown_settings(values: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Names and values as a person reads them."""
    return tuple((name.replace("_", " "), _shown(value)) for name, value in values.items())


def _shown(value: Any) -> str:
    if value is None or value == []:
        return "not set"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
