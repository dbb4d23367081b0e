"""One line of an index file: what it says, and which of its values whole series share (DESIGN §4)."""

import base64
import os
from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET

from dcmtools.model.keys import KEYS
from dcmtools.model.record import Record, decode, encode

# What a line is; an instance is one of the first four, and the lower one is the better answer for its UID.
IN_ARCHIVE, ELSEWHERE, ALIAS, CONFLICT, TOMBSTONE, EVENT, OTHER = range(7)

_SHARED = tuple(key.keyword for key in KEYS if key.level != "instance")
_OWN = ("SOPInstanceUID", "path", "path_b64", "type", "state", "duplicate_of")
_STRINGS = frozenset({*_OWN, "StudyInstanceUID", "SeriesInstanceUID"})

_EXABYTE = 1 << 60

Shared = tuple[Any, ...] | bytes


class Line(NamedTuple):
    """What must be known of a line to know what it is, and to which series it belongs."""

    kind: int
    uid: str = ""
    path: str = ""
    size: int = 0
    # The values that instances of a series have in common, as something that can be compared; see `shared_record`.
    shared: Shared = b""


# The text of an attribute, nothing (null), or no such key. Numbers and lists where text should be: see _unusual.
_Text = str | None | msgspec.UnsetType
_FIELDS: list[tuple[str, Any, Any]] = [
    *(
        (key.keyword, int | None | msgspec.UnsetType if key.vr == "IS" else _Text, UNSET)
        for key in KEYS
        if key.level != "instance"
    ),
    *((name, str | None, None) for name in _OWN if name != "type"),
    ("type", str, "instance"),
    ("size", Any, 0),
]
_Usual = msgspec.defstruct("_Usual", _FIELDS, gc=False)
_decode_usual = msgspec.json.Decoder(_Usual).decode
_shared_of = attrgetter(*_SHARED)


def parse(raw: bytes, key_of: Callable[[str], str]) -> Line:
    """What a line says, its path as `key_of` names it; ValueError when it is no record, or an instance without place.

    Reading only what is wanted takes half as long as reading all, and this is done a million times.
    """
    try:
        line: Any = _decode_usual(raw)
    except msgspec.ValidationError:
        line = _unusual(raw)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not raw.isascii():
        raw.decode()  # what is not wanted was passed over without a look
    kind = _kind(line)
    if kind > TOMBSTONE:
        return Line(kind)
    path = line.path or "" if line.path_b64 is None else os.fsdecode(base64.b64decode(line.path_b64))
    if not line.SOPInstanceUID or not path:
        raise ValueError("an instance has neither UID nor path")
    path = key_of(path)
    if kind == TOMBSTONE:
        return Line(kind, line.SOPInstanceUID, path)
    if kind == IN_ARCHIVE and path[0] == "/":
        kind = ELSEWHERE
    shared = line.shared if type(line) is _Unusual else _shared_of(line)
    size = line.size if type(line.size) is int and 0 <= line.size < _EXABYTE else 0
    return Line(kind, line.SOPInstanceUID, path, size, shared)


def shared_record(shared: Shared) -> Record:
    """The values that instances have in common as a record, in the order of the index keys."""
    if isinstance(shared, bytes):
        return decode(shared)
    return {key: value for key, value in zip(_SHARED, shared, strict=True) if value is not UNSET}


def _kind(line: Any) -> int:
    if line.type == "instance":
        if line.state == "conflict":
            return CONFLICT
        return IN_ARCHIVE if line.duplicate_of is None else ALIAS
    return {"tombstone": TOMBSTONE, "event": EVENT}.get(line.type, OTHER)


class _Unusual(NamedTuple):
    """A line with values of other types than ours have."""

    SOPInstanceUID: str | None
    path: str | None
    path_b64: str | None
    type: str
    state: str | None
    duplicate_of: str | None
    size: Any
    shared: bytes


def _unusual(raw: bytes) -> _Unusual:
    record = decode(raw)
    for key in _STRINGS:
        if not isinstance(record.get(key), str | None):
            raise ValueError(f"its {key} is no text")  # noqa: TRY004  # the line is bad, and not our call
    own: dict[str, Any] = {key: record.get(key) for key in _OWN if key != "type"}
    shared = encode({key: record[key] for key in _SHARED if key in record})
    return _Unusual(**own, type=record.get("type", "instance"), size=record.get("size", 0), shared=shared)
