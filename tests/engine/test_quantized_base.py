"""A run on a base in 4 bits: it is kept in the manifest, and the base is the same again at eval, chat and resume."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import heptune
from heptune.core.events import Event, Progress, StepDone
from heptune.models.quantization import QuantizedLinear

SETTINGS: dict[str, Any] = {"epochs": 2, "batch_size": 6, "max_length": 256, "learning_rate": 5e-3}
WAYS: dict[str, dict[str, Any]] = {
    "by setting": {"technique": heptune.Lora(rank=4), "quantize": "nf4"},
    "by technique": {"technique": heptune.QLora(rank=4)},
    "by both": {"technique": heptune.QLora(rank=4), "quantize": "nf4"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a training, a validation and a test part; the last two are the same conversations."""
    folder = tmp_path_factory.mktemp("data")
    rows = [{"prompt": f"What is {i}?", "completion": f"It is {i % 7}."} for i in range(48)]
    for name, part in {"train": rows[:40], "dev": rows[40:], "test": rows[40:]}.items():
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(lines, "utf-8")
    return folder


def weights(run: heptune.Run) -> dict[str, torch.Tensor]:
    return load_file(run.artifact / "adapter_model.safetensors")


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_tune_resume_evaluate_and_open_stand_on_the_same_base(
    way: dict[str, Any], base: Path, data: Path, tmp_path: Path
) -> None:
    seen: list[Event] = []
    whole = heptune.tune(str(base), data, out=tmp_path / "whole", listener=seen.append, **way, **SETTINGS)
    packed = [e for e in seen if isinstance(e, Progress) and "4 bits" in e.what]
    assert [e.done for e in packed] == list(range(1, 15)), "each of the 14 layers once"
    assert whole.manifest["settings"]["quantize"] == way.get("quantize")

    def stop(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        heptune.tune(str(base), data, out=tmp_path / "cut", listener=stop, save_minutes=0.0, **way, **SETTINGS)
    resumed = heptune.resume(tmp_path / "cut")
    got, want = weights(resumed), weights(whole)
    assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)

    tuned = heptune.open_run(whole.folder)
    assert sum(isinstance(m, QuantizedLinear) for m in tuned.model.modules()) == 14
    plain = heptune.tune(str(base), data, technique=heptune.Lora(rank=4), out=tmp_path / "plain", **SETTINGS)
    assert not any(isinstance(m, QuantizedLinear) for m in heptune.open_run(plain.folder).model.modules())
    rounded, unrounded = heptune.evaluate(whole.folder), heptune.evaluate(plain.folder)
    assert rounded.rows[1] == unrounded.rows[1], "the untouched base is scored unrounded"
    assert rounded.rows[0] != unrounded.rows[0]
    loss = math.log(rounded.rows[0].metrics["perplexity"].value)
    best = whole.manifest["result"]["best_validation"]["loss"]
    assert loss == pytest.approx(best, rel=1e-5), "it is judged on the base that it was trained on"
