"""`heptune demo`: plan, race, verdict, report and a reply, with a real pretrained model and data that come with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from heptune.cli import options

if TYPE_CHECKING:
    from rich.console import Console

    from heptune.racing.race import Race

BASE = "smollm2-135m"
TECHNIQUES = ("lora", "qlora", "adapter", "prefix", "prompt", "p_tuning", "p_tuning_v2")
# A quarter for testing: of 432 examples a tenth would leave intervals too wide to say anything.
VALIDATION, TEST = 0.1, 0.25
# One learning rate each, three times the technique's own: a laptop's CPU takes some forty steps of each in these
# minutes, and so few steps learn more at it (LoRA's validation accuracy after 38 steps: 0.63 instead of 0.42).
SETTINGS: dict[str, Any] = {"epochs": 5, "batch_size": 4, "validation_limit": 24}
RATES = (3.0,)
MESSAGE = "Water drips through the lamp in the hall."


def demo(
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="New race directory.", show_default="races/demo-N")
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.05, help="The race's budget in minutes.")] = 6.0,
    threads: options.Threads = None,
) -> None:
    """Plan and race the seven techniques on 432 messages to a repair desk: verdict, report, and a reply."""
    options.use_threads(threads)
    from heptune import api
    from heptune.cli.plan import print_plan
    from heptune.cli.race import finish
    from heptune.cli.race_live import live
    from heptune.cli.show import console
    from heptune.demo import DATA
    from heptune.planning.plan import plan
    from heptune.runs.run import new_name

    screen = console()
    screen.print(f"Which trade must come? {BASE} learns it from messages to a building's repair desk.")
    screen.print(f"The data and its card: {DATA.parent}", soft_wrap=True)
    parts = api.DataOptions(validation=VALIDATION, test=TEST)
    with live(screen) as listener:
        api.fetch_base(BASE, listener=listener)
    _title("1. The plan: what each technique would cost, before anything runs", screen)
    with live(screen) as listener:
        made = plan(BASE, DATA, technique=TECHNIQUES, options=parts, listener=listener, **SETTINGS)
    print_plan(made, screen)
    _title("2. The race: all seven on the same data under one budget", screen)
    with live(screen) as listener:
        race = api.race(
            BASE,
            DATA,
            techniques=TECHNIQUES,
            out=out or new_name(Path("races"), "demo"),
            options=parts,
            terms=api.Terms(budget_s=60 * minutes, rates=RATES, words=False, stretch=True),
            command=["heptune", "demo", "--minutes", f"{minutes:g}"],
            listener=listener,
            **SETTINGS,
        )
    _title("3. The verdict", screen)
    finish(race, screen, say_next=False)
    _title("4. The report", screen)
    screen.print(f"{api.report(race.folder)}: any browser opens it.", soft_wrap=True)
    _title("5. What it says", screen)
    _reply(race, screen)
    _say_next(race, screen)


def _title(text: str, screen: Console) -> None:
    screen.print()
    screen.print(text, style="bold")
    screen.print()


def _reply(race: Race, screen: Console) -> None:
    """What the best technique says to a message that it has never seen."""
    from heptune import api
    from heptune.cli.chat import print_labels
    from heptune.cli.live import live

    run = race.best_run
    if run is None:
        return
    with live(screen) as listener:
        tuned = api.open_run(run, listener=listener)
    screen.print(f"{MESSAGE}  ({tuned.run.manifest['technique']['name']})", soft_wrap=True)
    print_labels(tuned.classify(MESSAGE), screen)


def _say_next(race: Race, screen: Console) -> None:
    from heptune.cli.show import command

    screen.print()
    screen.print("Try it, then your own file:")
    if race.best_run is not None:
        screen.print(f"    {command('chat', race.best_run)}", soft_wrap=True)
    for words in (("explain", "lora"), ("plan", BASE, "YOUR.csv"), ("race", BASE, "YOUR.csv")):
        screen.print(f"    {command(*words)}", soft_wrap=True)
