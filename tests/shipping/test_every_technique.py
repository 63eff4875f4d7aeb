"""Every technique into every format: it says what the run says, or is refused with words and nothing is left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

import heptune
from heptune import techniques
from heptune.core.errors import HeptuneError
from heptune.runs import lineage
from heptune.shipping.export import FORMATS
from heptune.techniques import _adapterhub, _peft
from shipping.conftest import Runs

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

WORDS = {
    "peft": "which PEFT does not have; choose --to ",
    "adapterhub": "AdapterHub's layout is for bottleneck adapters; choose --to ",
    "hf": "which no weight of the base can hold",
    "gguf": "which no weight of the base can hold",
    "lora": "which is no LoRA",
}


def can(name: str, run: heptune.Run) -> set[str]:
    """The formats that a run's technique has a place in."""
    found = {"hf", "gguf"} if "mergeable" in techniques.capabilities(name) else set()
    if (run.artifact / _peft.WEIGHTS_FILE).exists():
        found.add("peft")
        if "mergeable" in techniques.capabilities(name):
            found.add("lora")
    return found | ({"adapterhub"} if (run.artifact / _adapterhub.WEIGHTS_FILE).exists() else set())


@pytest.mark.parametrize("to", [*FORMATS, "lora"])
@pytest.mark.parametrize("name", techniques.names())
def test_it_says_what_the_run_says_or_is_refused(name: str, to: str, runs: Runs, tmp_path: Path) -> None:
    run, out = runs(name), tmp_path / "out"
    chosen: dict[str, Any] = {"to": "gguf", "lora_only": True} if to == "lora" else {"to": to}
    chosen |= {"type": "f32"} if to in ("hf", "gguf", "lora") else {}
    if to not in can(name, run):
        with pytest.raises(HeptuneError) as refused:
            heptune.export(run.folder, out=out, **chosen)
        assert WORDS[to] in str(refused.value)
        assert list(tmp_path.iterdir()) == []
        return
    made = heptune.export(run.folder, out=out, **chosen)
    assert list(tmp_path.iterdir()) == [out]
    for parity in made.parities:
        assert parity.problems == [] and parity.relative < 1e-5 and parity.positions > 100
        assert parity.learned is not None and parity.learned > 1e-3
        assert parity.from_base == pytest.approx(parity.learned, rel=1e-3)
        assert parity.agreed == parity.greedy > 0 and parity.records > 0
        assert parity.before is not None and parity.after is not None
        assert parity.before.loss == pytest.approx(parity.after.loss, rel=1e-5)
        assert parity.template is not False and parity.tokens is not False
    kept = json.loads((out / "parity.json").read_text("utf-8"))
    assert kept["format"] == chosen["to"] and kept["technique"]["name"] == name
    assert [each["relative"] for each in kept["parity"]] == [parity.relative for parity in made.parities]
    assert kept["run"] == {"name": run.folder.name, "fingerprint": lineage.fingerprint(run)}
    assert kept["versions"]["transformers"] == transformers.__version__
    card = (out / "README.md").read_text("utf-8")
    assert card.startswith("---\nbase_model: ") and all(step.words in card for step in made.next)
    assert set(made.files) == {path.name for path in out.iterdir()}
