"""`heptune pretrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from heptune.cli import options
from heptune.models.newborn import CONTEXT, LEAST_VOCABULARY, NAMES, PRETRAINING, SIZES, VOCABULARY, with_size


@options.with_defaults(PRETRAINING, "epochs", "learning_rate", "max_length", "quantize", "share")
def pretrain(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG",
            help=f"{', '.join(NAMES)}; an architecture alone, with --size; or a config.json.",
            show_default=False,
        ),
    ],
    corpus: Annotated[
        Path,
        typer.Argument(
            metavar="CORPUS",
            help="A text file, JSON lines with a text, or a folder of .txt and .md files.",
            show_default=False,
        ),
    ],
    size: Annotated[
        str | None,
        typer.Option(metavar="|".join(SIZES), help="The size of an architecture.", show_default="CONFIG's own"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="New run directory.", show_default="runs/CONFIG-N")
    ] = None,
    vocabulary: Annotated[
        int, typer.Option(min=LEAST_VOCABULARY, help="Most tokens of the tokenizer, which is learned from CORPUS.")
    ] = VOCABULARY,
    context: Annotated[int, typer.Option(min=8, help="Longest window in tokens, and the model's positions.")] = CONTEXT,
    epochs: Annotated[
        float | None,
        typer.Option(
            help="Passes over the training part; may be a fraction.",
            show_default="20 tokens a parameter, but 1 to 16 passes",
        ),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak learning rate.", show_default="0.003 for 1m, 0.002 for 5m, 0.001 for 20m")
    ] = None,
    validation: options.Validation = None,
    test: options.Test = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Most training documents or stretches.", show_default="all")
    ] = None,
    column: options.Column = None,
    skip_bad: options.SkipBad = False,
    threads: options.Threads = None,
    **chosen: Any,
) -> None:
    """Train a new small model on CORPUS. Ctrl-C saves; `heptune resume RUN` goes on with the same bits."""
    parts = {
        "validation": options.file_or_share("--validation", validation),
        "test": options.file_or_share("--test", test),
    }
    columns = options.columns(column)
    options.use_threads(threads)
    from heptune import api
    from heptune.cli.live import live
    from heptune.cli.show import console
    from heptune.cli.tune import finish_pretraining

    screen = console()
    with live(screen) as listener:
        run = api.pretrain(
            with_size(config, size),
            corpus,
            out=out,
            vocabulary=vocabulary,
            context=context,
            options=api.DataOptions(**parts, limit=limit, columns=columns, skip_bad=skip_bad),
            listener=listener,
            **{**chosen, "epochs": epochs, "learning_rate": learning_rate},
        )
    finish_pretraining(run, screen)
