"""The identifier of a query or retrieval: a small flat data set, from keywords to bytes and back (PS3.4 C.4.1.1.3).

Attributes that the tables of the house do not know are passed over.
"""

import re
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from dcmtools.disk.dataset import encoding_of, walk
from dcmtools.disk.values import decoder_for, encodings, whole_pydicom
from dcmtools.model.keys import QUERY_BY_KEYWORD, QUERY_BY_TAG, Key
from dcmtools.model.record import Level, Record

LEVEL_WORD: Mapping[str, str] = MappingProxyType(
    {"patient": "PATIENT", "study": "STUDY", "series": "SERIES", "instance": "IMAGE"}
)
LEVEL_OF: Mapping[str, Level] = MappingProxyType(
    {"PATIENT": "patient", "STUDY": "study", "SERIES": "series", "IMAGE": "instance"}
)
_FAILED_LIST = Key("FailedSOPInstanceUIDList", 0x00080058, "UI", "instance", many=True)
_BY_KEYWORD = MappingProxyType({**QUERY_BY_KEYWORD, _FAILED_LIST.keyword: _FAILED_LIST})
_BY_TAG = MappingProxyType({**QUERY_BY_TAG, _FAILED_LIST.tag: _FAILED_LIST})
_CHARSET = _BY_KEYWORD["SpecificCharacterSet"]
_TEXT = frozenset({"SH", "LO", "PN"})
_NUMBERS = frozenset({"DS", "IS"})
_ASCII = frozenset({"", "ISO_IR 6"})
# A decimal or integer string has no more characters (PS3.5 6.2).
_LONGEST_NUMBER = {"DS": 16, "IS": 12}
_LONGEST_SHORT = 0xFFFE


def encode(keys: Mapping[str, Any], syntax: str, charset: str) -> bytes:
    """The bytes of an identifier; text in the character set named, which the identifier then names too.

    None and "" are universal keys or values that are not known; lists become several values. What the character set
    or the value representation cannot hold becomes a wildcard, so that a query finds too much rather than nothing.
    KeyError for an unknown keyword.
    """
    explicit = encoding_of(syntax).explicit
    values = {_BY_KEYWORD[keyword]: value for keyword, value in keys.items() if keyword != _CHARSET.keyword}
    if charset:
        values[_CHARSET] = charset
    rows = sorted(values.items(), key=lambda row: row[0].tag)
    return b"".join(_element(key, _raw(key.vr, value, charset), explicit=explicit) for key, value in rows)


def decode(data: bytes, syntax: str) -> Record:
    """The identifier in these bytes by keyword; BadData when they are no data set."""
    found = walk(data, 0, syntax, _BY_TAG)
    decoder = decoder_for(found.get(_CHARSET.tag, (b"", b""))[1], big=encoding_of(syntax).big)
    return {_BY_TAG[tag].keyword: decoder.value(_BY_TAG[tag], element) for tag, element in found.items()}


def encode_text(text: str, charset: str, *, name: bool = False) -> bytes:
    """Text in a character set (PS3.3 C.12.1.1.2); each run of characters that it does not have becomes one `*`.

    `name` is for person names, where code extensions begin anew in each component (PS3.5 6.1.2.5.3).
    """
    codecs = _codecs(charset)
    wild = re.sub(r"\0+", "*", "".join(char if _has(codecs, char) else "\0" for char in text))
    if len(codecs) > 1 and not wild.isascii():
        return _with_code_extensions(wild, codecs, name=name)
    return wild.encode(codecs[0])


def can_write(text: str, charset: str) -> bool:
    """Whether a character set has all the characters of a text."""
    codecs = _codecs(charset)
    return text.isascii() or all(_has(codecs, char) for char in text)


def _codecs(charset: str) -> tuple[str, ...]:
    return ("ascii",) if charset in _ASCII else encodings(charset.encode("ascii", "replace"))


def _has(codecs: tuple[str, ...], char: str) -> bool:
    if char.isascii():
        return True
    for codec in codecs:
        try:
            char.encode(codec)
        except UnicodeEncodeError:
            continue
        return True
    return False


def _with_code_extensions(text: str, codecs: tuple[str, ...], *, name: bool) -> bytes:
    whole_pydicom()
    from pydicom.charset import encode_string
    from pydicom.valuerep import PersonName

    if name:
        return b"\\".join(PersonName(one).encode(codecs) for one in text.split("\\"))
    return b"\\".join(encode_string(one, list(codecs)) for one in text.split("\\"))


def _raw(vr: str, value: Any, charset: str) -> bytes:
    values = value if isinstance(value, list) else [] if value is None else [value]
    if vr == "US":
        numbers = [str(one) for one in values]
        return b"".join(struct.pack("<H", int(one)) for one in numbers) if all(map(_is_short, numbers)) else b""
    text = "\\".join(_number(vr, one) if vr in _NUMBERS else str(one) for one in values)
    raw = encode_text(text, charset, name=vr == "PN") if vr in _TEXT else text.encode("ascii", "replace")
    return raw + (b"\0" if vr == "UI" else b" ") * (len(raw) % 2)


def _is_short(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) <= 0xFFFF


def _number(vr: str, value: Any) -> str:
    """A number as a string that is short enough, with as many digits as fit."""
    text, digits = "" if value is None else str(value), 17
    while isinstance(value, float) and len(text) > _LONGEST_NUMBER[vr] and digits:
        digits -= 1
        text = f"{value:.{digits}g}"
    return text


def _element(key: Key, raw: bytes, *, explicit: bool) -> bytes:
    group, element = key.tag >> 16, key.tag & 0xFFFF
    if not explicit:
        return struct.pack("<HHI", group, element, len(raw)) + raw
    if len(raw) > _LONGEST_SHORT:  # a thousand UIDs: too long for the VR's own length (PS3.5 6.2.2)
        return struct.pack("<HH2sHI", group, element, b"UN", 0, len(raw)) + raw
    return struct.pack("<HH2sH", group, element, key.vr.encode(), len(raw)) + raw
