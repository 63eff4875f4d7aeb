"""Whole races on a tiny base, in this process: what they leave, that they are fair, and that nothing breaks them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import heptune
import heptune.api
from heptune import techniques
from heptune.core.errors import DataError, RunError, TechniqueError, UsageError
from heptune.core.events import CandidateDone, Event, Note, RungDecided, StepDone, ignore
from heptune.data.parts import DataOptions
from heptune.data.splits import content_key
from heptune.engine.settings import Settings
from heptune.racing import course, entry, work
from heptune.racing.entry import Terms
from heptune.racing.places import Here
from heptune.racing.race import Race
from heptune.reporting.report import report, report_markdown
from heptune.runs.files import read_json, write_json
from heptune.runs.lock import in_use, locked
from heptune.runs.run import Run
from heptune.tuning import base as bases
from heptune.tuning import problem as problems
from heptune.tuning import training

Enter = Callable[..., Race]
FREEZE = heptune.Freeze(layers=1)


@pytest.fixture(scope="module")
def prepared(entered: Enter, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A race that has not begun: three techniques, of which one starts slowly and from a text too."""
    folder = tmp_path_factory.mktemp("races") / "prepared"
    return entered(folder, reviews, ("lora", FREEZE, "prompt")).folder


@pytest.fixture(scope="module")
def heard() -> list[Event]:
    return []


@pytest.fixture(scope="module")
def raced(prepared: Path, heard: list[Event], tmp_path_factory: pytest.TempPathFactory) -> Race:
    """The same at its verdict."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("races") / "raced"
    shutil.copytree(prepared, folder)
    return course.run(Race(folder), Here(), heard.append)


def runs(race: Race) -> dict[str, Run]:
    return {path.parent.name: Run(path.parent) for path in sorted(race.folder.glob("*/*/manifest.json"))}


def newest(run: Run) -> dict[str, torch.Tensor]:
    folder = sorted((run.folder / "checkpoints").glob("step-*"))[-1]
    return {f"{p.stem}/{n}": t for p in sorted(folder.glob("*.safetensors")) for n, t in load_file(p).items()}


def steps(run: Run) -> list[tuple[int, int, float, float]]:
    return [(e["step"], e["tokens"], e["loss"], e["gradient_norm"]) for e in run.events if e["event"] == "StepDone"]


def decisions(race: Race) -> list[Any]:
    """What was decided, without what it took."""
    measured = ("time_s", "memory_bytes")
    return [
        [{k: v for k, v in standing.items() if k not in measured} for standing in rung["standings"]]
        for rung in race.values["rungs"]
    ]


def same(a: Race, b: Race) -> None:
    """The same decisions, the same weights, the same answers."""
    assert decisions(a) == decisions(b)
    assert a.values["finals"] == b.values["finals"]
    left, right = runs(a), runs(b)
    assert left.keys() == right.keys()
    for name in left:
        assert steps(left[name]) == steps(right[name]), name
        if (left[name].folder / "artifact").exists():
            mine, other = newest(left[name]), newest(right[name])
            assert mine.keys() == other.keys() and all(torch.equal(mine[n], other[n]) for n in mine), name
            mine, other = (read_json(run.folder / "test.json") | {"scoring_s": 0} for run in (left[name], right[name]))
            assert mine == other
    assert _judged(a) == _judged(b)


def _judged(race: Race) -> Any:
    """What the verdict says, but for costs, which are measured, and what follows from them."""
    contenders = {
        c["name"]: (c["kind"], c["score"], c["seeds"], c["tied_with_best"]) for c in race.verdict["contenders"]
    }
    return contenders, contenders[race.verdict["winner"]][0]


class Stop(Exception):
    """An end as abrupt as an exception can make it."""


# What a race leaves


def test_what_race_json_says(raced: Race, base: Path, reviews: Path) -> None:
    values = read_json(raced.folder / "race.json")
    assert values == raced.values
    expected = {
        "format",
        "heptune",
        "status",
        "created",
        "command",
        "base",
        "task",
        "data",
        "split",
        "metric",
        "on",
        "template",
    }
    expected |= {"settings", "budget", "seed", "seeds", "finalists", "test_limit", "threads", "parallel", "versions"}
    expected |= {"candidates", "ladder", "rungs", "finals", "expected_s", "closing_s", "exhaustive_cost_estimate"}
    assert values.keys() == expected | {"spent_s", "cost"}
    assert values["status"] == "finished" and values["command"][:2] == ["heptune", "race"]
    assert values["base"]["name"] == str(base) and values["data"]["train"]["path"] == str(reviews)
    assert [rung["step"] for rung in values["ladder"]] == [2, 4, 9, 18] and raced.steps == 18
    named = [candidate["name"] for candidate in values["candidates"]]
    assert [name for name in named if name.startswith("lora")] == ["lora-0.000167", "lora-0.0005", "lora-0.0015"]
    assert len(named) == len(set(named)) == 3 + 3 + 4 and "prompt-0.02-text" in named
    for candidate in values["candidates"]:
        assert candidate.keys() >= {"name", "technique", "settings", "learning_rate", "run", "slow_start", "predicted"}
        assert candidate["slow_start"] == (candidate["technique"] == "prompt")
        assert candidate["predicted"]["time_s"] > 0 and (raced.folder / candidate["run"]).is_dir()
    assert [rung["step"] for rung in values["rungs"]] == [2, 4, 9]
    assert len(values["rungs"][0]["standings"]) == 10 and len(values["rungs"][1]["standings"]) == 6
    assert 0 < values["cost"]["training_s"] < values["cost"]["time_s"] == values["spent_s"]


def test_what_the_verdict_says(raced: Race) -> None:
    verdict = raced.verdict
    finals = raced.values["finals"]
    assert len(finals) == 2 and all(len(final["runs"]) == 2 for final in finals)
    contenders = {c["name"]: c for c in verdict["contenders"]}
    assert set(contenders) >= {final["contender"] for final in finals} | {"base, zero-shot", "most frequent label"}
    tested = verdict["examples"]
    assert tested == len(raced.values["split"]["test"]) == 24
    for final in finals:
        each = contenders[final["contender"]]
        assert [seed["seed"] for seed in each["seeds"]] == [0, 1] == raced.values["seeds"]
        scores = []
        for run in final["runs"]:
            kept = read_json(raced.folder / run["run"] / "test.json")
            assert len(kept["correct"]) == tested
            scores.append(sum(kept["correct"]) / tested)
        assert each["score"]["value"] == pytest.approx(sum(scores) / 2)
        assert all(sum(map(sum, matrix)) == 2 * tested for matrix in [verdict["confusion"][each["name"]]])


def test_the_answers_are_those_of_the_artifact(raced: Race) -> None:
    """Whoever opens a finalist gets what the verdict was spoken on."""
    final = raced.values["finals"][0]
    folder = raced.folder / final["runs"][0]["run"]
    tuned = heptune.open_run(folder)
    records = problems.again(raced.values).parts.test
    chosen = read_json(folder / "test.json")["chosen"]
    labels = raced.values["task"]["labels"]
    said = [next(iter(tuned.classify(record.text or ""))) for record in records]
    assert said == [labels[i] for i in chosen]


def test_the_dropped_keep_their_events_and_lose_their_weights(raced: Race) -> None:
    alive = set(raced.alive())
    for candidate in raced.values["candidates"]:
        folder = raced.run_folder(candidate["name"])
        weights = next(folder.rglob("*.safetensors"), None)
        assert (weights is not None) == (candidate["name"] in alive)
        assert Run(folder).events and (folder / "manifest.json").exists()
        assert not list(folder.glob(".unfinished*")) and not (folder / "lock").exists()


def test_the_dropped_stay_where_they_were_dropped(raced: Race) -> None:
    left = {s["candidate"]: rung["step"] for rung in raced.values["rungs"] for s in rung["standings"] if not s["kept"]}
    for name, step in left.items():
        run = Run(raced.run_folder(name))
        assert run.manifest["status"] == "paused" and run.manifest["step"] == step == steps(run)[-1][0]


def test_what_is_told(raced: Race, heard: list[Event]) -> None:
    decided = [event for event in heard if isinstance(event, RungDecided)]
    assert [event.step for event in decided] == [2, 4, 9]
    assert not [event for event in heard if isinstance(event, CandidateDone) and event.failed]
    done = [event.name for event in heard if isinstance(event, CandidateDone)]
    climbed = sum(len(rung["standings"]) for rung in raced.values["rungs"])
    assert len(done) == climbed + 4 + 4 + 1  # the rungs, the final, its answers, the baselines


def test_a_report_can_be_made(raced: Race, tmp_path: Path) -> None:
    page = report(raced.folder, tmp_path / "report.html").read_text("utf-8")
    assert raced.verdict["winner"] in page and "lora" in page
    assert raced.verdict["winner"] in report_markdown(raced.folder)


def test_a_finished_race_is_given_back_as_it_is(raced: Race) -> None:
    before = (raced.folder / "race.json").read_bytes()
    again = heptune.api.resume_race(raced.folder)
    assert again.verdict == raced.verdict and (raced.folder / "race.json").read_bytes() == before


# Fairness


def test_everyone_sees_the_same_data_in_the_same_order(raced: Race) -> None:
    """Per rung the same tokens; per seed the same batches; the same validation records; the same split."""
    entries = [Run(raced.run_folder(candidate["name"])) for candidate in raced.values["candidates"]]
    for name in ("data", "split", "task", "template", "validate_at", "base", "threads"):
        assert len({json.dumps(run.manifest[name]) for run in entries}) == 1
    assert entries[0].manifest["split"] == raced.values["split"]
    longest = max((steps(run) for run in entries), key=len)
    for run in entries:
        own = steps(run)
        assert [(step, tokens) for step, tokens, *_ in own] == [
            (step, tokens) for step, tokens, *_ in longest[: len(own)]
        ]
    for seed in raced.values["seeds"]:
        finals = [Run(raced.run_folder(name, seed)) for name in raced.alive()]
        assert len({json.dumps([(s, t) for s, t, *_ in steps(run)]) for run in finals}) == 1
        assert all(steps(run)[-1][0] == raced.steps for run in finals)
    first, second = (Run(raced.run_folder(raced.alive()[0], seed)) for seed in raced.values["seeds"])
    assert [t for _, t, *_ in steps(first)] != [t for _, t, *_ in steps(second)]  # a seed is another order


def test_nobody_trains_or_is_chosen_on_what_the_verdict_is_spoken_on(raced: Race) -> None:
    parts = problems.again(raced.values).parts
    tested = {content_key(record) for record in parts.test}
    assert tested and not tested & {content_key(record) for record in (*parts.train, *parts.validation)}
    for run in runs(raced).values():
        started = next(e for e in run.events if e["event"] == "TrainingStarted")
        assert started["examples"] == len(parts.train)


def test_no_decision_reads_the_test_part(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the final nothing asks for a test record."""
    shutil.copytree(prepared, tmp_path / "race")

    def no_test(self: Any) -> Any:
        raise AssertionError("the test part was read before the final")

    monkeypatch.setattr("heptune.data.parts.DataParts.held_out", no_test)
    monkeypatch.setattr(course._Course, "final", lambda self: None)
    race = course.run(Race(tmp_path / "race"), Here(), ignore)
    assert len(race.values["rungs"]) == 3


def test_pausing_at_the_rungs_changes_no_bit(raced: Race, base: Path, reviews: Path, tmp_path: Path) -> None:
    """A finalist that paused three times against `heptune tune` in one go, and another seed's training."""
    torch.set_num_threads(raced.values["threads"])
    own = Settings(**Run(raced.run_folder(raced.alive()[0])).manifest["settings"])
    for name in raced.alive():
        entered = raced.entry(name)
        technique = techniques.build(entered["technique"], entered["settings"])
        tuned = heptune.tune(
            str(base),
            reviews,
            technique=technique,
            out=tmp_path / name,
            options=DataOptions(validation=0.2, test=0.2),
            epochs=own.epochs,
            max_steps=raced.steps,
            batch_size=4,
            max_length=128,
        )
        mine, other = newest(Run(raced.run_folder(name))), newest(tuned)
        assert mine.keys() == other.keys() and all(torch.equal(mine[n], other[n]) for n in mine)
        assert steps(tuned) == steps(Run(raced.run_folder(name)))
        problem = problems.again(raced.values)
        loaded = bases.load(str(base), technique, ignore)
        seeded = heptune.Settings(**{**read_json(tuned.folder / "manifest.json")["settings"], "seed": 1})
        run = training.begin(tmp_path / f"{name}-1", str(base), loaded, technique, problem, seeded, ignore)
        training.train(run, loaded, technique, problem, ignore)
        assert steps(run) == steps(Run(raced.run_folder(name, 1)))


def test_the_winners_run_is_chosen_without_the_test_part(raced: Race, tmp_path: Path) -> None:
    shutil.copytree(raced.folder, tmp_path / "race")
    race = Race(tmp_path / "race")
    verdict = race.verdict
    final = race.values["finals"][0]
    for better, worse in ((0, 1), (1, 0)):
        for number, loss in ((better, 0.1), (worse, 0.2)):
            run = Run(race.folder / final["runs"][number]["run"])
            run.update(result={**run.manifest["result"], "best_validation": {"accuracy": 0.9, "loss": loss}})
        contenders = [{**c, "seeds": [{**s, "score": s["seed"]} for s in c["seeds"]]} for c in verdict["contenders"]]
        write_json(race.folder / "verdict.json", {**verdict, "contenders": contenders, "winner": final["contender"]})
        assert race.winner == race.folder / final["runs"][better]["run"]


def test_the_seeds_of_a_finalist_are_validated_on_the_same_records(
    entered: Enter, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: dict[int, set[tuple[int, ...]]] = {0: set(), 1: set()}
    original = training.judged_on

    def spied(problem: Any, limit: int, seed: int) -> Any:
        records = original(problem, limit, seed)
        judged[0 if len(judged[0]) == 0 else 1].add(tuple(record.line for record in records))
        return records

    monkeypatch.setattr(training, "judged_on", spied)
    race = entered(tmp_path / "race", reviews, ("lora",), terms=Terms(rates=(1.0,), finalists=1), validation_limit=8)
    course.run(race, Here(), ignore)
    assert judged[0] == judged[1] and len(judged[0]) == 1


# Going on


def test_a_race_goes_on_from_every_moment(prepared: Path, raced: Race, tmp_path: Path) -> None:
    """Broken off at each decision and in each kind of work, it comes to the same weights and decisions."""
    moments = [0]

    def breaking(at: int) -> Callable[[Event], None]:
        count = 0

        def listener(event: Event) -> None:
            nonlocal count
            if isinstance(event, (RungDecided, CandidateDone)):
                count += 1
                moments[0] = max(moments[0], count)
                if count == at:
                    raise Stop

        return listener

    folder = tmp_path / "race"
    shutil.copytree(prepared, folder)
    for at in (3, 9, 1, 2, 4, 2, 1, 3):
        try:
            course.run(Race(folder), Here(), breaking(at))
        except Stop:
            assert read_json(folder / "race.json")["status"] == "running"
    same(course.run(Race(folder), Here(), ignore), raced)


def test_broken_off_inside_trainings(
    prepared: Path, raced: Race, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "race"
    shutil.copytree(prepared, folder)
    original = work.advance
    broken: list[str] = []

    def breaking(run: str, until: int, threads: int) -> str:
        def listener(event: Event) -> None:
            if (
                isinstance(event, StepDone)
                and event.step in (1, 6, 14)
                and (key := f"{run} {event.step}") not in broken
            ):
                broken.append(key)
                raise Stop

        return original(run, until, threads, listener)

    monkeypatch.setattr(work, "advance", breaking)
    for _ in range(60):
        try:
            race = course.run(Race(folder), Here(), ignore)
        except Stop:
            continue
        break
    assert len(broken) > 15
    same(race, raced)


def test_what_a_killed_sitting_did_not_clear_away_is_cleared(raced: Race, prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(raced.folder, tmp_path / "race")
    race = Race(tmp_path / "race")
    dropped = next(c["name"] for c in race.values["candidates"] if c["name"] not in race.alive())
    left = race.run_folder(dropped) / "checkpoints" / "step-000002"
    left.mkdir(parents=True)
    race.update(status="running")
    course.run(race, Here(), ignore)
    assert not left.exists() and race.values["status"] == "finished"


def test_time_is_counted_over_sittings_from_the_first_look_on(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "race")
    race = Race(tmp_path / "race")
    assert race.values["spent_s"] > 0  # measuring costs time too
    race.update(spent_s=1000.0)

    def stop(event: Event) -> None:
        if isinstance(event, RungDecided):
            raise KeyboardInterrupt

    race = course.run(race, Here(), stop)
    assert race.values["status"] == "interrupted" and 1000 < race.values["spent_s"] < 1100
    with pytest.raises(RunError, match=r"no verdict yet \(status: interrupted\)"):
        _ = race.verdict
    before = race.values["spent_s"]
    assert course.run(race, Here(), ignore).values["cost"]["time_s"] > before


def test_a_race_appears_whole_or_not_at_all(
    entered: Enter, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while its candidates were entered, it could not go on; the same folder is free for the next attempt."""
    begin, begun = training.begin, []

    def failing(folder: Path, *arguments: Any, **more: Any) -> Run:
        if len(begun) == 2:
            raise Stop
        begun.append(folder)
        return begin(folder, *arguments, **more)

    monkeypatch.setattr(training, "begin", failing)
    with pytest.raises(Stop):
        entered(tmp_path / "race", reviews, ("lora",))
    assert len(begun) == 2 and not list(tmp_path.iterdir())
    monkeypatch.setattr(training, "begin", begin)
    assert entered(tmp_path / "race", reviews, ("lora",)).folder == tmp_path / "race"


def test_two_processes_do_not_share_a_race(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "race")
    (tmp_path / "race" / "lock").write_text(str(os.getppid()))
    with pytest.raises(RunError, match=f"process {os.getppid()} is working"):
        course.run(Race(tmp_path / "race"), Here(), ignore)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_nobody_waited_for_holds_nothing(tmp_path: Path) -> None:
    """Where the first process of a container waits for nobody, what was killed stays listed."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        pass
    (tmp_path / "lock").write_text(str(child.pid))
    assert in_use(tmp_path) is None
    with locked(tmp_path):
        pass
    child.wait()


# What is not the candidates' fault, and what is


def test_data_that_is_gone_stops_the_race_and_fails_nobody(entered: Enter, reviews: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    shutil.copy(reviews, data)
    race = entered(tmp_path / "race", data, ("lora",))
    data.rename(tmp_path / "away.jsonl")
    with pytest.raises(RunError, match=r"data\.jsonl is gone"):
        course.run(race, Here(), ignore)
    assert {run.manifest["status"] for run in runs(race).values()} == {"new"}
    (tmp_path / "away.jsonl").rename(data)
    assert course.run(Race(race.folder), Here(), ignore).values["status"] == "finished"


def test_a_run_that_another_process_holds_is_not_failed(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "race")
    race = Race(tmp_path / "race")
    folder = race.run_folder(race.alive()[0])
    (folder / "lock").write_text(str(os.getppid()))
    with pytest.raises(RunError, match="is working in"):
        work.advance(str(folder), 2, 1)
    assert Run(folder).manifest["status"] == "new"


def test_who_diverges_is_out_with_the_reason(entered: Enter, reviews: Path, tmp_path: Path) -> None:
    terms = Terms(rates=(1.0, 1e30))
    heard: list[Event] = []
    race = course.run(entered(tmp_path / "race", reviews, ("lora", FREEZE), terms=terms), Here(), heard.append)
    first = {s["candidate"]: s for s in race.values["rungs"][0]["standings"]}
    wild = [name for name in first if "e+" in name]
    assert len(wild) == 2 and len(first) == 4
    for name in wild:
        assert not first[name]["kept"] and first[name]["score"] is None
        assert "is nan" in first[name]["why"] or "not finite" in first[name]["why"], first[name]["why"]
    assert {event.name for event in heard if isinstance(event, CandidateDone) and event.failed} <= set(wild)
    assert all(name not in wild for name in race.alive()) and len(race.values["finals"]) == 2


def test_when_everyone_fails_that_is_said(entered: Enter, reviews: Path, tmp_path: Path) -> None:
    race = entered(tmp_path / "race", reviews, (FREEZE,), terms=Terms(rates=(1e30, 1e31)))
    with pytest.raises(RunError, match=r"no candidate of .* can go on after step 2 \(freeze-"):
        course.run(race, Here(), ignore)
    assert Race(race.folder).values["status"] == "failed"
    with pytest.raises(RunError, match="no candidate of"):
        course.run(Race(race.folder), Here(), ignore)


def test_memory_that_runs_out_fails_one_candidate(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(prepared, tmp_path / "race")
    original = training.train

    def train(run: Run, *arguments: Any) -> Run:
        if run.folder.name == "lora-0.0005":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore about it")
        return original(run, *arguments)

    monkeypatch.setattr(training, "train", train)
    race = course.run(Race(tmp_path / "race"), Here(), ignore)
    first = {s["candidate"]: s for s in race.values["rungs"][0]["standings"]}
    assert first["lora-0.0005"]["why"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    assert race.values["status"] == "finished"


def test_a_final_without_finalists_has_no_verdict(prepared: Path, raced: Race, tmp_path: Path) -> None:
    """Where all finalists are lost the race stops instead of letting a baseline win; going on tries them again."""
    shutil.copytree(raced.folder, tmp_path / "race")
    race = Race(tmp_path / "race")
    (race.folder / "verdict.json").unlink()
    for name in race.alive():
        for seed in race.values["seeds"]:
            Run(race.run_folder(name, seed)).update(status="failed", error="the loss is nan")
    race.update(status="running", finals=[])
    with pytest.raises(RunError, match=r"no finalist of .* came to its end \(.*the loss is nan"):
        course.run(race, Here(), ignore)
    assert not (race.folder / "verdict.json").exists()


# Kinds of races


def test_conversations(entered: Enter, conversations: Path, tmp_path: Path) -> None:
    race = course.run(entered(tmp_path / "race", conversations), Here(), ignore)
    verdict = race.verdict
    assert verdict["metric"] == "loss" and not verdict["higher_is_better"]
    named = {c["name"]: c for c in verdict["contenders"]}
    assert {"lora", "prompt", "base, zero-shot", "base, few-shot", "base, nearest conversation"} == set(named)
    values = [c["score"]["value"] for c in verdict["contenders"]]
    assert values == sorted(values)
    final = race.values["finals"][0]
    rows = [read_json(race.folder / run["run"] / "test.json") for run in final["runs"]]
    total = sum(rows[0]["weights"])
    expected = sum(-sum(row["log_p"]) / total for row in rows) / 2
    assert named[final["contender"]]["score"]["value"] == pytest.approx(expected)
    baselines = read_json(race.folder / "baselines.json")
    assert all(baseline["weights"] == rows[0]["weights"] for baseline in baselines.values())
    assert verdict["winner"] in ("lora", "prompt") and race.winner is not None
    assert race.winner.parent.name in ("candidates", "finals") and (race.winner / "artifact").is_dir()


def test_labels_judged_by_loss(entered: Enter, reviews: Path, tmp_path: Path) -> None:
    race = course.run(entered(tmp_path / "race", reviews, metric="loss"), Here(), ignore)
    verdict = race.verdict
    assert verdict["metric"] == "loss" and not verdict["higher_is_better"]
    # Baselines that only name a label have no loss.
    assert {c["name"] for c in verdict["contenders"]} == {"lora", "prompt", "base, zero-shot"}
    for run in runs(race).values():
        assert {e["metric"] for e in run.events if e["event"] == "Validated"} == {"loss"}


def test_one_technique_and_one_finalist(entered: Enter, reviews: Path, tmp_path: Path) -> None:
    terms = Terms(budget_s=3600.0, finalists=1)
    heard: list[Event] = []
    race = course.run(entered(tmp_path / "race", reviews, ("lora",), terms=terms), Here(), heard.append)
    assert [final["contender"] for final in race.values["finals"]] == ["lora"]
    assert not [event for event in heard if isinstance(event, Note) and "of the budget are left" in event.text]


def test_a_budget_that_is_used_up_makes_the_final_smaller(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "race")
    race = Race(tmp_path / "race")
    race.update(budget={"time_s": race.values["spent_s"] + 1e-3, "tokens": None})
    heard: list[Event] = []
    race = course.run(race, Here(), heard.append)
    assert len(race.values["finals"]) == 1
    texts = [event.text for event in heard if isinstance(event, Note)]
    assert "0 min of the budget are left: the final has one technique, not 2" in texts


def test_several_labels(entered: Enter, tmp_path: Path) -> None:
    rows = [{"text": f"{word} {n}", "label": word} for n in range(30) for word in ("red", "green", "blue", "black")]
    data = tmp_path / "colours.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    race = course.run(entered(tmp_path / "race", data, ("lora",), test=0.4), Here(), ignore)
    assert set(race.verdict["labels"]) == {"red", "green", "blue", "black"}
    assert len(race.verdict["confusion"]["lora"]) == 4


# Who may enter


@pytest.mark.parametrize("part", ["validation", "test"])
def test_without_a_part_to_judge_on_there_is_no_race(part: str, entered: Enter, reviews: Path, tmp_path: Path) -> None:
    shares: dict[str, Any] = {part: 0.0}
    with pytest.raises(DataError, match=f"give --{part}"):
        entered(tmp_path / "race", reviews, **shares)
    assert not (tmp_path / "race").exists()


def test_one_test_example_is_no_verdict(entered: Enter, reviews: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 2 test examples"):
        entered(tmp_path / "race", reviews, terms=Terms(test_limit=1))


@pytest.mark.parametrize("terms", [Terms(budget_s=0.01), Terms(budget_tokens=100)])
def test_a_budget_that_is_too_small(terms: Terms, entered: Enter, reviews: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the budget allows \d+ steps for a finalist.*raise --budget"):
        entered(tmp_path / "race", reviews, terms=terms)
    assert not (tmp_path / "race").exists()


def test_a_budget_is_stretched_to_the_least_that_is_enough(entered: Enter, reviews: Path, tmp_path: Path) -> None:
    heard: list[Any] = []
    race = entered(tmp_path / "race", reviews, terms=Terms(budget_s=0.01, stretch=True), listener=heard.append)
    assert race.values["budget"]["time_s"] > race.values["expected_s"] > 0.01
    assert race.values["ladder"][-1]["step"] >= 4
    (told,) = [note.text for note in heard if isinstance(note, Note) and "it takes" in note.text]
    assert "on this machine" in told


def test_too_few_steps_to_compare_anyone(entered: Enter, reviews: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"these examples make 2 steps.*--batch-size"):
        entered(tmp_path / "race", reviews, batch_size=48)


@pytest.mark.parametrize(
    ("name", "value"), [("learning_rate", 1e-3), ("patience", 1), ("max_minutes", 1.0), ("validate_every", 3)]
)
def test_what_a_race_decides_itself_is_refused(
    name: str, value: float, entered: Enter, reviews: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"{name} is .*, but a race decides that itself"):
        entered(tmp_path / "race", reviews, **{name: value})


def test_a_technique_enters_once(entered: Enter, reviews: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lora is entered twice"):
        entered(tmp_path / "race", reviews, (heptune.Lora(rank=4), heptune.Lora(rank=64)))


def test_who_does_not_fit_the_base_is_named_and_left_out(entered: Enter, reviews: Path, tmp_path: Path) -> None:
    heard: list[Event] = []
    race = entered(tmp_path / "race", reviews, ("lora", "freeze"), listener=heard.append)
    assert {c["technique"] for c in race.values["candidates"]} == {"lora"}
    texts = [event.text for event in heard if isinstance(event, Note)]
    assert any(text.startswith("freeze does not start: freeze: layers is 4") for text in texts)
    with pytest.raises(TechniqueError, match="no technique can start: freeze: layers is 4"):
        entered(tmp_path / "other", reviews, ("freeze",))


def test_a_taken_folder_is_told_before_anything_is_loaded(
    prepared: Path, entered: Enter, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entry, "load_base", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(RunError, match="holds a race already; continue it with"):
        entered(prepared, reviews)


def test_a_budget_of_tokens_is_kept(entered: Enter, reviews: Path, tmp_path: Path) -> None:
    """All that all candidates train on, with every slow starter kept as long as it may be."""
    terms = Terms(budget_tokens=60_000)
    race = entered(tmp_path / "race", reviews, ("lora", "prompt", "prefix"), terms=terms, epochs=10)
    assert 16 <= race.steps < 180
    race = course.run(race, Here(), ignore)
    used = sum(tokens for run in runs(race).values() for _, tokens, *_ in steps(run))
    assert used == race.values["cost"]["tokens"]
    assert 30_000 < used < 61_000


def test_a_small_budget_leaves_everyone_the_rate_that_was_asked_for(
    entered: Enter, reviews: Path, tmp_path: Path
) -> None:
    """The technique with a learning rate of its own is not forgotten."""
    heard: list[Event] = []
    terms = Terms(budget_tokens=28_000)
    names = (heptune.Lora(learning_rate=2e-3), "prompt", FREEZE, "adapter")
    race = entered(tmp_path / "race", reviews, names, terms=terms, epochs=10, listener=heard.append)
    named = {c["name"] for c in race.values["candidates"]}
    assert any(isinstance(event, Note) and "its own default" in event.text for event in heard)
    assert len(named) == 4 and "lora-0.002" in named
