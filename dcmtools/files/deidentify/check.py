"""The result, read again by another parser and held against the table (PS3.15 E.1.1): what must be gone is gone."""

import re
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from io import BytesIO
from struct import pack

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset

from dcmtools.disk.dataset import LONG_VRS, Encoding
from dcmtools.disk.part10 import PREAMBLE
from dcmtools.disk.values import Decoder, decoder_for, quiet
from dcmtools.files.deidentify.identity import kind_of
from dcmtools.files.deidentify.profile import SAID, Profile, vr_of
from dcmtools.model.errors import Refused

_GRAPHICS, _UI = frozenset({0x50, 0x60}), frozenset({"UI", None})
_CONTENT = 0x0040A730
_DIGITS = re.compile(rb"[0-9.+\\\- \0]*")
_META = frozenset({0x00020000, 0x00020001, 0x00020002, 0x00020003, 0x00020010, 0x00020012, 0x00020013})


def check_meta(meta: bytes) -> None:
    """Raises Refused when the preamble or group 0002 hold anything but what they must (PS3.15 E.1.1 step 7)."""
    data_set = read_dataset(BytesIO(meta[PREAMBLE + 4 :]), is_implicit_VR=False, is_little_endian=True)
    if any(meta[:PREAMBLE]) or not _META.issuperset(map(int, data_set.keys())):
        raise _residue("the file meta information")


def check_data_set(data: bytes, encoding: Encoding, profile: Profile, uids: AbstractSet[bytes]) -> None:
    """Raises Refused when a data set without its pixels is not what the profile wants, or cannot be read.

    `uids` are those of the source that had to be replaced.
    """
    try:
        with quiet():
            data_set = read_dataset(BytesIO(data), not encoding.explicit, not encoding.big)
            missing = [tag for tag in SAID if tag not in data_set]
            found = next(_violations(data_set, profile, uids), 0)
    except Exception as problem:
        raise Refused(f"pydicom cannot read the result ({type(problem).__name__})", cause="self-check") from problem
    if missing:
        raise _residue("what says how it was de-identified")
    if found:
        raise _residue(f"({found >> 16:04X},{found & 0xFFFF:04X})")


def _violations(data_set: Dataset, profile: Profile, uids: AbstractSet[bytes]) -> Iterator[int]:
    """The tags of elements that should not be there, at any depth.

    Elements are looked at as they were read: to convert them all takes ten times as long.
    """
    must_go, own = profile.must_go, profile.own
    for key, element in data_set._dict.items():  # noqa: SLF001
        tag, vr = int(key), element.VR
        group = tag >> 16
        if tag not in own and (
            tag in must_go
            or group < 8
            or (group & 1 and not profile.keeps_private(group))
            or (group >> 8 in _GRAPHICS and not profile.clean_graphics)
            or (vr in _UI and uids and _has_old_uid(element, uids))
        ):
            yield tag
        if vr == "SQ" or (vr is None and vr_of(tag) == "SQ"):
            for item in data_set[key].value:
                yield from _violations(item, profile, uids)


def _has_old_uid(element: DataElement | RawDataElement, uids: AbstractSet[bytes]) -> bool:
    if not isinstance(element, RawDataElement) or not element.value:
        return False
    return not uids.isdisjoint(part.strip(b"\0 ") for part in element.value.split(b"\\"))


def kept_elements(
    data: bytes, encoding: Encoding, profile: Profile, texts: AbstractSet[str], charset: bytes
) -> list[bytes]:
    """The elements of a data set that are in it because the user wants them kept, as they are written.

    `texts` are the values of names and identifiers that stay. Dates and UIDs stay where the profile says so, even when
    one is that of a birth, or has a patient's number in it.
    """
    with quiet():
        data_set = read_dataset(BytesIO(data), not encoding.explicit, not encoding.big)
        found = list(_kept(data_set, profile, texts, decoder_for(charset, big=encoding.big)))
    return sorted((_written(one, big=encoding.big) for one in found), key=len, reverse=True)


def _kept(data_set: Dataset, profile: Profile, texts: AbstractSet[str], decoder: Decoder) -> Iterator[RawDataElement]:
    for key, element in list(data_set._dict.items()):  # noqa: SLF001
        known = vr_of(int(key))
        if int(key) == _CONTENT:
            continue  # where a date may be said to be that of the birth
        if (element.VR or known) == "SQ":
            for item in data_set[key].value:
                yield from _kept(item, profile, texts, decoder)
        elif not isinstance(element, RawDataElement) or not element.value:
            continue
        elif _is_kept_by_kind(profile, known, element) or (
            kind_of(int(key), element.VR or known) and decoder._text(element.value).strip("\0 ") in texts  # noqa: SLF001
        ):
            yield element


def _is_kept_by_kind(profile: Profile, known: str, element: RawDataElement) -> bool:
    """Whether an element is a date, a time or a UID, by the dictionary, as it is written and by its value."""
    if (element.VR or known) != known or not _DIGITS.fullmatch(element.value or b""):
        return False
    return (known in {"DA", "DT", "TM"} and profile.retain_dates != "none") or (known == "UI" and profile.retain_uids)


def _written(element: RawDataElement, *, big: bool) -> bytes:
    """An element as it stands in the file."""
    order, value, vr = ">" if big else "<", element.value or b"", (element.VR or "").encode()
    group, number = int(element.tag) >> 16, int(element.tag) & 0xFFFF
    if element.is_implicit_VR:
        return pack(order + "HHI", group, number, len(value)) + value
    if vr in LONG_VRS:
        return pack(order + "HH2sHI", group, number, vr, 0, len(value)) + value
    return pack(order + "HH2sH", group, number, vr, len(value)) + value


def _residue(where: str) -> Refused:
    return Refused(f"the self-check found what should be gone: {where}", "report this file's kind", cause="self-check")
