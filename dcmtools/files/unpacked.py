"""The files of a folder, and what is packed in them: members of zip archives, what gzip, bzip2 and xz compressed.

Nothing is passed over, whatever it is called: who looks for what must not be there has to see all of it.
"""

import bz2
import gzip
import lzma
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

from dcmtools.disk.part10 import opened
from dcmtools.disk.tree import INDEX_NAME
from dcmtools.model.errors import Refused, from_os
from dcmtools.model.record import Record, path_keys

# What may come out of one file, and how deep it may be packed.
MAX_EXPANDED = 4 << 30
MAX_DEPTH = 4
_BLOCK = 1 << 20
_COMPRESSED: dict[bytes, Callable[[Any], IO[bytes]]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),  # type: ignore[dict-item,return-value]
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}
_DAMAGES = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError, NotImplementedError)


@dataclass(frozen=True, slots=True)
class Found:
    """A file that is open: its name below the folder with those of what it is packed in, and where it lies."""

    name: bytes
    keys: Record
    file: BinaryIO
    size: int

    def read(self, position: int, size: int) -> bytes:
        """Bytes of it; where `file` stands does not change."""
        return os.pread(self.file.fileno(), size, position)


def names_below(out: Path) -> Iterator[Path | OSError]:
    """All that is no folder below one, or the file itself; what cannot be listed comes as the problem."""
    if not out.is_dir():
        yield out
        return
    problems: list[OSError] = []
    for folder, folders, names in os.walk(out, onerror=problems.append):
        yield from problems
        problems.clear()
        folders.sort()
        links = [name for name in folders if Path(folder, name).is_symlink()]
        yield from (Path(folder, name) for name in sorted([*names, *links]))
    yield from problems


ZIPPED = (b"PK\3\4", b"PK\5\6", b"PK\7\x08")


def lists_others(name: str) -> bool:
    """Whether a file tells of the instances beside it: what they say of themselves must be known before."""
    return name.rpartition("/")[2] in {INDEX_NAME, "index.sqlite", "DICOMDIR"}


def look_into(path: Path, out: Path) -> Iterator[Found]:
    """A file below `out` and all that is packed in it; each is open until the next is asked for.

    Raises:
        BadData: it is no regular file, or cannot be read.
        Refused: what is packed in it cannot be looked at.
    """
    name = b"" if path == out else os.fsencode(path.relative_to(out))
    with opened(path) as (file, _), os.fdopen(os.dup(file.descriptor or 0), "rb") as stream:
        yield from _Unpacking(path).of(Found(name, path_keys(path), stream, file.size), 0)


class _Unpacking:
    """What comes out of one file, and how much still may."""

    def __init__(self, path: Path) -> None:
        self._path, self._left = path, MAX_EXPANDED

    def of(self, found: Found, depth: int) -> Iterator[Found]:
        """A file, and what is packed in it; a zip comes behind that, since it has the names of it."""
        head = found.read(0, 6)
        opener = next((opener for magic, opener in _COMPRESSED.items() if head.startswith(magic)), None)
        is_zip = head.startswith(ZIPPED)
        if not is_zip:
            yield found
        if depth >= MAX_DEPTH and (opener or is_zip):
            raise self._unseen("it is packed too often")
        found.file.seek(0)
        if is_zip:
            yield from self._zipped(found, depth)
            yield found
        elif opener:
            with opener(found.file) as stream:
                yield from self._held(stream, found, "", depth)

    def _zipped(self, found: Found, depth: int) -> Iterator[Found]:
        try:
            archive = zipfile.ZipFile(found.file)
        except _DAMAGES as problem:
            raise self._unseen(type(problem).__name__) from problem
        with archive:
            for info in sorted(archive.infolist(), key=lambda one: lists_others(one.filename)):
                if not info.is_dir():
                    yield from self._member(archive, info, found, depth)

    def _member(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo, found: Found, depth: int) -> Iterator[Found]:
        try:
            stream = archive.open(info)
        except _DAMAGES as problem:
            raise self._unseen(type(problem).__name__) from problem
        with stream:
            yield from self._held(stream, found, info.filename, depth)

    def _held(self, stream: IO[bytes], outer: Found, member: str, depth: int) -> Iterator[Found]:
        """What a stream gives, in a file without a name that goes with this process."""
        with tempfile.TemporaryFile() as held:
            self._copy(stream, held)
            name = b"/".join(part for part in (outer.name, os.fsencode(member)) if part)
            inner = "/".join(part for part in (str(outer.keys.get("member", "")), member) if part)
            keys = {**outer.keys, **({"member": inner} if inner else {})}
            yield from self.of(Found(name, keys, held, held.tell()), depth + 1)

    def _copy(self, stream: IO[bytes], held: IO[bytes]) -> None:
        try:
            while block := stream.read(_BLOCK):
                self._left -= len(block)
                if self._left < 0:
                    raise self._unseen(f"more than {MAX_EXPANDED >> 30} GiB come out of it")
                held.write(block)
            held.flush()
        except _DAMAGES as problem:
            raise self._unseen(type(problem).__name__) from problem
        except OSError as problem:
            if problem.errno is None:  # a library's own word for data that it does not know
                raise self._unseen(type(problem).__name__) from problem
            raise from_os(problem, "unpacking", self._path) from problem

    def _unseen(self, why: str) -> Refused:
        return Refused(f"what is packed in it cannot be looked at ({why})", "unpack it", cause="verify")
