"""Patients, studies, series and instances as an indented tree, for people."""

from collections.abc import Sequence

from dcmtools.cli.formats import Lines, cell
from dcmtools.cli.talk import printable
from dcmtools.model.record import LEVELS, UNIQUE_KEY, Record, type_of

# What stands in the line of each level, and what is counted there, with its words for one and for several.
_WORDS: dict[str, tuple[str, ...]] = {
    "patient": ("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    "study": ("StudyDate", "StudyDescription", "AccessionNumber", "StudyInstanceUID"),
    "series": ("SeriesNumber", "Modality", "SeriesDescription", "SeriesInstanceUID"),
    "instance": ("InstanceNumber", "SOPInstanceUID", "path"),
}
_COUNTS: dict[str, tuple[str, str, str]] = {
    "patient": ("NumberOfPatientRelatedStudies", "study", "studies"),
    "study": ("NumberOfStudyRelatedSeries", "series", "series"),
    "series": ("NumberOfSeriesRelatedInstances", "instance", "instances"),
}
_INDENT = "  "


class Tree(Lines):
    """A line for each record, below lines for what it belongs to; records of one study come after each other."""

    says_everything = False

    def __init__(self, fields: Sequence[str] | None = None, *, to_terminal: bool = False) -> None:
        super().__init__(fields, to_terminal=to_terminal)
        self._above: list[str] = []

    def render(self, record: Record) -> bytes:
        """The record's line, with those above it that were not there yet."""
        if type_of(record) not in LEVELS:
            return b""
        levels = LEVELS[: LEVELS.index(type_of(record)) + 1]
        names = [str(record.get(UNIQUE_KEY[level]) or "") for level in levels]
        same = next((n for n, name in enumerate(names) if self._above[n : n + 1] != [name]), len(names) - 1)
        self._above = names
        rows = (_INDENT * depth + self._line(level, record) for depth, level in enumerate(levels) if depth >= same)
        return "".join(f"{row}\n" for row in rows).encode("utf-8", "replace")

    def _line(self, level: str, record: Record) -> str:
        words = [cell(record.get(key)) for key in _WORDS[level]]
        if level == type_of(record) and level in _COUNTS:
            key, one, many = _COUNTS[level]
            if (count := record.get(key)) is not None:
                words.append(f"{count} {one if count == 1 else many}")
        return _INDENT.join(printable(word) for word in words if word) or "-"
