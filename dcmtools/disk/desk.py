"""What one sender's objects pass over on their way into the archive, each as fast as its syncs let it.

The next temporary file is there before it is needed, and the folder of the last object stays open: a sender mostly
goes on where it was. The order is that of DESIGN §5.1: the data are synced, then linked without overwriting, then the
folder is synced, then the index line is appended and synced.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dcmtools.disk.archive import Archive, Committed, Incoming
from dcmtools.disk.atomic import FILE_MODE, link_into
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

    name: str
    descriptor: int
    ahead: bool = True
    size: int = 0
    is_linked: bool = False  # and the name gone
    _gathered: bytearray = field(default_factory=bytearray)
    _on_its_way: int = 0

    @property
    def path(self) -> Path:
        """Where it is."""
        return Path(self.name)

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


Arrived = tuple[Temporary, Record]
# What became of each, None as long as that is open.
Outcomes = list[Committed | DcmtoolsError | None]


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
        if made and not os.path.lexists(made.name):  # somebody tidied it away, or the whole archive
            os.close(made.descriptor)
            made = None
        return made or self._made()

    def clear(self, file: Temporary) -> None:
        """Puts a temporary away, whatever became of it, and gets the next one ready; to be called after the answer."""
        self._remove(file)
        if self._next is None:
            with suppress(OSError):  # no room or no descriptors: the next object will say so
                self._next = self._made()

    def admit(self, arrived: Sequence[Arrived]) -> list[Committed | DcmtoolsError]:
        """Makes files that were received part of the archive: durable, under their names, in the index.

        What became of each, in order: DiskFull, IOFailure, CannotCreate, TryLater or BadData where it went wrong.
        """
        outcomes: Outcomes = list(self._synced(arrived))
        try:
            self._admit_new(arrived, outcomes)
            for number, (file, record) in enumerate(arrived):
                if outcomes[number] is None:
                    (outcomes[number],) = self._archive.commit_all([(file.path, record)], synced=True)
        except DcmtoolsError as problem:
            return [outcome or problem for outcome in outcomes]
        except OSError as problem:
            told = from_os(problem, "storing in", self._archive.root)
            return [outcome or told for outcome in outcomes]
        return [outcome for outcome in outcomes if outcome]

    def _synced(self, arrived: Sequence[Arrived]) -> Iterator[DcmtoolsError | None]:
        """What went wrong when the data of each were made durable."""
        if self._fsync and len(arrived) > 1:  # the disk takes them together
            for file, _ in arrived:
                file.send_on()
        for file, _ in arrived:
            try:
                if self._fsync:
                    os.fsync(file.descriptor)
                yield None
            except OSError as problem:
                yield from_os(problem, "storing in", self._archive.root)

    def _admit_new(self, arrived: Sequence[Arrived], outcomes: Outcomes) -> None:
        """Admits those of which the archive has nothing yet; the others are left."""
        archive = self._archive
        first: dict[str, int] = {}
        for number, (_, record) in enumerate(arrived):
            first.setdefault(str(record.get("SOPInstanceUID")), number)
        mine = {uid: number for uid, number in first.items() if outcomes[number] is None}
        with archive.claim(set(mine)):
            seen = archive.index.state()
            if not archive.index.lacks(mine):
                known = archive.index.everywhere(mine)
                mine = {uid: number for uid, number in mine.items() if uid not in known}
            linked = self._linked({number: arrived[number] for number in mine.values()}, outcomes)
            if linked:
                told = archive.tell(list(linked.values()), seen, sync=self._fsync)
                for number, outcome in zip(linked, told, strict=True):
                    outcomes[number] = outcome

    def _linked(self, arrived: dict[int, Arrived], outcomes: Outcomes) -> dict[int, Committed]:
        """Those that got their names, which are durable; of the others the names are taken, or `outcomes` say why."""
        places: dict[Path, dict[int, tuple[Path, Arrived]]] = {}
        for number, one in arrived.items():
            try:
                final = self._archive.path_for(one[1])
            except DcmtoolsError as problem:
                outcomes[number] = problem
            else:
                places.setdefault(final.parent, {})[number] = final, one
        linked: dict[int, Committed] = {}
        for place, some in places.items():
            linked |= self._linked_in(place, some, outcomes)
        return dict(sorted(linked.items()))

    def _linked_in(
        self, place: Path, arrived: dict[int, tuple[Path, Arrived]], outcomes: Outcomes
    ) -> dict[int, Committed]:
        """As `_linked`, in one folder: when that cannot be synced, none of its names is sure."""
        linked: dict[int, Committed] = {}
        for number, (final, one) in arrived.items():
            try:
                if done := self._named(final, *one):
                    linked[number] = done
            except OSError as problem:
                outcomes[number] = from_os(problem, "storing", final)
            except DcmtoolsError as problem:
                outcomes[number] = problem
        try:
            if linked and self._fsync:
                os.fsync(self._folder)
        except OSError as problem:
            for number in linked:
                outcomes[number] = from_os(problem, "storing in", place)
            return {}
        return linked

    def _named(self, final: Path, file: Temporary, record: Record) -> Committed | None:
        """The instance under its name, which is not durable yet; None when that is taken."""
        state = os.fstat(file.descriptor)
        if not self._link(file, final):
            return None
        place = {**path_keys(final), "size": state.st_size, "mtime_ns": str(state.st_mtime_ns)}
        return Committed("received", final, {**record, **place, "state": "received"})

    def close(self) -> None:
        """Gives back what is open."""
        if self._next:
            self._remove(self._next)
            self._next = None
        self._leave()

    def _made(self) -> Temporary:
        name = self._incoming.new_name()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            descriptor = os.open(name, flags, FILE_MODE)
        except FileNotFoundError:
            self._incoming.make_again()
            descriptor = os.open(name, flags, FILE_MODE)
        return Temporary(name, descriptor, self._fsync)

    @staticmethod
    def _remove(file: Temporary) -> None:
        os.close(file.descriptor)
        if not file.is_linked:
            with suppress(OSError):
                os.unlink(file.name)

    def _link(self, file: Temporary, final: Path) -> bool:
        """Whether the file could be given its name, in the folder that is open then."""
        try:
            link_into(file.name, self._entered(final.parent), final.name)
        except FileExistsError:
            return False
        file.is_linked = True
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
