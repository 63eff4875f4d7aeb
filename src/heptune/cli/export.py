"""`heptune export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from heptune.cli import options

if TYPE_CHECKING:
    from rich.console import Console

    from heptune.shipping.export import Exported
    from heptune.shipping.parity import Parity, Scored


def export(
    run: options.RunArgument,
    to: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="peft (LoRA, prefixes, soft prompts), adapterhub (adapters), hf (one merged model) or gguf.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A new folder.", show_default="exports/RUN-FORMAT")
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            "--type",
            metavar="f32|f16|bf16|q8_0",
            help="Type of the weights of a model; q8_0 (8 bits) is GGUF's alone.",
            show_default="f32 for hf, f16 for gguf",
        ),
    ] = "",
    max_shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="The largest file of a merged model (hf).")
    ] = "5GB",
    lora_only: Annotated[
        bool, typer.Option("--lora-only", help="Write the LoRA alone as GGUF, to be put onto the base's own.")
    ] = False,
    serving: options.Serving = False,
    threads: options.Threads = None,
) -> None:
    """Write RUN in a format that other programs read, once the program itself has loaded it and says the same."""
    run = options.serving(run, serving)
    options.use_threads(threads)
    from heptune import api
    from heptune.cli.live import live
    from heptune.cli.show import console

    with live(console(stderr=True)) as listener:
        made = api.export(
            run,
            to,
            out=out,
            type=kind,
            max_shard_size=max_shard_size,
            lora_only=lora_only,
            listener=listener,
        )
    print_export(made, console())


def print_export(made: Exported, screen: Console) -> None:
    """What was written, how far it is from the run, and how it is used."""
    from heptune.cli.show import table
    from heptune.core.units import format_bytes

    screen.print(f"{made.folder}:", soft_wrap=True)
    screen.print(table(["", "size"], [[name, format_bytes(size)] for name, size in made.files.items()], [1]))
    screen.print()
    screen.print("Beside the run, on the same prompts:")
    headers = ["", *(parity.consumer for parity in made.parities), "allowed"]
    screen.print(table(headers, _rows(made.parities), range(1, len(headers))))
    for step in made.next:
        screen.print()
        screen.print(f"{step.what[:1].upper()}{step.what[1:]}{':' if step.words else '.'}", soft_wrap=True)
        if step.words:
            screen.print("\n".join(f"  {line}" for line in step.words.splitlines()), soft_wrap=True)


def _rows(parities: tuple[Parity, ...]) -> list[list[str]]:
    """One line for each figure, one column for each program."""
    first = parities[0]
    rows = [
        ["largest difference of a logit", *(f"{each.logits:.2g}" for each in parities), ""],
        [
            "all logits, relative to their size",
            *(f"{each.relative:.2g}" for each in parities),
            f"{first.tolerance.logits:g}",
        ],
    ]
    if first.learned is not None:
        learned = ["what the run learned, in the same measure", *(f"{each.learned:.2g}" for each in parities), ""]
        rows.append(learned)
    if first.greedy:
        rows.append(
            ["greedy tokens that agree", *(f"{each.agreed} of {each.greedy}" for each in parities), "all, but ties"]
        )
    if first.before is not None:
        rows.append(
            [
                f"loss of {first.records} held-out records",
                *(_moved(each.before, each.after, "loss") for each in parities),
                f"{first.tolerance.loss:g}",
            ]
        )
        rows.append(
            [
                "their score",
                *(_moved(each.before, each.after, "score") for each in parities),
                f"{first.tolerance.score:g}",
            ]
        )
    for what, name in (("texts become the same tokens", "tokens"), ("the chat template writes the same", "template")):
        said = [{True: "yes", False: "no", None: "-"}[getattr(each, name)] for each in parities]
        if set(said) != {"-"}:
            rows.append([what, *said, "yes"])
    return rows


def _moved(before: Scored | None, after: Scored | None, name: str) -> str:
    return "-" if before is None or after is None else f"{getattr(before, name):.4f} -> {getattr(after, name):.4f}"
