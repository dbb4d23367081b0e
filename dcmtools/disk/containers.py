"""The files inside zip and tar archives, unpacked one at a time (PKWARE APPNOTE 6.3; POSIX.1-2008 pax, ustar).

Whoever made the archive may be hostile. No name in it is ever used as a path. What is not a DICOM file is not unpacked.
How much comes out of it is limited, by itself and in proportion to its size, and so is the memory that its lists and
headers can claim. A tar archive is read as a stream, once, whatever compresses it.
"""

import bz2
import errno
import gzip
import lzma
import os
import stat
import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, cast

from dcmtools.disk.atomic import FILE_MODE, temporary_name
from dcmtools.disk.dataset import WINDOW
from dcmtools.disk.part10 import PREAMBLE, OpenFile, meta_of
from dcmtools.disk.tree import Skipped
from dcmtools.model.errors import BadData, from_os
from dcmtools.model.record import Record, path_keys
from dcmtools.model.uids import MEDIA_STORAGE_DIRECTORY

Kind = Literal["", "zip", "tar", "dicomdir"]

# By which names an archive is known below a folder; one that is named itself is known by its content alone.
SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tbz")
# What may come out of an archive: so much, or so many times its own size. Deflate makes at most a thousandth of zeros,
# bzip2 and xz far less of them; DICOM files of real images come down to a tenth.
MAX_EXPANDED = 1 << 30
MAX_RATIO = 100
# The list of members that a zip archive ends with, which is read at once: some 130,000 files.
MAX_DIRECTORY = 16 << 20
_BLOCK = 1 << 20
_MEDIA_DIRECTORY = MEDIA_STORAGE_DIRECTORY.encode()
_COMPRESSED: dict[bytes, Callable[[BinaryIO], IO[bytes]]] = {
    b"\x1f\x8b": lambda file: cast("IO[bytes]", gzip.GzipFile(fileobj=file)),
    b"BZh": lambda file: cast("IO[bytes]", bz2.BZ2File(file)),
    b"\xfd7zXZ\0": lambda file: cast("IO[bytes]", lzma.LZMAFile(file)),  # noqa: SIM115 - it closes with its file
}
# What the libraries raise for archives that are not as they should be; OSError without a number is theirs too.
_DAMAGES = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    struct.error,
    ValueError,
    OverflowError,
    RuntimeError,
    MemoryError,
)
# What concerns the place that we write to, or ourselves, and not the archive.
_OURS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE})


@dataclass(frozen=True, slots=True)
class Member:
    """A DICOM file that was unpacked to `path`, which belongs to whoever is given it; `source` names it for people."""

    source: str
    container: Path
    path: Path


def kind_of(path: Path | str) -> Kind:
    """What a regular file is by its first bytes: a zip or tar archive (compressed or not), a DICOMDIR, or neither."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return ""
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            head = os.pread(descriptor, 1024, 0)
        finally:
            os.close(descriptor)
    except OSError:  # whoever reads it next says so
        return ""
    if head[PREAMBLE : PREAMBLE + 4] == b"DICM":
        return "dicomdir" if _MEDIA_DIRECTORY in head else ""
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return "zip"
    is_tar = head[257:262] == b"ustar" or head.startswith(tuple(_COMPRESSED))
    return "tar" if is_tar else ""


def members_of(path: Path, kind: Kind, folder: Path, skipped: Skipped) -> Iterator[Member | Record]:
    """The DICOM files in an archive, each unpacked into `folder`, and an error record for each other file.

    A damaged or encrypted member costs only itself; where the archive as a whole is damaged, or holds more than is
    allowed, an error record tells so after what came out of it.
    """
    try:
        container = _Container(path, folder, skipped)
        yield from container.of_zip() if kind == "zip" else container.of_tar()
    except BadData as problem:
        yield problem.record(**path_keys(path))
    except (*_DAMAGES, OSError) as problem:
        if isinstance(problem, OSError) and problem.errno in _OURS:
            raise from_os(problem, "unpacking", path) from problem
        yield _damaged(path, problem).record(**path_keys(path))


class _Container:
    """One archive, the folder for what comes out of it, and how much still may."""

    def __init__(self, path: Path, folder: Path, skipped: Skipped) -> None:
        self.path = path
        self.name = str(path_keys(path)["path"])
        self._folder = folder
        self._skipped = skipped
        self._left = max(MAX_EXPANDED, MAX_RATIO * path.stat().st_size)

    def spend(self, count: int) -> None:
        """Counts bytes that came out; BadData when they are too many."""
        self._left -= count
        if self._left < 0:
            reason = f"{self.name} holds more than {MAX_RATIO} times its size"
            raise BadData(reason, "unpack it yourself, if you trust it, and import the folder", cause="too-large")

    # Zip

    def of_zip(self) -> Iterator[Member | Record]:
        """The members in the order of the archive's list."""
        with self.path.open("rb") as file:
            _check_directory(file, self.name)
            with zipfile.ZipFile(file) as archive:
                for info in archive.infolist():
                    if not info.is_dir() and not self._passes_over(info.filename):
                        yield from self._zipped(archive, info)

    def _zipped(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[Member | Record]:
        mode = info.external_attr >> 16
        if problem := self._refusal(info.filename, is_file=stat.S_IFMT(mode) in {0, stat.S_IFREG}):
            yield problem
        elif info.flag_bits & 1:
            yield self._error(info.filename, "it is encrypted", "encrypted", "unpack it with its password")
        else:
            yield self._inflated(archive, info)

    def _inflated(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member | Record:
        try:
            with archive.open(info) as stream:
                return self._unpacked(stream, info.filename, info.file_size, _zip_time(info))
        except NotImplementedError:
            reason = "it is compressed in a way that is not known"
            return self._error(info.filename, reason, "unreadable", "unpack it with the program that made it")
        except _DAMAGES as problem:
            return self._error(info.filename, f"it is damaged ({problem})", "truncated", "get the archive again")

    # Tar

    def of_tar(self) -> Iterator[Member | Record]:
        """The members in the order in which they come."""
        with self.path.open("rb") as file:
            head = file.read(6)
            file.seek(0)
            opener = next((opener for magic, opener in _COMPRESSED.items() if head.startswith(magic)), None)
            stream = _Forward(opener(file) if opener else file, self)
            try:
                archive = tarfile.TarFile(fileobj=cast("IO[bytes]", stream), mode="r")
            except tarfile.ReadError as problem:
                reason = f"{self.name} is neither a DICOM file nor a tar archive that can be read"
                raise BadData(reason, cause="not-dicom") from problem
            while (info := archive.next()) is not None:
                cast("Any", archive).members.clear()  # it would keep them all
                if not info.isdir() and not self._passes_over(info.name):
                    yield self._of_tar(archive, info)
            if stream.last and stream.last.strip(b"\0"):
                raise BadData(f"{self.name} is damaged or cut off", "get it again", cause="truncated")

    def _of_tar(self, archive: tarfile.TarFile, info: tarfile.TarInfo) -> Member | Record:
        if problem := self._refusal(info.name, is_file=info.isreg()):
            return problem
        stream = archive.extractfile(info)
        if stream is None:  # it is no file, whatever the header says
            return self._error(info.name, "it is no file", "not-a-file")
        return self._unpacked(stream, info.name, info.size, float(info.mtime))

    # Both

    def _passes_over(self, name: str) -> bool:
        """Whether it is plainly not meant as an instance, as in a folder."""
        parts = _parts(name)
        if any(part.startswith(".") and part not in {".", ".."} for part in parts) or "__MACOSX" in parts:
            self._skipped["hidden"] += 1
            return True
        if parts[-1].upper() == "DICOMDIR":
            self._skipped["dicomdir"] += 1
            return True
        return False

    def _refusal(self, name: str, *, is_file: bool) -> Record | None:
        """The error record of a member that no honest archive of files has."""
        if not is_file:
            return self._error(name, "it is a link or a device, and no file", "not-a-file")
        if not _parts(name)[0] or ".." in _parts(name):
            return self._error(name, "its name leaves the folder that it is unpacked to", "bad-name")
        return None

    def _unpacked(self, stream: IO[bytes], name: str, size: int, when: float) -> Member | Record:
        """A member as a file of its own; BadData and what the libraries raise when the archive ends first."""
        first = stream.read(WINDOW)
        try:
            meta_of(OpenFile(lambda position, count: first[position : position + count], size, first))
        except BadData as problem:
            if problem.cause == "not-dicom":
                self.spend(len(first))
                return self._error(name, problem.reason, problem.cause)
        path = self._folder / temporary_name()
        try:
            with open(path, "xb", opener=_private) as out:
                while first:
                    self.spend(len(first))
                    out.write(first)
                    first = stream.read(_BLOCK)
                _check_size(out.tell(), size)
            seconds = min(max(0, int(when)), 1 << 33)
            os.utime(path, (seconds, seconds))
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return Member(self._source(name), self.path, path)

    def _source(self, name: str) -> str:
        return str(path_keys(f"{self.path}!{name}")["path"])

    def _error(self, name: str, reason: str, cause: str, advice: str = "") -> Record:
        source = self._source(name)
        return BadData(f"{source}: {reason}", advice, cause=cause).record(**path_keys(self.path), source=source)


class _Forward:
    """A stream that is read onwards only, in blocks that no header can make large, each counted by its container."""

    def __init__(self, stream: IO[bytes], container: _Container) -> None:
        self._stream = stream
        self._container = container
        self._position = 0
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        """The next bytes; BadData when a header wants more at once than any needs."""
        if not 0 <= size <= _BLOCK:
            raise BadData(f"{self._container.name} has a header of {size:,} bytes", cause="too-large")
        data = self._stream.read(size)
        self._container.spend(len(data))
        self._position += len(data)
        if size == tarfile.BLOCKSIZE:  # as headers are read
            self.last = data
        return data

    def tell(self) -> int:
        """How far it was read."""
        return self._position

    def seek(self, position: int, _whence: int = 0) -> int:
        """Passes bytes by."""
        while self._position < position and self.read(min(_BLOCK, position - self._position)):
            pass
        if self._position > position:
            raise tarfile.StreamError("a tar archive is read onwards only")
        return self._position


def _check_directory(file: BinaryIO, name: str) -> None:
    """Raises BadData for a zip archive with a list that is too long to be read at once (APPNOTE 4.3.14 to 4.3.16)."""
    size = file.seek(0, os.SEEK_END)
    start = file.seek(max(0, size - (1 << 16) - 22 - 20))
    tail = file.read()
    at = len(tail) - 22 if tail[-22:-18] == b"PK\5\6" and tail[-2:] == b"\0\0" else tail.rfind(b"PK\5\6")
    if at < 0 or at + 22 > len(tail):
        raise BadData(f"{name} is cut off: its list of members is missing", "get it again", cause="truncated")
    (length,) = struct.unpack_from("<I", tail, at + 12)
    if tail[at - 20 : at - 16] == b"PK\6\7" and at >= 20:
        file.seek(max(0, start + at - 20 - 56))
        end = file.read(56)
        length = max(struct.unpack_from("<Q", end, 40)[0] if end[:4] == b"PK\6\6" else 0, length % 0xFFFFFFFF)
    if length > MAX_DIRECTORY:
        reason = f"{name} lists more members than are unpacked here"
        raise BadData(reason, "unpack it with unzip, and import the folder", cause="too-large")
    file.seek(0)


def _damaged(path: Path, problem: BaseException) -> BadData:
    cause = "truncated" if isinstance(problem, EOFError | tarfile.ReadError) else "unreadable"
    told = problem.strerror if isinstance(problem, OSError) and problem.errno else problem
    return BadData(
        f"{path_keys(path)['path']}: the archive cannot be read to its end ({told})", "get it again", cause=cause
    )


def _zip_time(info: zipfile.ZipInfo) -> float:
    try:
        return time.mktime((*info.date_time, 0, 0, -1)) if info.date_time[1] else 0.0
    except (OverflowError, ValueError):
        return 0.0


def _parts(name: str) -> list[str]:
    """The components of a name, which some programs for Windows write as there."""
    return name.replace("\\", "/").split("/")


def _check_size(there: int, told: int) -> None:
    if there != told:
        raise EOFError(f"{there} of {told} bytes are there")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, FILE_MODE)
