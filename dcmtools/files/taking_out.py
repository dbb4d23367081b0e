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
    """An instance that stays where it is, and why; `aside`, with `record`, is its result that must be looked at."""

    job: Job
    problem: DcmtoolsError
    record: Record | None = None
    aside: Path | None = None


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
    """What is done with each job; without a `staging` folder nothing is written.

    In `aside` is made what may show identity in its pixels, where that is to be kept apart: never in the output.
    """

    def __init__(
        self, staging: Path | None, how: How, key: Key | None, settings: Settings | None, aside: Path | None = None
    ) -> None:
        self._staging, self._how, self._aside = staging, how, aside
        self._sets_aside = settings is not None and settings.burned_in == "quarantine"
        self._deidentifier = Deidentifier(key, settings) if key and settings else None
        self._mark = Mark(key, settings)

    def __call__(self, job: Job) -> Taken | NotTaken:
        """The instance at a temporary name, or why not; IOFailure, which ends all, is told and not raised."""
        target = self._staging / temporary_name() if self._staging else None
        try:
            return self._deidentified(job, target) if self._deidentifier else self._as_it_is(job, target)
        except DcmtoolsError as problem:
            return self._set_aside(job, problem) if self._is_for_others(problem) else NotTaken(job, problem)
        except OSError as problem:
            return NotTaken(job, from_os(problem, "exporting", job.path))

    def _is_for_others(self, problem: DcmtoolsError) -> bool:
        return self._sets_aside and problem.cause == "burned-in"

    def _set_aside(self, job: Job, why: DcmtoolsError) -> NotTaken:
        """The result with pixels as they are, for somebody to look at; or why there is none."""
        target = self._aside / temporary_name() if self._aside else None
        assert self._deidentifier is not None  # noqa: S101
        try:
            outcome = self._deidentifier.deidentify(job.path, target, blindly=True)
        except DcmtoolsError as problem:
            problem.where |= path_keys(job.path)
            return NotTaken(job, problem)
        except OSError as problem:
            return NotTaken(job, from_os(problem, "exporting", job.path))
        return NotTaken(job, why, outcome.record, target)

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
