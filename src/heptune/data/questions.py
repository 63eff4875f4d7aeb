"""Rows with a question as records: with answers, perhaps out of a passage, or with options to choose from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from string import ascii_lowercase
from typing import Any

from heptune.core.errors import DataError
from heptune.data.record import Record
from heptune.data.values import Row, label, listed, optional_string, shown, string

LETTER = re.compile(r"\(?([A-Za-z])[).:]?")
# What is asked in COPA, in the words of its authors (Roemmele et al. 2011).
ASKED = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}


def answered(row: Row, question: str, answers: str, passage: str | None, impossible: str | None, line: int) -> Record:
    """A question and the answers that are accepted; ('',) where it has none."""
    accepted = _answers(row[answers], answers)
    marked = row.get(impossible) if impossible else None
    if not isinstance(marked, bool | None):
        raise DataError(f"column {impossible!r} is {shown(marked)}; it must be true or false")
    if marked is not None and marked != (accepted == ("",)):
        found = f"but its first answer is {shown(accepted[0])}" if marked else "but there is no answer"
        raise DataError(f"{impossible!r} is {str(marked).lower()}, {found}; correct one of them")
    text = _passage(row, passage) if passage else ""
    if passage and not text.strip():
        raise DataError(f"column {passage!r} is empty; fill it or take the row out")
    return Record(line, text=string(row, question), passage=text, answers=accepted)


def choice(row: Row, question: str, options: str, answer: str, passage: str | None, line: int) -> Record:
    """A question with its options in one column: a list, or texts and labels as in ARC."""
    texts, letters, raw = _options(row[options], options)
    return _chosen(string(row, question), texts, raw, row[answer], answer, letters, _passage(row, passage), line)


def lettered(row: Row, question: str, answer: str, passage: str | None, line: int) -> Record:
    """A question with each option in a column of its own: A, B, …; the last ones may be empty."""
    texts = [optional_string(row, name) for name in letter_columns(row)]
    while texts and not texts[-1].strip():
        texts.pop()
    return _chosen(string(row, question), texts, texts, row[answer], answer, (), _passage(row, passage), line)


def caused(row: Row, premise: str, question: str | None, answer: str, line: int) -> Record:
    """A premise, and of several choices its cause or its effect, as in COPA."""
    asked = optional_string(row, question).strip()
    text = "\n".join(part for part in (string(row, premise), ASKED.get(asked.lower(), asked)) if part)
    texts = [string(row, name) for name in numbered_columns(row)]
    return _chosen(text, texts, texts, row[answer], answer, (), "", line)


def letter_columns(names: Iterable[str]) -> list[str]:
    """The columns A, B, … as far as they go without a gap."""
    return _as_far_as(names, list(ascii_lowercase))


def numbered_columns(names: Iterable[str]) -> list[str]:
    """The columns choice1, choice2, … as far as they go without a gap."""
    return _as_far_as(names, [f"choice{number}" for number in range(1, 27)])


def _as_far_as(names: Iterable[str], wanted: Sequence[str]) -> list[str]:
    by_name = {name.strip().lower(): name for name in names}
    found = []
    for name in wanted:
        if name not in by_name:
            break
        found.append(by_name[name])
    return found


def questions_of(articles: Sequence[Any]) -> Iterator[tuple[int, Row | DataError]]:
    """The questions of SQuAD's articles as rows, counted from 1; in its place an error for what is none."""
    number = 0
    for a, article in enumerate(articles, 1):
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list):
            number += 1
            yield number, DataError(f"article {a} is {shown(article)} without a list of 'paragraphs'; add it")
            continue
        for p, paragraph in enumerate(paragraphs, 1):
            questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
            if not isinstance(questions, list):
                number += 1
                yield number, DataError(f"paragraph {p} of article {a} has no list 'qas' of questions; add it")
                continue
            for question in questions:
                number += 1
                if isinstance(question, dict):
                    context = {"context": paragraph["context"]} if "context" in paragraph else {}
                    yield number, {**question, **context}
                else:
                    yield number, DataError(f"a question of article {a} is {shown(question)}; it must be an object")


def is_article(value: Any) -> bool:
    """Whether this is an article of SQuAD's own files: an object with paragraphs, and these with questions."""
    paragraphs = value.get("paragraphs") if isinstance(value, dict) else None
    return isinstance(paragraphs, list) and any(isinstance(p, dict) and "qas" in p for p in paragraphs)


def _passage(row: Row, name: str | None) -> str:
    value = row.get(name) if name else None
    if isinstance(value, list):
        for number, part in enumerate(value, 1):
            if not isinstance(part, str):
                raise DataError(f"part {number} of column {name!r} is {shown(part)}; it must be a string")
        return "\n".join(value)
    return optional_string(row, name)


def _answers(value: Any, name: str) -> tuple[str, ...]:
    """Accepted answers without repetitions: one value, a list of them, or SQuAD's objects with a text."""
    if isinstance(value, dict):
        if not isinstance(value.get("text"), list):
            raise DataError(f"column {name!r} is an object without a list 'text' of answers (it has {listed(value)})")
        value = value["text"]
    if not isinstance(value, list):
        return (label({name: value}, name),) if _is_value(value) else _no_answer(value, name)
    texts = [item.get("text") if isinstance(item, dict) else item for item in value]
    if all(text == "" for text in texts):
        return ("",)
    for number, text in enumerate(texts, 1):
        if not _is_value(text):
            raise DataError(f"answer {number} of column {name!r} is {shown(text)}; it must be a text")
    return tuple(dict.fromkeys(label({name: text}, name) for text in texts))


def _is_value(value: Any) -> bool:
    return isinstance(value, bool | int | float) or (isinstance(value, str) and bool(value.strip()))


def _no_answer(value: Any, name: str) -> tuple[str, ...]:
    raise DataError(
        f"the answer (column {name!r}) is {shown(value)}; it must be a text or a list of texts "
        "(an empty list for a question that has no answer)"
    )


def _options(value: Any, name: str) -> tuple[list[str], list[str], list[Any]]:
    """The texts of the options, the labels they are called by (perhaps none), and the texts as they were given."""
    labels: Any = []
    if isinstance(value, dict):
        value, labels = value.get("text"), value.get("label")
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        value, labels = [item.get("text") for item in value], [item.get("label") for item in value]
    if not isinstance(value, list) or not isinstance(labels, list):
        raise DataError(f"column {name!r} is {shown(value)}; it must be a list of options, or their text and label")
    if labels and not (len(labels) == len(value) and all(isinstance(text, str) for text in labels)):
        raise DataError(f"the labels of column {name!r} do not fit its {len(value)} options; each needs one string")
    for number, text in enumerate(value, 1):
        if not _is_value(text):
            raise DataError(f"option {number} of column {name!r} is {shown(text)}; it must be a text")
    return [label({name: text}, name) for text in value], labels, value


def _chosen(
    text: str,
    options: Sequence[str],
    raw: Sequence[Any],
    answer: Any,
    name: str,
    labels: Sequence[str],
    passage: str,
    line: int,
) -> Record:
    if len(options) < 2:
        raise DataError(f"there are {len(options)} options; a choice needs at least 2")
    blank = next((number for number, option in enumerate(options, 1) if not option.strip()), None)
    if blank:
        raise DataError(f"option {blank} is empty, but a later one is not; fill it")
    right = options[_index(answer, options, raw, labels, name)]
    if options.count(right) > 1:
        raise DataError(f"the right option {shown(right)} stands there twice; take one of them out")
    return Record(line, text=text, passage=passage, options=tuple(options), answers=(right,))


def _index(answer: Any, options: Sequence[str], raw: Sequence[Any], labels: Sequence[str], name: str) -> int:
    """Which option is right: by its text, its label, its letter, or its index from 0, in this order."""
    same = [n for n, option in enumerate(raw) if option == answer and type(option) is type(answer)]
    if same:
        return same[0]
    known = list(labels) or [letter.upper() for letter in ascii_lowercase[: len(options)]]
    if isinstance(answer, str):
        written = answer.strip()
        if written in known:
            return known.index(written)
        letter = LETTER.fullmatch(written)
        if letter and letter[1].upper() in known:
            return known.index(letter[1].upper())
        if written.isdecimal() and written.isascii() and len(written) < 4:
            answer = int(written)
    if type(answer) is int and str(answer) in known:
        return known.index(str(answer))
    # Labels that are numbers themselves leave no meaning for an index.
    if type(answer) is int and 0 <= answer < len(options) and not any(text.strip().isdecimal() for text in known):
        return answer
    raise DataError(
        f"the answer (column {name!r}) is {shown(answer)}, which is none of the {len(options)} options "
        f"{listed(options, 4)}; give the option's text, its label ({', '.join(map(str, known[:6]))}), "
        "or its index counted from 0"
    )
