"""`heptune runs`, `heptune promote` and `heptune rollback`. All answer without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from heptune.core.errors import RunError, UsageError

if TYPE_CHECKING:
    from heptune.runs.lineage import Listed

ROOT = Path("runs")


def runs(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="The folder that holds the runs.")] = ROOT,
) -> None:
    """List the runs below FOLDER, each round below the one that it goes on from, and which of them serve."""
    from heptune.cli.show import console, table
    from heptune.runs.lineage import list_runs

    listed = list_runs(folder)
    if not listed:
        raise RunError(f"there is no run below {folder}; `heptune tune BASE DATA` makes one")
    screen = console()
    headers = ["run", "technique", "base", "data", "task", "status", "validation", ""]
    screen.print(table(headers, [_row(each, folder) for each in listed]))
    if any(each.serves for each in listed):
        screen.print(
            "* serves for its lineage: `heptune chat RUN --serving` takes it for any run of the lineage.",
            soft_wrap=True,
        )


def promote(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The round that shall serve.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Also where its guard refuses it.")] = False,
) -> None:
    """Let RUN serve for its lineage. `heptune rollback` takes it back."""
    from heptune.cli.show import command, console
    from heptune.runs import lineage

    promoted = lineage.promote(run, force=force)
    screen = console()
    screen.print(f"{run} serves (round {lineage.number(promoted)} of {lineage.root(promoted).folder}).", soft_wrap=True)
    screen.print(f"Back to the one before:  {command('rollback', run)}", soft_wrap=True)


def rollback(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN]",
            help="Any run of the lineage.",
            show_default="the only lineage below runs/ in which a round was promoted",
        ),
    ] = None,
) -> None:
    """Let the round serve again that served before the one that does now."""
    from heptune.cli.show import console
    from heptune.runs import lineage

    now = lineage.rollback(run or _only_lineage())
    console().print(f"{now.folder} serves again (round {lineage.number(now)}).", soft_wrap=True)


def _only_lineage() -> Path:
    from heptune.runs.lineage import promoted_below

    found = promoted_below(ROOT) if ROOT.is_dir() else []
    if len(found) != 1:
        what = (
            f"these lineages have one: {', '.join(map(str, found))}" if found else "no round was promoted below runs/"
        )
        raise UsageError(f"{what}; name a run of the lineage: `heptune rollback RUN`")
    return found[0]


def _row(each: Listed, folder: Path) -> list[str]:
    from heptune.runs.lineage import number, way

    run, manifest = each.run, each.run.manifest
    onto = way(run)
    name = run.folder.relative_to(folder).as_posix()
    indent = "  " * (each.depth - 1) + "└ " if each.depth else ""
    technique = manifest["technique"]["name"]
    return [
        f"{indent}{name if name != '.' else run.folder}",
        technique if onto is None else f"{technique} (round {number(run)}, {onto})",
        Path(manifest["base"]["name"]).name,
        _data(manifest),
        manifest["task"]["name"],
        _status(manifest),
        _score(manifest),
        "* serves" if each.serves else "",
    ]


def _data(manifest: dict[str, Any]) -> str:
    """The name of the training file; of a folder's train.* the folder's too."""
    path = Path(manifest["data"]["train"]["path"])
    return path.name if path.stem != "train" else f"{path.parent.name}/{path.name}"


def _status(manifest: dict[str, Any]) -> str:
    refused = manifest.get("guarded", {}).get("refused")
    return f"{manifest['status']}, refused" if refused else str(manifest["status"])


def _score(manifest: dict[str, Any]) -> str:
    """The best validation's first metric: what chose the step."""
    best = (manifest.get("result") or {}).get("best_validation") or {}
    return next((f"{name} {value:.3f}" for name, value in best.items()), "")
