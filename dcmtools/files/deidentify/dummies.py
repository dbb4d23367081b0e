"""Values that stand where others stood: dummies of each VR, moved dates, texts without what could name somebody."""

import re
from datetime import date, timedelta

from dcmtools.files.deidentify.table import harmless_words

REMOVED = b"REMOVED"
_DUMMIES: dict[str, bytes] = {
    "AE": b"ANON",
    "AS": b"000Y",
    "CS": b"ANON",
    "DA": b"19000101",
    "DS": b"0",
    "DT": b"19000101000000",
    "IS": b"0",
    "PN": b"ANON",
    "TM": b"000000",
    "UR": b"urn:removed",
    "AT": bytes(4),
    "FD": bytes(8),
    "FL": bytes(4),
    "OB": bytes(2),
    "OD": bytes(8),
    "OF": bytes(4),
    "OL": bytes(4),
    "OV": bytes(8),
    "OW": bytes(2),
    "SL": bytes(4),
    "SS": bytes(2),
    "SV": bytes(8),
    "UL": bytes(4),
    "UN": bytes(2),
    "US": bytes(2),
    "UV": bytes(8),
    "UI": b"2.25.0",
    "SQ": b"",
}
_DATE = re.compile(rb"(\d{4})(?:(\d{2})(\d{2})|\.(\d{2})\.(\d{2}))\Z")
_DATE_TIME = re.compile(rb"(\d{8})((?:\d{2}){0,3}(?:\.\d{1,6})?(?:[+-]\d{4})?)\Z")
_SIZES = {"AT": 4, "FD": 8, "FL": 4, "SL": 4, "SS": 2, "UL": 4, "US": 2}
_FORMS = {
    "CS": re.compile(rb"[A-Z0-9 _\\]*\0?"),
    "DA": re.compile(rb"[0-9.\- \\]*\0?"),
    "DT": re.compile(rb"[0-9.+\- \\]*\0?"),
    "TM": re.compile(rb"[0-9.:\- \\]*\0?"),
    "UI": re.compile(rb"[0-9. \0\\]*"),
    "DS": re.compile(rb"[0-9.eE+\- \\]*\0?"),
    "IS": re.compile(rb"[0-9+\- \\]*\0?"),
    "LO": re.compile(rb"(?:[^\\\0]{0,64}(?:\\|\0?\Z))*", re.DOTALL),
    "SH": re.compile(rb"(?:[^\\\0]{0,16}(?:\\|\0?\Z))*", re.DOTALL),
}
_WORD = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*")
# Numbers of one to three digits, with a unit or a decimal point: a thickness, an echo time; no date, no identifier.
_MEASURE = re.compile(r"\d{1,3}(?:mm|cm|ms|s|t|hz|kv|ma|ml|deg|d|x|ch)?\Z")


def dummy(vr: str) -> bytes:
    """A valid value that says nothing, for the places where there must be one (PS3.15 E.1, code D)."""
    return _DUMMIES.get(vr, REMOVED)


def shifted(vr: str, value: bytes, days: int) -> bytes | None:
    """The dates of a DA or DT value moved by whole days, times as they are; None when one of them is no full date."""
    texts = value.strip(b"\0 ").split(b"\\")
    moved = [_moved(vr, text.strip(), days) for text in texts]
    return None if None in moved else b"\\".join(text for text in moved if text is not None)


def has_form(vr: str, value: bytes) -> bool:
    """Whether a value is one of this VR, as far as bytes can tell (PS3.5 6.2); of no VR is none."""
    if size := _SIZES.get(vr):
        return len(value) % size == 0
    form = _FORMS.get(vr)
    return form is not None and form.fullmatch(value) is not None


def cleaned(text: str, identity: frozenset[str]) -> str:
    """The harmless words and small numbers of a text, without those that are part of the patient's identity."""
    known = harmless_words()
    words = (word for word in _WORD.findall(text.replace("_", " ")))
    kept = [word for word in words if _is_harmless(word.lower(), known) and word.casefold() not in identity]
    return " ".join(kept)


def _is_harmless(word: str, known: frozenset[str]) -> bool:
    return word in known or _MEASURE.match(word) is not None


def _moved(vr: str, text: bytes, days: int) -> bytes | None:
    if not text:
        return b""
    if vr == "DA" and (match := _DATE.match(text)):
        year, *parts = match.groups()
        digits = b"".join([year, *(part for part in parts if part)])
        rest = b""
    elif vr == "DT" and (match := _DATE_TIME.match(text)):
        digits, rest = match.groups()
    else:
        return None
    try:
        then = date(int(digits[:4]), int(digits[4:6]), int(digits[6:8])) + timedelta(days)
    except (ValueError, OverflowError):
        return None
    return f"{then:%Y%m%d}".zfill(8).encode() + rest
