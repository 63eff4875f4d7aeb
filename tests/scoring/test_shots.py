"""Shots in the prompt: which are taken, what the model reads, and that scores stay exact and comparable."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from heptune.data.record import Message, Record
from heptune.engine.forest import plant
from heptune.engine.forward import Forward
from heptune.models.anatomy import dissect
from heptune.scoring.score import Scorer, normalised
from heptune.scoring.shots import FewShot, FewShotChat, calibrated, calibrated_labels
from heptune.tasks.chat import Chat
from heptune.tasks.classify import Classify
from heptune.tasks.template import ChatTemplate
from tiny import tiny_model, tiny_tokenizer

TRAIN = [Record(i, text=f"text {i}", label=("bad", "good", "odd")[min(i % 5, 2)]) for i in range(40)]
TASK = Classify(("bad", "good", "odd"), "Which label fits?")
TEXTS = [Record(1, text="The river is long.", label="bad"), Record(2, text="Who wrote the book?", label="good")]


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate(tiny_tokenizer())


def talk(*contents: str) -> Record:
    roles = ("user", "assistant")
    return Record(1, messages=tuple(Message(roles[i % 2], content) for i, content in enumerate(contents)))


def log_p(model: torch.nn.Module, prompt: list[int], said: list[int]) -> float:
    """log p(said | prompt) by the model's own forward, one sequence alone."""
    logits = model(input_ids=torch.tensor([prompt + said]), use_cache=False).logits[0].detach().log_softmax(-1)
    return sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(said))


def test_shots_are_balanced_over_labels_and_the_same_for_the_same_seed(template: ChatTemplate) -> None:
    few = FewShot.of(TASK, TRAIN, template, 2000, most=9, seed=3)
    assert Counter(shot.label for shot in few.shots) == {"bad": 3, "good": 3, "odd": 3}
    assert {shot.label for shot in few.shots[:3]} == {"bad", "good", "odd"}
    assert len({shot.line for shot in few.shots}) == 9
    assert few == FewShot.of(TASK, TRAIN, template, 2000, most=9, seed=3)
    assert few != FewShot.of(TASK, TRAIN, template, 2000, most=9, seed=4)
    assert FewShot.from_json(few.to_json()).messages("x") == few.messages("x")


def test_as_many_shots_as_fit(template: ChatTemplate) -> None:
    few = FewShot.of(TASK, TRAIN, template, 300)
    assert 1 < len(few.shots) < 16
    longest = max(len(TASK.encode(record, 0, template, 300)[0].tokens) for record in TRAIN)
    assert few.positions(template) + longest <= 300
    assert all(e.cut == 0 for record in TRAIN for e in few.encode(record, 0, template, 300))
    more = FewShot(TASK.labels, TASK.instruction, (*few.shots, few.shots[0]))
    assert more.positions(template) + longest > 300  # not one more
    assert FewShot.of(TASK, TRAIN, template, 60).shots == ()  # no room at all: zero-shot


def test_a_long_text_is_no_shot_and_loses_its_own_end_only(template: ChatTemplate) -> None:
    book = Record(99, text="long " * 150, label="bad")
    few = FewShot.of(TASK, [*TRAIN, book], template, 400)
    assert few.shots and book not in few.shots
    (example,) = few.encode(book, 0, template, 400)
    shots = few.positions(template)
    assert len(example.tokens) <= 400 and example.cut > 0
    assert example.tokens[:shots] == tuple(template.prompt(few.messages("")))[:shots]


def test_shots_are_earlier_turns_and_labels_are_scored_behind_them(template: ChatTemplate) -> None:
    few = FewShot.of(TASK, TRAIN, template, 600, most=4)
    asked = few.messages("Here.")
    assert [message.role for message in asked] == ["user", "assistant"] * 4 + ["user"]
    assert asked[1].content == few.shots[0].label and asked[-1:] == TASK.messages("Here.")
    model = tiny_model("llama").double()
    scorer = Scorer(Forward(dissect(model)), template, 600, budget=4096)
    expected = [
        [log_p(model, template.prompt(few.messages(record.text or "")), template.reply(x)) for x in TASK.labels]
        for record in TEXTS
    ]
    assert np.allclose(scorer.labels(few, TEXTS, "scoring"), expected, rtol=1e-6)
    assert not np.allclose(scorer.labels(few, TEXTS, "scoring"), scorer.labels(TASK, TEXTS, "scoring"), rtol=1e-3)


def test_a_forest_computes_the_shots_once(template: ChatTemplate) -> None:
    few = FewShot.of(TASK, TRAIN, template, 600, most=6)
    several = [e for i, r in enumerate(TEXTS * 2) for e in few.candidates(r, i, template, 600)]
    alone = [e for i, r in enumerate(TEXTS * 2) for e in TASK.candidates(r, i, template, 600)]
    assert plant(several).rows <= plant(alone).rows + few.positions(template)


def test_calibration_takes_the_leaning_off() -> None:
    """A scorer that knows the answer but leans to one label by four nats is right again; frequencies come back."""
    random = np.random.default_rng(0)
    truth = random.choice(3, 4000, p=[0.6, 0.3, 0.1])
    clean = np.log(np.array([0.6, 0.3, 0.1])) + 2.0 * np.eye(3)[truth] + random.normal(0, 0.5, (4000, 3))
    leaning = clean + np.array([0.0, 0.0, 4.0])
    got = calibrated(leaning[:3000], leaning[3000:], np.array([0.6, 0.3, 0.1]))
    before = (leaning[:3000].argmax(1) == truth[:3000]).mean()
    best = (clean[:3000].argmax(1) == truth[:3000]).mean()
    assert before < 0.5 < best - 0.03 < (got.argmax(1) == truth[:3000]).mean()
    assert np.exp(got).sum(1) == pytest.approx(1.0)
    same = np.log([[0.2, 0.8], [0.6, 0.4]])
    # By hand: mean over the reference 0.4, 0.6; (0.2 / 0.4, 0.8 / 0.6) and (0.6 / 0.4, 0.4 / 0.6), then to sum one.
    expected = [[0.5 / (0.5 + 4 / 3), (4 / 3) / (0.5 + 4 / 3)], [1.5 / (1.5 + 2 / 3), (2 / 3) / (1.5 + 2 / 3)]]
    assert np.exp(calibrated(same, same, np.array([0.5, 0.5]))) == pytest.approx(np.array(expected))


def test_calibrated_labels_read_no_shot_and_no_test_text(template: ChatTemplate) -> None:
    model = tiny_model("llama").double()
    scorer = Scorer(Forward(dissect(model)), template, 600, budget=4096)
    few = FewShot.of(TASK, TRAIN, template, 600, most=4)
    got = calibrated_labels(scorer, few, TEXTS, TRAIN, "scoring")
    rest = [record for record in TRAIN if record not in few.shots]  # 36: fewer than REFERENCE, so all are read
    counts = np.array([sum(record.label == label for record in TRAIN) for label in TASK.labels])
    raw = (scorer.labels(few, records, "scoring") for records in (TEXTS, rest))
    assert got == pytest.approx(calibrated(*raw, counts / 40), rel=1e-6)
    # One text's score does not depend on which others are scored.
    assert got[:1] == pytest.approx(calibrated_labels(scorer, few, TEXTS[:1], TRAIN, "scoring"), rel=1e-6)
    assert not np.allclose(got, normalised(scorer.labels(few, TEXTS, "scoring")))


# ---- conversations


QUESTIONS = [
    talk("Where is the river?", "In France."),
    talk("Who wrote the book?", "She did.", "And when?", "In May."),
    talk("What is the capital?", "Paris."),
]


def test_conversations_behind_shots_keep_their_targets(template: ChatTemplate) -> None:
    task = Chat(system="Answer.")
    few = FewShotChat.of(task, QUESTIONS, template, 800, most=2)
    assert len(few.shots) == 2
    record = talk("Where is the book?", "Here.", "And the river?", "There.")
    (plain,) = task.encode(record, 7, template, 800)
    (shown,) = few.encode(record, 7, template, 800)
    assert (shown.targets, shown.record, shown.cut) == (plain.targets, 7, 0)
    assert len(shown.tokens) == len(plain.tokens) + few.positions(template)
    model = tiny_model("gpt2").double()
    scorer = Scorer(Forward(dissect(model)), template, 800, budget=4096)
    turns = [Message("system", "Answer."), *(m for shot in few.shots for m in shot.messages)]
    first = [*turns, record.messages[0]]
    expected = log_p(model, template.prompt(first), template.reply("Here."))
    expected += log_p(model, template.prompt([*turns, *record.messages[:3]]), template.reply("There."))
    assert scorer.losses([shown], "scoring")[0] == pytest.approx(-expected, rel=1e-6)


def test_a_template_with_a_sequence_for_each_reply_keeps_its_targets_too() -> None:
    """Qwen3's way: earlier replies are rendered otherwise than the last."""
    text = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{% if m['role'] == 'assistant' and loop.last %}{{ '<t>' }}{% endif %}{{ m['content'] + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    template = ChatTemplate(tiny_tokenizer(), text)
    record = talk("Where is the book?", "Here.", "And the river?", "There.")
    plain = Chat().encode(record, 0, template, 800)
    shown = FewShotChat(Chat(), (QUESTIONS[1],)).encode(record, 0, template, 800)
    assert len(plain) == len(shown) == 2
    assert [e.targets for e in shown] == [e.targets for e in plain]
    assert all(len(s.tokens) > len(p.tokens) for s, p in zip(shown, plain, strict=True))


def test_a_conversation_without_room_gets_fewer_shots_and_no_cut(template: ChatTemplate) -> None:
    few = FewShotChat(Chat(), tuple(QUESTIONS))
    record = talk("long " * 20, "Yes. " * 10)
    (plain,) = Chat().encode(record, 0, template, 800)
    for room in (len(plain.tokens), len(plain.tokens) + 60, 800):
        (shown,) = few.encode(record, 0, template, room)
        assert len(shown.tokens) <= room and shown.targets == plain.targets
    assert few.encode(record, 0, template, len(plain.tokens)) == [plain]
    # One that the limit cuts anyway is cut at the same place.
    (cut,) = Chat().encode(record, 0, template, 70)
    assert cut.cut > 0 and few.encode(record, 0, template, 70) == [cut]


def test_a_first_message_by_the_assistant_stays_context(template: ChatTemplate) -> None:
    record = Record(
        1, messages=(Message("assistant", "Hello."), Message("user", "Where?"), Message("assistant", "Yes"))
    )
    (plain,) = Chat().encode(record, 0, template, 400)
    (shown,) = FewShotChat(Chat(), (QUESTIONS[0],)).encode(record, 0, template, 400)
    assert shown.targets == plain.targets and len(shown.tokens) > len(plain.tokens)


def test_retrieval_takes_the_conversation_that_begins_alike() -> None:
    asked = [talk("Who wrote this long book?", "Nobody."), talk("zzz", "What is the capital?")]
    first, second = FewShotChat.nearest(Chat(), QUESTIONS, asked)
    assert first.shots == (QUESTIONS[1],)
    assert second.shots == ()  # what the reply says is not looked at
