"""Several labels, entities, questions and options: every form of them is read, and damage is explained."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from heptune.core.errors import DataError, UsageError
from heptune.data.check import check, check_labels
from heptune.data.readers import locate, read
from heptune.data.record import Record, Span

QUESTION = {"question": "Where?", "context": "In Paris.", "answers": {"text": ["Paris"], "answer_start": [3]}}
ANSWERED = Record(1, text="Where?", passage="In Paris.", answers=("Paris",))
CHOICE = Record(1, text="Biggest?", options=("ant", "bee", "cow"), answers=("cow",))
OPTIONS = ["ant", "bee", "cow"]
ENTITIES = Record(1, text="Ada met Bob", spans=(Span(0, 3, "PER"), Span(8, 11, "PER")))
PARIS = "Paris\tB-LOC\n"


def jsonl(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(folder: Path, content: str, name: str = "a.jsonl") -> Path:
    path = folder / name
    path.write_text(content, "utf-8")
    return path


def error(path: Path, **options: object) -> DataError:
    with pytest.raises(DataError) as caught:
        read(path, **options)  # type: ignore[arg-type]
    return caught.value


def spans(*items: object, **more: object) -> dict[str, object]:
    return {"text": "Ada met Bob", "spans": list(items), **more}


ROWS = [
    ({"text": "a", "labels": ["x", "y", "x"]}, "text + labels", Record(1, text="a", labels=("x", "y"))),
    ({"text": "a", "label": ["x"]}, "text + labels (label = label)", Record(1, text="a", labels=("x",))),
    (
        {"text": "a", "category": [1, True]},
        "text + labels (label = category)",
        Record(1, text="a", labels=("1", "true")),
    ),
    ({"text": "a", "labels": []}, "text + labels", Record(1, text="a", labels=())),
    ({"text": "a", "labels": "x"}, "text + label (label = labels)", Record(1, text="a", label="x")),
    (
        {"tokens": ["Ada", "met", "Bob"], "tags": ["B-PER", "O", "B-PER"], "pos_tags": [1, 2, 1]},
        "tokens + tags (IOB2)",
        ENTITIES,
    ),
    (
        {"id": 1, "words": ["Ada", "met", "Bob"], "ner_tags": ["S-PER", "O", "S-PER"]},
        "tokens + tags (tokens = words, tags = ner_tags, IOBES)",
        ENTITIES,
    ),
    (
        {"tokens": ["Ada", "met", "Bob"], "labels": ["I-PER", "O", "I-PER"], "text": "Ada met  Bob"},
        "tokens + tags (tags = labels, IOB1)",
        ENTITIES,
    ),
    (
        spans({"start": 8, "end": 11, "label": "PER"}, {"start": 0, "end": 3, "type": "PER", "id": 3}, id=1),
        "text + spans",
        ENTITIES,
    ),
    (spans([8, 11, "PER"], [0, 3, "PER"]), "text + spans", ENTITIES),
    (spans(), "text + spans", Record(1, text="Ada met Bob", spans=())),
    (
        {"text": "Ada met Bob", "label": [[0, 3, "PER"], [8, 11, "PER"]]},
        "text + spans (spans = label)",
        ENTITIES,
    ),
    (
        {
            "text": "Ada met Bob",
            "entities": [
                {"id": 0, "start_offset": 0, "end_offset": 3, "label": "PER"},
                {"id": 1, "start_offset": 8, "end_offset": 11, "label": "PER"},
            ],
            "relations": [],
        },
        "text + spans (spans = entities)",
        ENTITIES,
    ),
    (
        {
            "userInput": {"text": "Ada met Bob"},
            "labels": [
                {"slot": "PER", "valueSpan": {"startIndex": 8, "endIndex": 11}},
                {"slot": "PER", "valueSpan": {"endIndex": 3}},
            ],
        },
        "turn + slots",
        ENTITIES,
    ),
    (QUESTION, "question + answers (passage = context)", ANSWERED),
    ({**QUESTION, "answers": ["Paris", "Paris"]}, "question + answers (passage = context)", ANSWERED),
    ({**QUESTION, "answers": "Paris"}, "question + answers (passage = context)", ANSWERED),
    (
        {**QUESTION, "answers": [{"text": "Paris", "answer_start": 3}]},
        "question + answers (passage = context)",
        ANSWERED,
    ),
    (
        {"question": "Where?", "passage": "In Paris.", "answer": "Paris", "title": "t", "label": "x"},
        "question + answers (answers = answer)",
        ANSWERED,
    ),
    (
        {"question": "So?", "contexts": ["One.", "Two."], "answer": True},
        "question + answers (passage = contexts, answers = answer)",
        Record(1, text="So?", passage="One.\nTwo.", answers=("true",)),
    ),
    (
        {"question": "Where?", "answers": ["Paris", "here"]},
        "question + answers",
        Record(1, text="Where?", answers=("Paris", "here")),
    ),
    (
        {"question": "Where?", "answer": ["Paris"]},
        "question + answers (answers = answer)",
        Record(1, text="Where?", answers=("Paris",)),
    ),
    (
        {**QUESTION, "answers": {"text": [], "answer_start": []}, "is_impossible": True},
        "question + answers (passage = context)",
        Record(1, text="Where?", passage="In Paris.", answers=("",)),
    ),
    ({"question": "Biggest?", "options": OPTIONS, "answer": 2}, "question + options + answer", CHOICE),
    ({"question": "Biggest?", "options": OPTIONS, "answer": "C"}, "question + options + answer", CHOICE),
    ({"question": "Biggest?", "options": OPTIONS, "answer": "(c)"}, "question + options + answer", CHOICE),
    ({"question": "Biggest?", "options": OPTIONS, "answer": "cow"}, "question + options + answer", CHOICE),
    (
        {"question": "Biggest?", "choices": {"text": OPTIONS, "label": ["1", "2", "3"]}, "answerKey": "3"},
        "question + options + answer (options = choices, answer = answerKey)",
        CHOICE,
    ),
    (
        {
            "question": "Biggest?",
            "choices": [{"text": t, "label": x} for t, x in zip(OPTIONS, "ABC", strict=True)],
            "label": 2,
        },
        "question + options + answer (options = choices, answer = label)",
        CHOICE,
    ),
    (
        {"question": "Biggest?", "A": "ant", "B": "bee", "C": "cow", "D": "", "answer": "c"},
        "question + A, B, … + answer",
        CHOICE,
    ),
    (
        {"question": "Which?", "options": ["4", "3", "1"], "answer": "1", "article": "Numbers."},
        "question + options + answer",
        Record(1, text="Which?", passage="Numbers.", options=("4", "3", "1"), answers=("1",)),
    ),
    (
        {"question": "Which?", "options": [3, 2, 1], "answer": 1},
        "question + options + answer",
        Record(1, text="Which?", options=("3", "2", "1"), answers=("1",)),
    ),
    (
        {"premise": "I fell.", "question": "cause", "choice1": "I slept.", "choice2": "I slipped.", "label": 1},
        "premise + choices + label",
        Record(
            1,
            text="I fell.\nWhat was the cause of this?",
            options=("I slept.", "I slipped."),
            answers=("I slipped.",),
        ),
    ),
    (
        {"premise": "I fell.", "question": "effect", "choice1": "It hurt.", "choice2": "I slept.", "label": "0"},
        "premise + choices + label",
        Record(1, text="I fell.\nWhat happened as a result?", options=("It hurt.", "I slept."), answers=("It hurt.",)),
    ),
]


@pytest.mark.parametrize(("row", "format", "record"), ROWS, ids=[f"{n} {r[1]}" for n, r in enumerate(ROWS)])
def test_every_form_is_read(tmp_path: Path, row: object, format: str, record: Record) -> None:
    dataset = read(write(tmp_path, jsonl(row)))
    assert dataset.records == (record,)
    assert dataset.format == f"JSON lines, {format}"
    assert read(write(tmp_path, json.dumps([row]), "a.json")).records == (record,)


def test_tables_hold_questions_too(tmp_path: Path) -> None:
    table = "question,A,B,C,D,answer\nBiggest?,ant,bee,cow,,C\nLeast?,1,2,3,4,A\n"
    dataset = read(write(tmp_path, table, "a.csv"))
    assert dataset.format == "CSV, question + A, B, … + answer"
    assert [r.answers for r in dataset.records] == [("cow",), ("1",)]
    assert dataset.ignored == ()
    dataset = read(write(tmp_path, "question\tcontext\tanswer\nWhere?\tIn Paris.\tParis\n", "a.tsv"))
    assert dataset.records == (Record(2, text="Where?", passage="In Paris.", answers=("Paris",)),)
    # A list in a table's cell is not guessed.
    assert read(write(tmp_path, 'text,labels\na,"[""x"", ""y""]"\n', "b.csv")).records[0].label == '["x", "y"]'


def test_one_list_of_labels_makes_the_file_one_of_several_labels(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": []}, {"text": "c", "label": ["x", "y"]}]
    assert [r.labels for r in read(write(tmp_path, jsonl(*rows))).records] == [("x",), (), ("x", "y")]
    assert [r.labels for r in read(write(tmp_path, jsonl(*rows[:2]))).records] == [("x",), ()]
    assert error(write(tmp_path, jsonl(*rows, {"text": "d"}))).line == 4


def test_an_empty_list_is_one_of_spans_where_the_others_are(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": []}, {"text": "b", "label": []}, {"text": "c", "label": [[0, 1, "X"]]}]
    assert [r.spans for r in read(write(tmp_path, jsonl(*rows))).records] == [(), (), (Span(0, 1, "X"),)]
    assert error(write(tmp_path, jsonl(*rows, rows[2], {"text": "d", "label": "x"}))).line == 5


def test_pairs_of_a_text_and_its_annotations(tmp_path: Path) -> None:
    pair = ["Ada met Bob", {"entities": [[0, 3, "PER"], [8, 11, "PER"]]}]
    assert read(write(tmp_path, jsonl(pair, pair))).records[0] == ENTITIES
    assert read(write(tmp_path, jsonl(pair, pair), "lines.json")).records[0] == ENTITIES
    assert read(write(tmp_path, jsonl(pair))).records == (ENTITIES,)
    assert read(write(tmp_path, json.dumps([pair, pair]), "a.json")).records[0] == ENTITIES


def test_squad_files(tmp_path: Path) -> None:
    questions = [
        {"id": "1", "question": "Where?", "answers": [{"text": "Paris", "answer_start": 3}], "is_impossible": False},
        {"id": "2", "question": "When?", "answers": [], "plausible_answers": [{"text": "x"}], "is_impossible": True},
    ]
    paragraphs = [{"context": "In Paris.", "qas": questions}, {"context": "Nothing.", "qas": [questions[1]]}]
    file = {"version": "v2.0", "data": [{"title": "Paris", "paragraphs": paragraphs}]}
    dataset = read(write(tmp_path, json.dumps(file, indent=1), "a.json"))
    assert dataset.format == "SQuAD, question + answers (passage = context)"
    assert dataset.records == (
        ANSWERED,
        Record(2, text="When?", passage="In Paris.", answers=("",)),
        Record(3, text="When?", passage="Nothing.", answers=("",)),
    )
    assert {r.kind for r in dataset.records} == {"question"}
    questions.insert(0, {"id": "0", "question": "Who?", "answers": [], "is_impossible": False})
    problem = error(write(tmp_path, json.dumps(file), "b.json"))
    assert "question 1: 'is_impossible' is false, but there is no answer" in str(problem)
    questions[0] = "Who?"  # type: ignore[call-overload]
    paragraphs.append({"context": "c"})
    skipping = read(write(tmp_path, json.dumps(file), "c.json"), skip_bad=True)
    assert [str(e).partition("c.json:")[2] for e in skipping.skipped] == [
        "1: question 1: a question of article 1 is 'Who?'; it must be an object",
        "5: question 5: paragraph 3 of article 1 has no list 'qas' of questions; add it",
    ]
    assert [r.line for r in skipping.records] == [2, 3, 4]


CONLL = """-DOCSTART- -X- O

# the first sentence
Ada NNP I-PER
met VBD O
Bob NNP I-PER

# O O
Paris NNP I-LOC
"""


def test_conll_files(tmp_path: Path) -> None:
    expected = (Record(4, text=ENTITIES.text, spans=ENTITIES.spans),)
    for name in ("a.conll", "a.bio", "a.iob", "a.iob2", "a.bioes", "a.txt", "a"):
        dataset = read(write(tmp_path, CONLL, name))
        assert dataset.format == "CoNLL, tokens + tags (IOB1)"
        assert dataset.records[:1] == expected
        # '# O O' has the columns of a token and a tag in the last: it is the token '#'.
        assert dataset.records[1] == Record(8, text="# Paris", spans=(Span(2, 7, "LOC"),))
    assert locate(write(tmp_path, CONLL, "train.conll").parent).train.name == "train.conll"


def test_conll_with_tabs_and_with_numbered_tokens(tmp_path: Path) -> None:
    tabs = "Ada Lovelace\tB-PER\nmet\tO\n\n\nBob\tB-PER\n"
    assert read(write(tmp_path, tabs, "a.tsv")).records == (
        Record(1, text="Ada Lovelace met", spans=(Span(0, 12, "PER"),)),
        Record(5, text="Bob", spans=(Span(0, 3, "PER"),)),
    )
    numbered = "# id a1\n1\tAda\tB-PER\n2\tmet\tO\n\n1\tBob\tB-PER\n"
    assert [r.text for r in read(write(tmp_path, numbered, "a.conll")).records] == ["Ada met", "Bob"]
    marked = "-DOCSTART-\tO\n\nnothing\tO\n"
    assert read(write(tmp_path, marked, "c.tsv")).records == (Record(3, text="nothing", spans=()),)
    bare = "gene\tO\nBRCA1\tB\n"
    assert read(write(tmp_path, bare, "b.tsv")).records[0].spans == (Span(5, 10, "entity"),)


def test_other_text_is_not_taken_for_conll(tmp_path: Path) -> None:
    assert read(write(tmp_path, "Plan B-team\nis O\n\nNothing O-like here.", "a.txt")).format == "plain text"
    assert read(write(tmp_path, "text\tlabel\nmine\tO\nyours\tB-negative\n", "a.tsv")).format == "TSV, text + label"


BAD_CONLL = [
    ("Ada B-PER\nmet\nBob O\n", 2, "the line 'met' has only one column"),
    ("Ada B-PER\nmet O x\nBob O\n", 2, "the line has 3 columns, but most have 2"),
    ("Ada B-PER\nmet O\nBob I-PER\n\nEve B-PER", 3, "'I-PER' of token 3 is invalid in IOB2"),
    ("Ada B-PER\n# so\nmet X\n", 3, "'X' of token 2 is invalid in IOB2: a tag is O, or one of B, I with a type"),
    ("Ada\tB-PER\n\tO\n", 2, "there is no token before the tag 'O'"),
    ("Ada\nBob\n", 1, "only one column"),
    ("# nothing\n", None, "only comments"),
]


@pytest.mark.parametrize(("content", "line", "part"), BAD_CONLL, ids=[b[2][:30] for b in BAD_CONLL])
def test_damage_in_conll_has_its_line(tmp_path: Path, content: str, line: int | None, part: str) -> None:
    problem = error(write(tmp_path, content, "a.conll"))
    assert (problem.line, part in str(problem)) == (line, True)


def test_bad_sentences_can_be_left_out(tmp_path: Path) -> None:
    path = write(tmp_path, f"{PARIS}\nLyon B-LOC\n\nRome\tI-LOC\n\n{PARIS}", "a.conll")
    dataset = read(path, skip_bad=True)
    assert [r.line for r in dataset.records] == [1, 7]
    assert [e.line for e in dataset.skipped] == [3, 5]


BAD_ROWS = [
    ({"text": "a", "labels": ["x", None]}, "the label (column 'labels') is null"),
    ({"text": "a", "labels": ["x", ["y"]]}, "the label (column 'labels') is a list of 1"),
    ({"tokens": ["a", "b"], "tags": ["O"]}, "there are 2 tokens (column 'tokens'), but 1 tags"),
    ({"tokens": ["a", ""], "tags": ["O", "O"]}, "token 2 of column 'tokens' is empty"),
    ({"tokens": [], "tags": []}, "holds no text"),
    ({"tokens": ["a"], "ner_tags": [3]}, "column 'ner_tags' holds numbers; write the tags themselves"),
    ({"tokens": ["a", 1], "tags": ["O", "O"]}, "entry 2 of column 'tokens' is the value 1"),
    ({"tokens": ["a", "b"], "tags": ["O", "b"]}, "the tag 'b' of token 2 is invalid"),
    (spans([0, 12, "X"]), "the span [0, 12) 'X' is outside of the text, which has 11 characters (the text there: 'Ada"),
    (spans([-1, 2, "X"]), "the span [-1, 2) 'X' is outside"),
    (spans([4, 4, "X"]), "the span [4, 4) 'X' is empty (the text there: 'Ada met Bob')"),
    (spans([4, 11, "X"], [0, 5, "Y"]), "[0, 5) 'Y', 'Ada m', and [4, 11) 'X', 'met Bob', overlap"),
    (spans([0, 1]), "span 1 is a list of 2; it must be [start, end, label]"),
    (spans([0.5, 1, "X"]), "the start of span 1 is the value 0.5"),
    (spans([0, True, "X"]), "the end of span 1 is the value true"),
    (spans([0, 1, ""]), "the label of span 1 is ''"),
    (spans({"start": 0, "stop": 1, "label": "X"}), "span 1 has no 'end' or 'end_offset' (it has 'start', 'stop'"),
    (spans("X"), "span 1 is 'X'"),
    ({"userInput": {"text": "a"}, "labels": [{"slot": "x", "valueSpan": {}}]}, "the span [0, 0) 'x' is empty"),
    (
        {"userInput": {"text": "a"}, "labels": [{"slot": "x"}]},
        "slot 1 is an object; it must be an object with slot and",
    ),
    ({**QUESTION, "context": " "}, "column 'context' is empty"),
    ({**QUESTION, "answers": ["a", ""]}, "answer 2 of column 'answers' is ''"),
    ({**QUESTION, "answers": None}, "the answer (column 'answers') is null; it must be a text or a list of texts"),
    ({**QUESTION, "answers": {"texts": []}}, "an object without a list 'text' of answers (it has 'texts')"),
    ({**QUESTION, "is_impossible": True}, "'is_impossible' is true, but its first answer is 'Paris'"),
    ({"question": "a", "contexts": ["b", 3], "answers": ["c"]}, "part 2 of column 'contexts' is the value 3"),
    ({"question": "a", "options": OPTIONS, "answer": 3}, "is the value 3, which is none of the 3 options 'ant', 'bee'"),
    ({"question": "a", "options": OPTIONS, "answer": "D"}, "is 'D', which is none of the 3 options"),
    ({"question": "a", "options": OPTIONS, "answer": True}, "is the value true, which is none"),
    ({"question": "a", "options": OPTIONS, "answer": -1}, "is the value -1, which is none"),
    ({"question": "a", "options": ["x"], "answer": 0}, "there are 1 options; a choice needs at least 2"),
    ({"question": "a", "options": ["x", " "], "answer": 0}, "option 2 of column 'options' is ' '"),
    ({"question": "a", "options": ["x", "x"], "answer": 0}, "the right option 'x' stands there twice"),
    ({"question": "a", "choices": {"text": ["x", "y"], "label": ["A"]}, "answerKey": "A"}, "do not fit its 2 options"),
    ({"question": "a", "A": "x", "B": "", "C": "y", "answer": "A"}, "option 2 is empty, but a later one is not"),
]


@pytest.mark.parametrize(("row", "part"), BAD_ROWS, ids=[f"{n} {b[1][:40]}" for n, b in enumerate(BAD_ROWS)])
def test_bad_rows_are_explained(tmp_path: Path, row: object, part: str) -> None:
    problem = error(write(tmp_path, jsonl(row)))
    assert problem.line == 1
    assert part in str(problem)


def test_rows_that_could_be_several_kinds_ask_for_a_column(tmp_path: Path) -> None:
    row = spans([0, 3, "PER"], label="news")
    path = write(tmp_path, jsonl(row))
    message = str(error(path))
    assert "could be read in several ways" in message
    assert "text + spans: --column spans=spans; text + label: --column label=label" in message
    assert read(path, columns={"spans": "spans"}).kind == "text with entities"
    assert read(path, columns={"label": "label"}).records == (Record(1, text="Ada met Bob", label="news"),)
    both = {"tokens": ["Ada"], "tags": ["B-PER"], "text": "Ada", "label": "x"}
    assert "tokens + tags: --column tags=tags; text + label: --column label=label" in str(
        error(write(tmp_path, jsonl(both)))
    )
    full = {**QUESTION, "text": "a", "label": "x"}
    assert "--column answers=answers; text + label: --column label=label" in str(error(write(tmp_path, jsonl(full))))


def test_columns_named_by_hand(tmp_path: Path) -> None:
    row = {
        "q": "Where?",
        "doc": "In Paris.",
        "gold": "Paris",
        "alternatives": ["Rome", "Paris"],
        "w": ["Ada"],
        "t": ["B-X"],
    }
    path = write(tmp_path, jsonl(row))
    asked = {"question": "q", "passage": "doc"}
    assert read(path, columns={**asked, "answers": "gold"}).records == (ANSWERED,)
    assert read(path, columns={**asked, "answer": "gold"}).records == (ANSWERED,)
    chosen = read(path, columns={**asked, "options": "alternatives", "answer": "gold"}).records[0]
    assert (chosen.options, chosen.answers, chosen.passage) == (("Rome", "Paris"), ("Paris",), "In Paris.")
    assert read(path, columns={"tokens": "w", "tags": "t"}).records[0].spans == (Span(0, 3, "X"),)
    marked = write(tmp_path, jsonl({"body": "Ada", "marks": [[0, 3, "X"]]}), "b.jsonl")
    assert read(marked, columns={"text": "body", "spans": "marks"}).records[0].spans == (Span(0, 3, "X"),)
    for wrong in ({"tokens": "w", "question": "q"}, {"options": "alternatives", "answers": "gold"}):
        with pytest.raises(UsageError, match="do not go together; these do: text, label; or text, spans; or tokens"):
            read(path, columns=wrong)
    assert "no columns with names" in str(error(write(tmp_path, CONLL, "a.conll"), columns={"tags": "x"}))


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    row = {"question": "Where?", "contexts": ["In Paris."], "final_decision": "yes"}
    message = str(error(write(tmp_path, jsonl(row))))
    assert "Found are the question ('question'), the passage ('contexts'), but not the answers" in message
    assert "--column answers=NAME" in message
    several = {"question": "Where?", "context": "In Paris.", "article": "In Rome.", "answer": "Paris"}
    assert "'context', 'article' could all be the passage" in str(error(write(tmp_path, jsonl(several))))
    assert "but not the tags: name it" in str(error(write(tmp_path, jsonl({"tokens": ["a"]}))))


def test_the_check_counts_what_each_kind_has(tmp_path: Path) -> None:
    several = [{"text": f"t {n}", "labels": ["x", "y"][: n % 3]} for n in range(30)]
    path = write(tmp_path, jsonl(*several), "several.jsonl")
    report = check(read(path))
    assert report.labels == {"x": 20, "y": 10}
    assert report.findings == ()
    tagged = [{"text": f"{n} Ada", "spans": [[0, 1, "N"], [2, 5, "PER"]] if n % 2 else []} for n in range(10)] * 2
    tagged[0] = {"text": "1 Ada", "spans": []}
    report = check(read(write(tmp_path, jsonl(*tagged))))
    assert report.labels == {"N": 10, "PER": 10}
    assert any("1 text with entities in different places, e.g. lines" in f.text for f in report.findings)
    nothing = check(read(write(tmp_path, jsonl(*[{"text": f"t {n}", "spans": []} for n in range(30)]))))
    assert nothing.pointless
    assert "No record has an entity" in nothing.findings[0].text
    same = check(read(write(tmp_path, jsonl(*[{"text": f"t {n}", "labels": ["x"]} for n in range(30)]))))
    assert same.pointless
    asked = [{"question": f"q {n // 2}", "context": "c", "answers": [str(n)]} for n in range(30)]
    report = check(read(write(tmp_path, jsonl(*asked))))
    assert report.labels == {}
    assert any("15 texts with different answers" in f.text for f in report.findings)
    with pytest.raises(DataError, match=r"unknown to the training: 'y' \(10 records, first in line 3\)"):
        check_labels({"x"}, read(path).records)


REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def real(name: str) -> Path:
    if not (REAL / name).exists():
        pytest.skip("the real data is not here")
    return REAL / name


# The numbers of entities that the sets' authors publish (wikigold: its runs of I tags).
ENTITIES_IN = [
    ("wnut17/train.jsonl", 1975),
    ("wnut17/dev.jsonl", 836),
    ("wnut17/test.jsonl", 1079),
    ("ncbi_disease/dev.jsonl", 787),
    ("ncbi_disease/test.jsonl", 960),
    ("wikigold/all.jsonl", 3558),
]


@pytest.mark.parametrize(("name", "count"), ENTITIES_IN, ids=[e[0] for e in ENTITIES_IN])
def test_real_entities_are_all_found(name: str, count: int) -> None:
    records = read(real(name)).records
    assert sum(len(r.spans or ()) for r in records) == count


def test_a_real_entity_is_what_it_says() -> None:
    first = read(real("wikigold/all.jsonl")).records[0]
    assert [(first.text or "")[s.start : s.end] for s in first.spans or ()] == [
        "010",
        "Japanese",
        "The Mad Capsule Markets",
    ]


def test_real_slots_but_for_those_that_overlap() -> None:
    dataset = read(real("restaurant8k/train.jsonl"), skip_bad=True)
    assert (len(dataset.records), len(dataset.skipped)) == (2976, 24)
    assert all("overlap" in str(e) for e in dataset.skipped)
    types = Counter(s.type for r in dataset.records for s in r.spans or ())
    assert set(types) == {"date", "time", "people", "first_name", "last_name"}


def test_real_questions_with_passages() -> None:
    dataset = read(real("pubmedqa/test.jsonl"), columns={"answer": "final_decision"})
    assert dataset.kind == "question"
    assert Counter(r.answers[0] for r in dataset.records) == {"yes": 276, "no": 169, "maybe": 55}
    assert all(r.passage for r in dataset.records)


def test_real_choices() -> None:
    dataset = read(real("copa/train.jsonl"))
    assert (len(dataset.records), dataset.kind) == (400, "question with options")
    assert dataset.records[0].text == "My body cast a shadow over the grass.\nWhat was the cause of this?"
    assert dataset.records[0].answers == ("The sun was rising.",)


def test_every_example_of_the_documentation_is_read(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/data.md").read_text("utf-8")
    examples = re.findall(r"^\|.*\| `([\[{].*[\]}])` \|", page, re.MULTILINE)
    kinds = Counter(read(write(tmp_path, example)).kind for example in examples)
    assert kinds["conversation"] == 4
    assert min(kinds[k] for k in ("text with entities", "question with options")) >= 4
    assert {"labelled text", "plain text", "text with several labels", "question"} < set(kinds)
    block = re.search(r"```text\n(-DOCSTART-.*?)```", page, re.DOTALL)
    assert block and read(write(tmp_path, block[1], "a.conll")).records[0].spans == (Span(0, 12, "PER"),)
