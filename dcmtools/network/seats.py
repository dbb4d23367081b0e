"""The places for associations: how many there are, in all and for one host, and which are taken.

Several processes may share them, so that what one port promises holds however many serve it. Which are taken then
stands in memory that all of them see, a row for each process; the row of one that was killed is cleared by another.
"""

import fcntl
import mmap
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

_SEAT = 16  # bytes: what stands for a host
_FREE = bytes(_SEAT)
# One host has at most this part of the seats, so that so many hosts at least can have associations at once.
_HOSTS = 4
# Who holds the lock needs microseconds; one that was stopped in that moment may hold it for long.
_PATIENCE, _PAUSE = 1.0, 0.001


class Seats:
    """So many seats; one host may have `per_host` of them, by default a quarter, but all if it is this machine."""

    def __init__(self, total: int, per_host: int | None = None) -> None:
        self.total, self._per_host = total, per_host
        self._memory: bytearray | mmap.mmap = bytearray(total * _SEAT)
        self._first = 0
        self._guard = threading.Lock()

    def take(self, host: str) -> str:
        """Takes a seat for an association from this host; when there is none, why not."""
        with self._locked() as is_mine:
            if not is_mine:
                return "the other workers do not answer"
            seats = self._seats()
            if self.total <= (taken := sum(seat != _FREE for seat in seats)):
                return f"{taken} associations are open"
            key, share = _key(host), self._share(host)
            if share <= seats.count(key):
                return f"its host {host} has {share} associations, which is its share"
            self._put(seats.index(_FREE, self._first, self._first + self.total), key)
        return ""

    def leave(self, host: str) -> None:
        """Gives back a seat that was taken for this host."""
        with self._guard:  # its row is written to by one process only
            self._put(self._seats().index(_key(host), self._first, self._first + self.total), _FREE)

    @property
    def taken(self) -> int:
        """How many are taken now."""
        return sum(seat != _FREE for seat in self._seats())

    def _share(self, host: str) -> int:
        if self._per_host is not None:
            return self._per_host
        is_here = host == "::1" or host.startswith("127.")
        return self.total if is_here else max(1, self.total // _HOSTS)

    def _seats(self) -> list[bytes]:
        memory = bytes(self._memory)
        return [memory[start : start + _SEAT] for start in range(0, len(memory), _SEAT)]

    def _put(self, number: int, key: bytes) -> None:
        self._memory[number * _SEAT : (number + 1) * _SEAT] = key

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        with self._guard:
            yield True


class SharedSeats(Seats):
    """Seats for which several processes have one file; the one that is `row` takes its own there."""

    def __init__(self, total: int, per_host: int | None, file: int, row: int = 0) -> None:
        super().__init__(total, per_host)
        self.file = file
        self._memory = mmap.mmap(file, 0)
        self._first = row * total

    def clear(self, row: int) -> None:
        """Gives back the seats of a process that has died."""
        for number in range(row * self.total, (row + 1) * self.total):
            self._put(number, _FREE)

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Keeps other threads and processes away; the kernel gives back the lock of one that dies."""
        with self._guard:
            is_mine = self._lock()
            try:
                yield is_mine
            finally:
                if is_mine:
                    fcntl.lockf(self.file, fcntl.LOCK_UN)

    def _lock(self) -> bool:
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                if time.monotonic() >= end:
                    return False
                time.sleep(_PAUSE)
            else:
                return True


def seats_file(total: int, rows: int) -> int:
    """A file without a name for seats that so many processes share."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("seats")
    else:  # macOS
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.truncate(descriptor, total * rows * _SEAT)
    return descriptor


def _key(host: str) -> bytes:
    return blake2b(host.encode(), digest_size=_SEAT).digest()
