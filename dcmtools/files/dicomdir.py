"""Rebuilds a DICOMDIR from the instances that lie below a folder (PS3.10 8).

It is never carried over from a source, whose patients it would list.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from struct import pack

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomFileLike
from pydicom.filewriter import write_dataset

from dcmtools.disk.atomic import write_atomic
from dcmtools.disk.part10 import encode_meta
from dcmtools.disk.values import quiet
from dcmtools.model.errors import BadData
from dcmtools.model.record import Record, path_keys
from dcmtools.model.uids import EXPLICIT_VR_LITTLE_ENDIAN, MEDIA_STORAGE_DIRECTORY

NAME = "DICOMDIR"
_LEVELS = ("PATIENT", "STUDY", "SERIES")
# What a directory record must have and a de-identified instance may not (PS3.3 F.5).
_NEEDED = {"StudyDate": "19000101", "StudyTime": "000000", "StudyID": "0", "SeriesNumber": 0, "InstanceNumber": 0}
_NEEDED_OF_REPORTS = {
    "ContentDate": "19000101",
    "ContentTime": "000000",
    "CompletionFlag": "PARTIAL",
    "VerificationFlag": "UNVERIFIED",
}
_SEQUENCE_HEAD = 12


@dataclass(slots=True)
class _Entity:
    """A directory record with those below it."""

    data: Dataset
    below: dict[str, "_Entity"] = field(default_factory=dict)
    at: int = 0  # in the file


def write_dicomdir(out: Path, records: Iterable[Record]) -> None:
    """Writes DICOMDIR of the instances with these records, whose paths lie below `out`, in the order of the paths.

    BadData for an instance that cannot be listed; there is no DICOMDIR then, or the old one.
    """
    root: dict[str, _Entity] = {}
    for path in sorted(Path(str(record["path"])) for record in records):
        _add(root, path, out)
    write_atomic(out / NAME, _file(root))


def _add(root: dict[str, _Entity], path: Path, out: Path) -> None:
    from pydicom import fileset

    try:
        with quiet():
            read = dcmread(path, stop_before_pixels=True)
            kind = fileset._four_level_record_type(read)  # noqa: SLF001 - which record lists which SOP Class
            for keyword, value in (_NEEDED | (_NEEDED_OF_REPORTS if kind == "SR DOCUMENT" else {})).items():
                if not read.get(keyword) and read.get(keyword) != 0:
                    setattr(read, keyword, value)
            below = root
            keys = (read.PatientID, read.StudyInstanceUID, read.SeriesInstanceUID, read.SOPInstanceUID)
            for level, key in zip((*_LEVELS, kind), keys, strict=True):
                if str(key) not in below:
                    below[str(key)] = _Entity(_record(level, read))
                below = below[str(key)].below
            item = root[str(keys[0])].below[str(keys[1])].below[str(keys[2])].below[str(keys[3])].data
            item.ReferencedFileID = list(path.relative_to(out).parts)
            item.ReferencedSOPClassUIDInFile = read.SOPClassUID
            item.ReferencedSOPInstanceUIDInFile = read.SOPInstanceUID
            item.ReferencedTransferSyntaxUIDInFile = read.file_meta.TransferSyntaxUID
    except (ValueError, KeyError, AttributeError) as problem:
        raise BadData(
            f"{path} cannot be listed in a DICOMDIR: {problem}", cause="dicomdir", **path_keys(path)
        ) from problem


def _record(kind: str, read: Dataset) -> Dataset:
    from pydicom.fileset import DIRECTORY_RECORDERS

    made = DIRECTORY_RECORDERS[kind](read)
    made.OffsetOfTheNextDirectoryRecord = made.OffsetOfReferencedLowerLevelDirectoryEntity = 0
    made.RecordInUseFlag = 0xFFFF
    made.DirectoryRecordType = kind
    if read.get("SpecificCharacterSet"):
        made.SpecificCharacterSet = read.SpecificCharacterSet
    return made


def _file(root: dict[str, _Entity]) -> bytes:
    """The bytes of the file: offsets have a fixed length, so that places are known before they are written."""
    digest = hashlib.sha256("\0".join(sorted(uid for entity in _all(root) for uid in entity.below)).encode()).digest()
    number = int.from_bytes(digest[:16], "big") & ~(0xF << 76) & ~(0b11 << 62) | 8 << 76 | 0b10 << 62
    meta = encode_meta(MEDIA_STORAGE_DIRECTORY, f"2.25.{number}", EXPLICIT_VR_LITTLE_ENDIAN)
    head = Dataset()
    head.FileSetID = ""
    head.OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity = 0
    head.OffsetOfTheLastDirectoryRecordOfTheRootDirectoryEntity = 0
    head.FileSetConsistencyFlag = 0
    at = len(meta) + len(_encoded(head)) + _SEQUENCE_HEAD
    for entity in _all(root):
        entity.at = at
        at += 8 + len(_encoded(entity.data))
    _link(root)
    entities = list(root.values())
    head.OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity = entities[0].at if entities else 0
    head.OffsetOfTheLastDirectoryRecordOfTheRootDirectoryEntity = entities[-1].at if entities else 0
    bodies = (_encoded(entity.data) for entity in _all(root))
    items = b"".join(pack("<HHI", 0xFFFE, 0xE000, len(body)) + body for body in bodies)
    return meta + _encoded(head) + pack("<HH2sHI", 0x0004, 0x1220, b"SQ", 0, len(items)) + items


def _link(entities: dict[str, _Entity]) -> None:
    """Gives each record the places of the next one beside it and of the first one below it."""
    row = list(entities.values())
    for number, entity in enumerate(row):
        entity.data.OffsetOfTheNextDirectoryRecord = row[number + 1].at if number + 1 < len(row) else 0
        first = next(iter(entity.below.values()), None)
        entity.data.OffsetOfReferencedLowerLevelDirectoryEntity = first.at if first else 0
        _link(entity.below)


def _all(entities: dict[str, _Entity]) -> Iterator[_Entity]:
    for entity in entities.values():
        yield entity
        yield from _all(entity.below)


def _encoded(data_set: Dataset) -> bytes:
    buffer = BytesIO()
    file = DicomFileLike(buffer)
    file.is_little_endian, file.is_implicit_VR = True, False
    with quiet():
        write_dataset(file, data_set)
    return buffer.getvalue()
