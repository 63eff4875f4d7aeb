"""Bytes to text: data files are UTF-8, and what is not is refused with what it is and how to convert it.

Whatever is wrong with a file is told after a look at all of it, block by block, so that the message is the same for a
file that is held in memory and for one that is not.
"""

from __future__ import annotations

import codecs
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from heptune.core.errors import DataError

MAGIC = {
    b"\x1f\x8b": ("gzip", "unpack it first (gunzip)"),
    b"PK\x03\x04": ("a zip archive or an Office document", "unpack it, or export the sheet as CSV (UTF-8)"),
    b"PAR1": ("Parquet", "convert it, e.g. pandas.read_parquet(…).to_json(…, orient='records', lines=True)"),
    b"ARROW1": ("Arrow", "convert it to JSON lines first"),
    b"%PDF": ("a PDF", "extract its text first"),
}
# The longer marks first: UTF-32's little-endian mark begins with UTF-16's.
BYTE_ORDER_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
BLOCK = 1 << 18  # bytes that are read at a time
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")


def decode(data: bytes, path: Path) -> str:
    """The text of a UTF-8 file, with plain newlines and without a byte order mark."""
    if is_foreign(data) or b"\0" in data:
        raise damage([data], path)
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise damage([data], path) from None
    if not text.strip():
        what = "only white space" if data else "0 bytes"
        raise DataError(f"the file is empty ({what}); it must hold at least one record", path=path)
    return plain_newlines(text)


def plain_newlines(text: str) -> str:
    """The text with \\n where it has \\r\\n or \\r."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def is_foreign(head: bytes) -> bool:
    """Whether a file that begins like this is another kind of file, or text in another encoding."""
    return head.startswith((*BYTE_ORDER_MARKS, *MAGIC))


def blocks(path: Path) -> Iterator[bytes]:
    """The file's bytes, block by block."""
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                yield block
    except OSError as error:
        raise unreadable(error, path) from None


def unreadable(error: OSError, path: Path) -> DataError:
    """The error for a file that the system does not let one read."""
    return DataError(f"the file cannot be read: {error.strerror or error}; check name and permissions", path=path)


def damage(data: Iterable[bytes], path: Path) -> DataError:
    """What is wrong with a file that is not UTF-8 text, given as its bytes in blocks.

    In this order: the mark of another encoding, the mark of another kind of file, NUL bytes, bytes that are not UTF-8
    (in a file with control characters: binary).
    """
    evidence = _Evidence()
    for block in data:
        if evidence.size == 0:
            for mark, encoding in BYTE_ORDER_MARKS.items():
                if block.startswith(mark):
                    return _encoding(f"the file is {encoding} (by its byte order mark)", encoding, path)
            for magic, (what, way_out) in MAGIC.items():
                if block.startswith(magic):
                    return DataError(f"the file is {what}, not text; {way_out}", path=path)
        evidence.add(block)
    return evidence.verdict(path)


class _Evidence:
    """What was seen of a file so far. `invalid` is the first byte that is not UTF-8: its value, line and column."""

    def __init__(self) -> None:
        self.size = self.marked = 0
        self.zeros = [0, 0]  # at even and at odd positions
        self.nul: int | None = None
        self.control: tuple[int, int] | None = None
        self.invalid: tuple[int, int, int] | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._lines, self._line_start = 1, 0

    def add(self, block: bytes) -> None:
        """Takes in the next block."""
        at = self.size
        if at == 0 and block.startswith(codecs.BOM_UTF8):
            self.marked = len(codecs.BOM_UTF8)
        if b"\0" in block:
            self.nul = at + block.index(b"\0") if self.nul is None else self.nul
            for parity in (0, 1):
                self.zeros[parity] += block[(at + parity) % 2 :: 2].count(0)
        if self.control is None and (found := _CONTROL.search(block)):
            self.control = (found[0][0], at + found.start())
        if self.invalid is None:
            self._decode(block, final=False)
        self._lines += block.count(b"\n")
        last = block.rfind(b"\n")
        self._line_start = at + last + 1 if last >= 0 else self._line_start
        self.size = at + len(block)

    def _decode(self, block: bytes, final: bool) -> None:
        pending = self._decoder.getstate()[0]
        try:
            self._decoder.decode(block, final)
        except UnicodeDecodeError as error:
            start = error.start - len(pending)  # below 0 for a character that the block before began
            before = block[: max(start, 0)]
            line, newline = self._lines + before.count(b"\n"), before.rfind(b"\n")
            line_start = self.size + newline + 1 if newline >= 0 else max(self._line_start, self.marked)
            self.invalid = ((pending + block)[error.start], line, self.size + start - line_start + 1)

    def verdict(self, path: Path) -> DataError:
        """The error, when all of the file was seen."""
        if self.nul is not None:
            # ASCII text in UTF-16 has every second byte zero; which half tells the byte order.
            (even, odd), half = self.zeros, self.size / 2
            if max(even, odd) > 0.5 * half and min(even, odd) < 0.1 * half:
                guess = "UTF-16LE" if odd > even else "UTF-16BE"
                return _encoding(f"the file looks like {guess} (every second byte is zero)", guess, path)
            return _binary(f"NUL byte at position {self.nul}", path)
        if self.invalid is None:
            self._decode(b"", final=True)
        assert self.invalid is not None
        if self.control is not None:
            return _binary(f"control byte 0x{self.control[0]:02X} at position {self.control[1] - self.marked}", path)
        value, line, column = self.invalid
        found = f"byte 0x{value:02X} (byte {column} of the line) is not UTF-8"
        return _encoding(f"{found}; probably Windows-1252 or Latin-1", "WINDOWS-1252", path, line)


def _binary(found: str, path: Path) -> DataError:
    return DataError(f"the file is binary ({found}), not text; export it as UTF-8 JSON lines or CSV", path=path)


def _encoding(found: str, encoding: str, path: Path, line: int | None = None) -> DataError:
    target = path.with_name(f"{path.stem}.utf8{path.suffix}")
    command = f"iconv -f {encoding} -t utf-8 {shlex.quote(str(path))} > {shlex.quote(str(target))}"
    return DataError(f"{found}; data files must be UTF-8. Convert it: {command}", path=path, line=line)
