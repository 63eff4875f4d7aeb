"""Writes the parts of the documentation that come from the code.

    python docs/generate.py            rewrites what is out of date
    python docs/generate.py --check    changes nothing; exit code 1 when something is out of date

In a page, what stands between `<!-- generated: KIND NAME -->` and `<!-- end -->` is replaced. The pages in techniques/
are generated as a whole, one for each technique.
"""

from __future__ import annotations

import ast
import inspect
import json
import math
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import typer

from heptune import techniques
from heptune.cli.hyperparameters import hyperparameters
from heptune.cli.main import app
from heptune.core import events
from heptune.core.units import format_bytes, format_count, format_seconds
from heptune.data import shapes

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
BLOCK = re.compile(
    r"(?P<head><!-- generated: (?P<kind>[a-z ]+?)(?: `(?P<name>[^`]+)`)? -->\n).*?(?P<tail><!-- end -->)", re.S
)
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def table(headers: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; a pipe inside a cell is escaped."""
    lines = [list(headers)]
    lines += [["---"] * len(lines[0])]
    lines += [[cell.replace("|", r"\|") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def options(verb: str) -> str:
    """The arguments and options of a command, as its own help describes them."""
    parameters = COMMANDS[verb].params
    panels: dict[str, list[tuple[str, str, str]]] = {}
    for parameter in parameters:
        panel = getattr(parameter, "rich_help_panel", None) or ""
        row = (_spelling(parameter), _default(parameter), parameter.help.replace("\\[", "["))
        panels.setdefault(panel, []).append(row)
    parts = []
    for panel, rows in panels.items():
        title = f"**{re.sub(r' *[(].*', '', panel)}**\n\n" if panel else ""
        parts.append(title + table(("", "default", "meaning"), rows))
    return "\n".join(parts)


def _spelling(parameter: object) -> str:
    """'`--column ROLE=NAME`' for an option, '`DATA`' for an argument."""
    names = "`, `".join([*parameter.opts, *parameter.secondary_opts])  # type: ignore[attr-defined]
    metavar = parameter.metavar  # type: ignore[attr-defined]
    if not names.startswith("--"):
        return f"`{metavar}`"
    return f"`{names} {metavar}`" if metavar else f"`{names}`"


def _default(parameter: object) -> str:
    shown, default = parameter.show_default, parameter.default  # type: ignore[attr-defined]
    if parameter.required:  # type: ignore[attr-defined]
        return "required"
    if isinstance(shown, str):
        return shown.replace("\\[", "[")
    if isinstance(default, bool):
        return "on" if default else "off"
    return str(default)


def technique_list(_: str) -> str:
    """The techniques, each with a link to its page."""
    titles = ((name, techniques.card(name).splitlines()[0]) for name in techniques.names())
    return "".join(f"- [{title}](techniques/{name}.md)\n" for name, title in titles)


def settings_of(technique: str) -> str:
    """The hyperparameters of a technique."""
    rows = [(f"`--{h.name.replace('_', '-')}`", h.default, h.meaning) for h in hyperparameters(technique)]
    return table(("setting", "default", "meaning"), rows)


def card(technique: str) -> str:
    """A technique's card as Markdown: its section titles become headings, deeper indented lines stay code."""
    title, *lines = techniques.card(technique).splitlines()
    text = [f"# {title}", ""]
    for line in lines:
        if line and not line.startswith(" "):
            text += [f"## {line}", ""]
        else:
            text.append(line.removeprefix("    "))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(text)).strip() + "\n"


def technique_page(technique: str) -> str:
    """The whole page of a technique."""
    class_name = techniques_class(technique)
    first = next((h for h in hyperparameters(technique)), None)
    assert first is not None
    return (
        "<!-- made by docs/generate.py from the technique's own file; change that, not this -->\n"
        + card(technique)
        + f"\n## Settings\n\nOn the command line as below, in Python as fields of `heptune.{class_name}`.\n\n"
        + settings_of(technique)
        + f"\n    heptune tune smollm2-135m reviews.jsonl --technique {technique}\n"
    )


def techniques_class(technique: str) -> str:
    """The name of a technique's class, read from its file without importing it."""
    source = Path(techniques.__file__).with_name(f"{technique}.py").read_text("utf-8")
    return str(re.search(r"^TECHNIQUE = (\w+)$", source, re.M)[1])  # type: ignore[index]


def forest(_: str) -> str:
    """The drawing and its explanation, from the module that lays batches out."""
    text = ast.get_docstring(ast.parse((ROOT / "src/heptune/engine/forest.py").read_text("utf-8"))) or ""
    return text.partition("\n\n")[2] + "\n"


def run_directory(_: str) -> str:
    """The files of a run directory."""
    text = ast.get_docstring(ast.parse((ROOT / "src/heptune/runs/run.py").read_text("utf-8"))) or ""
    return text.partition("\n\n")[2] + "\n"


def race_directory(_: str) -> str:
    """The files of a race directory."""
    text = ast.get_docstring(ast.parse((ROOT / "src/heptune/racing/race.py").read_text("utf-8"))) or ""
    return text.partition("\n\n")[2].removesuffix(" Imports no torch.") + "\n"


def explained(module: str) -> str:
    """What a module's head explains after its first paragraph."""
    text = ast.get_docstring(ast.parse((ROOT / "src/heptune" / module).read_text("utf-8"))) or ""
    return text.partition("\n\n")[2] + "\n"


def checkpoint_files(_: str) -> str:
    """The files of a checkpoint."""
    text = ast.get_docstring(ast.parse((ROOT / "src/heptune/engine/checkpoint.py").read_text("utf-8"))) or ""
    return "    " + text.partition("\n\n")[2].replace("\n", "\n    ") + "\n"


def law_of_imports(_: str) -> str:
    """The order of the rooms, as the test holds it."""
    tree = ast.parse((ROOT / "tests/test_imports.py").read_text("utf-8"))
    values = {ast.unparse(n.targets[0]): n.value for n in tree.body if isinstance(n, ast.Assign)}
    levels = [sorted(level) for level in ast.literal_eval(values["ORDER"])]
    free = ", ".join(sorted(ast.literal_eval(values["DATA_ROOMS"])))
    order = " < ".join(", ".join(level) for level in levels)
    return f"    {order}\n\nRooms that hold only data and import nothing: {free}.\n"


def column_names(_: str) -> str:
    """Under which names a column is found."""
    rows = [(role, ", ".join(f"`{name}`" for name in names)) for role, names in shapes.ALIASES.items()]
    return table(("role", "found under the names"), rows)


def turn_roles(_: str) -> str:
    """How the roles of turns may be written."""
    names: dict[str, list[str]] = {}
    for written, role in shapes.TURN_ROLES.items():
        names.setdefault(role, []).append(f"`{written}`")
    return table(("role", "also written"), [(role, ", ".join(written)) for role, written in names.items()])


def event_list(_: str) -> str:
    """What a listener hears."""
    kinds = (events.Note, events.Progress, events.TrainingStarted, events.StepDone, events.Validated)
    rows = []
    of_races = (
        events.RaceStarted,
        events.StageStarted,
        events.CandidateMoved,
        events.CandidateDone,
        events.RungDecided,
    )
    for kind in (*kinds, events.CheckpointSaved, events.TrainingEnded, *of_races, events.RungDecided):
        meaning = " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split())
        rows.append((f"`{kind.__name__}`", ", ".join(f"`{name}`" for name in kind.__dataclass_fields__), meaning))
    return table(("event", "fields", "meaning"), rows)


def _report(name: str) -> dict[str, Any]:
    """A measured result; those that were never measured are absent."""
    path = DOCS / "results" / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def quality(name: str) -> str:
    """A data set's evaluation, from docs/results/NAME.json."""
    return _scored(_report(name))


def pretrained(name: str) -> str:
    """The commands of a pre-training, or of a tuning on top, and what came out, from docs/results/pretrain.json."""
    report = _report("pretrain").get(name, {})
    if not report:
        return _scored(report)
    facts = report["run"].get("pretrain")
    made = f"\n{format_count(facts['parameters'])} parameters, {facts['vocabulary']} tokens.\n" if facts else ""
    commands = "".join(f"    {line}\n" for line in report["commands"])
    return f"{commands}\n{_scored(report)}{made}"


def _scored(report: dict[str, Any]) -> str:
    if not report:
        return "Not measured yet.\n"
    evaluation, run = report["evaluation"], report["run"]
    metrics = list(evaluation["rows"][0]["metrics"])
    rows = [(row["name"], *(_interval(row["metrics"][m]) for m in metrics)) for row in evaluation["rows"]]
    result, difference = run["result"], evaluation["comparison"]
    p = difference["p_value"]
    against = difference.get("against", "untouched base").removeprefix("the ")
    return (
        table((f"{evaluation['examples']} test examples", *metrics), rows)
        + f"\nTuned minus {against}: {_interval(difference['difference'])} {difference['unit']}"
        + (f", McNemar p {'< 0.0001' if p < 1e-4 else f'= {p:.4f}'}" if p is not None else "")
        + f". {result['steps']} steps, {format_seconds(result['time_s'])} with validation, {run['threads']} threads; "
        f"{format_count(run['trainable'])} trainable parameters, artifact {format_bytes(result['artifact_bytes'])}.\n"
        + _calibration(evaluation.get("calibration"))
        + _by_type(evaluation.get("per_type") or [])
    )


def _calibration(found: dict[str, Any] | None) -> str:
    if not found:
        return ""
    return (
        f"\nCalibration: the expected calibration error is {_interval(found['error'])} as the model says it, and "
        f"{_interval(found['calibrated_error'])} at the temperature {found['temperature']:.2f} that was fitted on "
        f"{found['examples']} validation records.\n"
    )


def _by_type(found: list[dict[str, Any]]) -> str:
    if len(found) < 2:
        return ""
    metrics = list(found[0]["metrics"])
    rows = [
        (f"`{row['type']}`", str(row["count"]), *(_interval(row["metrics"][m]) for m in metrics))
        for row in sorted(found, key=lambda row: -row["count"])
    ]
    return "\n" + table(("tuned, type by type", "entities", *metrics), rows)


def rounds(_: str) -> str:
    """What second rounds brought and what they cost the first, from docs/results/rounds.json."""
    report = _report("rounds")
    if not report:
        return "Not measured yet.\n"

    def told(each: dict[str, Any]) -> tuple[str, str]:
        difference = each["difference"]
        moved = f"{difference['value']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]"
        return f"{each['parent']:.3f} -> {each['now']:.3f}", moved

    rows = []
    for way, found in report["second"].items():
        films, products = found["guarded"]["rounds"]
        kept = "refused" if found["guarded"]["refused"] else "may be promoted"
        rows.append((way, *told(films), *told(products), kept, format_seconds(found["time_s"])))
    heads = ("second round", "films", "difference", "products", "difference", "guard", "training")
    commands = "".join(
        f"    {line}\n" for line in (report["first"], *(r["command"] for r in report["second"].values()))
    )
    examples = [each["examples"] for each in next(iter(report["second"].values()))["guarded"]["rounds"]]
    below = f"Accuracy of parent and round on {examples[0]} held-out films and {examples[1]} products"
    return f"{commands}\n{table(heads, rows)}\n{below}; {report['threads']} threads.\n"


def _interval(value: dict[str, float]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def techniques_scores(name: str) -> str:
    """All techniques on a data set under one budget, from docs/results/techniques_NAME.json."""
    report = _report(f"techniques_{name}")
    ranked = _ranked(report)
    if not ranked:
        return "Not measured yet.\n"
    good, base_bytes = report["techniques"], report["base_resident_bytes"]
    metrics = list(good[ranked[0]]["metrics"])
    rows = [
        (
            f"`{technique}`",
            *(_interval(good[technique]["metrics"][m]) for m in metrics),
            format_count(good[technique]["trainable"]),
            format_seconds(good[technique]["training_s"]),
            f"{good[technique]['tokens_per_second']:.0f}",
            format_bytes(good[technique]["peak_memory_bytes"] - base_bytes),
            format_bytes(good[technique]["artifact_bytes"]),
        )
        for technique in ranked
    ]
    rows += [(row, *(_interval(values[m]) for m in metrics), *[""] * 5) for row, values in report["baselines"].items()]
    headers = ("trainable", "training", "real tokens/s", "memory above the base", "artifact")
    one, settings = good[ranked[0]], report["settings"]
    threads = sorted({good[technique]["threads"] for technique in ranked})
    return (
        table((f"{report['test_examples']} test examples", *metrics, *headers), rows)
        + f"\n{one['steps']} steps of {settings['batch_size']} examples for each technique: {one['tokens']} tokens, "
        f"{one['supervised_tokens']} of them supervised. Threads: {', '.join(map(str, threads))}. The process takes "
        f"{format_bytes(base_bytes)} with nothing but the base loaded.\n"
    )


def techniques_table(name: str) -> str:
    """The scores, and the rates that were tried."""
    report = _report(f"techniques_{name}")
    ranked, settings, results = _ranked(report), report.get("settings", {}), report.get("techniques", {})
    if not ranked:
        return techniques_scores(name)
    return (
        techniques_scores(name) + f"\nLearning rates tried, {settings['search_steps']} steps each, with the loss of "
        f"{settings['validation_limit']} validation examples; the chosen one is bold:\n\n"
        + table(("technique", "rate: loss"), [(f"`{t}`", _search(results[t])) for t in ranked])
        + "".join(f"\n`{t}` failed: {results[t]['error']}\n" for t in results if t not in ranked)
    )


def _ranked(report: dict[str, Any]) -> list[str]:
    """The techniques that were measured, the most accurate first."""
    good = {name: found for name, found in report.get("techniques", {}).items() if "error" not in found}
    return sorted(good, key=lambda name: -good[name]["metrics"]["accuracy"]["value"])


def _search(found: dict[str, Any]) -> str:
    """Every rate that was tried, from the lowest; where the best is the last of its side, that is said."""
    texts = []
    for trial in sorted(found["search"], key=lambda trial: trial["learning_rate"]):
        loss = f"{trial['loss']:.3f}" if "loss" in trial else "failed"
        text = f"{trial['learning_rate']:g}: {loss}"
        texts.append(f"**{text}**" if trial["learning_rate"] == found["learning_rate"] else text)
    return ", ".join(texts) + (" (at the edge of what was tried)" if found["at_the_edge"] else "")


def speed(name: str) -> str:
    """Training speed on one workload beside the peers', from docs/results/train_cpu_NAME.json."""
    report = _report(f"train_cpu_{name}")
    if not report:
        return "Not measured yet.\n"

    def ratio(spread: dict[str, float] | None) -> str:
        return f"{spread['median']:.2f} ({spread['min']:.2f} to {spread['max']:.2f})" if spread else ""

    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "real tokens/s": lambda row: f"{row['tokens_per_second']:.0f}",
        "x trainer": lambda row: ratio(row["ratio_to_trainer"]),
        "x best of TRL": lambda row: ratio(row["ratio_to_best_trl"]),
        "peak MiB above the model": lambda row: f"{row['peak_memory_mib']:.0f}",
        "loss differs by": lambda row: (
            "" if row["largest_loss_difference"] is None else f"{row['largest_loss_difference']:.0e}"
        ),
    }
    (rows,) = report["summary"].values()
    told = {head: cell for head, cell in columns.items() if any(cell(row) for row in rows.values())}
    lines = ((f"`{name}`", *(cell(row) for cell in told.values())) for name, row in rows.items())
    return table(("contender", *told), lines)


def matrix(technique: str) -> str:
    """What was tried with a technique in every family, from docs/results/matrix.json; reasons stand below the table."""
    tried = _report("matrix").get(technique)
    if not tried:
        return "Not tried yet.\n"
    reasons: list[str] = []

    def cell(outcome: str) -> str:
        if outcome == "yes":
            return "yes"
        if outcome not in reasons:
            reasons.append(outcome)
        return f"no ({reasons.index(outcome) + 1})"

    checks = list(next(iter(tried.values())))
    rows = [(family, *(cell(outcomes[check]) for check in checks)) for family, outcomes in tried.items()]
    below = "".join(f"\n{number}. {reason}" for number, reason in enumerate(reasons, 1))
    return table(("", *checks), rows) + (below + "\n" if below else "")


# What is predicted, how it is told, and in which of the results' units.
_PREDICTED: dict[str, tuple[str, Callable[[float], str]]] = {
    "live": ("live memory", format_bytes),
    "resident": ("resident memory", format_bytes),
    "time": ("time of a step", lambda value: f"{value:.2f} s"),
}


def plan_errors(_: str) -> str:
    """How far the planner's predictions are from what was measured, from docs/results/plan.json."""
    report = _report("plan")
    rows = _predictions(report)
    if not rows:
        return "Not measured yet.\n"
    lines = []
    for quantity, (title, _unit) in _PREDICTED.items():
        errors = [row["predicted"][quantity] / row["measured"][quantity] - 1 for row in rows if _known(row, quantity)]
        if errors:
            sizes = sorted(map(abs, errors))
            at_95 = sizes[math.ceil(0.95 * len(sizes)) - 1]
            within = sum(size <= 0.15 for size in sizes)
            cells = (statistics.median(sizes), at_95, min(0.0, *errors), max(0.0, *errors))
            lines.append((title, str(len(errors)), *(f"{100 * cell:.1f}%" for cell in cells), f"{within}"))
    headers = ("combinations", "median error", "95th percentile", "most too low", "most too high", "within 15%")
    machines = dict.fromkeys(f"{m['name']}, {m['threads']} threads" for m in report["machines"])
    return table(("", *headers), lines) + f"\nMeasured on: {'; '.join(machines)}.\n"


def plan_rows(_: str) -> str:
    """Every combination: measured, and how far the prediction is from it."""
    rows = _predictions(_report("plan"))
    if not rows:
        return "Not measured yet.\n"

    def cells(row: dict[str, Any]) -> Iterator[str]:
        for quantity, (_, unit) in _PREDICTED.items():
            if not _known(row, quantity):
                yield ""
                continue
            measured = row["measured"][quantity]
            percent = round(100 * (row["predicted"][quantity] / measured - 1))
            yield f"{unit(measured)} ({percent:+d}%)" if percent else f"{unit(measured)} (0%)"

    lines = (
        (*(f"`{word}`" for word in row["name"].split()), str(row["rows"]), *cells(row))
        for row in sorted(rows, key=lambda row: row["name"])
    )
    titles = (title for title, _ in _PREDICTED.values())
    return table(("model", "technique", "batch", "rows", *titles), lines)


def _predictions(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": name, **row} for name, row in report.get("rows", {}).items() if "predicted" in row]


def _known(row: dict[str, Any], quantity: str) -> bool:
    return row["measured"].get(quantity) is not None


def verdict_races(_: str) -> str:
    """How often the verdict is right in simulated races, from docs/results/verdict.json."""
    report = _report("verdict")
    if not report:
        return "Not measured yet.\n"

    def percent(share: float) -> str:
        return f"{100 * share:.1f} %"

    rows = []
    for race in report["races"]:
        power = race["power"]
        rows.append(
            (
                str(race["examples"]),
                f"{race['techniques']} x {race['seeds']} seeds" + (" + 4" if race["baselines"] else ""),
                f"{race['seed_points']:g}" + (", uneven" if race["uneven"] else ""),
                race["alike"],
                percent(race["together"]),
                percent(race["told_apart_wrongly"]),
                percent(race["each_score"]),
                f"{100 * race['half_width']:.1f}",
                *(percent(power[gap]) if power else "" for gap in ("2", "5", "10")),
                f"{100 * race['optimism']:+.2f} ± {100 * race['optimism_error']:.2f}",
            )
        )
    headers = ("examples", "techniques + baselines", "seeds differ by", "models alike", "all intervals hold")
    headers += ("told apart wrongly", "a score's interval holds", "half width", "2 found", "5 found", "10 found")
    rounds = report["races"][0]["rounds"]
    return table((*headers, "winner's optimism"), rows) + f"\n{rounds} races a line, half as many for what is found.\n"


def regret(_: str) -> str:
    """The races of benchmarks/race.py beside their exhaustive grids."""
    rows = []
    for found in _races():
        rows.append(
            [
                f"`{found['set']}`",
                f"{len(found['grid'])} x {found['steps']} steps",
                f"{found['test_examples']}",
                f"`{found['best']}` {100 * found['best_score']:.1f}",
                f"`{found['pick']}` {100 * found['pick_score']:.1f}",
                _apart(found["regret"]),
                f"`{found['best_finalist']}` {100 * found['grid'][found['best_finalist']]:.1f}",
                _apart(found["finalist_regret"]),
                f"{found['cost_share']:.0%}",
                f"{format_seconds(found['race_s'])} of {format_seconds(found['grid_s'])}",
            ]
        )
    heads = ["set", "grid", "test examples", "best of the grid", "the race's pick", "regret", "better finalist"]
    return table([*heads, "its regret", "cost", "computing"], rows)


def _apart(found: dict[str, float] | None) -> str:
    if found is None:
        return "0"
    return f"{100 * found['value']:+.1f} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"


def grids(_: str) -> str:
    """The test scores of every candidate of every grid; the finalists are bold."""
    races = _races()
    names = sorted({name for found in races for name in found["grid"]})
    rows = []
    for name in names:
        cells = []
        for found in races:
            score = f"{100 * found['grid'][name]:.1f}" if name in found["grid"] else "failed"
            cells.append(f"**{score}**" if name in found["finalists"] else score)
        rows.append([f"`{name}`", *cells])
    return table(["candidate", *(f"`{found['set']}`" for found in races)], rows)


def _races() -> list[dict[str, Any]]:
    paths = sorted((DOCS / "results").glob("race_*.json"))
    return [json.loads(path.read_text("utf-8")) for path in paths]


def serving(kind: str) -> str:
    """Many clients beside PEFT one at a time, or the long run under load, from docs/results/serving.json."""
    report = _report("serving").get("soak" if kind == "soak" else "comparison")
    if not report:
        return "Not measured yet.\n"
    where = f"Threads: {report['threads']}; {report['machine']}."
    if kind == "soak":
        statuses = sorted(report["statuses"].items())
        peaks = report["minute_peaks"]
        minutes = ", ".join(format_bytes(peak) for peak in peaks)
        return (
            table(("what a client did, and the status", "times"), ((name, str(count)) for name, count in statuses))
            + f"\n{report['clients']} clients, {format_seconds(report['seconds'])}. The most resident memory in each "
            f"minute: {minutes}. {where}\n"
        )
    rounds = report["rounds"]

    def spread(values: list[float], form: str) -> str:
        return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"

    rows = []
    for name in [name for name in rounds[0] if isinstance(rounds[0][name], dict)]:
        own = [each[name] for each in rounds]
        other = "heptune-base" if name in ("heptune-base", "transformers") else "peft"
        if other == "heptune-base":
            other = "transformers" if "transformers" in rounds[0] else "heptune-base"
        ratios = [each[name]["tokens_per_s"] / each[other]["tokens_per_s"] for each in rounds]
        rows.append(
            (
                f"`{name}`",
                spread([each["requests_per_s"] for each in own], ".2f"),
                spread([each["tokens_per_s"] for each in own], ".0f"),
                f"{spread(ratios, '.2f')} x `{other}`",
                f"{statistics.median(each['p50_s'] for each in own):.1f} s",
                f"{statistics.median(each['p95_s'] for each in own):.1f} s",
                format_bytes(max(each["peak_memory_bytes"] for each in own)),
            )
        )
    requests = rounds[0]["heptune"]["requests"]
    same = [each["same_as_peft"] for each in rounds]
    return (
        table(("contender", "requests/s", "tokens/s", "tokens/s, times", "p50", "p95", "peak memory"), rows)
        + f"\n{report['clients']} clients with {report['each']} requests each, greedy replies of at most "
        f"{report['tokens']} tokens; medians of {len(rounds)} rounds, in brackets the spread. Of {requests} replies "
        f"{min(same)} are the same text as PEFT's. {where}\n"
    )


def label_scoring(_: str) -> str:
    """One forest beside one forward pass for each label, from docs/results/labels.json."""
    report = _report("labels")
    if not report:
        return "Not measured yet.\n"
    rows = [
        (
            str(number),
            str(text["prompt_tokens"]),
            f"{text['plain_s']:.2f} s",
            f"{text['forest_s']:.2f} s",
            f"{text['plain_s'] / text['forest_s']:.1f}",
        )
        for number, text in enumerate(report["texts"], 1)
    ]
    ratio, labels = report["ratio"], report["texts"][0]["label_tokens"]
    return (
        table(("text", "tokens of the prompt", "plain", "forest", "times faster"), rows)
        + f"\n{report['labels']} labels of {labels} tokens in all. The forest is {ratio['median']:.1f} times faster "
        f"(median of {len(rows)} texts; {ratio['min']:.1f} to {ratio['max']:.1f}), all texts together "
        f"{report['ratio_together']:.1f} times. The scores differ by {report['largest_difference']:.0e} of their size "
        f"at most. Threads: {report['threads']}; {report['machine']}.\n"
    )


def exports(_: str) -> str:
    """What the gate measured of exports of a real base, from docs/results/export.json."""
    report = _report("export")
    if not report:
        return "Not measured yet.\n"
    commands = "".join(f"    {line}\n" for line in report["tuned"].values())
    rows = []
    for found in report["exports"]:
        for parity in found["parity"]:
            before, after = parity["before"], parity["after"]
            agreed = f"{parity['agreed']} of {parity['greedy']}"
            rows.append(
                [
                    f"`{found['technique']}`",
                    f"`{found['options']}`",
                    format_bytes(found["bytes"]),
                    parity["consumer"],
                    f"{parity['logits']:.1e}",
                    f"{parity['relative']:.1e}",
                    f"{parity['learned']:.1e}",
                    agreed,
                    f"{after['loss'] - before['loss']:+.1e}",
                    f"{before['score']:.3f} -> {after['score']:.3f}",
                ]
            )
    heads = [
        "run",
        "export",
        "size",
        "loaded by",
        "largest difference of a logit",
        "relative",
        "learned",
        "greedy tokens",
    ]
    text = table([*heads, "loss, nats", "accuracy"], rows)
    records = report["exports"][0]["parity"][0]["records"]
    versions = report["versions"]
    told = f"torch {versions['torch']}, transformers {versions['transformers']}, {versions['platform']}"
    return f"{commands}\n{text}\n{records} held-out messages. Threads: {report['threads']}; {told}.\n"


def reading(_: str) -> str:
    """How fast a large file is checked, and in how much memory, from docs/results/reading.json."""
    report = _report("reading")
    if not report:
        return "Not measured yet.\n"
    checked, read = report["check"], report["read"]
    megabytes = checked["bytes"] / 1e6

    def told(found: dict[str, Any], rows: list[tuple[str, str]]) -> str:
        size = f"{found['bytes'] / 1e6:,.0f} MB, {found['records']:,} records"
        time_s = (("time on the clock", "seconds"), ("processor time", "processor_seconds"))
        return table(("", size), [*((title, format_seconds(found[name])) for title, name in time_s), *rows])

    return (
        "`heptune check`:\n\n"
        + told(
            checked,
            [
                ("per second of the processor", f"{megabytes / checked['processor_seconds']:.1f} MB"),
                ("tokens", f"{checked['tokens']:,}"),
                (
                    "repetitions and bad lines found",
                    f"{checked['duplicates']:,} and {checked['bad_lines']}, all of them",
                ),
                ("peak of resident memory", f"{checked['peak_memory_bytes'] / 1e6:.0f} MB"),
                ("of it for the tokenizer, before anything is read", f"{checked['floor_bytes'] / 1e6:.0f} MB"),
            ],
        )
        + "\nReading into memory:\n\n"
        + told(
            read,
            [
                (
                    "resident before and after",
                    f"{read['before_bytes'] / 1e6:.0f} and {read['after_bytes'] / 1e6:.0f} MB",
                ),
                ("peak of resident memory", f"{read['peak_memory_bytes'] / 1e6:.0f} MB"),
            ],
        )
        + f"\nMeasured on: {report['machine']}.\n"
    )


KINDS: dict[str, Callable[[str], str]] = {
    "options": options,
    "settings": settings_of,
    "techniques": technique_list,
    "forest": forest,
    "run directory": run_directory,
    "race directory": race_directory,
    "explained": explained,
    "checkpoint": checkpoint_files,
    "law of imports": law_of_imports,
    "column names": column_names,
    "turn roles": turn_roles,
    "events": event_list,
    "quality": quality,
    "pretrained": pretrained,
    "rounds": rounds,
    "techniques table": techniques_table,
    "techniques scores": techniques_scores,
    "speed": speed,
    "matrix": matrix,
    "plan errors": plan_errors,
    "plan rows": plan_rows,
    "verdict races": verdict_races,
    "regret": regret,
    "grids": grids,
    "labels": label_scoring,
    "serving comparison": lambda _: serving("comparison"),
    "serving soak": lambda _: serving("soak"),
    "exports": exports,
    "reading": reading,
}


def filled(text: str) -> str:
    """A page with its generated parts as the code has them now."""

    def block(match: re.Match[str]) -> str:
        return f"{match['head']}\n{KINDS[match['kind']](match['name'] or '')}\n{match['tail']}"

    return BLOCK.sub(block, text)


def pages() -> dict[Path, str]:
    """Every page that is generated wholly or in part, with the text that it should have."""
    written = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted((DOCS / "results").glob("*.md"))]
    wanted = {path: filled(path.read_text("utf-8")) for path in written}
    return wanted | {DOCS / "techniques" / f"{name}.md": technique_page(name) for name in techniques.names()}


def stale() -> dict[Path, str]:
    """The pages that are missing or out of date, with the text that they should have."""
    return {p: text for p, text in pages().items() if not p.exists() or p.read_text("utf-8") != text}


def main() -> int:
    """Rewrites or checks the pages."""
    changed = stale()
    for path, text in changed.items():
        print(path.relative_to(ROOT))
        if "--check" not in sys.argv[1:]:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, "utf-8")
    return int("--check" in sys.argv[1:] and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
