"""`heptune demo`: a real pretrained model, tuned in minutes on the small data set that comes with Heptune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from heptune.cli import options

BASE = "smollm2-135m"
# A quarter for testing: of 432 examples a tenth would leave intervals too wide to say anything.
VALIDATION, TEST = 0.1, 0.25
# Small steps and a high learning rate: minutes on a laptop's CPU allow about a hundred and fifty steps.
SETTINGS: dict[str, Any] = {"epochs": 5, "batch_size": 8, "learning_rate": 5e-4}


def demo(
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="New run directory.", show_default="runs/demo-N")
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.05, help="Training time in minutes.")] = 3.5,
    threads: options.Threads = None,
) -> None:
    """Tune smollm2-135m with LoRA on 432 messages to a repair desk, and show what it learned."""
    options.use_threads(threads)
    from heptune import api
    from heptune.cli.evaluate import print_evaluation
    from heptune.cli.live import live
    from heptune.cli.show import command, console
    from heptune.cli.tune import finish
    from heptune.demo import DATA
    from heptune.runs.run import new_name

    screen = console()
    screen.print(f"Which trade must come? {BASE} learns it from messages to a building's repair desk.")
    screen.print(f"The data and its card: {DATA.parent}", soft_wrap=True)
    screen.print()
    with live(screen) as listener:
        run = api.tune(
            BASE,
            DATA,
            technique="lora",
            out=out or new_name(Path("runs"), "demo"),
            options=api.DataOptions(validation=VALIDATION, test=TEST),
            listener=listener,
            max_minutes=minutes,
            **SETTINGS,
        )
    finish(run, screen, say_next=False)
    screen.print()
    with live(screen) as listener:
        result = api.evaluate(run.folder, listener=listener)
    print_evaluation(result, screen)
    screen.print()
    screen.print("Try it, then your own file:")
    for words in (
        ("chat", run.folder, "--once", "Water drips through the lamp in the hall."),
        ("explain", "lora"),
        ("check", "YOUR.csv"),
        ("tune", BASE, "YOUR.csv"),
    ):
        screen.print(f"    {command(*words)}", soft_wrap=True)
