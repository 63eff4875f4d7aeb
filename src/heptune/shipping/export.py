"""An export from the run to the folder: checked, written, proven, and only then there."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import heptune
from heptune.core.errors import HeptuneError, RunError, UsageError
from heptune.core.events import Listener, Note, ignore
from heptune.core.registry import unknown
from heptune.core.units import format_bytes, parse_bytes
from heptune.engine.checkpoint import WRITE_ERRORS
from heptune.runs import lineage
from heptune.runs.files import new_folder, write_json
from heptune.runs.run import Run
from heptune.shipping import adapterhub_folder, gguf_lora, gguf_model, merged, peft_folder
from heptune.shipping.card import Step, card, next_steps
from heptune.shipping.job import Job
from heptune.shipping.parity import NOTHING, Consumer, Parity, ParityError, Tolerance, compare

PARITY_FILE = "parity.json"
LEAST_SHARD = 1 << 10


@dataclass(frozen=True)
class Format:
    """How a format is checked before anything is loaded, written into an empty folder, and loaded back by those who
    read it, one after the other."""

    check: Callable[[Job], None]
    tolerance: Callable[[Job], Tolerance]
    write: Callable[[Job, Path], None]
    consumers: Callable[[Job, Path], Iterator[Consumer]]


def _format(module: Any) -> Format:
    return Format(module.check, module.tolerance, module.write, module.consumers)


FORMATS = {
    "peft": _format(peft_folder),
    "hf": _format(merged),
    "gguf": _format(gguf_model),
    "adapterhub": _format(adapterhub_folder),
}


@dataclass(frozen=True)
class Exported:
    """An export that was proven. `next`: how it is used, as commands or a program."""

    folder: Path
    format: str
    files: dict[str, int]
    parities: tuple[Parity, ...]
    next: tuple[Step, ...]


def export(
    folder: str | Path,
    to: str,
    *,
    out: str | Path | None = None,
    type: str = "",
    max_shard_size: str = "5GB",
    lora_only: bool = False,
    listener: Listener = ignore,
) -> Exported:
    """Writes what a finished run learned in a format that other programs read: 'peft', 'hf', 'gguf' or 'adapterhub'.

    `out` is a new folder (default: exports/RUN-FORMAT). `type` is that of the weights: f32, f16, bf16, and for GGUF
    q8_0. `max_shard_size` bounds one file of a merged model; `lora_only` writes a LoRA as GGUF instead of the model.

    The export is loaded by its own consumer and compared with the run. Raises `ParityError` where it does not say the
    same, and nothing of it stays; other errors for what the format cannot hold.
    """
    if to not in FORMATS:
        raise unknown("format", to, FORMATS)
    if lora_only and to != "gguf":
        raise UsageError("--lora-only is for --to gguf; --to peft writes a LoRA alone in any case")
    run = Run(folder)
    lineage.require_finished(run)
    target = Path(out) if out is not None else Path("exports") / f"{run.folder.resolve().name}-{to}"
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} is there already and not empty; choose another --out, or take it away")
    shard = parse_bytes(max_shard_size)
    if shard < LEAST_SHARD:
        raise UsageError(f"--max-shard-size is {max_shard_size}; a file has at least {format_bytes(LEAST_SHARD)}")
    job = Job(run, type, shard, lora_only, listener)
    chosen = _format(gguf_lora) if lora_only else FORMATS[to]
    chosen.check(job)
    tolerance = chosen.tolerance(job)
    listener(Note("asking the run itself"))
    reference = job.reference()
    try:
        with new_folder(target) as made:
            listener(Note(f"writing {to}"))
            chosen.write(job, made)
            parities = []
            for consumer in _loaded(chosen.consumers(job, made), f"the export of {run.folder} to {to}"):
                parity = compare(reference, consumer, tolerance, listener)
                parity.require(f"the export of {run.folder} to {to}")
                parities.append(parity)
            if parities[0].learned is not None and parities[0].learned <= NOTHING:
                listener(Note(f"{run.folder} says what its untouched base says: it has learned nothing", "warning"))
            write_json(made / PARITY_FILE, _kept(job, to, parities))
            steps = next_steps(job, to, made, target)
            (made / "README.md").write_text(card(job, to, parities, steps), "utf-8")
            files = {
                path.relative_to(made).as_posix(): path.stat().st_size
                for path in sorted(made.rglob("*"))
                if path.is_file()
            }
    except WRITE_ERRORS as error:
        raise RunError(f"{target} could not be written ({error}); free some space or choose another --out") from None
    return Exported(target, to, files, tuple(parities), tuple(steps))


def _loaded(consumers: Iterator[Consumer], what: str) -> Iterator[Consumer]:
    """The consumers, one after the other. Raises `ParityError` where one cannot load what was written."""
    while True:
        try:
            found = next(consumers)
        except StopIteration:
            return
        except HeptuneError:
            raise
        except Exception as problem:  # whatever another program had against it
            if isinstance(problem, OSError) and problem.errno == errno.ENOSPC:
                raise
            first = (str(problem).strip().splitlines() or [""])[0]
            raise ParityError(
                f"{what} could not be loaded back ({type(problem).__name__}: {first}). Nothing was kept; try another "
                "format, or report it with the base's name"
            ) from problem
        yield found


def _versions() -> dict[str, str]:
    """Of the programs that take part, those that are installed."""
    found = {}
    for package in ("torch", "transformers", "peft", "gguf", "llama-cpp-python"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _kept(job: Job, to: str, parities: list[Parity]) -> dict[str, Any]:
    """What parity.json keeps."""
    manifest = job.run.manifest
    return {
        "heptune": heptune.__version__,
        "versions": _versions(),
        "format": to,
        "type": job.type,
        "run": {"name": job.run.folder.resolve().name, "fingerprint": lineage.fingerprint(job.run)},
        "base": {name: manifest["base"][name] for name in ("name", "revision", "fingerprint")},
        "technique": manifest["technique"],
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "parity": [{**parity.to_json(), "problems": parity.problems} for parity in parities],
    }
