"""A record is one JSON object a line; this is its one codec (DESIGN §3).

Records are plain dicts and not Structs, because keys and types that a command does not know must pass through it
unharmed.
"""

import base64
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

Record = dict[str, Any]
Level = Literal["patient", "study", "series", "instance"]

LEVELS: tuple[Level, ...] = ("patient", "study", "series", "instance")
# The unique key of each level (PS3.4 C.6.1.1, C.6.2.1).
UNIQUE_KEY: dict[str, str] = {
    "patient": "PatientID",
    "study": "StudyInstanceUID",
    "series": "SeriesInstanceUID",
    "instance": "SOPInstanceUID",
}
# States of what has no file that a command could take up, or not a good one.
NOTHING_THERE: frozenset[str] = frozenset({"failed", "refused", "removed", "deleted", "skipped"})
# How the reason of what was not even tried begins, after the node had failed others for it.
NOT_TRIED = "not tried, for "


class _Codec(NamedTuple):
    encode: Callable[[Record], bytes]
    decode: Callable[[bytes | str], Record]
    errors: tuple[type[Exception], ...]


@cache
def _codec() -> _Codec:
    """Ready at the first record, since importing msgspec costs as much as a third of `--help`."""
    import msgspec

    decoder = msgspec.json.Decoder(dict[str, Any])
    return _Codec(
        msgspec.json.Encoder().encode, decoder.decode, (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
    )


def encode(record: Record) -> bytes:
    """One line of UTF-8 JSON, ended by a newline; control characters are escaped."""
    return _codec().encode(record) + b"\n"


def decode(line: bytes | str) -> Record:
    """The record on a line; ValueError when the line is not one JSON object."""
    codec = _codec()
    try:
        return codec.decode(line)
    except codec.errors as problem:
        raise ValueError(str(problem)) from None


def type_of(record: Record) -> str:
    """The record's type; a line without one is an instance."""
    value = record.get("type", "instance")
    return "instance" if value == "image" else str(value)


def event(name: str, **keys: Any) -> Record:
    """An event record."""
    return {"type": "event", "event": name, **keys}


def is_event(record: Record, name: str) -> bool:
    """Whether the record is the event of this name."""
    return record.get("type") == "event" and record.get("event") == name


def path_keys(path: str | os.PathLike[str]) -> Record:
    """The `path` of a record, and `path_b64` beside it when the name is not UTF-8."""
    text = os.fspath(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        raw = os.fsencode(text)
        return {"path": raw.decode("utf-8", "backslashreplace"), "path_b64": base64.b64encode(raw).decode()}
    return {"path": text}


def name_of(record: Record) -> str | None:
    """The path that a record names, as the system's functions take it, or None: making a Path takes far longer."""
    coded = record.get("path_b64")
    if isinstance(coded, str):
        try:
            return os.fsdecode(base64.b64decode(coded, validate=True))
        except ValueError:
            return None
    path = record.get("path")
    return path if isinstance(path, str) and path else None


def path_of(record: Record) -> Path | None:
    """The path that a record names, or None."""
    name = name_of(record)
    return None if name is None else Path(name)


def pick(record: Record, *keys: str) -> Record:
    """The part of a record under these keys, where it has them."""
    return {key: record[key] for key in keys if key in record}
