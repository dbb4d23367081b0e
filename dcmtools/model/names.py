"""Names that are safe as one component of a path, whatever a UID, AE title, patient or physician says."""

import hashlib
import re
import unicodedata

MAX_BYTES = 120
UID = re.compile(r"(?=[0-9.]{1,64}\Z)[0-9]+(\.[0-9]+)*\Z")
# Forbidden on some file system that a shared volume may be mounted on, or with a meaning in DICOM person names.
_FORBIDDEN = re.compile(r'[<>:"/\\|?*^=\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]+')
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?\Z")


def is_uid(text: object) -> bool:
    """Whether the text is made like a UID: digits and dots, at most 64 characters (PS3.5 9.1).

    Leading zeros in a component are let pass: they are wrong and common, and harm nothing.
    """
    return isinstance(text, str) and UID.match(text) is not None


def safe_name(text: str, *, default: str = "_", ascii_only: bool = False, max_bytes: int = MAX_BYTES) -> str:
    """One path component that says the same as `text` as far as that is safe.

    NFC; forbidden and control characters become `_`; no leading or trailing dot or space; names that Windows
    reserves get a `_`; what is longer than `max_bytes` is cut and ends with a hash of the whole, so that two long
    names stay two.
    """
    name = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode())
    name = _ascii(name) if ascii_only else name
    name = " ".join(_FORBIDDEN.sub("_", name).split()).strip(". ")
    if _RESERVED.match(name):
        stem, dot, rest = name.partition(".")
        name = f"{stem}_{dot}{rest}"
    return _shortened(name, max_bytes) or default


def short_hash(text: str, digits: int = 8) -> str:
    """The first hex digits of the SHA-256 of a text: short, and the same on every machine."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:digits]


def _ascii(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def _shortened(name: str, max_bytes: int) -> str:
    raw = name.encode()
    if len(raw) <= max_bytes:
        return name
    head = raw[: max_bytes - 9].decode("utf-8", "ignore").rstrip(". ")
    return f"{head}~{short_hash(name)}"
