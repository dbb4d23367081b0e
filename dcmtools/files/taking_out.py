"""Takes one instance out: a copy, a link, or a de-identified instance, at a temporary name; done in any process."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from dcmtools.disk.atomic import temporary_name
from dcmtools.disk.copying import copy, link
from dcmtools.disk.header import read_header
from dcmtools.files.deidentify.instance import Deidentifier, Outcome, Settings
from dcmtools.files.deidentify.pseudonyms import Key
from dcmtools.model.errors import DcmtoolsError, from_os
from dcmtools.model.record import Record, path_keys

How = Literal["copy", "link"]


class Job(NamedTuple):
    """A file to take out, with the number of its record; one `found` in a folder need not be an instance."""

    path: str
    number: int
    found: bool = False


class Taken(NamedTuple):
    """An instance that was taken out: its record, without a place yet, and where it waits for its name."""

    job: Job
    record: Record
    staged: str | None
    state: str
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class NotTaken:
    """An instance that stays where it is, and why."""

    job: Job
    problem: DcmtoolsError


class Mark:
    """By what the index of the output knows what a file was made from, and how: a keyed hash."""

    def __init__(self, key: Key | None, settings: Settings | None) -> None:
        self._key, self._how = key, repr(settings)

    def __call__(self, uid: str, state: os.stat_result) -> str:
        """The mark of a source; none without a key."""
        if self._key is None:
            return ""
        return self._key.digest("SOURCE", uid, str(state.st_size), str(state.st_mtime_ns), self._how).hex()[:32]


class TakeOut:
    """What is done with each job; without a `staging` folder nothing is written."""

    def __init__(self, staging: Path | None, how: How, key: Key | None, settings: Settings | None) -> None:
        self._staging, self._how = staging, how
        self._deidentifier = Deidentifier(key, settings) if key and settings else None
        self._mark = Mark(key, settings)

    def __call__(self, job: Job) -> Taken | NotTaken:
        """The instance at a temporary name, or why not; IOFailure, which ends all, is told and not raised."""
        target = self._staging / temporary_name() if self._staging else None
        try:
            return self._deidentified(job, target) if self._deidentifier else self._as_it_is(job, target)
        except DcmtoolsError as problem:
            return NotTaken(job, problem)
        except OSError as problem:
            return NotTaken(job, from_os(problem, "exporting", job.path))

    def _deidentified(self, job: Job, target: Path | None) -> Taken:
        assert self._deidentifier is not None  # noqa: S101
        state = os.stat(job.path)
        try:
            outcome = self._deidentifier.deidentify(job.path, target)
        except DcmtoolsError as problem:
            problem.where |= path_keys(job.path)
            raise
        record = {**outcome.record, "made_from": self._mark(outcome.old["SOPInstanceUID"], state)}
        return Taken(job, record, _name(target), "deidentified", replace(outcome, record={}))

    def _as_it_is(self, job: Job, target: Path | None) -> Taken:
        record = read_header(job.path, follow=True)
        if target is None:
            return Taken(job, record, None, "linked" if self._how == "link" else "copied")
        source = Path(os.path.realpath(job.path))
        if self._how == "link" and link(source, target):
            return Taken(job, record, _name(target), "linked")
        copy(source, target)
        return Taken(job, record, _name(target), "copied")


def _name(path: Path | None) -> str | None:
    # A Path takes ten times as long to send as a text.
    return None if path is None else os.fspath(path)
