"""Options that several commands share, and those that are made from dataclass fields rather than written down twice."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from heptune import tasks, techniques
from heptune.cli.hyperparameters import Hyperparameter, hyperparameters
from heptune.core.errors import UsageError
from heptune.core.registry import unknown
from heptune.data.shapes import NAMED_BY_HAND
from heptune.engine.settings import Settings
from heptune.tasks.options import TaskOptions

# What a command that was interrupted leaves with: 128 + SIGINT, what shells expect.
INTERRUPTED = 130
# What a round that forgot more than its guard allows leaves with.
REFUSED = 3

TASK_PANEL = "The task"
SETTINGS_PANEL = "Training"
TECHNIQUE_PANEL = "Settings of the technique (heptune explain TECHNIQUE)"

# A field of several values is written with commas.
_LISTS = {"tuple[str": "NAME,NAME", "tuple[int": "NUMBER,NUMBER"}

BaseArgument = Annotated[
    str,
    typer.Argument(
        metavar="BASE", help="smollm2-135m, a local model folder, or a model's name on the hub.", show_default=False
    ),
]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run directory, e.g. runs/lora-1.", show_default=False)
]
DataArgument = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="JSON lines, JSON, CSV, TSV, CoNLL, plain text; a folder with train.*, dev.*, test.* files, or of texts.",
        show_default=False,
    ),
]
Validation = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|SHARE",
        help="Validation data: a file, or a share of DATA from 0 (none) to below 1.",
        show_default="0.1, or the folder's own",
    ),
]
Test = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|SHARE",
        help="Test data, never seen in training: a file, or a share of DATA from 0 (none) to below 1.",
        show_default="0.1, or the folder's own",
    ),
]
Column = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ROLE=NAME",
        help=f"Read a role ({', '.join(NAMED_BY_HAND)}) from this column; may be repeated.",
        show_default="found by name",
    ),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave bad lines out and count them instead of stopping.")]
TaskName = Annotated[
    str | None, typer.Option(help="What to learn: " + ", ".join(tasks.names()) + ".", show_default="what the data is")
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1, help="Processor threads for the computation.", show_default="OMP_NUM_THREADS, or all usable cores"
    ),
]


Serving = Annotated[
    bool, typer.Option("--serving", help="Take the round that serves for RUN's lineage (see `heptune runs`) instead.")
]


def serving(run: Path, wanted: bool) -> Path:
    """The run itself, or the round of its lineage that serves."""
    from heptune.runs import lineage
    from heptune.runs.run import Run

    return lineage.serving(Run(run)).folder if wanted else run


def columns(pairs: list[str] | None) -> dict[str, str]:
    """['text=review'] -> {'text': 'review'}."""
    for pair in pairs or []:
        if "=" not in pair:
            raise UsageError(f"--column {pair!r} names no column; write ROLE=NAME, e.g. --column text=review")
    return dict(pair.split("=", 1) for pair in pairs or [])


def file_or_share(option: str, value: str | None) -> str | float | None:
    """A number is a share, everything else a file; a file whose name is a number can be given as ./0.5."""
    try:
        share = float(value) if value is not None else None
    except ValueError:
        return value
    if share is not None and not 0 <= share < 1:
        raise UsageError(f"{option} is {value}; as a share it must be at least 0 and below 1, else name a file")
    return share


def numbers(option: str, text: str) -> tuple[float, ...]:
    """'0.33,1,3' -> (0.33, 1.0, 3.0)."""
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UsageError(f"{option} is {text!r}; it must be numbers with commas between them, e.g. 0.333,1,3") from None


def use_threads(count: int | None) -> None:
    """Sets the number of threads of every later computation."""
    import torch

    torch.set_num_threads(count or _usable_threads())


def _usable_threads() -> int:
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted):
        return int(wanted)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def with_tuning_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replaces the command's `**chosen` by one option for each field of TaskOptions, of Settings and of every
    technique."""
    return _with(command, [*_task_options(), *_settings_options(), *_technique_options()])


def with_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replaces the command's `**settings` by one option for each field of TaskOptions and each of these of Settings."""
    chosen = [*_task_options(), *(parameter for parameter in _settings_options() if parameter.name in names)]
    return lambda command: _with(command, chosen)


def with_defaults(defaults: Mapping[str, Any], *left_out: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replaces the command's `**settings` by one option for each field of Settings but those, with these defaults."""
    chosen = [
        parameter.replace(default=defaults.get(parameter.name, parameter.default))
        for parameter in _settings_options()
        if parameter.name not in left_out
    ]
    return lambda command: _with(command, chosen)


def _with(command: Callable[..., None], more: list[inspect.Parameter]) -> Callable[..., None]:
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
    parameters = [*own, *more]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def split_chosen(technique: str | None, chosen: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What describes task and training, and the hyperparameters that were given; `UsageError` for those of another
    technique (None: lora)."""
    technique = technique or "lora"
    own = [h.name for h in hyperparameters(technique)]
    names = {field.name for kind in (TaskOptions, Settings) for field in fields(kind)}
    settings = {name: value for name, value in chosen.items() if name in names}
    given = {name: value for name, value in chosen.items() if name not in names and value is not None}
    for name in given:
        if name not in own:
            raise unknown(f"setting of {technique}", _option(name), map(_option, {*own, *names}))
    return settings, given


def _settings_options() -> list[inspect.Parameter]:
    return _of_fields(Settings, SETTINGS_PANEL)


def _task_options() -> list[inspect.Parameter]:
    return _of_fields(TaskOptions, TASK_PANEL)


def _of_fields(kind: type, panel: str) -> list[inspect.Parameter]:
    types = get_type_hints(kind)
    return [
        _parameter(
            field.name,
            types[field.name],
            field.default,
            typer.Option(
                _switch(field.name) if types[field.name] is bool else _option(field.name),
                help=_plain(field.metadata["help"]),
                show_default=True if field.default is not None else "not set",
                rich_help_panel=panel,
            ),
        )
        for field in fields(kind)
    ]


def _technique_options() -> list[inspect.Parameter]:
    """One option for each name; techniques that share a name share the option."""
    taken = {field.name for field in fields(Settings)}
    users: dict[str, list[tuple[str, Hyperparameter]]] = {}
    for technique in techniques.names():
        for hyperparameter in hyperparameters(technique):
            if hyperparameter.name not in taken:
                users.setdefault(hyperparameter.name, []).append((technique, hyperparameter))
    return [_technique_option(name, shared) for name, shared in users.items()]


def _technique_option(name: str, users: list[tuple[str, Hyperparameter]]) -> inspect.Parameter:
    types = {hyperparameter.type.removesuffix(" | None") for _, hyperparameter in users}
    kind = {"int": int, "float": float, "bool": bool}.get(types.pop(), str) if len(types) == 1 else str
    metavars = {_LISTS.get(hyperparameter.type.partition(",")[0]) for _, hyperparameter in users}
    option = typer.Option(
        _switch(name) if kind is bool else _option(name),
        metavar=metavars.pop() if len(metavars) == 1 else None,
        help=_plain(_told([(technique, h.meaning.rstrip(".")) for technique, h in users], always_named=True) + "."),
        show_default=_plain(_told([(technique, h.default or "not set") for technique, h in users])),
        rich_help_panel=TECHNIQUE_PANEL,
    )
    return _parameter(name, kind | None, None, option)


def _told(texts: list[tuple[str, str]], always_named: bool = False) -> str:
    """What is said of several techniques: those of which the same is said stand together."""
    users: dict[str, list[str]] = {}
    for technique, text in texts:
        users.setdefault(text, []).append(technique)
    if len(users) == 1 and not always_named:
        return texts[0][1]
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in users.items())


def _parameter(name: str, kind: Any, default: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _switch(name: str) -> str:
    return f"{_option(name)}/--no-{name.replace('_', '-')}"


def _plain(text: str) -> str:
    """Square brackets are markup in help texts."""
    return text.replace("[", r"\[")
