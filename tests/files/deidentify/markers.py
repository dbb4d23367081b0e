"""Data sets with a marker in every place where identity can be, and the search for what is left of them.

Nothing here asks the code under test what it knows: the bytes are made by hand, and searched for as they are.
"""

import datetime as dt
from dataclasses import dataclass, field
from pathlib import Path
from struct import pack

from pydicom._dicom_dict import DicomDictionary
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

LONG = frozenset(["OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"])
SYNTAXES = {"explicit": ExplicitVRLittleEndian, "implicit": ImplicitVRLittleEndian, "big": ExplicitVRBigEndian}
MR = "1.2.840.10008.5.1.4.1.1.4"
STUDY, SERIES, INSTANCE = "1.2.3.4444.1", "1.2.3.4444.1.2", "1.2.3.4444.1.2.3"
# Sequences that no profile removes, one in the other.
KEPT = (0x52009229, 0x00209116, 0x00189114)
NUMBERS = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FD": "d", "FL": "f", "UV": "Q", "SV": "q"}


@dataclass
class Writer:
    """Elements in one encoding, and the markers that were put into them."""

    encoding: str = "explicit"
    markers: dict[str, bytes] = field(default_factory=dict)
    days: int = 0  # that were given out

    @property
    def order(self) -> str:
        return ">" if self.encoding == "big" else "<"

    def element(self, tag: int, vr: str, value: bytes, *, bare: bool = False) -> bytes:
        value += (b"\0" if vr in {"UI", "OB", "UN"} else b" ") * (len(value) % 2)
        head = pack(self.order + "HH", tag >> 16, tag & 0xFFFF)
        if self.encoding == "implicit" or bare:
            return head + pack(self.order + "I", len(value)) + value
        if vr in LONG:
            return head + vr.encode() + b"\0\0" + pack(self.order + "I", len(value)) + value
        return head + vr.encode() + pack(self.order + "H", len(value)) + value

    def item(self, *parts: bytes, undefined: bool = False) -> bytes:
        body = b"".join(parts)
        head = pack(self.order + "HH", 0xFFFE, 0xE000)
        if undefined:
            return head + b"\xff" * 4 + body + pack(self.order + "HHI", 0xFFFE, 0xE00D, 0)
        return head + pack(self.order + "I", len(body)) + body

    def sequence(self, tag: int, *items: bytes, undefined: bool = False) -> bytes:
        body = b"".join(items)
        if not undefined:
            return self.element(tag, "SQ", body)
        head = self.element(tag, "SQ", b"")[:-4] + b"\xff" * 4
        return head + body + pack(self.order + "HHI", 0xFFFE, 0xE0DD, 0)

    def marked(self, tag: int, place: str, vr: str = "", *, bare: bool = False) -> bytes:
        """An element with a marker; `vr` is the one that is written, where it is not the dictionary's."""
        known = vr_of(tag)
        if known == "SQ":
            inner = self.marked(INSIDE.get(tag, 0x00080104), f"{place} {tag:08X}", bare=bare or vr == "UN")
            body = pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner if bare or vr == "UN" else self.item(inner)
            return self.element(tag, vr or "SQ", body, bare=bare)
        self.days += known in {"DA", "DT"}
        value, marker = value_for(known, len(self.markers) + 1, self.order, self.days)
        if marker:
            self.markers[f"{place} {tag:08X}"] = marker
        return self.element(tag, vr or known, value, bare=bare)

    def file(
        self, *parts: bytes, preamble: bytes = bytes(128), meta: bytes = b"", pixels: bytes | None = None
    ) -> bytes:
        """A file of a small MR image around these parts, which are put into the order of their tags."""
        own = [
            self.element(0x00080016, "UI", MR.encode()),
            self.element(0x00080018, "UI", INSTANCE.encode()),
            self.element(0x0020000D, "UI", STUDY.encode()),
            self.element(0x0020000E, "UI", SERIES.encode()),
            self.element(0x7FE00010, "OW", b"\1\2" * 8) if pixels is None else pixels,
        ]
        given = [part for part in parts if part]
        tags = {self.tag_of(part) for part in given}
        data = b"".join(
            sorted(
                [*given, *(part for part in own if self.tag_of(part) not in tags)],
                key=lambda part: self.tag_of(bytes(part)),
            )
        )
        plain = Writer()
        group = plain.element(0x00020002, "UI", MR.encode()) + plain.element(0x00020003, "UI", INSTANCE.encode())
        group += plain.element(0x00020010, "UI", SYNTAXES[self.encoding].encode()) + meta
        return preamble + b"DICM" + plain.element(0x00020000, "UL", pack("<I", len(group))) + group + data

    def tag_of(self, part: bytes) -> int:
        order = "big" if self.encoding == "big" else "little"
        return int.from_bytes(part[:2], order) << 16 | int.from_bytes(part[2:4], order)  # type: ignore[arg-type]

    def left_in(self, *data: bytes) -> dict[str, bytes]:
        """The markers that are still somewhere in these bytes."""
        low = b"\n".join(data).lower()
        wide = low.replace(b"\0", b"")
        return {
            place: marker for place, marker in self.markers.items() if marker.lower() in low or marker.lower() in wide
        }


# What is put into the items of sequences, where it is not a code's meaning.
INSIDE = {0x0040A730: 0x0040A160, 0x00081140: 0x00081155, 0x00082112: 0x00081155}


def vr_of(tag: int) -> str:
    entry = DicomDictionary.get(tag)
    return str(entry[0]).split(" or ")[0] if entry else "LO"


def value_for(vr: str, number: int, order: str, day_number: int) -> tuple[bytes, bytes]:
    """A value that is valid for a VR and like no other, and how it is found; nothing where it cannot be marked."""
    if vr in NUMBERS:
        return pack(order + NUMBERS[vr], 7), b""
    # Further apart than any dates are moved.
    day = f"{dt.date.fromordinal(693_600 + 4_700 * day_number):%Y%m%d}".encode()
    texts = {
        "DA": day,
        "DT": day + b"101112.%06d" % number,
        "TM": b"101112.%06d" % number,
        "AS": b"987Y",
        "DS": b"7.%06d" % number,
        "IS": b"70%06d" % number,
        "UI": b"1.2.3.55555.%d.9" % number,
        "PN": b"Zaq%04dkey^Wsx" % number,
        "UR": b"http://zaq%04dkey/" % number,
        "AE": b"ZAQ%04dKEY" % number,
        "CS": b"ZAQ%04dKEY" % number,
        "AT": b"\1\2\3\4",
    }
    value = texts.get(vr, b"zaq%04dkey" % number)
    return value, b"" if vr == "AT" else value


def write(folder: Path, data: bytes) -> Path:
    path = folder / "source.dcm"
    path.write_bytes(data)
    return path
