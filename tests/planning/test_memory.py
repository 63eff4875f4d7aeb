"""Phases, several passes in a step, blocks counted without torch, and where forms come from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import heptune.planning.trace
from heptune import techniques
from heptune.core.errors import BaseModelError
from heptune.engine.forest import plant
from heptune.models.attention import Visibility
from heptune.models.catalog import describe, entries
from heptune.planning import book, kept
from heptune.planning.book import Variant
from heptune.planning.forms import Pass, StepForm, sizes_of
from heptune.planning.memory import base_bytes, phases, resident_bytes, training_memory
from heptune.planning.plan import plan
from planning.measured import examples_of, measure
from tiny import tiny_model

LAYERS = 3


def test_a_pass_counts_the_blocks_that_attention_makes() -> None:
    forest = plant(examples_of(700, root=50))
    for window in (None, 40):
        blocks = Visibility(forest.end, forest.position, torch.device("cpu")).blocks(window)
        keys = [block.visible.shape[1] for block in blocks]
        rows = [block.stop - block.start for block in blocks]
        found = Pass.of(forest.end, forest.position, 10, 3, window)
        assert (found.rows, found.blocks, found.keys, found.widest) == (
            len(forest.end),
            len(blocks),
            sum(keys),
            max(keys),
        )
        assert found.pairs == int(np.dot(rows, keys))
        copied = [k for k, block in zip(keys, blocks, strict=True) if not isinstance(block.keys, slice)]
        assert found.gathered == sum(copied) > 0


@pytest.mark.parametrize("technique", ["full", "lora"])
def test_gradients_of_earlier_passes_stay(technique: str) -> None:
    found = measure("llama", technique, rows=600, micro_tokens=150, num_hidden_layers=4)
    shape, cost = found.anatomy.shape, found.technique.cost(found.anatomy.shape)
    form = book.find(Variant("llama", technique, found.settings))
    assert form is not None
    planned = [
        training_memory(
            shape, cost, form, sizes_of(shape, found.settings, one), dtype_bytes=4, quantized=False, accumulating=True
        )
        for one in found.passes
    ]
    assert len(planned) > 2
    wanted = found.peak - found.standing
    got = max(memory.total - memory.weights - memory.optimizer for memory in planned)
    # An upper bound: the largest gradient is taken to stand beside the peak of activations.
    assert 0.99 * wanted <= got <= 1.1 * wanted


def test_phases_hold_what_they_say() -> None:
    found = measure("llama", "lora", num_hidden_layers=4)
    shape, cost = found.anatomy.shape, found.technique.cost(found.anatomy.shape)
    form = book.find(Variant("llama", "lora", found.settings))
    assert form is not None
    sizes = sizes_of(shape, found.settings, found.batch)
    planned = phases(shape, cost, form, sizes, sizes, dtype_bytes=4, quantized=False, mergeable=True)
    assert list(planned) == ["load", "train", "evaluate", "save", "merge"]
    assert planned["load"] == sum(p.nbytes for p in tiny_model("llama", num_hidden_layers=4).parameters())
    assert planned["evaluate"] == pytest.approx(found.scoring_peak, rel=0.01)
    assert planned["train"] == pytest.approx(found.peak, rel=0.01)
    small = base_bytes(shape, dtype_bytes=4, quantized=True)
    assert small < base_bytes(shape, dtype_bytes=4, quantized=False)
    assert resident_bytes(2e9, 1e9) > 2e9


def test_the_book_needs_no_torch() -> None:
    program = (
        "import sys; from heptune.planning import book, forms, kept, memory\n"
        "settings = {'rank': 8, 'alpha': 1.0, 'targets': ['linear'], 'dropout': 0.0, 'dora': False}\n"
        "assert kept.form(book.Variant('llama', 'lora', settings), layers=9)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_sizes_and_learning_rates_do_not_change_a_form() -> None:
    plain = book.structure(vars(techniques.build("lora")))
    assert book.structure(vars(techniques.build("lora", {"rank": 2, "alpha": 1, "learning_rate": 1}))) == plain
    assert book.structure(vars(techniques.build("lora", {"dora": True}))) != plain
    prompts = [{"prompt_template": f"{{p:{n}}} text {{p:3}}"} for n in (2, 7)]
    first, second = (book.structure(vars(techniques.build("p_tuning", settings))) for settings in prompts)
    assert first == second != book.structure(vars(techniques.build("p_tuning")))


def test_a_form_that_is_not_in_the_book_is_traced_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEPTUNE_CACHE", str(tmp_path))
    calls: list[dict[str, Any]] = []
    own = heptune.planning.trace.trace

    def counting(*arguments: Any, **named: Any) -> StepForm:
        calls.append(named)
        return own(*arguments, **named)

    monkeypatch.setattr(heptune.planning.trace, "trace", counting)
    settings = vars(techniques.build("lora", {"targets": ("attention",)}))
    first = kept.form(Variant("llama", "lora", settings), LAYERS)
    assert kept.form(Variant("llama", "lora", {**settings, "rank": 3}), LAYERS) == first
    assert len(calls) == 1
    (file,) = (tmp_path / "forms").iterdir()
    file.write_text("{}", "utf-8")  # a damaged one is made again
    assert kept.form(Variant("llama", "lora", settings), LAYERS) == first and len(calls) == 2
    left_out = vars(techniques.build("adapter", {"leave_out": (0,)}))
    assert kept.form(Variant("llama", "adapter", left_out), LAYERS).exact and calls[-1]["layers"] == 3


def test_an_unknown_family_is_said_to_be_unknown() -> None:
    with pytest.raises(BaseModelError, match="knows no architecture 'nothing'"):
        kept.form(Variant("nothing", "lora", vars(techniques.build("lora"))), LAYERS)


def test_every_family_of_the_catalog_is_planned_from_the_book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU no technique has to be traced, nor does the user's cache have what the book lacks."""

    def no_trace(*arguments: Any, **more: Any) -> StepForm:
        pytest.fail(f"traced: {arguments} {more}")

    monkeypatch.setattr(kept, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(heptune.planning.trace, "trace", no_trace)
    of_each = {(facts.form_family, facts.shape.head_tied): name for name in entries() for facts in (describe(name),)}
    for name in of_each.values():
        planned = plan(name, gpu="RTX 4090")
        assert any(one.estimate for one in planned.techniques)
