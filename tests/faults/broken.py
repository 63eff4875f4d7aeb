"""Broken data files of every kind, made from nothing: what is on disks after exports, crashes and jokes."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import sqlite3
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

ROWS = [{"text": f"The evening number {n} was lovely.", "label": "good" if n % 2 else "bad"} for n in range(20)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
CSV = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS)
CONLL = "Ada B-PER\nlives O\nin O\nLondon B-LOC\n\n" * 8
BOMB_BYTES = 200 << 20  # what the bombs would unpack to


def files() -> Iterator[tuple[str, bytes]]:
    """Name and content of each file; names are unique."""
    for group in (_encodings, _newlines, _damage, _json, _values, _tables, _conll, _spans, _talks, _containers, _sizes):
        for number, (name, content) in enumerate(group()):
            stem, _, suffix = name.rpartition(".")
            yield f"{group.__name__[1:]}-{number:02d}-{stem}.{suffix}", content


def places(folder: Path) -> Iterator[Path]:
    """Paths that are no files to read: folders, links in circles, devices, pipes."""
    (folder / "folder.jsonl").mkdir()
    yield folder / "folder.jsonl"
    (folder / "circle.jsonl").symlink_to("circle.jsonl")
    yield folder / "circle.jsonl"
    (folder / "nowhere.jsonl").symlink_to("gone.jsonl")
    yield folder / "nowhere.jsonl"
    (folder / "zeros.jsonl").symlink_to("/dev/zero")
    yield folder / "zeros.jsonl"
    (folder / "nothing.csv").symlink_to("/dev/null")
    yield folder / "nothing.csv"
    os.mkfifo(folder / "pipe.jsonl")
    yield folder / "pipe.jsonl"
    yield folder / "missing.jsonl"
    yield folder / ("long" * 80 + ".jsonl")
    yield folder / "nul\0.jsonl"


def _encodings() -> Iterator[tuple[str, bytes]]:
    text = LINES.replace("lovely", "schön, 素晴らしい")
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-7", "gb18030", "shift_jis"):
        yield f"{encoding}.jsonl", text.encode(encoding, errors="replace")
    for encoding in ("latin-1", "cp1252", "cp437", "mac_roman"):
        yield f"{encoding}.jsonl", LINES.replace("lovely", "schön").encode(encoding)
        yield f"{encoding}.csv", CSV.replace("lovely", "schön").encode(encoding)
        yield f"{encoding}.txt", "Es war schön.\n\n".encode(encoding) * 9
    yield "bom.jsonl", b"\xef\xbb\xbf" + LINES.encode()
    yield "two-boms.jsonl", b"\xef\xbb\xbf" * 2 + LINES.encode()
    yield "bom-inside.jsonl", LINES.encode() + b"\xef\xbb\xbf" + LINES.encode()
    yield "bom-alone.jsonl", b"\xef\xbb\xbf"
    yield "utf-16-bom-alone.csv", b"\xff\xfe"
    yield "overlong.jsonl", LINES.encode().replace(b"lovely", b"\xc0\xaf")
    yield "surrogate-bytes.jsonl", LINES.encode().replace(b"lovely", b"\xed\xa0\x80")
    yield "cut-character.jsonl", LINES.encode().replace(b"lovely", b"\xf0\x9f\x98")
    yield "half-and-half.jsonl", LINES.encode() + LINES.encode("utf-16-le")


def _newlines() -> Iterator[tuple[str, bytes]]:
    for name, mark in (("crlf", "\r\n"), ("cr", "\r"), ("lf-cr", "\n\r"), ("vt", "\v"), ("ff", "\f"), ("nel", "\x85")):
        yield f"{name}.jsonl", LINES.replace("\n", mark).encode()
        yield f"{name}.csv", CSV.replace("\n", mark).encode()
        yield f"{name}.conll", CONLL.replace("\n", mark).encode()
    yield "separators.jsonl", LINES.replace(" ", "\u2028").encode()
    yield "inside-strings.jsonl", LINES.replace("lovely", "love\nly").encode()
    yield "blank-lines.jsonl", LINES.replace("\n", "\n\n \t\n").encode()
    yield "no-last-newline.jsonl", LINES.encode().rstrip()
    yield "mixed.csv", CSV.replace("\n", "\r\n", 5).replace("\n", "\r", 9).encode()


def _damage() -> Iterator[tuple[str, bytes]]:
    whole = LINES.encode()
    for place in (0, 1, len(whole) // 2, len(whole) - 1):
        yield f"nul-at-{place}.jsonl", whole[:place] + b"\0" + whole[place:]
        yield f"cut-at-{place}.jsonl", whole[:place]
    yield "zeros.jsonl", b"\0" * 4096
    yield "zeros-behind.jsonl", whole + b"\0" * 4096
    yield "ones.csv", b"\xff" * 4096
    yield "noise.jsonl", bytes((i * 7919 + 13) % 256 for i in range(4096))
    yield "noise.csv", bytes((i * 104729 + 7) % 256 for i in range(4096))
    yield "noise.txt", bytes((i * 1299709 + 3) % 256 for i in range(4096))
    yield "empty.jsonl", b""
    yield "empty.csv", b""
    yield "empty.txt", b""
    yield "spaces.jsonl", b" \t\n\r\n  "
    yield "one-newline.txt", b"\n"
    yield "twice-written.jsonl", whole[: len(whole) // 2] + whole
    yield "merge-conflict.jsonl", b"<<<<<<< HEAD\n" + whole + b"=======\n" + whole + b">>>>>>> other\n"
    yield "pointer.jsonl", b"version https://example.org/spec/v1\noid sha256:00\nsize 12345\n"
    yield "login-page.jsonl", b"<!DOCTYPE html><html><body>Please log in</body></html>\n"
    yield "backspace.jsonl", whole.replace(b"lovely", b"\x08\x1b[31m")


def _json() -> Iterator[tuple[str, bytes]]:
    yield "deep-lists.json", b"[" * 100_000
    yield "deep-lists-closed.json", b"[" * 50_000 + b"]" * 50_000
    yield "deep-objects.jsonl", b'{"text":' * 20_000 + b"1" + b"}" * 20_000 + b"\n"
    yield "deep-value.jsonl", (b'{"text": "a", "label": ' + b"[" * 5_000 + b"]" * 5_000 + b"}\n") * 3
    yield "nan.jsonl", b'{"text": NaN, "label": Infinity}\n' * 4
    yield "huge-number.jsonl", b'{"text": "a", "label": ' + b"9" * 10_000 + b"}\n"
    yield "exponent.jsonl", b'{"text": "a", "label": 1e999999}\n'
    yield "duplicate-keys.jsonl", b'{"text": "a", "text": "b", "label": "x", "label": "y"}\n' * 4
    yield "single-quotes.jsonl", b"{'text': 'a', 'label': 'x'}\n" * 4
    yield "comments.json", b'[{"text": "a", "label": "x"} // why\n]'
    yield "trailing-comma.json", b'[{"text": "a", "label": "x"},]'
    yield "no-commas.json", b'[{"text": "a", "label": "x"} {"text": "b", "label": "y"}]'
    yield "open-string.jsonl", b'{"text": "a\n{"text": "b", "label": "x"}\n'
    yield "raw-control.jsonl", b'{"text": "a\x01b", "label": "x"}\n' * 3
    yield "escape.jsonl", b'{"text": "\\x41", "label": "x"}\n'
    yield "half-escape.jsonl", b'{"text": "\\u12", "label": "x"}\n'
    yield "surrogate-escape.jsonl", b'{"text": "\\ud800", "label": "x"}\n' * 3
    yield "surrogate-label.jsonl", b'{"text": "a", "label": "\\udfff"}\n' * 3
    yield "surrogate-key.jsonl", b'{"text\\ud800": "a", "label": "x"}\n' * 3
    yield "nul-escape.jsonl", b'{"text": "a\\u0000b", "label": "x\\u0000"}\n' * 4
    for name, content in (
        ("null", b"null"), ("true", b"true"), ("number", b"12"), ("string", b'"a"'), ("list", b"[]"), ("object", b"{}"),
        ("lists", b"[[], [[]]]"), ("numbers", b"[1, 2, 3]"), ("nulls", b"[null, null]"), ("strings", b'["a", "b"]'),
        ("mixed", b'[{"text": "a", "label": "x"}, 3, null]'), ("data", b'{"data": 3}'), ("deep", b'{"a": {"b": []}}'),
    ):  # fmt: skip
        yield f"{name}.json", content
        yield f"{name}.jsonl", content + b"\n"


def _values() -> Iterator[tuple[str, bytes]]:
    def rows(*values: object) -> bytes:
        return "".join(json.dumps(value) + "\n" for value in values).encode()

    yield "no-label.jsonl", rows({"text": "a", "label": "x"}, {"text": "b"})
    yield "no-text.jsonl", rows({"label": "x"}, {"label": "y"})
    yield "null-text.jsonl", rows({"text": None, "label": "x"})
    yield "null-label.jsonl", rows({"text": "a", "label": None}, {"text": "b", "label": "x"})
    yield "empty-text.jsonl", rows({"text": "", "label": "x"}, {"text": "  ", "label": "y"})
    yield "empty-label.jsonl", rows({"text": "a", "label": ""}, {"text": "b", "label": " "})
    yield "label-kinds.jsonl", rows(*({"text": "a", "label": v} for v in (1, "1", 1.0, True, None, [], {}, ["x"])))
    yield "text-kinds.jsonl", rows(*({"text": v, "label": "x"} for v in (1, True, [], {}, ["x"], {"a": 1})))
    yield "label-lists.jsonl", rows({"text": "a", "labels": ["x", None, 3]}, {"text": "b", "labels": "x"})
    yield "same-thing.jsonl", rows(*[{"text": "a", "label": "x"}] * 50)
    yield "contradiction.jsonl", rows(*[{"text": "a", "label": v} for v in "xyzw"] * 9)
    yield "other-columns.jsonl", rows({"text": "a", "label": "x"}, {"foo": 1}, {"bar": [2]})
    yield "many-columns.jsonl", rows({f"column {n}": n for n in range(5000)})
    yield "one-label.jsonl", rows(*({"text": f"a {n}", "label": "x"} for n in range(30)))
    yield "every-label.jsonl", rows(*({"text": f"a {n}", "label": f"x {n}"} for n in range(300)))
    yield "long-label.jsonl", rows(*({"text": "a", "label": "x" * 100_000} for _ in range(3)))
    yield "right-to-left.jsonl", rows({"text": "\u202ea", "label": "\u200b"}, {"text": "\ufeff", "label": "\u2066"})
    yield "html.jsonl", rows({"text": "<script>alert(1)</script>", "label": "<img src=x onerror=alert(1)>"})
    yield "template.jsonl", rows({"text": "{{ 7 * 7 }} {% for x in y %}", "label": "<|im_end|>"})


def _tables() -> Iterator[tuple[str, bytes]]:
    for name, content in (
        ("open-quote", 'text,label\n"a,x\nb,y\n'), ("quote-inside", 'text,label\na "b" c,x\n"d"e,y\n'),
        ("ragged", "text,label\na\nb,x,y,z\n,,,,\n"), ("no-header", "a,x\nb,y\n"), ("header-only", "text,label\n"),
        ("same-names", "text,text,label,label\na,b,x,y\n"), ("no-names", ",,\na,b,c\n"), ("one-column", "text\na\nb\n"),
        ("semicolons", "text;label\na;x\nb;y\n"), ("pipes", "text|label\na|x\n"),
        ("tabs-in-csv", "text\tlabel\na\tx\n"),
        ("formula", "text,label\n=cmd|'/c calc'!A1,x\n@SUM(1),y\n"), ("sep-line", "sep=;\ntext;label\na;x\n"),
        ("quotes-only", '"""""""\n""\n'), ("commas-only", ",,,,\n,,,,\n"), ("space-names", " text , label \na,x\n"),
        ("long-quote", 'text,label\n"' + "a\n" * 9000 + '",x\n'), ("carriage", 'text,label\n"a\rb",x\n'),
    ):  # fmt: skip
        yield f"{name}.csv", content.encode()
    for name, content in (("open-quote", 'text\tlabel\n"a\tx\nb\ty\n'), ("ragged", "text\tlabel\na\n\t\t\t\nb\tx\n")):
        yield f"{name}.tsv", content.encode()


def _conll() -> Iterator[tuple[str, bytes]]:
    for name, content in (
        ("no-tags", "Ada\nlives\n\n" * 5), ("bad-tag", CONLL.replace("B-LOC", "LOC-B")), ("tag-alone", "B-PER\n\n" * 5),
        ("inside-first", "Ada I-PER\nlives I-LOC\n\n" * 5), ("columns-vary", "Ada B-PER\nlives x y O\n\n" * 5),
        ("empty-tag", "Ada \nlives\t\n\n" * 5), ("docstart", "-DOCSTART- -X- O O\n\n" * 5), ("comment", "# a\n" * 9),
        ("one-sentence", "Ada B-PER\n" * 20_000), ("long-word", "a" * 500_000 + " O\n"), ("spaces", " \n \n O\n"),
        ("nul", "Ada\0 B-PER\n\n" * 5), ("mixed", CONLL + LINES), ("bilou-broken", "Ada L-PER\nx U-\n\n" * 5),
    ):  # fmt: skip
        yield f"{name}.conll", content.encode()


def _spans() -> Iterator[tuple[str, bytes]]:
    for name, spans in (
        ("behind-the-end", [[0, 99, "PER"]]), ("negative", [[-3, 2, "PER"]]), ("backwards", [[3, 1, "PER"]]),
        ("empty", [[1, 1, "PER"]]), ("no-type", [[0, 3]]), ("number-type", [[0, 3, 5]]),
        ("floats", [[0.5, 2.5, "PER"]]),
        ("text", [["0", "3", "PER"]]), ("objects", [{"start": 0}]), ("overlap", [[0, 3, "A"], [1, 5, "B"]]),
        ("huge", [[0, 10**30, "PER"]]), ("null", None), ("word", "PER"), ("nested", [[[0, 3, "PER"]]]),
        ("surrogate", [[0, 3, "\ud800"]]), ("blank-type", [[0, 3, " "]]),
    ):  # fmt: skip
        yield f"{name}.jsonl", (json.dumps({"text": "Ada lives.", "entities": spans}) + "\n").encode() * 3
    yield "squad-broken.json", b'{"data": [{"paragraphs": [{"context": 3, "qas": null}]}]}'
    yield "squad-empty.json", b'{"data": [{"paragraphs": []}], "version": "2.0"}'
    answer = {"question": "q", "answers": [{"text": "zzz", "answer_start": 999}]}
    yield "squad-elsewhere.json", json.dumps({"data": [{"paragraphs": [{"context": "c", "qas": [answer]}]}]}).encode()


def _talks() -> Iterator[tuple[str, bytes]]:
    for name, messages in (
        ("no-role", [{"content": "a"}]), ("other-role", [{"role": "robot", "content": "a"}]), ("empty", []),
        ("no-reply", [{"role": "user", "content": "a"}]), ("null-content", [{"role": "assistant", "content": None}]),
        ("number", 3), ("text", "hello"), ("numbers", [1, 2]), ("content-list", [{"role": "user", "content": [1]}]),
        ("calls", [{"role": "assistant", "tool_calls": [{"function": 3}]}]),
        ("role-number", [{"role": 1, "content": "a"}]),
        ("nested", [[{"role": "user", "content": "a"}]]), ("surrogate", [{"role": "assistant", "content": "\udc00"}]),
    ):  # fmt: skip
        yield f"{name}.jsonl", (json.dumps({"messages": messages}) + "\n").encode() * 3
    yield "prompt-alone.jsonl", b'{"prompt": "a"}\n' * 3
    yield "tools-broken.jsonl", b'{"prompt": "a", "completion": "b", "tools": "[{"}\n' * 3
    yield "share-gpt-broken.jsonl", b'{"conversations": [{"from": "human"}, {"value": "x"}]}\n' * 3
    yield "options-broken.jsonl", b'{"question": "q", "options": [], "answer": 3}\n' * 3
    yield "answer-elsewhere.jsonl", b'{"question": "q", "options": ["a", "b"], "answer": "c"}\n' * 3


def _containers() -> Iterator[tuple[str, bytes]]:
    zeros = b"0" * BOMB_BYTES
    bombs = {"gzip": gzip.compress(zeros, 9), "zlib": zlib.compress(zeros, 9), "bzip2": bz2.compress(zeros)}
    bombs["xz"] = lzma.compress(zeros, preset=0)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../bomb.jsonl", zeros)
    bombs["zip"] = packed.getvalue()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        link = tarfile.TarInfo("../link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    bombs["tar"] = packed.getvalue()
    for name, content in bombs.items():
        for suffix in ("jsonl", "csv", "txt"):
            yield f"{name}.{suffix}", content
    yield "gzip.gz", gzip.compress(LINES.encode())
    yield "parquet.parquet", b"PAR1" + b"\x15\x04" * 500 + struct.pack("<I", 2**31 - 1) + b"PAR1"
    yield "parquet.jsonl", b"PAR1" + zlib.compress(zeros) + struct.pack("<I", 9) + b"PAR1"
    yield "pickle.jsonl", pickle.dumps({"text": ["a"] * 9})
    yield "pickle.json", b"cos\nsystem\n(S'true'\ntR."
    database = sqlite3.connect(":memory:")
    database.execute("create table t (text, label)")
    yield "sqlite.csv", database.serialize()
    yield "image.txt", b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + b"\0" * 200
    yield "pdf.txt", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<<>>\nendobj\n"
    yield "safetensors.jsonl", struct.pack("<Q", 2**62) + b"{}"
    yield "yaml.json", b"!!python/object/apply:os.system ['true']\n"
    yield "xml.json", b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>'


def _sizes() -> Iterator[tuple[str, bytes]]:
    yield "long-line.jsonl", json.dumps({"text": "a " * 4_000_000, "label": "x"}).encode() + b"\n"
    yield "long-line-open.jsonl", b'{"text": "' + b"a" * 8_000_000
    yield "long-line.csv", b"text,label\n" + b"a" * 8_000_000 + b",x\n"
    yield "long-line.txt", b"word " * 1_600_000
    yield "many-lines.jsonl", b"{}\n" * 200_000
    yield "many-bad-lines.jsonl", b"{\n" * 200_000
    yield "many-quotes.csv", b"text,label\n" + b'"' * 400_001
    yield "many-commas.csv", b"text,label\n" + b"," * 2_000_000
    yield "many-newlines.txt", b"\n" * 4_000_000
