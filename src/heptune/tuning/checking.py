"""The verb `check`: a data set seen with the eyes of a base's tokenizer.

It loads no weights and no more of Heptune than it needs: the memory is for the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from heptune import tasks
from heptune.core.errors import DataError
from heptune.core.events import Listener, Note, ignore
from heptune.data import stream
from heptune.data.check import CheckReport, Finding, Lengths
from heptune.data.check import check as check_data
from heptune.data.corpus import Documents
from heptune.data.parts import DataOptions, read_files
from heptune.data.record import Record
from heptune.engine.settings import Settings
from heptune.models.load import load_tokenizer, reads_both_ways
from heptune.tasks.ahead import Together
from heptune.tasks.options import TaskOptions
from heptune.tasks.soundness import Ends, about_base, about_ends, ends_of
from heptune.tasks.template import ChatTemplate, PlainText

# Documents of a corpus that are looked at.
CHECKED = 5000


@dataclass(frozen=True)
class Rendered:
    """An example exactly as the model sees it: pieces of text, and whether each is supervised."""

    line: int
    pieces: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class Check:
    """What was understood of a data set, what is wrong with it, and two examples rendered.

    `compared_with` is the evaluation file in which leaked examples were looked for.
    """

    report: CheckReport
    task: str | None
    compared_with: Path | None
    rendered: tuple[Rendered, ...]


def check(
    data: str | Path,
    *,
    base: str = "smollm2-135m",
    task: str | None = None,
    options: DataOptions | None = None,
    max_length: int = Settings.max_length,
    listener: Listener = ignore,
    **posed: Any,
) -> Check:
    """Looks at a data set with the eyes of `base`'s tokenizer. Only the tokenizer is loaded, no weights. `posed` are
    those of `heptune.tasks.options.TaskOptions`.

    JSON lines stay on disk and are gone through a few times: to read them, to pose the task, to measure. Of a large
    corpus some documents are looked at.
    """
    files = read_files(data, options or DataOptions(), listener, into_memory=False)
    dataset, evaluation = files.train, files.test or files.validation
    path = None if evaluation is None else evaluation.path
    if isinstance(dataset.records, Documents) and len(dataset.records) > CHECKED:
        chosen = dataset.records.some(CHECKED, 0, "check")
        listener(Note(f"of {len(dataset.records)} documents {CHECKED} are looked at, drawn from all over the corpus"))
        dataset = replace(dataset, records=dataset.records.take(chosen))
    both_ways = reads_both_ways(base, listener=listener)
    try:
        records = stream.told(dataset.records, f"posing the task of {dataset.path.name}", listener)
        goal = tasks.pose(task or tasks.choose(dataset.kind, words=not both_ways), records, TaskOptions(**posed))
    except DataError as error:
        report = check_data(dataset, evaluation=evaluation, max_length=max_length, listener=listener)
        if report.pointless:
            return Check(report, None, path, ())
        raise error
    tokenizer = load_tokenizer(base, listener=listener)
    speaks = ChatTemplate.for_records
    template: Any = PlainText(tokenizer) if both_ways else speaks(tokenizer, dataset.records)
    together = Together(goal, template, max_length)
    ends = Ends()

    def measure(some: Sequence[Record]) -> list[list[Lengths]]:
        nonlocal ends
        encoded = together.encode(some)
        if isinstance(goal, tasks.Chat):
            ends += ends_of((example for examples in encoded for example in examples), template)
        return [[Lengths(len(e.tokens), e.targets, e.cut) for e in examples] for examples in encoded]

    report = check_data(dataset, evaluation=evaluation, measure=measure, max_length=max_length, listener=listener)
    notes = [*about_base(base, template), *(about_ends(ends, max_length) if isinstance(goal, tasks.Chat) else ())]
    report = report.also(Finding(note.level, f"{note.text[0].upper()}{note.text[1:]}.") for note in notes)
    rendered = tuple(_render(record, goal, template, max_length) for record in dataset.records[:2])
    return Check(report, goal.name, path, rendered)


def _render(record: Record, task: tasks.Task, template: ChatTemplate, max_length: int) -> Rendered:
    example = task.encode(record, 0, template, max_length)[0]
    pieces: list[tuple[str, bool]] = []
    start = 0
    for t in range(1, len(example.tokens) + 1):
        if t == len(example.tokens) or example.supervised[t] != example.supervised[start]:
            pieces.append((template.tokenizer.decode(example.tokens[start:t]), example.supervised[start]))
            start = t
    return Rendered(record.line, tuple(pieces))
