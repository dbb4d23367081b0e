"""Output that nobody ever waits for: bytes go to memory, then to a file without a name, and a thread writes them out.

A reader that sleeps must not make a node time out (DESIGN §3), and one that has gone must be noticed even while there
is nothing to write.
"""

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from dcmtools.disk.atomic import TEMPORARY_PREFIX, make_folders

IN_MEMORY = 1 << 20
_CHUNK = 1 << 18
# Seconds in which more may come before it is written: to wake for each of thousands of records took a third of a run.
_GATHER = 0.002


class Spool:
    """Writes to a descriptor in a thread of its own, in the order of `put`, each as soon as the reader takes it."""

    def __init__(self, descriptor: int, folder: Path, when_gone: Callable[[OSError], None]) -> None:
        """`folder` takes what does not fit into memory; `when_gone` is told why nothing can be written any more."""
        self._out = descriptor
        self._folder = folder
        self._when_gone = when_gone
        self.problem: OSError | None = None
        self._lock = threading.Lock()
        self._memory: deque[bytes] = deque()
        self._size = 0
        self._file: BinaryIO | None = None
        self._behind: list[bytes] = []
        self._read_at = self._written_to = 0
        self._closing = False
        self._asleep = False
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_in, False)
        self._thread = threading.Thread(target=self._work, name="stdout", daemon=True)
        self._thread.start()

    def put(self, data: bytes) -> None:
        """Takes bytes to be written; returns at once, whatever the reader does."""
        with self._lock:
            if self.problem is not None:
                return
            if self._file is None and self._size > IN_MEMORY:
                self._file = self._new_file()
            if self._file is not None:
                self._append(data)
            else:
                self._memory.append(data)
                self._size += len(data)
            if self._asleep:
                self._asleep = False  # once is enough: the next put may come before it is awake
                self._wake()

    def close(self, seconds: float | None = None) -> bool:
        """Waits until all is written, at most so many seconds; whether nothing is left."""
        with self._lock:
            self._closing = True
            self._wake()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    # What follows runs in the writing thread.

    def _work(self) -> None:
        try:
            while data := self._next():
                self._write(data)
        except OSError as problem:
            self._give_up(problem)

    def _next(self) -> bytes:
        """The next bytes to write; empty at the end."""
        while True:
            with self._lock:
                if data := self._pending():
                    return data
                if self._closing:
                    return b""
                self._asleep = True
            self._sleep()

    def _pending(self) -> bytes:
        if self._memory:  # always older than what lies in the file
            data = b"".join(self._memory)
            self._memory.clear()
            self._size = 0
            return data
        if self._file is None:
            return b""
        data = os.pread(self._file.fileno(), min(_CHUNK, self._written_to - self._read_at), self._read_at)
        self._read_at += len(data)
        if self._read_at == self._written_to:
            self._file.close()
            self._file = None
            self._memory.extend(self._behind)
            self._behind.clear()
        return data

    def _sleep(self) -> None:
        """Returns when there is something to do; OSError when the reader has gone meanwhile."""
        poll = select.poll()
        poll.register(self._wake_out, select.POLLIN)
        poll.register(self._out, 0)  # POLLERR comes unasked when the other end of a pipe is closed
        if any(descriptor == self._out for descriptor, _ in poll.poll()):
            raise BrokenPipeError
        if not self._closing:
            time.sleep(_GATHER)
        with self._lock:
            self._asleep = False
            os.read(self._wake_out, 4096)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._out, view) :]
            except BlockingIOError:  # a descriptor that somebody shares with us was made so
                select.select([], [self._out], [])

    def _give_up(self, problem: OSError) -> None:
        with self._lock:
            self.problem = problem
            self._memory.clear()
            self._behind.clear()
            if self._file is not None:
                self._file.close()
                self._file = None
        self._when_gone(problem)

    # What follows runs in the thread of put, under the lock.

    def _wake(self) -> None:
        with suppress(BlockingIOError):
            os.write(self._wake_in, b"!")

    def _new_file(self) -> BinaryIO | None:
        import tempfile

        self._read_at = self._written_to = 0
        for folder in (self._folder, None):
            with suppress(OSError):
                if folder is not None:
                    make_folders(folder)
                # Without a name from the start: it goes with the process, however that ends.
                return tempfile.TemporaryFile(buffering=0, prefix=TEMPORARY_PREFIX, dir=folder)
        return None  # then memory has to do

    def _append(self, data: bytes) -> None:
        """Adds to the end of the file, or to what waits in memory behind it once the disk is full."""
        view = memoryview(data)
        try:
            while view and not self._behind:
                done = os.pwrite(self._file.fileno(), view, self._written_to)  # type: ignore[union-attr]
                self._written_to += done
                view = view[done:]
        except OSError:
            pass
        if view:
            self._behind.append(bytes(view))
