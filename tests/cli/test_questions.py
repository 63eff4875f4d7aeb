"""`tune`, `eval` and `chat` with runs that answer and choose, and the same from Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from heptune import api
from heptune.core.errors import RunError, UsageError
from questions import about_things, with_options, write

Ran = Callable[..., Any]


@pytest.fixture(scope="module")
def runs(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    records = {"answer": about_things(40), "choose": with_options(40)}
    for name, rows in records.items():
        data = write(folder / f"{name}.jsonl", rows)
        api.tune(str(base), data, out=folder / name, max_steps=2, max_length=400, batch_size=4, seed=1)
    return {name: folder / name for name in records}


def test_eval_of_answers(heptune: Ran, runs: dict[str, Path]) -> None:
    said = heptune("eval", runs["answer"], "--limit", 3)
    assert said.code == 0, said.err
    assert "answer: 3 examples" in said.out and "exact match" in said.out and "most similar sentence" in said.out
    (kept,) = (runs["answer"] / "evaluations").glob("*.json")
    assert json.loads(kept.read_text("utf-8"))["rows"][0]["metrics"].keys() == {"exact match", "F1"}


def test_eval_of_choices(heptune: Ran, runs: dict[str, Path]) -> None:
    said = heptune("eval", runs["choose"])
    assert said.code == 0, said.err
    assert "choose: 4 examples" in said.out and "base, zero-shot, per character" in said.out


def test_chat_answers_a_question_about_a_passage(heptune: Ran, runs: dict[str, Path], tmp_path: Path) -> None:
    passage = "The book is red. The river is blue."
    file = tmp_path / "passage.txt"
    file.write_text(passage, "utf-8")
    tuned = api.open_run(runs["answer"])
    answer = tuned.answer("What colour is the book?", passage)
    assert answer != tuned.answer("What colour is the book?")
    for given in (passage, file):
        said = heptune("chat", runs["answer"], "--once", "What colour is the book?", "--passage", given)
        assert (said.code, said.out.strip()) == (0, answer.strip())
    file.write_bytes(b"\xff\xfe\x00")
    said = heptune("chat", runs["answer"], "--once", "What?", "--passage", file)
    assert said.code == 2 and "is not UTF-8 text" in said.err
    said = heptune("chat", runs["answer"], "--once", "What?", "--passage", "The book. " * 3000)
    assert said.code == 0, "a text that is too long for a file's name, and for the model"


def test_chat_says_that_there_is_no_answer(
    heptune: Ran, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heptune.tuning.use.reply", lambda *_: "Unanswerable.")
    monkeypatch.setattr("heptune.service.speaking.Speaker.reply", lambda *_: "Unanswerable.")
    assert api.open_run(runs["answer"]).answer("Who?") == ""
    assert heptune("chat", runs["answer"], "--once", "Who?").out.strip() == "(no answer)"


def test_chat_chooses_among_options(heptune: Ran, runs: dict[str, Path]) -> None:
    tuned = api.open_run(runs["choose"])
    options = ["good", "bad!", "fine"]
    found = tuned.choose("Which is best?", options, "There are things.")
    assert set(found) == set(options) and sum(found.values()) == pytest.approx(1)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert tuned.choose("Which is best?", options[::-1], "There are things.") == pytest.approx(found), "no order"
    words = [word for option in options for word in ("--option", option)]
    said = heptune("chat", runs["choose"], "--once", "Which is best?", "--passage", "There are things.", *words)
    lines = [line.split()[:2] for line in said.out.splitlines()]
    assert lines == [[option, f"{probability:.1%}"] for option, probability in found.items()]


def test_nothing_that_is_given_is_ignored(heptune: Ran, runs: dict[str, Path]) -> None:
    said = heptune("chat", runs["choose"], "--once", "Which?")
    assert said.code == 2 and "--option TEXT for each" in said.err
    said = heptune("chat", runs["choose"], "--once", "Which?", "--option", "one")
    assert said.code == 2 and "at least two different options" in said.err
    said = heptune("chat", runs["answer"], "--once", "Which?", "--option", "one")
    assert said.code == 2 and "chooses from no --option" in said.err


def test_asking_a_run_for_what_it_did_not_learn(runs: dict[str, Path]) -> None:
    answering, choosing = api.open_run(runs["answer"]), api.open_run(runs["choose"])
    with pytest.raises(RunError, match=r"learned answer, not choose; ask it with answer\(\)"):
        answering.choose("Which?", ["a", "b"])
    with pytest.raises(RunError, match=r"learned choose, not answer; ask it with choose\(\)"):
        choosing.answer("Who?")
    with pytest.raises(RunError, match=r"learned answer, not classify"):
        answering.classify("Who?")
    with pytest.raises(UsageError, match="at least two different options"):
        choosing.choose("Which?", ["a", "a"])
