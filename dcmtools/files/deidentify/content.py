"""What becomes of the content items of a report under Clean Structured Content (PS3.15 E.3.4, Table E.3.4-1)."""

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from functools import cache
from types import MappingProxyType
from typing import NamedTuple

from dcmtools.disk.dataset import LONG_VRS
from dcmtools.files.deidentify.table import lines_of

# The sequences whose items are content items: of reports, of acquisitions, of the preparation of specimens.
CONTENT = frozenset({0x0040A730, 0x00400555, 0x00400612})
# The elements that hold the value of an item which a row is about.
VALUES = frozenset({0x0040A120, 0x0040A121, 0x0040A122, 0x0040A123, 0x0040A124, 0x0040A160})
_COLUMNS = ("UID", "DEV", "INS", "PAT", "FUL", "MOD", "DES")
_VALUE_TYPE, _CONCEPT, _CODE, _SCHEME = 0x0040A040, 0x0040A043, 0x00080100, 0x00080102
_ITEM, _UNDEFINED = 0xFFFEE000, 0xFFFFFFFF

Head = Callable[[int], tuple[int, int, int, bytes]]


class Item(NamedTuple):
    """A row: the code of the Basic Profile, and those of the options that have one."""

    basic: str
    name: str
    options: Mapping[str, str]


@cache
def items() -> Mapping[tuple[str, str, str], Item]:
    """Code, coding scheme and value type -> row."""
    found = {}
    for line in lines_of("table_e3_4_1.txt"):
        code, scheme, value_type, basic, *codes, name = line.split(maxsplit=4 + len(_COLUMNS))
        options = {column: one for column, one in zip(_COLUMNS, codes, strict=True) if one != "."}
        found[code, scheme, value_type] = Item(basic, name, MappingProxyType(options))
    return MappingProxyType(found)


def action(concept: tuple[str, str, str], asked: AbstractSet[str]) -> str:
    """X, D, K or C for a content item, or nothing for one that is not listed; C goes before K as in Table E.1-1."""
    item = items().get(concept)
    if item is None:
        return ""
    codes = {code for column, code in item.options.items() if column in asked}
    return next((code for code in "CK" if code in codes), "D" if item.basic == "X/D" else item.basic)


def concept_of(head: Head, data: bytes, start: int, end: int) -> tuple[str, str, str]:
    """The code and the coding scheme of an item's concept name, and its value type, as far as they can be told.

    `head` gives the tag of the element at a position, where its value begins and how long it is.
    """
    value_type = ""
    for tag, at, length in _elements(head, start, end):
        if tag == _VALUE_TYPE:
            value_type = _text(data, at, length)
        elif tag == _CONCEPT:
            # The code stands in the first item, whatever its length is said to be.
            limit = end if length == _UNDEFINED else at + length
            first, inner, size, _ = head(at)
            if first != _ITEM:
                break
            stop = limit if size == _UNDEFINED else min(inner + size, limit)
            code = {one: _text(data, place, long) for one, place, long in _elements(head, inner, stop)}
            return code.get(_CODE, ""), code.get(_SCHEME, "").split(" ")[0], value_type
    return "", "", value_type


def _elements(head: Head, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Tag, place and length of the elements up to the concept name, or to one that cannot be passed over."""
    while position + 8 <= end:
        tag, at, length, vr = head(position)
        if tag >> 16 == _ITEM >> 16 or tag > _CONCEPT or (length != _UNDEFINED and at + length > end):
            return
        yield tag, at, length
        if length == _UNDEFINED and (vr in LONG_VRS or not vr):
            return
        position = at + length


def _text(data: bytes, at: int, length: int) -> str:
    return data[at : at + length].decode("latin_1").strip("\0 ")
