"""Names of volumes: a template whose fields are DICOM keywords, and whose every part becomes one safe path component.

The default cannot give two series one name, because a hash of the series' UID is in it.
"""

import re
from contextlib import suppress
from pathlib import PurePosixPath
from string import Formatter

from dcmtools.model.errors import UsageError
from dcmtools.model.keys import BY_KEYWORD
from dcmtools.model.names import safe_name, short_hash
from dcmtools.model.record import Record

DEFAULT_TEMPLATE = (
    "{PatientID}/{StudyDate}_{StudyUIDhash8}/{SeriesNumber:04d}_{SeriesDescription}_{SeriesUIDhash8}{suffix}"
)
UNKNOWN = "unknown"
_HASHES = {"StudyUIDhash8": "StudyInstanceUID", "SeriesUIDhash8": "SeriesInstanceUID"}
_FIELDS = frozenset({*_HASHES, "suffix", *(key.keyword for key in BY_KEYWORD.values() if key.level != "instance")})
_SPEC = re.compile(r"(0?\d{1,2}d?)?\Z")
_LONGEST = 60  # characters of one value: a name is cut here and not in its hash or suffix
_RESERVED = frozenset({"_suspect", "conversions.jsonl", "conversions.lock"})

Part = tuple[tuple[str, str | None, str], ...]  # literal text, field, format


class Template:
    """The names of volumes, without their extension."""

    def __init__(self, text: str = DEFAULT_TEMPLATE) -> None:
        """UsageError when the text is no template."""
        self._parts = [_part(part, text) for part in text.split("/")]
        if "{suffix}" not in text:  # without it a series' echoes would have one name
            text += "{suffix}"
            self._parts[-1] = (*self._parts[-1], ("", "suffix", ""))
        self.text = text

    def path(self, source: Record, suffix: str = "") -> PurePosixPath:
        """The relative path of a volume of this series; `suffix` is what the engine tells its volumes apart by."""
        values = {**source, "suffix": f"_{suffix}" if suffix[:1].isalnum() else suffix}
        names = [
            safe_name("".join(text + _value(field, spec, values) for text, field, spec in part)) for part in self._parts
        ]
        if names[0] in _RESERVED:
            names[0] = f"_{names[0]}"
        return PurePosixPath(*names)


def _part(text: str, template: str) -> Part:
    try:
        pieces = [(literal, field, spec or "", kind) for literal, field, spec, kind in Formatter().parse(text)]
    except ValueError as problem:
        raise UsageError(f"the template '{template}' cannot be read: {problem}") from None
    if not text or text in {".", ".."}:
        raise UsageError(f"the template '{template}' has an empty part", "write it as a relative path: A/B{suffix}")
    for _, field, spec, kind in pieces:
        if field is not None and (field not in _FIELDS or kind or not _SPEC.match(spec)):
            raise UsageError(
                f"the template '{template}' has a field that is not known: {field}{f':{spec}' if spec else ''}",
                "use keywords of patient, study or series, StudyUIDhash8, SeriesUIDhash8 and suffix",
            )
    return tuple((literal, field, spec) for literal, field, spec, _ in pieces)


def _value(field: str | None, spec: str, values: Record) -> str:
    if field is None:
        return ""
    if field in _HASHES:
        return short_hash(str(values.get(_HASHES[field])))
    value = values.get(field)
    if field == "suffix":
        return str(value)
    if value is None or value == "":
        return UNKNOWN
    if isinstance(value, list):
        value = "-".join(map(str, value))
    if spec:
        with suppress(TypeError, ValueError):
            return format(int(value), f"{spec.rstrip('d')}d")
    return "_".join(str(value).split())[:_LONGEST]  # the tools of the field stumble over blanks
