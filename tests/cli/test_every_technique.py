"""Every technique from the data to its use, through the verbs: tune within a time limit, eval, chat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from heptune import techniques
from heptune.models.anatomy import dissect
from heptune.models.load import load_base
from heptune.runs.run import Run

# Settings that fit the tiny base. Soft prompts stand before the text, and P-Tuning's before the answer too.
SMALL: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2},
    "qlora": {"rank": 2},
    "freeze": {"layers": 1},
    "prompt": {"virtual_tokens": 3, "init": "text", "init_text": "which label fits"},
    "p_tuning": {"prompt_template": "{p:2} text {p:3}", "encoder_hidden": 6},
    "prefix": {"virtual_tokens": 3, "encoder_hidden": 6},
    "p_tuning_v2": {"virtual_tokens": 3, "reparameterised": True, "encoder_hidden": 6},
}


def options(name: str) -> list[str]:
    """The settings as words of the command line."""
    words: list[str] = []
    for key, value in SMALL.get(name, {}).items():
        words += [f"--{key.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return words


@pytest.mark.parametrize("task", ["classify", "chat"])
@pytest.mark.parametrize("name", techniques.names())
def test_it_is_tuned_scored_and_used(
    heptune: Any, name: str, task: str, base: Path, reviews: Path, conversations: Path, tmp_path: Path
) -> None:
    data, run = {"classify": reviews, "chat": conversations}[task], tmp_path / "run"
    few = ["--max-minutes", 0.5, "--max-steps", 6, "--max-length", 256, "--limit", 20]
    said = heptune("tune", base, data, "--technique", name, *options(name), "--out", run, *few)
    assert said.code == 0, said.err
    manifest = Run(run).manifest
    said = heptune("eval", run, "--limit", 6, "--json")
    assert said.code == 0, said.err
    tuned, untouched = json.loads(said.out)["rows"][:2]
    assert tuned["metrics"] != untouched["metrics"] or task == "classify"
    said = heptune("chat", run, "--once", "What is 3?", "--max-tokens", 4)
    assert said.code == 0, said.err
    assert said.out.strip() or task == "chat"
    anatomy = dissect(load_base(str(base)).model)
    restored = techniques.get(name).restore(anatomy, run / "artifact")
    trainable = sum(parameter.numel() for parameter in restored.parameters.values())
    assert trainable == manifest["trainable"] == restored.settings.cost(anatomy.shape).trainable
