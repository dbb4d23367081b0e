"""The archive: a folder of files, one an instance, with its index (DESIGN §4).

An instance lies at <StudyInstanceUID>/<SeriesInstanceUID>/<SOPInstanceUID>.dcm, so that a name which is taken is how a
duplicate shows. What comes in is written below `.dcmtools-incoming` and gets its name when it is whole and synced.
"""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dcmtools.disk.atomic import FOLDER_MODE, TEMPORARY_PREFIX, fsync_folder, link_into, make_folders, temporary_name
from dcmtools.disk.index import Index
from dcmtools.disk.lock import flock_within, open_lock
from dcmtools.disk.part10 import data_set_hash, same_data_set
from dcmtools.disk.tree import INDEX_NAME, QUARANTINE
from dcmtools.model.errors import BadData, CannotCreate, DcmtoolsError, DiskFull, Locked, from_os
from dcmtools.model.names import is_uid, safe_name
from dcmtools.model.record import Record, event, path_keys, path_of, pick

INCOMING = f"{TEMPORARY_PREFIX}incoming"
_LOCK = ".lock"
_PATIENCE = 60.0
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

State = Literal["received", "present", "conflict"]


@dataclass(frozen=True, slots=True)
class Committed:
    """Where an instance ended up: new (received), there already (present), or beside another of its UID (conflict)."""

    state: State
    path: Path
    record: Record


@dataclass(frozen=True, slots=True)
class Incoming:
    """A folder of our own for what is being received; it goes when its owner is done, or found dead."""

    folder: Path

    def new_path(self) -> Path:
        """A name in it that nothing has yet."""
        return self.folder / temporary_name()


class Archive:
    """A folder with instances and their index. Nothing in it is ever overwritten, and nothing lands outside it."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(os.path.realpath(root))
        self.index = Index(self.root / INDEX_NAME, self.root)

    def path_for(self, record: Record) -> Path:
        """Where an instance belongs; BadData when its UIDs are none."""
        uids = [record.get(key) for key in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]
        if not all(map(is_uid, uids)):
            raise BadData("an instance without usable UIDs has no place in an archive", cause="bad-uid")
        study, series, instance = (safe_name(str(uid)) for uid in uids)
        return self.root / study / series / f"{instance}.dcm"

    def require_free(self, least: int) -> None:
        """DiskFull when fewer than so many bytes are left for the archive."""
        place = next(folder for folder in (self.root, *self.root.parents) if folder.exists())
        state = os.statvfs(place)
        if (free := state.f_bavail * state.f_frsize) < least:
            reason = f"{self.root} has {free >> 20} MiB left, and {least >> 20} MiB must stay free"
            raise DiskFull(reason, "free some space and run the same command again: it resumes")

    @contextmanager
    def incoming(self) -> Iterator[Incoming]:
        """A folder for what is being received; those of owners that died are swept away first."""
        with self._folder(INCOMING):
            pass
        place = self.root / INCOMING
        folder = place / temporary_name()
        with _locked(place / _LOCK):
            _sweep(place)
            folder.mkdir(mode=FOLDER_MODE)
            lock = open_lock(folder / _LOCK)
            flock_within(lock, 0)
        try:
            yield Incoming(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)

    def commit(self, temporary: Path, record: Record) -> Committed:
        """Makes a file that was received part of the archive: durable, under its name, in the index (DESIGN §5).

        The temporary's name is gone afterwards. DiskFull, IOFailure, CannotCreate or BadData when it could not be done.
        """
        (outcome,) = self.commit_all([(temporary, record)])
        if isinstance(outcome, DcmtoolsError):
            raise outcome
        return outcome

    def commit_all(
        self, items: Iterable[tuple[Path, Record]], *, synced: bool = False
    ) -> list[Committed | DcmtoolsError]:
        """As `commit`, for many at once: each folder and the index are synced once. One outcome an item, in order.

        `synced` tells that the files are on the disk already. An error of the index concerns all and is raised.
        """
        items = list(items)
        known = self.index.lookup({str(record.get("SOPInstanceUID")) for _, record in items})
        outcomes: list[Committed | DcmtoolsError] = []
        lines: list[Record] = []
        for temporary, record in items:
            try:
                if not synced:
                    _sync(temporary)
                outcome = self._place(temporary, record, known)
                lines += self._news(outcome, known)
                outcomes.append(outcome)
            except DcmtoolsError as problem:
                outcomes.append(problem)
            except OSError as problem:
                outcomes.append(from_os(problem, "storing", self.path_for(record)))
        self._settle(lines)
        return outcomes

    def add_missing(self, records: Iterable[Record]) -> None:
        """Indexes files that lie in the archive already: whoever put them there may have died before that."""
        records = list(records)
        known = self.index.by_paths(path for record in records if (path := path_of(record)))
        self._settle([record for record in records if os.fspath(path_of(record) or "") not in known])

    def _settle(self, lines: list[Record]) -> None:
        """Makes names durable, then tells of them in the index."""
        try:
            for folder in {path.parent for line in lines if (path := path_of(line))}:
                fsync_folder(folder)
        except OSError as problem:
            raise from_os(problem, "storing in", self.root) from problem
        self.index.append(lines)

    def quarantine(self, temporary: Path, record: Record, cause: str) -> Path:
        """Keeps a file that is no usable instance out of the way, and notes in the index why; its new path."""
        try:
            _sync(temporary)
            path = self._set_aside(temporary, record)
            fsync_folder(path.parent)
        except OSError as problem:
            raise from_os(problem, "keeping", self.root / QUARANTINE) from problem
        uids = pick(record, "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        self.index.append([event("quarantined", **uids, cause=cause, **path_keys(path))])
        return path

    def _place(self, temporary: Path, record: Record, known: Mapping[str, Record]) -> Committed:
        """Links a file to its name; looks at what is there when that, or its UID, is taken."""
        final = self.path_for(record)
        first = self._elsewhere(known.get(record["SOPInstanceUID"]), final)
        if first is None:
            try:
                with self._folder(*final.relative_to(self.root).parts[:-1]) as folder:
                    link_into(temporary, folder, final.name)
            except FileExistsError:
                first = final
            else:
                return _committed("received", final, record)
        if _is_same(temporary, first):
            temporary.unlink()
            return _committed("present", first, record)
        path = self._set_aside(temporary, record)
        return _committed("conflict", path, {**record, "duplicate_of": os.fspath(first)})

    def _elsewhere(self, known: Record | None, final: Path) -> Path | None:
        """Where the archive has this UID under another study or series."""
        path = path_of(known) if known else None
        if path is None or path == final or not path.is_relative_to(self.root) or not path.exists():
            return None
        return path

    def _news(self, outcome: Committed, known: dict[str, Record]) -> list[Record]:
        """The index line of an outcome, if it is not there yet."""
        uid = outcome.record["SOPInstanceUID"]
        if outcome.state == "conflict":
            is_known = outcome.path in map(path_of, self.index.by_paths([outcome.path]).values())
        else:
            is_known = uid in known and path_of(known[uid]) == outcome.path
            known.setdefault(uid, outcome.record)
        return [] if is_known else [outcome.record]

    def _set_aside(self, temporary: Path, record: Record) -> Path:
        """Links a file into the quarantine; the same data set a second time is dropped."""
        digest = data_set_hash(temporary)
        name = safe_name(str(record.get("SOPInstanceUID") or "unknown"))
        with self._folder(QUARANTINE) as folder:
            for digits in (8, len(digest)):
                path = self.root / QUARANTINE / f"{name}.{digest[:digits]}.dcm"
                try:
                    link_into(temporary, folder, path.name)
                except FileExistsError:
                    if data_set_hash(path) != digest:
                        continue
                    temporary.unlink()
                break
        return path

    @contextmanager
    def _folder(self, *names: str) -> Iterator[int]:
        """A folder below the root, open; made where it is missing, refused where a link stands in the way."""
        make_folders(self.root)
        descriptor = os.open(self.root, _OPEN_FOLDER)
        try:
            for name in names:
                inner = self._enter(descriptor, name)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    def _enter(self, outer: int, name: str) -> int:
        try:
            return os.open(name, _OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=outer)
        except FileNotFoundError:
            with suppress(FileExistsError):
                os.mkdir(name, FOLDER_MODE, dir_fd=outer)
                os.fsync(outer)
            return self._enter(outer, name)
        except OSError as problem:
            if problem.errno not in {errno.ELOOP, errno.ENOTDIR}:
                raise
            reason = f"{name} in {self.root} is not a folder but a link or a file"
            raise CannotCreate(reason, "move it away: nothing is written through links in an archive") from problem


def _committed(state: State, path: Path, record: Record) -> Committed:
    found = path.stat()
    place = {**path_keys(path), "size": found.st_size, "mtime_ns": str(found.st_mtime_ns)}
    kept = {key: value for key, value in record.items() if key != "path_b64"}
    return Committed(state, path, {**kept, **place, "state": state})


def _is_same(temporary: Path, first: Path) -> bool:
    try:
        return same_data_set(temporary, first)
    except BadData:  # what stands there is damaged, or a link: keep the new one too
        return False


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = open_lock(path)
    try:
        if not flock_within(lock, _PATIENCE):
            raise Locked(f"{path} has been held for {_PATIENCE:.0f} s", "look for a stopped dcmtools process")
        yield
    finally:
        os.close(lock)


def _sweep(place: Path) -> None:
    """Removes the folders whose owners died: the kernel has given back their locks."""
    for folder in place.iterdir():
        if not folder.is_dir():
            continue
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            continue
        if flock_within(lock, 0):
            shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
