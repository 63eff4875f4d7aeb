"""The entry point `heptune`: its commands, and how errors reach a person."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from heptune import __version__
from heptune.cli.chat import chat
from heptune.cli.check import check
from heptune.cli.demo import demo
from heptune.cli.evaluate import evaluate
from heptune.cli.explain import explain
from heptune.cli.export import export
from heptune.cli.plan import plan
from heptune.cli.pretrain import pretrain
from heptune.cli.race import race
from heptune.cli.report import report
from heptune.cli.runs import promote, rollback, runs
from heptune.cli.serve import serve
from heptune.cli.tune import resume, tune
from heptune.core.errors import HeptuneError

app = typer.Typer(name="heptune", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"heptune {__version__}")
        raise typer.Exit


@app.callback()
def _heptune(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Tune language models on your own examples, exactly and fast."""


app.command()(plan)
app.command()(tune)
app.command()(pretrain)
app.command()(resume)
app.command(name="eval")(evaluate)
app.command()(race)
app.command()(report)
app.command()(runs)
app.command()(promote)
app.command()(rollback)
app.command()(chat)
app.command()(serve)
app.command()(export)
app.command()(explain)
app.command()(check)
app.command()(demo)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; a `HeptuneError` becomes one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode gets question marks, not a traceback
    try:
        app(args=arguments, prog_name="heptune")
    except HeptuneError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
