"""Takes files into an index where they lie, or into an archive by copy, link or move (DESIGN §4).

What was done already is not done again, and a run that was killed leaves nothing that the next one does not mend:
temporaries are swept with their owner, a file without its line gets it, a source goes only after both are durable.
"""

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dcmtools.disk.archive import Archive, Committed, Incoming
from dcmtools.disk.atomic import sync_file_system
from dcmtools.disk.copying import changed, copy, link, same_bytes, share_blocks
from dcmtools.disk.tree import Skipped, files_below
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
from dcmtools.model.errors import DcmtoolsError, IOFailure, from_os
from dcmtools.model.record import Record, path_keys, path_of

__all__ = ["Mode", "import_paths", "index_paths"]

Mode = Literal["copy", "link", "move", "reference"]

_DONE = {"copy": "copied", "link": "linked", "move": "moved"}


def import_paths(
    paths: Iterable[Path | str],
    archive: Archive,
    mode: Mode = "copy",
    *,
    follow: bool = False,
    dry_run: bool = False,
    stop: Stop = never,
    skipped: Skipped | None = None,
) -> Iterator[Record]:
    """A record for each file: its instance in the archive, or why there is none.

    The `state` is copied, linked, moved, present (the same data set was there already) or conflict (the first stays,
    this one is kept in quarantine; a source to move stays where it is). `source` is the path that was read. Records
    come when they are durable. DiskFull and IOFailure end the run, after what was done before.
    """
    if mode == "reference":
        yield from index_paths(paths, archive.index, follow=follow, dry_run=dry_run, stop=stop, skipped=skipped)
        return
    found = files_below(paths, follow=follow, skipped=skipped)
    if dry_run:
        yield from (_plan(one, archive, mode) for one in until(stop, found))
        return
    with archive.incoming() as incoming:
        batch = _Batch(archive, incoming, mode)
        for one in until(stop, found):
            yield from batch.add(one)
        yield from batch.flush()


def _plan(found: Path | Record, archive: Archive, mode: Mode) -> Record:
    """What an import would do with a file."""
    record = header_of(found) if isinstance(found, Path) else found
    if is_error(record) or not isinstance(found, Path):
        return record
    final = archive.path_for(record)
    state = _done(found, archive, mode)
    if final.exists():
        state = "present" if holds_same(found, final) else "conflict"
    return {**record, **path_keys(final), "state": state, "source": shown(found), "dry_run": True}


def _done(source: Path, archive: Archive, mode: Mode) -> str:
    """The state of a file that was taken in: one that lies in the archive already is never moved."""
    return _DONE["copy" if mode == "move" and _is_inside(source, archive) else mode]


def _is_inside(source: Path, archive: Archive) -> bool:
    """Whether a name lies in the archive, by whatever links it was come to: nothing is removed there."""
    return Path(os.path.realpath(source.parent)).is_relative_to(os.path.realpath(archive.root))


@dataclass(slots=True)
class _Item:
    """A file on its way: its record, and where it waits to be committed, or where its data set lies already."""

    source: Path
    record: Record
    staged: Path | None = None
    there: Path | None = None


class _Batch:
    """Files on their way into the archive that are synced, named and indexed together."""

    def __init__(self, archive: Archive, incoming: Incoming, mode: Mode) -> None:
        self._archive = archive
        self._incoming = incoming
        self._mode = mode
        self._items: list[_Item] = []
        self._awaited: set[Path] = set()
        self._since = time.monotonic()

    def add(self, found: Path | Record) -> Iterator[Record]:
        """Takes a file in; the records of the batch when it is due."""
        if isinstance(found, Path):
            record = header_of(found)
            if not is_error(record) and self._archive.path_for(record) in self._awaited:
                yield from self.flush()
            try:
                self._items.append(self._item(found, record))
            except IOFailure:
                yield from self.flush()
                raise
        else:
            self._items.append(_Item(Path(), found))
        if len(self._items) >= BATCH or time.monotonic() - self._since >= SECONDS:
            yield from self.flush()

    def flush(self) -> Iterator[Record]:
        """Makes the batch durable and tells of it."""
        items, self._items, self._awaited = self._items, [], set()
        if there := [item.record for item in items if item.there]:
            self._archive.add_missing(there)
        outcomes = iter(self._committed([item for item in items if item.staged]))
        failure: DcmtoolsError | None = None
        for item in items:
            outcome = next(outcomes) if item.staged else item.record
            if isinstance(outcome, IOFailure):
                failure = failure or outcome
            yield self._told(item, outcome)
        self._since = time.monotonic()
        if failure:
            raise failure

    def _item(self, source: Path, record: Record) -> _Item:
        if is_error(record):
            return _Item(source, record)
        final = self._archive.path_for(record)
        if os.path.lexists(final) and self._is_there(source, record, final):
            state = final.stat()
            place = {**path_keys(final), "size": state.st_size, "mtime_ns": str(state.st_mtime_ns)}
            return _Item(source, {**record, **place, "state": "present"}, there=final)
        temporary = self._incoming.new_path()
        try:
            self._stage(source, temporary, record)
        except DcmtoolsError as problem:
            temporary.unlink(missing_ok=True)
            if isinstance(problem, IOFailure):
                raise
            return _Item(source, problem.record())
        self._awaited.add(final)
        return _Item(source, record, staged=temporary)

    def _is_there(self, source: Path, record: Record, final: Path) -> bool:
        """Whether the archive has the same data set; who wants to remove the source has all bytes compared."""
        state = final.lstat()
        looks_same = (record["size"], record["mtime_ns"]) == (state.st_size, str(state.st_mtime_ns))
        if looks_same and self._mode != "move":
            return True
        return holds_same(source, final)

    def _stage(self, source: Path, temporary: Path, record: Record) -> None:
        """Brings a file into the archive's file system; it must still be what its record tells of."""
        try:
            self._bring(source, temporary)
            state = temporary.stat()
        except OSError as problem:
            raise from_os(problem, "copying", source) from problem
        if (record["size"], record["mtime_ns"]) != (state.st_size, str(state.st_mtime_ns)):
            raise changed(source)

    def _bring(self, source: Path, temporary: Path) -> None:
        if self._mode == "link" and share_blocks(source, temporary):
            pass
        elif self._mode == "copy" or not link(source, temporary):
            copy(source, temporary)
            if self._mode == "move" and not same_bytes(source, temporary):
                raise changed(source)

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
            return outcome.record(**path_keys(item.source))
        record = outcome.record if isinstance(outcome, Committed) else outcome
        if is_error(record):
            return record
        state = _done(item.source, self._archive, self._mode) if record["state"] == "received" else record["state"]
        record = {**record, "state": state, "source": shown(item.source)}
        if state == "conflict":
            record = conflicting(record)
        removes = self._mode == "move" and state != "conflict" and not _is_inside(item.source, self._archive)
        if removes and (problem := _remove(item, path_of(record))):
            return problem.record(**path_keys(item.source))
        return record


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
