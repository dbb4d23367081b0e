"""The one way in which files are written: to a temporary beside the target, fsynced, then renamed (DESIGN §5)."""

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

TEMPORARY_PREFIX = ".dcmtools-"
FILE_MODE = 0o600
FOLDER_MODE = 0o700
# What file systems without hard links answer: FAT, some shares, some kernels' protection of other people's files.
_NO_LINKS = frozenset({errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL})

# Held from a folder's making to its parent's fsync: whoever finds the folder may rely on its name.
_making = threading.RLock()


def temporary_name() -> str:
    """A fresh name that every scan skips."""
    return f"{TEMPORARY_PREFIX}{os.getpid()}-{os.urandom(6).hex()}"


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


def link_new(temporary: str | os.PathLike[str], final: str | os.PathLike[str]) -> None:
    """Gives a finished, fsynced temporary its final name, never replacing anything; FileExistsError when it is taken.

    The temporary's own name is gone afterwards. The folder is not fsynced here: callers do that once for a group.
    """
    if not _is_linked(temporary, final):
        within, name = os.path.split(final)
        folder = os.open(within, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _rename_new(temporary, folder, name)
        finally:
            os.close(folder)


def link_into(temporary: str | os.PathLike[str], folder: int, name: str) -> None:
    """As `link_new`, into a folder that is open: one that was looked at cannot be exchanged for a link elsewhere."""
    if not _is_linked(temporary, name, folder):
        _rename_new(temporary, folder, name)


def _is_linked(temporary: str | os.PathLike[str], final: str | os.PathLike[str], folder: int | None = None) -> bool:
    """Gives a file another name instead of its own; False where the file system knows no hard links."""
    try:
        os.link(temporary, final, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as problem:
        if problem.errno not in _NO_LINKS:
            raise
        return False
    os.unlink(temporary)
    return True


def identity(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Which file has a name now, as device and inode; None where it cannot be seen: to open it says why."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def make_folders(folder: Path, mode: int = FOLDER_MODE) -> None:
    """Makes a folder and its missing parents, each fsynced into its parent."""
    with _making:
        if folder.is_dir():
            return
        make_folders(folder.parent, mode)
        with suppress(FileExistsError):
            folder.mkdir(mode=mode)
        fsync_folder(folder.parent)


def fsync_file(path: Path) -> None:
    """Makes what a file holds durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file_system(folder: Path) -> bool:
    """Whether all that was written to a folder's file system is durable now; False where that cannot be asked for.

    One call for a thousand small files takes a small part of the time that as many fsyncs take.
    """
    import ctypes

    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)  # Linux only
    if syncfs is None:
        return False
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if syncfs(descriptor) == 0:
            return True
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fspath(folder))
    finally:
        os.close(descriptor)


def _rename_new(temporary: str | os.PathLike[str], folder: int, name: str) -> None:
    """Looks and renames under a lock on the folder, so that two writers cannot both find the name free."""
    own = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)  # a lock is a descriptor's own
    try:
        fcntl.flock(own, fcntl.LOCK_EX)
        if _is_taken(folder, name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        os.replace(temporary, name, dst_dir_fd=folder)
    finally:
        os.close(own)


def _is_taken(folder: int, name: str) -> bool:
    try:
        os.lstat(name, dir_fd=folder)
    except FileNotFoundError:
        return False
    return True
