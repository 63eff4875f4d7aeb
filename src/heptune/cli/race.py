"""`heptune race`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from heptune.cli import options
from heptune.core.errors import UsageError
from heptune.core.units import format_bytes, format_seconds, parse_seconds

if TYPE_CHECKING:
    from rich.console import Console

    from heptune.racing.race import Race

BUDGET = "10m"
PLACES = ("here", "ray")


# What a race leaves to the person; the learning rate, the length and the validations are its own.
SETTINGS = (
    *("epochs", "max_steps", "batch_tokens", "batch_size", "micro_tokens", "max_length", "schedule", "warmup"),
    *("weight_decay", "clip", "validation_limit", "recompute", "share", "quantize", "seed"),
)


@options.with_settings(*SETTINGS)
def race(
    base: options.BaseArgument,
    data: options.DataArgument,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Wall time for everything: 90s, 10m, 2h; 'none' for no limit.", show_default=BUDGET
        ),
    ] = None,
    budget_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens that all candidates together train on, instead of --budget.", show_default="not set"
        ),
    ] = None,
    techniques: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="Who competes.", show_default="all techniques")
    ] = None,
    rates: Annotated[
        str, typer.Option(metavar="FACTOR,FACTOR", help="Learning rates, as factors of each technique's own.")
    ] = "0.333,1,3",
    metric: Annotated[
        str | None, typer.Option(help="What the verdict is about: accuracy or loss.", show_default="the task's own")
    ] = None,
    task: options.TaskName = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="New race directory.", show_default="races/race-N")
    ] = None,
    finalists: Annotated[int, typer.Option(min=1, help="Techniques that reach the final.")] = 2,
    seeds: Annotated[int, typer.Option(min=2, help="Trainings of each finalist, each with a seed of its own.")] = 2,
    validation: options.Validation = None,
    test: options.Test = None,
    test_limit: Annotated[int, typer.Option(min=2, help="Most test examples that the verdict is spoken on.")] = 1000,
    limit: Annotated[int | None, typer.Option(min=1, help="Most training examples.", show_default="all")] = None,
    column: options.Column = None,
    skip_bad: options.SkipBad = False,
    parallel: Annotated[
        int | None,
        typer.Option(min=1, help="Candidates that train at a time.", show_default="as memory and cores allow"),
    ] = None,
    on: Annotated[str, typer.Option(help="Where candidates train: here, or on a Ray cluster (ray).")] = "here",
    threads: options.Threads = None,
    **settings: Any,
) -> None:
    """Let techniques compete on DATA under one budget; the verdict says which fits, with error bars.

    Ctrl-C saves; `heptune resume RACE` goes on."""
    columns = options.columns(column)
    if on not in PLACES:
        raise UsageError(f"--on is {on!r}; known: {', '.join(PLACES)}")
    if budget is not None and budget_tokens is not None:
        raise UsageError("a race has one budget: --budget or --budget-tokens, not both")
    limit_s = None if budget_tokens is not None or budget == "none" else parse_seconds(budget or BUDGET)
    parts = {
        "validation": options.file_or_share("--validation", validation),
        "test": options.file_or_share("--test", test),
    }
    options.use_threads(threads)
    from heptune import api
    from heptune.cli.race_live import live
    from heptune.cli.show import console

    screen = console()
    with live(screen) as listener:
        made = api.race(
            base,
            data,
            techniques=None if techniques is None else [name.strip() for name in techniques.split(",")],
            task=task,
            metric=metric,
            out=out,
            options=api.DataOptions(**parts, limit=limit, columns=columns, skip_bad=skip_bad),
            terms=api.Terms(
                budget_s=limit_s,
                budget_tokens=budget_tokens,
                rates=options.numbers("--rates", rates),
                finalists=finalists,
                seeds=seeds,
                test_limit=test_limit,
                width=parallel,
            ),
            on=on,
            command=["heptune", *sys.argv[1:]],
            listener=listener,
            **settings,
        )
    finish(made, screen)


def go_on(folder: Path) -> None:
    """Continues a race that was interrupted or killed."""
    from heptune import api
    from heptune.cli.race_live import live
    from heptune.cli.show import console

    screen = console()
    with live(screen) as listener:
        continued = api.resume_race(folder, listener=listener)
    finish(continued, screen)


# Columns from which on a verdict's table says who is tied; those that it takes beside its bars; and the fewest that are
# worth drawing one in.
WIDE, BESIDE_BARS, SHORTEST_BAR = 96, 104, 10


def finish(race: Race, screen: Console, say_next: bool = True) -> None:
    """Prints the verdict and what to do next. Leaves the program when the race was interrupted."""
    from heptune.cli.show import command

    if race.values["status"] == "interrupted":
        screen.print(f"interrupted; everything so far is saved in {race.folder}. Go on with:", soft_wrap=True)
        screen.print(f"    {command('resume', race.folder)}", soft_wrap=True)
        raise typer.Exit(options.INTERRUPTED)
    print_verdict(race, screen)
    if say_next:
        winner = race.winner
        screen.print()
        screen.print(f"Next:  {command('report', race.folder)}", soft_wrap=True)
        if winner is not None:
            screen.print(f"       {command('chat', winner)}", soft_wrap=True)


def print_verdict(race: Race, screen: Console) -> None:
    """The table of the final, and what it says in words."""
    from heptune.cli.show import bar, table

    verdict = race.verdict
    screen.print()
    head = f"{race.values['task']['name']}: {verdict['examples']} examples of {verdict['part']}, {verdict['metric']}"
    screen.print(f"{head}; in brackets the {verdict['level']:.0%} interval", soft_wrap=True)
    screen.print()
    rows = []
    # What a narrow screen has no room for, so that no score is broken in two.
    wide = screen.width >= WIDE
    width = min(20, screen.width - BESIDE_BARS) if verdict["metric"] == "accuracy" else 0
    for each in verdict["contenders"]:
        score = each["score"]
        mark = "* " if each["name"] == verdict["winner"] else "  "
        trained = each["kind"] == "technique"
        rows.append(
            [
                mark + each["name"],
                f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]",
                format_seconds(each["time_s"]) if trained else "",
                format_bytes(each["memory_bytes"]) if trained else "",
                format_bytes(each["artifact_bytes"]) if trained else "",
                *([("tied" if each["tied_with_best"] else "") + (" front" if each["pareto"] else "")] if wide else []),
                *([bar(score["value"], width)] if width >= SHORTEST_BAR else []),
            ]
        )
    headers = ["", verdict["metric"], "training", "peak memory", "artifact", "", ""][: len(rows[0])]
    screen.print(table(headers, rows, numbers=(1, 2, 3, 4)))
    screen.print()
    for sentence in verdict["words"]:
        screen.print(sentence, soft_wrap=True)
    cost = race.values["cost"]
    screen.print()
    text = f"The race took {format_seconds(cost['time_s'])}: {len(race.values['candidates'])} candidates"
    full = race.values["exhaustive_cost_estimate"]["time_s"]
    screen.print(f"{text}; training each to the end was estimated at {format_seconds(full)}.", soft_wrap=True)
