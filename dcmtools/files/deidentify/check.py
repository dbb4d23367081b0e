"""The result, read again by another parser and held against the table (PS3.15 E.1.1): what must be gone is gone."""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from io import BytesIO

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset

from dcmtools.disk.dataset import Encoding
from dcmtools.disk.part10 import PREAMBLE
from dcmtools.disk.values import quiet
from dcmtools.files.deidentify import table
from dcmtools.files.deidentify.profile import STATEMENT, Profile, vr_of
from dcmtools.model.errors import Refused

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
            missing = [tag for tag in STATEMENT if tag not in data_set]
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
    for key, element in data_set._dict.items():  # noqa: SLF001
        tag = int(key)
        if tag not in profile.own and (_must_go(tag, profile) or _has_old_uid(element, uids)):
            yield tag
        if element.VR == "SQ" or (element.VR is None and vr_of(tag) == "SQ"):
            for item in data_set[key].value:
                yield from _violations(item, profile, uids)


def _must_go(tag: int, profile: Profile) -> bool:
    """Whether no element with this tag may be left."""
    group = tag >> 16
    if group & 1:
        return not profile.retain_safe_private and not any(one >> 16 == group for one in profile.own)
    if group >> 8 in {0x50, 0x60}:
        return "GRA" not in profile.columns
    row = table.rows().get(tag)
    return group < 8 or (row is not None and row.basic == "X" and not profile.columns & row.options.keys())


def _has_old_uid(element: DataElement | RawDataElement, uids: AbstractSet[bytes]) -> bool:
    if not isinstance(element, RawDataElement) or element.VR not in {"UI", None} or not element.value:
        return False
    return not uids.isdisjoint(part.strip(b"\0 ") for part in element.value.split(b"\\"))


def _residue(where: str) -> Refused:
    return Refused(f"the self-check found what should be gone: {where}", "report this file's kind", cause="self-check")
