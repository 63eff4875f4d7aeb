"""What must be quick, and what the help texts must say."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest

from heptune import __version__, techniques
from heptune.cli.hyperparameters import hyperparameters
from heptune.engine.settings import Settings

COMMANDS = ("plan", "tune", "pretrain", "resume", "race", "eval", "report", "chat", "explain", "check", "demo")
COMMANDS += ("runs", "promote", "rollback")
SLOW = ("torch", "transformers", "sklearn", "scipy", "numpy", "heptune.api")


@pytest.mark.parametrize(
    "words",
    [
        *([verb, "--help"] for verb in ("tune", "plan", "pretrain", "runs", "promote", "rollback")),
        *(["--help"], ["explain"], ["explain", "lora"], ["--version"]),
    ],
)
def test_answers_without_importing_what_is_slow(words: list[str]) -> None:
    code = "import sys; from heptune.cli.main import main; main(sys.argv[1:]); "
    code += f"print([m for m in {SLOW} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert done.stdout.strip()


def test_version(heptune) -> None:
    said = heptune("--version")
    assert (said.code, said.out) == (0, f"heptune {__version__}\n")


def test_help_lists_every_command(heptune) -> None:
    said = heptune("--help")
    assert said.code == 0
    for command in COMMANDS:
        assert f" {command} " in said.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_every_command_is_explained(command: str) -> None:
    import typer

    from heptune.cli.main import app

    for option in typer.main.get_command(app).commands[command].params:  # type: ignore[attr-defined]
        assert option.help, f"{command} {option.name} has no help text"


def test_help_of_tune_has_every_setting_with_its_default_and_text(heptune) -> None:
    text = _flat(heptune("tune", "--help").out)
    for field in fields(Settings):
        default = "(not set)" if field.default is None else str(field.default)
        if isinstance(field.default, bool):
            default = field.name if field.default else f"no-{field.name}"
        assert f"--{field.name.replace('_', '-')} " in text
        assert f"{field.metadata['help']} [default: {default}]" in text


def test_help_of_tune_has_every_hyperparameter_but_those_that_are_settings(heptune) -> None:
    text = _flat(heptune("tune", "--help").out)
    own = {h.name for name in techniques.names() for h in hyperparameters(name)} - {f.name for f in fields(Settings)}
    assert own >= {"rank", "alpha", "targets", "layers"}
    for name in own:
        assert f"--{name.replace('_', '-')} " in text


@pytest.mark.parametrize("technique", techniques.names())
def test_hyperparameters_read_from_the_file_are_those_of_the_class(technique: str) -> None:
    read = hyperparameters(technique)
    real = fields(techniques.get(technique))  # type: ignore[arg-type]
    assert [h.name for h in read] == [f.name for f in real]
    assert all(h.meaning for h in read), "every hyperparameter is explained under Attributes:"
    for hyperparameter, field in zip(read, real, strict=True):
        if isinstance(field.default, bool):
            assert hyperparameter.default == ("on" if field.default else "off")
        elif isinstance(field.default, tuple):
            assert hyperparameter.default == (",".join(map(str, field.default)) or "not set")
        elif field.default is None:
            assert hyperparameter.default == "not set"
        elif isinstance(field.default, int | float):
            assert float(hyperparameter.default) == field.default


def test_explain_without_a_name_is_a_table_of_all(heptune) -> None:
    said = heptune("explain")
    assert said.code == 0
    for name in techniques.names():
        assert name in said.out
    assert "low-rank adaptation" in said.out
    assert "one safe choice" in said.out


def test_explain_prints_the_card_and_the_settings(heptune) -> None:
    said = heptune("explain", "lora")
    assert said.code == 0
    assert techniques.card("lora") in said.out
    assert "--rank-stabilised" in said.out and "width of the bottleneck" in said.out


def test_explain_of_an_unknown_name_lists_the_nearest(heptune) -> None:
    said = heptune("explain", "lorra")
    assert said.code == 1
    assert said.err.startswith("error: ") and "did you mean lora or qlora?" in said.err


def _flat(table: str) -> str:
    """The help tables' cells in one line, the frame taken away.

    A cell that is wrapped goes on in the same column of the next line, which joining lines brings together: the other
    columns are empty there.
    """
    return " ".join(" ".join(line.strip("│╭╮╰╯─ \n") for line in table.splitlines()).split())
