"""Runs with a linear head: transformers' own where it computes the same, else the model with the head beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import heptune
from heptune.core.errors import UsageError
from heptune.tuning.use import opened
from shipping.conftest import Runs

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

TEXT = "the river in Rome"


def ours(run: heptune.Run) -> np.ndarray:
    """The head's logits for the text, at all of its marks."""
    from heptune.data.record import Record

    tuned = opened(run, lambda event: None)
    record = Record(1, text=TEXT, spans=(), label=getattr(tuned.task, "labels", (None,))[0])
    (example,) = tuned.task.scored(record, 0, tuned.template, tuned.scorer.max_length)
    (found,) = tuned.scorer.seen([example], "asking")
    return found


@pytest.mark.parametrize("technique", ["lora", "full", "qlora"])
@pytest.mark.parametrize("base", ["bert", "roberta", "distilbert", "llama"])
def test_tags_become_a_model_for_tokens(technique: str, base: str, runs: Runs, tmp_path: Path) -> None:
    run = runs(technique, base=base, kind="tag")
    heptune.export(run.folder, "hf", out=tmp_path / "out")
    model = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "out").eval()
    assert model.config.id2label == {0: "O", 1: "B-X", 2: "I-X", 3: "B-Y", 4: "I-Y"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        logits = model(input_ids=tokenizer(TEXT, return_tensors="pt").input_ids).logits[0]
    marks = logits[1:-1] if base != "llama" else logits
    np.testing.assert_allclose(marks.numpy(), ours(run), atol=1e-4)
    assert not (tmp_path / "out/head.safetensors").exists()


@pytest.mark.parametrize(("base", "looks"), [("bert", "mean"), ("modernbert", "mean"), ("llama", "last")])
def test_labels_lie_beside_the_model_and_its_card_computes_them(
    base: str, looks: str, runs: Runs, tmp_path: Path
) -> None:
    run = runs("lora", base=base, kind="label")
    made = heptune.export(run.folder, "hf", out=tmp_path / "out")
    head = json.loads((tmp_path / "out/head.json").read_text("utf-8"))
    assert head == {"task": "label", "classes": ["no", "yes"], "looks_at": looks, "decides": "softmax"}
    names: dict[str, Any] = {}
    program = made.next[0].words.replace("a text", TEXT)
    assert f"```py\n{made.next[0].words}\n```" in (tmp_path / "out/README.md").read_text("utf-8")
    exec(program, names)
    np.testing.assert_allclose(names["logits"].detach().numpy(), ours(run)[0], atol=1e-4)


def test_tags_of_an_architecture_with_more_before_its_classes_lie_beside_the_model(runs: Runs, tmp_path: Path) -> None:
    run = runs("lora", base="modernbert", kind="tag")
    made = heptune.export(run.folder, "hf", out=tmp_path / "out")
    head = json.loads((tmp_path / "out/head.json").read_text("utf-8"))
    assert head["looks_at"] == "every token" and head["classes"][1] == "B-X"
    names: dict[str, Any] = {}
    exec(made.next[0].words.replace("a text", TEXT), names)
    np.testing.assert_allclose(names["logits"].detach().numpy()[1:-1], ours(run), atol=1e-4)


def test_several_labels(runs: Runs, tmp_path: Path) -> None:
    made = heptune.export(runs("lora", base="bert", kind="several").folder, "hf", out=tmp_path / "out")
    assert json.loads((tmp_path / "out/head.json").read_text("utf-8"))["decides"] == "sigmoid of each"
    assert made.parities[0].records > 0 and made.parities[0].greedy == 0


@pytest.mark.parametrize("base", ["bert", "llama"])
@pytest.mark.parametrize(("technique", "to"), [("lora", "peft"), ("prompt", "peft"), ("adapter", "adapterhub")])
def test_an_adapter_has_its_head_beside_it(technique: str, to: str, base: str, runs: Runs, tmp_path: Path) -> None:
    made = heptune.export(runs(technique, base=base, kind="label").folder, to, out=tmp_path / "out")
    assert made.parities[0].relative < 1e-5 and "head.safetensors" in made.files
    before, after = made.parities[0].before, made.parities[0].after
    assert before is not None and after is not None
    assert (before.loss, before.score) == pytest.approx((after.loss, after.score), rel=1e-5)


def test_a_head_has_no_place_in_gguf(runs: Runs, tmp_path: Path) -> None:
    for more in ({}, {"lora_only": True}):
        with pytest.raises(UsageError, match="learned label with a linear head, and a GGUF file has no place for one"):
            heptune.export(runs("lora", kind="label").folder, "gguf", out=tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()
