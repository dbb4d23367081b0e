"""The file of a view: opened, made when it is missing, made anew when it is of no use (DESIGN §4).

It can be thrown away at any time; what is no view of ours never is.
"""

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dcmtools.disk.atomic import FILE_MODE, fsync_file, make_folders
from dcmtools.disk.lock import open_lock
from dcmtools.model.errors import BadData, DcmtoolsError

_APPLICATION = 0x64636D76  # "dcmv", at this place in the header of an SQLite file
_APPLICATION_AT = 68
_HEADER = 100
_VERSION = 1  # of the tables; another one is made anew
_PATIENCE = 60.0  # seconds that a catch-up in another process may take

Make = Callable[[sqlite3.Connection], None]


def opened_view(file: Path, make: Make) -> sqlite3.Connection:
    """A connection to a view, which `make` fills first when there is none that is whole.

    BadData when the file is something else; OSError or sqlite3.Error when nothing can be written there.
    """
    make_folders(file.parent)
    with _held(file):
        if not _is_whole(file):
            _remove(file)
            _made(file, make)
        return connected(file)


def connected(file: Path) -> sqlite3.Connection:
    """Another connection to a view that is open."""
    view = sqlite3.connect(file, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
    view.execute("PRAGMA synchronous = NORMAL")  # a view that lags behind its index is caught up
    return view


def removed_view(file: Path) -> None:
    """Takes a view away that turned out to be damaged."""
    with suppress(OSError, DcmtoolsError), _held(file):
        if _is_ours(file):
            _remove(file)


def _made(file: Path, make: Make) -> None:
    os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE))
    view = sqlite3.connect(file, isolation_level=None)
    try:
        # Until its version is written it counts for nothing, so that no journal has to save it from us.
        for pragma in (
            "journal_mode = OFF",
            "synchronous = OFF",
            "cache_size = -65536",
            f"application_id = {_APPLICATION}",
        ):
            view.execute(f"PRAGMA {pragma}")
        view.execute("BEGIN")
        make(view)
        view.execute("COMMIT")
        fsync_file(file)
        view.execute("PRAGMA journal_mode = WAL")
        view.execute(f"PRAGMA user_version = {_VERSION}")
    finally:
        view.close()
    fsync_file(file)


def _is_whole(file: Path) -> bool:
    """Whether a file is a view that was finished; BadData when it is not ours."""
    if not _is_ours(file):
        return False
    view = sqlite3.connect(file, timeout=_PATIENCE, isolation_level=None)
    try:
        (version,) = view.execute("PRAGMA user_version").fetchone()
        return bool(version == _VERSION)
    except sqlite3.DatabaseError:
        return False
    finally:
        view.close()


def _is_ours(file: Path) -> bool:
    """Whether there is a file that we made; BadData when somebody else did."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        header = os.pread(descriptor, _HEADER, 0)
    finally:
        os.close(descriptor)
    if header and header[_APPLICATION_AT : _APPLICATION_AT + 4] != _APPLICATION.to_bytes(4, "big"):
        raise BadData(f"{file} is not a view of an index", path=os.fspath(file))
    return True


def _remove(file: Path) -> None:
    for name in (file, *(file.with_name(file.name + end) for end in ("-wal", "-shm", "-journal"))):
        name.unlink(missing_ok=True)


@contextmanager
def _held(file: Path) -> Iterator[None]:
    """Keeps other processes from making, opening or removing the view; whoever makes it may take minutes."""
    lock = open_lock(file.with_name(f"{file.name}.lock"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
