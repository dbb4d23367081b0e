"""The crosswalk: who became whom. It is as secret as the source, and is kept apart from the result."""

import csv
import io
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from dcmtools.disk.atomic import FILE_MODE
from dcmtools.files.deidentify.profile import Profile
from dcmtools.files.deidentify.pseudonyms import Key
from dcmtools.files.taking_out import NotTaken, Taken
from dcmtools.model.errors import CannotCreate, UsageError, from_os
from dcmtools.model.record import Record, encode

_LEVELS = (("study", "StudyInstanceUID"), ("series", "SeriesInstanceUID"), ("instance", "SOPInstanceUID"))


class Crosswalk:
    """A file of lines kind, old, new: patient, study, series, instance, date_shift; each once, synced at the end.

    CSV where its name ends with .csv, else JSON lines. CannotCreate when the name is taken.
    """

    def __init__(self, path: Path, out: Path, key: Key, profile: Profile) -> None:
        self.path, self._key, self._profile = path, key, profile
        refuse_inside(path, out, "--crosswalk")
        self._is_csv = path.suffix.lower() == ".csv"
        self._told: set[tuple[str, str]] = set()

    def __enter__(self) -> Self:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(self.path, flags, FILE_MODE)
        except FileExistsError:
            reason = f"{self.path} is there already"
            raise CannotCreate(reason, "a crosswalk is never overwritten: choose another name") from None
        except OSError as problem:
            raise from_os(problem, "writing the crosswalk", self.path) from problem
        if self._is_csv:
            self._write(b"kind,old,new\r\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError as one:
            raise from_os(one, "writing the crosswalk", self.path) from one
        finally:
            os.close(self._descriptor)

    def __call__(self, item: Taken | NotTaken | Record, record: Record) -> None:
        """Adds what is new in a result."""
        if isinstance(item, NotTaken) or record.get("type") == "error":
            return
        old = item.outcome.old if isinstance(item, Taken) and item.outcome else item
        if not isinstance(old, dict):
            return
        patient = str(old.get("PatientID") or "")
        rows = [("patient", patient, str(record.get("PatientID") or ""))]
        rows += [(kind, str(old.get(name) or ""), str(record.get(name) or "")) for kind, name in _LEVELS]
        if self._profile.retain_dates == "modified":
            issuer = str(old.get("IssuerOfPatientID") or "")
            days = self._key.shift(issuer, patient) if patient else self._key.shift("study", rows[1][1])
            rows.append(("date_shift", patient, str(days)))
        self._write(b"".join(map(self._line, filter(self._is_new, rows))))

    def _is_new(self, row: tuple[str, str, str]) -> bool:
        known = row[:2] in self._told
        self._told.add(row[:2])
        return not known

    def _line(self, row: tuple[str, str, str]) -> bytes:
        kind, old, new = row
        if not self._is_csv:
            return encode({"kind": kind, "old": old, "new": new})
        text = io.StringIO()
        csv.writer(text).writerow(row)
        return text.getvalue().encode()

    def _write(self, data: bytes) -> None:
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError as problem:
            raise from_os(problem, "writing the crosswalk", self.path) from problem


def refuse_inside(path: Path, out: Path, option: str) -> None:
    """Raises UsageError for a file that would go out with the result."""
    if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(out)):
        raise UsageError(f"{option} {path}: lies in the output folder", "write it elsewhere: it must not go out")
