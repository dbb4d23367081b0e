"""Which keys of a record a table shows, by the record's type, where --fields does not say."""

from collections.abc import Iterable

from dcmtools.model.record import Record, type_of

_STUDY = ("state", "StudyDate", "PatientID", "PatientName", "ModalitiesInStudy", "StudyDescription")

COLUMNS: dict[str, tuple[str, ...]] = {
    "patient": ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "NumberOfPatientRelatedStudies"),
    "study": (*_STUDY, "AccessionNumber", "NumberOfStudyRelatedInstances", "StudyInstanceUID"),
    "series": (
        "state", "StudyDate", "PatientID", "Modality", "SeriesNumber", "SeriesDescription",
        "NumberOfSeriesRelatedInstances", "SeriesInstanceUID",
    ),
    "instance": ("state", "PatientID", "StudyDate", "Modality", "SeriesNumber", "InstanceNumber", "path"),
    "volume": ("state", "PatientID", "StudyDate", "Modality", "SeriesNumber", "SeriesDescription", "path"),
    "file": ("state", "path"),
    "node": ("node", "ae_title", "host", "port", "state", "ms", "description"),
}  # fmt: skip
# What a node tells of beside its records, shown only where there is something to show.
OPTIONAL = frozenset({"state", "node", "ms", "description"})


def columns_of_all(records: Iterable[Record]) -> tuple[str, ...]:
    """The keys that a table of all these records has."""
    return tuple(dict.fromkeys(key for record in records for key in columns_of(record)))


def columns_of(record: Record) -> tuple[str, ...]:
    """The keys that a table of such records has."""
    known = COLUMNS.get(type_of(record), ())
    shown = tuple(key for key in known if key in record or key not in OPTIONAL)
    more = ("node",) if "node" in record and "node" not in shown else ()
    return (*shown, *more) or tuple(key for key in record if key != "type") or ("type",)
