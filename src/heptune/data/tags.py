"""Tag schemes: how the tags of a sentence's tokens say where its entities are.

O is outside of any entity. Every other tag is a letter, a hyphen and the entity's type, e.g. B-PER; where no tag of a
file has a type (B, I, O), the type is 'entity'. The schemes (Ramshaw and Marcus 1995, Tjong Kim Sang and Veenstra
1999, Ratinov and Roth 2009):

- IOB2, also called BIO: B begins an entity, I goes on with it
- IOB1: I begins an entity and goes on with it; B begins one that directly follows another of its type
- IOBES, also called BIOES: B begins, I goes on, E ends, S is an entity of one token
- BILOU: the same with L (last) for E and U (unit) for S

A file has one scheme: the first that all its tags are valid in, else the one with fewest faults.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from heptune.core.errors import DataError
from heptune.data.values import shown

OUTSIDE = "O"
UNTYPED = "entity"
TAG = re.compile(r"([BIESLU])-(.*\S.*)", re.DOTALL)
BARE_TAG = re.compile(r"[BIESLU]")


class TagError(DataError):
    """A sentence whose tags are invalid; `token` is where, counted from 0."""

    def __init__(self, problem: str, token: int) -> None:
        super().__init__(problem)
        self.token = token


@dataclass(frozen=True)
class Scheme:
    """How entities are written: the letters that begin one, those that go on with one, and those that end one.

    `closing` is empty where nothing marks the end. In a `loose` scheme a letter of `inside` may begin an entity, and
    one of `begin` only stands after an entity of its type. The tags of an `untyped` file have no type.
    """

    name: str
    begin: str
    inside: str
    closing: str = ""
    loose: bool = False
    untyped: bool = False

    @property
    def letters(self) -> str:
        """The letters of its tags, O left out."""
        return "".join(sorted({*self.begin, *self.inside}))


SCHEMES = (
    Scheme("IOB2", begin="B", inside="I"),
    Scheme("IOBES", begin="BS", inside="IE", closing="ES"),
    Scheme("BILOU", begin="BU", inside="IL", closing="LU"),
    Scheme("IOB1", begin="B", inside="I", loose=True),
)


@dataclass(frozen=True)
class Chunk:
    """An entity: its tokens [first, end), counted from 0, and its type."""

    first: int
    end: int
    type: str


def is_tag(text: str) -> bool:
    """Whether this is a tag of any scheme, with a type where it needs one."""
    return text == OUTSIDE or TAG.fullmatch(text) is not None


def scheme_of(sentences: Iterable[Sequence[str]]) -> Scheme:
    """The scheme of a file, from the tags of all its sentences."""
    different = {tuple(tags) for tags in sentences}
    untyped = not any(TAG.fullmatch(tag) for tags in different for tag in tags)
    best, fewest = SCHEMES[0], -1
    for scheme in SCHEMES:
        faults = sum(len(_walk(tags, replace(scheme, untyped=untyped))[1]) for tags in different)
        if faults < fewest or fewest < 0:
            best, fewest = scheme, faults
        if not faults:
            break
    return replace(best, untyped=untyped)


def chunks(tags: Sequence[str], scheme: Scheme) -> list[Chunk]:
    """The entities of one sentence. Raises `TagError` for the first tag that the scheme does not allow."""
    found, faults = _walk(tags, scheme)
    if faults:
        raise faults[0]
    return found


def _walk(tags: Sequence[str], scheme: Scheme) -> tuple[list[Chunk], list[TagError]]:
    found: list[Chunk] = []
    faults: list[TagError] = []
    first: int | None = None  # where the entity that is not over began
    current = ""
    for token, tag in enumerate([*tags, OUTSIDE]):
        letter, kind = _parsed(tag, scheme)
        if not letter:
            faults.append(_fault(tag, token, scheme, _rule(scheme)))
        goes_on = first is not None and kind == current and letter in scheme.inside
        if first is not None and not goes_on:
            found.append(Chunk(first, token, current))
            if scheme.closing:
                ends = " or ".join(c for c in scheme.closing if c in scheme.inside)
                faults.append(_fault(tags[token - 1], token - 1, scheme, f"its entity needs an {ends} tag at its end"))
            first = None
        if letter in ("", OUTSIDE):
            continue
        if not goes_on:
            follows = bool(found) and found[-1].end == token and found[-1].type == kind
            if letter not in scheme.begin and not scheme.loose:
                faults.append(_fault(tag, token, scheme, "it goes on with an entity, but none of its type is open"))
            elif letter in scheme.begin and scheme.loose and not follows:
                faults.append(_fault(tag, token, scheme, "there B only stands directly after an entity of its type"))
            first, current = token, kind
        if letter in scheme.closing and first is not None:
            found.append(Chunk(first, token + 1, current))
            first = None
    return found, faults


def _parsed(tag: str, scheme: Scheme) -> tuple[str, str]:
    """The letter and the type of a tag; no letter when it is no tag of the scheme."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    if scheme.untyped:
        return (tag, UNTYPED) if len(tag) == 1 and tag in scheme.letters else ("", "")
    parts = TAG.fullmatch(tag)
    return (parts[1], parts[2]) if parts and parts[1] in scheme.letters else ("", "")


def _rule(scheme: Scheme) -> str:
    return f"a tag is O, or one of {', '.join(scheme.letters)}" + ("" if scheme.untyped else " with a type: B-PER")


def _fault(tag: str, token: int, scheme: Scheme, why: str) -> TagError:
    return TagError(f"the tag {shown(tag)} of token {token + 1} is invalid in {scheme.name}: {why}; correct it", token)
