"""Law 10: an interrupted and resumed run has the bits of an uninterrupted one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import heptune
from heptune import techniques
from heptune.core.errors import NonFiniteLossError, RunError
from heptune.core.events import CheckpointSaved, Event, Note, StepDone
from heptune.engine import checkpoint
from heptune.techniques import _note

SETTINGS: dict[str, Any] = {"epochs": 3, "batch_size": 6, "validate_every": 5, "max_length": 256}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    words = ["river", "book", "answer", "sentence", "capital", "helpful", "word", "label"]
    rows = [{"text": f"{words[i % 8]} {words[i % 5]} {i}", "label": ["yes", "no"][i % 2]} for i in range(48)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


# Settings that fit the tiny base, or reach what is random in a technique.
SMALL: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4, "dropout": 0.1},
    "qlora": {"rank": 4, "dropout": 0.1},
    "freeze": {"layers": 1},
    "prefix": {"virtual_tokens": 5, "encoder_hidden": 8},
    "p_tuning": {"prompt_template": "{p:3} text {p:2}", "encoder_hidden": 6},
    "p_tuning_v2": {"virtual_tokens": 5, "init": "text", "init_text": "Answer with one word"},
}


class Stop(Exception):
    """The interruption: it ends the run as abruptly as an exception can."""


def stop_after(step: int) -> Any:
    def listener(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == step:
            raise Stop

    return listener


def tensors(run: heptune.Run) -> dict[str, torch.Tensor]:
    newest = sorted((run.folder / "checkpoints").glob("step-*"))[-1]
    found = {}
    for path in (*newest.glob("*.safetensors"), *(run.folder / "artifact").glob("*.safetensors")):
        found |= {f"{path.parent.name}/{path.name}/{name}": value for name, value in load_file(path).items()}
    return found


def losses(run: heptune.Run) -> list[tuple[int, float, float]]:
    return [(e["step"], e["loss"], e["gradient_norm"]) for e in run.events if e["event"] == "StepDone"]


def same(a: heptune.Run, b: heptune.Run) -> None:
    left, right = tensors(a), tensors(b)
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name
    assert losses(a) == losses(b)
    assert a.manifest["result"]["best_step"] == b.manifest["result"]["best_step"]


@pytest.mark.parametrize("name", techniques.names())
@pytest.mark.parametrize("save_minutes", [0.0, 1.0])
def test_resumed_equals_uninterrupted(name: str, save_minutes: float, base: Path, data: Path, tmp_path: Path) -> None:
    technique = techniques.build(name, SMALL.get(name))
    whole = heptune.tune(str(base), data, technique=technique, out=tmp_path / "whole", **SETTINGS)
    arguments = {**SETTINGS, "save_minutes": save_minutes}
    with pytest.raises(Stop):
        heptune.tune(str(base), data, technique=technique, out=tmp_path / "cut", listener=stop_after(8), **arguments)
    assert not (tmp_path / "cut" / "artifact").exists()
    with pytest.raises(Stop):
        heptune.resume(tmp_path / "cut", listener=stop_after(13))
    resumed = heptune.resume(tmp_path / "cut")
    same(whole, resumed)


def test_killed_at_random_moments(base: Path, data: Path, tmp_path: Path) -> None:
    """kill -9 of the process, five times, then a resume. The moments are fixed, the machine's speed is not."""
    whole = heptune.tune(str(base), data, technique=heptune.Lora(rank=4), out=tmp_path / "whole", **SETTINGS)
    program = textwrap.dedent(
        """
        import sys, time, torch, heptune
        torch.set_num_threads(1)
        from heptune.core.events import StepDone
        base, data, out = sys.argv[1:4]
        def slow(event):
            if isinstance(event, StepDone):
                print("step", event.step, flush=True)
                time.sleep(0.05)
        try:
            heptune.tune(base, data, technique=heptune.Lora(rank=4), out=out, listener=slow, save_minutes=0.0,
                         epochs=3, batch_size=6, validate_every=5, max_length=256)
        except heptune.core.errors.RunError:
            heptune.resume(out, listener=slow)
        """
    )
    kills = 0
    for moment in (0.0, 0.13, 0.31, 0.02, 0.22):
        command = [sys.executable, "-c", program, str(base), str(data), str(tmp_path / "cut")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout is not None
        process.stdout.readline()  # the first step of this sitting
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.stdout.close()
    assert kills >= 3
    manifest = json.loads((tmp_path / "cut" / "manifest.json").read_text())
    resumed = heptune.Run(tmp_path / "cut") if manifest["status"] == "finished" else heptune.resume(tmp_path / "cut")
    same(whole, resumed)


def test_ctrl_c_finishes_the_step_and_saves(base: Path, data: Path, tmp_path: Path) -> None:
    def interrupt(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    whole = heptune.tune(str(base), data, technique=heptune.Lora(rank=4), out=tmp_path / "whole", **SETTINGS)
    technique = heptune.Lora(rank=4)
    cut = heptune.tune(str(base), data, technique=technique, out=tmp_path / "cut", listener=interrupt, **SETTINGS)
    assert cut.manifest["status"] == "interrupted"
    assert [p.name for p in (cut.folder / "checkpoints").iterdir()] == ["step-000004"]
    same(whole, heptune.resume(cut.folder))


@pytest.mark.parametrize("name", ["optimizer.safetensors", "parameters.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    name: str, base: Path, data: Path, tmp_path: Path
) -> None:
    technique = heptune.Lora(rank=4)
    whole = heptune.tune(str(base), data, technique=technique, out=tmp_path / "whole", **SETTINGS)
    arguments = {**SETTINGS, "save_minutes": 0.0}
    with pytest.raises(Stop):
        heptune.tune(str(base), data, technique=technique, out=tmp_path / "cut", listener=stop_after(9), **arguments)
    newest = sorted((tmp_path / "cut" / "checkpoints").glob("step-*"))[-1]
    damaged = bytearray((newest / name).read_bytes())
    damaged[len(damaged) - 7] ^= 0x80
    (newest / name).write_bytes(damaged)
    notes: list[Event] = []
    resumed = heptune.resume(tmp_path / "cut", listener=notes.append)
    assert any(isinstance(n, Note) and newest.name in n.text and "damaged" in n.text for n in notes)
    same(whole, resumed)


def test_when_all_checkpoints_are_damaged_nothing_is_trained(base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        heptune.tune(str(base), data, out=tmp_path / "cut", listener=stop_after(9), **{**SETTINGS, "save_minutes": 0.0})
    for state in (tmp_path / "cut" / "checkpoints").glob("step-*/state.json"):
        state.write_text("{")
    with pytest.raises(RunError, match="every checkpoint"):
        heptune.resume(tmp_path / "cut")


def test_a_full_disk_during_a_checkpoint(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saving fails in the middle of step 7's checkpoint: nothing half-written stays, training goes on."""
    original = checkpoint.save_file

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        original(tensors, path)
        if "step-000007" in str(path) and "optimizer" in path.name:
            path.write_bytes(path.read_bytes()[:100])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    seen: list[Event] = []
    arguments = {**SETTINGS, "save_minutes": 0.0}
    run = heptune.tune(str(base), data, out=tmp_path / "run", listener=seen.append, **arguments)
    notes = [e.text for e in seen if isinstance(e, Note) and e.level == "warning"]
    assert any("step 7 could not be saved" in text and "No space left" in text for text in notes)
    assert [e.step for e in seen if isinstance(e, CheckpointSaved) and 6 <= e.step <= 8] == [6, 8]
    assert run.manifest["status"] == "finished" and not list(run.folder.rglob(".unfinished*"))


def test_a_full_disk_while_the_best_artifact_is_saved(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors has an error type of its own for it: the training goes on all the same."""
    original = _note.save_file

    def full(tensors: dict[str, torch.Tensor], path: Path, **more: Any) -> None:
        if "best-000000" in str(path):
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        original(tensors, path, **more)

    monkeypatch.setattr(_note, "save_file", full)
    seen: list[Event] = []
    run = heptune.tune(str(base), data, out=tmp_path / "run", listener=seen.append, **SETTINGS)
    notes = [e.text for e in seen if isinstance(e, Note) and e.level == "warning"]
    assert any("step 0 could not be saved" in text and "No space left" in text for text in notes)
    assert run.manifest["status"] == "finished" and not list(run.folder.rglob(".unfinished*"))


def test_a_loss_that_is_not_finite_stops_with_step_and_examples(base: Path, data: Path, tmp_path: Path) -> None:
    arguments = {**SETTINGS, "learning_rate": 1e30, "clip": 0, "save_minutes": 0.0}
    with pytest.raises(NonFiniteLossError, match=r"at step \d+; its examples: .*data\.jsonl:\d+") as caught:
        heptune.tune(str(base), data, technique="full", out=tmp_path / "run", **arguments)
    assert "the checkpoint step-000001 stays" in str(caught.value)
    assert heptune.Run(tmp_path / "run").manifest["status"] == "failed"


def test_a_run_directory_is_not_overwritten(base: Path, data: Path, tmp_path: Path) -> None:
    run = heptune.tune(str(base), data, out=tmp_path / "run", max_steps=1, max_length=256)
    with pytest.raises(RunError, match="holds a run already"):
        heptune.tune(str(base), data, out=run.folder, max_steps=1)
    with pytest.raises(RunError, match="is finished"):
        heptune.resume(run.folder)


def test_two_processes_do_not_share_a_run(base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        heptune.tune(str(base), data, out=tmp_path / "run", listener=stop_after(3), **SETTINGS)
    (tmp_path / "run" / "lock").write_text(str(os.getppid()))
    with pytest.raises(RunError, match=f"process {os.getppid()} is working"):
        heptune.resume(tmp_path / "run")


def test_changed_data_or_base_is_refused(base: Path, data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data.jsonl"
    copy.write_bytes(data.read_bytes())
    with pytest.raises(Stop):
        heptune.tune(str(base), copy, out=tmp_path / "run", listener=stop_after(3), **SETTINGS)
    copy.write_bytes(data.read_bytes().replace(b"river", b"RIVER", 1))
    with pytest.raises(RunError, match="has changed since"):
        heptune.resume(tmp_path / "run")
    copy.unlink()
    with pytest.raises(RunError, match="is gone"):
        heptune.resume(tmp_path / "run")
