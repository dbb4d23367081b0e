"""The values of elements as records hold them (PS3.5 6.1 and 6.2; DESIGN §3).

They equal what pydicom makes of the same bytes. It is asked only where a value has code extensions (ISO 2022), and for
character sets with misspelt names, because importing it takes as long as reading some thousand headers.
"""

import math
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from typing import Any

from dcmtools.model.keys import BY_TAG, Key
from dcmtools.model.record import Record

Element = tuple[bytes, bytes]

# Defined terms of Specific Character Set (0008,0005) and pydicom's names for them (PS3.3 C.12.1.1.2). Without one it is
# ASCII by the standard; Latin-1 shows what many write all the same.
_LATIN_1 = "latin_1"
_CODECS = {
    "": "iso8859",
    "ISO_IR 6": "iso8859",
    "ISO_IR 13": "shift_jis",
    "ISO_IR 100": _LATIN_1,
    "ISO_IR 101": "iso8859_2",
    "ISO_IR 109": "iso8859_3",
    "ISO_IR 110": "iso8859_4",
    "ISO_IR 126": "iso_ir_126",
    "ISO_IR 127": "iso_ir_127",
    "ISO_IR 138": "iso_ir_138",
    "ISO_IR 144": "iso_ir_144",
    "ISO_IR 148": "iso_ir_148",
    "ISO_IR 166": "iso_ir_166",
}
# Those with code extensions, whose names begin with ISO 2022 IR (PS3.3 Table C.12-3, C.12-4), may stand beside others.
_TOGETHER = {
    **_CODECS,
    **{name.replace("ISO_IR", "ISO 2022 IR"): codec for name, codec in _CODECS.items()},
    "ISO 2022 IR 58": "iso_ir_58",
    "ISO 2022 IR 87": "iso2022_jp",
    "ISO 2022 IR 149": "euc_kr",
    "ISO 2022 IR 159": "iso2022_jp_2",
}
_ALONE = {**_TOGETHER, "ISO_IR 192": "utf_8", "GB18030": "gb18030", "GBK": "gbk"}
_TEXT = frozenset({"LO", "LT", "SH", "ST", "UC", "UT"})
_UNDIVIDED = frozenset({"LT", "ST", "UT"})
_BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d", "UV": "Q", "SV": "q"}
_OPAQUE = frozenset({"AT", "OB", "OD", "OF", "OL", "OV", "OW", "SQ", "UN"})
# Beyond this many values of one attribute they are all different, and remembering them is of no use.
_MEMORY = 1024
_UNSEEN = object()
# The largest integer that every reader of JSON keeps exactly.
_EXACT = 2**53


@lru_cache(maxsize=64)
def decoder_for(charset: bytes, *, big: bool = False) -> "Decoder":
    """The decoder for data sets with this value of Specific Character Set, in this byte order."""
    return Decoder(charset, big=big)


class Decoder:
    """Turns encoded values into those of records; it remembers them, because files of a series repeat most."""

    def __init__(self, charset: bytes = b"", *, big: bool = False) -> None:
        self._encodings = encodings(charset)
        self._order = ">" if big else "<"
        self._memory: dict[int, tuple[str, dict[Element, Any]]] = {tag: (BY_TAG[tag].keyword, {}) for tag in BY_TAG}

    def record(self, found: Mapping[int, Element]) -> Record:
        """Keyword -> value for elements (VR, bytes) under the tags of index keys."""
        record = {}
        memory = self._memory
        for tag, element in found.items():
            keyword, known = memory[tag]
            value = known.get(element, _UNSEEN)
            if value is _UNSEEN:
                if len(known) >= _MEMORY:
                    known.clear()
                value = known[element] = self.value(BY_TAG[tag], element)
            record[keyword] = value.copy() if type(value) is list else value
        return record

    def value(self, key: Key, element: Element) -> Any:
        """The value of an element under a key: an array where there may be many, None when it is empty."""
        vr, raw = element
        kind = key.vr if vr in {b"", b"UN"} else vr.decode()
        values = self._values(kind, raw)
        if values in ([], [""], [None]):
            return None
        if key.many:
            return values
        if len(values) == 1:
            return values[0]
        # More than one may be: what was written tells that, and a number could not.
        return raw.decode(_LATIN_1).strip(" \0") if kind in {"DS", "IS"} else "\\".join(map(str, values))

    def _values(self, vr: str, raw: bytes) -> list[Any]:
        if vr in _BINARY:
            return self._binary(_BINARY[vr], raw)
        if vr in _OPAQUE:
            return []
        if vr in {"DS", "IS"}:
            return self._numbers(vr, raw)
        if vr == "PN":
            return [name.rstrip("=") for name in self._text(raw.rstrip(b"\0 ")).split("\\")]
        if vr in _TEXT:
            text = self._text(raw)
            return [one.rstrip("\0 ") for one in ([text] if vr in _UNDIVIDED else text.split("\\"))]
        texts = raw.decode(_LATIN_1).rstrip(" \0").split("\\")
        return [uid.strip() for uid in texts] if vr == "UI" else texts

    def _numbers(self, vr: str, raw: bytes) -> list[Any]:
        texts = raw.decode(_LATIN_1).strip().rstrip(" \0").split("\\")
        read = _decimal if vr == "DS" else _integer
        try:
            return [read(text) if text.strip() else None for text in texts]
        except (ValueError, OverflowError):
            return texts

    def _binary(self, code: str, raw: bytes) -> list[Any]:
        size = struct.calcsize(f"={code}")
        if len(raw) % size:
            return []
        values = struct.unpack(f"{self._order}{len(raw) // size}{code}", raw)
        return [value if math.isfinite(value) else str(value) for value in values]

    def _text(self, raw: bytes) -> str:
        if b"\x1b" in raw:
            return _with_code_extensions(raw, self._encodings)
        try:
            return raw.decode(self._encodings[0])
        except UnicodeError:
            return raw.decode(self._encodings[0], "replace")


def _decimal(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _integer(text: str) -> int | float:
    try:
        number: int | float = int(text)
    except ValueError:
        number = _decimal(text)
    if abs(number) > _EXACT:
        raise ValueError(text)
    return int(number) if number == int(number) else number


def encodings(charset: bytes) -> tuple[str, ...]:
    """Python's names for the values of Specific Character Set."""
    names = charset.decode(_LATIN_1).rstrip(" \0").split("\\")
    known = _TOGETHER if len(names) > 1 else _ALONE
    if all(name in known for name in names):
        return tuple(known[name] for name in names)
    whole_pydicom()
    from pydicom.charset import convert_encodings

    with quiet():
        try:
            found = tuple(convert_encodings(names))
        except ValueError:  # a zero byte in a name
            return ("iso8859",)
    return found if all(map(_is_for_text, found)) else ("iso8859",)


def _is_for_text(codec: str) -> bool:
    """Whether a codec makes text of bytes: pydicom takes any that Python has, and some compress or turn letters."""
    try:
        b"A".decode(codec)  # of no bytes at all Python makes a text without asking the codec
    except UnicodeError:
        return True
    except LookupError:
        return False
    return True


def _with_code_extensions(raw: bytes, encodings: tuple[str, ...]) -> str:
    whole_pydicom()
    from pydicom.charset import decode_bytes
    from pydicom.valuerep import TEXT_VR_DELIMS

    with quiet():
        try:
            return decode_bytes(raw, list(encodings), TEXT_VR_DELIMS)
        except (LookupError, UnicodeError):
            return raw.decode(_LATIN_1)


def whole_pydicom() -> None:
    """Imports pydicom before a part of it: two threads that begin with two parts may meet each other's half-made."""
    import_module("pydicom")


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps pydicom from warning of what it was asked because it is odd."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
