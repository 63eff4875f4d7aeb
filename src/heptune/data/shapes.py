"""The shapes a row can have, and how each becomes a record.

A row is a mapping from column names to values, whatever file it came from. `recognise` names the shape of one row by
its columns, `agree` finds the one shape of a whole file, `convert` makes the record. Column names are compared without
case. A `DataError` from here has no place yet: the reader knows file and line and adds them.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heptune.core.errors import DataError, UsageError
from heptune.core.registry import nearest, unknown
from heptune.data.record import ROLES, Message, Record

Row = Mapping[str, Any]

# The first name is the canonical one and wins; of the others a row may have only one.
ALIASES: dict[str, tuple[str, ...]] = {
    "text": ("text", "sentence", "review", "content", "utterance", "title"),
    "label": ("label", "category", "class", "intent", "sentiment", "target"),
    "prompt": ("prompt", "question", "query", "input"),
    "completion": ("completion", "answer", "response", "output"),
    "messages": ("messages", "conversations", "turns", "conversation", "dialog", "dialogue"),
    "instruction": ("instruction",),
    "input": ("input", "context"),
    "output": ("output", "response", "answer", "completion"),
    "history": ("history",),
    "system": ("system", "system_prompt"),
}
NAMED_BY_HAND = ("text", "label", "prompt", "completion", "messages", "system")
PAIRS = (("premise", "hypothesis"), ("sentence1", "sentence2"), ("text", "text_pair"))

CHAT, SHAREGPT, ALPACA = "chat messages", "ShareGPT", "Alpaca"
PROMPT, PAIR, LABELLED, PLAIN = "prompt + completion", "text pair + label", "text + label", "text"
OPTIONAL = {
    CHAT: ("system",),
    SHAREGPT: ("system",),
    ALPACA: ("input", "history", "system"),
    PROMPT: ("system",),
    PAIR: (),
    LABELLED: (),
    PLAIN: (),
}

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
    """What a row is: the shape's name and, for each role it must have, the column that holds it."""

    name: str
    required: tuple[tuple[str, str], ...]

    def describe(self) -> str:
        """The name, and the columns where they are not the canonical ones: 'text + label (text = review)'."""
        canonical = {"messages": "conversations"} if self.name == SHAREGPT else {}
        renamed = [f"{r} = {c}" for r, c in self.required if c.lower() != canonical.get(r, r)]
        return self.name + (f" ({', '.join(renamed)})" if renamed else "")


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
    families = [f for f in (("text", "label"), ("prompt", "completion"), ("messages",)) if set(f) & set(columns)]
    if len(families) > 1 or ("system" in columns and families == [("text", "label")]):
        raise UsageError(
            f"the columns {', '.join(columns)} do not go together; name text and label, or prompt and completion, "
            "or messages (the last two also with system)"
        )


def find(role: str, row: Row, columns: Mapping[str, str]) -> list[str]:
    """The columns of `row` that may hold `role`: at most one unless the names are ambiguous."""
    if role in columns:
        return [columns[role]] if columns[role] in row else []
    by_name = {name.strip().lower(): name for name in row}
    if ALIASES[role][0] in by_name:
        return [by_name[ALIASES[role][0]]]
    return [by_name[alias] for alias in ALIASES[role] if alias in by_name]


def recognise(row: Row, columns: Mapping[str, str]) -> Shape | None:
    """The shape of one row; None when it has none, or when two columns compete for one role."""
    if "text" in columns or "label" in columns:
        return _text_shape(row, columns)
    if "prompt" in columns or "completion" in columns:
        return _shape_of(PROMPT, ("prompt", "completion"), row, columns)
    chat = _chat_shape(row, columns)
    if chat or "messages" in columns:
        return chat
    if find("instruction", row, columns) and find("output", row, columns):
        return _shape_of(ALPACA, ("instruction", "output"), row, columns)
    if find("prompt", row, columns) and find("completion", row, columns):
        return _shape_of(PROMPT, ("prompt", "completion"), row, columns)
    by_name = {name.strip().lower(): name for name in row}
    label = find("label", row, columns)
    for first, second in PAIRS:
        if first in by_name and second in by_name and len(label) == 1:
            return Shape(PAIR, (("text", by_name[first]), ("text_pair", by_name[second]), ("label", label[0])))
    return _text_shape(row, columns)


def _shape_of(name: str, roles: Sequence[str], row: Row, columns: Mapping[str, str]) -> Shape | None:
    found = [find(role, row, columns) for role in roles]
    if any(len(names) != 1 for names in found):
        return None
    return Shape(name, tuple((role, names[0]) for role, names in zip(roles, found, strict=True)))


def _text_shape(row: Row, columns: Mapping[str, str]) -> Shape | None:
    if find("label", row, columns) or "label" in columns:
        return _shape_of(LABELLED, ("text", "label"), row, columns)
    return _shape_of(PLAIN, ("text",), row, columns)


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
    Raises DataError when no row is recognised: the columns found, the shapes known, the way out.
    """
    shapes = Counter(shape for row in rows if (shape := recognise(row, columns)) is not None)
    return prevailing(shapes, rows[0], columns)


def prevailing(shapes: Counter[Shape], first: Row, columns: Mapping[str, str]) -> Shape:
    """The shape that `agree` finds where the rows have these shapes, counted in the order of their appearance. `first`
    is the first row, for the message where there is no shape."""
    if not shapes:
        raise _unrecognised(first, columns)
    best = shapes.most_common(1)[0][0]
    if best.name == PLAIN:
        labelled = [s for s, _ in shapes.most_common() if s.name == LABELLED and s.required[0] == best.required[0]]
        best = labelled[0] if labelled else best
    return best


def _unrecognised(row: Row, columns: Mapping[str, str]) -> DataError:
    competing = [
        f"{listed(found)} could all be the {r}" for r in NAMED_BY_HAND if len(found := find(r, row, columns)) > 1
    ]
    return DataError(
        f"the shape of the rows is not recognised; columns found: {listed(row)}"
        + (f" ({'; '.join(competing)})" if competing else "")
        + ". Known shapes: text + label, prompt + completion (also question + answer, input + output), "
        "Alpaca (instruction, input, output), chat messages (messages), ShareGPT (conversations), text alone. "
        "Name the columns by hand: --column text=NAME --column label=NAME, "
        "or --column prompt=NAME --column completion=NAME, or --column messages=NAME; "
        "a table needs its column names in the first line"
    )


def used_columns(shape: Shape, row: Row, columns: Mapping[str, str]) -> set[str]:
    """The columns of `row` that `convert` reads."""
    optional = {name for role in OPTIONAL[shape.name] for name in find(role, row, columns)[:1]}
    return {name for _, name in shape.required} | optional


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
        return Record(line, text=_string(row, at["text"]))
    if shape.name == LABELLED:
        return Record(line, text=_string(row, at["text"]), label=_label(row, at["label"]))
    if shape.name == PAIR:
        text = _string(row, at["text"]) + "\n" + _string(row, at["text_pair"])
        return Record(line, text=text, label=_label(row, at["label"]))

    optional = {role: next(iter(find(role, row, columns)), None) for role in OPTIONAL[shape.name]}
    if shape.name == ALPACA:
        turns = _alpaca(row, at, optional)
    elif shape.name == PROMPT:
        turns = [*_turns_or_text(row, at["prompt"], "user"), *_turns_or_text(row, at["completion"], "assistant")]
    else:
        turns = _turns(row[at["messages"]], at["messages"])
    return Record(line, messages=_conversation(turns, _optional_string(row, optional["system"])))


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
    extra = _optional_string(row, optional["input"])
    instruction = _optional_string(row, at["instruction"])
    question = "\n".join(part for part in (instruction, extra) if part.strip())
    if not question:
        raise DataError(f"column {at['instruction']!r} is empty; an example needs something to answer")
    return [*turns, Message("user", question), Message("assistant", _string(row, at["output"]))]


def _turns_or_text(row: Row, name: str, role: str) -> list[Message]:
    return _turns(row[name], name) if isinstance(row[name], list) else [Message(role, _string(row, name))]


def _turns(value: Any, name: str) -> list[Message]:
    if not isinstance(value, list):
        raise DataError(f"column {name!r} is {shown(value)}; it must be a list of turns, each with role and content")
    return [_turn(turn, number) for number, turn in enumerate(value, 1)]


def _turn(turn: Any, number: int) -> Message:
    if not isinstance(turn, dict):
        raise DataError(f"turn {number} is {shown(turn)}; it must be an object with role and content")
    role_key, content_key = ("from", "value") if "from" in turn and "role" not in turn else ("role", "content")
    for key in (role_key, content_key):
        if key not in turn:
            raise DataError(f"turn {number} has no {key!r} (it has {listed(turn)}); each turn needs role and content")
    role = turn[role_key]
    if not isinstance(role, str) or role.strip().lower() not in TURN_ROLES:
        close = nearest(role, TURN_ROLES, 1) if isinstance(role, str) else []
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise DataError(f"turn {number} has the role {shown(role)}; {hint}known: {', '.join(TURN_ROLES)}")
    if turn.get("tool_calls") or turn.get("function_call"):
        raise DataError(f"turn {number} has tool calls beside its text; write the call into the content to learn it")
    return Message(TURN_ROLES[role.strip().lower()], _content(turn[content_key], number))


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
    if not any(t.role == "assistant" and t.content.strip() for t in turns):
        raise DataError("every assistant turn is empty, so there is nothing to learn; add the answer")
    if turns[0].role == "assistant":
        raise DataError("the conversation begins with an assistant turn; it needs a user or a system turn before it")
    return tuple(turns)


def _string(row: Row, name: str) -> str:
    value = row[name]
    if not isinstance(value, str):
        raise DataError(f"column {name!r} is {shown(value)}; it must be a string")
    if not value.strip():
        raise DataError(f"column {name!r} is empty; fill it or take the row out")
    return value


def _optional_string(row: Row, name: str | None) -> str:
    value = row.get(name) if name else None
    if not isinstance(value, str | None):
        raise DataError(f"column {name!r} is {shown(value)}; it must be a string")
    return value or ""


def _label(row: Row, name: str) -> str:
    """Strings as they are; numbers and booleans as JSON writes them (1, 0.5, true)."""
    value = row[name]
    if (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    ):
        raise DataError(
            f"the label (column {name!r}) is {shown(value)}; every row needs one, take the row out otherwise"
        )
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    raise DataError(f"the label (column {name!r}) is {shown(value)}; it must be one string, number or boolean")


def listed(names: Iterable[str], limit: int = 20) -> str:
    """Names for a message, quoted, the first `limit` of them, long ones shortened."""
    every = list(names)
    more = f" and {len(every) - limit} more" if len(every) > limit else ""
    return (", ".join(shown(name) for name in every[:limit]) or "none") + more


def shown(value: Any) -> str:
    """A value for a message: short, on one line, never a nested structure."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:40] + "…")
    text = json.dumps(value)
    return f"the value {text if len(text) <= 40 else text[:40] + '…'}"
