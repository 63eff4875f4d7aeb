"""`heptune check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from heptune.cli import options
from heptune.engine.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console

    from heptune.data.check import CheckReport
    from heptune.tuning.checking import Rendered

LABELS_SHOWN = 30
OPEN, CLOSE = "⟦", "⟧"  # around what is supervised
STYLES = {"fatal": "bold red", "warning": "yellow", "info": "cyan"}


@options.with_settings()
def check(
    data: options.DataArgument,
    base: Annotated[str, typer.Option(help="Whose tokenizer and chat template to look with.")] = "smollm2-135m",
    task: options.TaskName = None,
    validation: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Evaluation data to compare with.", show_default="the folder's own"),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Evaluation data to compare with.", show_default="the folder's own"),
    ] = None,
    column: options.Column = None,
    skip_bad: options.SkipBad = False,
    max_length: Annotated[int, typer.Option(min=8, help="Longest example in tokens.")] = Settings.max_length,
    **posed: Any,
) -> None:
    """Show what DATA holds and what is wrong with it. Exit code 1 when training on it would be pointless."""
    columns = options.columns(column)
    from heptune.cli.live import live
    from heptune.cli.show import console
    from heptune.data.parts import DataOptions
    from heptune.tuning import checking

    with live(console(stderr=True)) as listener:
        result = checking.check(
            data,
            base=base,
            task=task,
            options=DataOptions(validation=validation, test=test, columns=columns or None, skip_bad=skip_bad),
            max_length=max_length,
            listener=listener,
            **posed,
        )
    screen = console()
    _print_report(result.report, result.task, result.compared_with, screen)
    for example in result.rendered:
        _print_rendered(example, screen)
    if result.report.pointless:
        raise typer.Exit(1)


def _print_report(report: CheckReport, task: str | None, evaluation: Path | None, screen: Console) -> None:
    from rich.text import Text

    from heptune.cli.show import bar, pairs, table

    rows = [
        ("file", str(report.path)),
        ("format", report.format),
        ("task", task or "none"),
        ("records", f"{report.records} ({report.kind})"),
        ("bad lines left out", str(report.bad_lines)),
    ]
    if report.lengths:
        lengths = report.lengths
        quantiles = f"{lengths.minimum} / {lengths.median} / {lengths.p95} / {lengths.maximum}"
        rows.append(("tokens per example", f"{quantiles} (shortest / median / 95% / longest)"))
        rows.append(
            ("tokens", f"{lengths.total}, of them {lengths.supervised} supervised ({lengths.supervised_share:.1%})")
        )
        rows.append(("cut at the limit", str(report.cut)))
        rows.append(("nothing supervised", str(report.unsupervised)))
    rows.append(("duplicates", str(report.duplicates)))
    leaked = f"{report.leaked} records also stand in {evaluation}"
    rows.append(("leakage", leaked if evaluation else "not looked for in another file (--validation, --test)"))
    screen.print(pairs(rows))
    if report.labels:
        screen.print()
        most = max(report.labels.values())
        shown = list(report.labels.items())[:LABELS_SHOWN]
        bars = [[label, str(count), f"{count / report.records:.1%}", bar(count / most)] for label, count in shown]
        screen.print(table(["label", "records", "share", ""], bars, numbers=(1, 2)))
        if len(report.labels) > LABELS_SHOWN:
            screen.print(f"and {len(report.labels) - LABELS_SHOWN} labels that are rarer")
    screen.print()
    for finding in report.findings:
        screen.print(
            Text(f"{finding.severity}: ", style=STYLES[finding.severity]).append(finding.text, style=""), soft_wrap=True
        )
    if not report.findings:
        screen.print("nothing was found to be wrong")


def _print_rendered(example: Rendered, screen: Console) -> None:
    from rich.text import Text

    screen.print()
    screen.print(f"line {example.line} as the model sees it; {OPEN}supervised{CLOSE}:")
    text = Text()
    for piece, supervised in example.pieces:
        text.append(f"{OPEN}{piece}{CLOSE}" if supervised else piece, style="green" if supervised else "")
    screen.print(text, soft_wrap=True)
