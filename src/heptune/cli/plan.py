"""`heptune plan`. Calls the planning room itself: the API imports torch, which takes longer than a plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from heptune.cli import options
from heptune.core.errors import UsageError
from heptune.core.units import format_bytes, format_count, format_seconds

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from heptune.planning.estimate import Estimate
    from heptune.planning.plan import Plan, TechniquePlan

EVIDENCE_SHOWN = 4
GOOD, CHANGED, BAD = "green", "yellow", "red"

# The settings that change memory or time.
SETTINGS = (
    *("epochs", "max_steps", "max_minutes", "batch_tokens", "batch_size", "micro_tokens", "max_length"),
    *("validate_every", "validation_limit", "recompute", "share", "quantize", "seed"),
)


@options.with_settings(*SETTINGS)
def plan(
    base: Annotated[
        str | None,
        typer.Argument(
            metavar="BASE",
            help="A name of the catalog (--bases), a local model folder, a .gguf file, or a model's name on the hub.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DATA]",
            help="A data set, as tune takes it: it is counted on.",
            show_default="--examples of --length tokens",
        ),
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(metavar="NAME", help='A known GPU, e.g. "RTX 4090".', show_default="none")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory of a GPU, e.g. 24GB; no times then.", show_default="the GPU's own"),
    ] = None,
    this_machine: Annotated[
        bool, typer.Option("--this-machine", help="Plan for this machine, as without --gpu and --memory.")
    ] = False,
    devices: Annotated[
        int | None, typer.Option(min=1, help="How many such devices share the work.", show_default="1")
    ] = None,
    technique: Annotated[
        list[str] | None,
        typer.Option(help="Plan this technique in detail; may be repeated.", show_default="a table of all"),
    ] = None,
    task: options.TaskName = None,
    examples: Annotated[
        int | None, typer.Option(min=1, help="Without DATA: training examples.", show_default="1000")
    ] = None,
    length: Annotated[
        int | None, typer.Option(min=8, help="Without DATA: tokens of an example.", show_default="512")
    ] = None,
    validation: options.Validation = None,
    test: options.Test = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most training examples.", show_default="all")] = None,
    column: options.Column = None,
    skip_bad: options.SkipBad = False,
    bases: Annotated[bool, typer.Option("--bases", help="List the bases of the catalog and leave.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON and nothing else.")] = False,
    **settings: Any,
) -> None:
    """Predict what every technique costs on BASE, whether it fits, and which to begin with. Loads no weights."""
    from heptune.cli.show import console

    if bases:
        _print_bases(console())
        return
    if base is None:
        raise UsageError("plan needs a base, e.g. `heptune plan llama-3.1-8b`; `heptune plan --bases` lists known ones")
    if this_machine and (gpu or memory):
        raise UsageError("--this-machine and --gpu or --memory name two targets; leave one out")
    parts = {
        "validation": options.file_or_share("--validation", validation),
        "test": options.file_or_share("--test", test),
    }
    columns = options.columns(column)
    from heptune.cli.live import live
    from heptune.data.parts import DataOptions
    from heptune.planning.plan import plan as make

    with live(console(stderr=True)) as listener:
        made = make(
            base,
            data,
            gpu=gpu,
            memory=memory,
            devices=devices,
            technique=technique or (),
            task=task,
            examples=examples,
            length=length,
            options=DataOptions(**parts, limit=limit, columns=columns or None, skip_bad=skip_bad),
            listener=listener,
            **settings,
        )
    if as_json:
        print(json.dumps(made.to_json(), indent=1, ensure_ascii=False))
        return
    print_plan(made, console(), detailed=bool(technique))


def print_plan(made: Plan, screen: Console, detailed: bool = False) -> None:
    """The question, a row for each technique (or each in detail), the advice and the next step."""
    from heptune.cli.show import command, pairs

    screen.print(pairs(_question(made)))
    screen.print()
    for one in made.techniques if detailed else ():
        _print_technique(one, screen)
    if not detailed or len(made.techniques) > 1:
        _print_overview(made, screen)
    for note in made.notes:
        screen.print(note, soft_wrap=True)
    _print_advice(made, screen)
    if made.command is not None:
        screen.print(f"Next:  {command(*made.command)}", soft_wrap=True)
    elif made.advice.technique is not None:
        screen.print("Next:  plan for a base that can be tuned here; `heptune plan --bases` lists them", soft_wrap=True)


def _question(made: Plan) -> list[tuple[str, str]]:
    shape, layout = made.base.shape, made.layout
    active = f", {format_count(shape.active_parameters)} of them active" if _is_mixture(made) else ""
    sizes = f"{format_count(shape.parameters)} parameters{active}, {shape.layers} layers, {shape.hidden} wide"
    largest = layout["largest_pass"]
    tokens, computed = (format_count(layout[f"{name}_per_epoch"]) for name in ("tokens", "rows"))
    return [
        ("base", f"{made.base.name}: {sizes} ({made.base.origin})"),
        ("workload", "; ".join(made.workload.said)),
        (
            "one epoch",
            f"{tokens} tokens, {computed} rows computed, {round(layout['steps_per_epoch'])} steps; "
            f"largest pass {largest['rows']} rows",
        ),
        ("target", made.target.said),
    ]


def _is_mixture(made: Plan) -> bool:
    return made.base.shape.active_parameters < made.base.shape.parameters


def _print_overview(made: Plan, screen: Console) -> None:
    from heptune.cli.show import table

    rows: list[list[str | Text]] = []
    for one in made.techniques:
        if one.estimate is None or one.serving is None:
            rows.append([one.technique, "", "", _fits(one), "", "", "", one.prior.words])
            continue
        timing = None if one.chosen is None else one.chosen.timing
        rows.append(
            [
                _mark(one, made),
                format_count(one.trainable),
                format_bytes(one.estimate.peak_bytes),
                _fits(one),
                "" if timing is None else _about(timing.total_s),
                format_bytes(one.artifact_bytes),
                one.serving.words,
                one.prior.words,
            ]
        )
    heads = ["technique", "trains", "peak", "fits", "time", "artifact", "at use", "prior"]
    overview = table(heads, rows, numbers=(1, 2, 4, 5))
    overview.columns[0].no_wrap = True
    screen.print(overview)
    screen.print()
    timed = "" if made.target.machine is None else " time: for what fits, validations included;"
    screen.print(
        f"peak: memory with the settings as given, of {format_bytes(made.target.memory_bytes)};{timed} prior: "
        "from other comparisons, no prediction.",
        soft_wrap=True,
    )


def _about(time_s: float) -> str:
    """A predicted time is not known to the second."""
    return format_seconds(time_s) if time_s < 600 else format_seconds(60 * round(time_s / 60)).removesuffix(" 00 s")


def _mark(one: TechniquePlan, made: Plan) -> Text:
    from rich.text import Text

    return Text(one.technique, style="bold" if one.technique == made.advice.technique else "")


def _fits(one: TechniquePlan) -> Text:
    from rich.text import Text

    if one.estimate is None:
        return Text(f"no: {one.problem}", style=BAD)
    if one.estimate.fits:
        return Text("yes" if one.estimate.strategy == "one device" else one.estimate.strategy, style=GOOD)
    if one.change is not None:
        way = "" if one.change.estimate.strategy == "one device" else f"{one.change.estimate.strategy}, "
        return Text(f"{way}{' '.join(one.change.options)}", style=CHANGED)
    many = f" or {one.devices_needed} devices" if one.devices_needed is not None else ""
    return Text(f"no: needs {format_bytes(one.least_bytes)}{many}", style=BAD)


def _print_technique(one: TechniquePlan, screen: Console) -> None:
    from heptune.cli.show import pairs

    screen.print(one.technique, style="bold")
    if one.estimate is None or one.serving is None:
        screen.print(f"It cannot be run here: {one.problem}", soft_wrap=True)
        screen.print()
        return
    shown = one.chosen or one.estimate
    rows = [
        ("trainable parameters", f"{format_count(one.trainable)}, {one.trainable_share:.3%} of the base"),
        ("base", f"{one.dtype}{', in 4 bits' if one.quantized else ''}"),
        ("fits", f"with {_fits(one)}" if one.change is not None else str(_fits(one))),
        ("artifact", format_bytes(one.artifact_bytes)),
        ("at use", _use(one)),
        *_times(shown),
    ]
    screen.print(pairs(rows))
    screen.print()
    _print_bars("memory at the peak of a training step, as asked:", one.estimate, screen)
    if one.change is not None:
        screen.print(f"with {' '.join(one.change.options)}:", soft_wrap=True)
        _print_bars("", one.change.estimate, screen)
    screen.print(f"prior: {one.prior.words}", soft_wrap=True)
    for line in one.prior.evidence[:EVIDENCE_SHOWN]:
        screen.print(f"  {line}", soft_wrap=True)
    screen.print()


def _use(one: TechniquePlan) -> str:
    from heptune.planning.estimate import format_flops

    found = one.serving
    assert found is not None
    if found.merged:
        return "nothing: it merges into the base"
    cost = f"{format_flops(found.token_flops)} more a token"
    kept = f", {format_bytes(found.request_bytes)} of keys and values a request" if found.request_bytes else ""
    return f"{found.positions} positions{kept}, {cost}" if found.positions else cost


def _times(shown: Estimate) -> list[tuple[str, str]]:
    timing = shown.timing
    if timing is None:
        return []
    judged = f"{timing.validations} validations of {format_seconds(timing.validation_s)}"
    return [
        ("time of an epoch", f"{format_seconds(timing.epoch_s)}, {format_seconds(timing.step_s)} a step"),
        ("time in all", f"{format_seconds(timing.total_s)}: {timing.steps} steps and {judged}"),
    ]


def _print_bars(title: str, shown: Estimate, screen: Console) -> None:
    from rich.text import Text

    from heptune.cli.show import bar, table

    room = shown.room_bytes
    top = max(room, *shown.phases.values())
    parts = {**vars(shown.memory), "process and allocator": shown.overhead_bytes}
    if title:
        screen.print(title)
    lines: list[list[str | Text]] = [[name, format_bytes(size), bar(size / top)] for name, size in parts.items()]
    lines.append(["", "", ""])
    for name, size in shown.phases.items():
        style = BAD if size > room else GOOD
        lines.append([f"phase: {name}", format_bytes(size), Text(bar(size / top), style=style)])
    lines.append(["there is", format_bytes(room), Text(bar(room / top), style="dim")])
    screen.print(table(["", "", ""], lines, numbers=(1,)))
    screen.print()


def _print_advice(made: Plan, screen: Console) -> None:
    from rich.text import Text

    advice = made.advice
    screen.print()
    if advice.technique is not None:
        screen.print(Text("Begin with ").append(advice.technique, style="bold").append("."))
    for line in (*advice.reasons, *advice.cautions):
        screen.print(line, soft_wrap=True)
    screen.print()


def _print_bases(screen: Console) -> None:
    from heptune.cli.show import table
    from heptune.models.catalog import entries

    rows = [
        [entry.name, entry.title, format_count(entry.shape.parameters), entry.hub[0] if entry.hub else entry.note or ""]
        for entry in entries().values()
    ]
    screen.print(table(["name", "base", "parameters", "on the hub"], rows, numbers=(2,)))
