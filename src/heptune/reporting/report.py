"""Writing the report of a run or a race. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from heptune.core.errors import RunError
from heptune.reporting.findings import Findings
from heptune.reporting.markdown import markdown
from heptune.reporting.of_race import findings_of_race
from heptune.reporting.of_run import findings_of_run
from heptune.reporting.page import page
from heptune.runs.files import write_text

NAME = "report.html"


def findings(folder: str | Path) -> Findings:
    """What a run or a race directory tells. Raises `RunError` where it is neither, or from another version."""
    path = Path(folder)
    return findings_of_race(path) if (path / "race.json").is_file() else findings_of_run(path)


def report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Writes the report of a run or a race as one HTML file and returns its path.

    `out` is the file (default: report.html in `folder`). A run or a race that is under way gets an interim report.
    """
    path = Path(folder) / NAME if out is None else Path(out)
    text = page(findings(folder))
    if path.is_dir():
        raise RunError(f"{path} is a folder; name a file, e.g. --out {path / NAME}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror}); choose another --out") from None
    return path


def report_markdown(folder: str | Path) -> str:
    """The short report of a run or a race as Markdown for a pull request."""
    return markdown(findings(folder))
