"""The newest lines of an index, which its view does not have yet, for who asks while lines are written.

To take a line into the view costs as much as making it durable. Who writes many, and looks after each batch whether it
is there already, needs the view to be up to date only now and then.
"""

import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

from dcmtools.disk.index_line import CONFLICT, TOMBSTONE, parse
from dcmtools.disk.view_fill import stored, whole_lines
from dcmtools.disk.view_lookup import Place, at_paths, everywhere, named, of_instances

_MARK = 256
LONGEST = 16 << 20  # bytes, some thousand lines: to read them takes less than 0.1 s

_OF_UID = (
    "SELECT uid, path, study, series, kind, offset, length FROM instance LEFT JOIN part ON part.id = instance.part"
    " WHERE uid IN ({})"
)
_IS_THERE = "SELECT 1 FROM instance WHERE uid = ?"


class _File(NamedTuple):
    """An instance at a path; the lower one is the better answer."""

    kind: int
    offset: int
    length: int


class Tail:
    """The lines from the byte up to which the view goes."""

    def __init__(self, key_of: Callable[[str], str]) -> None:
        self._key_of = key_of
        # Instance -> path -> its last line, None after a tombstone; and the instances that were at each path.
        self._files: dict[str, dict[str | bytes, _File | None]] = {}
        self._at: dict[str | bytes, set[str]] = {}
        self._mark = b""  # the bytes before the end: when they change, other lines have taken their place
        self._inode = self._start = self._end = self.bad = 0

    def follow(self, descriptor: int, start: int, end: int) -> None:
        """Takes in what lies between two offsets, as far as it is not known."""
        inode = os.fstat(descriptor).st_ino
        if (
            (inode, start) != (self._inode, self._start)
            or end < self._end
            or self._mark != _mark(descriptor, self._end)
        ):
            self.forget()
            self._inode, self._start, self._end = inode, start, start
        for raw in whole_lines(descriptor, self._end, end):
            self._take(raw)
            self._end += len(raw)
        self._mark = _mark(descriptor, self._end)

    def forget(self) -> None:
        """Lets go of everything: the view has it, or another file has taken its place."""
        self._inode = self._start = self._end = self.bad = 0
        self._files, self._at, self._mark = {}, {}, b""

    @property
    def start(self) -> int:
        """The byte up to which the view goes."""
        return self._start

    def reaches(self, inode: int, place: int) -> bool:
        """Whether all lines of this file up to this byte are here or in the view."""
        return self._inode == inode and self._end >= place

    def lacks(self, view: sqlite3.Connection, uids: Iterable[str]) -> bool:
        """Whether none of these instances is, or was, at any path."""
        return not any(uid in self._files or view.execute(_IS_THERE, (uid,)).fetchone() for uid in uids)

    def everywhere(self, view: sqlite3.Connection, uids: Collection[str]) -> Iterator[Place]:
        """Where these instances are, at all their paths."""
        yield from everywhere(view, set(uids) - self._files.keys())
        for files in self._together(view, self._known(uids)).values():
            yield from ((file.offset, file.length) for file in files.values())

    def of_instances(self, view: sqlite3.Connection, uids: Collection[str]) -> Iterator[Place]:
        """The answers for these instances."""
        yield from of_instances(view, set(uids) - self._files.keys())
        for files in self._together(view, self._known(uids)).values():
            best = min(files.values(), default=None)
            if best is not None and best.kind < CONFLICT:
                yield best.offset, best.length

    def at_paths(self, view: sqlite3.Connection, paths: Collection[str]) -> Iterator[Place]:
        """What was last at each of these paths."""
        yield from at_paths(view, [path for path in paths if stored(path) not in self._at])
        uids = {path: set(self._at[path]) for path in {stored(path) for path in paths} & self._at.keys()}
        for path, uid in named(view, "SELECT path, uid FROM instance WHERE path IN ({})", uids):
            uids[path].add(uid)
        files = self._together(view, {uid for some in uids.values() for uid in some})
        for path, some in uids.items():
            there = [files[uid][path] for uid in some if path in files[uid]]
            if there:
                last = max(there, key=lambda file: file.offset)
                yield last.offset, last.length

    def _together(self, view: sqlite3.Connection, uids: Iterable[str]) -> dict[str, dict[str | bytes, _File]]:
        """The files of each of these instances, those that the view has and those of the tail."""
        found: dict[str, dict[str | bytes, _File]] = {uid: {} for uid in uids}
        for uid, path, study, series, kind, offset, length in named(view, _OF_UID, list(found)):
            place = path if path is not None else stored(f"{study}/{series}/{uid}.dcm")
            found[uid][place] = _File(kind, offset, length)
        for uid, files in found.items():
            for path, file in self._files.get(uid, {}).items():
                files.pop(path, None)
                if file is not None:
                    files[path] = file
        return found

    def _known(self, uids: Iterable[str]) -> set[str]:
        return set(uids) & self._files.keys()

    def _take(self, raw: bytes) -> None:
        try:
            line = parse(raw, self._key_of)
        except ValueError:
            self.bad += 1
            return
        if line.kind <= TOMBSTONE:
            path = stored(line.path)
            file = None if line.kind == TOMBSTONE else _File(line.kind, self._end, len(raw) - 1)
            self._files.setdefault(line.uid, {})[path] = file
            self._at.setdefault(path, set()).add(line.uid)


def _mark(descriptor: int, end: int) -> bytes:
    length = min(_MARK, end)
    return os.pread(descriptor, length, end - length)
