"""Every format is recognised by its content, and every bad input has its answer."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from heptune.core.errors import DataError, HeptuneError, UsageError
from heptune.data.readers import locate, read
from heptune.data.record import Message, Record
from heptune.data.splits import content_key

USER, REPLY = Message("user", "Hi"), Message("assistant", "Hello")
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
SHARE = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]


def jsonl(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def error(path: Path, **options: object) -> DataError:
    with pytest.raises(DataError) as caught:
        read(path, **options)  # type: ignore[arg-type]
    return caught.value


LABELLED = Record(1, text="good", label="1")
TALK = Record(1, messages=(USER, REPLY))
FORMATS = [
    ("a.jsonl", jsonl({"text": "good", "label": "1"}), "JSON lines, text + label", LABELLED),
    ("a.jsonl", jsonl({"text": "good", "label": 1, "id": 7}), "JSON lines, text + label", LABELLED),
    ("a.data", jsonl({"text": "good", "label": "1"}), "JSON lines, text + label", LABELLED),
    ("a.csv", jsonl({"text": "good", "label": "1"}), "JSON lines, text + label", LABELLED),
    ("a.txt", jsonl({"text": "a", "label": True}, {"text": "b", "label": 0.5}), "JSON lines, text + label", None),
    (
        "a.jsonl",
        jsonl({"review": "good", "Category": "1"}),
        "JSON lines, text + label (text = review, label = Category)",
        LABELLED,
    ),
    (
        "a.jsonl",
        jsonl({"premise": "p", "hypothesis": "h", "label": 1}),
        "JSON lines, text pair + label (text = premise, text_pair = hypothesis)",
        Record(1, text="p\nh", label="1"),
    ),
    ("a.jsonl", jsonl({"text": "good"}), "JSON lines, text", Record(1, text="good")),
    ("a.json", json.dumps([{"text": "good", "label": "1"}], indent=1), "JSON, text + label", LABELLED),
    ("a.jsonl", json.dumps([{"text": "good", "label": "1"}]), "JSON, text + label", LABELLED),
    ("a.json", json.dumps({"v": 1, "data": [{"text": "good", "label": "1"}]}), "JSON, text + label", LABELLED),
    ("a.json", json.dumps({"text": "good", "label": "1"}, indent=1), "JSON, text + label", LABELLED),
    ("a.csv", "text,label\ngood,1\n", "CSV, text + label", Record(2, text="good", label="1")),
    ("a.csv", "Label;Text\r\n1;good, really\r\n", "CSV, text + label", Record(2, text="good, really", label="1")),
    ("a.csv", "id\ttext\tlabel\n0\tgood\t1\n", "TSV, text + label", Record(2, text="good", label="1")),
    ("a.tsv", 'text\tlabel\nsay "good\t1\n', "TSV, text + label", Record(2, text='say "good', label="1")),
    ("a.tsv", 'text\tlabel\n"say ""good"""\t1\n', "TSV, text + label", Record(2, text='say "good"', label="1")),
    ("a.tsv", "text,label\ngood,1\n", "CSV, text + label", Record(2, text="good", label="1")),
    ("a.csv", 'text,label\n\n"two\nlines, one ""field""",1\n', "CSV, text + label", None),
    ("a.csv", "text\ngood\n", "CSV, text", Record(2, text="good")),
    ("a", "text\tlabel\ngood\t1\n", "TSV, text + label", Record(2, text="good", label="1")),
    ("a.csv", "question,answer\nHi,Hello\n", "CSV, prompt + completion (prompt = question, completion = answer)", None),
    ("a.jsonl", jsonl({"prompt": "Hi", "completion": "Hello"}), "JSON lines, prompt + completion", TALK),
    ("a.jsonl", jsonl({"prompt": CHAT[:1], "completion": CHAT[1:]}), "JSON lines, prompt + completion", TALK),
    (
        "a.jsonl",
        jsonl({"input": "Hi", "output": "Hello"}),
        "JSON lines, prompt + completion (prompt = input, completion = output)",
        TALK,
    ),
    ("a.json", json.dumps([{"instruction": "Hi", "input": "", "output": "Hello"}]), "JSON, Alpaca", TALK),
    (
        "a.jsonl",
        jsonl({"instruction": "Sum", "input": "1 2", "output": "3", "system": "Be brief", "history": [["a", "b"]]}),
        "JSON lines, Alpaca",
        Record(
            1,
            messages=(
                Message("system", "Be brief"),
                Message("user", "a"),
                Message("assistant", "b"),
                Message("user", "Sum\n1 2"),
                Message("assistant", "3"),
            ),
        ),
    ),
    ("a.jsonl", jsonl({"messages": CHAT}), "JSON lines, chat messages", TALK),
    ("a.jsonl", jsonl({"prompt": "title", "turns": CHAT}), "JSON lines, chat messages (messages = turns)", TALK),
    (
        "a.jsonl",
        jsonl({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, CHAT[1]]}),
        "JSON lines, chat messages",
        TALK,
    ),
    ("a.json", json.dumps([{"conversations": SHARE}]), "JSON, ShareGPT", TALK),
    (
        "a.jsonl",
        jsonl(
            {
                "system": "Use tools",
                "conversations": [
                    {"from": "human", "value": "Hi"},
                    {"from": "function_call", "value": "call()"},
                    {"from": "observation", "value": "42"},
                    {"from": "gpt", "value": "Hello"},
                ],
            }
        ),
        "JSON lines, ShareGPT",
        Record(
            1,
            messages=(
                Message("system", "Use tools"),
                USER,
                Message("assistant", "call()"),
                Message("tool", "42"),
                REPLY,
            ),
        ),
    ),
    ("a.txt", "One\n  two \n\n \nThree, text and label\n", "plain text", Record(1, text="One\n  two")),
    ("a.md", "{not JSON}\n\n[neither]", "plain text", Record(1, text="{not JSON}")),
]


@pytest.mark.parametrize(("name", "content", "format", "first"), FORMATS, ids=lambda v: str(v)[:40])
def test_every_format_is_recognised(tmp_path: Path, name: str, content: str, format: str, first: Record | None) -> None:
    dataset = read(write(tmp_path, name, content))
    assert dataset.format == format
    assert dataset.skipped == ()
    assert first is None or dataset.records[0] == first
    assert dataset.kind == dataset.records[0].kind


WEATHER = {"name": "weather", "description": "Of a city.", "parameters": {"type": "object", "properties": {}}}
TOOLS = json.dumps([{"type": "function", "function": WEATHER}], ensure_ascii=False)
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
CALLS = json.dumps([CALL], ensure_ascii=False)


@pytest.mark.parametrize(
    "tools",
    [
        [WEATHER],
        WEATHER,
        json.dumps([WEATHER]),
        [json.dumps(WEATHER)],
        [{"type": "function", "function": WEATHER}],
        TOOLS,
    ],
)
def test_tools_are_read_in_every_spelling(tmp_path: Path, tools: object) -> None:
    dataset = read(write(tmp_path, "a.jsonl", jsonl({"messages": CHAT, "tools": tools})))
    assert dataset.records == (Record(1, messages=(USER, REPLY), tools=TOOLS),)
    assert dataset.ignored == ()


def test_half_a_character_in_tools_given_as_text_is_refused(tmp_path: Path) -> None:
    spelled = json.dumps([{**WEATHER, "description": "\ud83d"}])
    path = write(tmp_path, "a.jsonl", jsonl({"messages": CHAT, "tools": spelled}))
    with pytest.raises(DataError, match="lone surrogate") as caught:
        read(path)
    assert "a.jsonl:1" in str(caught.value)


@pytest.mark.parametrize("nothing", [None, "", [], "[]"])
def test_no_tools(tmp_path: Path, nothing: object) -> None:
    row = {"prompt": "Hi", "completion": "Hello", "tools": nothing}
    assert read(write(tmp_path, "a.jsonl", jsonl(row))).records == (Record(1, messages=(USER, REPLY)),)


@pytest.mark.parametrize(
    "turn",
    [
        {"content": None, "tool_calls": [CALL]},
        {"tool_calls": [CALL]},
        {"content": "", "tool_calls": CALLS},
        {"content": "", "tool_calls": [{"function": {"name": "weather", "arguments": '{"city": "Köln"}'}}]},
        {"content": "", "function_call": {"name": "weather", "arguments": '{"city": "Köln"}'}},
    ],
)
def test_calls_and_answers(tmp_path: Path, turn: dict[str, object]) -> None:
    answer = {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "wet"}
    messages = [CHAT[0], {"role": "assistant", **turn}, answer, CHAT[1]]
    (record,) = read(write(tmp_path, "a.jsonl", jsonl({"messages": messages}))).records
    assert record.messages == (
        USER,
        Message("assistant", "", CALLS),
        Message("tool", "wet", "", "c1", "weather"),
        REPLY,
    )


def test_a_call_keeps_its_id_and_its_text(tmp_path: Path) -> None:
    turn = {"role": "assistant", "content": "Let me look.", "tool_calls": [{"id": "c1", **CALL}]}
    (record,) = read(write(tmp_path, "a.jsonl", jsonl({"messages": [CHAT[0], turn]}))).records
    assert record.messages[1].content == "Let me look."
    assert json.loads(record.messages[1].tool_calls) == [{"id": "c1", **CALL}]
    assert record.messages[1].said == f"Let me look.\n{record.messages[1].tool_calls}"


def test_sharegpts_calls_are_calls_where_the_conversation_brings_tools(tmp_path: Path) -> None:
    spelled = json.dumps(CALL["function"], ensure_ascii=False)
    talk = [SHARE[0], {"from": "function_call", "value": spelled}, {"from": "observation", "value": "wet"}, SHARE[1]]
    first, second = read(
        write(tmp_path, "a.jsonl", jsonl({"conversations": talk, "tools": [WEATHER]}, {"conversations": talk}))
    ).records
    assert first.messages[1] == Message("assistant", "", CALLS) and first.tools == TOOLS
    assert second.messages[1] == Message("assistant", spelled) and second.tools == ""
    text = [SHARE[0], {"from": "function_call", "value": "weather(Köln)"}, SHARE[1]]
    (record,) = read(write(tmp_path, "b.jsonl", jsonl({"conversations": text, "tools": [WEATHER]}))).records
    assert record.messages[1] == Message("assistant", "weather(Köln)")


def test_conversations_that_differ_in_a_call_alone_are_no_duplicates(tmp_path: Path) -> None:
    other = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}}
    rows = [{"messages": [CHAT[0], {"role": "assistant", "tool_calls": [call]}]} for call in (CALL, other)]
    first, second = read(write(tmp_path, "a.jsonl", jsonl(*rows))).records
    assert content_key(first) != content_key(second)


def test_labels_of_other_types_become_strings(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": value} for value in (True, 0.5, 3, "x y", float("inf"))]
    assert [r.label for r in read(write(tmp_path, "a.jsonl", jsonl(*rows))).records] == [
        "true",
        "0.5",
        "3",
        "x y",
        "Infinity",
    ]


def test_plain_text_is_one_record_a_block_with_its_line(tmp_path: Path) -> None:
    dataset = read(write(tmp_path, "a.txt", "\n\nOne\ntwo\n\n\n\nThree"))
    assert dataset.records == (Record(3, text="One\ntwo"), Record(8, text="Three"))


def test_quoted_fields_over_several_lines_keep_the_line_numbers_right(tmp_path: Path) -> None:
    dataset = read(write(tmp_path, "a.csv", 'text,label\r\n\r\n"two\r\nlines, ""q""",1\r\nlast,2\r\n'))
    assert dataset.records == (Record(3, text='two\nlines, "q"', label="1"), Record(5, text="last", label="2"))


def test_byte_order_mark_and_windows_newlines_are_accepted(tmp_path: Path) -> None:
    content = "\ufeff" + jsonl({"text": "é", "label": "x"}).replace("\n", "\r\n")
    assert read(write(tmp_path, "a.jsonl", content)).records == (Record(1, text="é", label="x"),)
    assert read(write(tmp_path, "a.csv", "\ufefftext,label\r\né,x\r\n")).records[0].text == "é"


def test_very_long_lines_read_whole(tmp_path: Path) -> None:
    long = "word " * 40_000
    assert read(write(tmp_path, "a.jsonl", jsonl({"text": long, "label": "x"}))).records[0].text == long
    assert read(write(tmp_path, "a.csv", f"text,label\n{long},x\n")).records[0].text == long
    assert read(write(tmp_path, "a.txt", long)).records[0].text == long.rstrip()


def test_not_a_number_in_another_column_does_no_harm(tmp_path: Path) -> None:
    assert read(write(tmp_path, "a.jsonl", '{"text": "a", "label": "x", "score": NaN}')).records[0].label == "x"


def test_the_hash_is_that_of_the_bytes_and_unread_columns_are_named(tmp_path: Path) -> None:
    dataset = read(write(tmp_path, "a.csv", "id,text,label,note\n1,a,x,\n"))
    assert dataset.sha256 == hashlib.sha256(dataset.path.read_bytes()).hexdigest()
    assert dataset.ignored == ("id", "note")


def test_columns_named_by_hand(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "mr,ref,title,review,kind\nHi,Hello,T,R,K\n")
    assert read(path, columns={"prompt": "mr", "completion": "ref"}).records == (Record(2, messages=(USER, REPLY)),)
    dataset = read(path, columns={"text": "review", "label": "kind"})
    assert dataset.records == (Record(2, text="R", label="K"),)
    assert dataset.format == "CSV, text + label (text = review, label = kind)"
    assert read(path, columns={"text": "title"}).records == (Record(2, text="T"),)
    chat = write(tmp_path, "b.jsonl", jsonl({"log": CHAT, "persona": "Be kind"}))
    messages = read(chat, columns={"messages": "log", "system": "persona"}).records[0].messages
    assert messages == (Message("system", "Be kind"), USER, REPLY)


def test_wrong_columns_by_hand(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "sentence,label\na,x\n")
    with pytest.raises(
        UsageError, match=r"no column role named 'txt'; did you mean text.*known: answer, answers, completion, label"
    ):
        read(path, columns={"txt": "sentence"})
    with pytest.raises(UsageError, match="do not go together"):
        read(path, columns={"text": "sentence", "prompt": "label"})
    message = str(error(path, columns={"text": "sentense"}))
    assert "no column 'sentense' for the text; did you mean 'sentence'" in message
    assert "columns found: 'sentence', 'label'" in message
    assert "no columns" in str(error(write(tmp_path, "a.txt", "words"), columns={"text": "a"}))


def test_unrecognised_columns_list_what_is_there_and_the_way_out(tmp_path: Path) -> None:
    for name, content in (("a.csv", "mr,ref\na,b\n"), ("a.jsonl", jsonl({"mr": "a", "ref": "b"}))):
        message = str(error(write(tmp_path, name, content)))
        assert "columns found: 'mr', 'ref'" in message
        assert "text + label, prompt + completion" in message
        assert "--column text=NAME --column label=NAME" in message
    ambiguous = str(error(write(tmp_path, "a.csv", "title,review,label\na,b,x\n")))
    assert "'review', 'title' could all be the text" in ambiguous


BAD_FILES = [
    ("empty", "a.jsonl", b"", None, ["empty (0 bytes)"]),
    ("white space", "a.csv", b" \n\t\r\n", None, ["empty (only white space)"]),
    ("only a mark", "a.csv", b"\xef\xbb\xbf", None, ["empty"]),
    ("UTF-16", "a.csv", "text,label\na,x".encode("utf-16"), None, ["UTF-16", "iconv -f UTF-16 -t utf-8", "a.utf8.csv"]),
    ("UTF-16 unmarked", "a.csv", "text,label\na,x".encode("utf-16-le"), None, ["UTF-16LE", "iconv -f UTF-16LE"]),
    ("UTF-32", "a.csv", "text,label".encode("utf-32"), None, ["UTF-32"]),
    (
        "Latin-1",
        "a.csv",
        "text,label\nna\xefve,x".encode("latin-1"),
        2,
        ["0xEF (byte 3 of the line)", "iconv -f WINDOWS"],
    ),
    ("marked Latin-1", "a.txt", b"\xef\xbb\xbfok\nna\xefve", 2, ["0xEF (byte 3 of the line)"]),
    ("NUL", "a.txt", b"words\0\1\2 and more words", None, ["binary (NUL byte at position 5)"]),
    ("control", "a.txt", b"words\x01\xff", None, ["binary (control byte 0x01 at position 5)"]),
    ("gzip", "a.jsonl", b"\x1f\x8b\x08\x00", None, ["gzip", "gunzip"]),
    ("Parquet", "a.parquet", b"PAR1\x15\x04", None, ["Parquet", "read_parquet"]),
    ("invalid JSON line", "a.jsonl", b'{"text": "a"}\n\n{"text": b}\n', 3, ["column 10", "found 'b}'", "--skip-bad"]),
    ("truncated JSON line", "a.jsonl", b'{"text": "a"}\n{"text": "b', 2, ["not valid JSON", "unterminated string"]),
    ("no object", "a.jsonl", b'{"text": "a"}\n[1, 2]\n5', 2, ["a list of 2", "1 more are bad"]),
    ("prose as JSONL", "a.jsonl", b"Dear all,\n", 1, ["not valid JSON", "'Dear all,'"]),
    ("invalid JSON", "a.json", b'\n[{"text": "a"},\n {"text" "b"}]', 3, ["column 10", "found '\"b\"}]'"]),
    ("JSON scalar", "a.json", b"5", None, ["the value 5", "list of objects"]),
    ("empty list", "a.json", b"[]", None, ["list is empty"]),
    ("list of strings", "a.json", b'["a", "b"]', 1, ["element 1 of the list", "'a'"]),
    (
        "two lists",
        "a.json",
        b'{"train": [{"text": "a"}], "test": [{"text": "b"}]}',
        None,
        ["2 lists", "'train', 'test'"],
    ),
    ("deep", "a.jsonl", b"[" * 100_000, 1, ["nested too deeply"]),
    ("deep in a row", "a.jsonl", b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 1, ["nested too deeply"]),
    ("huge number", "a.jsonl", b'{"text": ' + b"1" * 5000 + b"}", 1, ["not valid JSON", "as a string"]),
    ("surrogate", "a.jsonl", b'{"text": "ok"}\n{"text": "half \\ud83d"}', 2, ["lone surrogate \\ud83d"]),
    ("surrogate in a list", "a.json", b'[{"text": "half \\udc00"}]', 1, ["element 1", "\\udc00"]),
    ("header only", "a.csv", b"text,label\n", None, ["only one line", "'text', 'label'"]),
    ("more fields", "a.csv", b"text,label\na,x\nb, c,x\n", 3, ["has 3 fields", "2 columns", "contains a comma"]),
    ("fewer fields", "a.tsv", b"text\tlabel\na\tx\nb\n", 3, ["has 1 fields", "contains a tab"]),
    ("open quote", "a.csv", b'text,label\n"a,x\nb,y\n', 2, ["never closed", "3 lines from here"]),
    ("stray quote", "a.csv", b'text,label\n"a"b,x\n', 2, ["damaged quoting"]),
    ("open quote in header", "a.csv", b'"text,label\na,x\n', 1, ["column names", "do not pair up"]),
    ("twice", "a.csv", b"text,label,text\na,x,b\n", 1, ["'text' stands twice"]),
    ("unknown", "a.xyz", b"just words", None, ["not recognised", "'just words'", "rename"]),
]


@pytest.mark.parametrize(
    ("name", "content", "line", "parts"), [b[1:] for b in BAD_FILES], ids=[b[0] for b in BAD_FILES]
)
def test_bad_files_are_explained(tmp_path: Path, name: str, content: bytes, line: int | None, parts: list[str]) -> None:
    path = write(tmp_path, name, content)
    problem = error(path)
    assert (problem.path, problem.line) == (path, line)
    for part in parts:
        assert part in str(problem)


BAD_ROWS = [
    ({"text": "b"}, {"text": "a", "label": "x"}, "no column 'label' (it has 'text')"),
    ({"text": "b", "label": None}, {"text": "a", "label": "x"}, "the label (column 'label') is null"),
    ({"text": "b", "label": " "}, {"text": "a", "label": "x"}, "the label (column 'label') is ' '"),
    ({"text": "b", "label": float("nan")}, {"text": "a", "label": "x"}, "is the value NaN"),
    ({"text": "b", "label": {"x": 1}}, {"text": "a", "label": "x"}, "is an object; it must be one string"),
    ({"text": "", "label": "x"}, {"text": "a", "label": "x"}, "column 'text' is empty"),
    ({"text": 5, "label": "x"}, {"text": "a", "label": "x"}, "column 'text' is the value 5; it must be a string"),
    ({"text": None}, {"text": "a"}, "column 'text' is null"),
    ({"prompt": "Hi", "completion": " "}, {"prompt": "Hi", "completion": "x"}, "column 'completion' is empty"),
    ({"prompt": 1, "completion": "a"}, {"prompt": "Hi", "completion": "x"}, "column 'prompt' is the value 1"),
    ({"instruction": " ", "output": "x"}, {"instruction": "Hi", "output": "x"}, "'instruction' is empty"),
    ({"instruction": "a", "input": 3, "output": "x"}, {"instruction": "Hi", "output": "x"}, "'input' is the value 3"),
    (
        {"instruction": "a", "output": "x", "history": [["a"]]},
        {"instruction": "a", "output": "x"},
        "entry 1 of 'history' is a list of 1",
    ),
    ({"instruction": "a", "output": "x", "history": "a"}, {"instruction": "a", "output": "x"}, "'history' is 'a'"),
    ({"messages": "Hi"}, {"messages": CHAT}, "column 'messages' is 'Hi'; it must be a list of turns"),
    ({"messages": []}, {"messages": CHAT}, "no assistant turn in 0 turns"),
    ({"messages": CHAT[:1]}, {"messages": CHAT}, "no assistant turn in 1 turns"),
    ({"messages": ["Hi"]}, {"messages": CHAT}, "turn 1 is 'Hi'"),
    ({"messages": [CHAT[0], {"role": "assistant"}]}, {"messages": CHAT}, "turn 2 has no 'content'"),
    ({"messages": [CHAT[0], {"role": "asistant", "content": "a"}]}, {"messages": CHAT}, "did you mean 'assistant'"),
    ({"messages": [CHAT[0], {"role": 3, "content": "a"}]}, {"messages": CHAT}, "turn 2 has the role the value 3"),
    ({"messages": [CHAT[0], {"role": "assistant", "content": None}]}, {"messages": CHAT}, "content of turn 2 is null"),
    (
        {"messages": [CHAT[0], {"role": "assistant", "content": " "}]},
        {"messages": CHAT},
        "every assistant turn is empty",
    ),
    ({"messages": CHAT[1:]}, {"messages": CHAT}, "begins with an assistant turn"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, CHAT[1]]},
        {"messages": CHAT},
        "turn 1 has a part of type 'image_url'",
    ),
    (
        {"messages": [CHAT[0], {"role": "assistant", "content": "a", "tool_calls": [{}]}]},
        {"messages": CHAT},
        "turn 2 has a call without a name",
    ),
    (
        {"messages": [CHAT[0], {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}]},
        {"messages": CHAT},
        "turn 2 calls f with arguments that are no JSON object",
    ),
    (
        {"messages": [{"role": "user", "content": "a", "tool_calls": [{"name": "f"}]}, CHAT[1]]},
        {"messages": CHAT},
        "turn 1 calls a tool, but it is the user's",
    ),
    ({"messages": CHAT, "tools": "weather"}, {"messages": CHAT}, "the column 'tools' has a tool without a name"),
    (
        {"messages": [{"role": "system", "content": "a"}, *CHAT], "system": "b"},
        {"messages": CHAT},
        "two system prompts",
    ),
    ({"messages": CHAT, "system": 4}, {"messages": CHAT}, "column 'system' is the value 4"),
    ({"other": "a"}, {"text": "a", "label": "x"}, "no column 'text', 'label' (it has 'other')"),
]


@pytest.mark.parametrize(("bad", "good", "part"), BAD_ROWS, ids=[b[2][:50] for b in BAD_ROWS])
def test_bad_rows_are_located_and_can_be_skipped(tmp_path: Path, bad: object, good: object, part: str) -> None:
    path = write(tmp_path, "a.jsonl", jsonl(good, bad, good))
    problem = error(path)
    assert problem.line == 2
    assert str(problem).startswith(f"{path}:2: ")
    assert part in str(problem)
    dataset = read(path, skip_bad=True)
    assert [record.line for record in dataset.records] == [1, 3]
    assert [e.line for e in dataset.skipped] == [2]


def test_a_bad_element_of_a_list_is_counted_as_element(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", json.dumps([{"text": "a"}, {"text": ""}]))
    assert "element 2 of the list: column 'text' is empty" in str(error(path))


def test_skipping_everything_is_an_error(tmp_path: Path) -> None:
    problem = error(write(tmp_path, "a.jsonl", jsonl({"messages": CHAT[:1]}) * 3), skip_bad=True)
    assert "no usable record is left: all 3 are bad, the first: no assistant turn" in str(problem)
    assert "all 1 are bad" in str(error(write(tmp_path, "b.jsonl", "{"), skip_bad=True))


def test_damaged_lines_are_skipped_with_the_others(tmp_path: Path) -> None:
    content = 'text,label\na,x\n"b"c,x\nd,x,y\ne,x\n'
    dataset = read(write(tmp_path, "a.csv", content), skip_bad=True)
    assert [r.text for r in dataset.records] == ["a", "e"]
    assert [e.line for e in dataset.skipped] == [3, 4]


def test_the_shape_is_that_of_most_rows_but_labels_win_over_bare_text(tmp_path: Path) -> None:
    rows = [{"text": "a"}, {"text": "b"}, {"text": "c", "label": "x"}]
    assert error(write(tmp_path, "a.jsonl", jsonl(*rows))).line == 1
    stray = [{"messages": CHAT}, {"text": "a", "label": "x"}, {"text": "b", "label": "x"}]
    assert read(write(tmp_path, "b.jsonl", jsonl(*stray)), skip_bad=True).kind == "labelled text"
    optional = [{"instruction": "a", "output": "b"}] * 2 + [{"instruction": "a", "input": "i", "output": "b"}]
    assert read(write(tmp_path, "c.jsonl", jsonl(*optional))).records[2].messages[0].content == "a\ni"


def test_missing_files_and_folders(tmp_path: Path) -> None:
    write(tmp_path, "reviews.csv", "text,label\na,x")
    write(tmp_path, "other.txt", "words")
    message = str(error(tmp_path / "review.csv"))
    assert "no such file; did you mean 'reviews.csv'? files in that folder: 'other.txt', 'reviews.csv'" in message
    assert "nor a folder" in str(error(tmp_path / "nowhere" / "a.csv"))
    assert "this is a folder; name a file in it: 'other.txt', 'reviews.csv'" in str(error(tmp_path))
    assert "cannot be read" in str(error(tmp_path / ("x" * 5000)))


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs a device file")
def test_a_device_is_not_read() -> None:
    assert "not a regular file" in str(error(Path("/dev/zero")))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_without_permission_is_explained(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text,label\na,x")
    path.chmod(0)
    assert "cannot be read: Permission denied" in str(error(path))


def test_parts_of_a_folder(tmp_path: Path) -> None:
    train, dev, test = (write(tmp_path, name, "{}") for name in ("train.jsonl", "dev.csv", "test.tsv"))
    write(tmp_path, "notes.txt", "words")
    parts = locate(tmp_path)
    assert (parts.train, parts.validation, parts.test) == (train, dev, test)
    other = write(tmp_path, "mine.jsonl", "{}")
    assert locate(tmp_path, validation=other).validation == other
    alone = locate(train)
    assert (alone.train, alone.validation, alone.test) == (train, None, None)
    assert locate(train, test=other).test == other


def test_parts_that_cannot_be_found(tmp_path: Path) -> None:
    write(tmp_path, "all.jsonl", "{}")
    with pytest.raises(DataError, match=r"no training file \(train\.jsonl, train\.json.*it holds: 'all\.jsonl'"):
        locate(tmp_path)
    write(tmp_path, "train.csv", "{}")
    write(tmp_path, "val.csv", "{}")
    write(tmp_path, "dev.csv", "{}")
    with pytest.raises(DataError, match=r"several files could be the validation part: 'dev\.csv', 'val\.csv'"):
        locate(tmp_path)
    assert locate(tmp_path, validation=tmp_path / "val.csv").validation == tmp_path / "val.csv"
    with pytest.raises(DataError, match=r"did you mean 'train\.csv'"):
        locate(tmp_path / "trian.csv")
    with pytest.raises(DataError, match="this is a folder"):
        locate(tmp_path / "train.csv", validation=tmp_path)


REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data"
REAL_FILES = [
    ("sst2/train.jsonl", 6920, "text + label"),
    ("sst2/dev.jsonl", 872, "text + label"),
    ("sst2/test.jsonl", 1821, "text + label"),
    ("trec/train.jsonl", 5452, "text + label"),
    ("trec/test.jsonl", 500, "text + label"),
    ("banking77/train.jsonl", 10003, "text + label"),
    ("banking77/test.jsonl", 3080, "text + label"),
    ("vader/movie.jsonl", 4000, "text + label"),
    ("glue_rte/dev.jsonl", 139, "text pair + label"),
    ("grimm_tales/tales.jsonl", 44, "text + label"),
    ("chitchat/train.jsonl", 400, "chat messages"),
    ("chitchat/test.jsonl", 100, "chat messages"),
    ("taskmaster4_coffee/train.jsonl", 600, "chat messages"),
    ("gsm8k/train.jsonl", 4000, "prompt + completion"),
    ("gsm8k/test.jsonl", 1319, "prompt + completion"),
    ("chatterbot_en/qa.jsonl", 2307, "prompt + completion"),
    ("perlfaq/qa.jsonl", 304, "prompt + completion"),
    ("llamafactory_demo/identity.json", 91, "JSON, Alpaca"),
    ("llamafactory_demo/glaive_toolcall_en_demo.json", 300, "JSON, ShareGPT"),
    ("llamafactory_demo/c4_demo.jsonl", 300, "JSON lines, text"),
    ("wikitext2/test.txt", None, "plain text"),
    ("wnut17/train.jsonl", 3394, "tokens + tags (IOB2)"),
    ("wnut17/dev.jsonl", 1009, "tokens + tags (IOB2)"),
    ("wnut17/test.jsonl", 1287, "tokens + tags (IOB2)"),
    ("ncbi_disease/train.jsonl", 3500, "tokens + tags (IOB2)"),
    ("ncbi_disease/dev.jsonl", 923, "tokens + tags (IOB2)"),
    ("ncbi_disease/test.jsonl", 940, "tokens + tags (IOB2)"),
    ("wikigold/all.jsonl", 1696, "tokens + tags (IOB1)"),
    ("copa/train.jsonl", 400, "premise + choices + label"),
    ("copa/dev.jsonl", 100, "premise + choices + label"),
    ("copa/mirrored.jsonl", 500, "premise + choices + label"),
]


@pytest.mark.parametrize(("name", "count", "format"), REAL_FILES, ids=[f[0] for f in REAL_FILES])
def test_real_files_read_completely(name: str, count: int | None, format: str) -> None:
    if not (REAL / name).exists():
        pytest.skip("the real data is not here")
    dataset = read(REAL / name)
    assert format in dataset.format
    assert count is None or len(dataset.records) == count


@pytest.mark.parametrize("name", ["selfinstruct_seed/seed_tasks.jsonl", "e2e/dev.jsonl", "pubmedqa/test.jsonl"])
def test_real_files_of_other_shapes_are_refused_with_their_columns(name: str) -> None:
    if not (REAL / name).exists():
        pytest.skip("the real data is not here")
    with pytest.raises(HeptuneError, match="not recognised; columns found"):
        read(REAL / name)
