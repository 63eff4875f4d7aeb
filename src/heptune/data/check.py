"""What is wrong with a data set, found before any training.

`check` counts; each finding is one plain sentence with its number and the way out. A fatal finding means that
training on the file would be pointless.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from heptune.core.errors import DataError
from heptune.core.events import Listener, Progress, ignore
from heptune.data.readers import Dataset
from heptune.data.record import Record
from heptune.data.shapes import listed
from heptune.data.splits import content_key

FEW_RECORDS = 20  # fewer are learnt by heart before anything general is
FEW_PER_LABEL = 5  # fewer cannot be both learnt from and measured on
IMBALANCE = 10  # largest label / smallest label: above it accuracy says little about the small one
DUPLICATE_SHARE = 0.01
SHOWN = 5  # examples in a message
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


@dataclass(frozen=True)
class Lengths:
    """One encoded example: its tokens, how many are supervised, and how many the length limit cut off."""

    tokens: int
    supervised: int
    cut: int


@dataclass(frozen=True)
class LengthSummary:
    """Tokens per example (quantiles), and in all. `supervised` is a number of tokens."""

    examples: int
    minimum: int
    median: int
    p95: int
    maximum: int
    total: int
    supervised: int

    @property
    def supervised_share(self) -> float:
        """The share of all tokens that is learnt."""
        return self.supervised / self.total if self.total else 0.0


@dataclass(frozen=True)
class Finding:
    """One thing to know. `severity` is 'fatal' (training would be pointless), 'warning' or 'info'."""

    severity: str
    text: str


@dataclass(frozen=True)
class CheckReport:
    """What a file holds and what is wrong with it. Lines count from 1, as in `Record.line`.

    `duplicates` counts the records that repeat an earlier one; `duplicate_lines` are the lines of each repeated text.
    `conflict_lines` likewise, of texts with more than one label. `leaked` counts the training records that also stand
    in the evaluation data, `leaked_lines` are some pairs (training line, evaluation line). `unknown_labels` are
    those of the evaluation data only, with their counts. `unsupervised_lines` and `cut_lines` are the records with an
    example that has nothing to learn, or that the length limit shortens. `lengths` is None if nothing was measured.
    """

    path: Path
    format: str
    kind: str
    records: int
    skipped: tuple[str, ...]
    labels: Mapping[str, int]
    lengths: LengthSummary | None
    duplicates: int
    duplicate_lines: tuple[tuple[int, ...], ...]
    conflict_lines: tuple[tuple[int, ...], ...]
    leaked: int
    leaked_lines: tuple[tuple[int, int], ...]
    unknown_labels: Mapping[str, int]
    unsupervised_lines: tuple[int, ...]
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
    measure: Callable[[Record], Sequence[Lengths]] | None = None,
    max_length: int | None = None,
    listener: Listener = ignore,
) -> CheckReport:
    """Look for everything that would spoil a training on `dataset`, or its evaluation on `evaluation`.

    `measure` gives the lengths in tokens of the examples that a record becomes; `max_length` is the limit that it cut
    them to (only named in the findings). Raises nothing for bad data: that is what the findings are for.
    """
    records = dataset.records
    labels = Counter(label for record in records for label in labels_of(record))
    evaluation_records = evaluation.records if evaluation else ()
    by_content = _by_content(records)
    repeated = [same for same in by_content.values() if len(same) > 1]
    conflicting = [same for same in repeated if len({_learnt(record) for record in same}) > 1]
    evaluated = _by_content(evaluation_records)
    leaked = [(record, evaluated[key][0]) for key, same in by_content.items() if key in evaluated for record in same]
    unknown = Counter(x for record in evaluation_records for x in labels_of(record) if labels and x not in labels)
    measured = _measure(records, measure, listener) if measure else []

    unsupervised = tuple(r.line for r, every in measured if not all(e.supervised for e in every) or not every)
    cut = tuple(r.line for r, every in measured if any(e.cut for e in every))
    findings = [
        *_about_records(dataset),
        *_about_labels(labels, dataset),
        *_about_repetition(dataset, repeated, conflicting),
        *(_about_evaluation(dataset, evaluation, leaked, unknown, set(labels)) if evaluation else ()),
        *_about_lengths(measured, unsupervised, cut, max_length),
    ]
    return CheckReport(
        path=dataset.path,
        format=dataset.format,
        kind=dataset.kind,
        records=len(records),
        skipped=tuple(str(error) for error in dataset.skipped),
        labels=dict(labels.most_common()),
        lengths=_summary([example for _, every in measured for example in every]),
        duplicates=sum(len(same) - 1 for same in repeated),
        duplicate_lines=_lines(repeated),
        conflict_lines=_lines(conflicting),
        leaked=len(leaked),
        leaked_lines=tuple((a.line, b.line) for a, b in leaked[:SHOWN]),
        unknown_labels=dict(unknown.most_common()),
        unsupervised_lines=unsupervised,
        cut_lines=cut,
        findings=_by_severity(findings),
    )


def labels_of(record: Record) -> tuple[str, ...]:
    """The labels of a record, each once: its one label, its several, or the types of its entities."""
    if record.label is not None:
        return (record.label,)
    return tuple(dict.fromkeys(record.labels or (span.type for span in record.spans or ())))


def _learnt(record: Record) -> Hashable:
    """What is to be learned of a record beside a conversation's turns: equal where two records do not contradict."""
    return record.label, frozenset(record.labels or ()), record.spans, frozenset(record.answers)


def _by_severity(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda f: ("fatal", "warning", "info").index(f.severity)))


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
        yield Finding(
            "warning", f"{_count(len(dataset.skipped), 'bad line')} left out; the first: {dataset.skipped[0]}"
        )
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


def _about_repetition(
    dataset: Dataset, repeated: Sequence[Sequence[Record]], conflicting: Sequence[Sequence[Record]]
) -> Iterable[Finding]:
    count = len(dataset.records)
    duplicates = sum(len(same) - 1 for same in repeated)
    if duplicates:
        yield Finding(
            "warning" if duplicates > DUPLICATE_SHARE * count else "info",
            f"Repetitions of an earlier record: {duplicates} ({duplicates / count:.1%}), {_where(repeated)}; "
            "take them out unless they should weigh more. Splits keep them together.",
        )
    if conflicting:
        yield Finding(
            "warning",
            f"{_count(len(conflicting), 'text')} with {CONFLICTS.get(dataset.kind, 'more than one label')}, "
            f"{_where(conflicting)}; decide for one.",
        )


def _about_evaluation(
    dataset: Dataset,
    evaluation: Dataset,
    leaked: Sequence[tuple[Record, Record]],
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
        pairs = ", ".join(f"{a.line} = {b.line}" for a, b in leaked[:SHOWN])
        yield Finding(
            "fatal" if len(leaked) == count else "warning",
            f"Also in the evaluation data: {len(leaked)} of the {count} training records (training line = evaluation "
            f"line: {pairs}), so scores there would measure memory; take them out of one of the two.",
        )
    if unknown:
        counts = ", ".join(f"{label!r} ({count})" for label, count in unknown.most_common(SHOWN))
        yield Finding(
            "warning",
            f"{_count(len(unknown), 'label')} of the evaluation data unknown to the training data: {counts}; training "
            f"knows {listed(sorted(known))}. Rename them, or add training records.",
        )


def _about_lengths(
    measured: Sequence[tuple[Record, Sequence[Lengths]]],
    unsupervised: Sequence[int],
    cut: Sequence[int],
    max_length: int | None,
) -> Iterable[Finding]:
    examples = [example for _, every in measured for example in every]
    if measured and not any(example.supervised for example in examples):
        yield Finding(
            "fatal",
            f"None of the {len(examples)} examples has a supervised token left: there is nothing to learn; "
            "raise the length limit, shorten the prompts, or add answers.",
        )
    elif unsupervised:
        yield Finding(
            "warning",
            f"{_count(len(unsupervised), 'record')} with nothing supervised ({_at(unsupervised)}), so nothing is "
            "learnt there; raise the length limit or add the answer.",
        )
    if cut:
        limit = f"the limit of {max_length} tokens" if max_length else "the length limit"
        tokens, longest = sum(e.cut for e in examples), max(e.tokens + e.cut for e in examples)
        yield Finding(
            "warning",
            f"{_count(len(cut), 'record')} longer than {limit} ({_at(cut)}): {_count(tokens, 'token')} are cut off; "
            f"the longest needs {longest}, so raise the limit or shorten the records.",
        )


def _measure(
    records: Sequence[Record], measure: Callable[[Record], Sequence[Lengths]], listener: Listener
) -> list[tuple[Record, Sequence[Lengths]]]:
    measured = []
    for done, record in enumerate(records, 1):
        measured.append((record, measure(record)))
        if done % 500 == 0 or done == len(records):
            listener(Progress("measuring", done, len(records), "records"))
    return measured


def _summary(examples: Sequence[Lengths]) -> LengthSummary | None:
    if not examples:
        return None
    tokens = np.array([example.tokens for example in examples])
    # 'higher' and 'lower' give lengths that some example really has.
    return LengthSummary(
        examples=len(examples),
        minimum=int(tokens.min()),
        median=int(np.quantile(tokens, 0.5, method="lower")),
        p95=int(np.quantile(tokens, 0.95, method="higher")),
        maximum=int(tokens.max()),
        total=int(tokens.sum()),
        supervised=sum(example.supervised for example in examples),
    )


def _by_content(records: Iterable[Record]) -> dict[Hashable, list[Record]]:
    groups: dict[Hashable, list[Record]] = defaultdict(list)
    for record in records:
        groups[content_key(record)].append(record)
    return dict(groups)


def _lines(groups: Sequence[Sequence[Record]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(record.line for record in same) for same in groups)


def _where(groups: Sequence[Sequence[Record]]) -> str:
    shown = ["lines " + " = ".join(str(line) for line in same[:SHOWN]) for same in _lines(groups[:SHOWN])]
    return "e.g. " + "; ".join(shown)


def _at(lines: Sequence[int]) -> str:
    more = ", …" if len(lines) > SHOWN else ""
    return f"line{'s' if len(lines) > 1 else ''} {', '.join(map(str, lines[:SHOWN]))}{more}"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
