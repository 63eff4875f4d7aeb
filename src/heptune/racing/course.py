"""The course of a race, from whatever is on disk to the verdict.

Everything that was decided stands in race.json and everything that was trained in the run directories, so that a race
that was killed goes on where it was: what is done is found done.
"""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heptune.core.errors import RunError
from heptune.core.events import (
    CandidateDone,
    CandidateMoved,
    Listener,
    Note,
    RaceStarted,
    RungDecided,
    StageStarted,
)
from heptune.engine.memory import give_back
from heptune.planning import priors
from heptune.racing import work
from heptune.racing.conclusion import conclude
from heptune.racing.ladder import Standing, decide
from heptune.racing.places import Lost, Place, Processes, RayCluster
from heptune.racing.race import Race
from heptune.runs.files import write_json
from heptune.runs.lock import in_use
from heptune.runs.run import Run

# How often the run directories are looked at while candidates train.
LOOK_S = 0.5
# What Ctrl-C lets a candidate finish: the step under way and its checkpoint.
SAVE_S = 60.0
# How long the processes of a sitting that was killed may take to notice it.
ORPHANS_S = 30.0


class Interrupted(Exception):
    """The person asked to stop; everything is saved."""


def run(race: Race, place: Place, listener: Listener, keep_dropped: bool = False) -> Race:
    """Races to the verdict, or until the person interrupts. The race's status is then 'finished' or 'interrupted'.

    `keep_dropped`: the dropped keep their checkpoints, from which they could go on."""
    try:
        with race.locked():
            race.update(status="running")
            give_back()  # what measured the race
            listener(_started(race, place))
            course = _Course(race, place, listener, keep_dropped)
            try:
                with _terminated_like_interrupted():
                    course.await_orphans()
                    course.qualify()
                    course.final()
            except (Interrupted, KeyboardInterrupt):
                race.update(status="interrupted", spent_s=course.spent)
    finally:
        place.close()
    return race


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Inside the block SIGTERM is what Ctrl-C is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut short what saves
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def place_of(race: Race) -> Place:
    """Where a race's candidates train."""
    if race.values["on"] == "ray":
        return RayCluster(race.folder, race.values["threads"])
    return Processes(race.values["parallel"])


def _started(race: Race, place: Place) -> RaceStarted:
    values = race.values
    return RaceStarted(
        folder=str(race.folder),
        candidates=tuple(race.alive()),
        rungs=tuple(race.rungs),
        budget_s=values["budget"].get("time_s"),
        expected_s=values.get("expected_s"),
        width=place.width,
    )


@dataclass
class _Course:
    race: Race
    place: Place
    listener: Listener
    keep_dropped: bool
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._spent_before = float(self.race.values["spent_s"])

    @property
    def spent(self) -> float:
        """Wall time over all sittings."""
        return self._spent_before + time.monotonic() - self.began

    def await_orphans(self) -> None:
        """Where the race was killed, its processes end by themselves; until then they hold their runs."""
        until = time.monotonic() + ORPHANS_S
        folders = [path.parent for path in self.race.folder.glob("*/*/lock")]
        while any(map(in_use, folders)) and time.monotonic() < until:
            time.sleep(0.1)

    def qualify(self) -> None:
        """Up the ladder, to the finalists."""
        race = self.race
        self.clear()  # of a sitting that was killed between a decision and this
        for rung in range(len(race.values["rungs"]), len(race.rungs) - 1):
            step, alive = race.rungs[rung], race.alive()
            self.train({name: race.run_folder(name) for name in alive}, step)
            forms = [race.form(name, step) for name in alive]
            standings = decide(forms, rung, race.steps, self.affordable(forms, rung))
            if not any(standing.kept for standing in standings):
                reasons = "; ".join(f"{s.candidate}: {s.why}" for s in standings[:3])
                race.update(status="failed")
                raise RunError(f"no candidate of {race.folder} can go on after step {step} ({reasons})")
            self.decided(step, standings)

    def affordable(self, forms: Iterable[Any], rung: int) -> int:
        """How many finalists the time that is left allows, at the pace so far: those that were asked for, or fewer."""
        values = self.race.values
        asked, budget = values["finalists"], values["budget"].get("time_s")
        if budget is None or asked == 1 or rung < len(self.race.rungs) - 2:
            return int(asked)
        step = self.race.rungs[rung]
        paces = sorted(form.time_s / step for form in forms if not form.failed)
        seeds, left = len(values["seeds"]), budget - self.spent
        for count in range(asked, 1, -1):
            work_s = sum(paces[-count:]) * (self.race.steps * seeds - step) / min(self.place.width, count * seeds)
            if work_s + values.get("closing_s", 0.0) <= left:
                return count
        if paces:
            text = f"{max(0.0, left) / 60:.0f} min of the budget are left: the final has one technique, not {asked}"
            self.listener(Note(text, "warning"))
        return 1

    def decided(self, step: int, standings: list[Standing]) -> None:
        """Keeps a rung's decision; what the dropped would have needed to go on is taken away."""
        values = [standing.to_json() for standing in standings]
        self.race.update(rungs=[*self.race.values["rungs"], {"step": step, "standings": values}])
        self.listener(RungDecided(step, tuple(values)))
        self.clear()

    def clear(self) -> None:
        """Takes away what the dropped would have needed to go on."""
        alive = set(self.race.alive())
        dropped = {entry["name"] for entry in self.race.values["candidates"]} - alive
        for folder in map(self.race.run_folder, set() if self.keep_dropped else dropped):
            for path in [folder / "checkpoints", *folder.glob("best-*")]:
                shutil.rmtree(path, ignore_errors=True)

    def final(self) -> None:
        """The finalists to the full length with every seed, the test part, the baselines, the verdict."""
        race, seeds = self.race, self.race.values["seeds"]
        names = race.alive()
        folders = {_label(name, seed): race.run_folder(name, seed) for name in names for seed in seeds}
        for name in names:
            for seed in seeds:
                _begin_again(race.run_folder(name), race.run_folder(name, seed), seed)
        self.train(folders, race.steps)
        finished = {n: f for n, f in folders.items() if Run(f).manifest["status"] == "finished"}
        if not finished:
            lost = race.values.get("lost", {})
            reasons = "; ".join(f"{n}: {Run(f).manifest.get('error') or lost.get(n)}" for n, f in folders.items())
            raise RunError(f"no finalist of {race.folder} came to its end ({reasons}); `heptune resume` tries again")
        test = (race.values["test_limit"], race.values["settings"]["seed"], race.values["threads"])
        # The baselines take longest: begun first, they end while the finalists are tested beside them.
        pieces: dict[str, tuple[Any, ...]] = {"baselines": (work.baselines, str(race.folder), *test)}
        pieces |= {name: (work.answers, str(folder), *test) for name, folder in finished.items()}
        self.listener(StageStarted("the test part, and the baselines", tuple(pieces), None))
        failed = self.compute(pieces, {})
        if failed:
            raise RunError("; ".join(f"{name}: {why}" for name, why in failed.items()))
        finals = [
            {
                "contender": race.entry(name)["technique"],
                "candidate": name,
                "runs": [
                    {"seed": seed, "run": str(race.run_folder(name, seed).relative_to(race.folder))}
                    for seed in seeds
                    if _label(name, seed) in finished
                ],
            }
            for name in names
        ]
        race.update(finals=[final for final in finals if final["runs"]])
        write_json(race.folder / "verdict.json", conclude(race))
        race.update(spent_s=self.spent)
        race.update(status="finished", cost=_cost(race))
        _remember(race)

    def train(self, folders: Mapping[str, Path], until: int) -> None:
        """Everyone to a step. Whose process died is tried once more, alone: most likely memory ran out.

        What fails is remembered by its run, what was lost by the race."""
        todo = {name: folder for name, folder in folders.items() if not _reached(folder, until)}
        if not todo:
            return
        self.listener(StageStarted(f"to step {until} of {self.race.steps}", tuple(folders), until))
        threads = self.race.values["threads"]
        pieces = {name: (work.advance, str(folder), until, threads) for name, folder in todo.items()}
        failed = self.compute(pieces, todo)
        lost = [name for name in failed if Run(todo[name]).manifest["status"] != "failed"]
        for name in lost:
            self.listener(Note(f"{name}: {failed.pop(name)}; once more, with nothing beside it", "warning"))
            self.listener(StageStarted(f"{name} to step {until}, once more", (name,), until))
            failed |= self.compute({name: pieces[name]}, {name: todo[name]})
        if failed:
            self.race.update(lost={**self.race.values.get("lost", {}), **failed})

    def compute(self, pieces: Mapping[str, tuple[Any, ...]], watched: Mapping[str, Path]) -> dict[str, str]:
        """Computes the pieces and tells how the watched runs move; those that failed, and why."""
        futures: dict[Future[Any], str] = {}
        failed: dict[str, str] = {}
        looks = {name: _Look(name, folder) for name, folder in watched.items()}

        def look() -> None:
            for each in looks.values():
                each.tell(self.listener)

        def collect(done: Iterable[Future[Any]]) -> None:
            for future in done:
                name = futures[future]
                why = _outcome(future)
                if why == "interrupted":
                    raise Interrupted
                if why:
                    failed[name] = why
                self.listener(CandidateDone(name, why))
            self.race.update(spent_s=self.spent)

        try:
            for name, (call, *arguments) in pieces.items():
                future = self.place.submit(call, *arguments)
                futures[future] = name
                if future.done():  # computed at once
                    look()
                    collect([future])
            pending = {future for future in futures if not future.done()}
            while pending:
                done, pending = wait(pending, LOOK_S, FIRST_COMPLETED)
                look()
                if done:
                    collect(done)
        except BaseException:
            for future in futures:
                future.cancel()
            self.place.stop()
            wait(futures, SAVE_S)
            raise
        return failed


@dataclass
class _Look:
    """Reads what a run writes into its events while it trains."""

    name: str
    folder: Path
    at: int = -1

    def tell(self, listener: Listener) -> None:
        """Tells what is new since the last look."""
        path = self.folder / "events.jsonl"
        size = path.stat().st_size if path.exists() else 0
        if size in (0, self.at):
            return
        self.at = size
        events = Run(self.folder).events
        step = next((e for e in reversed(events) if e["event"] == "StepDone"), None)
        scored = next((e for e in reversed(events) if e["event"] == "Validated"), None)
        if step is not None:
            metrics = scored["metrics"] if scored is not None else None
            listener(CandidateMoved(self.name, step["step"], step["loss"], metrics))


def _outcome(future: Future[Any]) -> str:
    """Empty where all is well, else why not. Raises what is no candidate's fault."""
    try:
        result = future.result()
    except Lost as error:
        return str(error)
    return "" if result == "reached" else str(result)


def _reached(folder: Path, until: int) -> bool:
    manifest = Run(folder).manifest
    status = manifest["status"]
    return status in ("finished", "failed") or (status == "paused" and manifest["step"] >= until)


def _label(candidate: str, seed: int) -> str:
    return f"{candidate} (seed {seed})"


def _begin_again(folder: Path, other: Path, seed: int) -> None:
    """A run like the one in `folder`, from the beginning, with another seed. Nothing where it exists.

    Nothing is decided about it on the way, so that it is validated at its end alone; on the same records."""
    if (other / "manifest.json").exists():
        return
    manifest = Run(folder).manifest
    left_out = ("format", "status", "step", "steps", "trainable", "result", "error")
    kept = {name: value for name, value in manifest.items() if name not in left_out}
    changed = {
        "status": "new",
        "settings": {**manifest["settings"], "seed": seed},
        "validate_at": manifest["validate_at"][-1:],
        "validation_seed": manifest["settings"]["seed"],
    }
    Run.create(other, {**kept, **changed})


def _remember(race: Race) -> None:
    """What later plans on this machine take for their prior. A cache that cannot be written costs nothing else."""
    values, verdict = race.values, race.verdict
    scores = {each["name"]: each["score"]["value"] for each in verdict["contenders"] if each["kind"] == "technique"}
    best = max(scores.values()) if verdict["higher_is_better"] else min(scores.values())
    chosen = values["split"]["train"]  # the records' numbers; of a corpus, how many there are
    examples = chosen if isinstance(chosen, int) else len(chosen)
    with suppress(OSError):
        for name, score in scores.items():
            priors.remember(
                priors.Entry(
                    base=values["base"]["name"],
                    task=values["task"]["name"],
                    examples=examples,
                    technique=name,
                    score=score,
                    best_score=best,
                    race=f"{race.folder.resolve()} {values['created']}",
                )
            )


def _cost(race: Race) -> dict[str, float]:
    """What the race has cost: wall time, and what all its trainings took, each in its own process."""
    folders = [path.parent for part in ("candidates", "finals") for path in race.folder.glob(f"{part}/*/manifest.json")]
    done = [event for folder in folders for event in Run(folder).events if event["event"] == "StepDone"]
    return {
        "time_s": float(race.values["spent_s"]),
        "training_s": sum(event["time_s"] for event in done),
        "tokens": sum(event["tokens"] for event in done),
        "steps": len(done),
    }
