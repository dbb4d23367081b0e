"""Puts the content of a file under another name: by sharing its blocks, by a hard link, or by copying (DESIGN §4)."""

import errno
import fcntl
import os
import stat
from pathlib import Path

from dcmtools.disk.atomic import FILE_MODE
from dcmtools.model.errors import BadData
from dcmtools.model.record import path_keys

_FICLONE = 0x40049409  # <linux/fs.h>
_BLOCK = 8 << 20


def copy(source: Path, target: Path) -> None:
    """Makes `target`, which must not exist, with the bytes and the time of `source`; blocks are shared if possible.

    BadData with the cause `changed` when somebody writes to the source meanwhile. Not fsynced.
    """
    read = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        before = os.fstat(read)
        if not stat.S_ISREG(before.st_mode):
            raise BadData(f"{path_keys(source)['path']} is not a regular file", **path_keys(source))
        write = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        try:
            if not _share_blocks(read, write):
                _copy_bytes(read, write)
            os.utime(write, ns=(before.st_atime_ns, before.st_mtime_ns))
            size = os.fstat(write).st_size
        finally:
            os.close(write)
        after = os.fstat(read)
    finally:
        os.close(read)
    if (size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise changed(source)


def link(source: Path, target: Path) -> bool:
    """Whether `target` could be made a second name of `source`."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        return False
    if stat.S_ISREG(os.lstat(target).st_mode):
        return True
    target.unlink()
    return False


def share_blocks(source: Path, target: Path) -> bool:
    """Whether `target` could be made a copy of `source` that shares its blocks (a reflink)."""
    read = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        before = os.fstat(read)
        write = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        try:
            if shared := _share_blocks(read, write):
                os.utime(write, ns=(before.st_atime_ns, before.st_mtime_ns))
        finally:
            os.close(write)
    finally:
        os.close(read)
    if not shared:
        target.unlink()
    return shared


def same_bytes(one: Path, other: Path) -> bool:
    """Whether two files are equal byte for byte."""
    with one.open("rb", buffering=0) as first, other.open("rb", buffering=0) as second:
        while (block := first.read(_BLOCK)) == second.read(_BLOCK):
            if not block:
                return True
    return False


def changed(source: Path) -> BadData:
    """The error that tells of a source which somebody writes to."""
    keys = path_keys(source)
    return BadData(f"{keys['path']} changes while it is read", "run the same command again", cause="changed", **keys)


def _share_blocks(read: int, write: int) -> bool:
    try:
        fcntl.ioctl(write, _FICLONE, read)
    except OSError as problem:
        if problem.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise
        return False  # another file system, or one that cannot
    return True


def _copy_bytes(read: int, write: int) -> None:
    while block := os.read(read, _BLOCK):
        left = memoryview(block)
        while left:
            left = left[os.write(write, left) :]
