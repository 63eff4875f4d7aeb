"""The rules of the verdict as properties, its words on cases made for them, and its JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heptune import techniques
from heptune.core.errors import UsageError
from heptune.racing.conclusion import serving
from heptune.racing.decision import AXES, Contender, Serving, decide
from heptune.racing.verdict import Verdict, judge
from heptune.scoring.statistics import Interval

MIB = 2**20


def contender(
    name: str,
    outcomes: Any,
    kind: str = "technique",
    time_s: float = 100.0,
    memory: int = 900 * MIB,
    artifact: int = 20 * MIB,
    share: float = 0.0,
) -> Contender:
    rows = np.atleast_2d(np.asarray(outcomes, dtype=float))
    seeds = tuple(range(len(rows))) if kind == "technique" else ()
    runs = tuple(f"runs/{name}-{seed}" for seed in seeds)
    serving = Serving(0, 0, share, "nothing more than the base")
    return Contender(name, kind, rows, time_s, memory, artifact, serving, {"rank": 8}, {}, seeds, runs)


def right(share: float, n: int = 400, k: int = 2, seed: int = 0) -> np.ndarray:
    """Answers of k trainings, nearly the same examples right for every contender."""
    random = np.random.default_rng(seed)
    hard = np.random.default_rng(1234).random(n)
    return np.array([hard + 0.05 * random.standard_normal(n) < share for _ in range(k)]).astype(float)


def verdict(*contenders: Contender, **settings: Any) -> Verdict:
    given = {"metric": "accuracy", "higher_is_better": True, "part": "test", **settings}
    return judge(contenders, **given)


# ---- properties of the rules, with scores, costs and ties of every kind


@st.composite
def races(draw: st.DrawFn) -> tuple[list[Contender], dict[str, float], dict[tuple[str, str], bool]]:
    """Contenders with few different values, so that equal ones are common; ties at random, equal scores always tie.

    What is trained takes longer than any baseline, as it does in truth.
    """
    few = st.integers(0, 3)
    count = draw(st.integers(1, 6))
    contenders, scores = [], {}
    for i in range(count):
        kind = draw(st.sampled_from(["technique", "technique", "baseline"]))
        trained = 1000 * (kind == "technique")
        costs = trained + 50 * draw(few), MIB * 300 * draw(few), MIB * 40 * draw(few)
        contenders.append(contender(f"c{i}", [1.0, 0.0], kind, *costs, share=draw(few) / 2))
        scores[f"c{i}"] = draw(few) / 3
    ties = {
        (a, b): scores[a] == scores[b] or draw(st.booleans()) for a in scores for b in scores if a < b
    }  # any pattern may come up: ties are not transitive
    return contenders, scores, ties


def tie(ties: dict[tuple[str, str], bool], a: str, b: str) -> bool:
    return a == b or ties[min(a, b), max(a, b)]


def no_dearer(a: Contender, b: Contender) -> bool:
    return all(a.costs[axis] <= b.costs[axis] for axis in AXES)


@given(races())
def test_the_winner_is_not_dominated_by_one_it_ties_with(race: Any) -> None:
    contenders, scores, ties = race
    winner = next(c for c in contenders if c.name == decide(contenders, scores, ties, ties).winner)
    for other in contenders:
        if tie(ties, other.name, winner.name) and other.name != winner.name:
            better = no_dearer(other, winner) and scores[other.name] >= scores[winner.name]
            assert not better or (other.costs == winner.costs and scores[other.name] == scores[winner.name])


@given(races(), st.randoms(use_true_random=False))
def test_the_order_of_contenders_does_not_matter(race: Any, random: Any) -> None:
    contenders, scores, ties = race
    shuffled = random.sample(contenders, len(contenders))
    assert decide(shuffled, scores, ties, ties) == decide(contenders, scores, ties, ties)


@given(races())
def test_dropping_a_dominated_loser_does_not_change_the_winner(race: Any) -> None:
    contenders, scores, ties = race
    decision = decide(contenders, scores, ties, ties)
    for loser in contenders:
        if loser.name in decision.front or loser.name == decision.winner:
            continue
        left = [c for c in contenders if c is not loser]
        assert decide(left, scores, ties, ties).winner == decision.winner


@given(races())
def test_a_technique_that_wins_beats_the_best_baseline_itself_else_a_baseline_is_the_verdict(race: Any) -> None:
    contenders, scores, ties = race
    decision = decide(contenders, scores, ties, ties)
    kinds = {c.name: c.kind for c in contenders}
    if decision.baseline is None:
        return
    beating = [
        name
        for name, kind in kinds.items()
        if kind == "technique" and scores[name] > scores[decision.baseline] and not tie(ties, name, decision.baseline)
    ]
    assert decision.winner in beating or kinds[decision.winner] == "baseline"
    assert decision.beaten == (kinds[decision.winner] == "technique")
    assert decision.winner in decision.tied and decision.winner in decision.front


@given(races(), st.data())
def test_the_winner_is_near_the_best_of_those_that_may_win(race: Any, data: Any) -> None:
    contenders, scores, ties = race
    near = {pair: scores[pair[0]] == scores[pair[1]] or data.draw(st.booleans()) for pair in ties}
    winner = next(c for c in contenders if c.name == decide(contenders, scores, ties, near).winner)
    open_to_all = decide(contenders, scores, ties, ties)
    assert (winner.kind == "technique") == (
        next(c.kind for c in contenders if c.name == open_to_all.winner) == "technique"
    )
    nobody = decide(contenders, scores, ties, {})  # then it is the best of those that may win
    assert winner.name == nobody.winner or tie(near, winner.name, nobody.winner)
    assert scores[nobody.winner] >= scores[winner.name]


def test_far_behind_and_not_told_apart_does_not_win() -> None:
    """120 examples: 69 % and 80 % right are not told apart among many; the one that says the same to everything costs
    nothing, and would win if every tie went to the cheapest."""
    random = np.random.default_rng(0)

    def answers(share: float, trainings: int = 1) -> np.ndarray:
        return np.array([random.permutation(np.arange(120) < 120 * share) for _ in range(trainings)]).astype(float)

    made = verdict(
        contender("lora", answers(0.80, 2)),
        contender("base, few-shot", answers(0.76), "baseline", 0.0),
        contender("TF-IDF", answers(0.75), "baseline", 0.0, memory=100 * MIB, artifact=0, share=-1),
        contender("most frequent label", answers(0.69), "baseline", 0.0, 50 * MIB, 0, share=-1),
    )
    assert next(c for c in made.contenders if c.name == "most frequent label").tied_with_best
    assert made.winner == "TF-IDF"
    assert "Of the baselines near the best one the cheapest is taken: TF-IDF." in " ".join(made.words)


@given(races())
def test_with_equal_scores_the_cheapest_wins(race: Any) -> None:
    contenders, _, _ = race
    scores = {c.name: 0.5 for c in contenders}
    ties = {(a, b): True for a in scores for b in scores}
    pool = [c for c in contenders if c.kind == "baseline"] or contenders
    winner = decide(contenders, scores, ties, ties).winner
    assert min(c.cost for c in pool) == next(c.cost for c in pool if c.name == winner)


@given(races())
def test_cost_keeps_the_order_of_every_axis(race: Any) -> None:
    contenders, *_ = race
    for a in contenders:
        for b in contenders:
            if no_dearer(a, b):
                assert a.cost <= b.cost


# ---- whole verdicts


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.permutations(range(4)))
def test_the_whole_verdict_does_not_depend_on_the_order(seed: int, order: list[int]) -> None:
    shares = np.random.default_rng(seed).uniform(0.6, 0.9, 4)
    made = [
        contender(f"c{i}", right(s, 150, 2 if i < 3 else 1, seed + i), "technique" if i < 3 else "baseline", 10.0 * i)
        for i, s in enumerate(shares)
    ]
    assert verdict(*made) == verdict(*(made[i] for i in order))


def test_a_clear_winner() -> None:
    found = verdict(
        contender("lora", right(0.9)),
        contender("prompt", right(0.7, seed=1), artifact=0),
        contender("word counts", right(0.6, k=1, seed=2), "baseline", 1.0, 0, MIB, -1.0),
    )
    assert found.winner == "lora"
    who, than, beyond, costs = found.words
    assert who.startswith("lora wins: accuracy 89") and "400 examples (test)" in who
    assert "better than prompt" in than and "do not explain" in than
    assert "better than word counts" in beyond
    assert costs == (
        "Training took 1 min 40 s and 900.0 MiB of memory at its peak; the artifact has 20.0 MiB. "
        "In use: nothing more than the base."
    )
    lora, prompt, words = found.contenders
    assert (lora.tied_with_best, prompt.tied_with_best) == (True, False)
    assert [c.cost_rank for c in found.contenders] == [3, 2, 1] and words.cost == 1.0
    assert all(c.pareto for c in found.contenders)
    assert [t.run for t in lora.seeds] == ["runs/lora-0", "runs/lora-1"] and words.seeds == ()
    assert np.mean([t.score for t in lora.seeds]) == pytest.approx(lora.score.value)


def test_a_tie_goes_to_the_cheapest() -> None:
    found = verdict(contender("full", right(0.9), artifact=500 * MIB), contender("lora", right(0.895, seed=1)))
    assert found.winner == "lora"
    text = " ".join(found.words)
    assert "full and lora cannot be told apart" in text and "cheapest is taken: lora" in text
    assert "would probably tell full and lora apart" in text or "too much alike" in text
    assert [c.name for c in found.contenders] == ["full", "lora"]
    assert found.comparisons[0].a == "full" and found.comparisons[0].tie


def test_nothing_beats_the_best_baseline() -> None:
    found = verdict(
        contender("lora", right(0.81, n=120)),
        contender("few-shot", right(0.80, n=120, k=1, seed=1), "baseline", 0.0, 0, 0, 5.0),
        contender("most frequent", right(0.5, n=120, k=1, seed=2), "baseline", 0.0, 0, 0, -1.0),
    )
    assert found.winner == "few-shot"
    assert found.words[0].startswith("No technique is shown to beat the baselines, so the verdict is the baseline few-")
    assert "does not tell them apart" in found.words[1]
    assert any("It needs no training" in sentence for sentence in found.words)


def test_a_baseline_that_ties_with_a_technique_that_beats_it_not() -> None:
    """The technique is proven, so a cheaper tie among techniques wins, and no baseline."""
    found = verdict(
        contender("lora", right(0.9)),
        contender("prompt", right(0.9, seed=3), artifact=0),
        contender("zero-shot", right(0.6, k=1, seed=2), "baseline", 0.0, 0, 0, 0.0),
    )
    assert found.winner == "prompt" and found.contenders[-1].name == "zero-shot"
    assert any("better than zero-shot" in sentence for sentence in found.words)


def test_thin_evidence_is_said() -> None:
    found = verdict(contender("a", right(0.8, 30, 1)), contender("b", right(0.7, 30, 1, 1)))
    text = " ".join(found.words)
    assert "30 test examples are few" in text and "trained with one seed" in text
    assert "test examples (" in text and " more) would probably tell a and b apart" in text


def test_losses_are_told_in_their_own_direction() -> None:
    random = np.random.default_rng(0)
    base = random.normal(2.0, 0.3, 300)
    tokens = random.integers(5, 50, 300).astype(float)
    good = -np.array([base - 0.4 + 0.02 * random.standard_normal(300) for _ in range(2)])
    found = verdict(
        contender("lora", good),
        contender("untouched base", -base, "baseline", 0.0, 0, 0),
        metric="loss",
        higher_is_better=False,
        weights=tokens,
    )
    assert found.winner == "lora" and not found.higher_is_better
    lora, untouched = found.contenders
    assert untouched.score.value == pytest.approx((base * tokens).sum() / tokens.sum())
    assert lora.score.low < lora.score.value < lora.score.high < untouched.score.low
    (pair,) = found.comparisons
    assert (pair.a, pair.b) == ("lora", "untouched base")
    assert pair.difference.low <= pair.difference.value <= pair.difference.high < 0
    assert pair.difference.value == pytest.approx(lora.score.value - untouched.score.value)
    assert "lower is better" in found.words[0] and "lora scored 0.4" in found.words[1]
    assert lora.seeds[0].score == pytest.approx(-np.average(good[0], weights=tokens))


def test_json_there_and_back() -> None:
    a = replace(contender("a", right(0.8)), metrics={"macro-F1": Interval(0.7, 0.6, 0.8)})
    found = verdict(a, contender("b", right(0.6, k=1), "baseline"), contender("c", right(0.7, k=1), "baseline"))
    values = json.loads(json.dumps(found.to_json()))
    assert Verdict.from_json(values) == found
    assert values == found.to_json()
    assert set(values) == {
        "metric", "higher_is_better", "part", "examples", "level", "winner", "words", "contenders", "comparisons",
        "fronts",
    }  # fmt: skip
    first = values["contenders"][0]
    assert set(first["score"]) == {"value", "low", "high", "level"}
    assert first["metrics"]["macro-F1"]["high"] == 0.8
    assert set(first["serving"]) == {"positions", "parameters", "flops_share", "words"}
    assert set(first["seeds"][0]) == {"seed", "score", "run"}
    assert set(values["comparisons"][0]) == {
        "a", "b", "difference", "p_value", "p_adjusted", "tie", "mcnemar"
    }  # fmt: skip
    assert values["comparisons"][-1]["mcnemar"] is not None and values["comparisons"][0]["mcnemar"] is None


def test_fronts_of_single_costs() -> None:
    found = verdict(
        contender("small", right(0.7), artifact=MIB),
        contender("large", right(0.9), artifact=99 * MIB),
        contender("pointless", right(0.6), artifact=50 * MIB),
    )
    assert found.fronts["artifact"] == ("large", "small") and found.fronts["time"] == ("large",)
    assert [c.pareto for c in found.contenders] == [True, True, False]


def test_one_contender_wins_alone() -> None:
    found = verdict(contender("lora", right(0.8)))
    assert found.winner == "lora" and found.comparisons == () and found.words[0].startswith("lora wins")


def test_who_cannot_stand_in_one_race() -> None:
    with pytest.raises(UsageError, match="'a' occurs twice"):
        verdict(contender("a", [1, 0]), contender("a", [1, 0]))
    with pytest.raises(UsageError, match="one of technique, baseline"):
        verdict(contender("a", [1, 0], "winner"))
    with pytest.raises(UsageError, match="nobody to judge"):
        verdict()
    with pytest.raises(UsageError, match="has 1 seeds for 2 rows"):
        verdict(replace(contender("a", [[1, 0], [1, 1]]), seeds=(1,)))


@pytest.mark.parametrize("name", techniques.names())
def test_what_a_request_costs_is_known_of_every_technique(name: str) -> None:
    """At its default settings, of which P-Tuning leaves the number of virtual tokens open."""
    entry = {"technique": name, "settings": asdict(techniques.build(name))}  # type: ignore[call-overload]
    found = serving(entry, 1000, 50_000)
    assert (found.positions == 20) == (name in ("p_tuning", "p_tuning_v2", "prefix", "prompt"))
    assert found.flops_share == (0.02 if name == "adapter" else 0.0) and found.words
