"""The plan: what it says is consistent, its suggestions hold when planned again, and it answers without torch."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

from heptune import techniques
from heptune.cli.main import app, main
from heptune.core.errors import BaseModelError, UsageError
from heptune.engine.settings import Settings
from heptune.planning.fit import options_of
from heptune.planning.hardware import accelerator
from heptune.planning.plan import Plan, TechniquePlan, plan
from heptune.techniques.lora import Lora
from tiny import tiny_model, tiny_tokenizer

GIB = 2**30
BASES = ("smollm2-135m", "llama-3.2-1b", "llama-3.1-8b")
SETTINGS = set(Settings.__dataclass_fields__)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No races of this machine, no bases fetched before, no hub."""
    monkeypatch.setenv("HEPTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("heptune.planning.priors.cache_folder", lambda: tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def parsed(words: tuple[str, ...]) -> dict[str, Any]:
    """The command line's own parser on a suggested command."""
    group: Any = typer.main.get_command(app)
    return group.commands[words[0]].make_context("heptune", list(words[1:])).params


# ---- what is said


def test_every_technique_is_planned_and_every_part_adds_up() -> None:
    made = plan("llama-3.2-1b", gpu="RTX 4090")
    assert [one.technique for one in made.techniques] == techniques.names()
    for one in made.techniques:
        assert one.estimate is not None and one.problem is None
        parts = one.estimate.memory
        assert one.estimate.phases["train"] == parts.total + one.estimate.overhead_bytes
        assert min(vars(parts).values()) >= 0 and parts.weights > 0 and parts.optimizer == 8 * one.trainable
        needed = {name: size for name, size in one.estimate.phases.items() if name != "merge"}
        assert one.estimate.peak_bytes == max(needed.values())
        assert set(needed) == {"load", "train", "evaluate", "save"}
        assert ("merge" in one.estimate.phases) == ("mergeable" in techniques.capabilities(one.technique))
        timing = one.estimate.timing
        assert timing is not None and timing.steps == one.steps
        expected = timing.steps * timing.step_s + timing.validations * timing.validation_s
        assert timing.total_s == pytest.approx(expected)


def test_weights_have_the_type_that_tune_gives_them() -> None:
    on_gpu, shape = plan("llama-3.2-1b", memory="80GB"), plan("llama-3.2-1b", memory="80GB").base.shape
    on_cpu = plan("llama-3.2-1b", machine=replace(accelerator("RTX 4090"), kind="cpu", dtype="float32"))
    for one in on_gpu.techniques:
        assert one.dtype == ("float32" if "trains_base" in techniques.capabilities(one.technique) else "bfloat16")
    assert {one.dtype for one in on_cpu.techniques} == {"float32"}
    prompt = on_gpu.of("prompt").estimate
    assert prompt is not None and prompt.memory.weights == pytest.approx(2 * shape.parameters, rel=0.01)
    cpu_prompt = on_cpu.of("prompt").estimate
    assert cpu_prompt is not None and cpu_prompt.memory.weights == pytest.approx(4 * shape.parameters, rel=0.01)


def test_the_json_holds_everything_and_is_json() -> None:
    made = plan("llama-3.1-8b", memory="24GB")
    found = json.loads(json.dumps(made.to_json(), allow_nan=False))
    assert set(found) == {
        *("schema", "base", "workload", "target", "settings", "techniques", "recommendation", "notes", "command")
    }
    for one in found["techniques"]:
        assert set(one) == {
            *("technique", "problem", "fits", "fits_with_change", "trainable", "trainable_share", "dtype", "quantized"),
            *("artifact_bytes", "serving", "steps", "estimate", "change", "nearest", "devices_needed", "prior"),
        }
        parts = {"weights", "gradients", "optimizer", "activations", "logits", "workspace", "overhead"}
        assert set(one["estimate"]["memory_bytes"]) == parts
        assert one["estimate"]["time"] is None, "an amount of memory says nothing about speed"
        assert one["prior"]["words"] in ("among the best", "somewhat behind", "clearly behind", "no comparison known")
    assert found["workload"]["assumed"] and "assumed" in found["workload"]["said"][0]
    assert found["settings"] == json.loads(json.dumps(vars(Settings())))


# ---- fitting


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("memory_gib", [2, 8, 20])
def test_a_suggested_change_fits_when_it_is_planned_again(base: str, memory_gib: int) -> None:
    made = plan(base, memory=memory_gib * GIB)
    for one in made.techniques:
        assert one.estimate is not None
        if one.estimate.fits:
            assert one.change is None and one.nearest is None
            continue
        if one.change is not None:
            again = plan(base, memory=memory_gib * GIB, technique=one.technique, **one.change.changes).techniques[0]
            assert again.estimate is not None and again.estimate.fits, (one.technique, one.change.options)
            assert again.estimate.peak_bytes == one.change.estimate.peak_bytes
            _is_smallest(base, memory_gib * GIB, one)
        else:
            assert one.nearest is not None and one.nearest.estimate.peak_bytes > memory_gib * GIB
            assert one.nearest.estimate.peak_bytes <= one.estimate.peak_bytes


def _is_smallest(base: str, memory: int, one: TechniquePlan) -> None:
    """Leaving out any one part of the change does not fit any more."""
    assert one.change is not None
    for left_out in one.change.changes:
        kept = {name: value for name, value in one.change.changes.items() if name != left_out}
        less = plan(base, memory=memory, technique=one.technique, **kept).techniques[0]
        assert less.estimate is not None and not less.estimate.fits, (one.technique, left_out)


def test_more_memory_never_makes_less_fit() -> None:
    prices = {}
    for memory_gib in (4, 10, 20, 48, 192):
        for one in plan("llama-3.1-8b", memory=memory_gib * GIB).techniques:
            price = 0 if one.estimate is not None and one.estimate.fits else one.price if one.change else 10**6
            assert price <= prices.get(one.technique, price), (one.technique, memory_gib)
            prices[one.technique] = price
    assert set(prices.values()) == {0}, "192 GiB are enough for everything"


def test_a_base_that_is_trained_is_never_quantized() -> None:
    for one in plan("llama-3.1-8b", memory="12GB").techniques:
        changes = (one.change or one.nearest).changes if one.change or one.nearest else {}
        if "trains_base" in techniques.capabilities(one.technique):
            assert "quantize" not in changes and not one.quantized
    made = plan("llama-3.2-1b", memory="24GB", quantize="nf4")
    assert "cannot be trained" in str(made.of("full").problem) and made.of("lora").quantized


def test_recomputing_takes_less_memory_and_more_time() -> None:
    plain = plan("llama-3.1-8b", gpu="H100 80GB", technique="lora").techniques[0].estimate
    again = plan("llama-3.1-8b", gpu="H100 80GB", technique="lora", recompute=True).techniques[0].estimate
    assert plain is not None and again is not None and plain.timing is not None and again.timing is not None
    assert again.memory.activations < plain.memory.activations / 3
    assert 1.1 < again.timing.step_s / plain.timing.step_s < 1.6


def test_devices_hold_everything_or_a_share() -> None:
    """Where everything fits on each device, it stays there; where not, weights, gradients and moments are divided."""
    small = plan("llama-3.2-1b", memory="80GB", devices=8, technique="full").techniques[0].estimate
    large = plan("llama-3.1-8b", memory="80GB", devices=8, technique="full").techniques[0].estimate
    alone = plan("llama-3.1-8b", memory="80GB", technique="full").techniques[0]
    assert small is not None and small.strategy == "data parallel" and small.fits
    assert large is not None and large.strategy == "fully sharded" and large.fits
    assert alone.estimate is not None and not alone.estimate.fits and alone.devices_needed in (2, 4, 8)
    assert large.memory.optimizer == pytest.approx(alone.estimate.memory.optimizer / 8, rel=1e-6)
    assert large.memory.activations == alone.estimate.memory.activations
    assert plan("llama-3.1-8b", memory="40GB", devices=8, technique="qlora").techniques[0].estimate.strategy == (  # type: ignore[union-attr]
        "data parallel"
    )


# ---- data


def write_data(folder: Path, count: int = 120) -> Path:
    words = {"positive": "a lovely evening", "negative": "a dull and empty evening"}
    rows = [{"text": f"{words[label]} {n}" * (1 + n % 5), "label": label} for n in range(count // 2) for label in words]
    path = folder / "reviews.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    base = tmp_path / "base"
    tiny_model("llama").config.save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    return tmp_path


def test_data_is_counted_with_the_bases_own_tokenizer_and_no_weights(folder: Path) -> None:
    data = write_data(folder)
    made = plan(str(folder / "base"), data, memory="8GB", batch_size=8)
    assert not made.workload.assumed and made.workload.task == "classify"
    assert made.workload.examples == 96 and made.layout["steps_per_epoch"] == pytest.approx(12)
    assert "tokenizer" not in " ".join(made.workload.said)
    assert made.layout["rows_per_epoch"] < made.layout["tokens_per_epoch"], "the instruction is shared"
    apart = plan(str(folder / "base"), data, memory="8GB", batch_size=8, share=False)
    assert apart.layout["rows_per_epoch"] > made.layout["rows_per_epoch"]


def test_a_tokenizer_out_of_reach_is_said_and_characters_are_counted(folder: Path) -> None:
    data = write_data(folder)
    told: list[Any] = []
    made = plan("llama-3.1-8b", data, memory="24GB", listener=told.append)
    assert any("a token is taken to be 4 characters" in words for words in made.workload.said)
    assert any("out of reach" in event.text for event in told)
    own = plan(str(folder / "base"), data, memory="8GB")
    assert 0.2 < made.layout["tokens_per_epoch"] / own.layout["tokens_per_epoch"] < 1.2


def test_the_longest_examples_make_the_peak_wherever_they_stand(folder: Path) -> None:
    path = write_data(folder, 1200)
    lines = path.read_text("utf-8").splitlines()
    for number in range(690, 700):  # some of them are training records
        lines[number] = json.dumps({"text": "word " * 400, "label": "positive"})
    path.write_text("\n".join(lines) + "\n", "utf-8")
    made = plan(str(folder / "base"), path, memory="8GB")
    assert made.layout["longest_example"] > 400


def test_too_long_for_the_base_is_a_problem_of_that_technique(folder: Path) -> None:
    made = plan(str(folder / "base"), memory="8GB", examples=10, length=1024)
    assert made.of("lora").problem is None
    assert "--max-length 1004" in str(made.of("prompt").problem), "20 of 1024 positions are taken"
    assert made.advice.technique not in (None, "prompt")


# ---- the next step


def test_the_command_has_exactly_what_was_planned(tmp_path: Path) -> None:
    made = plan("llama-3.1-8b", memory="24GB", epochs=2.0, batch_tokens=4096, share=False)
    assert made.command is not None and made.advice.technique is not None
    words = parsed(made.command)
    assert words["base"] == "meta-llama/Llama-3.1-8B" and words["technique"] == made.advice.technique
    chosen = made.of(made.advice.technique)
    wanted = {"epochs": 2.0, "batch_tokens": 4096, "share": False}
    wanted |= chosen.change.changes if chosen.change is not None else {}
    defaults = vars(Settings())
    assert {n: words[n] for n in SETTINGS if words[n] != defaults[n]} == wanted


def test_changes_are_options_of_the_command_line() -> None:
    changes = {"micro_tokens": 512, "recompute": True, "quantize": "nf4", "max_length": 256, "share": False}
    words = ("tune", "base", "data", *options_of(changes))
    assert {name: parsed(words)[name] for name in changes} == changes


def test_a_base_that_cannot_be_tuned_has_no_command() -> None:
    made = plan("glm-130b", memory="80GB", devices=8, technique="prompt")
    assert made.command is None and any("planned, not tuned" in note for note in made.notes)


def test_hyperparameters_count(folder: Path) -> None:
    small, large = plan("llama-3.2-1b", memory="24GB", technique=[Lora(rank=8), Lora(rank=64)]).techniques
    assert large.trainable == 8 * small.trainable
    assert small.estimate is not None and large.estimate is not None
    assert large.estimate.memory.optimizer == 8 * small.estimate.memory.optimizer


# ---- what goes wrong


def test_a_base_that_is_loaded_whole_before_it_is_packed_is_said() -> None:
    """Whatever its 4 bits take later: loading is a phase of its own."""
    made = plan("llama-3.1-8b", memory="12GB", technique="qlora")
    (one,) = made.techniques
    assert one.estimate is not None and not one.estimate.fits and one.nearest is not None
    phases = one.nearest.estimate.phases
    assert phases["load"] > 12e9 > phases["train"]
    assert any("loaded whole" in note for note in made.notes)


def test_a_relatives_formulas_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan("chatglm3-6b", memory="80GB", technique="lora")
    found = made.to_json()["base"]
    assert found["formulas_of"] != "chatglm2" and found["formulas_why"]
    assert any(f"the formulas of {found['formulas_of']}" in note for note in made.notes)
    assert plan("llama-3.2-1b", memory="80GB", technique="lora").notes == ()


def test_errors_say_the_way_out() -> None:
    with pytest.raises(UsageError, match=r"RTX 4090"):
        plan("llama-3.1-8b", gpu="RTX 4091")
    with pytest.raises(UsageError, match=r"24GB"):
        plan("llama-3.1-8b", memory="plenty")
    with pytest.raises(UsageError, match=r"devices is 0"):
        plan("llama-3.1-8b", memory="24GB", devices=0)
    with pytest.raises(BaseModelError, match=r"did you mean"):
        plan("lama-3.1-8b", memory="24GB")
    with pytest.raises(UsageError, match=r"with data they are counted"):
        plan("llama-3.1-8b", "reviews.jsonl", memory="24GB", examples=10)
    with pytest.raises(UsageError, match=r"no task named 'clasify'"):
        plan("llama-3.1-8b", memory="24GB", task="clasify")


# ---- the command line


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(list(words))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_table_names_every_technique_and_the_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "plan", "llama-3.1-8b", "--gpu", "RTX 4090")
    assert code == 0
    for name in techniques.names():
        assert f"\n{name} " in out
    command = next(line for line in out.splitlines() if line.startswith("Next:"))
    made = plan("llama-3.1-8b", gpu="RTX 4090")
    assert made.command is not None and shlex.split(command)[2:] == list(made.command)
    assert "Only a race on your own data decides" in out


def test_a_technique_in_detail_shows_parts_and_phases(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "plan", "llama-3.1-8b", "--gpu", "RTX 4090", "--technique", "lora")
    assert code == 0 and "█" in out
    for part in ("weights", "gradients", "optimizer", "activations", "logits", "workspace", "phase: merge", "there is"):
        assert part in out
    assert "adapter " not in out.partition("Begin with")[0]


def test_json_is_the_plans(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "plan", "llama-3.2-1b", "--memory", "24GB", "--length", "256", "--recompute", "--json")
    assert code == 0
    assert json.loads(out) == json.loads(
        json.dumps(plan("llama-3.2-1b", memory="24GB", length=256, recompute=True).to_json())
    )


def test_bases_are_listed_and_a_missing_base_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "plan", "--bases")
    assert code == 0 and "glm-130b" in out and "smollm2-135m" in out
    code, _, err = run(capsys, "plan")
    assert code == 2 and "plan needs a base" in err
    code, _, err = run(capsys, "plan", "llama-3.1-8b", "--this-machine", "--gpu", "RTX 4090")
    assert code == 2 and "two targets" in err


@pytest.mark.parametrize(
    "words",
    [
        ["glm-130b", "--memory", "80GB", "--devices", "8"],
        ["llama-3.1-8b", "--gpu", "RTX 4090"],
        ["qwen3-8b", "--gpu", "H100 80GB", "--json"],
        ["gemma-2-9b", "--memory", "24GB", "--technique", "qlora"],
        ["--bases"],
    ],
    ids=" ".join,
)
def test_answers_without_importing_torch(words: list[str]) -> None:
    slow = ("torch", "transformers", "sklearn", "scipy", "heptune.api")
    code = "import sys; from heptune.cli.main import main; main(['plan', *sys.argv[1:]]); "
    code += f"print([m for m in {slow} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert done.stdout.strip()


def test_the_verb_is_the_packages() -> None:
    import heptune

    assert heptune.plan is plan
    assert isinstance(heptune.plan("llama-3.2-1b", memory="24GB", technique="lora"), Plan)
