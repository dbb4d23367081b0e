"""Puts one file into its place, as hard link, copy or symbolic link, and never over another file (DESIGN §5)."""

import errno
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from dcmtools.disk.atomic import FILE_MODE, FOLDER_MODE, fsync_folder, link_new, temporary_name
from dcmtools.model.errors import BadData, IOFailure

How = Literal["link", "copy", "symlink", "move"]

_BLOCK = 1 << 20
# What link() answers where a hard link is not to be had: another file system, a file of somebody else's
# (fs.protected_hardlinks), too many links, a file system without them.
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})


@dataclass(frozen=True, slots=True)
class Rights:
    """The mode and the group for what is placed; None leaves a hard link's as they are."""

    mode: int | None = None
    gid: int | None = None

    @property
    def file_mode(self) -> int:
        """The mode of a new file."""
        return FILE_MODE if self.mode is None else self.mode

    @property
    def folder_mode(self) -> int:
        """The mode of a new folder: who may read the files may look into it."""
        return FOLDER_MODE if self.mode is None else 0o700 | self.mode | (self.mode & 0o444) >> 2

    def grant(self, path: str | Path) -> None:
        """Sets mode and group of a file or folder where they were asked for and are others.

        A hard link has them in common with its source.
        """
        if self.mode is None and self.gid is None:
            return
        now = os.stat(path)
        wanted = self.folder_mode if stat.S_ISDIR(now.st_mode) else self.file_mode
        if self.gid is not None and now.st_gid != self.gid:
            os.chown(path, -1, self.gid)
        if self.mode is not None and stat.S_IMODE(now.st_mode) != wanted:
            os.chmod(path, wanted)

    def make_folders(self, folder: Path) -> None:
        """Makes a folder and its missing parents, each with these rights and fsynced into its parent."""
        if folder.is_dir():
            return
        self.make_folders(folder.parent)
        with suppress(FileExistsError):
            folder.mkdir(mode=FOLDER_MODE)
            self.grant(folder)
        fsync_folder(folder.parent)


def place(source: Path, target: Path, how: How, rights: Rights, staging: Path) -> str:
    """Puts the source's content at `target`: "linked", or "copied" where it was asked for or a link cannot be had.

    The target appears whole, with its rights. Temporaries are made in `staging`, or beside the target where that is on
    another file system. FileExistsError when the name is taken. "move" places as "link" does: who calls removes the
    source, later.
    """
    real = Path(os.path.realpath(source, strict=True))
    if not stat.S_ISREG(real.stat().st_mode):
        raise BadData("it is not a regular file", cause="not-a-file")
    if how == "symlink":
        target.symlink_to(source)
        return "linked"
    if how != "copy" and _link(real, target, rights):
        return "linked"
    link_new(_copy(real, _near(target, staging) / temporary_name(), rights), target)
    return "copied"


def prospect(source: Path, folder: Path, how: How) -> str:
    """What `place` would most likely answer for a target below a folder that may not exist yet."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    linked = how == "symlink" or (how != "copy" and source.stat().st_dev == there.stat().st_dev)
    return "linked" if linked else "copied"


def replace(source: Path, target: Path, how: How, rights: Rights, staging: Path) -> None:
    """Does as `place`, and takes the place of what is at `target` in one step."""
    temporary = _near(target, staging) / temporary_name()
    place(source, temporary, how, rights, staging)
    temporary.replace(target)


def is_same(source: str | Path, target: str | Path) -> bool:
    """Whether both are one file, or two with the same bytes; FileNotFoundError when one is missing."""
    here, there = os.stat(source), os.stat(target)
    if os.path.samestat(here, there):
        return True
    if not (stat.S_ISREG(there.st_mode) and here.st_size == there.st_size):
        return False
    with open(source, "rb") as one, open(target, "rb") as other:
        return _same_bytes(one, other)


def _same_bytes(one: BinaryIO, other: BinaryIO) -> bool:
    while True:
        block = one.read(_BLOCK)
        if block != other.read(_BLOCK):
            return False
        if not block:
            return True


def _link(source: Path, target: Path, rights: Rights) -> bool:
    """Whether a hard link could be made, and given its rights."""
    try:
        os.link(source, target)
        _grant_or_unlink(target, rights)
    except OSError as problem:
        if problem.errno in _NO_LINK:
            return False
        raise
    return True


def _near(target: Path, staging: Path) -> Path:
    same = os.stat(target.parent).st_dev == os.stat(staging).st_dev
    return staging if same else target.parent


def _grant_or_unlink(target: Path, rights: Rights) -> None:
    try:
        rights.grant(target)
    except OSError:
        target.unlink()
        raise


def _copy(source: Path, temporary: Path, rights: Rights) -> Path:
    """A synced copy with the source's times."""
    try:
        with source.open("rb") as data, open(temporary, "xb", opener=_private) as out:
            before = os.fstat(data.fileno())
            _pour(data, out)
            _check_still(before, os.fstat(data.fileno()), out.tell())
            os.utime(out.fileno(), ns=(before.st_atime_ns, before.st_mtime_ns))
            os.fchmod(out.fileno(), rights.file_mode)
            os.fsync(out.fileno())
        rights.grant(temporary)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _check_still(before: os.stat_result, after: os.stat_result, copied: int) -> None:
    same_time = before.st_mtime_ns == after.st_mtime_ns
    if not (same_time and before.st_size == after.st_size == copied):
        raise IOFailure("it changed while it was copied", "run the same command again", cause="changed")


def _pour(data: BinaryIO, out: BinaryIO) -> None:
    """Copies in the kernel where it can, which shares the blocks on file systems that do; else through memory."""
    done = 0
    if hasattr(os, "copy_file_range"):
        with suppress(OSError):
            while count := os.copy_file_range(data.fileno(), out.fileno(), 1 << 30):
                done += count
        data.seek(done)
        out.seek(done)
    while block := data.read(_BLOCK):
        out.write(block)
    out.flush()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, FILE_MODE)
