"""What can stand on one base, what cannot, and what is computed once."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

import heptune
from heptune import api
from heptune.core.errors import RunError, UsageError
from heptune.service.engine import GoneError
from heptune.service.fleet import Fleet, names_of
from served import Make, ask, greedy, technique_of, until_done

CHATS = ("full chat", "freeze chat", "lora")
QUESTIONS = ("What is 7?", "Who wrote the book, and when?")


def said(fleet: Fleet, names: list[str]) -> dict[tuple[str, str], list[int]]:
    asked = {(name, question): ask(fleet.get(name), question)[0] for question in QUESTIONS for name in names}
    for (name, _), reply in asked.items():
        fleet.get(name).engine.submit(reply)
    until_done(fleet)
    return {key: list(reply.said) for key, reply in asked.items()}


def test_settings_and_rounds_of_every_kind_share_a_base(
    base: Path, conversations: Path, make: Make, fleet_of: Callable[..., Fleet]
) -> None:
    lora = make("lora", base, conversations, technique_of("lora"))
    settings = {
        "dora": heptune.Lora(rank=4, dora=True, learning_rate=3e-2),
        "head": heptune.Lora(rank=4, targets=("head", "mlp"), learning_rate=3e-2),
        "anchors": heptune.PTuning(prompt_template="{p:3} text {p:2}", learning_rate=0.1),
        "houlsby": heptune.Adapter(variant="houlsby", learning_rate=3e-2),
        "parallel": heptune.Adapter(variant="parallel", learning_rate=3e-2),
    }
    runs = {name: make(name, base, conversations, technique) for name, technique in settings.items()}
    runs["in 4 bits"] = make("in 4 bits", base, conversations, technique_of("prompt"), quantize="nf4")
    for onto in ("continue", "stack", "merge"):
        runs[onto] = make(onto, lora, conversations, technique_of("lora"), onto=onto)
    runs["prompt on merged"] = make("prompt on merged", lora, conversations, technique_of("prompt"), onto="merge")
    runs["adapter on lora"] = make("adapter on lora", lora, conversations, technique_of("adapter"), onto="stack")
    fleet = fleet_of({**runs, "lora": lora})
    assert len(fleet.engines) == 1
    want = {(name, question): greedy(folder, question) for name, folder in runs.items() for question in QUESTIONS}
    assert len({tuple(tokens) for tokens in want.values()}) > len(want) * 3 // 4  # they do say different things
    assert said(fleet, list(runs)) == want


def test_what_changed_the_base_itself_gets_a_model_of_its_own(
    base: Path, conversations: Path, make: Make, fleet_of: Callable[..., Fleet]
) -> None:
    runs = {name: make(name, base, conversations, technique_of(name.split()[0])) for name in CHATS}
    stacked = make("prompt on full", runs["full chat"], conversations, technique_of("prompt"), onto="stack")
    merged = make("merged, then 4 bits", runs["lora"], conversations, technique_of("qlora"), onto="merge")
    runs |= {"prompt on full": stacked, "merged, then 4 bits": merged}
    fleet = fleet_of(runs)
    assert len(fleet.engines) == 5
    assert said(fleet, list(runs)) == {
        (name, question): greedy(folder, question) for name, folder in runs.items() for question in QUESTIONS
    }


def test_a_base_in_4_bits_stays_there_as_long_as_all_runs_want_it(
    runs: dict[str, Path], base: Path, conversations: Path, make: Make, fleet_of: Callable[..., Fleet]
) -> None:
    prompt = make("in 4 bits", base, conversations, technique_of("prompt"), quantize="nf4")
    fleet = fleet_of({"qlora": runs["qlora"], "prompt": prompt})
    from heptune.models.quantization import QuantizedLinear

    anatomy = fleet.engines[0].anatomy
    assert all(isinstance(anatomy.module(site), QuantizedLinear) for site in anatomy.select(["linear"]))
    want = {("qlora", q): greedy(runs["qlora"], q) for q in QUESTIONS} | {
        ("prompt", q): greedy(prompt, q) for q in QUESTIONS
    }
    assert said(fleet, ["qlora", "prompt"]) == want
    with pytest.raises(RunError, match="in 4 bits"):
        fleet.load("late", runs["lora"])


def test_the_base_answers_as_if_nothing_stood_on_it(
    base: Path, runs: dict[str, Path], fleet_of: Callable[..., Fleet]
) -> None:
    alone, among = fleet_of({"lora": runs["lora"]}), fleet_of(runs)
    want = said(alone, ["tiny"])
    assert said(among, ["tiny", *runs]) | want == said(among, ["tiny", *runs])


def test_whoever_comes_and_goes_changes_nothing_for_the_others(
    runs: dict[str, Path], fleet_of: Callable[..., Fleet]
) -> None:
    """Three places for forty replies of many lengths: slots move, pools come and go, beginnings are reused."""
    draw = random.Random(1)
    fleet = fleet_of(runs, replies=3, cache_bytes=600 << 10)
    engine = fleet.engines[0]
    alone: dict[tuple[str, str, int], list[int]] = {}
    asked = []
    for _ in range(40):
        name, limit = draw.choice(sorted(runs)), draw.choice([1, 3, 9, 20, 230])
        question = "What is " + "the capital and " * draw.choice([0, 1, 2, 8]) + f"{draw.randrange(3)}?"
        reply, heard = ask(fleet.get(name), question, limit)
        engine.submit(reply)
        asked.append((name, question, limit, reply, heard))
        for _ in range(draw.randrange(4)):
            engine.turn()
        if draw.random() < 0.15:
            engine.cancel(reply)
    until_done(fleet)
    ended = [each for each in asked if each[4].reason != "cancelled"]
    assert 20 < len(ended) < 40 and engine.counts.cached_tokens > 0
    for name, question, limit, reply, _ in ended:
        key = (name, question, limit)
        if key not in alone:
            alone[key] = greedy(runs[name], question, limit)
        assert list(reply.said) == alone[key]
    assert not engine.active and engine.cache_bytes == 0


def test_a_shared_beginning_is_computed_once(runs: dict[str, Path], fleet_of: Callable[..., Fleet]) -> None:
    fleet = fleet_of({"lora": runs["lora"], "prefix": runs["prefix"]})
    engine, served = fleet.engines[0], fleet.get("lora")
    instruction = "Answer with one word, please. " * 8
    replies = [ask(served, f"{instruction}{number}", 4)[0] for number in range(5)]
    for reply in replies:
        engine.submit(reply)
    until_done(fleet)
    shared = len(served.template.tokenizer.encode(instruction))
    assert replies[0].cached == 0 and all(reply.cached >= shared for reply in replies[1:])
    again = ask(served, f"{instruction}9", 4)[0]  # and it is kept
    engine.submit(again)
    other = ask(fleet.get("prefix"), f"{instruction}9", 4)[0]  # but is another model's business
    engine.submit(other)
    until_done(fleet)
    assert again.cached >= shared and other.cached == 0


def test_the_next_turn_of_a_conversation_computes_what_is_new(
    runs: dict[str, Path], fleet_of: Callable[..., Fleet]
) -> None:
    fleet = fleet_of({"adapter": runs["adapter"]})
    served = fleet.get("adapter")
    first, heard = ask(served, "What is 7?", 8)
    served.engine.submit(first)
    until_done(fleet)
    talk = [api.Message("user", "What is 7?"), api.Message("assistant", heard.text), api.Message("user", "And 8?")]
    second, _ = ask(served, "", 8)
    second.tokens = served.chat_tokens(talk)
    second.prompt = len(second.tokens)
    served.engine.submit(second)
    until_done(fleet)
    assert second.cached >= first.prompt


def test_kept_beginnings_stay_within_their_memory(runs: dict[str, Path], fleet_of: Callable[..., Fleet]) -> None:
    fleet = fleet_of({"lora": runs["lora"]}, cache_bytes=1 << 20)
    engine = fleet.engines[0]
    for number in range(30):
        engine.submit(ask(fleet.get("lora"), f"{number} " * 30, 3)[0])
        until_done(fleet)
        assert engine.kept.size_bytes <= 1 << 18
    assert engine.kept.size_bytes > 1 << 17
    fleet.unload("lora")
    assert engine.kept.size_bytes == 0


def test_unloading_ends_a_runs_replies(runs: dict[str, Path], fleet_of: Callable[..., Fleet]) -> None:
    fleet = fleet_of({"lora": runs["lora"], "prompt": runs["prompt"]})
    reply, heard = ask(fleet.get("lora"), "What is 7?", 100)
    other, kept = ask(fleet.get("prompt"), "What is 7?", 5)
    engine = fleet.engines[0]
    engine.submit(reply)
    engine.submit(other)
    engine.turn()
    fleet.unload("lora")
    until_done(fleet)
    assert heard.reason == "cancelled" and kept.reason in ("stop", "length")
    with pytest.raises(UsageError, match="no model 'lora'"):
        fleet.get("lora")


def test_what_was_asked_of_a_model_that_went_meanwhile_is_refused(
    runs: dict[str, Path], fleet_of: Callable[..., Fleet]
) -> None:
    """It would be answered by the base."""
    fleet = fleet_of({"lora": runs["lora"], "prefix": runs["prefix"]})
    served = fleet.get("prefix")
    engine = served.engine
    reply, _ = ask(served, "What is 7?", 5)
    later = served.alone(lambda: 1)
    fleet.unload("prefix")
    with pytest.raises(GoneError, match="unloaded"):
        engine.submit(reply)
    engine.turn()
    with pytest.raises(GoneError, match="unloaded"):
        later.result(1)
    engine.stop()
    with pytest.raises(GoneError, match="stops"):
        engine.submit(ask(fleet.get("lora"), "What is 7?", 5)[0])
    with pytest.raises(GoneError, match="stops"):
        fleet.get("lora").alone(lambda: 1)


def test_a_prompt_of_nothing_is_refused(runs: dict[str, Path], fleet_of: Callable[..., Fleet]) -> None:
    for name in ("lora", "prefix", "prompt"):
        with pytest.raises(UsageError, match="no tokens"):
            fleet_of({name: runs[name]}).get(name).plain_tokens([])


def test_names_of_runs(tmp_path: Path, runs: dict[str, Path]) -> None:
    assert names_of([str(runs["lora"]), f"other={runs['lora']}"]) == {"lora": runs["lora"], "other": runs["lora"]}
    with pytest.raises(UsageError, match="NAME="):
        names_of([str(runs["lora"]), str(runs["lora"])])
    with pytest.raises(RunError, match="no run directory"):
        names_of([str(tmp_path)])
