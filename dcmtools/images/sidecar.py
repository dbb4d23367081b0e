"""The sidecar: the engine's own fields, as BIDS knows them, and a `dcmtools` block on where the volume comes from."""

import json
from collections.abc import Mapping
from typing import Any

from dcmtools import __version__
from dcmtools.model.record import Record

# Text that an engine copies out of a header without regard to its character set; the index has it right.
_TEXT = {
    "PatientName": "PatientName",
    "PatientID": "PatientID",
    "AccessionNumber": "AccessionNumber",
    "ReferringPhysicianName": "ReferringPhysicianName",
    "SeriesDescription": "SeriesDescription",
    "StudyDescription": "StudyDescription",
    "ProtocolName": "ProtocolName",
    "InstitutionName": "InstitutionName",
}


def sidecar(header: Mapping[str, object], source: Record, ours: Record) -> bytes:
    """The JSON file of a volume; no time and no path in it, so that equal input gives equal bytes.

    Args:
        header: the engine's fields
        source: what the index knows of the series
        ours: the `dcmtools` block
    """
    fields: dict[str, Any] = {**header, **_corrected(header, source)}
    fields["dcmtools"] = {"version": __version__, **ours}
    text = json.dumps(fields, indent=2, ensure_ascii=False, allow_nan=False, default=str)
    return f"{text}\n".encode("utf-8", "replace")


def _corrected(header: Mapping[str, object], source: Record) -> Record:
    """The texts that are not plain ASCII, in the index' reading."""
    known = {field: source.get(key) for field, key in _TEXT.items() if field in header}
    return {field: value for field, value in known.items() if isinstance(value, str) and not value.isascii()}
