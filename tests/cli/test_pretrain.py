"""`heptune pretrain` on a tiny model: what it leaves, that it resumes to the same bits, that its base can be tuned."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import heptune as package
from heptune.core.errors import UsageError
from heptune.core.events import Event, StepDone
from heptune.models.load import load_base

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SETTINGS: dict[str, Any] = {"vocabulary": 300, "context": 128, "batch_tokens": 256, "max_steps": 6, "save_minutes": 0}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration and a corpus of a few KB."""
    folder = tmp_path_factory.mktemp("pretrain")
    config = {"model_type": "llama", "max_position_embeddings": 128, "tie_word_embeddings": True, **SIZES}
    (folder / "tiny.json").write_text(json.dumps(config), "utf-8")
    draw = random.Random(0)
    words = ("the", "river", "ran", "under", "an", "old", "stone", "bridge", "and", "nobody", "crossed", "it")
    lines = [" ".join(draw.choices(words, k=draw.randint(4, 20))).capitalize() + "." for _ in range(150)]
    (folder / "book.txt").write_text("\n\n".join(lines) + "\n", "utf-8")
    return folder


@pytest.fixture(scope="module")
def whole(work: Path) -> Path:
    """A run that nothing interrupted."""
    torch.set_num_threads(1)
    return package.pretrain(str(work / "tiny.json"), work / "book.txt", out=work / "whole", **SETTINGS).folder


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_it_leaves_a_base_like_any_other(whole: Path) -> None:
    manifest = json.loads((whole / "manifest.json").read_text("utf-8"))
    assert manifest["status"] == "finished" and manifest["task"] == {"name": "complete"}
    told = {"config": str(whole.parent / "tiny.json"), "vocabulary": 300, "context": 128}
    assert told.items() <= manifest["pretrain"].items()
    assert manifest["settings"]["weight_decay"] == 0.1 and manifest["settings"]["learning_rate"] == 0.003
    assert 1 <= manifest["settings"]["epochs"] <= 16
    before, after = (load_base(str(whole / name)) for name in ("initial", "base"))
    assert before.fingerprint == manifest["base"]["fingerprint"] != after.fingerprint
    assert not torch.equal(before.model.get_input_embeddings().weight, after.model.get_input_embeddings().weight)
    assert after.tokenizer.encode("the bridge") == before.tokenizer.encode("the bridge")
    tuned = package.open_run(whole)
    ids = torch.tensor([after.tokenizer.encode("The river ran")])
    assert torch.equal(tuned.model(ids).logits, after.model(ids).logits), "base/ is what the run itself uses"
    result = package.evaluate(whole)
    assert result.comparison.difference.value < 0, "it has learned something"


@pytest.mark.parametrize("at", [1, 4])
def test_resumed_is_uninterrupted_bit_by_bit(work: Path, whole: Path, at: int) -> None:
    folder = work / f"interrupted-{at}"

    def interrupt(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == at + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        package.pretrain(str(work / "tiny.json"), work / "book.txt", out=folder, listener=interrupt, **SETTINGS)
    assert not (folder / "base").exists()
    folder = folder.rename(work / f"moved-{at}") if at == 1 else folder
    stored = (folder / "tokens/tokens.bin").stat().st_mtime_ns
    assert package.resume(folder).manifest["status"] == "finished"
    assert weights(folder / "base") == weights(whole / "base")
    assert (folder / "tokens/tokens.bin").stat().st_mtime_ns == stored, "the corpus was tokenized once"


def test_a_base_that_was_not_written_is_written_by_resume(work: Path, whole: Path) -> None:
    wanted = weights(whole / "base")
    (whole / "base").rename(work / "gone")
    package.resume(whole)
    assert weights(whole / "base") == wanted


def test_a_seed_makes_another_model(work: Path, whole: Path) -> None:
    settings = {**SETTINGS, "max_steps": 1, "seed": 1}
    run = package.pretrain(str(work / "tiny.json"), work / "book.txt", out=work / "seed", **settings)
    assert weights(run.folder / "initial") != weights(whole / "initial")


def test_its_base_is_tuned_and_continued(whole: Path, heptune: Any, reviews: Path, conversations: Path) -> None:
    book = whole.parent / "book.txt"
    kinds = (("classify", reviews, ("--instruction", "Mood?")), ("chat", conversations, ()), ("complete", book, ()))
    for name, data, more in kinds:
        out = whole.parent / f"tuned-{name}"
        said = heptune("tune", whole / "base", data, "--max-steps", "2", "--out", out, *more)
        assert said.code == 0, said.err
        assert json.loads((out / "manifest.json").read_text("utf-8"))["task"]["name"] == name
    said = heptune("chat", whole.parent / "tuned-complete", "--once", "The river", "--max-tokens", "5")
    assert said.code == 0 and said.out.startswith("The river") and len(said.out) > len("The river\n")


def test_examples_are_no_longer_than_the_positions(whole: Path, heptune: Any) -> None:
    out = whole.parent / "long"
    said = heptune("tune", whole / "base", whole.parent / "book.txt", "--max-steps", "1", "--out", out)
    assert said.code == 0 and "has 128 positions: examples are cut at 128 tokens, not 1024" in said.out
    assert json.loads((out / "manifest.json").read_text("utf-8"))["settings"]["max_length"] == 128


def test_the_command_tells_scores_and_what_comes_next(work: Path, heptune: Any) -> None:
    out = work / "said"
    words = ["--vocabulary", "300", "--context", "128", "--max-steps", "2", "--out", out]
    said = heptune("pretrain", work / "tiny.json", work / "book.txt", *words)
    assert said.code == 0, said.err
    for text in ("loss", "perplexity", "bits per byte", "order-5 byte model", "base, untouched", "truth"):
        assert text in said.out
    assert f"heptune tune {out}/base DATA" in said.out and f"heptune chat {out}" in said.out
    said = heptune("pretrain", work / "tiny.json", work / "book.txt", *words)
    assert said.code == 1 and "holds a run already" in said.err


def test_what_cannot_be_is_refused_before_anything_is_written(work: Path, heptune: Any, reviews: Path) -> None:
    out = work / "refused"
    said = heptune("pretrain", "lama-5m", work / "book.txt", "--out", out)
    assert said.code == 2 and "did you mean llama-5m" in said.err
    said = heptune("pretrain", work / "tiny.json", reviews, "--context", "128", "--out", out)
    assert said.code == 1 and "complete learns from plain text" in said.err
    said = heptune("pretrain", work / "tiny.json", work / "none.txt", "--context", "128", "--out", out)
    assert said.code == 1 and "there is no such file" in said.err
    with pytest.raises(UsageError, match="epochs is -1"):
        package.pretrain("llama-1m", work / "book.txt", out=out, epochs=-1)
    assert not out.exists()
