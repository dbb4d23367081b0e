"""The index keys: what an instance record holds, once and for all (DESIGN §3).

Each row: keyword, tag, VR, level, and whether the dictionary allows more than one value (then it is always an array).
They are what queries, sorting, grouping and the geometry audit need without opening the file again.
"""

from dataclasses import dataclass
from types import MappingProxyType

from dcmtools.model.record import Level


@dataclass(frozen=True, slots=True)
class Key:
    """One attribute that the index holds."""

    keyword: str
    tag: int
    vr: str
    level: Level
    many: bool = False


_ROWS: tuple[tuple[str, int, str, Level, bool], ...] = (
    ("SpecificCharacterSet", 0x00080005, "CS", "instance", True),
    ("ImageType", 0x00080008, "CS", "instance", True),
    ("SOPClassUID", 0x00080016, "UI", "instance", False),
    ("SOPInstanceUID", 0x00080018, "UI", "instance", False),
    ("StudyDate", 0x00080020, "DA", "study", False),
    ("SeriesDate", 0x00080021, "DA", "series", False),
    ("AcquisitionDate", 0x00080022, "DA", "instance", False),
    ("ContentDate", 0x00080023, "DA", "instance", False),
    ("StudyTime", 0x00080030, "TM", "study", False),
    ("SeriesTime", 0x00080031, "TM", "series", False),
    ("AcquisitionTime", 0x00080032, "TM", "instance", False),
    ("ContentTime", 0x00080033, "TM", "instance", False),
    ("AccessionNumber", 0x00080050, "SH", "study", False),
    ("Modality", 0x00080060, "CS", "series", False),
    ("Manufacturer", 0x00080070, "LO", "series", False),
    ("InstitutionName", 0x00080080, "LO", "series", False),
    ("ReferringPhysicianName", 0x00080090, "PN", "study", False),
    ("StationName", 0x00081010, "SH", "series", False),
    ("StudyDescription", 0x00081030, "LO", "study", False),
    ("SeriesDescription", 0x0008103E, "LO", "series", False),
    ("ManufacturerModelName", 0x00081090, "LO", "series", False),
    ("PatientName", 0x00100010, "PN", "patient", False),
    ("PatientID", 0x00100020, "LO", "patient", False),
    ("IssuerOfPatientID", 0x00100021, "LO", "patient", False),
    ("PatientBirthDate", 0x00100030, "DA", "patient", False),
    ("PatientSex", 0x00100040, "CS", "patient", False),
    ("PatientAge", 0x00101010, "AS", "study", False),
    ("BodyPartExamined", 0x00180015, "CS", "series", False),
    ("SliceThickness", 0x00180050, "DS", "instance", False),
    ("RepetitionTime", 0x00180080, "DS", "instance", False),
    ("EchoTime", 0x00180081, "DS", "instance", False),
    ("SpacingBetweenSlices", 0x00180088, "DS", "instance", False),
    ("ProtocolName", 0x00181030, "LO", "series", False),
    ("PatientPosition", 0x00185100, "CS", "series", False),
    ("StudyInstanceUID", 0x0020000D, "UI", "study", False),
    ("SeriesInstanceUID", 0x0020000E, "UI", "series", False),
    ("StudyID", 0x00200010, "SH", "study", False),
    ("SeriesNumber", 0x00200011, "IS", "series", False),
    ("AcquisitionNumber", 0x00200012, "IS", "instance", False),
    ("InstanceNumber", 0x00200013, "IS", "instance", False),
    ("ImagePositionPatient", 0x00200032, "DS", "instance", True),
    ("ImageOrientationPatient", 0x00200037, "DS", "instance", True),
    ("FrameOfReferenceUID", 0x00200052, "UI", "series", False),
    ("TemporalPositionIdentifier", 0x00200100, "IS", "instance", False),
    ("SamplesPerPixel", 0x00280002, "US", "instance", False),
    ("PhotometricInterpretation", 0x00280004, "CS", "instance", False),
    ("NumberOfFrames", 0x00280008, "IS", "instance", False),
    ("Rows", 0x00280010, "US", "instance", False),
    ("Columns", 0x00280011, "US", "instance", False),
    ("PixelSpacing", 0x00280030, "DS", "instance", True),
    ("BitsAllocated", 0x00280100, "US", "instance", False),
    ("BurnedInAnnotation", 0x00280301, "CS", "instance", False),
    ("PerformedProcedureStepStartDate", 0x00400244, "DA", "series", False),
)

KEYS: tuple[Key, ...] = tuple(Key(*row) for row in _ROWS)
BY_KEYWORD = MappingProxyType({key.keyword: key for key in KEYS})
BY_TAG = MappingProxyType({key.tag: key for key in KEYS})
LAST_TAG = max(BY_TAG)

# Attributes that only queries know: computed by whoever answers (PS3.4 C.3.4).
QUERY_KEYS: tuple[Key, ...] = (
    Key("QueryRetrieveLevel", 0x00080052, "CS", "instance"),
    Key("RetrieveAETitle", 0x00080054, "AE", "instance", many=True),
    Key("InstanceAvailability", 0x00080056, "CS", "instance"),
    Key("ModalitiesInStudy", 0x00080061, "CS", "study", many=True),
    Key("SOPClassesInStudy", 0x00080062, "UI", "study", many=True),
    Key("NumberOfPatientRelatedStudies", 0x00201200, "IS", "patient"),
    Key("NumberOfPatientRelatedSeries", 0x00201202, "IS", "patient"),
    Key("NumberOfPatientRelatedInstances", 0x00201204, "IS", "patient"),
    Key("NumberOfStudyRelatedSeries", 0x00201206, "IS", "study"),
    Key("NumberOfStudyRelatedInstances", 0x00201208, "IS", "study"),
    Key("NumberOfSeriesRelatedInstances", 0x00201209, "IS", "series"),
)
QUERY_BY_KEYWORD = MappingProxyType({key.keyword: key for key in (*KEYS, *QUERY_KEYS)})
QUERY_BY_TAG = MappingProxyType({key.tag: key for key in (*KEYS, *QUERY_KEYS)})


# What records hold of an instance beside attributes of its data set (DESIGN §3).
OTHER_KEYS = frozenset(
    {"TransferSyntaxUID", "date_range", "mtime_ns", "node", "path", "sha256", "size", "source", "state", "type"}
)


def keywords_of(level: Level) -> tuple[str, ...]:
    """The index keys that belong to a level, in the order of their tags."""
    return tuple(key.keyword for key in KEYS if key.level == level)
