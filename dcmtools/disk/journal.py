"""An append-only file of JSON lines that several processes write to, and that survives their death (DESIGN §4).

Whoever writes holds a lock beside the file, never one on it: a file that is replaced would take its lock along.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dcmtools.disk.atomic import FILE_MODE, fsync_folder, make_folders
from dcmtools.disk.lock import flock_within, open_lock
from dcmtools.model.errors import DcmtoolsError, IOFailure, Locked, from_os
from dcmtools.model.record import decode, path_keys

# Writers hold the lock for milliseconds; one that was stopped in that moment may hold it for ever.
PATIENCE = 60.0
_BLOCK = 1 << 16
_LONGEST_LINE = 16 << 20
_sync = getattr(os, "fdatasync", os.fsync)  # macOS has only the latter


class Journal:
    """A file of lines to append to. Thread-safe; threads that append at the same time share one write and one sync."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.lock_file = file.with_suffix(".lock")
        self._guard = threading.Lock()
        self._writing = threading.Lock()
        self._collected = _Batch()

    def append(self, lines: bytes | Callable[[], bytes]) -> None:
        """Adds whole lines, synced to the disk when this returns.

        Lines that depend on what the file holds are made by a function, which is called (perhaps in another thread)
        while no other writes: what it reads in the file is durable.
        DiskFull or IOFailure when they could not be added; the file is then as it was.
        """
        with self._guard:
            batch = self._collected
            batch.lines.append(lines)
        with self._writing:
            if not batch.done:
                with self._guard:
                    self._collected = _Batch()
                self._settle(batch)
        if batch.problem:
            raise batch.problem

    def _settle(self, batch: "_Batch") -> None:
        batch.done = True
        try:
            with self.locked():
                if lines := b"".join(one() if callable(one) else one for one in batch.lines):
                    self._write(lines)
        except DcmtoolsError as problem:
            batch.problem = problem
        except BaseException:
            batch.problem = IOFailure(f"writing to {self.file} was interrupted")
            raise

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps all other writers away within the block."""
        make_folders(self.file.parent)
        descriptor = open_lock(self.lock_file)
        try:
            if not flock_within(descriptor, PATIENCE):
                reason = f"{self.lock_file} has been held for {PATIENCE:.0f} s"
                raise Locked(reason, "look for a stopped dcmtools process", **path_keys(self.lock_file))
            yield
        finally:
            os.close(descriptor)

    def _write(self, lines: bytes) -> None:
        try:
            is_new = not self.file.exists()
            descriptor = os.open(self.file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
            try:
                _add(descriptor, lines, mend(descriptor))
            finally:
                os.close(descriptor)
            if is_new:
                fsync_folder(self.file.parent)
        except OSError as problem:
            raise from_os(problem, "writing to", self.file) from problem


class _Batch:
    """Lines of several threads that go into one write."""

    def __init__(self) -> None:
        self.lines: list[bytes | Callable[[], bytes]] = []
        self.done = False
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


def _add(descriptor: int, lines: bytes, size: int) -> None:
    left = memoryview(lines)
    try:
        while left:
            left = left[os.write(descriptor, left) :]
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
