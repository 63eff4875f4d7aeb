"""A linear head begins as a logistic regression on the hidden states, and linear probes are honest rivals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from heptune.core.events import ignore
from heptune.core.seeds import generator
from heptune.engine.forward import Forward
from heptune.models.anatomy import dissect
from heptune.scoring import baselines, probe
from heptune.scoring.probe import start_from_probe
from heptune.scoring.score import Scorer, readout_of
from heptune.tasks.example import Example
from heptune.tasks.label import Label
from heptune.tasks.template import PlainText
from tiny import VOCABULARY, tiny_encoder, tiny_encoder_tokenizer


def scorer_of(task: Label) -> Scorer:
    forward = Forward(dissect(tiny_encoder("bert").double()))
    forward.readout = readout_of(task, forward.anatomy, 0)
    return Scorer(forward, PlainText(tiny_encoder_tokenizer()), 64, 500)  # type: ignore[arg-type]


def texts(count: int) -> list[tuple[int, ...]]:
    draw = np.random.default_rng(0)
    return [tuple(map(int, draw.integers(3, VOCABULARY, 6))) for _ in range(count)]


@pytest.mark.parametrize("classes", [2, 3])
def test_the_head_says_what_the_regression_says(classes: int) -> None:
    scorer = scorer_of(Label(tuple("abc"[:classes])))
    examples = [Example.marked(t, ((0, t[0] % classes),), i) for i, t in enumerate(texts(40))]
    readout = scorer.forward.readout
    assert readout is not None
    start_from_probe(readout, scorer, examples, 0, ignore)
    said = np.concatenate(scorer.seen(examples, "looking"))
    states = np.concatenate(scorer.features(examples, "looking"))
    code = np.array([code for e in examples for _, code in e.marks])
    scaled = StandardScaler().fit_transform(states)
    model = LogisticRegression(max_iter=300, C=0.1, random_state=0).fit(scaled, code)
    want = np.log(model.predict_proba(scaled))
    got = said - np.logaddexp.reduce(said, axis=1, keepdims=True)
    np.testing.assert_allclose(got, want, atol=1e-3)


def test_a_class_that_the_examples_lack_is_unlikely_and_the_start_is_reproducible() -> None:
    scorer = scorer_of(Label(("a", "b", "c")))
    examples = [Example.marked(t, ((0, 2 * (t[0] % 2)),), i) for i, t in enumerate(texts(30))]
    readout = scorer.forward.readout
    assert readout is not None
    start_from_probe(readout, scorer, examples, 0, ignore)
    first = readout.weight.detach().clone()
    assert all(part[0].argmax() != 1 for part in scorer.seen(examples, "looking"))
    start_from_probe(readout, scorer, examples, 0, ignore)
    assert torch.equal(first, readout.weight)


def test_of_many_marks_a_draw_is_learned_from_and_no_other_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "MARKS", 25)
    scorer = scorer_of(Label(("a", "b")))
    examples = [Example.marked(t, tuple((p, t[p] % 2) for p in range(6)), i) for i, t in enumerate(texts(30))]
    looked: list[Example] = []
    own = Scorer.features
    monkeypatch.setattr(Scorer, "features", lambda self, some, *rest: looked.extend(some) or own(self, some, *rest))
    readout = scorer.forward.readout
    assert readout is not None
    start_from_probe(readout, scorer, examples, 3, ignore)
    assert sum(len(example.marks) for example in looked) == 25 and len(looked) < 30
    every = [(e.record, *mark) for e in examples for mark in e.marks]
    chosen = np.sort(generator(3, "probe", "marks").permutation(180)[:25])
    assert [(e.record, *mark) for e in looked for mark in e.marks] == [every[i] for i in chosen]


def test_independent_classes_of_which_some_are_always_or_never_there() -> None:
    scorer = scorer_of(Label(("a", "b", "c"), several=True))
    examples = [Example.marked(t, ((0, t[0] % 2), (0, 3), (0, 4)), i) for i, t in enumerate(texts(30))]
    readout = scorer.forward.readout
    assert readout is not None
    start_from_probe(readout, scorer, examples, 0, ignore)
    said = np.stack([part[0] for part in scorer.seen(examples, "looking")])
    assert (said[:, 1] > 0).all() and (said[:, 2] < 0).all()
    right = (said[:, 0] > 0) == np.array([e.marks[0][1] == 1 for e in examples])
    assert right.mean() > 0.8


@pytest.mark.parametrize("several", [False, True])
def test_a_linear_rival_learns_what_is_linear(several: bool) -> None:
    draw = np.random.default_rng(0)
    states = draw.standard_normal((200, 5))
    truth = states[:, :3] > 0 if several else np.eye(3, dtype=bool)[states[:, :3].argmax(1)]
    said = baselines.linear(states[:150], truth[:150], states[150:], several=several)
    assert said.shape == (50, 3) and (said == truth[150:]).all(1).mean() > 0.8


def test_words_without_letters_get_the_most_common_answer() -> None:
    truth = np.eye(2, dtype=bool)[[0, 1, 1]]
    said = baselines.tfidf_linear(["!", "?", "."], truth, ["!!", "??"])
    assert said.tolist() == [[False, True]] * 2
