"""Formulas against real steps, at sizes that they were not read off from."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from heptune import techniques
from heptune.engine import loss
from heptune.planning import book, forms
from heptune.planning.book import Variant
from heptune.planning.forms import StepForm, sizes_of
from heptune.planning.memory import training_memory
from heptune.planning.symbols import Symbols
from heptune.planning.trace import LiveTracker, trace
from planning.measured import Measured, measure

# A form keeps a few of a step's moments: those that are the peak, to half a percent, at plausible sizes. These models
# are smaller than any, and what a kernel needs for itself (an LSTM's buffers) is rounded to pages.
NEAR, NEVER_UNDER = 0.03, 0.01


def predicted(form: StepForm, found: Measured, dtype_bytes: int, quantized: bool) -> tuple[int, int]:
    shape = found.anatomy.shape
    sizes = sizes_of(shape, found.settings, found.batch, found.classes)
    memory = training_memory(shape, found.cost, form, sizes, dtype_bytes=dtype_bytes, quantized=quantized)
    scoring = memory.weights + memory.optimizer + form.forward_bytes(sizes, shape.layers)
    return memory.total, round(scoring)


def compare(form: StepForm, found: Measured, dtype_bytes: int = 4, quantized: bool = False) -> None:
    shape, cost = found.anatomy.shape, found.cost
    total, scoring = predicted(form, found, dtype_bytes, quantized)
    sizes = sizes_of(shape, found.settings, found.batch, found.classes)
    memory = training_memory(shape, cost, form, sizes, dtype_bytes=dtype_bytes, quantized=quantized)
    step, wanted = total - memory.weights - memory.optimizer, found.peak - found.standing
    assert -NEVER_UNDER <= step / wanted - 1 <= NEAR, f"the step takes {wanted} bytes, predicted are {step}"
    alive = found.scoring_peak - found.standing
    assert -NEVER_UNDER <= (scoring - memory.weights - memory.optimizer) / alive - 1 <= NEAR
    # Beside what a form knows stand tables that the model itself keeps (rotary frequencies) and AdamW's step counts.
    assert memory.weights + memory.optimizer == pytest.approx(found.standing, rel=0.02)
    most = max(line.parts(sizes, shape.layers - form.base_layers)["gradients"] for line in form.lines)
    assert most == found.gradients == 4 * cost.trainable


FAMILIES = ("llama", "gpt2", "glm4", "gemma3")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("technique", techniques.names())
def test_the_book_predicts_a_step(technique: str, family: str) -> None:
    layers = {"n_layer" if family == "gpt2" else "num_hidden_layers": 5}
    if family == "gemma3":
        layers["layer_types"] = ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"]  # type: ignore[assignment]
        layers["sliding_window"] = 500  # one kind of layer sees less: the form knows the larger number of pairs
    found = measure(family, technique, root=30, **layers)
    shape = found.anatomy.shape
    quantized = "quantizes_base" in found.technique.capabilities
    form = book.find(Variant(shape.family, technique, found.settings, "float32", False, quantized, shape.head_tied))
    assert form is not None
    compare(form, found, quantized=quantized)


HEADS = [
    *((family, "means") for family in ("bert", "distilbert", "modernbert")),
    *((family, "rows") for family in ("bert", "electra", "llama")),  # electra is taken for bert, see `book.ALIKE`
]


@pytest.mark.parametrize(("family", "head"), HEADS)
@pytest.mark.parametrize("technique", ["lora", "adapter", "prompt", "p_tuning_v2", "qlora"])
def test_a_step_of_a_linear_head_is_predicted(technique: str, family: str, head: str) -> None:
    layers = {"n_layers" if family == "distilbert" else "num_hidden_layers": 5}
    found = measure(family, technique, rows=400, head=head, **layers)
    quantized = "quantizes_base" in found.technique.capabilities
    variant = Variant(family, technique, found.settings, "float32", False, quantized, head=head)
    form = book.find(variant)
    if family == "llama":
        assert form is None
        form = trace(family, technique, found.settings, quantized=quantized, head=head)
    assert form is not None
    compare(form, found, quantized=quantized)
    shape, sizes = found.anatomy.shape, sizes_of(found.anatomy.shape, found.settings, found.batch, found.classes)
    assert found.operations == pytest.approx(form.work(sizes, shape.layers).operations, rel=0.1)


CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("lora", {"rank": 3, "targets": ("attention",)}, {}),
    ("lora", {"rank": 5}, {"recompute": True, "root": 60}),
    ("lora", {"rank": 5}, {"dtype": torch.bfloat16}),
    ("adapter", {"variant": "houlsby", "reduction": 4, "leave_out": (0, 1)}, {}),
    ("p_tuning", {"prompt_template": "{p:4} text {p:3}", "encoder_hidden": 12}, {}),
    ("freeze", {"layers": 2, "head": True}, {}),
    ("prefix", {"reparameterised": False}, {"quantized": True}),
]


@pytest.mark.parametrize(("technique", "settings", "run"), CASES, ids=lambda value: str(value)[:40])
def test_settings_of_its_own_are_traced(technique: str, settings: dict[str, Any], run: dict[str, Any]) -> None:
    found = measure("llama", technique, settings, num_hidden_layers=4, **run)
    dtype = str(run.get("dtype", torch.float32)).removeprefix("torch.")
    form = trace(
        found.anatomy.model.config,
        technique,
        found.settings,
        dtype=dtype,
        recompute=run.get("recompute", False),
        quantized=run.get("quantized", False),
        layers=4 if "leave_out" in settings else None,
    )
    compare(form, found, 2 if dtype == "bfloat16" else 4, run.get("quantized", False))


@pytest.mark.parametrize(
    ("family", "technique", "head"),
    [
        *(("llama", "lora", ""), ("gpt2", "adapter", ""), ("gemma2", "prompt", "")),
        *(("bert", "lora", "means"), ("distilbert", "adapter", "rows"), ("modernbert", "prompt", "means")),
    ],
)
def test_the_book_is_what_is_traced_now(family: str, technique: str, head: str) -> None:
    settings = vars(techniques.build(technique))
    stored = book.find(Variant(family, technique, settings, head=head))
    assert trace(family, technique, settings, tied=False, head=head) == stored


@pytest.mark.parametrize("family", book.ALIKE)
def test_encoders_that_compute_alike(family: str) -> None:
    settings = vars(techniques.build("prefix"))
    stored = book.find(Variant(family, "prefix", settings, head="means"))
    assert stored is not None and trace(family, "prefix", settings, head="means") == stored


def test_a_form_survives_json_and_names_what_does_not_fit() -> None:
    form = trace("llama", "adapter", {"leave_out": (0,)}, layers=3)
    assert StepForm.from_json(form.to_json()) == form
    with pytest.raises(ValueError, match="holds for 3 layers, not for 4"):
        form.live_bytes({}, 4)


def test_work_counts_every_product_of_the_base() -> None:
    found = measure("llama", "full", num_hidden_layers=5)
    shape = found.anatomy.shape
    form = book.find(Variant(shape.family, "full", found.settings, "float32", False, tied=shape.head_tied))
    assert form is not None
    sizes = sizes_of(shape, found.settings, found.batch)
    sites = [site for site in shape.sites if site.role != "head"]
    forward = 2 * found.batch.rows * sum(site.in_features * site.out_features for site in sites)
    forward += 2 * found.batch.targets * shape.hidden * shape.vocabulary
    passes = [form.forward_work(sizes, shape.layers), form.work(sizes, shape.layers)]
    flops = [sum(2 * p.count * p.m * p.k * p.n for p in work.products) for work in passes]
    assert flops[0] == forward
    assert flops[1] == pytest.approx(3 * forward, rel=1e-2)
    width = shape.heads * shape.head_width
    assert passes[0].attention_flops == 4 * found.batch.pairs * width * shape.layers
    assert passes[1].attention_flops == 14 * found.batch.pairs * width * shape.layers
    assert passes[1].operations > 2 * passes[0].operations and passes[1].moved_bytes > 2 * passes[0].moved_bytes


def test_operations_are_counted_at_any_number_of_blocks() -> None:
    found = measure("llama", "lora", rows=700, num_hidden_layers=4)
    shape = found.anatomy.shape
    form = book.find(Variant(shape.family, "lora", found.settings))
    assert form is not None
    sizes = sizes_of(shape, found.settings, found.batch)
    assert found.operations == pytest.approx(form.work(sizes, shape.layers).operations, rel=0.02)


def test_chunks_of_logits_are_those_of_the_loss() -> None:
    assert forms.CHUNK_ELEMENTS == loss.CHUNK_ELEMENTS


def test_symbols_find_products_and_sums_and_say_when_there_is_none() -> None:
    known = Symbols({"T": [51, 55, 58], "U": [19, 23, 20]}, {"d": [120, 168, 280], "q": [48, 96, 480]})
    assert known.find([51 * 120 * 4, 55 * 168 * 4, 58 * 280 * 4]) == {"T*d": 4.0}
    assert known.find([51 * 24, 55 * 48, 58 * 240]) == {"T*q": 0.5}
    assert known.find([120 + 2 * 48, 168 + 2 * 96, 280 + 2 * 480]) == {"d": 1.0, "q": 2.0}
    assert known.find([8, 8, 8]) == {"": 8.0}
    assert known.find([10007, 10009, 10037]) is None


def test_the_tracker_counts_storages_and_not_views() -> None:
    given = torch.zeros(100)
    with LiveTracker([given]) as tracker:
        assert tracker.live_bytes == 400
        more = given + 1
        seen = more.view(10, 10)[:3]
        assert tracker.live_bytes == 800
        del more
        assert tracker.live_bytes == 800
        del seen
        assert tracker.live_bytes == 400
        (given * 2).exp()
        assert (tracker.live_bytes, tracker.peak_bytes) == (400, 1200)
