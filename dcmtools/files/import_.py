"""Takes files into an index where they lie, or into an archive by copy, link or move (DESIGN §4).

What was done already is not done again, and a run that was killed leaves nothing that the next one does not mend:
temporaries are swept with their owner, a file without its line gets it, a source goes only after both are durable.
"""

import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from dcmtools.disk.archive import Archive, Committed, Incoming
from dcmtools.disk.atomic import TEMPORARY_PREFIX, sync_file_system
from dcmtools.disk.containers import Member
from dcmtools.disk.copying import changed, copy, link, same_bytes, share_blocks
from dcmtools.disk.header import read_header
from dcmtools.disk.index import Index
from dcmtools.disk.part10 import data_set_hash
from dcmtools.disk.sources import Place, Sources
from dcmtools.disk.tree import Skipped
from dcmtools.files.inputs import Input, Inputs
from dcmtools.files.referencing import (
    BATCH,
    SECONDS,
    Stop,
    conflicting,
    header_of,
    holds_same,
    index_paths,
    is_error,
    never,
    shown,
    until,
)
from dcmtools.model.errors import BadData, DcmtoolsError, IOFailure, from_os
from dcmtools.model.record import Record, path_keys, path_of

__all__ = ["Mode", "import_paths", "index_paths", "reference_paths"]

Mode = Literal["copy", "link", "move", "reference"]
Extra = Literal["checksum", "quarantine"]

# How many files are looked up in the index at once, and how long they may be waited for: a slow pipe is no hindrance.
_CHUNK = 256
_CHUNK_SECONDS = 0.2
# What is wrong with a file that was meant to be an instance.
_DAMAGES = frozenset({"truncated", "bad-length", "too-deep", "bad-uid"})


def import_paths(
    paths: Iterable[Path | str],
    archive: Archive,
    mode: Mode = "copy",
    *,
    follow: bool = False,
    extras: AbstractSet[Extra] = frozenset(),
    dry_run: bool = False,
    stop: Stop = never,
    skipped: Skipped | None = None,
) -> Iterator[Record]:
    """A record for each file: its instance in the archive, or why there is none.

    The `state` is copied, linked, moved, present (the same data set was there already) or conflict (the first stays,
    this one is kept in quarantine; a source to move stays where it is); in a dry run planned, with what it would be as
    `plan`. `source` is the path that was read, or archive.zip!member; `replaces` is where the version is kept that this
    one took the place of. Records come when they are durable. DiskFull and IOFailure end the run, after what was done
    before.

    Args:
        paths: files, folders, archives of files (zip, tar), and DICOMDIR files, whose list is followed
        archive: where the files go, and what becomes of duplicates
        mode: how they get there
        follow: whether to follow symbolic links below folders
        extras: `checksum` gives records the `sha256` of the file in the archive; `quarantine` copies damaged DICOM
            files into the archive's quarantine, which their error records tell
        dry_run: whether to do nothing, and tell what would be done
        stop: says when to end early
        skipped: counts what was passed over
    """
    if mode == "reference":
        yield from reference_paths(paths, archive.index, follow=follow, dry_run=dry_run, stop=stop, skipped=skipped)
    elif dry_run:
        with TemporaryDirectory(prefix=TEMPORARY_PREFIX) as folder:
            inputs = Inputs(Path(folder) if mode != "move" else None, follow=follow, skipped=skipped)
            plan = _Plan(archive, mode)
            for chunk in _chunks(until(stop, inputs.of(paths))):
                yield from plan.of(chunk)
    else:
        with archive.incoming() as incoming, Sources(archive.root) as sources:
            inputs = Inputs(incoming.folder if mode != "move" else None, follow=follow, skipped=skipped)
            batch = _Batch(archive, incoming, sources, mode, extras)
            try:
                for chunk in _chunks(until(stop, inputs.of(paths))):
                    yield from batch.take(chunk)
            except IOFailure:  # met while unpacking: what was staged before is whole
                yield from batch.flush()
                raise
            yield from batch.flush()


def reference_paths(
    paths: Iterable[Path | str],
    index: Index,
    *,
    follow: bool = False,
    dry_run: bool = False,
    stop: Stop = never,
    skipped: Skipped | None = None,
) -> Iterator[Record]:
    """As `index_paths`, with a DICOMDIR taken as the list of its files, and archives of files refused with words."""
    inputs = Inputs(None)
    found = inputs.paths(paths)
    for record in index_paths(found, index, follow=follow, dry_run=dry_run, stop=stop, skipped=skipped):
        yield from inputs.refused()
        yield record
    yield from inputs.refused()


def _chunks(items: Iterable[Input]) -> Iterator[list[Input]]:
    chunk: list[Input] = []
    since = time.monotonic()
    for item in items:
        chunk.append(item)
        if len(chunk) >= _CHUNK or time.monotonic() - since >= _CHUNK_SECONDS:
            yield chunk
            chunk, since = [], time.monotonic()
    if chunk:
        yield chunk


@dataclass(slots=True)
class _Item:
    """A file on its way: its record, and where it waits to be committed, or where its data set lies already."""

    source: Path
    record: Record
    member: Member | None = None
    staged: Path | None = None
    there: Path | None = None
    state: str = ""
    is_news: bool = False  # whether the index has to learn what the record says of a file that was there
    read: tuple[int, int] | None = None  # size and time of a file that may be noted as taken in

    @property
    def name(self) -> str:
        """What was read, for people."""
        return self.member.source if self.member else shown(self.source)

    @property
    def where(self) -> Record:
        """The keys of an error record that tell what was read."""
        if self.member:
            return {**path_keys(self.member.container), "source": self.member.source}
        return path_keys(self.source)


def _item(one: Input) -> _Item:
    """An input with its header, or the error record in its place."""
    if isinstance(one, dict):
        return _Item(Path(), one)
    if isinstance(one, Path):
        return _Item(one, header_of(one))
    item = _Item(one.path, {}, one)
    try:
        item.record = read_header(one.path)
    except DcmtoolsError as problem:  # its own name says nothing to anybody
        problem.reason = problem.reason.replace(str(one.path), one.source)
        item.record = problem.record() | item.where
    return item


def _read(
    chunk: list[Input], archive: Archive, recalled: dict[Path, Record] | None = None
) -> Iterator[tuple[_Item, list[Record]]]:
    """The files of a chunk, each with what the index has of its SOP Instance UID; those recalled are not read."""
    recalled = recalled or {}
    items = [_Item(one, recalled[one]) if isinstance(one, Path) and one in recalled else _item(one) for one in chunk]
    known = archive.index.everywhere(
        {str(item.record["SOPInstanceUID"]) for item in items if not _is_settled(item.record)}
    )
    for item in items:
        yield item, known.get(str(item.record.get("SOPInstanceUID")), [])


def _is_settled(record: Record) -> bool:
    """Whether nothing has to be done for a file: it cannot be read, or was taken in before."""
    return is_error(record) or "state" in record


def _place_of(record: Record, known: list[Record], archive: Archive) -> tuple[Path, Record | None]:
    """Where the archive has an instance, or would have it, and its line there."""
    for one in known:
        path = path_of(one)
        if path and path.is_relative_to(archive.root) and one.get("state") != "conflict" and os.path.lexists(path):
            return path, one
    return archive.path_for(record), None


class _Plan:
    """What an import would do: it notes what it has told, for the second of two files with one UID meets the first."""

    def __init__(self, archive: Archive, mode: Mode) -> None:
        self._archive = archive
        self._mode = mode
        self._planned: dict[str, list[str]] = {}  # SOP Instance UID -> the hashes of its versions

    def of(self, chunk: list[Input]) -> Iterator[Record]:
        """The plan for each file of a chunk."""
        for item, known in _read(chunk, self._archive):
            yield item.record if is_error(item.record) else self._plan(item, known)
            if item.member:
                item.source.unlink(missing_ok=True)

    def _plan(self, item: _Item, known: list[Record]) -> Record:
        place, _ = _place_of(item.record, known, self._archive)
        record = {**item.record, **path_keys(place), "source": item.name}
        hashes = self._planned.setdefault(str(record["SOPInstanceUID"]), [])
        if hashes or os.path.lexists(place):
            source = Path(os.path.realpath(item.source))
            if data_set_hash(source) in hashes if hashes else holds_same(source, place):
                return {**record, "state": "present"}
            if self._archive.on_duplicate == "first":
                return {**conflicting({**record, "duplicate_of": shown(place)}), "state": "planned", "plan": "conflict"}
            if self._archive.keeps(source, record):
                return {**record, "state": "present"}
            if not hashes:
                hashes.append(data_set_hash(place))
        hashes.append(data_set_hash(os.path.realpath(item.source)))
        return {**record, "state": "planned", "plan": _prospect(item, self._archive, self._mode)}


def _prospect(item: _Item, archive: Archive, mode: Mode) -> str:
    """The state that a file would have."""
    source = item.source
    if mode == "link" and not item.member:
        there = next(folder for folder in (archive.root, *archive.root.parents) if folder.exists())
        return "linked" if source.stat().st_dev == there.stat().st_dev else "copied"
    return "moved" if mode == "move" and not _is_inside(source, archive) else "copied"


def _is_inside(source: Path, archive: Archive) -> bool:
    """Whether a name lies in the archive, by whatever links it was come to: nothing is removed there."""
    return Path(os.path.realpath(source.parent)).is_relative_to(os.path.realpath(archive.root))


class _Batch:
    """Files on their way into the archive that are synced, named and indexed together."""

    def __init__(
        self, archive: Archive, incoming: Incoming, sources: Sources, mode: Mode, extras: AbstractSet[Extra]
    ) -> None:
        self._archive = archive
        self._incoming = incoming
        self._sources = sources
        self._mode = mode
        self._checksum = "checksum" in extras
        self._quarantine = "quarantine" in extras
        self._items: list[_Item] = []
        self._awaited: set[str] = set()
        self._since = time.monotonic()

    def take(self, chunk: list[Input]) -> Iterator[Record]:
        """Takes files in; the records of the batch when it is due."""
        for item, known in _read(chunk, self._archive, self._recalled(chunk)):
            if str(item.record.get("SOPInstanceUID")) in self._awaited:
                yield from self.flush()
            try:
                if is_error(item.record):
                    self._keep(item)
                elif "state" not in item.record:
                    self._prepare(item, known)
            except IOFailure:
                yield from self.flush()
                raise
            self._items.append(item)
            if len(self._items) >= BATCH or time.monotonic() - self._since >= SECONDS:
                yield from self.flush()

    def _recalled(self, chunk: list[Input]) -> dict[Path, Record]:
        """What is to be told of files that are as they were when they were taken in, and whose instances are as well.

        Who wants to remove a source has it read.
        """
        if self._mode == "move":
            return {}
        places = self._sources.recall(one for one in chunk if isinstance(one, Path))
        lines = self._archive.index.by_paths(place.path for place in places.values())
        told = {path: self._recall(place, lines.get(place.path)) for path, place in places.items()}
        return {path: record for path, record in told.items() if record}

    def _recall(self, place: Place, line: Record | None) -> Record | None:
        if line is None or (self._checksum and "sha256" not in line) or not _lies_there(place, line):
            return None
        if line.get("state") != "conflict":
            return {**line, "state": "present"} if "duplicate_of" not in line else None
        first = line.get("duplicate_of")
        is_so_still = self._archive.on_duplicate == "first" and isinstance(first, str) and os.path.lexists(first)
        return line if is_so_still else None

    def flush(self) -> Iterator[Record]:
        """Makes the batch durable and tells of it."""
        items, self._items, self._awaited = self._items, [], set()
        if there := [item.record for item in items if item.there]:
            self._archive.add_missing(there)
        if news := [item.record for item in items if item.is_news]:
            self._archive.index.append(news)
        outcomes = iter(self._committed([item for item in items if item.staged]))
        failure: DcmtoolsError | None = None
        told: list[Record] = []
        for item in items:
            outcome = next(outcomes) if item.staged else item.record
            if isinstance(outcome, IOFailure):
                failure = failure or outcome
            told.append(self._told(item, outcome))
            yield told[-1]
        self._sources.note(_taken_in(items, told))
        self._since = time.monotonic()
        if failure:
            raise failure

    def _prepare(self, item: _Item, known: list[Record]) -> None:
        """Finds the item's data set in the archive, or stages a file of it."""
        if not item.member and self._mode != "move":
            item.read = (item.record["size"], int(item.record["mtime_ns"]))
        place, line = _place_of(item.record, known, self._archive)
        if os.path.lexists(place) and self._is_there(item, place, line):
            self._note_present(item, place, line)
            return
        try:
            if item.member:  # it was unpacked to where a copy would be
                item.staged, item.state = item.source, "copied"
            else:
                item.staged = self._incoming.new_path()
                item.state = self._stage(item.source, item.staged, item.record)
            if self._checksum:
                item.record["sha256"] = _sha256(item.staged)
            self._awaited.add(str(item.record["SOPInstanceUID"]))
        except DcmtoolsError as problem:
            if item.staged:
                item.staged.unlink(missing_ok=True)
            if isinstance(problem, IOFailure):
                raise
            item.staged, item.record = None, problem.record()

    def _note_present(self, item: _Item, place: Path, line: Record | None) -> None:
        """Takes the index's record for the item's, unless it is of another version: who changed it died before that."""
        state = place.stat()
        where = {**path_keys(place), "size": state.st_size, "mtime_ns": str(state.st_mtime_ns)}
        is_stale = line is not None and not where.items() <= line.items()
        item.record = {**(item.record if line is None or is_stale else line), **where, "state": "present"}
        item.there, item.is_news = place, is_stale
        if self._checksum and "sha256" not in item.record:
            item.record["sha256"] = _sha256(place)
            item.is_news = line is not None
        if item.member:
            item.source.unlink()

    def _keep(self, item: _Item) -> None:
        """Copies a damaged file into the quarantine, where that was asked for."""
        if self._quarantine and item.record.get("cause") in _DAMAGES and item.source != Path():
            temporary = self._incoming.new_path()
            try:
                copy(Path(os.path.realpath(item.source)), temporary)
                kept = self._archive.quarantine(temporary, item.record, item.record["cause"])
                item.record["quarantine"] = shown(kept)
            except BadData:  # it is being written to: the next run will see
                temporary.unlink(missing_ok=True)
            except OSError as problem:
                raise from_os(problem, "keeping", self._archive.root) from problem
        if item.member:
            item.source.unlink(missing_ok=True)

    def _is_there(self, item: _Item, place: Path, line: Record | None) -> bool:
        """Whether the archive has the same data set; who wants to remove the source has all bytes compared."""
        if line is not None and self._mode != "move" and not item.member:
            state, read = place.lstat(), item.record
            if (read["size"], read["mtime_ns"]) == (state.st_size, str(state.st_mtime_ns)):
                return True
        return holds_same(item.source, place)

    def _stage(self, source: Path, temporary: Path, record: Record) -> str:
        """Brings a file into the archive's file system, and says how; it must still be what its record tells of."""
        try:
            how = self._bring(source, temporary)
            state = temporary.stat()
        except OSError as problem:
            raise from_os(problem, "copying", source) from problem
        if (record["size"], record["mtime_ns"]) != (state.st_size, str(state.st_mtime_ns)):
            raise changed(source)
        return how

    def _bring(self, source: Path, temporary: Path) -> str:
        if self._mode == "link" and share_blocks(source, temporary):
            return "linked"
        moved = self._mode == "move" and not _is_inside(source, self._archive)
        if self._mode != "copy" and link(source, temporary):
            return "moved" if moved else "linked" if self._mode == "link" else "copied"
        copy(source, temporary)
        if self._mode == "move" and not same_bytes(source, temporary):
            raise changed(source)
        return "moved" if moved else "copied"

    def _committed(self, items: list[_Item]) -> list[Committed | DcmtoolsError]:
        if not items:
            return []
        try:
            synced = sync_file_system(self._incoming.folder)
        except OSError as problem:
            raise from_os(problem, "storing in", self._archive.root) from problem
        return self._archive.commit_all([(item.staged, item.record) for item in items if item.staged], synced=synced)

    def _told(self, item: _Item, outcome: Committed | DcmtoolsError | Record) -> Record:
        """The record that goes out for a file, after its source went if it was to be moved."""
        if isinstance(outcome, DcmtoolsError):
            return outcome.record(**item.where)
        record = outcome.record if isinstance(outcome, Committed) else outcome
        if is_error(record):
            return record
        state = item.state if record["state"] == "received" else record["state"]
        record = {**record, "state": state, "source": item.name}
        if isinstance(outcome, Committed) and outcome.replaced:
            record["replaces"] = shown(outcome.replaced)
        if state == "conflict":
            record = conflicting(record)
        removes = self._mode == "move" and state != "conflict" and not _is_inside(item.source, self._archive)
        if removes and (problem := _remove(item, path_of(record))):
            return problem.record(**path_keys(item.source))
        return record


def _lies_there(place: Place, line: Record) -> bool:
    """Whether an instance is as it was noted, and as the index has it."""
    try:
        state = os.lstat(place.path)
    except OSError:
        return False
    noted = (place.size, str(place.mtime_ns))
    return noted == (line.get("size"), line.get("mtime_ns")) == (state.st_size, str(state.st_mtime_ns))


def _taken_in(items: list[_Item], told: list[Record]) -> Iterator[tuple[Path, int, int, Path]]:
    for item, record in zip(items, told, strict=True):
        if item.read and not is_error(record) and (place := path_of(record)):
            yield item.source, *item.read, place


def _sha256(path: Path) -> str:
    """The SHA-256 of a file in the archive, in hex, as sha256sum says it."""
    try:
        with path.open("rb", buffering=0) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as problem:
        raise from_os(problem, "reading", path) from problem


def _remove(item: _Item, kept: Path | None) -> DcmtoolsError | None:
    """Removes a source whose instance is safe; not one that is itself the file in the archive, or was written to."""
    source = item.source
    if kept is None:
        return None
    try:
        if source.name == kept.name and os.path.samefile(source.parent, kept.parent):
            return None
        state = source.stat()
        as_read = (item.record["size"], item.record["mtime_ns"]) == (state.st_size, str(state.st_mtime_ns))
        if not item.there and not as_read:
            return changed(source)
        source.unlink()
    except OSError as problem:
        return from_os(problem, "removing", source)
    return None
