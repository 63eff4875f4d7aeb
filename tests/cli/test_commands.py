"""The commands from end to end on a tiny model, and their errors."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from heptune.cli import demo
from heptune.cli.evaluate import verdict, without_nan
from heptune.cli.main import main
from heptune.scoring.evaluation import Comparison, Evaluation, Row
from heptune.scoring.statistics import Interval

ESCAPE = "\x1b"


def write_lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(scope="session")
def run(base: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "classify"
    words = [
        "--rank",
        "4",
        "--targets",
        "attention,mlp",
        "--learning-rate",
        "0.01",
        "--epochs",
        "50",
        "--max-steps",
        "12",
    ]
    assert main(["tune", *words, str(base), str(reviews), "--out", str(folder), "--test", "0.2", "--threads", "1"]) == 0
    return folder


@pytest.fixture(scope="session")
def chat_run(base: Path, conversations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "chat"
    words = ["tune", str(base), str(conversations), "--technique", "freeze", "--layers", "1", "--max-steps", "2"]
    assert main([*words, "--out", str(folder), "--validation", "0"]) == 0
    return folder


@pytest.fixture(scope="session")
def prompt_run(base: Path, conversations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It says something else than its base."""
    folder = tmp_path_factory.mktemp("runs") / "chat"
    words = ["tune", str(base), str(conversations), "--technique", "prompt", "--max-steps", "4", "--validation", "0"]
    assert main([*words, "--learning-rate", "0.3", "--warmup", "0", "--out", str(folder)]) == 0
    return folder


def test_tune_keeps_what_was_asked(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    assert manifest["status"] == "finished" and manifest["result"]["steps"] == 12
    assert manifest["technique"]["settings"]["rank"] == 4
    assert manifest["technique"]["settings"]["targets"] == ["attention", "mlp"]
    assert manifest["settings"]["learning_rate"] == 0.01
    assert manifest["threads"] == 1
    assert len(manifest["split"]["test"]) == 16


def test_tune_reports_plainly(heptune, base: Path, reviews: Path, tmp_path: Path) -> None:
    said = heptune("tune", base, reviews, "--out", tmp_path / "my run", "--max-steps", 3, "--no-share", "--limit", 20)
    assert said.code == 0
    assert ESCAPE not in said.out + said.err and "\r" not in said.out + said.err
    for word in ("step 3/3", "trainable parameters", "tokens/s", "peak memory", "artifact", "validation"):
        assert word in said.out
    assert re.search(r"accuracy \d\.\d+ -> \d\.\d+", said.out)
    assert f"heptune eval '{tmp_path}/my run'" in said.out, "a command to copy, quoted"
    manifest = json.loads((tmp_path / "my run" / "manifest.json").read_text("utf-8"))
    assert manifest["settings"]["share"] is False and len(manifest["split"]["train"]) == 20


def test_eval_shows_baselines_intervals_and_the_verdict(heptune, run: Path) -> None:
    said = heptune("eval", run)
    assert said.code == 0 and ESCAPE not in said.out
    for word in (
        "16 examples of the test part",
        "tuned",
        "base, zero-shot",
        "TF-IDF",
        "most frequent label",
        "McNemar",
    ):
        assert word in said.out
    assert len(re.findall(r"\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]", said.out)) >= 8
    assert "1 negative" in said.out and "2 positive" in said.out, "the confusion matrix"


def test_eval_as_json_is_json_alone(heptune, run: Path, reviews: Path) -> None:
    said = heptune("eval", run, reviews, "--limit", 10, "--json")
    result = json.loads(said.out)
    assert result["examples"] == 10 and result["rows"][0]["name"] == "tuned"
    assert sum(map(sum, result["confusion"])) == 10


def test_eval_of_labels_that_training_did_not_know(heptune, run: Path, tmp_path: Path) -> None:
    foreign = write_lines(
        tmp_path / "f.jsonl", [{"text": "so so", "label": "neutral"}, {"text": "ok", "label": "positive"}]
    )
    said = heptune("eval", run, foreign)
    assert said.code == 1 and said.err.startswith("error: ") and "'neutral'" in said.err


def test_chat_with_a_classifier_prints_probabilities(heptune, run: Path) -> None:
    said = heptune("chat", run, "--once", "great [book] :smile: 3")
    assert said.code == 0
    lines = re.findall(r"(negative|positive) +(\d+\.\d)%  ?(█*)", said.out)
    assert {line[0] for line in lines} == {"negative", "positive"}
    assert sum(float(line[1]) for line in lines) == pytest.approx(100, abs=0.2)
    assert float(lines[0][1]) >= float(lines[1][1])


def test_chat_is_deterministic_by_its_seed(heptune, chat_run: Path) -> None:
    words = ("chat", chat_run, "--once", "What is 3?", "--max-tokens", 12, "--temperature", 1.5, "--top-p", 1.0)
    first, again, other = heptune(*words), heptune(*words, "--seed", 0), heptune(*words, "--seed", 1)
    assert first.code == 0 and first.out.strip()
    assert first.out == again.out != other.out


def test_chat_talks_until_the_end_of_input(heptune, chat_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said_lines = iter(["What is 3?", "", "/nonsense", "/reset", "What is 4?"])

    def read(prompt: str = "") -> str:
        try:
            return next(said_lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    said = heptune("chat", chat_run, "--max-tokens", 4)
    assert said.code == 0
    assert "there is no command /nonsense" in said.out and "the conversation is forgotten" in said.out


def test_chat_switches_between_runs_and_their_base(
    heptune, prompt_run: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(["What is 3?", "/switch base", "What is 3?", "/switch run", "great 3", "/switch nobody"])

    def read(prompt: str = "") -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    said = heptune("chat", prompt_run, f"run={run}", "--max-tokens", 6, "--temperature", 0)
    assert said.code == 0
    tuned, title, untouched, *_ = said.out.splitlines()
    assert title == "tiny: chat" and tuned != untouched
    assert "run: classify, probabilities" in said.out and re.search(r"positive +\d+\.\d%", said.out)
    assert "no model named 'nobody'" in said.out


def test_chat_compares_models_side_by_side(heptune, prompt_run: Path, chat_run: Path, run: Path) -> None:
    words = ("chat", prompt_run, f"frozen={chat_run}", f"run={run}", "--temperature", 0, "--max-tokens", 6)
    alone = heptune("chat", prompt_run, "--temperature", 0, "--max-tokens", 6, "--once", "What is 3?")
    said = heptune(*words, "--compare", "base,chat,frozen", "--once", "What is 3?")
    assert said.code == 0, said.err
    texts = dict(re.findall(r"^\[(\w+)\] (.*)$", said.out, re.MULTILINE))
    assert set(texts) == {"tiny", "chat", "frozen"}
    assert texts["chat"] == alone.out.rstrip("\n") != texts["tiny"]
    said = heptune(*words, "--compare", "chat,run", "--once", "What is 3?")
    assert "[run]" in said.out and "positive" in said.out and alone.out in said.out
    said = heptune(*words, "--compare", "chat", "--once", "What is 3?")
    assert said.code == 2 and "at least two" in said.err


def test_chat_remembers_until_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from heptune.api import Message
    from heptune.cli.chat import _Partner

    class Parrot:
        class task:
            name = "chat"

        def __init__(self) -> None:
            self.asked: list[list[Message]] = []

        def reply(self, messages, sampling, on_text) -> str:
            self.asked.append(list(messages))
            return "yes"

    parrot = Parrot()
    partner = _Partner(parrot, None, "Be short.", Console())  # type: ignore[arg-type]
    partner.answer("one")
    partner.answer("two")
    partner.reset()
    partner.answer("three")
    roles = [[message.role for message in asked] for asked in parrot.asked]
    assert roles == [["system", "user"], ["system", "user", "assistant", "user"], ["system", "user"]]


def test_eval_of_chat_gives_perplexity_and_replies(heptune, chat_run: Path) -> None:
    said = heptune("eval", chat_run)
    assert said.code == 0
    assert "perplexity" in said.out and "nats per supervised token" in said.out
    assert said.out.count("    tuned  ") == 3


def test_interrupted_says_how_to_resume(heptune, base: Path, reviews: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    words = ["tune", base, reviews, "--out", folder, "--max-steps", 150, "--epochs", 100, "--validate-every", 150]
    command = [sys.executable, "-m", "heptune.cli.main", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith("step 1/150"):
            os.kill(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    assert f"heptune resume {folder}" in said and "Traceback" not in said
    resumed = heptune("resume", folder)
    assert resumed.code == 0 and "going on after step" in resumed.out and "150 of 150" in resumed.out
    again = heptune("resume", folder)
    assert again.code == 1 and "is finished" in again.err


def test_check_describes_a_file(heptune, base: Path, reviews: Path) -> None:
    said = heptune("check", reviews, "--base", base)
    assert said.code == 0 and ESCAPE not in said.out
    for word in (
        "JSON lines, text + label",
        "80 (labelled text)",
        "tokens per example",
        "50.0%",
        "duplicates",
        "leakage",
    ):
        assert word in said.out
    assert "⟦positive<|im_end|>" in said.out, "the supervised part is marked"
    assert "[book] :smile: 0" in said.out, "the text stands there as it is"


def test_check_finds_leakage_and_unknown_labels(heptune, base: Path, reviews: Path, tmp_path: Path) -> None:
    first = json.loads(reviews.read_text("utf-8").splitlines()[0])
    other = write_lines(tmp_path / "test.jsonl", [first, {"text": "new", "label": "neutral"}])
    said = heptune("check", reviews, "--base", base, "--test", other)
    assert said.code == 0
    assert "1 records also stand" in said.out and "'neutral'" in said.out


def test_check_of_one_label_is_pointless(heptune, base: Path, tmp_path: Path) -> None:
    same = write_lines(tmp_path / "one.jsonl", [{"text": f"text {i}", "label": "x"} for i in range(30)])
    said = heptune("check", same, "--base", base)
    assert said.code == 1 and "fatal: Every record has the same label, 'x'" in said.out
    tuned = heptune("tune", base, same, "--out", tmp_path / "run")
    assert tuned.code == 1 and "at least two different labels" in tuned.err
    assert not (tmp_path / "run").exists(), "nothing is made for a run that cannot be"


def test_plain_text_is_learned_as_what_it_is(heptune, base: Path, tmp_path: Path) -> None:
    prose = tmp_path / "prose.txt"
    prose.write_text("\n\n".join(f"Paragraph {number}." for number in range(40)), "utf-8")
    said = heptune("check", prose, "--base", base)
    assert said.code == 0 and "complete" in said.out
    few = ("--validation", 0, "--test", 0)
    said = heptune("tune", base, prose, "--task", "classify", *few, "--out", tmp_path / "run")
    assert said.code == 1 and "plain text" in said.err and "Traceback" not in said.err


def test_columns_by_hand(heptune, base: Path, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"what": f"text {i}", "kind": "ab"[i % 2]} for i in range(30)]
    said = heptune(
        "check",
        write_lines(tmp_path / "d.jsonl", rows),
        "--base",
        base,
        "--column",
        "text=what",
        "--column",
        "label=kind",
    )
    assert said.code == 0 and "30 (labelled text)" in said.out
    said = heptune("check", tmp_path / "d.jsonl", "--base", base, "--column", "what")
    assert said.code == 2 and "ROLE=NAME" in said.err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["BASE", "missing.jsonl"], 1, "error: missing.jsonl: there is no such file"),
        (["BASE", "DATA", "--technique", "lorra"], 1, "did you mean lora or qlora?"),
        (["BASE", "DATA", "--rnk", "3"], 2, "--rank"),
        (["BASE", "DATA", "--epoch", "3"], 2, "--epochs"),
        (["BASE", "DATA", "--technique", "freeze", "--rank", "3"], 2, "there is no setting of freeze named '--rank'"),
        (["BASE", "DATA", "--rank", "0"], 1, "rank is 0; it must be at least 1"),
        (["BASE", "DATA", "--rank", "many"], 2, "--rank"),
        (["BASE", "DATA", "--schedule", "wavy"], 2, "known: cosine, linear, constant"),
        (["BASE", "DATA", "--validation", "1.5"], 2, "--validation is 1.5"),
        (["BASE", "DATA", "--task", "clasify"], 2, "did you mean classify?"),
        (["BASE", "DATA", "--out", "OCCUPIED"], 1, "choose another --out"),
        (["BASE", "DATA", "--targets", "nowhere"], 1, "no linear site 'nowhere'"),
        (["BASE", "DATA", "--technique", "p_tuning_v2", "--start-from", "missing"], 1, "holds no prefix"),
        (["BASE", "DATA", "--technique", "prefix", "--init", "text"], 1, "init=text and a text go together"),
        (["BASE"], 2, "DATA"),
    ],
)
def test_errors_of_tune(
    heptune, words: list[str], code: int, message: str, base, reviews, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "OCCUPIED").mkdir()
    (tmp_path / "OCCUPIED" / "file").touch()
    places = {"BASE": base, "DATA": reviews}
    said = heptune("tune", *(places.get(word, word) for word in words))
    assert said.code == code
    assert message in said.err and "Traceback" not in said.err
    assert not list(tmp_path.glob("runs/*")), "what never began is no run"


def test_demo_plans_races_reports_and_replies(heptune, base: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("heptune.cli.demo.BASE", str(base))
    monkeypatch.setattr("heptune.cli.demo.TECHNIQUES", ("lora", "prompt"))
    monkeypatch.setitem(demo.SETTINGS, "epochs", 0.2)
    said = heptune("demo", "--minutes", 1)
    assert said.code == 0 and ESCAPE not in said.out
    assert (tmp_path / "races" / "demo-1" / "report.html").is_file()
    assert "108 examples of the test part" in said.out and "base, zero-shot" in said.out
    assert said.out.index("1. The plan") < said.out.index("2. The race") < said.out.index("3. The verdict")
    assert "Water drips through the lamp" in said.out.partition("5. What it says")[2]
    assert "heptune race" in said.out and "heptune explain lora" in said.out


def test_eval_of_no_run(heptune, tmp_path: Path) -> None:
    said = heptune("eval", tmp_path / "nothing")
    assert said.code == 1 and "does not exist" in said.err


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heptune.techniques.card", lambda name: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["explain", "lora"])


def test_ctrl_c_leaves_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(name: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("heptune.techniques.card", interrupt)
    assert main(["explain", "lora"]) == 130


def evaluation(
    difference: Interval, p_value: float | None = None, tfidf: float = 0.5, unit: str = "accuracy"
) -> Evaluation:
    def row(name: str, value: float) -> Row:
        return Row(name, {"accuracy": Interval(value, value - 0.1, value + 0.1)})

    rows = (row("tuned", 0.8), row("base, zero-shot", 0.4), row("TF-IDF", tfidf), row("most frequent label", 0.2))
    return Evaluation("classify", "the test part", 50, rows, Comparison(unit, difference, p_value), ())


def test_verdict_in_words() -> None:
    better = evaluation(Interval(0.41, 0.35, 0.47), 1e-9)
    assert verdict(better) == [
        "tuned is better than the untouched base by 0.410 [0.350, 0.470] accuracy; McNemar p < 0.0001."
    ]
    assert verdict(evaluation(Interval(-0.2, -0.3, -0.1), 0.002))[0] == (
        "tuned is worse than the untouched base by 0.200 [0.100, 0.300] accuracy; McNemar p = 0.0020."
    )
    assert "no difference" in verdict(evaluation(Interval(0.01, -0.02, 0.04), 0.5))[0]
    assert "tuned is better" in verdict(evaluation(Interval(-1.0, -1.2, -0.8), unit="nats per supervised token"))[0]
    assert "TF-IDF is better than the tuned model" in verdict(evaluation(Interval(0.4, 0.3, 0.5), tfidf=0.9))[1]
    assert "TF-IDF lies within" in verdict(evaluation(Interval(0.4, 0.3, 0.5), tfidf=0.75))[1]
    probed = evaluation(Interval(0.41, 0.35, 0.47), 1e-9)
    probed = replace(probed, comparison=replace(probed.comparison, against="a linear probe"))
    assert verdict(probed)[0].startswith("tuned is better than a linear probe by")


def test_json_has_no_nan() -> None:
    assert without_nan({"a": [float("nan"), 1.0, (float("inf"),)]}) == {"a": [None, 1.0, [None]]}
