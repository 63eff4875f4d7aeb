"""Label scores and losses through the forest against the model's own forward, one sequence at a time in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from heptune.core.events import Event, Progress, ignore
from heptune.data.record import Message, Record
from heptune.engine.forward import Forward
from heptune.models.anatomy import dissect
from heptune.scoring.exams.chat import ChatExam, _last_questions
from heptune.scoring.generate import Sampling, reply
from heptune.scoring.score import Scorer, normalised
from heptune.tasks.chat import Chat
from heptune.tasks.classify import Classify
from heptune.tasks.template import ChatTemplate
from tiny import tiny_model, tiny_tokenizer

TEXTS = ("The river is long.", "Who wrote the book?", "The river is wide, and long.", "")
TASK = Classify(("good", "good enough", "bad"), "Which label fits?")


@pytest.fixture(params=["llama", "gpt2", "gemma3"])
def scorer(request: pytest.FixtureRequest) -> Scorer:
    model = tiny_model(request.param).double()
    return Scorer(Forward(dissect(model)), ChatTemplate(tiny_tokenizer()), max_length=256, budget=90)


def brute_force(scorer: Scorer, prompt: list[int], continuation: list[int]) -> float:
    """log p(continuation | prompt) as the sum of one token's log-probability after another."""
    model = scorer.forward.anatomy.model
    total, tokens = 0.0, list(prompt)
    for token in continuation:
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
        total += float(logits.detach().log_softmax(-1)[token])
        tokens.append(token)
    return total


def test_label_scores_are_the_brute_force_sums(scorer: Scorer) -> None:
    records = [Record(i, text=text, label="bad") for i, text in enumerate(TEXTS)]
    expected = [
        [brute_force(scorer, scorer.template.prompt(TASK.messages(t)), scorer.template.reply(x)) for x in TASK.labels]
        for t in TEXTS
    ]
    seen: list[Event] = []
    got = scorer.labels(TASK, records, "scoring", seen.append)
    assert np.allclose(got, expected, rtol=1e-6)
    last = seen[-1]
    assert isinstance(last, Progress) and (last.done, last.total) == (12, 12)


def test_a_smaller_budget_changes_nothing(scorer: Scorer) -> None:
    records = [Record(i, text=text, label="bad") for i, text in enumerate(TEXTS)]
    one = Scorer(scorer.forward, scorer.template, scorer.max_length, budget=1).labels(TASK, records, "scoring")
    assert np.allclose(scorer.labels(TASK, records, "scoring"), one, rtol=1e-6)


def test_normalised_scores_are_probabilities_among_the_labels() -> None:
    p = np.exp(normalised(np.array([[-1000.0, -1001.0], [-2.0, -2.0]])))
    assert np.allclose(p, [[1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))], [0.5, 0.5]])


def test_chat_losses_are_the_brute_force_sums(scorer: Scorer) -> None:
    turns = (Message("user", "Where is it?"), Message("assistant", "Here."), Message("user", "And?"))
    record = Record(1, messages=(*turns, Message("assistant", "There too.")))
    task = Chat(system="Answer.")
    scores = ChatExam(task).answers(scorer, [record], "scoring", ignore)
    first = brute_force(scorer, scorer.template.prompt(task.messages(turns[:1])), scorer.template.reply("Here."))
    second = brute_force(scorer, scorer.template.prompt(task.messages(turns)), scorer.template.reply("There too."))
    assert scores.losses == pytest.approx([-first - second], rel=1e-6)
    replies = [scorer.template.reply("Here."), scorer.template.reply("There too.")]
    assert scores.tokens.tolist() == [sum(map(len, replies))]
    assert len(scores.replies) == 1 and scores.cut == 0
    assert _last_questions(task, [record], 1) == [(task.messages(turns), "", "There too.")]


def test_replies_are_the_likeliest_tokens_and_arrive_as_they_grow(scorer: Scorer) -> None:
    messages = [Message("user", "Where is it?")]
    pieces: list[str] = []
    model = scorer.forward.anatomy.model
    said = reply(scorer.forward.anatomy, scorer.template, messages, Sampling(max_tokens=12), pieces.append)
    tokens = scorer.template.prompt(messages)
    start = len(tokens)
    while len(tokens) < start + 12 and tokens[-1] not in scorer.template.stop_tokens:
        tokens.append(int(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    new = [token for token in tokens[start:] if token not in scorer.template.stop_tokens]
    assert said == scorer.template.tokenizer.decode(new, skip_special_tokens=True) == "".join(pieces)


def test_a_seed_gives_the_same_reply_again(scorer: Scorer) -> None:
    def said(seed: int) -> str:
        sampling = Sampling(max_tokens=12, temperature=1.5, seed=seed)
        return reply(scorer.forward.anatomy, scorer.template, [Message("user", "Where?")], sampling)

    assert said(1) == said(1) and len({said(seed) for seed in range(4)}) > 1
