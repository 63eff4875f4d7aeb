"""The documentation holds: generated parts are up to date, links resolve, command lines parse, Python examples run."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

import heptune
from heptune import techniques
from heptune.cli import options
from heptune.cli.hyperparameters import hyperparameters
from heptune.cli.main import app
from heptune.engine.settings import Settings
from tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINKED = [*PAGES, ROOT / "benchmarks/README.md", ROOT / "src/heptune/demo/README.md"]
GROUP: Any = typer.main.get_command(app)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "docs/generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_parts_are_up_to_date() -> None:
    stale = [name(path) for path in generator().stale()]
    assert not stale, f"run `python docs/generate.py`; out of date: {stale}"


def test_a_stale_part_would_be_seen() -> None:
    filled = generator().filled("a\n<!-- generated: settings `lora` -->\nold\n<!-- end -->\nb\n")
    assert "old" not in filled and "`--rank`" in filled and filled.startswith("a\n") and filled.endswith("\nb\n")


def measured_technique(accuracy: float, rates: dict[float, float | None], chosen: float) -> dict[str, Any]:
    interval = {"value": accuracy, "low": accuracy - 0.05, "high": accuracy + 0.05, "level": 0.95}
    search = [
        {"learning_rate": rate, "error": "not finite"} if loss is None else {"learning_rate": rate, "loss": loss}
        for rate, loss in rates.items()
    ]
    return {
        "learning_rate": chosen,
        "at_the_edge": chosen in (min(rates), max(rates)),
        "search": search,
        "metrics": {"accuracy": interval, "macro-F1": interval},
        "trainable": 4_884_480,
        "training_s": 125.0,
        "tokens_per_second": 512.4,
        "peak_memory_bytes": 3 * 2**30,
        "artifact_bytes": 2**20,
        "steps": 75,
        "tokens": 64_000,
        "supervised_tokens": 2_400,
        "threads": 2,
    }


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, Path]:
    module = generator()
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(module, "DOCS", tmp_path)
    return module, tmp_path / "results" / "techniques_sst2.json"


def test_the_techniques_table_shows_ranks_costs_rates_and_failures(results: tuple[ModuleType, Path]) -> None:
    module, path = results
    block = "<!-- generated: techniques table `sst2` -->\n<!-- end -->"
    assert "Not measured yet." in module.filled(block)
    base = {"value": 0.5, "low": 0.4, "high": 0.6, "level": 0.95}
    report = {
        "settings": {"batch_size": 16, "search_steps": 20, "validation_limit": 200},
        "base_resident_bytes": 2**30,
        "test_examples": 500,
        "baselines": {"base, zero-shot": {"accuracy": base, "macro-F1": base}},
        "techniques": {
            "freeze": measured_technique(0.8, {3e-4: None, 1e-4: 0.4, 3e-5: 0.6}, 1e-4),
            "full": {"error": "out | of memory", "search": []},
            "lora": measured_technique(0.9, {1e-4: 0.5, 6e-4: 0.25}, 6e-4),
        },
    }
    path.write_text(json.dumps(report), "utf-8")
    lines = module.filled(block).splitlines()
    cells = {
        row[0]: row[1:] for row in ([c.strip() for c in line.strip("|").split("|")] for line in lines if "|" in line)
    }
    expected = ["0.900 [0.850, 0.950]", "0.900 [0.850, 0.950]", "4.88M", "2 min 05 s", "512", "2.0 GiB", "1.0 MiB"]
    assert f"| `lora` | {' | '.join(expected)} |" in lines
    order = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
    assert order[2:5] == ["`lora`", "`freeze`", "base, zero-shot"], "the best first, then the baselines"
    assert cells["`freeze`"] == ["3e-05: 0.600, **0.0001: 0.400**, 0.0003: failed"]
    assert cells["`lora`"] == ["0.0001: 0.500, **0.0006: 0.250** (at the edge of what was tried)"]
    assert any("75 steps of 16 examples" in line and "2400 of them supervised" in line for line in lines)
    assert "`full` failed: out | of memory" in lines


def test_every_generated_part_is_of_a_known_kind() -> None:
    module = generator()
    for path in PAGES:
        for kind in re.findall(r"<!-- generated: ([a-z ]+?)(?: `| -->)", path.read_text("utf-8")):
            assert kind in module.KINDS, f"{name(path)}: {kind}"


def test_every_command_has_a_page_and_the_index_names_every_page() -> None:
    index = (ROOT / "docs/index.md").read_text("utf-8")
    for verb in GROUP.commands:
        assert (ROOT / "docs" / f"{verb}.md").is_file(), verb
    for page in (ROOT / "docs").rglob("*.md"):
        assert page.name == "index.md" or f"({page.relative_to(ROOT / 'docs')})" in index, name(page)


def slug(heading: str) -> str:
    """How a heading's anchor is called by the usual Markdown renderers."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)


@pytest.mark.parametrize("page", LINKED, ids=name)
def test_relative_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{target} does not exist"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", without_code(path.read_text("utf-8")), re.M)
            assert anchor in map(slug, headings), f"{target}: no such heading"


def quoted_commands(text: str) -> list[str]:
    """Every command line of heptune in code blocks, indented code and inline code."""
    blocks = re.findall(r"^```(?:sh|console)\n(.*?)^```$", text, flags=re.S | re.M)
    prose = without_code(text)
    blocks += re.findall(r"^ {4}(?:\S*/)?(heptune .*)$", prose, re.M)
    blocks += re.findall(r"`(heptune [^`]*)`", prose)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.removeprefix("$ ").startswith("heptune ")]


def parse(line: str) -> None:
    """Parses a command line without executing it; raises for a verb, option or value that does not exist.

    A verb alone, as in "see `heptune check`", only has to exist.
    """
    words = shlex.split(line, comments=True)[1:]
    if words[0] in ("--help", "--version"):
        return
    verb, rest = words[0], words[1:]
    command = GROUP.commands[verb]
    if not rest or rest == ["--help"]:
        return
    chosen = command.make_context(f"heptune {verb}", rest).params
    if verb == "tune":
        known = set(Settings.__dataclass_fields__)
        known |= {h.name for technique in techniques.names() for h in hyperparameters(technique)}
        of_tuning = {key: value for key, value in chosen.items() if key in known}
        Settings.from_values(options.split_chosen(chosen["technique"], of_tuning)[0])


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_quoted_command_lines_parse(page: Path) -> None:
    for line in quoted_commands(page.read_text("utf-8")):
        try:
            parse(line)
        except Exception as error:
            pytest.fail(f"{line}: {type(error).__name__}: {getattr(error, 'message', error)}")


@pytest.mark.parametrize(
    "line",
    [
        "heptune tun a b",
        "heptune tune a b --rnk 3",
        "heptune tune a",
        "heptune tune a b --rank many",
        "heptune tune a b --technique freeze --rank 3",
        "heptune tune a b --schedule wavy",
        "heptune eval",
    ],
)
def test_a_wrong_command_line_would_be_seen(line: str) -> None:
    if line == "heptune eval":
        assert quoted_commands(f"`{line}`") == [line]
        return
    with pytest.raises(Exception):  # noqa: B017 - the kinds differ: of the parser, KeyError, UsageError
        parse(line)


def test_commands_are_found_wherever_they_are_quoted() -> None:
    text = "a `heptune check X` b\n```sh\nheptune eval R \\\n  --json\n```\n    .venv/bin/heptune --help\n"
    assert [" ".join(line.split()) for line in quoted_commands(text)] == [
        "heptune eval R --json",
        "heptune --help",
        "heptune check X",
    ]


def test_make_targets_that_are_quoted_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    for page in PAGES:
        text = page.read_text("utf-8")
        quoted = re.findall(r"(?:`|^ {4})make(?: [A-Z_]+=\S+)* (\w+)", text, re.M)
        assert set(quoted) <= targets, name(page)


def test_every_direct_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    direct = [re.split(r"[\[<>=! ]", requirement)[0] for requirement in project["dependencies"]]
    rows = re.findall(r"^\| ([\w-]+) \| (.+?) \|", (ROOT / "docs/dependencies.md").read_text("utf-8"), re.M)
    assert [row[0] for row in rows if row[0] not in ("package", "---")] == direct


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), flags=re.S | re.M)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the pages' names exist: a tiny base called smollm2-135m, two files, a finished and an
    interrupted run."""
    monkeypatch.chdir(tmp_path)
    tiny_model("llama").save_pretrained("smollm2-135m")
    tiny_tokenizer().save_pretrained("smollm2-135m")
    words = {"positive": "a lovely, lovely evening", "negative": "a dull and empty evening"}
    rows = [{"text": f"{words[label]} {n}", "label": label} for n in range(25) for label in words]
    talks = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(20)]
    for file, lines in (("reviews.jsonl", rows), ("chats.jsonl", talks)):
        Path(file).write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    Path("book.txt").write_text("\n\n".join(f"It was a dark and stormy night, number {n}." for n in range(80)), "utf-8")
    return tmp_path


def interrupt(event: object) -> None:
    if type(event).__name__ == "StepDone":
        raise KeyboardInterrupt


@pytest.mark.parametrize("page", [p for p in PAGES if python_blocks(p)], ids=name)
def test_python_examples_run(page: Path, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heptune.tune("smollm2-135m", "reviews.jsonl", max_steps=1, out="runs/lora-1")
    with pytest.raises(KeyboardInterrupt):
        heptune.tune("smollm2-135m", "reviews.jsonl", max_steps=2, out="runs/lora-2", listener=interrupt)
    namespace: dict[str, Any] = {}
    for number, block in enumerate(python_blocks(page), 1):
        exec(compile(block, f"{name(page)}, example {number}", "exec"), namespace)
    assert capsys.readouterr().out.strip()


def test_the_design_names_every_room() -> None:
    source = ROOT / "src/heptune"
    rooms = {path.name for path in source.iterdir() if (path / "__init__.py").is_file()} | {"api"}
    named = re.findall(r"^\| `(\w+)` \| .+ \| .+ \|$", (ROOT / "docs/design.md").read_text("utf-8"), re.M)
    assert sorted(named) == sorted(rooms)
