"""Follows an index file that others write to: each line is told once, also when the file is replaced meanwhile."""

import os
import threading
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

from dcmtools.disk.view_fill import whole_lines
from dcmtools.model.errors import from_os
from dcmtools.model.record import Record, decode, encode, name_of, path_keys

_TAIL = 64  # bytes by which what was told is known again
_BLOCK = 1 << 16


class Follower:
    """What was told of a file; it stays open, so that it can still be read when another one has taken its name.

    Thread-safe: each line is told to one of those who ask.
    """

    def __init__(self, file: Path, key_of: Callable[[str], str]) -> None:
        self._file = file
        self._key_of = key_of
        self._guard = threading.Lock()
        self._descriptor: int | None = None
        self._told = 0
        self._tail = b""

    def skip(self) -> None:
        """Takes all lines that are there as told."""
        with self._guard:
            self._close()
            self._descriptor = self._opened()
            if self._descriptor is not None:
                size = os.fstat(self._descriptor).st_size
                self._remember(size - len(_last_line(self._descriptor, size)))

    def news(self) -> list[Record]:
        """The lines that came since the last call, all at the first one; what are no records is left out.

        After the file was replaced: the rest of the old one, and of the new one what the old one did not have.
        """
        with self._guard:
            return self._news()

    def _news(self) -> list[Record]:
        descriptor = self._opened()
        if descriptor is None:
            self._close()
            return []
        if self._descriptor is not None and os.path.sameopenfile(descriptor, self._descriptor):
            os.close(descriptor)
            if not self._is_untouched():  # a writer whose disk was full cut off what it could not finish
                self._remember(min(self._told, os.fstat(self._descriptor).st_size) if self._is_shorter() else 0)
            return self._grown()
        return self._replaced_by(descriptor)

    def _grown(self) -> list[Record]:
        descriptor, found = self._descriptor or 0, []
        told = self._told
        for raw in whole_lines(descriptor, told, os.fstat(descriptor).st_size):
            told += len(raw)
            found += _decoded(raw)
        self._remember(told)
        return found

    def _replaced_by(self, descriptor: int) -> list[Record]:
        rest: list[Record] = []
        known: set[bytes] = set()
        if self._descriptor is not None and self._is_untouched():
            rest = self._grown()
            known = {self._meaning(raw) for raw in whole_lines(self._descriptor, 0, self._told)}
        self._close()
        self._descriptor, told = descriptor, 0
        for raw in whole_lines(descriptor, 0, os.fstat(descriptor).st_size):
            told += len(raw)
            if not known or self._meaning(raw) not in known:
                rest += _decoded(raw)
        self._remember(told)
        return rest

    def _opened(self) -> int | None:
        try:
            return os.open(self._file, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as problem:
            raise from_os(problem, "reading", self._file) from problem

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor, self._told, self._tail = None, 0, b""

    def _remember(self, told: int) -> None:
        self._told = told
        length = min(_TAIL, told)
        self._tail = os.pread(self._descriptor or 0, length, told - length)

    def _is_shorter(self) -> bool:
        return os.fstat(self._descriptor or 0).st_size < self._told

    def _is_untouched(self) -> bool:
        """Whether what was told still stands where it stood."""
        length = len(self._tail)
        return os.pread(self._descriptor or 0, length, self._told - length) == self._tail

    def _meaning(self, raw: bytes) -> bytes:
        """What a line says, however its keys are ordered and its path is written."""
        said = raw
        for record in _decoded(raw):
            place = path_keys(self._key_of(name)) if (name := name_of(record)) else {}
            said = encode(dict(sorted({**record, **place}.items())))
        return blake2b(said, digest_size=8).digest()


def _decoded(raw: bytes) -> list[Record]:
    try:
        return [decode(raw)]
    except ValueError:
        return []


def _last_line(descriptor: int, size: int) -> bytes:
    """What stands behind the last newline: a line that somebody is still writing."""
    at, rest = size, b""
    while at > 0 and b"\n" not in rest:
        start = max(0, at - _BLOCK)
        rest = os.pread(descriptor, at - start, start) + rest
        at = start
    return rest[rest.rfind(b"\n") + 1 :]
