"""The gate: what it lets through, what it stops, and that nothing stays of what it stopped."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import heptune
from heptune.core.errors import RunError, UsageError
from heptune.core.events import Note
from heptune.shipping import merged, tokenizer
from heptune.shipping.export import FORMATS
from heptune.shipping.parity import (
    REPLY_TOKENS,
    TOLERANCES,
    Asked,
    Consumer,
    Held,
    Parity,
    ParityError,
    Reference,
    compare,
)
from heptune.tasks.example import WHOLE, Example
from heptune.tasks.template import ChatTemplate
from shipping.conftest import FEW, Runs, small, write
from tiny import tiny_tokenizer

V = 11


@dataclass
class Made:
    """Its logits are a table's rows, [V, V]: what follows a token depends on that token alone."""

    table: torch.Tensor
    stop: int = 0

    def logits(self, asked: Asked) -> torch.Tensor:
        return self.table[list(asked.tokens)]

    def greedy(self, asked: Asked, count: int) -> list[int]:
        said = [asked.tokens[-1]]
        while len(said) <= count and (len(said) == 1 or said[-1] != self.stop):
            said.append(int(self.table[said[-1]].argmax()))
        return said[1:]


def table(seed: int = 0) -> torch.Tensor:
    return torch.randn(V, V, generator=torch.Generator().manual_seed(seed)) * 3


PROMPTS = [Asked((1, 2, 3)), Asked((4, 5))]
HELD = [
    Held(
        (Example((1, 2, 3, 4), (False, False, True, True), 0), Example((1, 2, 5, 4), (False, False, True, True), 0)), 1
    )
]


def found(voice: Made, tokens: bool | None = None, template: bool | None = None, kind: str = "f32") -> Parity:
    reference = Reference.of(Made(table()), PROMPTS, HELD)
    return compare(reference, Consumer("a program", voice, tokens, template), TOLERANCES[kind])


def test_the_same_is_let_through_with_what_was_measured() -> None:
    parity = found(Made(table()), True, True)
    assert parity.problems == [] and parity.logits == parity.relative == 0.0
    assert parity.agreed == parity.greedy > 0 and parity.positions == 5 + parity.greedy
    parity.require("it")


def test_differences_are_what_they_are_said_to_be() -> None:
    other = table().clone()
    other[3, 7] += 0.25
    parity = found(Made(other))
    assert parity.logits == pytest.approx(0.25)
    rows = torch.cat([table()[[*p.tokens, *Made(table()).greedy(p, REPLY_TOKENS)]] for p in PROMPTS])
    size = (rows - rows.mean(1, keepdim=True)).norm()
    times = sum([*p.tokens, *Made(table()).greedy(p, REPLY_TOKENS)].count(3) for p in PROMPTS)
    assert parity.relative == pytest.approx(float(0.25 * times**0.5 / size), rel=1e-5)
    assert any("its logits differ by" in problem for problem in parity.problems)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_what_is_no_number_is_stopped(broken: float) -> None:
    other = table().clone()
    other[2, 5] = broken
    with pytest.raises(ParityError, match="its logits differ"):
        found(Made(other)).require("it")


def test_a_vocabulary_that_was_filled_up_is_the_same() -> None:
    wider = torch.cat([table(), torch.full((V, 3), -50.0)], 1)
    assert found(Made(wider)).problems == []


class Stubborn(Made):
    """Says something else than what its logits say."""

    def greedy(self, asked: Asked, count: int) -> list[int]:
        return [(super().greedy(asked, 1)[0] + 1) % V, 0]


class Endless(Made):
    """Does not know what ends a reply."""

    def greedy(self, asked: Asked, count: int) -> list[int]:
        return [*super().greedy(asked, count), 1]


@pytest.mark.parametrize("kind", [Stubborn, Endless])
def test_a_reply_that_the_logits_do_not_explain_is_stopped(kind: type[Made]) -> None:
    parity = found(kind(table()), kind="q8_0")
    assert parity.relative == 0 and parity.problems == ["2 of its greedy replies are others"]


def test_a_reply_that_parts_at_a_tie_is_explained() -> None:
    own, other = table(), table()
    first, second = own[3].topk(2).indices.tolist()
    own[3, second] = own[3, first] - 1e-3
    other[3] = own[3]
    other[3, second] = own[3, first] + 1e-3
    reference = Reference.of(Made(own), PROMPTS, ())
    parity = compare(reference, Consumer("a program", Made(other)), TOLERANCES["f16"])
    assert parity.agreed < parity.greedy and parity.unexplained == 0 and parity.problems == []
    assert parity.before is None and parity.after is None


def test_what_was_learned_may_not_be_lost_in_the_rounding() -> None:
    """A little was learned: less than the tolerance allows, so that the distance alone would not tell."""
    base, run = table(), table() + 0.05 * table(1)
    untouched = [base[list(prompt.tokens)] for prompt in PROMPTS]
    reference = Reference.of(Made(run), PROMPTS, (), untouched=untouched)

    def judged(exported: torch.Tensor) -> Parity:
        return compare(reference, Consumer("a program", Made(exported)), TOLERANCES["q8_0"])

    kept = judged(run + 0.01 * table(2))
    assert kept.problems == [] and kept.learned is not None and kept.rounded is not None and kept.from_base is not None
    assert kept.rounded < kept.learned < 0.15 and abs(kept.from_base - kept.learned) < kept.rounded
    lost = judged(base)
    assert lost.from_base == 0 and lost.relative < 0.15
    (problem,) = lost.problems
    assert problem.startswith("it is nearer to the untouched base (0) than to the run (0.0")
    assert found(Made(table())).learned is None, "a linear head, of which an untouched base has none"


@pytest.mark.parametrize(
    ("tokens", "template", "problem"),
    [
        (False, True, "its tokenizer reads texts otherwise"),
        (True, False, "its chat template writes conversations other"),
    ],
)
def test_tokens_and_template_count(tokens: bool, template: bool, problem: str) -> None:
    (said,) = found(Made(table()), tokens, template).problems
    assert said.startswith(problem)


def test_the_held_out_records_count_by_themselves() -> None:
    parity = found(Made(table()))
    assert parity.before is not None
    log_p = table().log_softmax(1)
    right = [log_p[2, 5] + log_p[5, 4], log_p[2, 3] + log_p[3, 4]]
    assert parity.before.loss == pytest.approx(-float(right[0]) / 2)
    assert parity.before.score == float(right[0] > right[1])
    worse = replace(parity, after=replace(parity.before, loss=parity.before.loss + 0.5))
    assert worse.problems == ["its loss differs by 0.5 nats (allowed 0.0001)"]
    worse = replace(parity, after=replace(parity.before, score=1 - parity.before.score))
    assert worse.problems == ["its score differs by 1 (allowed 0)"]


class Head:
    def __init__(self, logits: list[list[float]]) -> None:
        self.found = torch.tensor(logits)

    def logits(self, asked: Asked) -> torch.Tensor:
        return self.found

    def greedy(self, asked: Asked, count: int) -> list[int]:
        return []


def test_heads_are_scored_by_their_classes() -> None:
    tagged = Held((Example.marked((1, 2, 3), ((0, 1), (1, 0), (2, 1)), 0),))
    voice = Head([[0.0, 2.0], [1.0, 0.0], [3.0, 0.0]])
    found = Reference.of(voice, [Asked((1, 2, 3), (0, 1, 2))], [tagged]).scored
    want = torch.nn.functional.cross_entropy(voice.found, torch.tensor([1, 0, 1]))
    assert found is not None and found.loss == pytest.approx(float(want)) and found.score == pytest.approx(2 / 3)
    several = Held(
        (Example.marked((1, 2), ((WHOLE, 1), (WHOLE, 2)), 0),), independent=True
    )  # the first, not the second
    voice = Head([[2.0, -1.0]])
    found = Reference.of(voice, [Asked((1, 2), (WHOLE,))], [several]).scored
    want = torch.nn.functional.binary_cross_entropy_with_logits(voice.found[0], torch.tensor([1.0, 0.0]))
    assert found is not None and found.loss == pytest.approx(float(want)) and found.score == 1.0


# ---- whole exports


def test_a_forgotten_adapter_is_stopped(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heptune.tuning.rounds.merged", lambda *everything: None)
    with pytest.raises(ParityError, match=r"nearer to the untouched base \(0\.\d+\) than to the run"):
        heptune.export(runs("lora").folder, "gguf", out=tmp_path / "out", type="q8_0")
    assert list(tmp_path.iterdir()) == []


def test_damaged_weights_are_stopped_and_nothing_stays(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = merged.write

    def damaging(job: object, folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        own(job, folder)  # type: ignore[arg-type]
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.0.mlp.up_proj.weight"][0] += 1.0
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr("heptune.shipping.export.FORMATS", {"hf": replace(FORMATS["hf"], write=damaging)})
    (tmp_path / "out").mkdir()  # an empty folder may be named
    with pytest.raises(ParityError, match=r"the export of .* to hf, loaded by transformers, .* its logits differ by"):
        heptune.export(runs("lora").folder, "hf", out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and not list((tmp_path / "out").iterdir())


def test_a_lost_template_is_stopped(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(own: object, template: ChatTemplate, folder: Path) -> None:
        changed = tiny_tokenizer()
        changed.chat_template = template.source.replace("<|im_end|>", "")
        changed.save_pretrained(folder)

    monkeypatch.setattr("heptune.shipping.merged.write_tokenizer", other)
    with pytest.raises(ParityError, match="its chat template writes conversations otherwise"):
        heptune.export(runs("lora").folder, "hf", out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_no_program_loads_is_stopped(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(job: object, folder: Path) -> None:
        merged.write(job, folder)  # type: ignore[arg-type]
        (folder / "model.safetensors").unlink()

    monkeypatch.setattr("heptune.shipping.export.FORMATS", {"hf": replace(FORMATS["hf"], write=cut)})
    with pytest.raises(ParityError, match=r"could not be loaded back \(OSError: .*no file named"):
        heptune.export(runs("lora").folder, "hf", out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_reads_otherwise_is_seen() -> None:
    template = ChatTemplate(tiny_tokenizer())
    assert tokenizer.tokens_agree(template, template.encode)
    assert not tokenizer.tokens_agree(template, lambda text: template.encode(text.replace("  ", " ")))
    render = tokenizer.rendered_by(tiny_tokenizer())
    assert tokenizer.template_agrees(template, render)
    assert not tokenizer.template_agrees(template, lambda turns, tools, generate: render(turns, tools, True))


def test_a_run_that_learned_nothing_is_told(bases: Any, data: Any, tmp_path: Path) -> None:
    none = small("lora", learning_rate=1e-12)
    run = heptune.tune(bases("llama"), data["chat"], technique=none, out=tmp_path / "run", **FEW)
    told: list[object] = []
    made = heptune.export(run.folder, "hf", out=tmp_path / "out", listener=told.append)
    assert made.parities[0].learned is not None and made.parities[0].learned < 1e-6
    assert any(isinstance(event, Note) and "it has learned nothing" in event.text for event in told)


def test_an_interruption_leaves_nothing(runs: Runs, tmp_path: Path) -> None:
    def stop(event: object) -> None:
        if getattr(event, "what", "") == "asking transformers":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        heptune.export(runs("lora").folder, "hf", out=tmp_path / "out", listener=stop)
    assert list(tmp_path.iterdir()) == []


def test_records_that_are_gone_are_told_and_not_compared(bases: Any, tmp_path: Path) -> None:
    talks = write(tmp_path / "talks.jsonl", [{"prompt": f"What is {i}?", "completion": f"{i}"} for i in range(30)])
    run = heptune.tune(bases("llama"), talks, technique=small("lora"), out=tmp_path / "run", **FEW)
    talks.unlink()
    told: list[object] = []
    made = heptune.export(run.folder, "hf", out=tmp_path / "out", listener=told.append)
    assert made.parities[0].records == 0 and made.parities[0].before is None
    assert any(isinstance(e, Note) and "held-out records are not compared" in e.text for e in told)
    assert json.loads((tmp_path / "out/parity.json").read_text("utf-8"))["parity"][0]["after"] is None


def test_where_nothing_can_be_exported(runs: Runs, tmp_path: Path) -> None:
    run = runs("lora").folder
    with pytest.raises(UsageError, match=r"there is no format named 'ggf'; did you mean gguf"):
        heptune.export(run, "ggf")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    for taken in (tmp_path / "full", tmp_path / "full/file"):
        with pytest.raises(UsageError, match="is there already and not empty; choose another --out"):
            heptune.export(run, "hf", out=taken)
    for size, problem in (("5 stones", "is no amount of memory"), ("1B", "a file has at least 1.0 KiB")):
        with pytest.raises(UsageError, match=problem):
            heptune.export(run, "hf", out=tmp_path / "out", max_shard_size=size)
    with pytest.raises(RunError, match="is no run directory"):
        heptune.export(tmp_path, "hf")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "manifest.json").write_text(json.dumps({**heptune.Run(run).manifest, "status": "interrupted"}))
    with pytest.raises(RunError, match=r"is not finished .*heptune resume"):
        heptune.export(unfinished, "hf", out=tmp_path / "out")
