"""What is served is what the model says: to the token, whoever else is in the batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from heptune import api
from heptune.service.fleet import Fleet
from served import SEVEN, ask, greedy, technique_of, until_done
from tiny import tiny_model, tiny_tokenizer

QUESTIONS = ("What is 7?", "What is the capital of France?", "Who wrote the book, and when? " * 6)


@pytest.fixture(scope="module")
def wanted(runs: dict[str, Path]) -> dict[tuple[str, str], list[int]]:
    return {(name, question): greedy(runs[name], question) for name in SEVEN for question in QUESTIONS}


def test_the_seven_say_different_things(wanted: dict[tuple[str, str], list[int]]) -> None:
    assert len({tuple(wanted[name, QUESTIONS[0]]) for name in SEVEN}) == len(SEVEN)


@pytest.mark.parametrize("name", SEVEN)
def test_alone_it_is_transformers_greedy_generation(
    name: str,
    runs: dict[str, Path],
    wanted: dict[tuple[str, str], list[int]],
    fleet_of: Callable[..., Fleet],
) -> None:
    fleet = fleet_of({name: runs[name]})
    for question in QUESTIONS:
        reply, _ = ask(fleet.get(name), question)
        fleet.get(name).engine.submit(reply)
        until_done(fleet)
        assert list(reply.said) == wanted[name, question]


def test_all_seven_in_one_batch_say_the_same(
    runs: dict[str, Path], wanted: dict[tuple[str, str], list[int]], fleet_of: Callable[..., Fleet]
) -> None:
    fleet = fleet_of(runs)
    assert len(fleet.engines) == 1  # one base
    asked = {}
    for question in QUESTIONS:
        for name in SEVEN:
            reply, heard = ask(fleet.get(name), question)
            fleet.get(name).engine.submit(reply)
            asked[name, question] = (reply, heard)
        fleet.engines[0].step()  # they do not all begin at the same time
    until_done(fleet)
    assert {key: list(reply.said) for key, (reply, _) in asked.items()} == wanted
    for (name, _), (reply, heard) in asked.items():
        tokenizer = fleet.get(name).template.tokenizer
        assert heard.text == tokenizer.decode(list(reply.said), skip_special_tokens=True)


FAMILIES = ("qwen3", "glm4", "gpt2", "gpt_neox", "mistral", "gemma3", "phi3", "smollm3", "olmo2")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_says_in_a_mixed_batch_what_it_says_alone(
    family: str,
    conversations: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    fleet_of: Callable[..., Fleet],
) -> None:
    """Windows, learned positions, sums behind norms and fused projections: LoRA, adapter, prefix and prompt at once."""
    base = tmp_path / family
    tiny_model(family).save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    names = ("lora", "adapter", "p_tuning_v2", "prompt")
    runs = {
        name: api.tune(base, conversations, technique=technique_of(name), out=tmp_path / name, max_steps=2).folder
        for name in names
    }
    fleet = fleet_of(runs)
    asked = {(name, q): ask(fleet.get(name), q, limit=10)[0] for q in QUESTIONS for name in names}
    for reply in asked.values():
        fleet.engines[0].submit(reply)
    until_done(fleet)
    wanted = {(name, q): greedy(runs[name], q, limit=10) for name, q in asked}
    assert {key: list(reply.said) for key, reply in asked.items()} == wanted


def test_what_goes_wrong_with_one_reply_is_its_own(
    runs: dict[str, Path], fleet_of: Callable[..., Fleet], capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = fleet_of({"lora": runs["lora"]})
    (bad, heard), (good, kept) = (ask(fleet.get("lora"), question, 6) for question in QUESTIONS[:2])
    bad.text.add = lambda token: 1 / 0  # type: ignore[assignment, return-value]
    for reply in (bad, good):
        fleet.engines[0].submit(reply)
    until_done(fleet)
    assert heard.reason == "failed" and kept.reason in ("stop", "length")
    assert "ZeroDivisionError" in capsys.readouterr().err
