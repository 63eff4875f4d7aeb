"""`heptune chat`: conversations with a run that learned chat, label probabilities from one that learned classify."""

from __future__ import annotations

import contextlib
import importlib
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from heptune.cli import options

if TYPE_CHECKING:
    from rich.console import Console

    from heptune.api import Tuned

LABELS_SHOWN = 10


def chat(
    run: options.RunArgument,
    once: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Answer this text and leave.", show_default="talk until Ctrl-D")
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="System message (chat only).", show_default="the run's own")
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Randomness of the reply; 0 always takes the likeliest token (chat only).")
    ] = 0.7,
    top_p: Annotated[
        float,
        typer.Option(
            min=0.01, max=1.0, help="Draw among the likeliest tokens with this probability in all (chat only)."
        ),
    ] = 0.9,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest reply in tokens (chat only).")] = 256,
    seed: Annotated[int, typer.Option(help="The same seed gives the same replies (chat only).")] = 0,
    threads: options.Threads = None,
) -> None:
    """Talk to RUN. /reset forgets the conversation, /exit or Ctrl-D leaves."""
    options.use_threads(threads)
    from heptune import api
    from heptune.cli.live import live
    from heptune.cli.show import console

    with live(console(stderr=True)) as listener:
        tuned = api.open_run(run, listener=listener)
    sampling = api.Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    screen = console()
    partner = _Partner(tuned, sampling, system, screen)
    if once is not None:
        partner.answer(once)
        return
    if sys.stdin.isatty():
        screen.print(
            f"{run}: {tuned.task.name}{_calibrated(tuned)}. /reset forgets, /exit or Ctrl-D leaves.", soft_wrap=True
        )
    _talk(partner)


def _calibrated(tuned: Tuned) -> str:
    found = tuned.calibration
    if tuned.task.name != "classify":
        return ""
    if found.loss is None:
        return f", probabilities as the model gives them: {found.note}"
    return f", probabilities at temperature {found.temperature:.2f} (from {found.examples} validation records)"


class _Partner:
    """One conversation with a tuned model."""

    def __init__(self, tuned: Tuned, sampling: object, system: str | None, screen: Console) -> None:
        self.tuned, self.sampling, self.system, self.screen = tuned, sampling, system, screen
        self.reset()

    def reset(self) -> None:
        """Forgets what was said."""
        from heptune import api

        self.messages = [] if self.system is None else [api.Message("system", self.system)]

    def answer(self, text: str) -> None:
        """Prints the labels' probabilities, or the reply as it grows; a reply that is broken off is not remembered."""
        from heptune import api

        if self.tuned.task.name == "classify":
            print_labels(self.tuned.classify(text), self.screen)
            return
        asked = [*self.messages, api.Message("user", text)]
        said = self.tuned.reply(asked, self.sampling, on_text=_print_piece)  # type: ignore[arg-type]
        print()
        self.messages = [*asked, api.Message("assistant", said)]


def print_labels(found: dict[str, float], screen: Console) -> None:
    """The likeliest labels and their probabilities."""
    from heptune.cli.show import bar

    probabilities = list(found.items())
    width = max(len(label) for label, _ in probabilities[:LABELS_SHOWN])
    for label, probability in probabilities[:LABELS_SHOWN]:
        screen.print(f"{label:<{width}}  {probability:6.1%}  {bar(probability)}", soft_wrap=True)
    if len(probabilities) > LABELS_SHOWN:
        screen.print(f"and {len(probabilities) - LABELS_SHOWN} labels that are less likely")


def _talk(partner: _Partner) -> None:
    prompt = ""
    if sys.stdin.isatty():
        prompt = "> "
        with contextlib.suppress(ImportError):  # it gives input() line editing and history, where there is one
            importlib.import_module("readline")
    while True:
        try:
            text = input(prompt).strip()
        except EOFError:
            if prompt:
                print()
            return
        if text == "/exit":
            return
        if text == "/reset":
            partner.reset()
            print("the conversation is forgotten")
        elif text.startswith("/"):
            print(f"there is no command {text.split()[0]}; known: /reset, /exit")
        elif text:
            try:
                partner.answer(text)
            except KeyboardInterrupt:
                print("\n(broken off)")


def _print_piece(piece: str) -> None:
    print(piece, end="", flush=True)
