"""Which instances may show who the patient is in their pixels, and are refused therefore (PS3.15 E.1.1, E.3.1)."""

from collections.abc import Mapping
from typing import Literal

from dcmtools.disk.dataset import Encoding
from dcmtools.disk.values import Element

MODALITY, IMAGE_TYPE, CONVERSION, BURNED_IN = 0x00080060, 0x00080008, 0x00080064, 0x00280301
PIXEL_DATA = 0x7FE00010
_BITS_OF_FLOATS: Mapping[int, int] = {0x7FE00008: 32, 0x7FE00009: 64}  # (Double) Float Pixel Data

_STORAGE = "1.2.840.10008.5.1.4.1.1."
# SOP Classes below _STORAGE whose images come from screens, cameras and printers; whole components are compared.
_RISKY: Mapping[str, str] = {
    "7": "a secondary capture",
    "6": "an ultrasound image",
    "6.1": "an ultrasound image",
    "6.2": "an ultrasound image",
    "6.3": "an ultrasound image",
    "3": "an ultrasound image",
    "3.1": "an ultrasound image",
    "77.1": "a photograph",
    "104": "an encapsulated document",
    "77.2": "a photograph",
    "12": "an angiography or fluoroscopy image",
}
_WHOLE = frozenset({"3", "6"})  # only they themselves: 3.1 and 6.1 are listed
_SCANNED = frozenset({"CT", "MR", "PT", "NM"})
_SCREEN_WORDS = ("SAVE", "SCREEN", "CAPTURE", "DOSE", "SNAPSHOT", "REPORT")


def risk(found: Mapping[int, Element], sop_class: str) -> str:  # noqa: PLR0911 - one line a reason
    """Why the pixels of an instance may show identity; nothing when they do not, or are said not to.

    What an instance says with Burned In Annotation counts before all else.
    """
    told = _text(found, BURNED_IN).upper()
    if told == "NO":
        return ""
    if told:  # YES, or none of the two values that the standard has
        return "it says that identity is burned into its pixels (Burned In Annotation is not NO)"
    if kind := _risky_class(sop_class):
        return f"it is {kind}, and does not say that nothing is burned in"
    if _text(found, CONVERSION):
        return "it was converted from film or a screen (Conversion Type), and does not say that nothing is burned in"
    types = [word.strip().upper() for word in _text(found, IMAGE_TYPE).split("\\")]
    if any(screen in word for word in types for screen in _SCREEN_WORDS):
        return "it is a screen save by its Image Type, and does not say that nothing is burned in"
    if types[:2] == ["DERIVED", "SECONDARY"] and _text(found, MODALITY) in _SCANNED and "OTHER" in types[2:]:
        return "it is a secondary image of its scanner's, and does not say that nothing is burned in"
    return ""


def _risky_class(sop_class: str) -> str:
    if not sop_class.startswith(_STORAGE):
        return ""
    parts = sop_class.removeprefix(_STORAGE).split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in _RISKY and not (name in _WHOLE and length < len(parts)):
            return _RISKY[name]
    return ""


def _text(found: Mapping[int, Element], tag: int) -> str:
    return found.get(tag, (b"", b""))[1].decode("latin_1").strip("\0 ")


def native_size(found: Mapping[int, Element], encoding: Encoding, tag: int = PIXEL_DATA) -> int:
    """The length of native pixels in this element by their description (PS3.5 8.1.1), 0 when it does not tell."""
    order: Literal["big", "little"] = "big" if encoding.big else "little"
    bits = _BITS_OF_FLOATS.get(tag, 1)
    for one in (0x00280002, 0x00280010, 0x00280011, *(() if tag in _BITS_OF_FLOATS else (0x00280100,))):
        raw = found.get(one, (b"", b""))[1]
        if len(raw) != 2:
            return 0
        bits *= int.from_bytes(raw, order)
    try:
        frames = int(_text(found, 0x00280008) or "1")
    except ValueError:
        return 0
    if _text(found, 0x00280004) == "YBR_FULL_422":
        bits = bits * 2 // 3
    return (bits * max(frames, 1) + 7) // 8
