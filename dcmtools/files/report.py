"""The report of a de-identification: one line an instance, without any value or path of the source."""

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from dcmtools.disk.atomic import FILE_MODE
from dcmtools.files.crosswalk import refuse_inside
from dcmtools.files.deidentify import table
from dcmtools.files.deidentify.instance import Settings
from dcmtools.files.deidentify.profile import METHOD
from dcmtools.files.deidentify.pseudonyms import Key
from dcmtools.files.taking_out import NotTaken, Taken
from dcmtools.model.errors import from_os
from dcmtools.model.record import Record, encode, path_of


class Report:
    """Lines that are added to a file as results come; the first of each run says by what rules.

    `source` is a keyed hash of the source's path: whoever has the key and the path can find the line, nobody else.
    """

    def __init__(self, path: Path, out: Path, settings: Settings, key: Key) -> None:
        refuse_inside(path, out, "--report")
        self.path, self._settings, self._key = path, settings, key

    def __enter__(self) -> Self:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            self._file = os.fdopen(os.open(self.path, flags, FILE_MODE), "ab")
        except OSError as problem:
            raise from_os(problem, "writing the report", self.path) from problem
        profile = self._settings.profile
        own = {
            f"{tag:08X}": {"K": "keep", "X": "remove", "R": "replace"}[one.letter] for tag, one in profile.own.items()
        }
        self._add(
            {
                "type": "profile",
                "method": METHOD,
                "edition": table.EDITION,
                "table_sha256": table.digest(),
                "codes": list(profile.codes),
                "own": own,
                "burned_in": self._settings.burned_in,
                "on_residue": self._settings.on_residue,
            }
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._file:
                self._file.flush()
                os.fsync(self._file.fileno())
        except OSError as one:
            raise from_os(one, "writing the report", self.path) from one

    def __call__(self, item: Taken | NotTaken | Record, record: Record) -> None:
        """Adds the line of a result."""
        path = path_of(item) if isinstance(item, dict) else item.job.path
        line: Record = {"type": "instance", "source": self._key.digest("PATH", os.fspath(path or "")).hex()[:32]}
        if record.get("type") == "error":
            cause = record.get("cause")
            state = "quarantined" if "quarantine" in record else "refused" if cause in _REFUSALS else "failed"
            self._add({**line, "state": state, "cause": cause})
            return
        line |= {"SOPInstanceUID": record.get("SOPInstanceUID"), "state": record.get("state")}
        if isinstance(item, Taken) and item.outcome:
            outcome = item.outcome
            line |= {"actions": outcome.actions, "codes": list(outcome.codes)}
            line |= {"cleaned": list(outcome.cleaned)} if outcome.cleaned else {}
            line |= {"dates_removed": list(outcome.spoiled)} if outcome.spoiled else {}
        self._add(line)

    def _add(self, line: Record) -> None:
        try:
            self._file.write(encode(line))
        except OSError as problem:
            raise from_os(problem, "writing the report", self.path) from problem


_REFUSALS = frozenset({"burned-in", "residue", "self-check", "private-sop-class"})
