"""The shapes a row can have, and how each becomes a record.

A row is a mapping from column names to values, whatever file it came from. `candidates` names the shapes that one row
may have by its columns, `agree` finds the one shape of a whole file, `convert` makes the record. Column names are
compared without case. A `DataError` from here has no place yet: the reader knows file and line and adds them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from heptune.core.errors import DataError, UsageError
from heptune.core.registry import nearest, unknown
from heptune.data import entities, questions
from heptune.data.calls import call_in, calls_of, tools_of
from heptune.data.record import ROLES, Message, Record
from heptune.data.tags import Scheme, is_tag, scheme_of
from heptune.data.values import Row, label, listed, optional_string, shown, string

# The first name is the canonical one and wins; of the others a row may have only one.
ALIASES: dict[str, tuple[str, ...]] = {
    "text": ("text", "sentence", "review", "content", "utterance", "title"),
    "label": ("label", "labels", "category", "class", "intent", "sentiment", "target"),
    "spans": ("spans", "entities"),
    "tokens": ("tokens", "words"),
    "tags": ("tags", "ner_tags", "labels"),
    "question": ("question",),
    "passage": ("passage", "context", "contexts", "article"),
    "answers": ("answers", "answer"),
    "options": ("options", "choices"),
    "answer": ("answer", "answerkey", "label"),
    "prompt": ("prompt", "question", "query", "input"),
    "completion": ("completion", "answer", "response", "output"),
    "messages": ("messages", "conversations", "turns", "conversation", "dialog", "dialogue"),
    "instruction": ("instruction",),
    "input": ("input", "context"),
    "output": ("output", "response", "answer", "completion"),
    "history": ("history",),
    "system": ("system", "system_prompt"),
    "tools": ("tools",),
}
# The roles that can be named by hand, as they go together.
FAMILIES = (
    ("text", "label"),
    ("text", "spans"),
    ("tokens", "tags"),
    ("question", "passage", "answers"),
    ("question", "passage", "options", "answer"),
    ("prompt", "completion", "system"),
    ("messages", "system"),
)
NAMED_BY_HAND = tuple(dict.fromkeys(role for family in FAMILIES for role in family))
ASKED_BY = ("question", "passage", "answers", "options", "answer")
PAIRS = (("premise", "hypothesis"), ("sentence1", "sentence2"), ("text", "text_pair"))

CHAT, SHAREGPT, ALPACA = "chat messages", "ShareGPT", "Alpaca"
PROMPT, PAIR, LABELLED, PLAIN = "prompt + completion", "text pair + label", "text + label", "text"
SEVERAL, SPANS, TAGGED, SLOTS = "text + labels", "text + spans", "tokens + tags", "turn + slots"
QUESTION, CHOICE = "question + answers", "question + options + answer"
LETTERS, CAUSES = "question + A, B, … + answer", "premise + choices + label"
# An empty list of labels, or of spans; the file's other rows tell.
EMPTY = "text + empty list"
OPTIONAL = {
    CHAT: ("system", "tools"),
    SHAREGPT: ("system", "tools"),
    ALPACA: ("input", "history", "system"),
    PROMPT: ("system", "tools"),
    QUESTION: ("is_impossible",),
    CHOICE: ("passage",),
    LETTERS: ("passage",),
    CAUSES: ("question",),
    SLOTS: ("labels",),
}
# The role to name by hand where a row could have several shapes.
TELLING = {SPANS: "spans", TAGGED: "tags", QUESTION: "answers", CHOICE: "options", PROMPT: "completion"}
TELLING |= {LETTERS: "question", CAUSES: "question"}
REMEMBERED = 1000  # sets of column names whose shapes are remembered

# How the formats in use call the four roles (OpenAI chat, ShareGPT, LLaMA-Factory's observation and function_call).
TURN_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "agent": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
assert set(TURN_ROLES.values()) == set(ROLES)


@dataclass(frozen=True)
class Shape:
    """What a row is: the shape's name and, for each role it must have, the column that holds it.

    The tags of a whole file have a `scheme`; one row alone cannot tell it.
    """

    name: str
    required: tuple[tuple[str, str], ...]
    scheme: Scheme | None = None

    def describe(self) -> str:
        """The name, and the columns where they are not the canonical ones: 'text + label (text = review)'."""
        canonical = {"messages": "conversations"} if self.name == SHAREGPT else {}
        canonical |= {"label": "labels"} if self.name == SEVERAL else {}
        notes = [f"{r} = {c}" for r, c in self.required if c.lower() != canonical.get(r, r)]
        notes += [self.scheme.name] if self.scheme else []
        return self.name + (f" ({', '.join(notes)})" if notes else "")


def check_columns(columns: Mapping[str, str], available: Iterable[str]) -> None:
    """Refuse a mapping from role to column with an unknown role, a missing column or roles that do not go together.

    Raises UsageError for the roles and DataError for the columns; both list the nearest and the known names.
    """
    names = list(available)
    for role, name in columns.items():
        if role not in NAMED_BY_HAND:
            raise unknown("column role", role, NAMED_BY_HAND)
        if name not in names:
            close = nearest(name, names)
            hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
            raise DataError(f"there is no column {name!r} for the {role}; {hint}columns found: {listed(names)}")
    if not any(set(columns) <= set(family) for family in FAMILIES):
        together = "; or ".join(", ".join(family) for family in FAMILIES)
        raise UsageError(f"the columns {', '.join(columns)} do not go together; these do: {together}")


def find(role: str, row: Row, columns: Mapping[str, str]) -> list[str]:
    """The columns of `row` that may hold `role`: at most one unless the names are ambiguous."""
    if role in columns:
        return [columns[role]] if columns[role] in row else []
    by_name = {name.strip().lower(): name for name in row}
    aliases = ALIASES.get(role, (role,))
    if aliases[0] in by_name:
        return [by_name[aliases[0]]]
    return [by_name[alias] for alias in aliases if alias in by_name]


def recognise(row: Row, columns: Mapping[str, str]) -> Shape | None:
    """The shape of one row; None when it has none or several, or when two columns compete for one role."""
    found = candidates(row, columns)
    return found[0] if len(found) == 1 else None


def candidates(row: Row, columns: Mapping[str, str]) -> list[Shape]:
    """Every shape that one row may have. More than one only where no shape says clearly more than the others."""
    if not columns.keys().isdisjoint(("tokens", "tags")):
        return _known(_shape_of(TAGGED, ("tokens", "tags"), row, columns))
    if "spans" in columns:
        return _known(_shape_of(SPANS, ("text", "spans"), row, columns))
    if not columns.keys().isdisjoint(ASKED_BY):
        return _known(_asked(row, columns))
    if "label" in columns:
        return _known(_labelled(row, columns))
    if "text" in columns:
        return _text_shapes(row, columns)
    if "prompt" in columns or "completion" in columns:
        return _known(_shape_of(PROMPT, ("prompt", "completion"), row, columns))
    chat = _chat_shape(row, columns)
    if chat or "messages" in columns:
        return _known(chat)
    if find("instruction", row, columns) and find("output", row, columns):
        return _known(_shape_of(ALPACA, ("instruction", "output"), row, columns))
    tagged, slots = _tagged(row, columns), _slots(row)
    asked = _asked(row, columns) or _prompted(row, columns)
    texts = _pairs(row, columns) or _text_shapes(row, columns)
    if asked or tagged or slots:
        # Beside a question a label is often a mere topic; a text and its label are a rival under their own names only.
        own_name = asked is None or (asked.name != PROMPT and any(t.required[0][1].lower() == "text" for t in texts))
        texts = [t for t in texts if t.name == SPANS or (t.name != PLAIN and own_name)]
        tags = tagged.required[1][1] if tagged else None
        texts = [t for t in texts if t.required[1][1] != tags]
    return [*_known(asked), *_known(tagged), *_known(slots), *texts]


def _known(shape: Shape | None) -> list[Shape]:
    return [] if shape is None else [shape]


def _shape_of(name: str, roles: Sequence[str], row: Row, columns: Mapping[str, str]) -> Shape | None:
    found = [find(role, row, columns) for role in roles]
    if any(len(names) != 1 for names in found):
        return None
    return Shape(name, tuple((role, names[0]) for role, names in zip(roles, found, strict=True)))


def _prompted(row: Row, columns: Mapping[str, str]) -> Shape | None:
    shape = _shape_of(PROMPT, ("prompt", "completion"), row, columns)
    # A question with several passages is not read without them.
    asks = shape is not None and shape.required[0][1].strip().lower() == "question"
    return None if asks and len(find("passage", row, columns)) > 1 else shape


def _pairs(row: Row, columns: Mapping[str, str]) -> list[Shape]:
    by_name = {name.strip().lower(): name for name in row}
    found = find("label", row, columns)
    for first, second in PAIRS:
        if first in by_name and second in by_name and len(found) == 1:
            return [Shape(PAIR, (("text", by_name[first]), ("text_pair", by_name[second]), ("label", found[0])))]
    return []


def _text_shapes(row: Row, columns: Mapping[str, str]) -> list[Shape]:
    """What a text is with what stands beside it: spans, one label or several; alone it is plain text."""
    spans = _shape_of(SPANS, ("text", "spans"), row, columns)
    if spans and not isinstance(row[spans.required[1][1]], list):
        spans = None
    if find("label", row, columns):
        return [*_known(spans), *_known(_labelled(row, columns))]
    return _known(spans or _shape_of(PLAIN, ("text",), row, columns))


def _labelled(row: Row, columns: Mapping[str, str]) -> Shape | None:
    """A text with what its label column holds: one label, a list of labels, or a list of spans."""
    shape = _shape_of(LABELLED, ("text", "label"), row, columns)
    value = row[shape.required[1][1]] if shape else None
    if shape is None or not isinstance(value, list):
        return shape
    if value and isinstance(value[0], dict | list):
        return Shape(SPANS, (shape.required[0], ("spans", shape.required[1][1])))
    return replace(shape, name=SEVERAL if value else EMPTY)


def _tagged(row: Row, columns: Mapping[str, str]) -> Shape | None:
    """Tokens and tags, where they are lists and some tag looks like one (or is a number that stands for one)."""
    shape = _shape_of(TAGGED, ("tokens", "tags"), row, columns)
    tokens, tags = (row[name] for _, name in shape.required) if shape else (None, None)
    if not (isinstance(tokens, list) and isinstance(tags, list)):
        return None
    return shape if not tags or any(type(t) is int or (isinstance(t, str) and is_tag(t)) for t in tags) else None


def _slots(row: Row) -> Shape | None:
    found = find("userinput", row, {})
    is_turn = bool(found) and isinstance(row[found[0]], dict) and "text" in row[found[0]]
    return Shape(SLOTS, (("userinput", found[0]),)) if is_turn else None


def _asked(row: Row, columns: Mapping[str, str]) -> Shape | None:
    """A question with its answers or with options. Without passage and options it may be a mere prompt."""
    by_hand = not columns.keys().isdisjoint(ASKED_BY)
    lower = {name.strip().lower() for name in row}
    if not by_hand and {"premise", "choice1", "choice2", "label"} <= lower:
        return _shape_of(CAUSES, ("premise", "choice1", "choice2", "label"), row, columns)
    if "answers" not in columns:
        options = find("options", row, columns)
        if "options" in columns or any(isinstance(row[name], list | dict) for name in options):
            return _shape_of(CHOICE, ("question", "options", "answer"), row, columns)
        if len(questions.letter_columns(row)) > 1:
            return _shape_of(LETTERS, ("question", "a", "b", "answer"), row, columns)
    if "answer" in columns:
        columns = {**columns, "answers": columns["answer"]}
    with_passage = ("passage",) if "passage" in columns or find("passage", row, columns) else ()
    shape = _shape_of(QUESTION, ("question", *with_passage, "answers"), row, columns)
    if shape is None or by_hand or with_passage:
        return shape
    name = shape.required[-1][1]
    several = isinstance(row[name], list) and row[name] and all(isinstance(item, str) for item in row[name])
    return shape if several or name.strip().lower() == "answers" else None


def _chat_shape(row: Row, columns: Mapping[str, str]) -> Shape | None:
    found = find("messages", row, columns)
    if "messages" not in columns:
        # 'turns', 'dialog' and the like are also names of counts and plain strings; these two are not.
        found = [n for n in found if isinstance(row[n], list) or n.strip().lower() in ("messages", "conversations")]
    if not found:
        return None
    first = row[found[0]][0] if isinstance(row[found[0]], list) and row[found[0]] else None
    return Shape(SHAREGPT if isinstance(first, dict) and "from" in first else CHAT, (("messages", found[0]),))


def agree(rows: Sequence[Row], columns: Mapping[str, str]) -> Shape:
    """The one shape of a file: that of most of its rows.

    A file with any labelled text is labelled: its rows without a label are bad rows, not the other way round.
    Raises DataError when no row is recognised: the columns found, the shapes known, the way out; and when most rows
    could have several shapes.
    """
    seen = Seen(columns)
    for row in rows:
        seen.add(row)
    shape = seen.agreed()
    return replace(shape, scheme=_scheme(rows, shape)) if shape.name == TAGGED else shape


class Seen:
    """The shapes of a file's rows, counted while they pass."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        self.columns = columns
        self.first: Row | None = None
        self._shapes: Counter[tuple[Shape, ...]] = Counter()
        # Rows without lists and objects differ by their names only.
        self._of_names: dict[tuple[str, ...], tuple[Shape, ...]] = {}

    def add(self, row: Row) -> None:
        """Takes in the next row."""
        self.first = row if self.first is None else self.first
        found = self._found(row)
        if found:
            self._shapes[found] += 1

    def _found(self, row: Row) -> tuple[Shape, ...]:
        if any(isinstance(value, list | dict) for value in row.values()):
            return tuple(candidates(row, self.columns))
        names = tuple(row)
        if names not in self._of_names:
            if len(self._of_names) >= REMEMBERED:
                self._of_names.clear()
            self._of_names[names] = tuple(candidates(row, self.columns))
        return self._of_names[names]

    def agreed(self) -> Shape:
        """The shape that `agree` finds, but for the scheme of tags, which takes all of them. There must be a row."""
        assert self.first is not None
        return _prevailing(self._shapes, self.first, self.columns)


def _prevailing(shapes: Counter[tuple[Shape, ...]], first: Row, columns: Mapping[str, str]) -> Shape:
    if not shapes:
        raise _unrecognised(first, columns)
    best = shapes.most_common(1)[0][0]
    if len(best) > 1:
        raise _ambiguous(best)
    return _most_telling(best[0], {found[0]: count for found, count in shapes.items() if len(found) == 1})


def _most_telling(best: Shape, counts: Mapping[Shape, int]) -> Shape:
    """Of all shapes with the same text column the one that says most: spans, several labels, one label, none.

    Any list of labels makes the whole file one with several labels. Spans must be more frequent than labels, for they
    cannot be read together.
    """
    if best.name not in (PLAIN, LABELLED, SEVERAL, SPANS, EMPTY):
        return best
    family = [s for s in counts if s.name in (LABELLED, SEVERAL, SPANS, EMPTY) and s.required[0] == best.required[0]]
    if not family:
        return best
    column = max(family, key=lambda s: counts[s]).required[1][1]
    found: dict[str, Shape] = {s.name: s for s in family if s.required[1][1] == column}
    labels = sum(counts[found[name]] for name in (LABELLED, SEVERAL) if name in found)
    if SPANS in found and counts[found[SPANS]] > labels:
        return found[SPANS]
    several = found.get(SEVERAL) or found.get(EMPTY)
    return replace(several, name=SEVERAL) if several else found[LABELLED]


def _scheme(rows: Sequence[Row], shape: Shape) -> Scheme:
    name = dict(shape.required)["tags"]
    lists = [row[name] for row in rows if isinstance(row.get(name), list)]
    return scheme_of(tags for tags in lists if all(isinstance(tag, str) for tag in tags))


def _ambiguous(shapes: Sequence[Shape]) -> DataError:
    ways = []
    for shape in shapes:
        role = TELLING.get(shape.name, "label")
        column = dict(shape.required).get(role, "")
        ways.append(f"{shape.describe()}: --column {role}={column}" if column else shape.describe())
    return DataError("the rows could be read in several ways; name a column to choose one. " + "; ".join(ways))


def _unrecognised(row: Row, columns: Mapping[str, str]) -> DataError:
    competing = [
        f"{listed(found)} could all be the {r}" for r in NAMED_BY_HAND if len(found := find(r, row, columns)) > 1
    ]
    return DataError(
        f"the shape of the rows is not recognised; columns found: {listed(row)}"
        + (f" ({'; '.join(competing)})" if competing else "")
        + ". "
        + _missing_one(row, columns)
        + "Known shapes: text + label, prompt + completion (also question + answer, input + output), "
        "Alpaca (instruction, input, output), chat messages (messages), ShareGPT (conversations), text + labels, "
        "text + spans, tokens + tags, question + passage + answers, question + options + answer, text alone. "
        "Name the columns by hand: --column text=NAME --column label=NAME, "
        "or --column prompt=NAME --column completion=NAME, or --column messages=NAME, and so on; "
        "a table needs its column names in the first line"
    )


def _missing_one(row: Row, columns: Mapping[str, str]) -> str:
    """What is missing where the other columns of a question or of tagged tokens are there."""
    for roles in (*FAMILIES[3:5], FAMILIES[2]):
        found = {role: names[0] for role in roles if (names := find(role, row, columns))}
        missing = [role for role in roles if role not in found]
        if len(missing) == 1 and missing[0] not in ("passage", "tokens"):
            there = ", ".join(f"the {role} ({name!r})" for role, name in found.items())
            return f"Found are {there}, but not the {missing[0]}: name it with --column {missing[0]}=NAME. "
    return ""


def used_columns(shape: Shape, row: Row, columns: Mapping[str, str]) -> set[str]:
    """The columns of `row` that `convert` reads."""
    used = {name for _, name in shape.required}
    used |= {name for role in OPTIONAL.get(shape.name, ()) for name in find(role, row, columns)[:1]}
    if shape.name == LETTERS:
        used |= set(questions.letter_columns(row))
    if shape.name == CAUSES:
        used |= set(questions.numbered_columns(row))
    return used


def convert(row: Row, shape: Shape, columns: Mapping[str, str], line: int) -> Record:
    """One row as a record. Raises DataError (without a place) when the row does not fit the shape."""
    at = dict(shape.required)
    missing = [name for name in at.values() if name not in row]
    if missing:
        raise DataError(
            f"this row has no column {listed(missing)} (it has {listed(row)}), but the file is read as "
            f"{shape.describe()}; complete the row or take it out"
        )
    if shape.name == PLAIN:
        return Record(line, text=string(row, at["text"]))
    if shape.name == LABELLED:
        return Record(line, text=string(row, at["text"]), label=label(row, at["label"]))
    if shape.name == SEVERAL:
        return Record(line, text=string(row, at["text"]), labels=_labels(row, at["label"]))
    if shape.name == PAIR:
        text = string(row, at["text"]) + "\n" + string(row, at["text_pair"])
        return Record(line, text=text, label=label(row, at["label"]))

    optional = {role: next(iter(find(role, row, columns)), None) for role in OPTIONAL.get(shape.name, ())}
    if shape.name == SPANS:
        return entities.spanned(row, at["text"], at["spans"], line)
    if shape.name == TAGGED:
        assert shape.scheme is not None
        return entities.tagged(row, at["tokens"], at["tags"], shape.scheme, line)
    if shape.name == SLOTS:
        return entities.slots(row, at["userinput"], optional["labels"], line)
    if shape.name == QUESTION:
        passage = at.get("passage")
        return questions.answered(row, at["question"], at["answers"], passage, optional["is_impossible"], line)
    if shape.name == CHOICE:
        return questions.choice(row, at["question"], at["options"], at["answer"], optional["passage"], line)
    if shape.name == LETTERS:
        return questions.lettered(row, at["question"], at["answer"], optional["passage"], line)
    if shape.name == CAUSES:
        return questions.caused(row, at["premise"], optional["question"], at["label"], line)
    tools = tools_of(row[column], column) if (column := optional.get("tools")) else ""
    if shape.name == ALPACA:
        turns = _alpaca(row, at, optional)
    elif shape.name == PROMPT:
        turns = [*_turns_or_text(row, at["prompt"], "user"), *_turns_or_text(row, at["completion"], "assistant")]
    else:
        turns = _turns(row[at["messages"]], at["messages"], bool(tools))
    return Record(line, messages=_conversation(turns, optional_string(row, optional["system"])), tools=tools)


def _labels(row: Row, name: str) -> tuple[str, ...]:
    """The labels of a list, each once; a value that is no list is one label."""
    value = row[name]
    values = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(label({name: item}, name) for item in values))


def _alpaca(row: Row, at: Mapping[str, str], optional: Mapping[str, str | None]) -> list[Message]:
    """Instruction and input joined by a newline, as LLaMA-Factory does; history is a list of [user, assistant]."""
    turns: list[Message] = []
    history = row[optional["history"]] if optional["history"] else None
    if not isinstance(history, list | None):
        raise DataError(f"column {optional['history']!r} is {shown(history)}; it must be a list of [user, assistant]")
    for number, pair in enumerate(history or (), 1):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, str) for p in pair)):
            raise DataError(f"entry {number} of {optional['history']!r} is {shown(pair)}; it must be [user, assistant]")
        turns += [Message("user", pair[0]), Message("assistant", pair[1])]
    extra = optional_string(row, optional["input"])
    instruction = optional_string(row, at["instruction"])
    question = "\n".join(part for part in (instruction, extra) if part.strip())
    if not question:
        raise DataError(f"column {at['instruction']!r} is empty; an example needs something to answer")
    return [*turns, Message("user", question), Message("assistant", string(row, at["output"]))]


def _turns_or_text(row: Row, name: str, role: str) -> list[Message]:
    return _turns(row[name], name) if isinstance(row[name], list) else [Message(role, string(row, name))]


def _turns(value: Any, name: str, with_tools: bool = False) -> list[Message]:
    if not isinstance(value, list):
        raise DataError(f"column {name!r} is {shown(value)}; it must be a list of turns, each with role and content")
    return [_turn(turn, number, with_tools) for number, turn in enumerate(value, 1)]


def _turn(turn: Any, number: int, with_tools: bool = False) -> Message:
    """One turn. A `function_call` of ShareGPT is text; where the conversation brings tools, the call that it spells."""
    if not isinstance(turn, dict):
        raise DataError(f"turn {number} is {shown(turn)}; it must be an object with role and content")
    role_key, content_key = ("from", "value") if "from" in turn and "role" not in turn else ("role", "content")
    calls = calls_of(turn, number)
    for key in (role_key, content_key):
        if key not in turn and not (calls and key == content_key):
            raise DataError(f"turn {number} has no {key!r} (it has {listed(turn)}); each turn needs role and content")
    role = turn[role_key]
    if not isinstance(role, str) or role.strip().lower() not in TURN_ROLES:
        close = nearest(role, TURN_ROLES, 1) if isinstance(role, str) else []
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise DataError(f"turn {number} has the role {shown(role)}; {hint}known: {', '.join(TURN_ROLES)}")
    word = role.strip().lower()
    role = TURN_ROLES[word]
    content = "" if calls and turn.get(content_key) is None else _content(turn[content_key], number)
    if with_tools and word == "function_call" and (spelled := call_in(content)):
        return Message(role, "", spelled)
    if calls and role != "assistant":
        raise DataError(f"turn {number} calls a tool, but it is the {role}'s; only an assistant's turn can")
    if role != "tool":
        return Message(role, content, calls)
    return Message(role, content, "", *(str(turn.get(key) or "") for key in ("tool_call_id", "name")))


def _content(content: Any, number: int) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise DataError(f"the content of turn {number} is {shown(content)}; it must be a string or text parts")
    texts = []
    for part in content:
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            found = part.get("type") if isinstance(part, dict) else part
            raise DataError(f"turn {number} has a part of type {shown(found)}; only parts of type 'text' can be read")
        texts.append(part["text"])
    return "".join(texts)


def _conversation(turns: Sequence[Message], system: str) -> tuple[Message, ...]:
    if system.strip():
        if turns and turns[0].role == "system":
            raise DataError("there are two system prompts, one in its own column and one as the first turn; keep one")
        turns = [Message("system", system), *turns]
    if not any(t.role == "assistant" for t in turns):
        raise DataError(f"no assistant turn in {len(turns)} turns, so there is nothing to learn; add the answer")
    if not any(t.role == "assistant" and t.said.strip() for t in turns):
        raise DataError("every assistant turn is empty, so there is nothing to learn; add the answer")
    if turns[0].role == "assistant":
        raise DataError("the conversation begins with an assistant turn; it needs a user or a system turn before it")
    return tuple(turns)
