"""`heptune report`. Answers without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN|RACE", help="A run or race directory, e.g. runs/lora-1.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="The page.", show_default="report.html in RUN|RACE")
    ] = None,
    as_markdown: Annotated[
        bool,
        typer.Option(
            "--markdown", help="Print a short report in Markdown for a pull request; a page is made only with --out."
        ),
    ] = False,
) -> None:
    """Write what RUN or RACE found as one HTML page: verdict, scores, curves, costs, and how to do it again."""
    from heptune.cli.show import console
    from heptune.reporting import report as reports

    if as_markdown:
        print(reports.report_markdown(folder), end="")
    if out is not None or not as_markdown:
        path = reports.report(folder, out)
        console(stderr=as_markdown).print(f"The report is in {path}; any browser opens it.", soft_wrap=True)
