"""Every finding appears when its reason is there, with its number, and not otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from heptune.core.errors import DataError
from heptune.core.events import Event, Progress
from heptune.data.check import CheckReport, Lengths, Measure, check, check_labels
from heptune.data.readers import Dataset, read
from heptune.data.record import Message, Record


def dataset(*records: tuple[str, str | None], ignored: tuple[str, ...] = (), skipped: int = 0) -> Dataset:
    errors = tuple(DataError("no label", path="a.csv", line=n + 2) for n in range(skipped))
    rows = tuple(Record(line, text=text, label=label) for line, (text, label) in enumerate(records, 1))
    return Dataset(Path("a.csv"), "CSV, text + label", rows, errors, "0" * 64, ignored)


def sound(prefix: str = "text") -> list[tuple[str, str | None]]:
    return [(f"{prefix} {n}", "no" if n % 2 else "yes") for n in range(40)]


def each(measure: Callable[[Record], Sequence[Lengths]]) -> Measure:
    return lambda records: [measure(record) for record in records]


def texts(report: CheckReport, severity: str) -> str:
    return "\n".join(finding.text for finding in report.findings if finding.severity == severity)


def test_a_sound_data_set_has_no_findings() -> None:
    report = check(dataset(*sound()), evaluation=dataset(*sound("other")), measure=each(lambda r: [Lengths(10, 2, 0)]))
    assert report.findings == ()
    assert not report.pointless
    assert (report.records, report.kind, report.format) == (40, "labelled text", "CSV, text + label")
    assert report.labels == {"yes": 20, "no": 20}
    assert (report.duplicates, report.leaked, report.unknown_labels) == (0, 0, {})


def test_no_records() -> None:
    report = check(dataset())
    assert report.pointless
    assert report.kind == "no records"
    assert "no usable record" in texts(report, "fatal")


def test_a_single_label_is_pointless() -> None:
    report = check(dataset(*[(f"t {n}", "only") for n in range(30)]))
    assert report.pointless
    assert "the same label, 'only'" in texts(report, "fatal")


def test_few_records() -> None:
    report = check(dataset(*sound()[:12]))
    assert not report.pointless
    assert "only 12 records; below 20" in texts(report, "warning")


def test_skipped_lines_and_unread_columns() -> None:
    report = check(dataset(*sound(), skipped=3, ignored=("id", "note")))
    assert "3 bad lines left out; the first: a.csv:2: no label" in texts(report, "warning")
    assert report.skipped[2] == "a.csv:4: no label"
    assert "Nothing is read from 2 columns: 'id', 'note'" in texts(report, "info")
    assert "1 column: 'Image'" in texts(check(dataset(*sound(), ignored=("Image",))), "warning")


def test_imbalance_and_rare_labels() -> None:
    rows = [(f"t {n}", "common") for n in range(50)] + [(f"u {n}", "rare") for n in range(4)]
    warnings = texts(check(dataset(*rows)), "warning")
    assert "'common' has 50 records, 'rare' only 4 (12 times fewer)" in warnings
    assert "1 label with fewer than 5 records: 'rare'" in warnings
    balanced = [(f"t {n}", "common") for n in range(50)] + [(f"u {n}", "rare") for n in range(5)]
    assert check(dataset(*balanced)).findings == ()


def test_labels_that_differ_only_by_case_or_space() -> None:
    rows = [(f"t {n}", ("New York", "new york ", "Paris")[n % 3]) for n in range(30)]
    assert "'New York', 'new york ' differ only by case or space" in texts(check(dataset(*rows)), "warning")


def test_duplicates_and_conflicts() -> None:
    rows = [*sound(), ("TEXT  0", "yes"), ("text 0", "yes"), ("text 1", "yes")]
    report = check(dataset(*rows))
    assert report.duplicates == 3
    assert report.duplicate_lines == ((1, 41, 42), (2, 43))
    assert report.conflict_lines == ((2, 43),)
    warnings = texts(report, "warning")
    assert "an earlier record: 3 (7.0%), e.g. lines 1 = 41 = 42; lines 2 = 43" in warnings
    assert "1 text with more than one label, e.g. lines 2 = 43" in warnings
    many = [(f"t {n}", "no" if n % 2 else "yes") for n in range(199)]
    assert "an earlier record: 1 (0.5%)" in texts(check(dataset(*many, ("t 0", "yes"))), "info")


def test_leakage() -> None:
    report = check(dataset(*sound()), evaluation=dataset(("new", "yes"), ("Text 5", "no")))
    assert (report.leaked, report.leaked_lines) == (1, ((6, 2),))
    assert not report.pointless
    assert "1 of the 40 training records (training line = evaluation line: 6 = 2)" in texts(report, "warning")
    everything = check(dataset(*sound()), evaluation=dataset(*sound()))
    assert everything.pointless
    assert "40 of the 40 training records" in texts(everything, "fatal")


def test_unknown_labels_in_the_evaluation_data() -> None:
    report = check(dataset(*sound()), evaluation=dataset(("a", "maybe"), ("b", "maybe"), ("c", "yes")))
    assert report.unknown_labels == {"maybe": 2}
    assert "1 label of the evaluation data unknown" in texts(report, "warning")
    assert "'maybe' (2); training knows 'no', 'yes'" in texts(report, "warning")


def test_evaluation_of_another_kind() -> None:
    talk = Record(1, messages=(Message("user", "a"), Message("assistant", "b")))
    other = Dataset(Path("b.jsonl"), "JSON lines, chat messages", (talk,), (), "0" * 64)
    report = check(dataset(*sound()), evaluation=other)
    assert report.pointless
    assert "is labelled text, but the evaluation data is conversation" in texts(report, "fatal")
    assert check(other).labels == {}


def test_lengths_cuts_and_nothing_supervised() -> None:
    def measure(record: Record) -> Sequence[Lengths]:
        if record.line == 3:
            return [Lengths(100, 0, 28)]
        return (
            [Lengths(record.line, 1, 0), Lengths(record.line, 1, 0)]
            if record.line == 1
            else [Lengths(record.line, 1, 0)]
        )

    events: list[Event] = []
    report = check(dataset(*sound()), measure=each(measure), max_length=100, listener=events.append)
    assert report.lengths is not None
    assert (report.lengths.minimum, report.lengths.maximum) == (1, 100)
    assert (report.lengths.examples, report.lengths.total) == (41, sum(range(1, 41)) + 1 - 3 + 100)
    # 41 lengths in order: 1 1 2 4 5 … 40 100; the 21st is 21, and 95% of 40 steps is the 39th.
    assert (report.lengths.median, report.lengths.p95) == (21, 39)
    assert report.lengths.supervised == 40
    assert report.lengths.supervised_share == pytest.approx(40 / report.lengths.total)
    assert (report.unsupervised_lines, report.cut_lines) == ((3,), (3,))
    assert not report.pointless
    warnings = texts(report, "warning")
    assert "1 record with nothing supervised (line 3)" in warnings
    assert (
        "1 record longer than the limit of 100 tokens (line 3): 28 tokens are cut off; the longest needs 128"
        in warnings
    )
    assert events == [Progress("measuring", 40, 40, "records")]


def test_nothing_supervised_anywhere_is_pointless() -> None:
    report = check(dataset(*sound()), measure=each(lambda record: [Lengths(10, 0, 0)]))
    assert report.pointless
    assert "None of the 40 examples has a supervised token" in texts(report, "fatal")
    assert check(dataset(*sound()), measure=each(lambda record: [])).pointless


def test_fatal_findings_come_first() -> None:
    report = check(dataset(*[("same", "only")] * 3, ignored=("id",)))
    assert [f.severity for f in report.findings] == ["fatal", "warning", "warning", "warning", "info"]


def test_labels_unknown_to_the_training_are_refused() -> None:
    records = [Record(n, text="t", label=label) for n, label in enumerate(["yes", "maybe", "maybe", "never"], 1)]
    with pytest.raises(DataError) as caught:
        check_labels({"yes", "no"}, records, "test.csv")
    message = str(caught.value)
    assert message.startswith("test.csv: the evaluation data has 2 labels unknown to the training")
    assert "'maybe' (2 records, first in line 2); 'never' (1 record, first in line 4)" in message
    assert "Training knew: 'no', 'yes'" in message
    with pytest.raises(DataError, match="and 3 more labels"):
        check_labels({"yes"}, [Record(n, text="t", label=f"l{n}") for n in range(8)])
    check_labels({"yes", "no"}, records[:1])
    check_labels({"yes"}, [Record(1, text="no label")])


def test_a_file_from_disk_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label,id\n" + "".join(f"text {n},{n % 2},{n}\n" for n in range(30)))
    report = check(read(path))
    assert report.labels == {"0": 15, "1": 15}
    assert [f.severity for f in report.findings] == ["info"]
