"""`heptune chat`: what a run has learned, put to use: conversations, labels, answers, or a choice among options."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from heptune.cli import options
from heptune.core.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from heptune.api import Tuned
    from heptune.tasks.extract import Entity

LABELS_SHOWN = 10
NO_ANSWER = "(no answer)"


def chat(
    run: options.RunArgument,
    once: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Answer this text and leave.", show_default="talk until Ctrl-D")
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="System message (chat only).", show_default="the run's own")
    ] = None,
    temperature: Annotated[
        float,
        typer.Option(min=0.0, help="Randomness of the reply; 0 takes the likeliest token (chat, complete)."),
    ] = 0.7,
    top_p: Annotated[
        float,
        typer.Option(
            min=0.01, max=1.0, help="Draw among the likeliest tokens with this probability in all (chat, complete)."
        ),
    ] = 0.9,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest reply in tokens (chat, complete).")] = 256,
    seed: Annotated[int, typer.Option(help="The same seed gives the same replies (chat, complete).")] = 0,
    passage: Annotated[
        str | None,
        typer.Option(metavar="FILE|TEXT", help="What the questions are about (answer, choose).", show_default="none"),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", help="One of the options to choose from; to be repeated (choose).", show_default="none"
        ),
    ] = None,
    serving: options.Serving = False,
    threads: options.Threads = None,
) -> None:
    """Talk to RUN. /reset forgets the conversation, /exit or Ctrl-D leaves."""
    run = options.serving(run, serving)
    options.use_threads(threads)
    from heptune import api
    from heptune.cli.live import live
    from heptune.cli.show import console

    with live(console(stderr=True)) as listener:
        tuned = api.open_run(run, listener=listener)
    sampling = api.Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    screen = console()
    _check(tuned.task.name, passage, option)
    partner = _Partner(tuned, sampling, system, screen, "" if passage is None else _text_of(passage), option or [])
    if once is not None:
        partner.answer(once)
        return
    if sys.stdin.isatty():
        screen.print(
            f"{run}: {tuned.task.name}{_calibrated(tuned)}. /reset forgets, /exit or Ctrl-D leaves.", soft_wrap=True
        )
    _talk(partner)


def _check(task: str, passage: str | None, chosen_from: list[str] | None) -> None:
    """Nothing that is given is ignored, and nothing that is needed is missing."""
    if passage is not None and task not in ("answer", "choose"):
        raise UsageError(f"the run learned {task}, which reads no --passage; put the text into the message")
    if chosen_from and task != "choose":
        raise UsageError(f"the run learned {task}, which chooses from no --option; leave it out")
    if task == "choose" and not chosen_from:
        raise UsageError("the run learned choose: name what it shall choose from, --option TEXT for each")


def _text_of(passage: str) -> str:
    """The content of a file of that name, or the text itself."""
    with contextlib.suppress(OSError):  # a text may be too long for a name
        if Path(passage).is_file():
            try:
                return Path(passage).read_text("utf-8")
            except UnicodeDecodeError:
                raise UsageError(f"{passage} is not UTF-8 text; convert it, or give the text itself") from None
    return passage


def _calibrated(tuned: Tuned) -> str:
    found = tuned.calibration
    if tuned.task.name not in ("classify", "label"):
        return ""
    if found.loss is None:
        return f", probabilities as the model gives them: {found.note}"
    return f", probabilities at temperature {found.temperature:.2f} (from {found.examples} validation records)"


class _Partner:
    """One conversation with a tuned model."""

    def __init__(
        self,
        tuned: Tuned,
        sampling: object,
        system: str | None,
        screen: Console,
        passage: str = "",
        chosen_from: Sequence[str] = (),
    ) -> None:
        self.tuned, self.sampling, self.system, self.screen = tuned, sampling, system, screen
        self.passage, self.chosen_from = passage, chosen_from
        self.reset()

    def reset(self) -> None:
        """Forgets what was said."""
        from heptune import api

        self.messages = [] if self.system is None else [api.Message("system", self.system)]

    def answer(self, text: str) -> None:
        """Prints probabilities, entities, an answer, or the reply as it grows; one that is broken off is not
        remembered."""
        from heptune import api

        task = self.tuned.task.name
        if task in ("classify", "label"):
            print_labels(self.tuned.classify(text), self.screen)
            return
        if task in ("extract", "tag"):
            print_entities(text, self.tuned.extract(text), self.screen)
            return
        if task == "choose":
            print_labels(self.tuned.choose(text, self.chosen_from, self.passage), self.screen)
            return
        if task == "answer":
            print(self.tuned.answer(text, self.passage) or NO_ANSWER)
            return
        if task == "complete":
            print(text, end="", flush=True)
            self.tuned.complete(text, self.sampling, on_text=_print_piece)  # type: ignore[arg-type]
            print()
            return
        asked = [*self.messages, api.Message("user", text)]
        said = self.tuned.reply(asked, self.sampling, on_text=_print_piece)  # type: ignore[arg-type]
        print()
        self.messages = [*asked, api.Message("assistant", said)]


def print_labels(found: dict[str, float], screen: Console) -> None:
    """The likeliest labels or options and their probabilities."""
    from heptune.cli.show import bar

    probabilities = list(found.items())
    width = max(len(label) for label, _ in probabilities[:LABELS_SHOWN])
    for label, probability in probabilities[:LABELS_SHOWN]:
        screen.print(f"{label:<{width}}  {probability:6.1%}  {bar(probability)}", soft_wrap=True)
    if len(probabilities) > LABELS_SHOWN:
        screen.print(f"and {len(probabilities) - LABELS_SHOWN} that are less likely")


def print_entities(text: str, found: Sequence[Entity], screen: Console) -> None:
    """The text with its entities marked: [Ada Lovelace: PER] was born in [London: LOC]."""
    from rich.text import Text

    marked, at = Text(), 0
    for entity in found:
        marked.append(text[at : entity.start])
        marked.append(f"[{entity.text}", style="bold").append(f": {entity.type}]", style="dim")
        at = entity.end
    screen.print(marked.append(text[at:]), soft_wrap=True)
    if not found:
        screen.print("(no entities)")


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
