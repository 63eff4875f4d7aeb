"""`heptune chat`: what runs have learned, put to use: conversations, labels, answers, or a choice among options."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from heptune.cli import options
from heptune.core.errors import UsageError
from heptune.core.registry import unknown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from heptune.tasks.extract import Entity

LABELS_SHOWN = 10
NO_ANSWER = "(no answer)"


def chat(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Run directories, e.g. runs/lora-1; NAME=RUN gives one another name than its folder's.",
            show_default=False,
        ),
    ],
    once: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Answer this text and leave.", show_default="talk until Ctrl-D")
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help="Let these answer side by side; `base` is the base without a run.",
            show_default="the first run answers",
        ),
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
    """Talk to RUNS. /switch NAME lets another one answer, /reset forgets the conversation, /exit or Ctrl-D leaves."""
    options.use_threads(threads)
    from heptune import api
    from heptune.cli.live import live
    from heptune.cli.show import console
    from heptune.service.fleet import names_of

    found = {name: options.serving(path, serving) for name, path in names_of(runs).items()}
    with live(console(stderr=True)) as listener:
        minds = api.open_runs(found, listener=listener)
    sampling = api.Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    screen = console()
    text = "" if passage is None else _text_of(passage)

    def partner(name: str) -> _Partner:
        task = _task(minds[name])
        _check(task, passage, option)
        return _Partner(minds[name], sampling, system, screen, text, option or [])

    company = _Company(minds, partner, screen)
    if compare is None:
        company.switch(next(iter(found)))
    else:
        company.compare([part.strip() for part in compare.split(",") if part.strip()])
    if once is not None:
        company.answer(once)
        return
    if sys.stdin.isatty():
        screen.print(f"{company.title()}. /reset forgets, /exit or Ctrl-D leaves.", soft_wrap=True)
        if len(minds) > 1 and compare is None:
            screen.print(f"/switch NAME lets another one answer: {', '.join(minds)}.", soft_wrap=True)
    _talk(company)


def _task(mind: Any) -> str:
    """What a mind learned; a base converses."""
    return "chat" if mind.task is None else mind.task.name


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


def _calibrated(mind: Any) -> str:
    found = mind.calibration
    if _task(mind) not in ("classify", "label"):
        return ""
    if found.loss is None:
        return f", probabilities as the model gives them: {found.note}"
    return f", probabilities at temperature {found.temperature:.2f} (from {found.examples} validation records)"


class _Partner:
    """One conversation with a model: `tuned` is what `heptune.open_run` gives, or a model on a shared base."""

    def __init__(
        self,
        tuned: Any,
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

        task = _task(self.tuned)
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
            self.tuned.complete(text, self.sampling, on_text=_print_piece)
            print()
            return
        asked = [*self.messages, api.Message("user", text)]
        said = self.tuned.reply(asked, self.sampling, on_text=_print_piece)
        print()
        self.messages = [*asked, api.Message("assistant", said)]

    @property
    def replies(self) -> bool:
        """Whether it says something that grows."""
        return _task(self.tuned) in ("chat", "complete")

    def begin(self, text: str, on_text: Callable[[str], None]) -> Any:
        """Its reply, on its way."""
        served = self.tuned.served
        if _task(self.tuned) == "complete":
            return self.tuned.begin(served.text_tokens(text), self.sampling, on_text)
        from heptune import api

        asked = [*self.messages, api.Message("user", text)]
        return self.tuned.begin(served.chat_tokens(asked), self.sampling, on_text)

    def remember(self, text: str, said: str) -> None:
        """A reply that has come to its end."""
        from heptune import api

        self.messages = [*self.messages, api.Message("user", text), api.Message("assistant", said)]


class _Company:
    """The models that there are, and those of them that answer: one, or several side by side."""

    def __init__(self, minds: Mapping[str, Any], partner: Callable[[str], _Partner], screen: Console) -> None:
        self.minds, self.partner, self.screen = minds, partner, screen
        self.base = next((name for name, mind in minds.items() if mind.task is None), None)
        self.known: dict[str, _Partner] = {}
        self.present: list[str] = []

    def switch(self, name: str) -> None:
        """From now on this one answers; each remembers its own conversation."""
        self.present = [self._find(name)]

    def compare(self, names: Sequence[str]) -> None:
        """From now on these answer side by side."""
        found = [self._find(name) for name in names]
        if len(found) < 2 or len(set(found)) < len(found):
            raise UsageError(f"--compare needs at least two models, each once; there are: {', '.join(self.minds)}")
        self.present = found

    def _find(self, name: str) -> str:
        if name == "base" and name not in self.minds and self.base is not None:
            name = self.base
        if name not in self.minds:
            raise unknown("model", name, self.minds, UsageError)
        if name not in self.known:
            self.known[name] = self.partner(name)
        return name

    def title(self) -> str:
        """Who answers, and what."""
        return ", ".join(f"{name}: {_task(self.minds[name])}{_calibrated(self.minds[name])}" for name in self.present)

    def reset(self) -> None:
        """All of them forget what was said."""
        for partner in self.known.values():
            partner.reset()

    def answer(self, text: str) -> None:
        """Prints what those who are present have to say."""
        partners = {name: self.known[name] for name in self.present}
        if len(partners) == 1:
            next(iter(partners.values())).answer(text)
        elif all(partner.replies for partner in partners.values()):
            self._side_by_side(text, partners)
        else:
            for name, partner in partners.items():
                self.screen.print(f"[{name}]", style="bold", markup=False)
                partner.answer(text)

    def _side_by_side(self, text: str, partners: Mapping[str, _Partner]) -> None:
        from rich.live import Live

        from heptune.service.speaking import finished

        said = dict.fromkeys(partners, "")
        screen = Live(console=self.screen, auto_refresh=False, transient=False) if self.screen.is_terminal else None

        def hear(name: str) -> Callable[[str], None]:
            def add(piece: str) -> None:
                said[name] += piece
                if screen is not None:
                    screen.update(_columns(said), refresh=True)

            return add

        with screen if screen is not None else contextlib.nullcontext():
            replies = [partner.begin(text, hear(name)) for name, partner in partners.items()]
            texts = finished(replies)
        for partner, each in zip(partners.values(), texts, strict=True):
            partner.remember(text, each)
        if screen is None:
            for name, each in zip(partners, texts, strict=True):
                self.screen.print(f"[{name}] {each}", markup=False, highlight=False, soft_wrap=True)


def _columns(said: Mapping[str, str]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=True, show_lines=False)
    for name in said:
        table.add_column(Text(name), ratio=1, overflow="fold")
    table.add_row(*(Text(each) for each in said.values()))
    return table


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


def _talk(company: _Company) -> None:
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
        try:
            if text.startswith("/"):
                _command(company, text)
            elif text:
                company.answer(text)
        except KeyboardInterrupt:
            print("\n(broken off)")


def _command(company: _Company, text: str) -> None:
    word, _, rest = text.partition(" ")
    if word == "/reset":
        company.reset()
        print("the conversation is forgotten")
    elif word == "/switch":
        try:
            company.switch(rest.strip())
            print(company.title())
        except UsageError as error:
            print(error)
    else:
        print(f"there is no command {word}; known: /switch NAME, /reset, /exit")


def _print_piece(piece: str) -> None:
    print(piece, end="", flush=True)
