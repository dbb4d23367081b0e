"""Writes an index anew without the lines that say nothing any more; what it answers stays the same (DESIGN §4)."""

import heapq
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dcmtools.disk.atomic import TEMPORARY_PREFIX, atomic_file
from dcmtools.disk.index_line import OTHER, parse
from dcmtools.disk.journal import Journal, mend
from dcmtools.disk.lock import Lock
from dcmtools.disk.view import Snapshot, View, known_up_to
from dcmtools.disk.view_fill import whole_lines
from dcmtools.model.errors import NoInput, TryLater, from_os
from dcmtools.model.record import decode, path_keys

_BLOCK = 1 << 20
# Of these only the last word on a series counts.
_SUPERSEDED = frozenset({"series-complete", "incomplete"})


class Compacted(NamedTuple):
    """What became of an index: lines and bytes before and after, and how many lines were no records."""

    lines_before: int
    lines: int
    bytes_before: int
    bytes: int
    bad_lines: int


def compact(
    journal: Journal, view: View, root: str, key_of: Callable[[str], str], *, dry_run: bool = False
) -> Compacted:
    """Compacts an index while others read it and write to it.

    What is written meanwhile follows what was there; writers wait only for the end. Who reads goes on in the old file.
    NoInput when there is no index, Locked while another process compacts it.
    """
    with ExitStack() as ends:  # the lock on the journal is given back after the rename
        if not dry_run:
            ends.enter_context(Lock(_lock_of(journal.file), "dcmtools index compact"))
        snapshot = ends.enter_context(view.apart())
        if snapshot is None:
            raise NoInput(f"there is no index {journal.file}", "check the path", **path_keys(journal.file))
        (lines, bad), size = snapshot.view.execute("SELECT lines, bad FROM state").fetchone(), _consumed(snapshot)
        if dry_run:
            kept = list(map(len, _kept(snapshot, key_of)))
            return Compacted(lines, len(kept), size, sum(kept), bad)
        mode = stat.S_IMODE(os.fstat(snapshot.descriptor).st_mode)
        try:
            with atomic_file(Path(os.path.realpath(journal.file)), mode) as out:
                count = _write(out, _kept(snapshot, key_of))
                ends.enter_context(journal.locked())
                count += _write(out, _since(journal, snapshot, root, size))
                written = out.tell()
        except OSError as problem:
            raise from_os(problem, "compacting", journal.file) from problem
        return Compacted(lines, count, size, written, bad)


def _lock_of(file: Path) -> Path:
    return file.with_name(f"{TEMPORARY_PREFIX}{file.name}.compact.lock")


def _consumed(snapshot: Snapshot) -> int:
    return int(snapshot.view.execute("SELECT consumed FROM state").fetchone()[0])


def _kept(snapshot: Snapshot, key_of: Callable[[str], str]) -> Iterator[bytes]:
    """The lines that still say something, as they are, in their order."""
    instances = (offset for (offset,) in snapshot.view.execute("SELECT offset FROM instance ORDER BY offset"))
    live = heapq.merge(instances, _last_events(snapshot))
    due, position = next(live, -1), 0
    for raw in whole_lines(snapshot.descriptor, 0, _consumed(snapshot)):
        if position == due:
            due = next(live, -1)
            yield raw
        elif _is_other(raw, key_of):
            yield raw
        position += len(raw)


def _last_events(snapshot: Snapshot) -> list[int]:
    last: dict[object, int] = {}
    for offset, length in snapshot.view.execute("SELECT offset, length FROM event ORDER BY offset"):
        told = decode(os.pread(snapshot.descriptor, length, offset))
        series = (str(told.get("StudyInstanceUID")), str(told.get("SeriesInstanceUID")))
        last[series if told.get("event") in _SUPERSEDED else offset] = offset
    return sorted(last.values())


def _is_other(raw: bytes, key_of: Callable[[str], str]) -> bool:
    """Whether a line is a record of a type that an index does not know, and so does not throw away."""
    try:
        return parse(raw, key_of).kind == OTHER
    except ValueError:
        return False


def _since(journal: Journal, snapshot: Snapshot, root: str, start: int) -> Iterator[bytes]:
    """What was added to the file since; TryLater when it is another file now, or was cut by a writer that failed."""
    descriptor = snapshot.descriptor
    if os.stat(journal.file).st_ino != os.fstat(descriptor).st_ino or known_up_to(snapshot, root) != start:
        raise TryLater(f"{journal.file} was replaced or cut while it was compacted", "try again")
    writable = os.open(journal.file, os.O_RDWR | os.O_CLOEXEC)
    try:
        end = mend(writable)
    finally:
        os.close(writable)
    yield from whole_lines(descriptor, start, end)


def _write(out: BinaryIO, lines: Iterator[bytes]) -> int:
    count = 0
    for line in lines:
        out.write(line)
        count += 1
    return count
