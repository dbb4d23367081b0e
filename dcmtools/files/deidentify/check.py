"""The result, read again by another parser and held against the table (PS3.15 E.1.1): what must be gone is gone."""

import re
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from struct import pack

from dcmtools.disk.dataset import LONG_VRS, Encoding
from dcmtools.disk.part10 import PREAMBLE
from dcmtools.disk.values import Decoder, decoder_for
from dcmtools.files.deidentify.identity import kind_of
from dcmtools.files.deidentify.profile import SAID, Profile, vr_of
from dcmtools.files.deidentify.rereading import DataSet, Unreadable, reread
from dcmtools.model.errors import Refused

_GRAPHICS, _UI = frozenset({0x50, 0x60}), frozenset({b"UI", b""})
_CONTENT = 0x0040A730
_FIRST, _ODD = 0x00080000, 0x00010000  # of data sets; a bit of the tags of private elements
_DIGITS = re.compile(rb"[0-9.+\\\- \0]*")
_META = frozenset({0x00020000, 0x00020001, 0x00020002, 0x00020003, 0x00020010, 0x00020012, 0x00020013})


def check_meta(meta: bytes) -> None:
    """Raises Refused when the preamble or group 0002 hold anything but what they must (PS3.15 E.1.1 step 7)."""
    group = reread(meta[PREAMBLE + 4 :], explicit=True)
    if any(meta[:PREAMBLE]) or not _META.issuperset(tag for tag, _, _, _ in group):
        raise _residue("the file meta information")


def read_again(data: bytes, encoding: Encoding) -> DataSet:
    """The elements of a data set without its pixels; Refused when it cannot be read."""
    try:
        return reread(data, explicit=encoding.explicit, big=encoding.big)
    except Unreadable as problem:
        raise Refused(
            f"the result cannot be read: {problem}", "report this kind of file", cause="self-check"
        ) from problem


def check_data_set(data_set: DataSet, profile: Profile, uids: AbstractSet[bytes]) -> None:
    """Raises Refused when a data set is not what the profile wants; `uids` are those of the source that had to go."""
    if not {tag for tag, _, _, _ in data_set}.issuperset(SAID):
        raise _residue("what says how it was de-identified")
    if found := next(_violations(data_set, profile, uids), 0):
        raise _residue(f"({found >> 16:04X},{found & 0xFFFF:04X})")


def _violations(data_set: DataSet, profile: Profile, uids: AbstractSet[bytes]) -> Iterator[int]:
    """The tags of elements that should not be there, at any depth."""
    must_go, own = profile.must_go, profile.own
    for tag, vr, value, items in data_set:
        # A call for each element, and not for those alone that may be wrong, would take three times as long.
        may_be = tag in must_go or tag & _ODD or tag < _FIRST or tag >> 24 in _GRAPHICS or vr in _UI
        if may_be and tag not in own and _is_wrong(tag, vr, value, profile, uids):
            yield tag
        for item in items or ():
            yield from _violations(item, profile, uids)


def _is_wrong(tag: int, vr: bytes, value: bytes, profile: Profile, uids: AbstractSet[bytes]) -> bool:
    group = tag >> 16
    return (
        tag in profile.must_go
        or tag < _FIRST
        or (bool(group & 1) and not profile.keeps_private(group))
        or (group >> 8 in _GRAPHICS and not profile.clean_graphics)
        or (vr in _UI and not uids.isdisjoint([part.strip(b"\0 ") for part in value.split(b"\\")]))
    )


def kept_elements(
    data_set: DataSet, profile: Profile, texts: AbstractSet[str], charset: bytes, *, big: bool
) -> list[bytes]:
    """The elements of a data set that are in it because the user wants them kept, as they are written.

    `texts` are the values of names and identifiers that stay. Dates and UIDs stay where the profile says so, even when
    one is that of a birth, or has a patient's number in it.
    """
    found = _kept(data_set, profile, texts, decoder_for(charset, big=big))
    return sorted((_written(*one, big=big) for one in found), key=len, reverse=True)


def _kept(
    data_set: DataSet, profile: Profile, texts: AbstractSet[str], decoder: Decoder
) -> Iterator[tuple[int, bytes, bytes]]:
    for tag, vr, value, items in data_set:
        known, written = vr_of(tag), vr.decode()
        if tag == _CONTENT:
            continue  # where a date may be said to be that of the birth
        if items is not None:
            for item in items:
                yield from _kept(item, profile, texts, decoder)
        elif value and (
            _is_kept_by_kind(profile, known, written, value)
            or (kind_of(tag, written or known) and decoder._text(value).strip("\0 ") in texts)  # noqa: SLF001
        ):
            yield tag, vr, value


def _is_kept_by_kind(profile: Profile, known: str, written: str, value: bytes) -> bool:
    """Whether an element is a date, a time or a UID, by the dictionary, as it is written and by its value."""
    if (written or known) != known or not _DIGITS.fullmatch(value):
        return False
    return (known in {"DA", "DT", "TM"} and profile.retain_dates != "none") or (known == "UI" and profile.retain_uids)


def _written(tag: int, vr: bytes, value: bytes, *, big: bool) -> bytes:
    """An element as it stands in the file."""
    order, group, number = ">" if big else "<", tag >> 16, tag & 0xFFFF
    if not vr:
        return pack(order + "HHI", group, number, len(value)) + value
    if vr in LONG_VRS:
        return pack(order + "HH2sHI", group, number, vr, 0, len(value)) + value
    return pack(order + "HH2sH", group, number, vr, len(value)) + value


def _residue(where: str) -> Refused:
    return Refused(f"the self-check found what should be gone: {where}", "report this kind of file", cause="self-check")
