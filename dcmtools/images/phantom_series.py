"""The series of a phantom study as data sets, with the modules that PS3.3 A asks of each object, written by pydicom."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element, write_file_meta_info
from pydicom.uid import UID

from dcmtools.images.phantom_people import REVISION, Study
from dcmtools.images.phantom_pixels import (
    ACTIVE,
    AIR,
    CHEST,
    HEAD,
    HEAD_T2,
    Geometry,
    fan,
    geometry,
    noise,
    paint,
)
from dcmtools.model.uids import EXPLICIT_VR_LITTLE_ENDIAN, IMPLEMENTATION_CLASS_UID

MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
US_MULTI_FRAME_IMAGE = "1.2.840.10008.5.1.4.1.1.3.1"
BASIC_TEXT_SR = "1.2.840.10008.5.1.4.1.1.88.11"

# Rows, columns and slices are all different where it is cheap, and so are their distances: a mix-up changes a number.
GEOMETRIES: dict[str, Geometry] = {
    "mr": geometry((64, 64, 24), (3.5, 3.25, 6.5), (20, 3, -2, 3), (2.5, -4.0, 6.0)),
    "fmri": geometry((48, 52, 12), (4.5, 4.25, 9.5), (14, -2, 1, 0), (-1.5, 3.0, 10.0)),
    "ct": geometry((64, 64, 80), (6.0, 6.0, 5.0), (1, 0, 0, 0), (0.0, 25.0, 10.0)),
}
VOLUMES = 10
REPETITION_TIME = 2.0  # seconds
US_FRAMES = 12
US_SIZE = (120, 160)  # rows, columns
FRAME_TIME = 40  # milliseconds

_PIXEL_DATA = 0x7FE00010

Attributes = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Series:
    """A series as its instances share it, and what each of them adds."""

    shared: Attributes
    instances: Iterator[Attributes]

    def encoded(self) -> Iterator[bytes]:
        """The bytes of each instance's file. What is shared is encoded once: pydicom takes 30 us for an element."""
        charset = self.shared.get("SpecificCharacterSet")
        shared = _elements(self.shared, charset)
        for instance in self.instances:
            parts = shared | _elements(instance, charset)
            meta = _meta(self.shared["SOPClassUID"], instance["SOPInstanceUID"])
            yield meta + b"".join(parts[tag] for tag in sorted(parts))


def series(study: Study, kind: str) -> Series:
    """The series of this kind in a study."""
    return _SERIES[kind](study)


def _elements(attributes: Attributes, charset: Any) -> dict[int, bytes]:
    """Each attribute as an encoded element, explicit little endian (PS3.5 7.1.2)."""
    parts = {}
    for element in _dataset(attributes):
        if element.tag == _PIXEL_DATA:
            element.VR = "OW"  # the dictionary leaves it open; so may pixels of 8 bits be written (PS3.5 8.1.1)
        out = DicomBytesIO()
        out.is_little_endian, out.is_implicit_VR = True, False
        write_data_element(out, element, charset)
        parts[int(element.tag)] = out.getvalue()
    return parts


def _meta(sop_class: str, sop_instance: str) -> bytes:
    """Preamble and meta information (PS3.10 7.1), which do not tell by which version of pydicom they were written."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(sop_class)
    meta.MediaStorageSOPInstanceUID = UID(sop_instance)
    meta.TransferSyntaxUID = UID(EXPLICIT_VR_LITTLE_ENDIAN)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = f"DCMTOOLS_PHANT{REVISION}"
    out = DicomBytesIO()
    write_file_meta_info(out, meta)
    return bytes(128) + b"DICM" + out.getvalue()


def _mr(study: Study) -> Series:
    where = GEOMETRIES["mr"]
    shared = _image(study, "mr", MR_IMAGE, "MR", "Head T1 3D oblique") | _volume(study, "mr", where) | _MR
    shared |= {
        "ScanningSequence": "GR",
        "SequenceVariant": "SP",
        "MRAcquisitionType": "3D",
        "RepetitionTime": 9,
        "EchoTime": 4,
        "EchoTrainLength": 1,
        "FlipAngle": 8,
        "AcquisitionNumber": 1,
        **_window(450, 900),
    }

    def instances() -> Iterator[Attributes]:
        grain = noise(study.uid("mr", "noise"), where.shape, 45)
        for slice_ in range(where.slices):
            body = paint(HEAD, where.grid(slice_), scale=study.person.scale)
            yield _instance(study, "mr", slice_) | _plane(where, slice_) | _pixels(body + grain[slice_])

    return Series(shared, instances())


def _fmri(study: Study) -> Series:
    where, scale = GEOMETRIES["fmri"], study.person.scale
    shared = _image(study, "fmri", MR_IMAGE, "MR", "fMRI blocks") | _volume(study, "fmri", where) | _MR
    shared |= {
        "ScanningSequence": "EP",
        "SequenceVariant": "SK",
        "MRAcquisitionType": "2D",
        "RepetitionTime": round(REPETITION_TIME * 1000),
        "EchoTime": 30,
        "EchoTrainLength": where.rows,
        "FlipAngle": 77,
        "InPlanePhaseEncodingDirection": "COL",
        "NumberOfTemporalPositions": VOLUMES,
        "TemporalResolution": round(REPETITION_TIME * 1000),
        **_window(500, 1100),
    }

    def instances() -> Iterator[Attributes]:
        grids = [where.grid(slice_) for slice_ in range(where.slices)]
        bodies = [paint(HEAD_T2, grid, scale=scale) for grid in grids]
        active = [ACTIVE.holds(grid, scale) for grid in grids]
        for volume in range(VOLUMES):
            grain = noise(study.uid("fmri", "noise", volume), where.shape, 30)
            answer = 40 if volume >= VOLUMES // 2 else 0  # a block of rest, then one of work
            when = {"AcquisitionNumber": volume + 1, "TemporalPositionIdentifier": volume + 1}
            for slice_ in range(where.slices):
                index = volume * where.slices + slice_
                values = bodies[slice_] + answer * active[slice_] + grain[slice_]
                yield (
                    _instance(study, "fmri", index, volume * REPETITION_TIME)
                    | _plane(where, slice_)
                    | when
                    | _pixels(values)
                )

    return Series(shared, instances())


def _ct(study: Study) -> Series:
    where = GEOMETRIES["ct"]
    shared = _image(study, "ct", CT_IMAGE, "CT", "Chest CT") | _volume(study, "ct", where) | _GREY
    shared |= {
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "BodyPartExamined": "CHEST",
        "KVP": 120,
        "GantryDetectorTilt": 0,
        "AcquisitionNumber": 1,
        "RescaleIntercept": -1024,
        "RescaleSlope": 1,
        "RescaleType": "HU",
        "WindowCenter": [40, -500],
        "WindowWidth": [400, 1500],
        "WindowCenterWidthExplanation": ["SOFT", "LUNG"],
    }

    def instances() -> Iterator[Attributes]:
        grain = noise(study.uid("ct", "noise"), where.shape, 25)
        for slice_ in range(where.slices):
            body = paint(CHEST, where.grid(slice_), scale=study.person.scale, empty=AIR)
            yield _instance(study, "ct", slice_) | _plane(where, slice_) | _pixels(body + grain[slice_] + 1024)

    return Series(shared, instances())


def _us(study: Study) -> Series:
    rows, columns = US_SIZE
    shared = _image(study, "us", US_MULTI_FRAME_IMAGE, "US", "Abdomen clip")
    shared |= {
        "ImageType": ["ORIGINAL", "PRIMARY", "ABDOMINAL", "0011"],  # 2D imaging with colour flow (PS3.3 C.8.5.6.1.1)
        "BodyPartExamined": "ABDOMEN",
        "PatientOrientation": None,
        "SamplesPerPixel": 3,
        "PhotometricInterpretation": "RGB",
        "PlanarConfiguration": 0,
        "Rows": rows,
        "Columns": columns,
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
        "NumberOfFrames": US_FRAMES,
        "FrameTime": FRAME_TIME,
        "FrameIncrementPointer": 0x00181063,
        "RecommendedDisplayFrameRate": 1000 // FRAME_TIME,
        "UltrasoundColorDataPresent": 1,
        "LossyImageCompression": "00",
        "SequenceOfUltrasoundRegions": [_region(rows, columns)],
    }

    def instances() -> Iterator[Attributes]:
        key = study.uid("us", "noise")
        frames = (fan(frame, US_FRAMES, f"{key}/{frame}", US_SIZE) for frame in range(US_FRAMES))
        yield _instance(study, "us", 0) | {"PixelData": b"".join(frame.tobytes() for frame in frames)}

    return Series(shared, instances())


def _region(rows: int, columns: int) -> Dataset:
    """The scale of the sector: 1 mm a pixel (PS3.3 C.8.5.5)."""
    return _dataset(
        {
            "RegionSpatialFormat": 1,  # 2D
            "RegionDataType": 1,  # tissue
            "RegionFlags": 0,
            "RegionLocationMinX0": 0,
            "RegionLocationMinY0": 0,
            "RegionLocationMaxX1": columns - 1,
            "RegionLocationMaxY1": rows - 1,
            "PhysicalUnitsXDirection": 3,  # cm
            "PhysicalUnitsYDirection": 3,
            "PhysicalDeltaX": 0.1,
            "PhysicalDeltaY": 0.1,
        }
    )


def _sr(study: Study) -> Series:
    shared = _object(study, "sr", BASIC_TEXT_SR, "SR", "Report")
    shared |= {
        "ReferencedPerformedProcedureStepSequence": [],
        "PerformedProcedureCodeSequence": [],
        "CompletionFlag": "COMPLETE",
        "VerificationFlag": "UNVERIFIED",
        "ValueType": "CONTAINER",
        "ConceptNameCodeSequence": [_code("18748-4", "LN", "Diagnostic Imaging Report")],
        "ContinuityOfContent": "SEPARATE",
        "ContentSequence": [
            _text("121070", "Findings", "A phantom: made, not born. A marker lies on the left side of each volume."),
            _text("121076", "Conclusions", "Fit for demonstrations and tests; not for diagnosis."),
        ],
    }
    return Series(shared, iter([_named(study, "sr", 0)]))


def _text(code: str, meaning: str, text: str) -> Dataset:
    concept = _code(code, "DCM", meaning)
    return _dataset(
        {"RelationshipType": "CONTAINS", "ValueType": "TEXT", "ConceptNameCodeSequence": [concept], "TextValue": text}
    )


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    return _dataset({"CodeValue": value, "CodingSchemeDesignator": scheme, "CodeMeaning": meaning})


_SERIES: dict[str, Callable[[Study], Series]] = {"mr": _mr, "fmri": _fmri, "ct": _ct, "us": _us, "sr": _sr}
_NUMBERS = {kind: number for number, kind in enumerate(_SERIES, 1)}

_GREY: Attributes = {
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "BitsAllocated": 16,
    "BitsStored": 12,
    "HighBit": 11,
    "PixelRepresentation": 0,
}
_MR: Attributes = _GREY | {
    "ImageType": ["ORIGINAL", "PRIMARY", "OTHER"],
    "BodyPartExamined": "HEAD",
    "ScanOptions": None,
    "MagneticFieldStrength": 3,
}


def _object(study: Study, kind: str, sop_class: str, modality: str, description: str) -> Attributes:
    """What all objects of a series share: patient, study, series and equipment (PS3.3 C.7.1 to C.7.5)."""
    person, day = study.person, f"{study.day:%Y%m%d}"
    shared: Attributes = {
        "SpecificCharacterSet": study.charset,
        "SOPClassUID": sop_class,
        "PatientName": study.patient_name,
        "PatientID": study.patient_id,
        "PatientBirthDate": f"{person.born:%Y%m%d}",
        "PatientSex": person.sex,
        "PatientAge": study.age,
        "PatientWeight": person.weight,
        "StudyInstanceUID": study.uid(),
        "StudyDate": day,
        "StudyTime": _clock(study.start),
        "StudyID": str(study.number + 1),
        "AccessionNumber": study.accession,
        "StudyDescription": "Phantom",
        "SeriesInstanceUID": study.uid(kind),
        "SeriesNumber": _NUMBERS[kind],
        "SeriesDate": day,
        "SeriesTime": _clock(_begin(study, kind)),
        "SeriesDescription": description,
        "ProtocolName": description,
        "Modality": modality,
        "Manufacturer": "dcmtools",
        "ManufacturerModelName": "Phantom",
        "DeviceSerialNumber": "0",
        "SoftwareVersions": str(REVISION),
        "StationName": "PHANTOM",
        "InstitutionName": "Phantom Hospital",
    }
    return shared if study.physician is None else shared | {"ReferringPhysicianName": study.physician}


def _image(study: Study, kind: str, sop_class: str, modality: str, description: str) -> Attributes:
    return _object(study, kind, sop_class, modality, description) | {"BurnedInAnnotation": "NO"}


def _volume(study: Study, kind: str, where: Geometry) -> Attributes:
    """The frame of reference and, as far as all slices share it, the image plane (PS3.3 C.7.4.1, C.7.6.2)."""
    return {
        "FrameOfReferenceUID": study.uid(kind, "frame of reference"),
        "PositionReferenceIndicator": None,
        "PatientPosition": "HFS",
        "Rows": where.rows,
        "Columns": where.columns,
        "PixelSpacing": [_decimal(step) for step in where.between[:2]],
        "SliceThickness": _decimal(where.between[2]),
        "SpacingBetweenSlices": _decimal(where.between[2]),
        "ImageOrientationPatient": [_decimal(part) for part in (*where.row, *where.column)],
    }


def _named(study: Study, kind: str, index: int, seconds: float = 0.0) -> Attributes:
    """What tells an object from the others of its series; it was made `seconds` after the series began."""
    return {
        "SOPInstanceUID": study.uid(kind, index),
        "InstanceNumber": index + 1,
        "ContentDate": f"{study.day:%Y%m%d}",
        "ContentTime": _clock(_begin(study, kind) + seconds),
    }


def _instance(study: Study, kind: str, index: int, seconds: float = 0.0) -> Attributes:
    named = _named(study, kind, index, seconds)
    return named | {"AcquisitionDate": named["ContentDate"], "AcquisitionTime": named["ContentTime"]}


def _plane(where: Geometry, slice_: int) -> Attributes:
    return {"ImagePositionPatient": [_decimal(part) for part in where.position(0, 0, slice_)]}


def _pixels(values: Any) -> Attributes:
    return {"PixelData": values.clip(0, 4095).astype("<u2").tobytes()}


def _window(centre: int, width: int) -> Attributes:
    return {"WindowCenter": centre, "WindowWidth": width}


def _begin(study: Study, kind: str) -> float:
    return study.start + 300 * (_NUMBERS[kind] - 1)


def _clock(seconds: float) -> str:
    """A TM of these seconds after midnight."""
    minutes, second = divmod(seconds, 60)
    hour, minute = divmod(int(minutes), 60)
    return f"{hour:02}{minute:02}{second:09.6f}"


def _decimal(value: float) -> str:
    """A DS: at most 16 characters (PS3.5 6.2), the same on every machine."""
    text = f"{value:.{10 if abs(value) < 10 else 6}f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _dataset(attributes: Attributes) -> Dataset:
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset
