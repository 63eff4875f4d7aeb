"""What plans know of techniques without importing them is what the techniques themselves say."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from heptune import techniques
from heptune.engine import loop
from heptune.models.anatomy import dissect
from heptune.models.catalog import entries
from heptune.planning import costs, estimate
from heptune.planning.estimate import Candidate, artifact_bytes, serving
from heptune.techniques.p_tuning import PTuning
from tiny import tiny_model


def test_stored_costs_are_those_of_the_techniques() -> None:
    stored = json.loads(Path(costs.__file__).with_name("costs.json").read_text("utf-8"))
    assert stored == costs.computed(), "run `python -m heptune.planning.costs`"


@pytest.mark.parametrize("name", techniques.names())
def test_defaults_and_capabilities_read_from_the_file_are_the_classs(name: str) -> None:
    assert techniques.defaults(name) == asdict(techniques.build(name))  # type: ignore[call-overload]
    assert techniques.capabilities(name) == techniques.get(name).capabilities
    assert Candidate.of(name) == Candidate.of(techniques.build(name))


def test_other_settings_ask_the_technique_itself() -> None:
    entry = entries()["llama-3.2-1b"]
    settings = {**techniques.defaults("lora"), "rank": 64}
    found = costs.cost_of("lora", settings, entry.shape, entry)
    assert found == techniques.build("lora", {"rank": 64}).cost(entry.shape)


@pytest.mark.parametrize(
    ("technique", "settings"),
    [
        *((name, {}) for name in techniques.names() if name != "qlora"),
        ("prefix", {"init": "random"}),
        ("prefix", {"reparameterised": False}),
        ("p_tuning", {"encoder": "none"}),
        ("p_tuning", {"encoder": "mlp"}),
        ("lora", {"rank": 3}),
    ],
    ids=str,
)
def test_the_artifact_is_as_large_as_what_is_saved(technique: str, settings: dict, tmp_path: Path) -> None:
    anatomy = dissect(tiny_model("llama"))
    own = {"layers": 1} if technique == "freeze" else {}
    made = techniques.build(technique, {**settings, **own})
    attached = made.attach(anatomy, 0)
    saved = sum(tensor.numel() * tensor.element_size() for tensor in attached.saved().values())
    assert artifact_bytes(Candidate.of(made), made.cost(anatomy.shape), anatomy.shape, "float32") == saved


def test_placements_are_the_techniques_own() -> None:
    for template, places in (
        ("", (20, 0)),
        ("{p:12} text {p:8}", (12, 8)),
        ("{text}{p:5}", (0, 5)),
        ("{p:7}text", (7, 0)),
    ):
        made = PTuning(prompt_template=template)
        candidate = Candidate.of(made)
        assert made.places == places == (candidate.placement.front, candidate.placement.inner)
    assert Candidate.of("prefix").placement == estimate.Placement() and Candidate.of("prefix").positions == 20


def test_use_costs_what_a_technique_leaves_beside_the_base() -> None:
    shape = entries()["llama-3.2-1b"].shape

    def of(name: str) -> estimate.Serving:
        candidate = Candidate.of(name)
        return serving(candidate, costs.cost_of(name, candidate.settings, shape), shape, "bfloat16")

    assert of("lora").merged and of("lora").words == "nothing"
    assert of("prefix").positions == of("prompt").positions == 20
    assert of("prefix").request_bytes == 2 * 16 * 8 * 64 * 20 * 2
    adapter = of("adapter")
    assert (adapter.positions, adapter.request_bytes) == (0, 0) and adapter.token_flops > 0


def test_what_is_copied_from_the_engine_is_the_engines() -> None:
    from heptune import api
    from heptune.planning import workload

    assert estimate.VALIDATIONS == loop.VALIDATIONS
    assert getattr(api, "SCORING_ROWS", workload.SCORING_ROWS) == workload.SCORING_ROWS
