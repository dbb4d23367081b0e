"""File names that a DICOMDIR can list (PS3.10 8.2, PS3.12)."""

import base64
import hashlib

from dcmtools.model.record import Record


class MediaLayout:
    """File IDs of media: components of up to eight capitals and digits, made of the UIDs (PS3.10 8.2, PS3.12)."""

    tells_instances_apart = True

    def path(self, record: Record) -> str:
        """Where an instance belongs, relative and with / between the components."""
        keys = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        names = (f"{mark}{_short(str(record.get(key) or ''))}" for mark, key in zip("PSSI", keys, strict=True))
        return "/".join(("DICOM", *names))

    def distinct_path(self, record: Record) -> str:
        """As `path`: no two instances want one name."""
        return self.path(record)


def _short(text: str) -> str:
    return base64.b32encode(hashlib.sha256(text.encode()).digest()).decode()[:7]
