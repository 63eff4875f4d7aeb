"""Races in processes: what kill -9 and Ctrl-C leave, and what the death of one worker costs the others."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from heptune.core.events import CandidateDone, Event, Note, StageStarted, ignore
from heptune.racing import course
from heptune.racing.entry import Terms
from heptune.racing.places import Here, Lost, Processes
from heptune.racing.race import Race
from heptune.runs.files import read_json
from heptune.runs.run import Run

Enter = Callable[..., Race]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and kills")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def prepared(entered: Enter, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes, 54 steps; nothing in it depends on time."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("races") / "prepared"
    terms = Terms(budget_tokens=10**7, rates=(1.0, 3.0), width=2)
    return entered(folder, reviews, ("lora", "prompt"), terms=terms, epochs=3).folder


@pytest.fixture(scope="module")
def whole(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Race:
    """The same without interruption, in this process."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("races") / "whole"
    shutil.copytree(prepared, folder)
    return course.run(Race(folder), Here(), ignore)


def same(a: Race, b: Race) -> None:
    """The same decisions, weights and answers."""
    for one, other in zip(a.values["rungs"], b.values["rungs"], strict=True):
        kept = [[(s["candidate"], s["score"], s["kept"], s["why"]) for s in rung["standings"]] for rung in (one, other)]
        assert kept[0] == kept[1]
    assert a.values["finals"] == b.values["finals"]
    for final in a.values["finals"]:
        for run in final["runs"]:
            folders = [race.folder / run["run"] for race in (a, b)]
            for name in ("parameters", "optimizer"):
                mine, theirs = (load_file(f / f"checkpoints/step-{a.steps:06d}/{name}.safetensors") for f in folders)
                assert mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)
            answers = [read_json(folder / "test.json") | {"scoring_s": 0} for folder in folders]
            assert answers[0] == answers[1]
    scores = [{c["name"]: c["score"] for c in race.verdict["contenders"]} for race in (a, b)]
    assert scores[0] == scores[1]


def children(process: int) -> list[int]:
    """The processes that a process has begun."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[1]) == process:
            found.append(int(path.parent.name))
    return found


def lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end, "it did not come to it"
        time.sleep(0.005)


def resume(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "heptune.cli.main", "resume", str(folder)]
    environment = {**ENVIRONMENT, "HEPTUNE_CACHE": str(folder.parent / "cache")}  # a test is no prior of this machine
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def trained(folder: Path, part: str) -> bool:
    """Whether somebody has taken a step."""
    return any('"StepDone"' in path.read_text("utf-8") for path in folder.glob(f"{part}/*/events.jsonl"))


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "in the first rung": lambda folder: trained(folder, "candidates"),
    "after a decision": lambda folder: bool(read_json(folder / "race.json")["rungs"]),
    "in the final": lambda folder: trained(folder, "finals"),
    "while it is tested": lambda folder: any(folder.glob("*/*/test.json")),
}


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_verdict(prepared: Path, whole: Race, tmp_path: Path) -> None:
    """kill -9 of the process that leads; its workers end by themselves, and `heptune resume` goes on."""
    folder = tmp_path / "race"
    shutil.copytree(prepared, folder)
    for reached in MOMENTS.values():
        process = resume(folder)
        until(lambda reached=reached, process=process: reached(folder) or process.poll() is not None)  # type: ignore[misc]
        workers = children(process.pid)
        assert process.poll() is None and len(workers) >= 2  # also multiprocessing's own, which watches resources
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
        began = time.monotonic()
        until(lambda workers=workers: not any(map(lives, workers)))  # type: ignore[misc]
        assert time.monotonic() - began < 20
    last = resume(folder)
    said, _ = last.communicate(timeout=PATIENCE_S)
    assert last.returncode == 0, said
    assert f"heptune report {folder}" in said
    same(Race(folder), whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_saves_says_how_to_go_on_and_goes_on(
    number: int, tmp_path: Path, entered: Enter, reviews: Path
) -> None:
    """As a terminal does it, to the group, or as a batch system, to everyone and twice. What trains finishes its step,
    however far from a rung."""
    folder = tmp_path / "race"
    race = entered(folder, reviews, ("lora",), terms=Terms(rates=(1.0, 2.0), finalists=1, width=2), epochs=200)
    process = resume(folder)
    until(lambda: trained(folder, "candidates") or process.poll() is not None)
    for each in [] if number == signal.SIGINT else children(process.pid):
        os.kill(each, number)  # batch systems tell everyone
    os.killpg(process.pid, number)
    if number == signal.SIGTERM:
        os.killpg(process.pid, number)
    said, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, said
    assert f"interrupted; everything so far is saved in {folder}. Go on with:" in said
    assert f"    heptune resume {folder}" in said and "Traceback" not in said
    assert Race(folder).values["status"] == "interrupted"
    runs = [Run(path.parent) for path in folder.glob("candidates/*/manifest.json")]
    cut = [run for run in runs if run.manifest["status"] == "interrupted"]
    assert cut == [run for run in runs if any(event["event"] == "StepDone" for event in run.events)] != []
    for run in cut:
        step = run.manifest["step"]
        assert 0 < step < race.rungs[0] and (run.folder / f"checkpoints/step-{step:06d}").is_dir()


@pytest.mark.slow
def test_asked_to_stop_in_the_final_it_goes_on_to_the_same_verdict(prepared: Path, whole: Race, tmp_path: Path) -> None:
    folder = tmp_path / "race"
    shutil.copytree(prepared, folder)
    process = resume(folder)
    until(lambda: trained(folder, "finals") or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    same(course.run(Race(folder), Here(), ignore), whole)


@pytest.fixture
def processes() -> Iterator[Processes]:
    place = Processes(2)
    yield place
    place.close()


@pytest.mark.parametrize("times", [1, 2])
def test_a_worker_that_dies_is_replaced_and_its_candidate_tried_once_more(
    prepared: Path, tmp_path: Path, processes: Processes, times: int
) -> None:
    """Killed in the middle of a training, as the system does where memory runs out; the others do not notice."""
    folder = tmp_path / "race"
    shutil.copytree(prepared, folder)
    victim = Race(folder).alive()[1]
    heard: list[Event] = []

    def kill() -> None:
        lock = folder / "candidates" / victim / "lock"
        while True:
            try:
                os.kill(int(lock.read_text()), signal.SIGKILL)
                return
            except (OSError, ValueError):
                time.sleep(0.001)

    def listener(event: Event) -> None:
        heard.append(event)
        began = [e for e in heard if isinstance(e, StageStarted) and victim in e.names]
        if isinstance(event, StageStarted) and len(began) <= times:
            threading.Thread(target=kill, daemon=True).start()

    race = course.run(Race(folder), processes, listener)
    failed = [event for event in heard if isinstance(event, CandidateDone) and event.failed]
    assert [event.name for event in failed] == [victim] * times
    assert all("its process died with code -9" in event.failed for event in failed)
    again = [event for event in heard if isinstance(event, Note) and event.text.startswith(f"{victim}: its process")]
    assert len(again) == 1 and "once more" in again[0].text
    first = {s["candidate"]: s for s in race.values["rungs"][0]["standings"]}
    if times == 1:
        assert first[victim]["score"] is not None and "lost" not in race.values
    else:
        assert not first[victim]["kept"] and first[victim]["why"] == failed[0].failed
    assert all(s["score"] is not None for name, s in first.items() if name != victim)
    assert race.values["status"] == "finished"


def test_the_places_own_rules(processes: Processes) -> None:
    """Each call comes back with its own result, error or loss."""
    lost, found = processes.submit(os._exit, 9), [processes.submit(pow, 2, n) for n in range(6)]
    failed = processes.submit(int, "no number")
    assert [future.result(60) for future in found] == [1, 2, 4, 8, 16, 32]
    with pytest.raises(Lost, match="its process died with code 9"):
        lost.result(60)
    with pytest.raises(ValueError, match="no number") as caught:
        failed.result(60)
    assert "Traceback" in caught.value.__notes__[0]
    assert processes.submit(pow, 3, 2).result(60) == 9
    unsent = processes.submit(eval, "(_ for _ in ()).throw(type('Odd', (Exception,), {})('odd'))")
    with pytest.raises(RuntimeError, match="odd"):
        unsent.result(60)


def test_what_waits_is_cancelled_and_what_sleeps_ends(processes: Processes) -> None:
    futures = [processes.submit(time.sleep, 60) for _ in range(6)]
    until(lambda: sum(future.running() for future in futures) == 2)
    time.sleep(0.5)
    assert sum(future.cancel() for future in futures) == 4
    processes.stop()
    done, left = wait(futures, 30)  # that is, they are told, too
    assert not left and sum(future.cancelled() for future in done) == 4


def test_nothing_that_was_begun_stays() -> None:
    place = Processes(2)
    place.submit(pow, 2, 2).result(60)
    begun = [worker.process.pid for worker in place._workers]
    assert begun
    place.close()
    until(lambda: not any(lives(pid) for pid in begun if pid is not None))
