"""The archive: a folder of files, one an instance, with its index (DESIGN §4).

An instance lies at <StudyInstanceUID>/<SeriesInstanceUID>/<SOPInstanceUID>.dcm, so that a name which is taken is how a
duplicate shows; where another layout was asked for, the index shows it. What comes in is written below
`.dcmtools-incoming` and gets its name when it is whole and synced.
"""

import errno
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dcmtools.disk.atomic import (
    FOLDER_MODE,
    TEMPORARY_PREFIX,
    fsync_file,
    fsync_folder,
    link_into,
    make_folders,
    temporary_name,
)
from dcmtools.disk.copying import copy, link
from dcmtools.disk.header import read_header, read_meta
from dcmtools.disk.index import Index
from dcmtools.disk.lock import flock_within, open_lock
from dcmtools.disk.part10 import data_set_hash, same_data_set
from dcmtools.disk.tree import INDEX_NAME, QUARANTINE
from dcmtools.model.errors import BadData, CannotCreate, DcmtoolsError, DiskFull, IOFailure, Locked, from_os
from dcmtools.model.layout import parse_layout
from dcmtools.model.names import is_uid, safe_name
from dcmtools.model.record import Record, event, path_keys, path_of, pick

INCOMING = f"{TEMPORARY_PREFIX}incoming"
_LOCK = ".lock"
_PATIENCE = 60.0
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

# How a file reads of which only a part is left.
_DAMAGES = frozenset({"truncated", "bad-length", "not-dicom"})

State = Literal["received", "present", "conflict"]
OnDuplicate = Literal["first", "newest"]


@dataclass(frozen=True, slots=True)
class Committed:
    """Where an instance ended up: new (received), there already (present), or beside another of its UID (conflict)."""

    state: State
    path: Path
    record: Record
    replaced: Path | None = None  # where the version is kept that was the answer before


@dataclass(frozen=True, slots=True)
class Incoming:
    """A folder of our own for what is being received; it goes when its owner is done, or found dead."""

    folder: Path

    def new_path(self) -> Path:
        """A place in it that nothing has yet."""
        return Path(self.new_name())

    def new_name(self) -> str:
        """As `new_path`, as text."""
        return f"{self.folder}/{temporary_name()}"

    def make_again(self) -> None:
        """Makes the folder again after somebody removed it; not the archive itself, whose disk may only be away."""
        if self.folder.parent.parent.is_dir():
            self.folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            lock = open_lock(self.folder / _LOCK)  # for as long as we live
            flock_within(lock, 0)


class Archive:
    """A folder with instances and their index. Nothing in it is ever overwritten, and nothing lands outside it.

    Of two data sets with one SOP Instance UID the first is the answer, or the newest; the other is in quarantine.
    """

    def __init__(self, root: Path | str, layout: str = "uid", *, on_duplicate: OnDuplicate = "first") -> None:
        self.root = Path(os.path.realpath(root))
        self.layout = parse_layout(layout)
        self.on_duplicate = on_duplicate
        self.index = Index(self.root / INDEX_NAME, self.root)
        self._making = threading.Lock()
        self._turn = threading.Condition()
        self._claims: set[str] = set()

    def path_for(self, record: Record) -> Path:
        """Where an instance belongs; BadData when its UIDs are none.

        Where a layout does not tell instances apart, and another one has the name already, it is another name.
        """
        uids = [record.get(key) for key in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]
        if not all(map(is_uid, uids)):
            raise BadData("an instance without usable UIDs has no place in an archive", cause="bad-uid")
        final = self.root / self.layout.path(record)
        if not self.layout.tells_instances_apart and _is_of_another(final, record):
            return self.root / self.layout.distinct_path(record)
        return final

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
        uids = {str(record.get("SOPInstanceUID")) for _, record in items}
        outcomes: list[Committed | DcmtoolsError] = []
        with self.claim(uids):
            known = self.index.everywhere(uids)
            events: list[Record] = []
            for temporary, record in items:
                try:
                    if not synced:
                        fsync_file(temporary)
                    here = known.setdefault(str(record.get("SOPInstanceUID")), [])
                    outcomes.append(self._place(temporary, record, here, events))
                except DcmtoolsError as problem:
                    outcomes.append(problem)
                except OSError as problem:
                    outcomes.append(from_os(problem, "storing", self.path_for(record)))
            done = [outcome for outcome in outcomes if isinstance(outcome, Committed)]
            folders = {outcome.path.parent for outcome in done if outcome.state == "received"}
            self._fsync(folders)
            if done or events:
                self.index.append_after(lambda: self._news(outcomes, uids, events, folders))
        return outcomes

    def tell(
        self, linked: list[Committed], seen: tuple[int, int, int], *, sync: bool = True
    ) -> list[Committed | DcmtoolsError]:
        """Appends the lines of instances that were just linked; their folders are synced, and their UIDs claimed.

        `seen` is the index's state when it did not know them. Where others wrote to it since, its news count. What
        became of each, in order; an error of the index concerns all and is raised.
        """
        outcomes: list[Committed | DcmtoolsError] = list(linked)
        uids = {str(one.record["SOPInstanceUID"]) for one in linked}

        def news() -> list[Record]:
            if self.index.state() == seen or self.index.still_lacks(uids):
                return [one.record for one in linked]
            return self._news(outcomes, uids, [], {one.path.parent for one in linked})

        self.index.append_after(news, sync=sync)
        return outcomes

    def open_folder(self, place: Path) -> int:
        """A descriptor of a folder in the archive, which is made where it is missing."""
        with self._folder(*place.relative_to(self.root).parts) as descriptor:
            return os.dup(descriptor)

    def add_missing(self, records: Iterable[Record]) -> None:
        """Indexes files that lie in the archive already: whoever put them there may have died before that."""
        records = list(records)
        known = self.index.by_paths(path for record in records if (path := path_of(record)))
        lines = [record for record in records if os.fspath(path_of(record) or "") not in known]
        self._fsync(_folders(lines))
        self.index.append(lines)

    def _fsync(self, folders: Iterable[Path]) -> None:
        """Makes the names in folders durable, so that the index may tell of them."""
        try:
            for folder in folders:
                fsync_folder(folder)
        except OSError as problem:
            raise from_os(problem, "storing in", self.root) from problem

    @contextmanager
    def claim(self, uids: set[str]) -> Iterator[None]:
        """Keeps other threads away from these instances, and only these: the rest share the syncs of the index."""
        with self._turn:
            self._turn.wait_for(lambda: self._claims.isdisjoint(uids))
            self._claims |= uids
        try:
            yield
        finally:
            with self._turn:
                self._claims -= uids
                self._turn.notify_all()

    def quarantine(self, temporary: Path, record: Record, cause: str) -> Path:
        """Keeps a file that is no usable instance out of the way, and notes in the index why; its new path."""
        try:
            fsync_file(temporary)
            path, is_new = self._set_aside(temporary, record)
            fsync_folder(path.parent)
        except OSError as problem:
            raise from_os(problem, "keeping", self.root / QUARANTINE) from problem
        if is_new:
            self.index.append([_quarantined(path, record, cause)])
        return path

    def _place(self, temporary: Path, record: Record, known: list[Record], events: list[Record]) -> Committed:
        """Links a file to its name; looks at what is there when that, or its UID, is taken."""
        final = self.path_for(record)
        is_here = final in map(path_of, known) and final.exists()
        first = None if is_here else self._elsewhere(known, final)
        if first is None and self._link(temporary, final):
            committed = _committed("received", final, record)
            known.append(committed.record)
            return committed
        if first is None and self.path_for(record) != final:  # another process gave the name to another instance
            return self._place(temporary, record, known, events)
        first = first or final
        if _is_same(temporary, first):
            temporary.unlink()
            return _committed("present", first, record)
        if self._make_way(first, known, events):
            return self._place(temporary, record, known, events)
        if self.on_duplicate == "newest":
            return self._instead(temporary, record, first, known, events)
        return self._beside(temporary, record, first)

    def keeps(self, path: Path, record: Record) -> bool:
        """Whether the quarantine has the data set of a file already, as another version of its instance."""
        digest = data_set_hash(os.path.realpath(path))
        return any(_has(kept, digest) for kept in self._set_aside_paths(record, digest))

    def _instead(
        self, temporary: Path, record: Record, first: Path, known: list[Record], events: list[Record]
    ) -> Committed:
        """Makes a file the answer and sets the one that was it aside, unless it is itself an older version of it.

        The older one is in quarantine, and in the index as such, before its name is free.
        """
        try:
            older = read_header(first)
        except BadData:  # somebody has to look at that one
            return self._beside(temporary, record, first)
        if self.keeps(temporary, record):
            temporary.unlink()
            return _committed("present", first, older)
        aside = temporary.with_name(temporary_name())
        if not link(first, aside):
            copy(first, aside)
        fsync_file(aside)
        kept, _ = self._set_aside(aside, older)
        fsync_folder(kept.parent)
        if kept not in map(path_of, known):  # whoever set it aside first may have died before this
            self.index.append([{**older, **path_keys(kept), "state": "conflict", "duplicate_of": os.fspath(first)}])
        first.unlink()
        return replace(self._place(temporary, record, known, events), replaced=kept)

    def _link(self, temporary: Path, final: Path) -> bool:
        """Whether a file could be given its name."""
        try:
            with self._folder(*final.relative_to(self.root).parts[:-1]) as folder:
                link_into(temporary, folder, final.name)
        except FileExistsError:
            return False
        return True

    def _beside(self, path: Path, record: Record, first: Path) -> Committed:
        """Keeps a file whose UID the archive has with other content."""
        kept, _ = self._set_aside(path, record)
        return _committed("conflict", kept, {**record, "duplicate_of": os.fspath(first)})

    def _elsewhere(self, known: list[Record], final: Path) -> Path | None:
        """Where the archive has this UID under another study or series."""
        paths = (path for path in self._own(known) if path != final)
        return next((path for path in paths if path.exists()), None)

    def _own(self, known: list[Record]) -> Iterator[Path]:
        """Where in the archive an instance is answered for."""
        for record in known:
            if (path := path_of(record)) and path.is_relative_to(self.root) and record.get("state") != "conflict":
                yield path

    def _make_way(self, first: Path, known: list[Record], events: list[Record]) -> bool:
        """Sets the file that has a UID aside when it is damaged; a whole one never is."""
        told = next((record for record in known if path_of(record) == first), None)
        if told is None or not (cause := _damage(first, told)):
            return False
        path, _ = self._set_aside(first, told)
        events.append(_quarantined(path, told, cause))
        return True

    def _news(
        self, outcomes: list[Committed | DcmtoolsError], uids: set[str], events: list[Record], synced: set[Path]
    ) -> list[Record]:
        """The index lines for what was done; to be called while no other process can add any.

        Only now is sure which lines stay, and that no other process stored an instance at the same time.
        """
        everywhere = self.index.everywhere(uids)
        lines = list(events)
        told = {(uid, path_of(record)) for uid, known in everywhere.items() for record in known}
        for number, outcome in enumerate(outcomes):
            if not isinstance(outcome, Committed):
                continue
            uid = outcome.record["SOPInstanceUID"]
            known = everywhere.get(uid, [])
            outcomes[number] = now = self._overtaken(outcome, known)
            if not isinstance(now, Committed):
                continue
            if now.state != "conflict":
                gone = {path for path in self._own(known) if not path.exists() and (uid, path) in told}
                lines += ({"type": "tombstone", "SOPInstanceUID": uid, **path_keys(path)} for path in sorted(gone))
                told -= {(uid, path) for path in gone}
            if now.state == "received" or (uid, now.path) not in told:
                lines.append(now.record)
                told.add((uid, now.path))
        self._fsync(_folders(line for line in lines if line.get("type") != "tombstone") - synced)
        return lines

    def _overtaken(self, outcome: Committed, known: list[Record]) -> Committed | DcmtoolsError:
        """An outcome after another process may have stored the same instance, or taken away what was compared with."""
        if not outcome.path.exists():
            place = path_keys(outcome.path)
            return IOFailure(f"{place['path']} was moved meanwhile", "send the instance again", **place)
        if outcome.state != "received" or not (first := self._elsewhere(known, outcome.path)):
            return outcome
        try:
            return self._beside(outcome.path, outcome.record, first)
        except DcmtoolsError as problem:
            return problem
        except OSError as problem:
            return from_os(problem, "keeping", self.root / QUARANTINE)

    def _set_aside(self, temporary: Path, record: Record) -> tuple[Path, bool]:
        """Moves a file into the quarantine, where the same data set is kept once; its path, and if it is new."""
        digest = data_set_hash(temporary)
        with self._folder(QUARANTINE) as folder:
            for path in self._set_aside_paths(record, digest):
                try:
                    link_into(temporary, folder, path.name)
                except FileExistsError:
                    if not _has(path, digest):
                        continue
                    temporary.unlink()
                    return path, False
                return path, True
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(path))

    def _set_aside_paths(self, record: Record, digest: str) -> list[Path]:
        name = safe_name(str(record.get("SOPInstanceUID") or "unknown"))
        return [self.root / QUARANTINE / f"{name}.{digest[:digits]}.dcm" for digits in (8, len(digest))]

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
            with self._making:  # who finds a folder may rely on its name
                try:
                    return os.open(name, _OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=outer)
                except FileNotFoundError:
                    with suppress(FileExistsError):
                        os.mkdir(name, FOLDER_MODE, dir_fd=outer)
                    os.fsync(outer)
                    return os.open(name, _OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=outer)
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


def _quarantined(path: Path, record: Record, cause: str) -> Record:
    uids = pick(record, "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    return event("quarantined", **uids, cause=cause, **path_keys(path))


def _folders(records: Iterable[Record]) -> set[Path]:
    return {path.parent for record in records if (path := path_of(record))}


def _damage(path: Path, told: Record) -> str:
    """What is wrong with a file of which only a part is left: its size is not the one told, and no walk ends well."""
    try:
        if path.lstat().st_size == told.get("size"):
            return ""
        read_header(path)
    except BadData as problem:
        return problem.cause if problem.cause in _DAMAGES else ""
    return ""


def _has(path: Path, digest: str) -> bool:
    """Whether a file is there and has the data set of this hash."""
    return path.is_file() and data_set_hash(path) == digest


def _is_of_another(path: Path, record: Record) -> bool:
    """Whether a name is taken by something that is not this instance."""
    try:
        return bool(read_meta(path).sop_instance != record["SOPInstanceUID"])
    except BadData:
        return os.path.lexists(path)


def _is_same(temporary: Path, first: Path) -> bool:
    try:
        return same_data_set(temporary, first)
    except BadData:  # what stands there is damaged, or a link: keep the new one too
        return False


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
