from __future__ import annotations

import copy
import json
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from heptune.core.errors import RunError
from heptune.reporting import report as reports
from heptune.reporting.findings import Findings
from heptune.reporting.markdown import plain
from heptune.reporting.page import page
from heptune.reporting.report import findings, report, report_markdown
from reporting import made

VOID = {"meta", "br", "hr", "col"}
SECTIONS = ["verdict", "scores", "learning", "trade-offs", "costs", "race", "confusions", "examples", "repeat"]
HOSTILE = (
    "</style></title><script>alert(1)</script><img src=http://evil/x onerror=a> | `x` [l](http://evil) @me \ud83d\x00"
)


class Page(HTMLParser):
    """Fails where a tag is not closed in its order; gathers what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.children: dict[str, set[str]] = {}
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), "an attribute stands twice"
        self.tags.append((tag, dict(attrs)))
        self.children.setdefault(self.open[-1] if self.open else "", set()).add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def ids(self) -> list[str]:
        return [found for _, attributes in self.tags if (found := attributes.get("id"))]


@pytest.fixture(scope="module")
def race(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.write_race(tmp_path_factory.mktemp("race"))


@pytest.fixture(scope="module")
def race_page(race: Path) -> Page:
    return Page(page(findings(race)))


def values(race: Path, name: str) -> Any:
    return json.loads((race / name).read_text("utf-8"))


def test_the_page_of_a_race_has_every_section_once(race_page: Page) -> None:
    ids = race_page.ids()
    assert [name for name in ids if not name.endswith("-title")] == SECTIONS
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for tag, attributes in race_page.tags if tag == "a"]
    assert links == [f"#{name}" for name in SECTIONS[1:]]


def test_the_page_loads_and_runs_nothing(race: Path) -> None:
    text = report(race, race / "p.html").read_text("utf-8")
    read = Page(text)
    assert {tag for tag, _ in read.tags} & {"script", "link", "iframe", "img", "object", "embed", "base"} == set()
    for _, attributes in read.tags:
        assert not any(name.startswith("on") or name in ("src", "style", "srcset") for name in attributes)
        assert (attributes.get("href") or "#").startswith("#")
    style = re.search(r"<style>(.*?)</style>", text, re.S)
    assert style and not re.search(r"url\(|@import|https?:|</", style[1])


def test_drawings_say_what_they_show_and_have_their_numbers_beside_them(race_page: Page) -> None:
    assert {"title", "desc"} <= race_page.children["svg"]
    drawings = [attributes for tag, attributes in race_page.tags if tag == "svg"]
    assert len(drawings) >= 10 and all(d["role"] == "img" and d["aria-label"] for d in drawings)
    in_order = [tag for tag, _ in race_page.tags if tag in ("figure", "table")]
    for here, following in pairwise(in_order):
        assert (here, following) != ("figure", "figure"), "a figure without a table behind it"


def test_scores_are_those_of_the_verdict(race: Path, race_page: Page) -> None:
    verdict = values(race, "verdict.json")
    for contender in verdict["contenders"]:
        for interval in (contender["score"], *contender["metrics"].values()):
            assert f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]" in race_page.text
        for seed in contender.get("seeds", []):
            assert f"{seed['score']:.3f}" in race_page.text
    for word in verdict["words"]:
        assert word in race_page.text
    for comparison in verdict["comparisons"]:
        assert f"{comparison['difference']['value']:+.3f}" in race_page.text


def test_points_of_the_forest_plot_stand_where_their_scores_are(race: Path) -> None:
    verdict = values(race, "verdict.json")
    scores = {c["name"]: c["score"]["value"] for c in verdict["contenders"]}
    text = page(findings(race))
    wide = text[text.index('class="drawing wide"') :]
    wide = wide[: wide.index("</svg>")]
    places: dict[str, float] = {}
    for tag, at, told in re.findall(r"<(circle|rect) c?x=\"([\d.]+)\"[^>]*><title>([^<]*)</title>", wide):
        name = told.split(": ")[0]
        if name in scores:
            places[name] = float(at) + (4.5 if tag == "rect" else 0.0)
    assert set(places) == set(scores)
    (a, b), names = sorted(scores, key=scores.__getitem__)[:: len(scores) - 1], sorted(scores)
    slope = (places[b] - places[a]) / (scores[b] - scores[a])
    for name in names:
        assert places[name] == pytest.approx(places[a] + slope * (scores[name] - scores[a]), abs=0.1)


def test_the_race_tells_every_standing_and_why(race: Path, race_page: Page) -> None:
    told = values(race, "race.json")
    for rung in told["rungs"]:
        for standing in rung["standings"]:
            assert f"{standing['score']:.3f}" in race_page.text
            if not standing["kept"]:
                assert (
                    f"{standing['candidate']} at step {rung['step']}: {standing['score']:.3f}, dropped"
                    in race_page.text
                )
                assert standing["why"] in race_page.text
    assert "The race took 56 min 50 s and 5.2M tokens" in race_page.text and "3.4 times as long" in race_page.text


def test_costs_tell_the_error_of_each_prediction(race: Path, race_page: Page) -> None:
    for candidate in values(race, "race.json")["candidates"]:
        result = values(race, f"{candidate['run']}/manifest.json").get("result")
        if result:
            off = candidate["predicted"]["memory_bytes"] / result["peak_memory_bytes"] - 1
            written = "0" if abs(off) < 0.005 else f"{100 * off:+.0f}".replace("-", "\N{MINUS SIGN}")
            assert re.search(rf"{re.escape(candidate['name'])}: predicted .*?, {re.escape(written)}\W", race_page.text)


def test_curves_of_dropped_candidates_end_where_they_were_dropped(race: Path) -> None:
    found = findings(race)
    dropped = [curve for curve in found.curves if curve.state == "dropped"]
    assert dropped
    for curve in dropped:
        assert curve.dropped_at is not None and curve.loss[-1][0] == curve.dropped_at
    finalists = [curve for curve in found.curves if curve.state == "finalist"]
    assert {curve.seed for curve in finalists} == {None, 1, 2}
    assert all(curve.loss[-1][0] == made.LADDER[-1] for curve in finalists)


@pytest.mark.parametrize("rungs", [0, 1, 2])
def test_a_race_under_way_says_so_and_shows_what_there_is(rungs: int, tmp_path: Path) -> None:
    made.write_race(tmp_path, "running", rungs)
    read = Page(page(findings(tmp_path)))
    assert "This race is still under way." in read.text and "There is no verdict yet." in read.text
    assert ("race" in read.ids()) == bool(rungs) and "scores" not in read.ids() and "learning" in read.ids()
    if rungs:
        assert f"{rungs} of 4 rungs are done" in read.text and "So far the race took" in read.text
        assert "went on to the finals" not in read.text
        best = values(tmp_path, "race.json")["rungs"][-1]["standings"][0]
        assert f"{best['candidate']} with {best['score']:.3f}" in read.text
    assert "still under way" in report_markdown(tmp_path)


def test_commands_can_be_copied(race: Path, race_page: Page) -> None:
    text = page(findings(race))
    codes = [Page(code).text for code in re.findall(r"<code>(.*?)</code>", text, re.S)]
    words = [shlex.split(code.replace("\\ ", "")) for code in codes]
    assert words[0] == ["heptune", "race", "smollm2-135m", "repair desk.jsonl", "--minutes", "60"]
    assert all(line[0] == "heptune" for line in words)
    assert made.SHA in race_page.text and "2.13.0" in race_page.text


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    whole = copy.deepcopy(value)
    inner = whole
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return whole


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield from places(value[key], (*path, key))


WRONG_PLACES = 15  # of each file, always the same ones
WRONG = [None, float("nan"), float("-inf"), "x", -1, 0, 1e300, True, [], {}, [None], {"value": None}]


@pytest.mark.parametrize("file", ["race.json", "verdict.json", "candidates/lora-0.0005/manifest.json"])
def test_no_single_wrong_value_breaks_the_report(file: str, tmp_path: Path) -> None:
    made.write_race(tmp_path)
    right = values(tmp_path, file)
    for name in ("split",):
        if name in right:
            right[name] = {"train": [0, 1], "validation": [2], "test": [3]}
    draw = random.Random(file)
    spots = [path for path in places(right) if path != ("format",)]
    for path in draw.sample(spots, min(WRONG_PLACES, len(spots))):
        wrong = draw.choice(WRONG)
        (tmp_path / file).write_text(json.dumps(replaced(right, path, wrong)), "utf-8")
        try:
            found = findings(tmp_path)
            Page(page(found))
            report_markdown(tmp_path)
        except Exception as error:
            raise AssertionError(f"{path} = {wrong!r}: {type(error).__name__}: {error}") from error


def test_missing_and_damaged_files_are_left_out(tmp_path: Path) -> None:
    made.write_race(tmp_path)
    (tmp_path / "verdict.json").write_text('{"metric": "acc', "utf-8")
    (tmp_path / "candidates/lora-0.0005/events.jsonl").write_text('{"event": "StepDone", "step": 1, "lo', "utf-8")
    (tmp_path / "candidates/lora-0.0002/manifest.json").unlink()
    read = Page(page(findings(tmp_path)))
    assert "its verdict is missing" in read.text and "race" in read.ids()
    (tmp_path / "race.json").write_text(json.dumps({"format": 1}), "utf-8")
    assert [name for name in Page(page(findings(tmp_path))).ids() if "-" not in name] == ["verdict", "repeat"]


def spoiled(value: Any) -> Any:
    """Every text of a person made hostile, names included; what steers the reading stays."""
    kept = {"metric", "kind", "status", "run", "part", "path", "candidate", "name", "winner", "contender", "a", "b"}
    if isinstance(value, dict):
        return {key: item if key in kept and isinstance(item, str) else spoiled(item) for key, item in value.items()}
    if isinstance(value, list):
        return [spoiled(item) for item in value]
    return value + HOSTILE if isinstance(value, str) else value


def test_no_text_of_a_person_becomes_markup(tmp_path: Path) -> None:
    made.write_race(tmp_path)
    for file in ("race.json", "verdict.json", "candidates/lora-0.0005/manifest.json"):
        value = spoiled(values(tmp_path, file))
        if file == "verdict.json":
            value["contenders"][1]["name"] += HOSTILE
            value["metric"] += HOSTILE
        (tmp_path / file).write_text(json.dumps(value), "utf-8")
    read = Page(report(tmp_path).read_text("utf-8"))
    assert {tag for tag, _ in read.tags} & {"script", "img"} == set()
    assert not any(name.startswith("on") for _, attributes in read.tags for name in attributes)
    assert read.text.count("<script>alert(1)</script>") > 20
    text = report_markdown(tmp_path)
    prose = re.sub(r"^(`{3,})sh\n.*?^\1$", "", text, flags=re.S | re.M)
    assert "<" not in prose and "@me" not in prose and "://" not in prose and not re.search(r"(?<!\\)`", prose)
    assert same_columns(text)


def same_columns(text: str) -> int:
    """How many tables there are, all rows of each with as many cells as its head."""
    tables = re.findall(r"(?:^\|.*\n)+", text, re.M)
    for table in tables:
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(cells) == 1, table
    return len(tables)


def test_markdown_has_the_verdict_two_even_tables_and_the_commands(race: Path) -> None:
    text = report_markdown(race)
    verdict = values(race, "verdict.json")
    assert same_columns(text) == 2
    assert all(plain(word) in text for word in verdict["words"])
    for contender in verdict["contenders"]:
        assert f"| {plain(contender['name'])} | {contender['score']['value']:.3f} \\[" in text
    assert "```sh\n# race again\nheptune race smollm2-135m 'repair desk.jsonl' --minutes 60\n" in text
    assert len(text) < 4000, "short enough for a comment"


def changed_verdict(race: Path, **changes: Any) -> Findings:
    (race / "verdict.json").write_text(json.dumps(values(race, "verdict.json") | changes), "utf-8")
    return findings(race)


def test_two_hundred_labels(tmp_path: Path) -> None:
    made.write_race(tmp_path)
    labels = [f"étiquette {n} – {'長い名前' * 4}" for n in range(200)]
    found = changed_verdict(tmp_path, labels=labels, confusion={"lora": made.confusion(0.8, 5, 200)})
    text = page(found)
    read = Page(text)
    assert f"200 labels; {sum(row[i] for i, row in enumerate(found.confusions[0].counts))} of 1000" in read.text
    assert "The 20 most frequent errors" in read.text
    assert len(text) < 1_500_000


def test_one_candidate_one_rung_no_interval(tmp_path: Path) -> None:
    made.write_race(tmp_path)
    told = values(tmp_path, "race.json")
    told["candidates"] = [c for c in told["candidates"] if c["name"] == "lora-0.0005"]
    told["rungs"] = [{"step": 30, "standings": [{"candidate": "lora-0.0005", "score": 0.5, "kept": True}]}]
    told["finals"] = []
    (tmp_path / "race.json").write_text(json.dumps(told), "utf-8")
    only = {"name": "lora", "kind": "technique", "score": {"value": 0.5, "low": float("nan"), "high": None}}
    found = changed_verdict(tmp_path, contenders=[only], winner="lora", comparisons=[], confusion={}, differing=[])
    read = Page(page(found))
    assert "1 candidate of 1 technique on" in read.text and "trade-offs" not in read.ids()
    assert "0.500" in read.text and "nan" not in read.text.lower().replace("finance", "")


def test_a_candidate_may_be_told_with_its_settings(tmp_path: Path) -> None:
    made.write_race(tmp_path)
    contenders = values(tmp_path, "verdict.json")["contenders"]
    names = [contender["candidate"] for contender in contenders]
    for contender in contenders:
        if contender["candidate"]:
            contender["candidate"] = {"name": contender["candidate"], "settings": {"rank": 8}}
    assert [c.candidate for c in changed_verdict(tmp_path, contenders=contenders).contenders] == names


def test_the_rungs_may_decide_by_another_metric_than_the_verdict(tmp_path: Path) -> None:
    made.write_race(tmp_path, rungs_done=3)
    told = values(tmp_path, "race.json")
    for rung in told["rungs"]:
        for standing in rung["standings"]:
            standing["metrics"]["loss"] = standing["score"] = 1 - standing["score"]
    survivor = next(s["candidate"] for s in told["rungs"][-1]["standings"] if s["kept"])
    technique = next(c["technique"] for c in told["candidates"] if c["name"] == survivor)
    made.write_run(tmp_path / "candidates" / survivor, technique, 1.0, made.LADDER[-1], 0.0, 0)
    told["finals"] = [{"contender": technique, "candidate": survivor, "runs": []}]
    made.write(tmp_path / "race.json", told)
    found = findings(tmp_path)
    assert (found.rung_metric, found.curve_metric) == ("loss", "accuracy")
    read = Page(page(found))
    assert "candidates' loss on the validation part" in read.text
    events = (tmp_path / "candidates" / survivor / "events.jsonl").read_text("utf-8").splitlines()
    last = json.loads(events[-1])
    assert last["step"] == made.LADDER[-1]
    drawn = page(found).split('aria-label="The course of the race')[1].split("</svg>")[0]
    assert f">{last['metrics']['loss']:.3f}</text>" in drawn


def test_what_costs_nothing_stands_at_the_left_of_its_panel(tmp_path: Path) -> None:
    made.write_race(tmp_path)
    contenders = values(tmp_path, "verdict.json")["contenders"]
    for contender in contenders:
        if contender["kind"] == "baseline":
            contender |= {"artifact_bytes": 0, "time_s": 0.0, "memory_bytes": 2**30}
    text = page(changed_verdict(tmp_path, contenders=contenders))
    panel = text[text.index('aria-label="accuracy against artifact size') :]
    panel = panel[: panel.index("</svg>")]
    places = {
        told.split(":")[0]: float(at)
        for at, told in re.findall(r'<(?:circle|rect) c?x="([\d.]+)".*?<title>(.*?)<', panel)
    }
    least = min(places.values())
    assert {name for name, at in places.items() if at == least} == {c["name"] for c in contenders[-3:]}
    assert "10" in re.findall(r">([^<]+)</text>", panel) and "100" in re.findall(r">([^<]+)</text>", panel)


def test_the_commands_name_the_winners_best_training(tmp_path: Path) -> None:
    made.write_race(tmp_path)
    best = max(values(tmp_path, "verdict.json")["contenders"][0]["seeds"], key=lambda seed: seed["score"])
    lines = dict(findings(tmp_path).commands)
    assert lines["use the winner"].endswith(best["run"])
    won = changed_verdict(tmp_path, winner="most frequent label")
    assert [what for what, _ in won.commands] == ["race again", "make this report"]


def test_less_is_better_turns_rank_and_front(tmp_path: Path) -> None:
    made.write_race(tmp_path)
    found = changed_verdict(tmp_path, metric="perplexity", higher_is_better=False)
    tuned = [c.score.value for c in found.ranked if not c.is_baseline and c.score]
    assert tuned == sorted(tuned)
    assert "← less is better" in page(found)


def test_free_replies_are_not_called_right_or_wrong(tmp_path: Path) -> None:
    made.write_race(tmp_path)
    reply = {"text": "What now?", "truth": "Wait.", "answers": {"lora": "Wait a moment.", "full": "x" * 5000}}
    read = Page(page(changed_verdict(tmp_path, differing=[reply])))
    assert "Wait a moment." in read.text and "✓" not in read.text and "✗" not in read.text
    assert "x" * 600 not in read.text and "x" * 500 in read.text


def evaluation() -> dict[str, Any]:
    rows = [
        {"name": "tuned", "metrics": {"accuracy": made.interval(0.9), "macro-F1": made.interval(0.85)}},
        {"name": "base, zero-shot", "metrics": {"accuracy": made.interval(0.4), "macro-F1": made.interval(0.3)}},
        {"name": "TF-IDF", "metrics": {"accuracy": made.interval(0.88), "macro-F1": made.interval(0.8)}},
    ]
    return {
        "task": "classify",
        "part": "the test part",
        "examples": 43,
        "rows": rows,
        "comparison": {"unit": "accuracy", "difference": made.interval(0.5), "p_value": 0.00001},
        "shown": [{"text": "It broke.", "truth": "repair", "base": "other", "tuned": "repair", "better": True}],
        "labels": made.LABELS,
        "confusion": made.confusion(0.9, 7, 6),
        "cut": 0,
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "lora-1"
    predicted = {"memory_bytes": 2**31, "resident_bytes": 2**29, "time_s": 500.0, "step_s": 2.0}
    made.write_run(folder, "lora", 5e-4, made.LADDER[-1], 0.0, 0, predicted=predicted)
    made.write(folder / "evaluations/20260502-100000.json", {"rows": [], "part": "an older one"})
    made.write(folder / "evaluations/20260502-110000.json", evaluation())
    return folder


def test_the_page_of_a_run(run: Path) -> None:
    read = Page(report(run).read_text("utf-8"))
    present = [name for name in read.ids() if not name.endswith("-title")]
    assert present == ["verdict", "scores", "learning", "costs", "confusions", "examples", "repeat"]
    assert "Tuned is better than the untouched base by 0.500 [0.475, 0.520] accuracy; McNemar p < 0.0001." in read.text
    assert "TF-IDF lies within the tuned model's interval" in read.text and "winner" not in read.text
    assert "an older one" not in read.text and "2 examples are longer than 1024 tokens" in read.text
    measured = 2.13 * made.LADDER[-1]
    off = f"{100 * (500 / measured - 1):+.0f}".replace("-", "\N{MINUS SIGN}")
    assert re.search(rf"predicted 8.33 min, measured {measured / 60:.3g} min, {re.escape(off)}\W", read.text)
    assert same_columns(report_markdown(run)) == 1


def test_entities_are_told_type_by_type(run: Path) -> None:
    metrics = {"F1": made.interval(0.5), "precision": made.interval(0.6)}
    types = [{"type": "PER<b>", "count": 7, "metrics": metrics}, {"type": "LOC|x", "count": 12, "metrics": {}}]
    made.write(run / "evaluations/20260502-120000.json", evaluation() | {"per_type": types})
    read, short = Page(report(run).read_text("utf-8")), report_markdown(run)
    assert "type by type" in read.text and "PER<b>" in read.text and "0.500 [0.475, 0.520]" in read.text
    assert read.text.index("LOC|x") < read.text.index("PER<b>")  # the more frequent one first
    assert "type by type:" in short and r"0.600 \[0.575, 0.620\]" in short and "<b>" not in short
    assert same_columns(short) == 2


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("running", "This run is still under way."),
        ("interrupted", "heptune resume"),
        ("failed", "This run failed: the loss is NaN."),
    ],
)
def test_a_run_that_is_not_finished_says_so(status: str, said: str, run: Path) -> None:
    manifest = values(run, "manifest.json") | {"status": status, "error": "the loss is NaN"}
    del manifest["result"]
    made.write(run / "manifest.json", manifest)
    for file in (run / "evaluations").iterdir():
        file.unlink()
    read = Page(page(findings(run)))
    assert said in read.text and "scores" not in read.ids() and "learning" in read.ids()


def test_a_run_without_an_evaluation_tells_its_validation_and_how_to_score_it(run: Path) -> None:
    for file in (run / "evaluations").iterdir():
        file.unlink()
    read = Page(page(findings(run)))
    assert "accuracy went from 0.200 to 0.900" in read.text and "heptune eval" in read.text


def test_a_run_taken_up_again_tells_each_step_once(run: Path) -> None:
    events = run / "events.jsonl"
    again = {"event": "StepDone", "step": 240, "loss": 9.0, "time_s": 1.0}
    events.write_text(events.read_text("utf-8") + json.dumps(again) + "\n", "utf-8")
    (curve,) = findings(run).curves
    assert len(curve.loss) == 240 and curve.loss[-1] == (240.0, 9.0)


def test_the_file_is_whole_or_absent(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = report(run)
    assert path == run / "report.html"
    before = path.read_text("utf-8")

    def broken(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(RunError, match=r"cannot be written \(No space left"):
        report(run)
    assert path.read_text("utf-8") == before and not list(run.glob(".unfinished*"))


def test_errors_say_what_is_wrong(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is a folder; name a file"):
        report(run, tmp_path)
    with pytest.raises(RunError, match="is no run directory"):
        report(tmp_path / "lora-1" / "evaluations")
    made.write(tmp_path / "new/race.json", {"format": 2, "heptune": "9.0"})
    with pytest.raises(RunError, match=r"race format 2, this version reads 1; it was written by heptune 9\.0"):
        report(tmp_path / "new")


def test_a_run_outside_the_race_is_not_read(tmp_path: Path) -> None:
    race = made.write_race(tmp_path / "race")
    made.write_run(tmp_path / "secret", "lora", 1.0, 5, 0.0, 0)
    told = values(race, "race.json")
    told["candidates"][0]["run"] = "../secret"
    made.write(race / "race.json", told)
    assert told["candidates"][0]["name"] not in {curve.name for curve in findings(race).curves if curve.seed is None}


def test_the_same_race_gives_the_same_page(race: Path) -> None:
    assert page(findings(race)) == page(findings(race))


def test_the_command_starts_without_what_is_slow(race: Path, tmp_path: Path) -> None:
    code = "import sys; from heptune.cli.main import main; code = main(sys.argv[1:]); "
    code += "print(code, [m for m in ('torch', 'numpy', 'transformers', 'jinja2') if m in sys.modules])"
    words = ["report", str(race), "--out", str(tmp_path / "deep/x.html"), "--markdown"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n0 []\n") and done.stdout.startswith("### Race: ")
    assert "x.html; any browser opens it" in done.stderr.replace("\n", "")
    assert (tmp_path / "deep/x.html").is_file() and reports.NAME not in done.stderr
