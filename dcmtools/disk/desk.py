"""What one sender's objects pass over on their way into the archive, each as fast as its syncs let it.

The next temporary file is there before it is needed, and the folder of the last object stays open: a sender mostly
goes on where it was. The order is that of DESIGN §5.1: the data are synced, then linked without overwriting, then the
folder is synced, then the index line is appended and synced.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dcmtools.disk.archive import Archive, Committed, Incoming
from dcmtools.disk.atomic import FILE_MODE, NO_LINKS, link_into
from dcmtools.disk.inflated import Buffer
from dcmtools.model.errors import DcmtoolsError, from_os
from dcmtools.model.record import Record, path_keys

# Fragments below this size are gathered: some peers send data sets in pieces of a few bytes.
_SMALL, _GATHERED = 16 << 10, 256 << 10
# So much of a large object is sent on to the disk at a time, so that little is left to do for the sync at its end.
_AHEAD = 1 << 20


@dataclass(slots=True)
class Temporary:
    """A file for an object that is being received, open for writing."""

    path: Path
    descriptor: int
    ahead: bool = True
    size: int = 0
    _gathered: bytearray = field(default_factory=bytearray)
    _on_its_way: int = 0

    def write(self, *parts: Buffer) -> None:
        """Adds to the file; small parts may wait for others, but for the first, which shows that something comes."""
        if len(parts[0]) < _SMALL and self.size and len(parts) == 1:
            self._gathered += parts[0]
            if len(self._gathered) > _GATHERED:
                self.flush()
            return
        self.flush()
        self._put(parts)
        if self.ahead and self.size - self._on_its_way >= _AHEAD:
            self.send_on()

    def flush(self) -> None:
        """Writes what waits."""
        if self._gathered:
            gathered, self._gathered = self._gathered, bytearray()
            self._put((gathered,))

    def send_on(self) -> None:
        """Has the kernel begin to write to the disk what came since the last time; does not wait for it."""
        if hasattr(os, "posix_fadvise"):  # Linux begins to write back what is dirty; macOS has no such call
            os.posix_fadvise(self.descriptor, self._on_its_way, self.size - self._on_its_way, os.POSIX_FADV_DONTNEED)
            self._on_its_way = self.size

    def _put(self, parts: Sequence[Buffer]) -> None:
        wanted = sum(map(len, parts))
        written = os.writev(self.descriptor, parts)
        self.size += written
        if written < wanted:  # a disk that is nearly full takes a part, and says so at the next call
            rest = memoryview(b"".join(parts))[written:]
            while rest:
                written = os.write(self.descriptor, rest)
                self.size, rest = self.size + written, rest[written:]


class Desk:
    """A way into the archive for one thread; `fsync` says whether data and names are on the disk when it is passed."""

    def __init__(self, archive: Archive, incoming: Incoming, *, fsync: bool = True) -> None:
        self._archive, self._incoming, self._fsync = archive, incoming, fsync
        self._next: Temporary | None = None
        self._folder = -1
        self._place, self._identity = "", (0, 0)

    def temporary(self) -> Temporary:
        """An empty file, made ahead if possible."""
        made, self._next = self._next, None
        if made and not os.path.lexists(made.path):  # somebody tidied it away, or the whole archive
            os.close(made.descriptor)
            made = None
        return made or self._made()

    def clear(self, file: Temporary) -> None:
        """Puts a temporary away, whatever became of it, and gets the next one ready; to be called after the answer."""
        self._remove(file)
        if self._next is None:
            with suppress(OSError):  # no room or no descriptors: the next object will say so
                self._next = self._made()

    def admit(self, file: Temporary, record: Record) -> Committed:
        """Makes a file that was received part of the archive: durable, under its name, in the index.

        DiskFull, IOFailure, CannotCreate, TryLater or BadData when it could not be done.
        """
        archive, uid = self._archive, str(record.get("SOPInstanceUID"))
        final = archive.path_for(record)
        try:
            state = os.fstat(file.descriptor)
            if self._fsync:
                os.fsync(file.descriptor)
            with archive.claim(uid):
                seen = archive.index_state()
                if not archive.index.everywhere((uid,)) and self._link(file, final):
                    place = {**path_keys(final), "size": state.st_size, "mtime_ns": str(state.st_mtime_ns)}
                    committed = Committed("received", final, {**record, **place, "state": "received"})
                    return archive.tell(committed, seen)
        except OSError as problem:
            raise from_os(problem, "storing", final) from problem
        (outcome,) = archive.commit_all([(file.path, record)], synced=True)
        if isinstance(outcome, DcmtoolsError):
            raise outcome
        return outcome

    def close(self) -> None:
        """Gives back what is open."""
        if self._next:
            self._remove(self._next)
            self._next = None
        self._leave()

    def _made(self) -> Temporary:
        path = self._incoming.new_path()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags, FILE_MODE)
        except FileNotFoundError:
            self._incoming.make_again()
            descriptor = os.open(path, flags, FILE_MODE)
        return Temporary(path, descriptor, self._fsync)

    @staticmethod
    def _remove(file: Temporary) -> None:
        os.close(file.descriptor)
        with suppress(OSError):
            os.unlink(file.path)

    def _link(self, file: Temporary, final: Path) -> bool:
        """Whether the file could be given its name, which is then durable."""
        folder = self._entered(final.parent)
        try:
            os.link(file.path, final.name, dst_dir_fd=folder, follow_symlinks=False)
            os.unlink(file.path)
        except FileExistsError:
            return False
        except OSError as problem:
            if problem.errno not in NO_LINKS:
                raise
            try:
                link_into(file.path, folder, final.name)
            except FileExistsError:
                return False
        if self._fsync:
            os.fsync(folder)
        return True

    def _entered(self, place: Path) -> int:
        """The folder, open; that of the last object is taken again if it still is what has that path."""
        name = os.fspath(place)
        if name == self._place and self._is_there(name):
            return self._folder
        self._leave()
        self._folder = self._archive.open_folder(place)
        found = os.fstat(self._folder)
        self._place, self._identity = name, (found.st_dev, found.st_ino)
        return self._folder

    def _is_there(self, name: str) -> bool:
        try:
            found = os.lstat(name)
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == self._identity

    def _leave(self) -> None:
        if self._folder >= 0:
            os.close(self._folder)
        self._folder, self._place = -1, ""
