"""The one way in which files are written: to a temporary beside the target, fsynced, then renamed (DESIGN §5)."""

import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

TEMPORARY_PREFIX = ".dcmtools-"
FILE_MODE = 0o600
FOLDER_MODE = 0o700


def temporary_name() -> str:
    """A fresh name that every scan skips."""
    return f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(6)}"


@contextmanager
def atomic_file(path: Path, mode: int = FILE_MODE) -> Iterator[BinaryIO]:
    """A binary file for writing that takes the place of `path` at the end of the block, whole or not at all."""
    temporary = path.parent / temporary_name()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as out:
            yield out
            out.flush()
            os.fchmod(out.fileno(), mode)
            os.fsync(out.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    fsync_folder(path.parent)


def write_atomic(path: Path, data: bytes, mode: int = FILE_MODE) -> None:
    """Puts a file with these bytes at `path`, whole or not at all."""
    with atomic_file(path, mode) as out:
        out.write(data)


def link_new(temporary: Path, final: Path) -> None:
    """Gives a finished, fsynced temporary its final name and never replaces anything.

    FileExistsError when the name is taken. The own name of the temporary is gone afterwards. The folder is not
    fsynced here: callers do that once for a group.
    """
    try:
        os.link(temporary, final)
    except FileExistsError:
        raise
    except OSError:
        _rename_new(temporary, final)
        return
    temporary.unlink()


def make_folders(folder: Path, mode: int = FOLDER_MODE) -> None:
    """Makes a folder and its missing parents, each fsynced into its parent."""
    if folder.is_dir():
        return
    make_folders(folder.parent, mode)
    with suppress(FileExistsError):
        folder.mkdir(mode=mode)
    fsync_folder(folder.parent)


def fsync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_new(temporary: Path, final: Path) -> None:
    """Looks and renames under a lock on the folder, where hard links are not allowed: two writers cannot both win."""
    folder = os.open(final.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if os.path.lexists(final):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(final))
        temporary.replace(final)
    finally:
        os.close(folder)
