"""Table E.1-1 of PS3.15 and the tables beside it, read from the text files that stand here for people, too."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from importlib.resources import files
from types import MappingProxyType

EDITION = "2024b"

_COLUMNS = ("UID", "DEV", "INS", "PAT", "FUL", "MOD", "DES", "STR", "GRA", "PRI")
_UID_PREFIX = "1.2.840.10008.5.1.4.1.1."
# Where a place or a SOP Class is not listed, the action that leaves most: the value goes in any case.
_STRONGEST = {"X/Z": "Z", "X/D": "D", "Z/D": "D", "X/Z/D": "D", "X/Z/U*": "U"}


@dataclass(frozen=True, slots=True)
class Row:
    """One row: the code of the Basic Profile, and those of the options that have one."""

    basic: str
    name: str
    options: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Place:
    """What a conditional code means at one place: for all SOP Classes that are known, and for those that differ."""

    action: str
    others: Mapping[str, str] = field(default_factory=dict)


@cache
def rows() -> Mapping[int, Row]:
    """Tag -> row, the four patterns left out."""
    return MappingProxyType({_tag(text): row for text, row in _parsed() if "x" not in text})


@cache
def patterns() -> Mapping[str, Row]:
    """The rows that stand for many tags: private attributes, curves, overlays."""
    return MappingProxyType({text: row for text, row in _parsed() if "x" in text})


@cache
def digest() -> str:
    """The SHA-256 of the table as it is used, for reports."""
    return sha256(_text("table_e1_1.txt").encode()).hexdigest()


def resolved(code: str, tag: int, parent: int, sop_class: str) -> str:
    """X, Z, D or U for a code of the Basic Profile, by the type that the IOD gives the attribute where it stands.

    `parent` is the tag of the innermost sequence, 0 at the top level.
    """
    if code not in _STRONGEST:
        return code
    known, places = _places()
    place = places.get((tag, parent))
    if place is None or sop_class not in known:
        return _STRONGEST[code]
    return place.others.get(sop_class, place.action)


@cache
def naming_uids() -> frozenset[int]:
    """The tags whose UIDs name a class, a syntax, a coding scheme or a context: they tell nothing of anybody."""
    return frozenset(_tag(line.split()[0]) for line in lines_of("naming_uids.txt"))


@cache
def safe_private() -> Mapping[str, Mapping[tuple[int, int], str]]:
    """Private creator -> (group, last byte of the element) -> VR of what may stay (PS3.15 Table E.3.10-1)."""
    found: dict[str, dict[tuple[int, int], str]] = {}
    for group, element, creator, letter, vr in safe_private_rows():
        if letter == "K":
            found.setdefault(creator, {})[group, element] = vr
    return MappingProxyType(found)


def safe_private_rows() -> Iterator[tuple[int, int, str, str, str]]:
    """Group, last byte of the element, private creator, what becomes of it, and VR of each row of the table."""
    for line in lines_of("safe_private.txt"):
        place, letter, vr, rest = line.split(maxsplit=3)
        yield int(place[1:5], 16), int(place[8:10], 16), rest.split('"')[1], letter, vr


@cache
def harmless_words() -> frozenset[str]:
    """The words that Clean Descriptors lets stand, in lower case."""
    return frozenset(word for line in lines_of("harmless_words.txt") for word in line.split())


def _parsed() -> Iterator[tuple[str, Row]]:
    for line in lines_of("table_e1_1.txt"):
        tag, basic, *codes = line.split(maxsplit=2 + len(_COLUMNS))
        name = codes.pop()
        yield tag, Row(basic, name, {column: code for column, code in zip(_COLUMNS, codes, strict=True) if code != "."})


@cache
def _places() -> tuple[frozenset[str], Mapping[tuple[int, int], Place]]:
    first, *lines = lines_of("iod_types.txt")
    places = {}
    for line in lines:
        tag, parent, action, *others = line.split()
        differing = {
            _uid(one): code for word in others for code, _, uids in [word.partition("=")] for one in uids.split(",")
        }
        places[int(tag, 16), 0 if parent == "-" else int(parent, 16)] = Place(action, differing)
    return frozenset(map(_uid, first.split()[1:])), places


def _uid(text: str) -> str:
    return text if text.startswith("1.2.840.") else _UID_PREFIX + text


def _tag(text: str) -> int:
    return int(text[1:5] + text[6:10], 16)


def lines_of(name: str) -> Iterator[str]:
    """The lines of a table that are no comments."""
    return (line for line in _text(name).splitlines() if line and not line.startswith("#"))


def _text(name: str) -> str:
    return (files(__package__) / name).read_text("utf-8")
