"""An append-only file of JSON lines that several processes write to, and that survives their death (DESIGN §4).

Whoever writes holds a lock beside the file, never one on it: a file that is replaced would take its lock along.
"""

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from dcmtools.disk.atomic import FILE_MODE, fsync_folder, identity, make_folders
from dcmtools.disk.lock import flock_within, open_lock
from dcmtools.model.errors import DcmtoolsError, IOFailure, Locked, from_os
from dcmtools.model.record import decode, path_keys

# Writers hold the lock for milliseconds; one that was stopped in that moment may hold it for ever.
PATIENCE = 60.0
_BLOCK = 1 << 16
_LONGEST_LINE = 16 << 20
_sync = getattr(os, "fdatasync", os.fsync)  # macOS has only the latter


class Span(NamedTuple):
    """A stretch of a file: its inode, from which byte to which, and when it was written."""

    inode: int
    start: int
    end: int
    mtime_ns: int


class Journal:
    """A file of lines to append to. Thread-safe; threads that append at the same time share one write and one sync.

    `own` is the stretch at the end of the file that was written here, as long as nobody else wrote behind it.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.lock_file = file.with_suffix(".lock")
        self.own = Span(0, 0, 0, 0)
        self._guard = threading.Lock()
        self._writing = threading.Lock()  # beside the lock on the file, which is the process's
        self._collected = _Batch()
        self._lock, self._open = _Kept(self.lock_file), _Kept(file)

    def append(self, lines: bytes | Callable[[], bytes], *, sync: bool = True) -> None:
        """Adds whole lines, synced to the disk when this returns, unless that is not wanted.

        Lines that depend on what the file holds are made by a function, which is called (perhaps in another thread)
        while no other writes: what it reads in the file is durable.
        DiskFull or IOFailure when they could not be added; the file is then as it was.
        """
        with self._guard:
            batch = self._collected
            batch.lines.append(lines)
            batch.sync |= sync
        with self.alone():
            if not batch.done:
                with self._guard:
                    self._collected = _Batch()
                self._settle(batch)
        if batch.problem:
            raise batch.problem

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps the other threads from writing within the block."""
        with self._writing:
            yield

    def disown(self) -> None:
        """Lets `own` begin anew, with what is written next."""
        self.own = self.own._replace(start=self.own.end)

    def _settle(self, batch: "_Batch") -> None:
        batch.done = True
        try:
            with self._locked():
                if lines := b"".join(one() if callable(one) else one for one in batch.lines):
                    self._write(lines, sync=batch.sync)
        except DcmtoolsError as problem:
            batch.problem = problem
        except BaseException:
            batch.problem = IOFailure(f"writing to {self.file} was interrupted")
            raise

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps all other writers away within the block."""
        with self.alone(), self._locked():
            yield

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = self._lock.descriptor(self._lock_made)
        if not flock_within(descriptor, PATIENCE):
            reason = f"{self.lock_file} has been held for {PATIENCE:.0f} s"
            raise Locked(reason, "look for a stopped dcmtools process", **path_keys(self.lock_file))
        try:
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)

    def _lock_made(self) -> int:
        make_folders(self.file.parent)
        return open_lock(self.lock_file)

    def _write(self, lines: bytes, *, sync: bool) -> None:
        try:
            descriptor = self._open.descriptor(self._made)
            state = os.fstat(descriptor)
            own = self.own
            is_ours = (state.st_ino, state.st_size, state.st_mtime_ns) == (own.inode, own.end, own.mtime_ns)
            size = state.st_size if is_ours else mend(descriptor)
            _add(descriptor, lines, size, sync=sync)
            start, written = own.start if is_ours else size, os.fstat(descriptor).st_mtime_ns
            self.own = Span(state.st_ino, start, size + len(lines), written)
            if sync and not size:  # it may be new
                fsync_folder(self.file.parent)
        except OSError as problem:
            raise from_os(problem, "writing to", self.file) from problem

    def _made(self) -> int:
        return os.open(self.file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)


class _Kept:
    """A file that stays open from one use to the next, as long as its path still means it."""

    def __init__(self, path: Path) -> None:
        self._path, self._descriptor = os.fspath(path), -1
        self._identity, self._process = (0, 0), 0

    def descriptor(self, made: Callable[[], int]) -> int:
        """The descriptor of what has the path now, opened by `made` where it is not the one we have.

        A lock is that of a process and of all that were forked from it, so each has a descriptor of its own.
        """
        if self._descriptor < 0 or self._process != os.getpid() or identity(self._path) != self._identity:
            self._close()
            self._descriptor, self._process = made(), os.getpid()
            found = os.fstat(self._descriptor)
            self._identity = (found.st_dev, found.st_ino)
        return self._descriptor

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    __del__ = _close


class _Batch:
    """Lines of several threads that go into one write."""

    def __init__(self) -> None:
        self.lines: list[bytes | Callable[[], bytes]] = []
        self.sync = self.done = False
        self.problem: DcmtoolsError | None = None


def mend(descriptor: int) -> int:
    """The size of the file after a last line that a killed writer left was completed or cut off.

    A whole record that lacks only its newline is kept. To be called with the lock held.
    """
    size = os.fstat(descriptor).st_size
    if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
        return size
    start = _start_of_last_line(descriptor, size)
    if size - start <= _LONGEST_LINE and _is_record(os.pread(descriptor, size - start, start)):
        os.write(descriptor, b"\n")
        return size + 1
    os.ftruncate(descriptor, start)
    return start


def _add(descriptor: int, lines: bytes, size: int, *, sync: bool) -> None:
    left = memoryview(lines)
    try:
        while left:
            left = left[os.write(descriptor, left) :]
        if sync:
            _sync(descriptor)
    except BaseException:
        os.ftruncate(descriptor, size)
        raise


def _start_of_last_line(descriptor: int, end: int) -> int:
    while end > 0:
        start = max(0, end - _BLOCK)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _is_record(line: bytes) -> bool:
    try:
        decode(line)
    except ValueError:
        return False
    return True
