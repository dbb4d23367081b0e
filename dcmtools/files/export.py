"""Takes instances out of the house: into a folder with a layout and an index of its own, as they are or de-identified.

Nothing appears there but whole instances, each under its final name at once, and nothing is replaced. What an earlier
run took out is left as it is. Files that are no instances, and DICOMDIRs, do not come along.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from dcmtools.disk.atomic import (
    FOLDER_MODE,
    TEMPORARY_PREFIX,
    fsync_file,
    fsync_folder,
    link_new,
    make_folders,
    sync_file_system,
    temporary_name,
)
from dcmtools.disk.index import Index
from dcmtools.disk.lock import Lock
from dcmtools.disk.parallel import Lost, each
from dcmtools.disk.tree import INDEX_NAME
from dcmtools.files.deidentify.instance import Settings
from dcmtools.files.deidentify.pseudonyms import Key
from dcmtools.files.media_layout import MediaLayout
from dcmtools.files.quarantine import Quarantine
from dcmtools.files.referencing import Stop, holds_same, never, until
from dcmtools.files.taking_out import How, Job, Mark, NotTaken, Taken, TakeOut
from dcmtools.files.zipping import zip_folder
from dcmtools.model.errors import BadData, CannotCreate, DcmtoolsError, IOFailure, Refused, UsageError, from_os
from dcmtools.model.layout import Layout, parse_layout
from dcmtools.model.record import NOTHING_THERE, Record, name_of, path_keys, path_of, type_of

LOCK_NAME = f"{TEMPORARY_PREFIX}lock"
_STAGING = f"{TEMPORARY_PREFIX}export"
# What goes to the disk together: one sync for many, and records that come out steadily.
_BATCH = 1000
_SECONDS = 2.0
# Of so few files each is synced by itself: a sync of the file system waits for what others write, too.
_FEW = 16
# What lies in a folder beside instances, and is no error.
_NO_INSTANCE = frozenset({"not-dicom", "dicomdir"})
# Files that go to a process together, and how many such chunks wait for each: none idles while a batch gets its names.
_CHUNK, _AHEAD = 32, 32

# Hears what came of an instance, or its record in the input when it was there already, and the record that comes out.
Result = Taken | NotTaken | Record
Listener = Callable[[Result, Record], None]


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How to export; with `settings` and a `key` instances are de-identified, and `how` does not count."""

    layout: Layout | MediaLayout = field(default_factory=lambda: parse_layout("uid"))
    how: How = "copy"
    key: Key | None = None
    settings: Settings | None = None
    lasting: bool = True  # whether the key can be used again: else OUT must be new or empty
    dry_run: bool = False
    jobs: int = 1
    dicomdir: bool = False
    quarantine: Path | None = None  # where what may show identity in its pixels is kept, when it is to be kept


def _nothing(item: Result, record: Record) -> None:
    """Nobody listens."""


def export(
    stream: Iterable[Record],
    out: Path,
    options: ExportOptions | None = None,
    *,
    stop: Stop = never,
    told: Listener = _nothing,
) -> Iterator[Record]:
    """A record for each instance of the stream, in its order, when its file is durable and in the index of `out`.

    The `state` is copied, linked, deidentified, or present. Errors pass through; other records do not, since they may
    tell of whom nothing shall be told. `told` hears of each result with its record before it comes out.

    Raises:
        CannotCreate: `out` cannot be made, or is not empty where it must be.
        Locked: another run exports there.
        DiskFull: when what was done before is durable.
    """
    options = options or ExportOptions()
    target = _Target(Path(os.path.abspath(out)), options)
    with ExitStack() as stack:
        if not options.dry_run:
            target.open(stack)
        elif options.settings:
            target.check_empty()
        yield from target.take(stream, stop, told)
        if options.dicomdir and not options.dry_run:
            from dcmtools.files.dicomdir import write_dicomdir

            write_dicomdir(target.out, target.index.instances())


def export_zip(
    stream: Iterable[Record], out: Path, options: ExportOptions, *, stop: Stop = never, told: Listener = _nothing
) -> Iterator[Record]:
    """As `export`, into a zip file: records come when it is whole, with the name within it as `member`.

    A run that is stopped makes no file. CannotCreate when `out` is there with other content.
    """
    out = Path(os.path.abspath(out))
    if options.dry_run:
        yield from (_member(record, out, out) for record in export(stream, out, options, stop=stop, told=told))
        return
    if out.exists() and options.key and not options.lasting:
        raise CannotCreate(f"{out} is there already", "use --key-file, or another name", cause="not-empty")
    make_folders(out.parent)
    folder = out.parent / temporary_name()
    try:
        records = list(export(stream, folder, options, stop=stop, told=told))
        if stop():
            return
        is_new = zip_folder(folder, out)
        for record in records:
            state = {} if is_new or type_of(record) == "error" else {"state": "present"}
            yield _member(record, folder, out) | state
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _member(record: Record, folder: Path, out: Path) -> Record:
    path = path_of(record)
    if type_of(record) == "error" or path is None:
        return record
    return {**record, **path_keys(out), "member": path.relative_to(folder).as_posix()}


class _Target:
    """The folder that is exported to."""

    def __init__(self, out: Path, options: ExportOptions) -> None:
        self.out, self.options = out, options
        self.index = Index(out / INDEX_NAME)
        self.staging = out / _STAGING
        self._folders: set[str] = set()
        self._planned: dict[str, tuple[str, str]] = {}  # in a plan: of which instance, and from which source
        self._mark = Mark(options.key, options.settings)
        self._is_new = not self.index.file.exists()  # then nothing can be there already
        self.aside = Quarantine(options.quarantine, self.out) if options.quarantine else None
        self._below = (*_prefixes(self.out), *(_prefixes(options.quarantine) if options.quarantine else ()))

    def open(self, stack: ExitStack) -> None:
        """Makes the folder, and clears what a killed run left unfinished."""
        self.check_empty()
        try:
            make_folders(self.out)
            stack.enter_context(Lock(self.out / LOCK_NAME, "export"))
            shutil.rmtree(self.staging, ignore_errors=True)
            self.staging.mkdir(mode=FOLDER_MODE)
        except OSError as problem:
            raise from_os(problem, "making the output folder", self.out) from problem
        stack.callback(shutil.rmtree, self.staging, ignore_errors=True)
        if self.aside:
            self.aside.open(stack)

    def check_empty(self) -> None:
        """Raises CannotCreate where a key for this run alone would not fit to what an earlier run made."""
        key = self.options.key
        if key is None or not self.out.exists():
            return
        there = [name for name in os.listdir(self.out) if not name.startswith(TEMPORARY_PREFIX)]
        if there and not self.options.lasting:
            reason = f"{self.out} is not empty, and without a key file the same patients would get other names and UIDs"
            raise CannotCreate(reason, "use --key-file, or a new folder", cause="not-empty")
        others = [one.get("key") for one in self.index.events() if one.get("event") == "deidentified-with"]
        if any(other != key.fingerprint() for other in others):
            reason = f"what is in {self.out} was made with another key"
            raise CannotCreate(reason, "use that key, or another folder", cause="other-key")

    def take(self, stream: Iterable[Record], stop: Stop, told: Listener) -> Iterator[Record]:
        """Takes out what the stream names."""
        options = self.options
        staging = None if options.dry_run else self.staging
        aside = self.aside.staging if self.aside and not options.dry_run else None
        take_out = TakeOut(staging, options.how, options.key, options.settings, aside)
        passing: dict[int, list[Record]] = {}
        jobs = self._jobs(stream, passing, stop, told)
        batch = _Batch(self, told)
        if options.key and not options.dry_run:
            self._sign(options.key)
        for job, result in each(options.jobs, take_out, jobs, at_once=_CHUNK, ahead=_AHEAD):
            yield from batch.add(_killer(job) if isinstance(result, Lost) else result, passing.pop(job.number, ()))
        yield from batch.flush()
        for number in sorted(passing):
            yield from passing[number]

    def _sign(self, key: Key) -> None:
        """Notes with which key the folder is filled, by a mark that tells nothing of it."""
        mark = key.fingerprint()
        if not any(one.get("key") == mark for one in self.index.events() if one.get("event") == "deidentified-with"):
            self.index.append([{"type": "event", "event": "deidentified-with", "key": mark}])

    def _jobs(
        self, stream: Iterable[Record], passing: dict[int, list[Record]], stop: Stop, told: Listener
    ) -> Iterator[Job]:
        """The jobs of a stream; records that come out in their place, before the job of a number, go to `passing`.

        What lies in the output is no source: it is passed over where it was only found, and else an error.
        """
        number = 0
        for record in until(stop, stream):
            path = name_of(record)
            if type_of(record) == "error":
                passing.setdefault(number, []).append(record)
            elif path and path.startswith(self._below):
                if "found" not in record:
                    problem = Refused(
                        f"{path_keys(path)['path']} lies in the output or its quarantine", "export to another folder"
                    )
                    passing.setdefault(number, []).append(problem.record(**path_keys(path)))
            elif type_of(record) in {"instance", "file"} and path and record.get("state") not in NOTHING_THERE:
                if there := self._done(record, path):
                    told(record, there)
                    passing.setdefault(number, []).append(there)
                else:
                    yield Job(path, number, found="found" in record)
                    number += 1
        # What is behind the last job comes out at the end.

    def _uid(self, record: Record) -> str:
        """The SOP Instance UID that an instance has in the output."""
        uid, options = str(record.get("SOPInstanceUID") or ""), self.options
        replaced = options.key and options.settings and not options.settings.profile.retain_uids
        return options.key.uid(uid) if options.key and replaced else uid

    def _done(self, record: Record, path: str) -> Record | None:
        """The record of what an earlier run made of the same file; files are told apart by size and time."""
        if self._is_new or not (uid := self._uid(record)):
            return None
        there = self.index.lookup((uid,)).get(uid)
        place = name_of(there) if there else None
        if there is None or place is None:
            return None
        try:
            now, then = os.stat(path), os.stat(place)
        except OSError:
            return None
        if (str(now.st_mtime_ns), now.st_size) != (record.get("mtime_ns"), record.get("size")):
            return None
        if (str(then.st_mtime_ns), then.st_size) != (there.get("mtime_ns"), there.get("size")):
            return None
        mark = self._mark(str(record["SOPInstanceUID"]), now)
        same = there.get("made_from") == mark if mark else _same_state(there, record)
        return {**_shown(there), "state": "present"} if same else None

    def place(self, item: Taken) -> tuple[str, str]:
        """The final name of an instance, which it then has; and its state."""
        layout = self.options.layout
        for name in (
            layout.path(item.record),
            *(() if layout.tells_instances_apart else (layout.distinct_path(item.record),)),
        ):
            final = os.path.join(self.out, name)
            if item.staged is None:
                if (state := self._prospect(item, final)) != "taken":
                    return final, state
                continue
            self._make(os.path.dirname(final))
            try:
                link_new(item.staged, final)
            except FileExistsError:
                if holds_same(item.staged, final):
                    os.unlink(item.staged)
                    return final, "present"
                continue
            return final, item.state
        reason = f"{final} is there already, with other content"
        raise CannotCreate(reason, "move it away, or export to another folder", cause="conflict", **path_keys(final))

    def _prospect(self, item: Taken, final: str) -> str:
        """What would become of an instance at a name: `taken` when another has it."""
        uid = str(item.record.get("SOPInstanceUID"))
        planned, source = self._planned.setdefault(final, (uid, item.job.path))
        if planned != uid:
            return "taken"
        if source != item.job.path:
            return "present" if holds_same(item.job.path, source) else "taken"
        if not os.path.lexists(final):
            return item.state
        return "present" if item.outcome or holds_same(item.job.path, final) else "taken"

    def _make(self, folder: str) -> None:
        if folder in self._folders:
            return
        make_folders(Path(folder))
        if not Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(self.out)):
            reason = f"{folder} leads out of {self.out} by a link"
            raise CannotCreate(reason, "move it away: nothing is written through links", **path_keys(folder))
        self._folders.add(folder)


class _Batch:
    """Instances that get their names, and their lines in the index, together."""

    def __init__(self, target: _Target, told: Listener) -> None:
        self._target, self._told = target, told
        self._items: list[tuple[Taken | NotTaken, Iterable[Record]]] = []
        self._since = time.monotonic()

    def add(self, item: Taken | NotTaken, before: Iterable[Record]) -> Iterator[Record]:
        """Takes a result with the records that come before it; the records of the batch when it is due."""
        self._items.append((item, before))
        if len(self._items) >= _BATCH or time.monotonic() - self._since >= _SECONDS:
            yield from self.flush()

    def flush(self) -> Iterator[Record]:
        """Makes the batch durable and tells of it; DiskFull and other failures of the disk are raised after that."""
        items, self._items = self._items, []
        self._sync([Path(item.staged) for item, _ in items if isinstance(item, Taken) and item.staged])
        failure: DcmtoolsError | None = None
        lines: list[Record] = []
        records: list[Record] = []
        folders: set[str] = set()
        for item, before in items:
            records += before
            try:
                record = self._placed(item)
            except DcmtoolsError as problem:
                if item.job.found and problem.cause in _NO_INSTANCE:
                    continue
                failure = failure or (problem if isinstance(problem, IOFailure) else None)
                record = problem.record(**path_keys(item.job.path))
            else:
                lines.append(record)
                folders.add(os.path.dirname(name_of(record) or self._target.out))
            records.append(_shown(record))
            self._told(item, record)
        if not self._target.options.dry_run:
            self._append(lines, folders)
        yield from records
        self._since = time.monotonic()
        if failure:
            raise failure

    def _placed(self, item: Taken | NotTaken) -> Record:
        if isinstance(item, NotTaken):
            if item.record and self._target.aside:
                item.problem.where["quarantine"] = self._target.aside.keep(item.record, item.aside)
            raise item.problem
        try:
            path, state = self._target.place(item)
            if item.staged is None:
                return {**item.record, **path_keys(path), "state": state, "dry_run": True}
            there = os.stat(path)
        except OSError as problem:
            raise from_os(problem, "exporting to", self._target.out) from problem
        record = item.record.copy()
        record.pop("path_b64", None)
        place = {**path_keys(path), "size": there.st_size, "mtime_ns": str(there.st_mtime_ns)}
        return {**record, **place, "state": state}

    def _sync(self, staged: list[Path]) -> None:
        """Puts the content of files on the disk before any of them gets its name."""
        try:
            if len(staged) <= _FEW or not sync_file_system(self._target.staging):
                for path in staged:
                    fsync_file(path)
        except OSError as problem:
            raise from_os(problem, "exporting to", self._target.out) from problem

    def _append(self, lines: list[Record], folders: set[str]) -> None:
        """Adds the lines of what is new to the index; those of what was there already may be missing in it."""
        index = self._target.index
        there = [name for line in lines if line["state"] == "present" and (name := name_of(line))]
        known = index.by_paths(there) if there else {}
        try:
            for folder in folders:
                fsync_folder(Path(folder))
        except OSError as problem:
            raise from_os(problem, "exporting to", self._target.out) from problem
        index.append(line for line in lines if name_of(line) not in known)


def _killer(job: Job) -> NotTaken:
    where = path_keys(job.path)
    reason = f"{where['path']}: the process that read it was killed"
    return NotTaken(job, BadData(reason, "look for a lack of memory in the system's log", **where))


def _same_state(one: Record, other: Record) -> bool:
    return (one.get("size"), one.get("mtime_ns")) == (other.get("size"), other.get("mtime_ns"))


def _shown(record: Record) -> Record:
    """A record as it comes out: what only the index needs stays there."""
    shown = record.copy()
    shown.pop("made_from", None)
    return shown


def files_in(paths: Iterable[Path | str]) -> Iterator[Record]:
    """Records of the files below paths, of which nothing is known yet: each is read once, when it is taken out."""
    from dcmtools.disk.tree import files_below

    named = {os.path.abspath(path) for path in paths}
    for found in files_below(paths):
        if isinstance(found, Path):
            yield {"type": "file", **path_keys(found), **({} if os.fspath(found) in named else {"found": True})}
        else:
            yield found


def outside(items: Iterable[Record], outputs: Iterable[Path]) -> Iterator[Record]:
    """The records less those of files below the outputs, which a scan of the folder around them comes upon."""
    below = tuple(prefix for out in outputs for prefix in _prefixes(out))
    return (item for item in items if not os.fspath(path_of(item) or "").startswith(below))


def _prefixes(folder: Path) -> tuple[str, ...]:
    return tuple(os.path.join(place, "") for place in {os.path.abspath(folder), os.path.realpath(folder)})


def check_not_within(out: Path, inputs: Iterable[str]) -> None:
    """Raises UsageError for an input that lies in the output: what is there was exported already."""
    there = Path(os.path.realpath(out))
    for name in inputs:
        if Path(os.path.realpath(name)).is_relative_to(there):
            raise UsageError(f"{name} lies in {out}, where results go", "export to another folder")


def check_apart(out: Path, source: Path) -> None:
    """Raises UsageError when the output would lie in the archive that it comes from, or the other way round."""
    here, there = (Path(os.path.realpath(path)) for path in (out, source))
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise UsageError(f"{out} and the archive {source} are not apart", "export to another folder")
