"""`heptune eval`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from heptune.cli import options

if TYPE_CHECKING:
    from rich.console import Console

    from heptune.api import Evaluation

MATRIX_LABELS = 12  # a larger confusion matrix does not fit a screen


def evaluate(
    run: options.RunArgument,
    data: Annotated[
        Path | None,
        typer.Argument(metavar="[DATA]", help="Examples to score.", show_default="the run's own test part"),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most examples that are scored.", show_default="all")] = None,
    column: options.Column = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")] = False,
    serving: options.Serving = False,
    threads: options.Threads = None,
) -> None:
    """Score RUN on held-out data, beside the baselines, with 95% intervals."""
    run = options.serving(run, serving)
    columns = options.columns(column)
    options.use_threads(threads)
    from heptune import api
    from heptune.cli.live import live
    from heptune.cli.show import console

    with live(console(stderr=True)) as listener:
        result = api.evaluate(run, data, limit=limit, columns=columns or None, listener=listener)
    if as_json:
        print(json.dumps(without_nan(result.to_json()), indent=1, ensure_ascii=False))
    else:
        print_evaluation(result, console())


def print_evaluation(result: Evaluation, screen: Console) -> None:
    """The table, what it says in words, where the errors are, and examples."""
    from heptune.cli.show import bar, table

    names = list(result.rows[0].metrics)
    head = f"{result.task}: {result.examples} examples of {result.part}; in brackets the 95% interval"
    screen.print(head, soft_wrap=True)
    screen.print()
    share = names[0] == "accuracy"
    headers = ["", *names, *([""] if share else [])]
    rows = []
    for row in result.rows:
        bars = [bar(row.metrics[names[0]].value)] if share else []
        rows.append([row.name, *(str(row.metrics[name]) for name in names), *bars])
    screen.print(table(headers, rows))
    screen.print()
    for line in verdict(result):
        screen.print(line, soft_wrap=True)
    if result.cut:
        lost = f", and {result.lost} of them lost their answer with it" if result.lost else ""
        screen.print(
            f"{result.cut} examples were longer than the run's --max-length and were cut{lost}.", soft_wrap=True
        )
    if 0 < len(result.labels) <= MATRIX_LABELS:
        _print_confusion(result, screen)
    if result.per_type:
        _print_types(result, screen)
    _print_shown(result, screen)


def verdict(result: Evaluation) -> list[str]:
    """What the table says, in plain words."""
    from heptune.reporting.words import evaluation_words

    return evaluation_words(result.to_json())


def _print_confusion(result: Evaluation, screen: Console) -> None:
    from heptune.cli.show import table

    screen.print()
    screen.print("Rows: the true label; columns: what the tuned model said.")
    numbers = [str(i + 1) for i in range(len(result.labels))]
    rows = [
        [f"{number} {label}", *(str(count) if count else "·" for count in counts)]
        for number, label, counts in zip(numbers, result.labels, result.confusion, strict=True)
    ]
    screen.print(table(["", *numbers], rows, numbers=range(1, len(numbers) + 1)))


def _print_types(result: Evaluation, screen: Console) -> None:
    from heptune.cli.show import table

    screen.print()
    screen.print("The tuned model, type by type:")
    names = list(result.per_type[0].metrics)
    rows = [
        [row.type, str(row.count), *(str(row.metrics[name]) for name in names)]
        for row in sorted(result.per_type, key=lambda row: -row.count)
    ]
    screen.print(table(["", "entities", *names], rows, numbers=[1]))


def _print_shown(result: Evaluation, screen: Console) -> None:
    """Examples as a person would look at them."""
    from rich.text import Text

    from heptune.cli.show import shortened

    if result.shown:
        screen.print()
        changed = all(example.better is not None for example in result.shown)
        screen.print("Examples that changed:" if changed else "Examples:")
    for example in result.shown:
        screen.print()
        screen.print(f"  {shortened(example.text)}", soft_wrap=True)
        style = {True: "green", False: "red", None: ""}[example.better]
        mark = {True: "  (right)", False: "  (wrong)", None: ""}[example.better]
        screen.print(f"    truth  {shortened(example.truth)}", soft_wrap=True)
        screen.print(f"    base   {shortened(example.base)}", soft_wrap=True)
        screen.print(Text(f"    tuned  {shortened(example.tuned)}{mark}", style=style), soft_wrap=True)


def without_nan(value: Any) -> Any:
    """JSON has no NaN: null instead."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return value
