"""A series on its way to an engine: its instances, held compactly, and what its volumes will say of their source."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dcmtools.model.errors import DcmtoolsError, NoInput, from_os
from dcmtools.model.record import NOTHING_THERE, Record, decode, encode, path_keys, path_of, pick

Key = tuple[str, str]  # StudyInstanceUID, SeriesInstanceUID

# What a volume says of its source, so that it can be named, sorted and found.
SOURCE_KEYS: tuple[str, ...] = (
    "PatientID",
    "PatientName",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyDescription",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "Modality",
)
# What engines and the audit want to know of a series besides.
_SERIES_KEYS: tuple[str, ...] = (
    *SOURCE_KEYS,
    "StudyID",
    "Manufacturer",
    "ManufacturerModelName",
    "BodyPartExamined",
    "ProtocolName",
    "PatientPosition",
    "ImageType",
    "EchoTime",
    "RepetitionTime",
    "SliceThickness",
    "SpacingBetweenSlices",
    "ImageOrientationPatient",
)
# What is kept of each instance: a hundred thousand may wait here.
_INSTANCE_KEYS: tuple[str, ...] = (
    "path",
    "path_b64",
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "ImageType",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SamplesPerPixel",
    "BitsAllocated",
    "NumberOfFrames",
    "Rows",
    "Columns",
)
_IDENTITY = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
# Without these the audit would not know where a slice lies; a record that has them all was not made thin by a filter.
_GEOMETRY = ("ImageType", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")
_CLASS = "1.2.840.10008.5.1.4.1.1."
# CT, MR and PET images, which have one frame and need not count it (PS3.3 A.3, A.4, A.21).
_ONE_FRAME = frozenset(f"{_CLASS}{suffix}" for suffix in ("2", "4", "128"))
# Storage SOP classes without a picture to make a volume of (PS3.4 B.5): waveforms, presentation states, spectra and raw
# data, registrations, segmentations, reports, documents, plans, structure sets, dose, mappings, meshes.
_NO_IMAGE_SUFFIXES = (
    *("4.2", "9.", "11.", "34.", "66", "67", "68.", "77.1.5.3", "78.", "79.", "80.", "81.", "88.", "90.", "104."),
    *("131", "200.", "201.", "481.", "501.2.", "601."),
)
_NO_IMAGE = tuple(f"{_CLASS}{suffix}" for suffix in _NO_IMAGE_SUFFIXES)
_NO_IMAGE_MODALITIES = frozenset(
    {
        *("SR", "PR", "KO", "AU", "ECG", "EPS", "HD", "EEG", "EMG", "EOG", "RESP", "DOC", "M3D", "REG", "SEG", "FID"),
        *("RWV", "PLAN", "RTSTRUCT", "RTPLAN", "RTRECORD", "RTDOSE", "SMR"),
    }
)


@dataclass(frozen=True, slots=True)
class Input:
    """One file that goes into a volume."""

    path: Path
    record: Record
    size: int
    mtime_ns: int

    @property
    def uid(self) -> str:
        """The SOP Instance UID."""
        return str(self.record["SOPInstanceUID"])


@dataclass(slots=True)
class Series:
    """What is known of one series so far."""

    source: Record = field(default_factory=dict)
    instances: dict[str, bytes] = field(default_factory=dict)  # by SOP Instance UID
    no_images: int = 0  # instances without a picture
    nowhere: int = 0  # instances without a path
    incomplete: str = ""  # why some of it is known to be missing

    def take(self, record: Record) -> bool:
        """Adds an instance; returns whether that was new. One that is not there, or not any more, is none."""
        record = answering(record)
        uid = str(record.get("SOPInstanceUID"))
        if uid in self.instances or record.get("state") in NOTHING_THERE:
            return False
        _merge(self.source, record)
        if not is_image(record):
            self.no_images += 1
        elif path_of(record) is None:
            self.nowhere += 1
        else:
            self.instances[uid] = encode(pick(record, *_INSTANCE_KEYS))
        return True

    def as_it_is(self) -> "Series":
        """A copy that does not change when further instances come."""
        return replace(self, source=dict(self.source), instances=dict(self.instances))

    @property
    def key(self) -> Key:
        """The pair of UIDs by which it is known."""
        return str(self.source.get("StudyInstanceUID")), str(self.source.get("SeriesInstanceUID"))

    def described(self) -> Record:
        """The keys of its source that a record about it carries."""
        return pick(self.source, *SOURCE_KEYS)

    def inputs(self) -> list[Input]:
        """Its files as they are now, in the order of their UIDs.

        Raises:
            NoInput: a file is gone, or an instance came without its path.
        """
        if self.nowhere:
            raise NoInput(
                f"{self.nowhere} instances came without a path", "retrieve them first, or pass records that have one"
            )
        return sorted(map(_input, self._records()), key=lambda one: one.uid)

    def _records(self) -> Iterator[Record]:
        return map(decode, self.instances.values())


def digest_of(inputs: Sequence[Input]) -> str:
    """The hash that changes when an instance comes, goes or is replaced: over the sorted UIDs, sizes and times."""
    digest = hashlib.sha256()
    for one in inputs:
        digest.update(f"{one.uid} {one.size} {one.mtime_ns}\n".encode())
    return digest.hexdigest()


def pixel_bytes(inputs: Sequence[Input]) -> int:
    """How many bytes the pixels have when they are not compressed, as far as the headers say."""
    return sum(_pixel_bytes(one.record) for one in inputs)


def completed(record: Record) -> Record:
    """The record with what a filter upstream may have taken from it, read from its file again.

    BadData when the file is not what it was.
    """
    record = answering(record)
    path = path_of(record)
    if path is None or record.get("state") in NOTHING_THERE or _is_whole(record):
        return record
    from dcmtools.disk.header import read_header

    try:
        return {**read_header(path, follow=True), **record}
    except DcmtoolsError as problem:
        problem.where = {**pick(record, *_IDENTITY), **path_keys(path)}
        raise


def answering(record: Record) -> Record:
    """The record that stands for its UID: for a conflict that of the file that came first.

    Of that one only the UIDs and the path are known: the rest of the record is about the file in quarantine. A conflict
    that does not name the first has failed.
    """
    if record.get("state") != "conflict":
        return record
    first = record.get("duplicate_of")
    if not isinstance(first, str) or not first:
        return {**record, "state": "failed"}
    return {"type": "instance", **pick(record, *_IDENTITY), **path_keys(first)}


def is_image(record: Record) -> bool:
    """Whether an instance has a picture: by its SOP class, else by its modality and its number of rows."""
    sop_class = str(record.get("SOPClassUID") or "")
    if sop_class.startswith(_NO_IMAGE):
        return False
    if not sop_class.startswith(_CLASS) and record.get("Modality") in _NO_IMAGE_MODALITIES:
        return False
    return "Rows" not in record or bool(record["Rows"])


def _is_whole(record: Record) -> bool:
    """Whether nothing that we need was taken from a record, as far as can be told: what a file lacks, it lacks too."""
    if not (record.get("SOPClassUID") and all(record.get(key) for key in _IDENTITY)):
        return False
    if not is_image(record):
        return True
    counted = "NumberOfFrames" in record or record["SOPClassUID"] in _ONE_FRAME
    return counted and all(key in record for key in _GEOMETRY)


def _merge(known: Record, record: Record) -> None:
    """Fills what is not known yet; an empty value is better than none, and any other is better than that."""
    for key in _SERIES_KEYS:
        if key in record and known.get(key) is None:
            known[key] = record[key]


def _input(record: Record) -> Input:
    path = path_of(record)
    assert path is not None  # noqa: S101 - take() keeps no others
    try:
        status = path.stat()
    except OSError as problem:
        raise from_os(problem, "reading", path) from problem
    return Input(path, record, status.st_size, status.st_mtime_ns)


def _pixel_bytes(record: Record) -> int:
    bits = 1
    for key in ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated"):
        value = record.get(key)
        bits *= max(1, int(value)) if isinstance(value, (int, float)) else 1
    return bits // 8
