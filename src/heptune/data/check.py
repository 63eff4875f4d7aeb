"""What is wrong with a data set, found before any training.

`check` counts; each finding is one plain sentence with its number and the way out. A fatal finding means that
training on the file would be pointless. The records are gone through once and none is kept, so that those of a file
that does not fit into memory can be checked (`readers.scan`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from heptune.core.errors import DataError
from heptune.core.events import Listener, Progress, ignore
from heptune.data.readers import Dataset
from heptune.data.record import Record
from heptune.data.tally import Lengths as Lengths
from heptune.data.tally import LengthSummary, LengthTally, Repetitions, Tally, labels_of
from heptune.data.values import listed

FEW_RECORDS = 20  # fewer are learnt by heart before anything general is
FEW_PER_LABEL = 5  # fewer cannot be both learnt from and measured on
IMBALANCE = 10  # largest label / smallest label: above it accuracy says little about the small one
DUPLICATE_SHARE = 0.01
SHOWN = 5  # examples in a message
AT_A_TIME = 512  # records that are measured together
# Columns whose content changes what a row means: reading the rest without them deserves a warning.
MEANINGFUL = (
    *("label", "labels", "spans", "entities", "options", "choices", "paragraphs", "context", "passage"),
    *("rejected", "chosen", "image", "images", "tools", "system"),
)
# What two records with the same text must not differ in, by their kind.
CONFLICTS = {
    "text with several labels": "more than one set of labels",
    "text with entities": "entities in different places",
    "question": "different answers",
    "question with options": "different answers",
}

Measure = Callable[[Sequence[Record]], Sequence[Sequence[Lengths]]]


@dataclass(frozen=True)
class Finding:
    """One thing to know. `severity` is 'fatal' (training would be pointless), 'warning' or 'info'."""

    severity: str
    text: str


@dataclass(frozen=True)
class CheckReport:
    """What a file holds and what is wrong with it. Lines count from 1, as in `Record.line`.

    `duplicates` counts the records that repeat an earlier one; `duplicate_lines` are the lines of each repeated text.
    `conflicts` and `conflict_lines` likewise, of texts of which different things are to be learned. `leaked` counts the
    training records that also stand in the evaluation data, `leaked_lines` are some pairs (training line, evaluation
    line). `unknown_labels` are those of the evaluation data only, with their counts. `unsupervised` and `cut` count the
    records with an example that has nothing to learn, or that the length limit shortens. `lengths` is None if nothing
    was measured. Counts are of all records; a list names the first 10,000 lines, `skipped` of JSON lines likewise.
    """

    path: Path
    format: str
    kind: str
    records: int
    bad_lines: int
    skipped: tuple[str, ...]
    labels: Mapping[str, int]
    lengths: LengthSummary | None
    duplicates: int
    duplicate_lines: tuple[tuple[int, ...], ...]
    conflicts: int
    conflict_lines: tuple[tuple[int, ...], ...]
    leaked: int
    leaked_lines: tuple[tuple[int, int], ...]
    unknown_labels: Mapping[str, int]
    unsupervised: int
    unsupervised_lines: tuple[int, ...]
    cut: int
    cut_lines: tuple[int, ...]
    findings: tuple[Finding, ...]

    @property
    def pointless(self) -> bool:
        """Whether training on this file would teach nothing."""
        return any(finding.severity == "fatal" for finding in self.findings)

    def also(self, findings: Iterable[Finding]) -> CheckReport:
        """The same with more findings."""
        return replace(self, findings=_by_severity([*self.findings, *findings]))


def check(
    dataset: Dataset,
    *,
    evaluation: Dataset | None = None,
    measure: Measure | None = None,
    max_length: int | None = None,
    listener: Listener = ignore,
) -> CheckReport:
    """Look for everything that would spoil a training on `dataset`, or its evaluation on `evaluation`.

    `measure` gives, for some records at a time, the lengths in tokens of the examples that each becomes; `max_length`
    is the limit that it cut them to (only named in the findings). Raises nothing for bad data: that is what the
    findings are for.
    """
    tally, lengths = Tally(), LengthTally()
    what = "measuring" if measure else "checking"
    for some in _told(dataset.records, what, listener):
        for record in some:
            tally.add(record)
        for record, examples in zip(some, measure(some) if measure else (), strict=bool(measure)):
            lengths.add(record.line, examples)
    judged = Tally()
    for some in _told(evaluation.records if evaluation else (), "comparing", listener):
        for record in some:
            judged.add(record)

    repetitions = tally.repetitions()
    leaked, leaked_lines = tally.also_in(judged, SHOWN)
    known = tally.labels
    unknown = Counter({label: n for label, n in judged.labels.items() if known and label not in known})
    findings = [
        *_about_records(dataset),
        *_about_labels(known, dataset),
        *_about_repetition(dataset, repetitions),
        *(_about_evaluation(dataset, evaluation, leaked, leaked_lines, unknown, set(known)) if evaluation else ()),
        *(_about_lengths(lengths, max_length) if measure and len(tally) else ()),
    ]
    return CheckReport(
        path=dataset.path,
        format=dataset.format,
        kind=dataset.kind,
        records=len(tally),
        bad_lines=dataset.all_skipped,
        skipped=tuple(str(error) for error in dataset.skipped),
        labels=dict(known.most_common()),
        lengths=lengths.summary(),
        duplicates=repetitions.duplicates,
        duplicate_lines=repetitions.duplicate_lines,
        conflicts=repetitions.conflicts,
        conflict_lines=repetitions.conflict_lines,
        leaked=leaked,
        leaked_lines=leaked_lines,
        unknown_labels=dict(unknown.most_common()),
        unsupervised=lengths.unsupervised,
        unsupervised_lines=tuple(lengths.unsupervised_lines),
        cut=lengths.cut,
        cut_lines=tuple(lengths.cut_lines),
        findings=_by_severity(findings),
    )


def _by_severity(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda f: ("fatal", "warning", "info").index(f.severity)))


def _told(records: Sequence[Record], what: str, listener: Listener) -> Iterator[list[Record]]:
    """The records, some at a time; the listener is told when the next ones are asked for."""
    every, done = iter(records), 0
    while some := list(islice(every, AT_A_TIME)):
        yield some
        done += len(some)
        listener(Progress(what, done, len(records), "records"))


def check_labels(
    training_labels: Collection[str], evaluation: Iterable[Record], path: str | Path | None = None
) -> None:
    """Refuse evaluation records whose labels training has never seen: no prediction could be right there.

    Raises DataError with those labels, their counts and first lines. `path` is the evaluation file, for the message.
    """
    lines: dict[str, list[int]] = defaultdict(list)
    for record in evaluation:
        for label in labels_of(record):
            if label not in training_labels:
                lines[label].append(record.line)
    if lines:
        some = list(lines.items())[:SHOWN]
        found = "; ".join(f"{label!r} ({_count(len(at), 'record')}, first in line {at[0]})" for label, at in some)
        more = f"; and {len(lines) - SHOWN} more labels" if len(lines) > SHOWN else ""
        raise DataError(
            f"the evaluation data has {_count(len(lines), 'label')} unknown to the training: {found}{more}. "
            f"Training knew: {listed(sorted(training_labels))}. Rename them, take those records out, "
            "or train on data that has them",
            path=path,
        )


def _about_records(dataset: Dataset) -> Iterable[Finding]:
    count = len(dataset.records)
    if not count:
        yield Finding("fatal", "There is no usable record; put at least one complete record into the file.")
    elif count < FEW_RECORDS:
        yield Finding(
            "warning",
            f"There are only {_count(count, 'record')}; below {FEW_RECORDS} a model learns them by heart, so add more.",
        )
    if dataset.skipped:
        yield Finding("warning", f"{_count(dataset.all_skipped, 'bad line')} left out; the first: {dataset.skipped[0]}")
    if dataset.ignored:
        meaningful = [name for name in dataset.ignored if name.strip().lower() in MEANINGFUL]
        yield Finding(
            "warning" if meaningful else "info",
            f"Nothing is read from {_count(len(dataset.ignored), 'column')}: {listed(dataset.ignored)}; "
            "if one of them matters, name it with --column or merge it into the text.",
        )


def _about_labels(labels: Counter[str], dataset: Dataset) -> Iterable[Finding]:
    if not labels:
        if dataset.kind in ("text with several labels", "text with entities"):
            what = "an entity" if dataset.kind == "text with entities" else "a label"
            yield Finding("fatal", f"No record has {what}: there is nothing to learn; add records with some.")
        return
    (largest, most), (smallest, fewest) = labels.most_common()[0], labels.most_common()[-1]
    if len(labels) == 1 and most == len(dataset.records) and dataset.kind != "text with entities":
        yield Finding(
            "fatal", f"Every record has the same label, {largest!r}: nothing can be told apart; add records of another."
        )
    elif most > IMBALANCE * fewest:
        yield Finding(
            "warning",
            f"The label {largest!r} has {most} records, {smallest!r} only {fewest} ({most / fewest:.0f} times fewer); "
            "read macro-F1 rather than accuracy, or add records of the rare label.",
        )
    few = [label for label, count in labels.items() if count < FEW_PER_LABEL]
    if few:
        yield Finding(
            "warning",
            f"{_count(len(few), 'label')} with fewer than {FEW_PER_LABEL} records: {listed(few, SHOWN)}; "
            "too few to learn and to measure, so add records or merge labels.",
        )
    spellings: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        spellings["".join(label.split()).casefold()].append(label)
    for same in spellings.values():
        if len(same) > 1:
            yield Finding(
                "warning",
                f"The labels {listed(same)} differ only by case or space and count as {len(same)} labels; "
                "spell them alike if they mean the same.",
            )


def _about_repetition(dataset: Dataset, found: Repetitions) -> Iterable[Finding]:
    count = len(dataset.records)
    if found.duplicates:
        yield Finding(
            "warning" if found.duplicates > DUPLICATE_SHARE * count else "info",
            f"Repetitions of an earlier record: {found.duplicates} ({found.duplicates / count:.1%}), "
            f"{_where(found.duplicate_lines)}; take them out unless they should weigh more. Splits keep them together.",
        )
    if found.conflicts:
        yield Finding(
            "warning",
            f"{_count(found.conflicts, 'text')} with {CONFLICTS.get(dataset.kind, 'more than one label')}, "
            f"{_where(found.conflict_lines)}; decide for one.",
        )


def _about_evaluation(
    dataset: Dataset,
    evaluation: Dataset,
    leaked: int,
    leaked_lines: Sequence[tuple[int, int]],
    unknown: Counter[str],
    known: set[str],
) -> Iterable[Finding]:
    if dataset.records and evaluation.records and dataset.kind != evaluation.kind:
        yield Finding(
            "fatal",
            f"The training data is {dataset.kind}, but the evaluation data is {evaluation.kind}; give both one shape.",
        )
    if leaked:
        count = len(dataset.records)
        pairs = ", ".join(f"{a} = {b}" for a, b in leaked_lines)
        yield Finding(
            "fatal" if leaked == count else "warning",
            f"Also in the evaluation data: {leaked} of the {count} training records (training line = evaluation "
            f"line: {pairs}), so scores there would measure memory; take them out of one of the two.",
        )
    if unknown:
        counts = ", ".join(f"{label!r} ({count})" for label, count in unknown.most_common(SHOWN))
        yield Finding(
            "warning",
            f"{_count(len(unknown), 'label')} of the evaluation data unknown to the training data: {counts}; training "
            f"knows {listed(sorted(known))}. Rename them, or add training records.",
        )


def _about_lengths(found: LengthTally, max_length: int | None) -> Iterable[Finding]:
    if not found.supervised:
        yield Finding(
            "fatal",
            f"None of the {found.counts.total()} examples has a supervised token left: there is nothing to learn; "
            "raise the length limit, shorten the prompts, or add answers.",
        )
    elif found.unsupervised:
        yield Finding(
            "warning",
            f"{_count(found.unsupervised, 'record')} with nothing supervised "
            f"({_at(found.unsupervised_lines, found.unsupervised)}), so nothing is learnt there; "
            "raise the length limit or add the answer.",
        )
    if found.cut:
        limit = f"the limit of {max_length} tokens" if max_length else "the length limit"
        yield Finding(
            "warning",
            f"{_count(found.cut, 'record')} longer than {limit} ({_at(found.cut_lines, found.cut)}): "
            f"{_count(found.cut_tokens, 'token')} are cut off; the longest needs {found.longest}, "
            "so raise the limit or shorten the records.",
        )


def _where(groups: Sequence[Sequence[int]]) -> str:
    shown = ["lines " + " = ".join(str(line) for line in same[:SHOWN]) for same in groups[:SHOWN]]
    return "e.g. " + "; ".join(shown)


def _at(lines: Sequence[int], count: int) -> str:
    more = ", …" if count > SHOWN else ""
    return f"line{'s' if count > 1 else ''} {', '.join(map(str, lines[:SHOWN]))}{more}"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
