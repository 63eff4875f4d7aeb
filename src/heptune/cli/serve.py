"""`heptune serve`: many runs on one base, over HTTP in OpenAI's interface."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from heptune.cli import options
from heptune.core.units import parse_bytes, parse_seconds

_ROOM = "Room and limits"


def serve(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Run directories; NAME=RUN gives one another name than its folder's.",
            show_default=False,
        ),
    ],
    host: Annotated[str, typer.Option(help="Where to listen. Other machines need --api-key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            envvar="HEPTUNE_API_KEY",
            help="The key that clients must give. Others can read a command line: better in the environment.",
            show_default="none",
        ),
    ] = None,
    allow: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Runs in this folder may be loaded while the server runs.", show_default="none may"
        ),
    ] = None,
    serving: options.Serving = False,
    replies: Annotated[
        int,
        typer.Option("--max-replies", min=1, help="Replies that are made at the same time.", rich_help_panel=_ROOM),
    ] = 32,
    waiting: Annotated[
        int,
        typer.Option("--max-waiting", min=0, help="Replies that may wait; more get status 429.", rich_help_panel=_ROOM),
    ] = 256,
    cache_memory: Annotated[
        str,
        typer.Option(metavar="SIZE", help="Memory for keys and values, e.g. 2GiB.", rich_help_panel=_ROOM),
    ] = "2GiB",
    max_tokens: Annotated[
        int, typer.Option(min=1, help="The longest reply that can be asked for.", rich_help_panel=_ROOM)
    ] = 4096,
    max_body: Annotated[
        str,
        typer.Option(metavar="SIZE", help="The longest request; more gets status 413.", rich_help_panel=_ROOM),
    ] = "4MiB",
    timeout: Annotated[
        str, typer.Option(metavar="TIME", help="The longest that a request may take.", rich_help_panel=_ROOM)
    ] = "10m",
    threads: options.Threads = None,
) -> None:
    """Serve RUNs and their base in OpenAI's interface: all of them at the same time, whatever their technique."""
    from heptune.cli.show import console
    from heptune.core.errors import UsageError

    cache_bytes, body_bytes, request_s = parse_bytes(cache_memory), parse_bytes(max_body), parse_seconds(timeout)
    if cache_bytes < 1 << 20 or body_bytes < 1 << 10:
        raise UsageError("--cache-memory must be at least 1MiB and --max-body at least 1KiB")
    if allow is not None and not allow.is_dir():
        raise UsageError(f"--allow names {allow}, which is no folder")
    options.use_threads(threads)
    from heptune import api
    from heptune.cli.live import live
    from heptune.service.asking import Limits
    from heptune.service.engine import Room
    from heptune.service.fleet import names_of

    found = {name: options.serving(path, serving) for name, path in names_of(runs).items()}
    screen = console()
    with live(console(stderr=True)) as listener:
        server = api.server(
            found,
            host=host,
            port=port,
            api_key=api_key,
            allow=allow,
            room=Room(replies, waiting, cache_bytes),
            limits=Limits(body_bytes, max_tokens, min(max_tokens, Limits.reply_tokens), request_s=request_s),
            listener=listener,
        )
    server.serve(ready=lambda: _ready(screen, server.url, server.fleet.models, api_key is not None))
    screen.print("The server has stopped.")


def _ready(screen: Any, url: str, models: Mapping[str, Any], has_key: bool) -> None:
    """What is served, where, and a first request."""
    from rich.table import Table

    table = Table("model", "task", "technique", "on", box=None, pad_edge=False)
    for name, served in models.items():
        base = served.engine.anatomy.shape.architecture
        table.add_row(name, "base" if served.task is None else served.task.name, served.technique or "-", base)
    screen.print(table)
    chosen = next((n for n, s in models.items() if s.task is not None), next(iter(models)))
    served = models[chosen]
    learned = "" if served.task is None else served.task.name
    key = " -H 'Authorization: Bearer KEY'" if has_key else ""
    start = f"curl{key} -H 'Content-Type: application/json' {url}"
    if learned in ("classify", "label"):
        request = f'{start}/classify -d \'{{"model": "{chosen}", "input": "a text"}}\''
    elif learned in ("extract", "tag"):
        request = f'{start}/extract -d \'{{"model": "{chosen}", "input": "a text"}}\''
    elif learned == "complete":
        request = f'{start}/completions -d \'{{"model": "{chosen}", "prompt": "Once"}}\''
    else:
        said = '[{"role": "user", "content": "Hello"}]'
        request = f'{start}/chat/completions -d \'{{"model": "{chosen}", "messages": {said}}}\''
    screen.print(f"Serving at {url} (OpenAI's interface; Ctrl-C stops). Try:", soft_wrap=True)
    screen.print(request, soft_wrap=True, markup=False, highlight=False)
