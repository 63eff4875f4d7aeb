"""A race directory:

    race.json         what was asked, who competes, what every rung decided, who is in the finals; everything that a
                      continued race needs to know
    candidates/NAME/  an ordinary run directory each, trained to the rung where it was dropped, or to the end
    finals/NAME/      the finalists' further seeds
    baselines.json    what has to be beaten, answer by answer
    verdict.json      what the race concludes

Every file is whole or absent. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from heptune.core.errors import RunError
from heptune.racing.ladder import Form
from heptune.runs.files import new_folder, read_json, write_json
from heptune.runs.lock import locked
from heptune.runs.run import Run

FORMAT = 1


class Race:
    """A race directory that exists. `Race(folder)` opens it; `create` makes a new one."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not is_race(self.folder):
            raise RunError(f"{folder} is no race directory (it has no race.json); `heptune race BASE DATA` makes one")
        self.values: dict[str, Any] = read_json(self.folder / "race.json")
        if self.values.get("format") != FORMAT:
            raise RunError(
                f"{folder} has race format {self.values.get('format')!r}, this version reads {FORMAT}; "
                f"it was written by heptune {self.values.get('heptune')}: use that version"
            )

    @classmethod
    @contextmanager
    def create(cls, folder: Path, values: dict[str, Any]) -> Iterator[Race]:
        """A new race directory, filled in the block; it appears whole, with everyone who competes, or not at all.
        Raises `RunError` when the folder is taken."""
        require_free(folder)
        try:
            with new_folder(folder) as unfinished:
                for part in ("candidates", "finals"):
                    (unfinished / part).mkdir()
                write_json(unfinished / "race.json", {"format": FORMAT, **values})
                yield cls(unfinished)
        except OSError as error:
            raise RunError(f"{folder} cannot be written ({error.strerror}); choose another --out") from None

    def update(self, **values: Any) -> None:
        """Changes entries, on disk as well."""
        self.values.update(values)
        write_json(self.folder / "race.json", self.values)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes out of this race inside the block."""
        with locked(self.folder):
            yield

    @property
    def rungs(self) -> list[int]:
        """The steps after which candidates are compared; the last is the full length."""
        return [rung["step"] for rung in self.values["ladder"]]

    @property
    def steps(self) -> int:
        """The full length of a training."""
        return self.rungs[-1]

    def entry(self, candidate: str) -> dict[str, Any]:
        """What race.json says of a candidate."""
        return next(entry for entry in self.values["candidates"] if entry["name"] == candidate)

    def run_folder(self, candidate: str, seed: int | None = None) -> Path:
        """The run directory of a candidate; with a seed other than the race's own that of its further training."""
        if seed is None or seed == self.values["settings"]["seed"]:
            return self.folder / "candidates" / candidate
        return self.folder / "finals" / f"{candidate}-seed{seed}"

    @property
    def verdict(self) -> dict[str, Any]:
        """What verdict.json says; `RunError` where the race has not come to one."""
        if not (self.folder / "verdict.json").exists():
            way = f"continue it with `heptune resume {self.folder}`"
            raise RunError(f"{self.folder} has no verdict yet (status: {self.values['status']}); {way}")
        found: dict[str, Any] = read_json(self.folder / "verdict.json")
        return found

    @property
    def winner(self) -> Path | None:
        """The winner's run directory; None where a baseline has won."""
        verdict = self.verdict
        return self._run_of(next(each for each in verdict["contenders"] if each["name"] == verdict["winner"]))

    @property
    def best_run(self) -> Path | None:
        """The winner's run directory, or where a baseline has won that of the technique with the best score."""
        techniques = (each for each in self.verdict["contenders"] if each["kind"] == "technique")
        return self.winner or self._run_of(next(techniques))

    def _run_of(self, contender: dict[str, Any]) -> Path | None:
        """The training of the seed that validated best, since choosing by the test part would use it up."""
        verdict = self.verdict
        sign = 1 if verdict["higher_is_better"] else -1
        runs = [Run(self.folder / each["run"]) for each in contender["seeds"] if each["run"]]

        def validated(run: Run) -> tuple[float, float]:
            metrics = run.manifest["result"]["best_validation"]
            return sign * metrics[verdict["metric"]], -metrics["loss"]

        return max(runs, key=validated).folder if runs else None

    def alive(self) -> list[str]:
        """The candidates that go on, in the order in which they were entered."""
        decided = self.values["rungs"]
        if not decided:
            return [entry["name"] for entry in self.values["candidates"]]
        kept = {standing["candidate"] for standing in decided[-1]["standings"] if standing["kept"]}
        return [entry["name"] for entry in self.values["candidates"] if entry["name"] in kept]

    def form(self, candidate: str, step: int) -> Form:
        """How a candidate stands after a step, from its run directory."""
        entry = self.entry(candidate)
        run = Run(self.run_folder(candidate))
        validated = {e["step"]: e["metrics"] for e in run.events if e["event"] == "Validated" and e["step"] <= step}
        done = [e for e in run.events if e["event"] == "StepDone"]
        losses = tuple((at, validated[at]["loss"]) for at in sorted(validated) if at > 0)
        failed = str(run.manifest.get("error") or "") if run.manifest["status"] == "failed" else ""
        if not failed and step not in validated:
            failed = str(self.values.get("lost", {}).get(candidate, "it was not scored"))
        return Form(
            candidate=candidate,
            technique=entry["technique"],
            slow_start=entry["slow_start"],
            losses=() if failed else losses,
            metrics=validated.get(step, {}),
            time_s=sum(e["time_s"] for e in done),
            memory_bytes=max((e["memory_bytes"] for e in done), default=0),
            failed=failed,
        )


def require_free(folder: Path) -> None:
    """Raises `RunError` where no race can be made."""
    if is_race(folder):
        way = f"continue it with `heptune resume {folder}`, look at it with `heptune report {folder}`"
        raise RunError(f"{folder} holds a race already; {way}, or choose another --out")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} is not an empty folder, and no race; choose another --out")


def is_race(folder: Path) -> bool:
    """Whether a folder is a race directory."""
    return (folder / "race.json").is_file()
