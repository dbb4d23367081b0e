"""Locks that the kernel releases with their process (flock); the file tells people who holds it."""

import errno
import fcntl
import json
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dcmtools.disk.atomic import FILE_MODE
from dcmtools.model.errors import Locked, from_os
from dcmtools.model.record import path_keys

# Whoever asks for the holder takes a shared lock for an instant: nobody is refused for that.
_PATIENCE = 0.1
# A lock that is held for a write is free in a moment, one that is held for a whole run is not: ask less and less often.
_SHORTEST, _LONGEST = 0.0001, 0.01
_MAX_NOTE = 4096


class Lock:
    """Held within its `with` block; Locked names the holder when another has it after `wait` seconds.

    The file stays behind, empty: to remove it would give the same name to two locks.
    """

    def __init__(self, path: Path, purpose: str, *, wait: float = 0.0, **details: Any) -> None:
        self.path = path
        self.purpose = purpose
        self._wait = wait
        self._details = details
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Takes the lock; Locked when it cannot be had, CannotCreate when its file cannot be made."""
        end = time.monotonic() + self._wait
        while True:
            descriptor = open_lock(self.path)
            try:
                if not flock_within(descriptor, max(end - time.monotonic(), _PATIENCE)):
                    raise self._locked(_note(descriptor))
                if _is_named(descriptor, self.path):
                    self._sign(descriptor)
                    self._descriptor = descriptor
                    return
            finally:
                if self._descriptor is None:
                    os.close(descriptor)

    def release(self) -> None:
        """Gives the lock back."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    def _sign(self, descriptor: int) -> None:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        note = {"pid": os.getpid(), "host": socket.gethostname(), "purpose": self.purpose, "since": since}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({**note, **self._details}).encode() + b"\n", 0)

    def _locked(self, note: dict[str, Any]) -> Locked:
        who = f"process {note.get('pid', '?')} ({note.get('purpose', 'unknown')})"
        return Locked(
            f"{self.purpose}: {self.path} is held by {who}",
            "wait until it has finished, or try again later",
            **path_keys(self.path),
            holder=note,
        )


def holder(path: Path) -> dict[str, Any] | None:
    """What the holder of a lock wrote of itself; None when nobody holds it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise from_os(problem, "reading the lock", path) from problem
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as problem:
        if problem.errno not in {errno.EAGAIN, errno.EACCES}:
            raise from_os(problem, "asking for the lock", path) from problem
        return _note(descriptor)
    else:
        return None
    finally:
        os.close(descriptor)


def open_lock(path: Path) -> int:
    """A descriptor of a lock file, which is made when it is missing; never one to which a link points."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
    except OSError as problem:
        raise from_os(problem, "opening the lock", path) from problem


def flock_within(descriptor: int, seconds: float) -> bool:
    """Whether the exclusive lock on a descriptor could be had within so many seconds."""
    end, pause = time.monotonic() + seconds, _SHORTEST
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST)
        else:
            return True


def _is_named(descriptor: int, path: Path) -> bool:
    """Whether the path still means this file: somebody may have tidied it away meanwhile."""
    try:
        named, held = os.stat(path), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)


def _note(descriptor: int) -> dict[str, Any]:
    try:
        note = json.loads(os.pread(descriptor, _MAX_NOTE, 0))
    except ValueError:
        return {}
    return note if isinstance(note, dict) else {}
