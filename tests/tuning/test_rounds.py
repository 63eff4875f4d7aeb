"""Rounds: what a run goes on from is inside it to the bit, what it forgot is found, what serves was chosen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import heptune
from heptune import tasks, techniques
from heptune.core.errors import HeptuneError, RunError, TechniqueError, UsageError
from heptune.core.events import Event, Note, StepDone
from heptune.data.parts import DataOptions
from heptune.engine.forward import Forward
from heptune.models.anatomy import dissect
from heptune.models.load import load_base
from heptune.runs import lineage
from heptune.tasks.template import ChatTemplate
from heptune.tuning import guard as guards
from heptune.tuning import problem as problems
from heptune.tuning import replay, rounds
from heptune.tuning.use import opened
from laws.cases import BATCH, disturb, logits
from tiny import tiny_model, tiny_tokenizer

SETTINGS: dict[str, Any] = {"batch_size": 6, "max_length": 256, "max_steps": 4, "validate_every": 2}

# Settings that fit the tiny base, high rates that move what a few steps can move.
SMALL: dict[str, dict[str, Any]] = {
    "adapter": {"reduction": 4, "learning_rate": 0.02},
    "freeze": {"layers": 1, "learning_rate": 0.01},
    "full": {"learning_rate": 0.005},
    "lora": {"rank": 4, "learning_rate": 0.02},
    "p_tuning": {"prompt_template": "{p:3} text {p:2}", "encoder_hidden": 6, "learning_rate": 0.02},
    "p_tuning_v2": {"virtual_tokens": 5, "learning_rate": 0.1},
    "prefix": {"virtual_tokens": 5, "encoder_hidden": 8, "learning_rate": 0.02},
    "prompt": {"virtual_tokens": 5, "learning_rate": 0.1},
    "qlora": {"rank": 4, "learning_rate": 0.02},
}
MERGEABLE = [name for name in techniques.names() if "mergeable" in techniques.capabilities(name)]
IDENTITY = [name for name in techniques.names() if "identity_start" in techniques.capabilities(name)]


def small(name: str) -> Any:
    return techniques.build(name, SMALL[name])


def rows(words: Sequence[str], count: int) -> list[dict[str, str]]:
    return [
        {"text": f"{words[i % len(words)]} {words[i % 5]} {i}", "label": ["yes", "no"][i % 2]} for i in range(count)
    ]


def write(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def first_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(
        tmp_path_factory.mktemp("data") / "first.jsonl", rows(["river", "book", "answer", "sentence", "word"], 48)
    )


@pytest.fixture(scope="module")
def second_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(
        tmp_path_factory.mktemp("data") / "second.jsonl", rows(["capital", "helpful", "label", "text", "two"], 40)
    )


Parent = Callable[[str], heptune.Run]


@pytest.fixture(scope="module")
def parent(base: Path, first_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Parent:
    """A finished first round of a technique, made once. Tests that change one copy it."""
    root, made = tmp_path_factory.mktemp("parents"), {}

    def of(name: str) -> heptune.Run:
        if name not in made:
            made[name] = heptune.tune(base, first_data, technique=small(name), out=root / name, **SETTINGS)
        return made[name]

    return of


class Stop(Exception):
    """The interruption."""


def stop_after(step: int) -> Callable[[Event], None]:
    def listener(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == step:
            raise Stop

    return listener


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys() and a
    for name in a:
        assert torch.equal(a[name], b[name]), name


def losses(run: heptune.Run) -> np.ndarray:
    """Every example's loss under the run's model as it is used."""
    return opened(run, lambda event: None).scorer.forward.score(BATCH)


def before_the_first_step(
    run: heptune.Run, onto: str, technique: Any, tmp_path: Path, data: Path
) -> tuple[Forward, Any, heptune.Run]:
    """A new round's model as its training finds it, and its run, stopped after the first step. Nothing is held out to
    choose a step by: the last one's weights are kept."""
    asked = {"onto": onto, "technique": technique, "options": DataOptions(validation=0.0), **SETTINGS}
    with pytest.raises(Stop):
        heptune.tune(run.folder, data, out=tmp_path / "next", listener=stop_after(1), **asked)
    begun = heptune.Run(tmp_path / "next")
    built = techniques.build(begun.manifest["technique"]["name"], begun.manifest["technique"]["settings"])
    settings = heptune.Settings(**begun.manifest["settings"])
    layers = rounds.beneath(begun)
    loaded = load_base(begun.manifest["base"]["name"])
    anatomy = dissect(loaded.model)
    forward = Forward(anatomy)
    encode = ChatTemplate(loaded.tokenizer).encode
    attached = rounds.attach(begun, layers, anatomy, built, settings, encode, lambda event: None)
    attached.begin_step(None)
    return forward, attached, begun


@pytest.mark.parametrize("name", techniques.names())
def test_continuing_starts_from_the_artifact_to_the_bit(
    name: str, parent: Parent, second_data: Path, tmp_path: Path
) -> None:
    """What the parent left, a network behind a soft prompt included, is what training starts from."""
    run = parent(name)
    forward, attached, begun = before_the_first_step(run, "continue", None, tmp_path, second_data)
    assert_equal({n: t.detach() for n, t in attached.saved().items()}, tensors(run.artifact))
    assert attached.parameters and all(parameter.requires_grad for parameter in attached.parameters.values())
    assert np.array_equal(forward.score(BATCH), losses(run))
    assert begun.manifest["technique"] == run.manifest["technique"]
    assert begun.manifest["round"]["number"] == 2 and begun.manifest["round"]["onto"] == "continue"


def test_continuing_without_a_step_leaves_the_same_artifact(parent: Parent, second_data: Path, tmp_path: Path) -> None:
    """A learning rate of next to nothing: the best step is the one before the first, and the artifact the parent's."""
    run = parent("p_tuning")
    after = heptune.tune(
        run.folder, second_data, out=tmp_path / "same", learning_rate=1e-30, batch_size=6, max_length=256, max_steps=2
    )
    assert after.manifest["result"]["best_step"] == 0
    assert_equal(tensors(after.artifact), tensors(run.artifact))
    assert np.array_equal(losses(after), losses(run))


@pytest.mark.parametrize("name", techniques.names())
def test_continuing_trains_every_technique(name: str, parent: Parent, second_data: Path, tmp_path: Path) -> None:
    """Whole and interrupted twice: the same bits; used again from the manifests: what the artifact says."""
    run = parent(name)
    more = {**SETTINGS, "learning_rate": small(name).learning_rate}
    whole = heptune.tune(run.folder, second_data, out=tmp_path / "whole", **more)
    with pytest.raises(Stop):
        heptune.tune(
            run.folder, second_data, out=tmp_path / "cut", listener=stop_after(3), **{**more, "save_minutes": 0.0}
        )
    assert_same_run(whole, heptune.resume(tmp_path / "cut"))
    assert np.isfinite(losses(whole)).all()


def assert_same_run(a: heptune.Run, b: heptune.Run) -> None:
    assert_equal(tensors(a.artifact), tensors(b.artifact))
    for one, other in zip(*(sorted((run.folder / "checkpoints").glob("step-*"))[-1:] for run in (a, b)), strict=True):
        assert_equal(tensors(one), tensors(other))
    told = [[(e["step"], e["loss"]) for e in run.events if e["event"] == "StepDone"] for run in (a, b)]
    assert told[0] == told[1] and len(told[0]) == SETTINGS["max_steps"]


@pytest.mark.parametrize("name", MERGEABLE)
def test_merging_changes_nothing_before_the_first_step(
    name: str, parent: Parent, second_data: Path, tmp_path: Path
) -> None:
    run = parent(name)
    forward, _, begun = before_the_first_step(run, "merge", small("lora"), tmp_path, second_data)
    got, want = forward.score(BATCH), losses(run)
    assert got == pytest.approx(want, rel=1e-4), "float32 sums in another order"
    resumed = heptune.resume(begun.folder)
    assert resumed.manifest["status"] == "finished"
    moved = losses(resumed)
    assert np.abs(moved - want).max() > 1e-3, "the new technique learned something on top"


@pytest.mark.parametrize("new", IDENTITY)
@pytest.mark.parametrize("old", techniques.names())
def test_stacking_gives_the_parents_bits_or_is_refused(
    old: str, new: str, parent: Parent, second_data: Path, tmp_path: Path
) -> None:
    run = parent(old)
    trains_lora_too = "trains_base" in techniques.capabilities(new) and old in ("lora", "qlora")
    if trains_lora_too:
        with pytest.raises(TechniqueError, match=f"{new} cannot stand on top of {old}.*--onto merge"):
            heptune.tune(run.folder, second_data, onto="stack", technique=small(new), out=tmp_path / "x", **SETTINGS)
        assert not (tmp_path / "x").exists()
        return
    forward, attached, begun = before_the_first_step(run, "stack", small(new), tmp_path, second_data)
    assert np.array_equal(forward.score(BATCH), losses(run))
    trained = {id(parameter) for parameter in attached.parameters.values()}
    inside = [p for p in forward.anatomy.model.parameters() if p.requires_grad]
    assert {id(parameter) for parameter in inside} <= trained
    resumed = heptune.resume(begun.folder)
    assert resumed.manifest["status"] == "finished"
    assert tensors(resumed.artifact).keys() == attached.saved().keys(), "the artifact is the new technique's alone"
    moved = losses(resumed)
    assert np.isfinite(moved).all() and not np.array_equal(moved, losses(run))


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("prompt", "prefix", "both put positions before the sequence"),
        ("prefix", "p_tuning", "both put positions before the sequence"),
        ("p_tuning_v2", "p_tuning_v2", "both put positions before the sequence"),
        ("lora", "qlora", "stores the base in 4 bits"),
        ("adapter", "qlora", "stores the base in 4 bits"),
    ],
)
def test_what_cannot_stand_on_top_is_refused_by_name(
    old: str, new: str, why: str, parent: Parent, second_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(TechniqueError, match=f"{new} cannot stand on top of {old}.*{why}"):
        heptune.tune(
            parent(old).folder, second_data, onto="stack", technique=small(new), out=tmp_path / "x", **SETTINGS
        )
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("new", ["prompt", "p_tuning", "prefix", "p_tuning_v2"])
@pytest.mark.parametrize("old", ["lora", "qlora", "adapter", "freeze"])
def test_soft_prompts_stand_on_what_works_on_weights(
    old: str, new: str, parent: Parent, second_data: Path, tmp_path: Path
) -> None:
    run = heptune.tune(
        parent(old).folder, second_data, onto="stack", technique=small(new), out=tmp_path / "next", **SETTINGS
    )
    told = run.manifest["result"]["best_validation"]
    judged = opened(run, lambda event: None)
    exam = guards.exam_of(judged.task)
    records = problems.again(run.manifest).parts.validation
    validation = exam.validation(judged.scorer, records, lambda event: None)
    assert validation is not None and validation.score() == pytest.approx(told, abs=1e-6)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_lora_on_a_lora_is_the_sum_of_both(dora: bool, family: str) -> None:
    """Nested, and merged from below: the same model; its gradient is that of LoRA on the merged base."""

    def put(anatomy: Any, seed: int) -> Any:
        attached = heptune.Lora(rank=2, dora=dora).attach(anatomy, seed=seed)
        disturb(attached)
        return attached

    nested = dissect(tiny_model(family).double())
    put(nested, 1)
    upper = put(nested, 2)
    flat = dissect(tiny_model(family).double())
    put(flat, 1).merge()
    other = put(flat, 2)
    one, two = Forward(nested), Forward(flat)
    for forward, attached in ((one, upper), (two, other)):
        with forward.loss(BATCH) as batch:
            batch.total.backward()
        assert all(parameter.grad is not None for parameter in attached.parameters.values())
    assert one.score(BATCH) == pytest.approx(two.score(BATCH), rel=1e-9)
    for (name, mine), theirs in zip(upper.parameters.items(), other.parameters.values(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad, rtol=1e-6, atol=1e-9), name
    with pytest.raises(TechniqueError, match="merge that one first"):
        upper.merge()


def test_a_prompt_beneath_follows_the_weights_above_it() -> None:
    """What a prompt gives an ordinary call (its keys and values) is computed anew after a step of the LoRA on top."""

    def built(seed: int) -> tuple[Any, rounds.Stacked]:
        anatomy = dissect(tiny_model("llama"))
        prompt = heptune.Prompt(virtual_tokens=4).attach(anatomy, seed=0)
        lora = heptune.Lora(rank=2).attach(anatomy, seed=seed)
        return anatomy, rounds.Stacked(lora, [prompt])

    anatomy, stacked = built(1)
    before = logits(anatomy)
    for step in range(2):
        disturb(stacked)
        stacked.begin_step(step)
        moved = logits(anatomy)
        fresh, other = built(1)
        with torch.no_grad():
            for mine, theirs in zip(stacked.parameters.values(), other.parameters.values(), strict=True):
                theirs.copy_(mine)
        assert torch.equal(moved, logits(fresh)) and not torch.equal(moved, before)


def test_a_chain_of_all_three_ways_is_rebuilt(
    parent: Parent, first_data: Path, second_data: Path, tmp_path: Path
) -> None:
    """LoRA, continued, a prompt on top, a LoRA on both, merged into an adapter: each is what it was in its training."""
    steps: list[tuple[str, Any]] = [
        ("continue", None),
        ("stack", small("prompt")),
        ("stack", small("lora")),
        ("merge", small("adapter")),
    ]
    run = parent("lora")
    for number, (onto, technique) in enumerate(steps, 2):
        data = [first_data, second_data][number % 2]
        forward, _, begun = before_the_first_step(run, onto, technique, tmp_path / str(number), data)
        if onto != "stack" or technique.name == "lora":
            assert forward.score(BATCH) == pytest.approx(losses(run), rel=1e-4)
        run = heptune.resume(begun.folder)
        assert lineage.number(run) == number
    kinds = [(layer.technique.name, layer.folded) for layer in rounds.beneath(run)]
    assert kinds == [("lora", True), ("prompt", False), ("lora", True)]
    assert [lineage.way(each) for each in lineage.chain(run)] == [None, "continue", "stack", "stack", "merge"]
    assert len(run.manifest["guarded"]["rounds"]) == 5
    adapter = json.loads((run.artifact / "adapter_config.json").read_text("utf-8"))
    assert adapter["model_name"] == str(lineage.chain(run)[-2].folder.resolve()), "alone it means nothing"


def test_a_base_in_4_bits_stays_as_it_was(base: Path, first_data: Path, second_data: Path, tmp_path: Path) -> None:
    """nf4 under a LoRA, a LoRA stacked on it, both merged and rounded anew: stored in 4 bits once for each time."""
    one = heptune.tune(base, first_data, technique=small("lora"), quantize="nf4", out=tmp_path / "1", **SETTINGS)
    forward, _, begun = before_the_first_step(one, "stack", small("lora"), tmp_path, second_data)
    assert begun.manifest["settings"]["quantize"] == "nf4"
    assert np.array_equal(forward.score(BATCH), losses(one))
    two = heptune.resume(begun.folder)
    with pytest.raises(UsageError, match="the base stays as"):
        plain = parent_without(base, first_data, tmp_path)
        heptune.tune(plain, second_data, onto="stack", quantize="nf4", **SETTINGS)
    heptune.tune(
        one.folder, second_data, technique=small("adapter"), onto="stack", quantize="nf4", out=tmp_path / "same",
        **SETTINGS,
    )  # fmt: skip
    forward, _, _ = before_the_first_step(two, "merge", small("lora"), tmp_path / "merged", second_data)
    assert forward.score(BATCH) == pytest.approx(losses(two), rel=1e-4)
    heard: list[Event] = []
    three = heptune.tune(
        two.folder, second_data, onto="merge", technique=small("qlora"), out=tmp_path / "3", listener=heard.append,
        **SETTINGS,
    )  # fmt: skip
    assert any(isinstance(e, Note) and "rounded to 4 bits" in e.text for e in heard)
    assert np.isfinite(losses(three)).all()


def parent_without(base: Path, data: Path, tmp_path: Path) -> Path:
    return heptune.tune(base, data, technique=small("lora"), out=tmp_path / "plain", **SETTINGS).folder


# What is refused.


def test_what_a_technique_cannot(parent: Parent, base: Path, second_data: Path, tmp_path: Path) -> None:
    def refused(error: type[HeptuneError], match: str, *words: Any, **more: Any) -> None:
        with pytest.raises(error, match=match):
            heptune.tune(*words, second_data, out=tmp_path / "x", **more, **SETTINGS)
        assert not (tmp_path / "x").exists()

    for name in ("prompt", "adapter", "prefix"):
        refused(TechniqueError, f"{name} cannot be merged.*--onto stack", parent(name).folder, onto="merge")
    lora = parent("lora").folder
    refused(UsageError, "was tuned with lora, and prompt cannot train that on; choose --onto", lora, technique="prompt")
    refused(UsageError, "which prompt cannot continue", lora, technique="prompt", onto="continue")
    refused(UsageError, "rank is 8, but .* was tuned with 4", lora, technique=heptune.Lora(rank=8))
    refused(UsageError, "did you mean merge", lora, onto="merged")
    refused(UsageError, "replay is 3", lora, replay=3.0)
    refused(UsageError, "guard is -1", lora, guard=-1.0)
    refused(UsageError, "is no run directory", base, guard=0.1)
    refused(UsageError, "is no run directory", base, onto="merge")


@pytest.fixture
def family(base: Path, first_data: Path, second_data: Path, tmp_path: Path) -> tuple[heptune.Run, heptune.Run]:
    """Two rounds of one's own, to be damaged."""
    one = heptune.tune(base, first_data, technique=small("lora"), out=tmp_path / "runs" / "one", **SETTINGS)
    two = heptune.tune(one.folder, second_data, out=tmp_path / "runs" / "two", **SETTINGS)
    return one, two


def test_a_parent_that_is_gone_or_changed_is_refused(family: Any, second_data: Path, tmp_path: Path) -> None:
    one, two = family
    assert np.isfinite(losses(two)).all()
    damaged = sorted(one.artifact.glob("*.safetensors"))[0]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-4] + b"\0\0\0\1")
    for use in (lambda: losses(two), lambda: heptune.promote(two.folder), lambda: heptune.evaluate(two.folder)):
        with pytest.raises(RunError, match=r"one, which has changed since"):
            use()
    damaged.write_bytes(whole)
    assert np.isfinite(losses(two)).all()
    shutil.move(one.folder, tmp_path / "elsewhere")
    with pytest.raises(RunError, match=r"one, which is gone"):
        losses(two)
    assert [each.depth for each in lineage.list_runs(tmp_path / "runs")] == [0], "a list is given all the same"


def test_a_lineage_moves_as_a_whole(family: Any, tmp_path: Path) -> None:
    _, two = family
    want = losses(two)
    heptune.promote(two.folder)
    shutil.move(tmp_path / "runs", tmp_path / "moved")
    moved = heptune.Run(tmp_path / "moved" / "two")
    assert np.array_equal(losses(moved), want)
    assert heptune.serving(heptune.Run(tmp_path / "moved" / "one")).folder == moved.folder


def test_a_plain_model_is_not_made_of_half_a_chain(family: Any, base: Path, second_data: Path, tmp_path: Path) -> None:
    _, two = family
    model = heptune.load(str(base), two.artifact)  # it continues the first, and its artifact is all there is
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(model(ids).logits, heptune.open_run(two.folder).model(ids).logits)
    elsewhere = shutil.copytree(two.artifact, tmp_path / "other" / "adapter")
    (elsewhere.parent / "manifest.json").write_text('{"of": "another program"}', "utf-8")
    assert torch.equal(heptune.load(str(base), elsewhere)(ids).logits, model(ids).logits)
    above = heptune.tune(two.folder, second_data, technique=small("lora"), onto="stack", out=tmp_path / "3", **SETTINGS)
    with pytest.raises(RunError, match=r"stands on what earlier rounds learned; `heptune.open_run` of .*3 builds all"):
        heptune.load(str(base), above.artifact)


def test_another_base_is_refused(family: Any, base: Path, second_data: Path, tmp_path: Path) -> None:
    one, _ = family
    manifest = json.loads((one.folder / "manifest.json").read_text("utf-8"))
    other = tmp_path / "other"
    tiny_model("llama", seed=1).save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    manifest["base"]["name"] = str(other)
    (one.folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(RunError, match="is not the one this run began with"):
        heptune.tune(one.folder, second_data, out=tmp_path / "x", **SETTINGS)
    assert not (tmp_path / "x").exists()


def test_an_unfinished_parent_is_refused(base: Path, first_data: Path, second_data: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        heptune.tune(base, first_data, out=tmp_path / "cut", listener=stop_after(2), **SETTINGS)
    for use in (lambda: heptune.tune(tmp_path / "cut", second_data), lambda: heptune.promote(tmp_path / "cut")):
        with pytest.raises(RunError, match=r"is not finished.*heptune resume"):
            use()


# What was forgotten.


@pytest.fixture(scope="module")
def opposite(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same kind of texts with the labels the other way round: who learns the second set forgets the first."""
    folder = tmp_path_factory.mktemp("opposite")
    words = {"yes": ["river", "capital", "sentence"], "no": ["book", "helpful", "word"]}

    def lines(flipped: bool) -> list[dict[str, Any]]:
        made = []
        for number in range(60):
            label = ["yes", "no"][number % 2]
            said = label if not flipped else {"yes": "no", "no": "yes"}[label]
            made.append({"text": f"{words[label][number // 2 % 3]} {number + 500 * flipped}", "label": said})
        return made

    return write(folder / "straight.jsonl", lines(False)), write(folder / "flipped.jsonl", lines(True))


LEARN: dict[str, Any] = {"batch_size": 12, "max_length": 256, "max_steps": 30, "epochs": 100}


@pytest.fixture(scope="module")
def straight(base: Path, opposite: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> heptune.Run:
    technique = heptune.Full(learning_rate=0.01)
    folder = tmp_path_factory.mktemp("guard") / "one"
    options = DataOptions(test=0.3)
    run = heptune.tune(base, opposite[0], technique=technique, options=options, out=folder, **LEARN)
    assert run.manifest["result"]["best_validation"]["accuracy"] >= 0.8, "it has something to forget"
    return run


def test_a_round_that_forgets_is_refused(straight: heptune.Run, opposite: tuple[Path, Path], tmp_path: Path) -> None:
    run = heptune.tune(straight.folder, opposite[1], guard=0.05, out=tmp_path / "two", **LEARN)
    assert run.manifest["status"] == "finished" and run.artifact.is_dir(), "the run stays"
    guarded = run.manifest["guarded"]
    first, own = guarded["rounds"]
    assert guarded["refused"] and first["refused"] and not own["refused"]
    assert first["examples"] == 18 and first["metric"] == "accuracy" and first["part"] == "the test part"
    assert first["lost"] == pytest.approx(first["parent"] - first["now"]) and first["lost"] > 0.3
    assert own["now"] > own["parent"], "what it was tuned for is better"
    assert first["difference"]["low"] <= -first["lost"] <= first["difference"]["high"] < 0
    assert_paired(straight, run, first)
    with pytest.raises(RunError, match=r"is not promoted.*lost 0\.\d+ accuracy on round 1; the guard allows 0\.05"):
        heptune.promote(run.folder)
    assert heptune.serving(run).folder == straight.folder
    heptune.promote(run.folder, force=True)
    assert heptune.serving(straight).folder == run.folder
    heptune.rollback(run.folder)


def assert_paired(parent: heptune.Run, run: heptune.Run, found: dict[str, Any]) -> None:
    """The difference, counted one example at a time with what a person would use."""
    problem = problems.again(parent.manifest)
    was, now = opened(parent, lambda event: None), opened(run, lambda event: None)
    right = np.array(
        [
            [tuned.classify(record.text or "") for tuned in (was, now)][i].keys().__iter__().__next__() == record.label
            for record in problem.parts.test
            for i in (0, 1)
        ]
    ).reshape(-1, 2)
    assert found["parent"] == pytest.approx(right[:, 0].mean()) and found["now"] == pytest.approx(right[:, 1].mean())


def test_a_round_that_keeps_what_it_knows_is_promoted(
    straight: heptune.Run, opposite: tuple[Path, Path], tmp_path: Path
) -> None:
    """The same examples once more, from a copy with other numbers."""
    more = [{**json.loads(line)} for line in opposite[0].read_text("utf-8").splitlines()]
    again = write(tmp_path / "again.jsonl", [{**line, "text": line["text"] + " again"} for line in more])
    run = heptune.tune(straight.folder, again, guard=0.1, out=tmp_path / "two", learning_rate=1e-4, **LEARN)
    assert not run.manifest["guarded"]["refused"]
    assert heptune.promote(run.folder).folder == run.folder


def test_what_a_later_round_trained_on_does_not_judge_it(
    straight: heptune.Run, opposite: tuple[Path, Path], tmp_path: Path
) -> None:
    """The first round's test part stands in the second one's file: what came into training is left out."""
    short = {**LEARN, "max_steps": 2}
    run = heptune.tune(
        straight.folder, opposite[0], out=tmp_path / "two", options=DataOptions(test=0.1), seed=5, **short
    )
    mine, theirs = problems.again(run.manifest).parts, problems.again(straight.manifest).parts
    trained = {record.text for record in mine.train}
    left = [record for record in theirs.test if record.text not in trained]
    first = run.manifest["guarded"]["rounds"][0]
    assert 0 < len(left) < len(theirs.test)
    assert first["examples"] == len(left) and f"{len(theirs.test) - len(left)} left out" in first["part"]


def test_chats_are_compared_by_their_loss(base: Path, tmp_path: Path) -> None:
    def talk(words: str) -> list[dict[str, Any]]:
        return [{"prompt": f"What is {number}?", "completion": f"{words} {number}."} for number in range(30)]

    one_data, two_data = write(tmp_path / "1.jsonl", talk("It is")), write(tmp_path / "2.jsonl", talk("Ask me about"))
    one = heptune.tune(base, one_data, technique=small("lora"), out=tmp_path / "one", **SETTINGS)
    two = heptune.tune(one.folder, two_data, guard=0.0, out=tmp_path / "two", **{**SETTINGS, "max_steps": 12})
    first = two.manifest["guarded"]["rounds"][0]
    records = problems.again(one.manifest).parts.test
    for run, said in ((one, first["parent"]), (two, first["now"])):
        tuned = opened(run, lambda event: None)
        validation = guards.exam_of(problems.again(one.manifest).task).validation(
            tuned.scorer, records, lambda event: None
        )
        assert validation is not None and validation.score()["loss"] == pytest.approx(said, rel=1e-5)
    assert first["metric"] == "loss" and first["lost"] == pytest.approx(first["now"] - first["parent"])
    assert first["refused"] == (first["lost"] > 0)


def test_the_comparison_is_made_good_after_an_interruption(
    straight: heptune.Run, opposite: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it compares: the run is finished, not promoted, and a resume compares it."""
    short = {**LEARN, "max_steps": 2}
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(guards, "_outcomes", lambda *arguments: (_ for _ in ()).throw(Stop()))
        heptune.tune(straight.folder, opposite[1], out=tmp_path / "two", **short)
    run = heptune.Run(tmp_path / "two")
    assert run.manifest["status"] == "finished"
    with pytest.raises(RunError, match="was not compared with its parent yet"):
        heptune.promote(run.folder)
    resumed = heptune.resume(run.folder)
    assert len(resumed.manifest["guarded"]["rounds"]) == 2
    with pytest.raises(RunError, match="is finished"):
        heptune.resume(run.folder)


def test_data_of_an_earlier_round_that_is_gone(base: Path, second_data: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "gone.jsonl", rows(["river", "book", "answer", "sentence", "word"], 40))
    one = heptune.tune(base, data, technique=small("lora"), out=tmp_path / "one", **SETTINGS)
    data.unlink()
    for asked in ({"guard": 0.1}, {"replay": 0.1}):
        with pytest.raises(RunError, match=r"round 1 .*gone.jsonl is gone.*--(guard|replay) needs it"):
            heptune.tune(one.folder, second_data, out=tmp_path / "x", **asked, **SETTINGS)
    heard: list[Event] = []
    two = heptune.tune(one.folder, second_data, out=tmp_path / "two", listener=heard.append, **SETTINGS)
    assert any(isinstance(e, Note) and "cannot be measured" in e.text for e in heard)
    first, own = two.manifest["guarded"]["rounds"]
    assert first["difference"] is None and "is gone" in first["why"] and own["examples"] > 0
    assert "not measured" in lineage.guard_words(two.manifest["guarded"])[0]


# What is mixed in.


def test_replay_is_a_function_of_the_seed(parent: Parent) -> None:
    problem = problems.again(parent("lora").manifest)
    few = replace(problem, parts=replace(problem.parts, train=problem.parts.train[:10]))
    drawn = replay.draw([problem, few], 100, 0.25, seed=3)
    assert drawn == replay.draw([problem, few], 100, 0.25, seed=3) != replay.draw([problem, few], 100, 0.25, seed=4)
    sizes = [len(each["records"]) for each in drawn]
    share = len(problem.parts.train) / (len(problem.parts.train) + 10)
    assert sum(sizes) == 25 and sizes[0] == round(25 * share)
    labels = [problem.parts.train[i].label for i in drawn[0]["records"]]
    assert abs(labels.count("yes") - labels.count("no")) <= 1, "stratified"
    assert sum(len(each["records"]) for each in replay.draw([few], 1000, 1.0, 0)) == 10, "no more than there are"
    assert replay.draw([few], 3, 0.01, 0)[0]["records"], "at least one"
    assert replay.draw([few], 3, 0.0, 0) == []


def test_replayed_examples_are_learned_as_their_own_round_posed_them(
    parent: Parent, second_data: Path, tmp_path: Path
) -> None:
    """Killed and resumed: the same bits; the manifest tells which; each is encoded by its own task."""
    one = parent("lora")
    arguments = {**SETTINGS, "instruction": "Say yes or no.", "replay": 0.5, "learning_rate": 0.02}
    whole = heptune.tune(one.folder, second_data, out=tmp_path / "whole", **arguments)
    with pytest.raises(Stop):
        heptune.tune(
            one.folder, second_data, out=tmp_path / "cut", listener=stop_after(3), **{**arguments, "save_minutes": 0.0}
        )
    assert_same_run(whole, heptune.resume(tmp_path / "cut"))
    kept = whole.manifest["round"]["replay"]
    problem, template = problems.again(whole.manifest), ChatTemplate(tiny_tokenizer())
    assert kept["share"] == 0.5 and len(kept["rounds"][0]["records"]) == round(0.5 * len(problem.parts.train))
    own = tasks.encode(problem.task, problem.parts.train, template, 256, lambda event: None)
    material = replay.Replayed(whole, problem, own, template, 256, lambda event: None)
    new = len(problem.parts.train)
    assert len(material.examples) == new + len(kept["rounds"][0]["records"])
    text = template.tokenizer.decode(material.examples[new].tokens)
    before = problems.again(one.manifest)
    record = before.parts.train[kept["rounds"][0]["records"][0]]
    assert "Classify the text" in text and record.text in text and "Say yes" not in text
    assert "Say yes or no." in template.tokenizer.decode(material.examples[0].tokens)
    assert material.place(new) == f"{one.manifest['data']['train']['path']}:{record.line}"
    started = next(e for e in whole.events if e["event"] == "TrainingStarted")
    assert started["examples"] == len(material.examples)


# What serves.


def test_promotions_and_rollbacks_keep_their_history(base: Path, first_data: Path, tmp_path: Path) -> None:
    short = {**SETTINGS, "max_steps": 1}
    one = heptune.tune(base, first_data, technique=small("lora"), out=tmp_path / "runs" / "one", **short)
    two = heptune.tune(one.folder, first_data, out=tmp_path / "runs" / "two", seed=1, **short)
    three = heptune.tune(two.folder, first_data, out=tmp_path / "runs" / "three", seed=2, **short)
    side = heptune.tune(one.folder, first_data, onto="merge", out=tmp_path / "runs" / "side", **short)
    assert heptune.serving(three).folder == one.folder.resolve() or heptune.serving(three).folder == one.folder
    with pytest.raises(RunError, match="nothing served before"):
        heptune.rollback(three.folder)
    for run in (two, three, three, side):
        heptune.promote(run.folder)
        assert heptune.serving(one).folder.resolve() == run.folder.resolve()
    assert heptune.rollback(one.folder).folder.resolve() == three.folder.resolve()
    assert heptune.rollback(two.folder).folder.resolve() == two.folder.resolve()
    listed = {each.run.folder.name: each for each in heptune.list_runs(tmp_path / "runs")}
    assert list(listed) == ["one", "two", "three", "side"]
    assert [listed[name].depth for name in listed] == [0, 1, 2, 1]
    assert [name for name, each in listed.items() if each.serves] == ["two"]
    assert heptune.rollback(side.folder).folder.resolve() == one.folder.resolve()
    told = [(each["action"], Path(each["run"]).name) for each in lineage.history(two)]
    assert told == [
        *(("promote", name) for name in ("two", "three", "side")),
        *(("rollback", name) for name in ("three", "two", "one")),
    ]
    heptune.promote(side.folder)
    shutil.rmtree(side.folder)
    with pytest.raises(RunError, match="was promoted to serve, but is gone"):
        heptune.serving(one)
    assert heptune.rollback(one.folder).folder.resolve() == one.folder.resolve()
