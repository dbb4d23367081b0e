"""Small valid DICOM files for all tests: a test says only what matters to it.

write_instance(tmp_path / "a.dcm", PatientID="P1", Modality="CT")
"""

from pathlib import Path
from typing import Any

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage

from dcmtools.disk.header import encode_meta
from dcmtools.model.keys import BY_KEYWORD
from dcmtools.model.record import Record

ROOT = "1.2.826.0.1.3680043.10.999"


def uid(*numbers: int) -> str:
    """A UID that is the same at each call with the same numbers."""
    return ".".join([ROOT, *map(str, numbers)])


def make_instance(
    patient: int = 1,
    study: int = 1,
    series: int = 1,
    instance: int = 1,
    *,
    syntax: str = ExplicitVRLittleEndian,
    side: int = 4,
    **keys: Any,
) -> Dataset:
    """A data set of a small MR image; `keys` are keywords with their values, None leaves one out.

    The numbers tell the patient, the study of that patient, the series in it and the instance in that; they make the
    identifiers and UIDs unless `keys` has them.
    """
    made = Dataset()
    made.SpecificCharacterSet = "ISO_IR 192"
    made.SOPClassUID = MRImageStorage
    made.SOPInstanceUID = uid(patient, study, series, instance)
    made.StudyInstanceUID = uid(patient, study)
    made.SeriesInstanceUID = uid(patient, study, series)
    made.PatientID = f"P{patient}"
    made.PatientName = f"Patient^Number {patient}"
    made.StudyDate = f"202401{study:02d}"
    made.StudyTime = "120000"
    made.StudyDescription = f"Study {study}"
    made.AccessionNumber = f"A{patient}{study}"
    made.ReferringPhysicianName = "Referring^Doctor"
    made.Modality = "MR"
    made.SeriesNumber = series
    made.SeriesDescription = f"Series {series}"
    made.InstanceNumber = instance
    made.ImagePositionPatient = [0, 0, instance]
    made.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    made.PixelSpacing = [1, 1]
    made.Rows = made.Columns = side
    made.SamplesPerPixel = 1
    made.PhotometricInterpretation = "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 16
    made.HighBit = 15
    made.PixelRepresentation = 0
    made.PixelData = bytes(range(256)) * (side * side * 2 // 256) + bytes(range(side * side * 2 % 256))
    for keyword, value in keys.items():
        if value is not None:
            setattr(made, keyword, value)
        elif keyword in made:
            delattr(made, keyword)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = UID(syntax)
    return made


def write_instance(path: Path, *numbers: int, **keys: Any) -> Path:
    """Writes what `make_instance` makes to a file, and returns its path; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    make_instance(*numbers, **keys).save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder: Path, count: int, patient: int = 1, study: int = 1, series: int = 1, **keys: Any
) -> list[Path]:
    """Writes so many instances of one series."""
    return [
        write_instance(folder / f"{patient}-{study}-{series}-{number}.dcm", patient, study, series, number, **keys)
        for number in range(1, count + 1)
    ]


def make_record(patient: int = 1, study: int = 1, series: int = 1, instance: int = 1, **keys: Any) -> Record:
    """An instance record as an index has it, without a file behind it."""
    made = make_instance(patient, study, series, instance)
    plain = {element.keyword: _plain(element) for element in made if element.keyword in BY_KEYWORD}
    place = {"path": f"/data/{made.SOPInstanceUID}.dcm", "size": 1000, "mtime_ns": "1700000000000000000"}
    return {"type": "instance", **plain, "TransferSyntaxUID": str(ExplicitVRLittleEndian), **place, **keys}


def _plain(element: DataElement) -> Any:
    read = {"DS": float, "IS": int, "US": int}.get(element.VR, str)
    many = BY_KEYWORD[element.keyword].many
    return (
        [read(value) for value in (element.value if element.VM > 1 else [element.value])]
        if many
        else read(element.value)
    )


def encode_element(tag: int, vr: str, value: bytes, length: int | None = None) -> bytes:
    """An element in explicit VR little endian, with a length that may lie."""
    head = (tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little") + vr.encode()
    told = len(value) if length is None else length
    if vr in {"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"}:
        return head + b"\0\0" + told.to_bytes(4, "little") + value
    return head + told.to_bytes(2, "little") + value


def encode_file(data_set: bytes, syntax: str = ExplicitVRLittleEndian, instance: str = "") -> bytes:
    """A DICOM file around an encoded data set."""
    return encode_meta(MRImageStorage, instance or uid(1, 1, 1, 1), syntax) + data_set
