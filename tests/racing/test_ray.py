"""A race on a Ray cluster of two nodes on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from heptune.core.errors import UsageError
from heptune.core.events import ignore
from heptune.racing import course, work
from heptune.racing.entry import Terms
from heptune.racing.places import Lost, RayCluster
from heptune.racing.race import Race
from heptune.runs.run import Run

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

Enter = Callable[..., Race]


@pytest.fixture(scope="module")
def nodes() -> Iterator[set[str]]:
    """Two nodes of one core each; their ids."""
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    cluster.wait_for_nodes()
    yield {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    ray.shutdown()
    cluster.shutdown()


def test_a_race_on_two_nodes(
    nodes: set[str], entered: Enter, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    race = entered(tmp_path / "race", reviews, ("lora", "prompt"), terms=Terms(width=1))
    original = work.advance

    def advance(folder: str, until: int, threads: int) -> str:  # sent by value: it says where it ran
        import ray

        from heptune.racing import work

        result = work.advance(folder, until, threads)
        with (Path(folder) / "nodes").open("a") as file:
            file.write(ray.get_runtime_context().get_node_id() + "\n")
        return result

    assert original is work.advance
    monkeypatch.setattr(course.work, "advance", advance)
    place = RayCluster(race.folder, threads=1)
    assert place.width == 2 == len(nodes)
    race = course.run(race, place, ignore)
    assert race.values["status"] == "finished" and len(race.verdict["contenders"]) >= 4
    seen = {line for path in race.folder.glob("candidates/*/nodes") for line in path.read_text().split()}
    print(f"candidates trained on {sorted(seen)}")
    assert seen == nodes
    assert ray.is_initialized()  # a cluster that was joined before stays joined


def test_what_dies_there_is_lost_and_what_fails_says_why(nodes: set[str], tmp_path: Path) -> None:
    import os

    place = RayCluster(tmp_path, threads=1)
    with pytest.raises(Lost, match="the cluster lost it"):
        place.submit(os._exit, 1).result(120)
    with pytest.raises(ValueError, match="no number"):
        place.submit(int, "no number").result(120)
    assert place.submit(pow, 2, 3).result(120) == 8


def test_asked_to_stop_a_training_there_saves(nodes: set[str], entered: Enter, reviews: Path, tmp_path: Path) -> None:
    race = entered(tmp_path / "race", reviews, ("lora",), terms=Terms(width=1, rates=(1.0,)), epochs=300)
    run = race.run_folder(race.alive()[0])
    place = RayCluster(race.folder, threads=1)
    future = place.submit(work.advance, str(run), race.steps, 1)
    end = time.monotonic() + 120
    while '"StepDone"' not in (run / "events.jsonl").read_text() if (run / "events.jsonl").exists() else True:
        assert time.monotonic() < end and not future.done()
        time.sleep(0.01)
    place.stop()
    assert future.result(120) == "interrupted"
    manifest: dict[str, Any] = Run(run).manifest
    assert manifest["status"] == "interrupted" and 0 < manifest["step"] < race.steps
    assert (run / f"checkpoints/step-{manifest['step']:06d}").is_dir()


def test_a_folder_that_a_node_does_not_see_is_refused(
    nodes: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "write_text", lambda *_: 0)  # as where it is written to this machine's own disk
    with pytest.raises(UsageError, match=r"the machine .* does not see .*--out"):
        RayCluster(tmp_path, threads=1)
