"""`heptune tune` and `heptune resume`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from heptune.cli import options
from heptune.core.units import format_bytes, format_count, format_seconds

# Documents that a new model is scored on at the end; `heptune eval RUN` scores all.
SCORED = 100

if TYPE_CHECKING:
    from rich.console import Console

    from heptune.runs.run import Run

ROUNDS_PANEL = "Going on from a run"


@options.with_tuning_options
def tune(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE|RUN",
            help="smollm2-135m, a local model folder, a model's name on the hub; or a finished run to go on from.",
            show_default=False,
        ),
    ],
    data: options.DataArgument,
    technique: Annotated[
        str | None,
        typer.Option(help="How to tune; `heptune explain` lists them.", show_default="lora, or that of RUN"),
    ] = None,
    task: options.TaskName = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="New run directory.", show_default="runs/TECHNIQUE-N")
    ] = None,
    validation: options.Validation = None,
    test: options.Test = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most training examples.", show_default="all")] = None,
    column: options.Column = None,
    skip_bad: options.SkipBad = False,
    onto: Annotated[
        str | None,
        typer.Option(
            metavar="WAY",
            help="How to go on from RUN: continue its adapter, merge it into the base, or stack a new one on it.",
            show_default="continue, where the technique is the same",
            rich_help_panel=ROUNDS_PANEL,
        ),
    ] = None,
    guard: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="The most that an earlier round may lose on its held-out data for this one to be promoted.",
            show_default="no limit",
            rich_help_panel=ROUNDS_PANEL,
        ),
    ] = None,
    replay: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Mix in training examples of earlier rounds: so many for each new one, e.g. 0.1.",
            rich_help_panel=ROUNDS_PANEL,
        ),
    ] = 0.0,
    threads: options.Threads = None,
    **chosen: Any,
) -> None:
    """Tune BASE on DATA, or RUN in one more round. Ctrl-C saves; `heptune resume RUN` goes on with the same bits."""
    technique, inherited = _inherited(base, technique, onto)
    settings, given = options.split_chosen(technique, chosen)
    hyperparameters = {**inherited, **given}
    parts = {
        "validation": options.file_or_share("--validation", validation),
        "test": options.file_or_share("--test", test),
    }
    columns = options.columns(column)
    options.use_threads(threads)
    from heptune import api, techniques
    from heptune.cli.live import live
    from heptune.cli.show import console

    screen = console()
    with live(screen) as listener:
        run = api.tune(
            base,
            data,
            technique=techniques.build(technique, hyperparameters),
            task=task,
            out=out,
            options=api.DataOptions(**parts, limit=limit, columns=columns, skip_bad=skip_bad),
            onto=onto,
            guard=guard,
            replay=replay,
            listener=listener,
            **settings,
        )
    finish(run, screen)


def _inherited(base: str, technique: str | None, onto: str | None) -> tuple[str, dict[str, Any]]:
    """The technique, and the settings that it has from the run which is gone on from: all, unless a new one begins."""
    from heptune.runs import lineage
    from heptune.runs.run import Run

    if not lineage.is_run(base):
        return technique or "lora", {}
    noted = Run(base).manifest["technique"]
    same = technique in (None, noted["name"])
    return technique or noted["name"], noted["settings"] if same and onto in (None, lineage.CONTINUE) else {}


def resume(
    run: Annotated[
        Path, typer.Argument(metavar="RUN|RACE", help="A run or race directory, e.g. runs/lora-1.", show_default=False)
    ],
    threads: options.Threads = None,
) -> None:
    """Continue an interrupted run or race. By default with as many threads as it began with, for the same bits."""
    from heptune.cli.live import live
    from heptune.cli.show import console
    from heptune.racing.race import is_race
    from heptune.runs.run import Run

    if is_race(run):
        from heptune.cli.race import go_on

        go_on(run)
        return
    options.use_threads(threads or Run(run).manifest.get("threads"))
    from heptune import api

    screen = console()
    with live(screen) as listener:
        continued = api.resume(run, listener=listener)
    (finish_pretraining if "pretrain" in continued.manifest else finish)(continued, screen)


def finish(run: Run, screen: Console, say_next: bool = True) -> None:
    """Prints what came out and what to do next. Leaves the program when the run was interrupted."""
    from heptune.cli.show import command, pairs

    if run.manifest["status"] == "interrupted":
        screen.print(f"interrupted; everything so far is saved in {run.folder}. Go on with:", soft_wrap=True)
        screen.print(f"    {command('resume', run.folder)}", soft_wrap=True)
        raise typer.Exit(options.INTERRUPTED)
    screen.print()
    screen.print(pairs(_summary(run.manifest)))
    screen.print()
    screen.print(f"The run is in {run.folder}; what it leaves for use in {run.artifact}.", soft_wrap=True)
    guarded = run.manifest.get("guarded")
    if guarded is not None:
        _print_round(run, screen)
    if say_next:
        first = (
            [] if guarded is None else [command("promote", run.folder, *(["--force"] if guarded["refused"] else []))]
        )
        for number, line in enumerate([*first, command("eval", run.folder), command("chat", run.folder)]):
            screen.print(f"{'       ' if number else 'Next:  '}{line}", soft_wrap=True)
    if guarded is not None and guarded["refused"]:
        raise typer.Exit(options.REFUSED)


def _print_round(run: Run, screen: Console) -> None:
    """What the round forgot, and what its guard says to it."""
    from heptune.runs.lineage import guard_words, number

    screen.print()
    screen.print(f"Round {number(run)} beside the one before, on what each round holds out:", soft_wrap=True)
    for line in guard_words(run.manifest["guarded"]):
        screen.print(f"  {line}", soft_wrap=True)
    said = "The run stays, but is promoted only by force." if run.manifest["guarded"]["refused"] else ""
    screen.print(said or "Once it is promoted it serves for its lineage.", soft_wrap=True)
    screen.print()


def finish_pretraining(run: Run, screen: Console) -> None:
    """What came out of a pre-training, its scores on text that was held out, and the next command. Leaves the program
    when the run was interrupted."""
    from heptune import api
    from heptune.cli.evaluate import print_evaluation
    from heptune.cli.live import live
    from heptune.cli.show import command, console

    finish(run, screen, say_next=False)
    if any(run.manifest["split"][part] or run.manifest["data"][part] for part in ("validation", "test")):
        with live(console(stderr=True)) as listener:
            result = api.evaluate(run.folder, limit=SCORED, listener=listener)
        screen.print()
        print_evaluation(result, screen)
    screen.print()
    base = run.folder / "base"
    screen.print(f"The new base is in {base}.", soft_wrap=True)
    screen.print(f"Next:  {command('tune', base, 'DATA')}", soft_wrap=True)
    screen.print(f"       {command('chat', run.folder)}", soft_wrap=True)


def _summary(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    result = manifest["result"]
    speed = result["tokens"] / result["time_s"] if result["time_s"] else 0.0
    reason = "" if result["reason"] == "finished" else f" (ended by {result['reason']})"
    names = (manifest["technique"]["name"], "on", manifest["base"]["name"] + ",", "task", manifest["task"]["name"])
    rows = [
        ("technique", " ".join(names)),
        ("trainable parameters", format_count(manifest["trainable"])),
        ("steps", f"{result['steps']} of {manifest['steps']}{reason}"),
        ("training time", f"{format_seconds(result['time_s'])}, validation included"),
        ("speed", f"{speed:.0f} tokens/s over that time, {format_count(result['tokens'])} tokens in all"),
        ("peak memory", format_bytes(result["peak_memory_bytes"])),
        *_predicted(manifest),
        ("artifact", format_bytes(result["artifact_bytes"])),
    ]
    before, after = result["first_validation"], result["best_validation"]
    if before and after:
        scores = ", ".join(f"{name} {before[name]:.4f} -> {after[name]:.4f}" for name in after)
        rows.append(("validation", f"{scores} (best: step {result['best_step']})"))
    return rows


def _predicted(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """What the plan said before the first step, beside what came true."""
    said, result = manifest.get("predicted"), manifest["result"]
    if not said:
        return []

    def off(prediction: float, truth: float) -> str:
        return f" ({prediction / truth - 1:+.0%})" if truth else ""

    memory = (
        f"peak memory {format_bytes(said['resident_bytes'])}{off(said['resident_bytes'], result['peak_memory_bytes'])}"
    )
    time = f"training time {format_seconds(said['time_s'])}{off(said['time_s'], result['time_s'])}"
    return [("predicted", f"{memory}, {time if result['reason'] == 'finished' else 'time for all steps'}")]
