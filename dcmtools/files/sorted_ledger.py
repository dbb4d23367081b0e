"""`sorted.jsonl`: what sort-by-physician has placed, so that a later run knows its own work.

Append-only JSON lines, the last one for a path or a study wins; only the run that holds the lock of the folder writes.

    {"type":"file","study":..,"path":"Smith/2024_A1/3_T1/t1.nii","source":..,"size":..,"mtime_ns":..,"placed_ns":..}
    {"type":"file","study":..,"path":..,"state":"removed"}
    {"type":"study","study":..,"folder":"2024_A1","keys":[..],"spellings":[..],"votes":{series: [name, identifier]}}
"""

import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dcmtools.disk.atomic import FILE_MODE, fsync_folder
from dcmtools.files.physicians import is_component
from dcmtools.model.errors import from_os
from dcmtools.model.record import Record, decode, encode, path_keys, path_of

NAME = "sorted.jsonl"
Vote = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Placed:
    """A file that we placed: where, from where, and by what we know source and target again without reading them."""

    path: str  # below the output folder, with slashes
    source: str
    size: int
    mtime_ns: int  # of the source
    placed_ns: int  # of the target: not every file system keeps each digit
    series: str | None = None
    instance: str | None = None
    moved: bool = False  # its source is gone because we took it away

    def is_from(self, here: os.stat_result) -> bool:
        """Whether the source is as it was."""
        return (here.st_size, here.st_mtime_ns) == (self.size, self.mtime_ns)

    def is_at(self, there: os.stat_result) -> bool:
        """Whether the target is as we left it."""
        return (there.st_size, there.st_mtime_ns) == (self.size, self.placed_ns)

    def line(self, study: str) -> Record:
        """The ledger's line."""
        numbers = {"size": self.size, "mtime_ns": str(self.mtime_ns), "placed_ns": str(self.placed_ns)}
        uids = {"series": self.series, "instance": self.instance}
        line = {"type": "file", "study": study, "path": self.path, **source_keys(self.source), **numbers}
        moved = {"moved": True} if self.moved else {}
        return {**line, **{key: uid for key, uid in uids.items() if uid}, **moved}


@dataclass(frozen=True, slots=True)
class SortedStudy:
    """What was decided for a study, and on which grounds."""

    folder: str
    keys: tuple[str, ...] = ()
    spellings: tuple[str, ...] = ()
    votes: dict[str, Vote] = field(default_factory=dict)

    def line(self, study: str) -> Record:
        """The ledger's line."""
        words = {"folder": self.folder, "keys": self.keys, "spellings": self.spellings, "votes": self.votes}
        return {"type": "study", "study": study, **words}


@dataclass(slots=True)
class _Known:
    """What is held in memory of a study: enough to find the rest."""

    files: "array[int]" = field(default_factory=lambda: array("q"))  # where its lines begin
    line: int = -1
    counted: tuple[tuple[str, str], ...] = ()


class Ledger:
    """The ledger of one output folder; memory holds 8 bytes a line and a little for each study."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, _Known] = {}
        self._owners: dict[str, str] = {}
        self._end = 0
        try:
            self._scan()
        except OSError as problem:
            raise from_os(problem, "reading", path) from problem

    def study(self, study: str) -> SortedStudy | None:
        """What the last run decided for a study."""
        known = self._known.get(study)
        if not known or known.line < 0:
            return None
        return _study_of(next(self._lines([known.line])))

    def placed(self, study: str) -> dict[str, Placed]:
        """The study's files that we placed and did not remove, by path."""
        found: dict[str, Placed] = {}
        known = self._known.get(study)
        for line in self._lines(known.files) if known else ():
            if line.get("state") == "removed":
                found.pop(str(line.get("path")), None)
            elif one := _placed_of(line):
                found[one.path] = one
        return found

    def claim(self, folder: str, study: str) -> bool:
        """Whether a study folder is this study's, whatever the physician; it is from now on, if it was nobody's."""
        return self._owners.setdefault(folder.casefold(), study) == study

    def spellings(self) -> dict[str, Counter[str]]:
        """The number of studies for each spelling of each key."""
        counts: dict[str, Counter[str]] = {}
        for known in self._known.values():
            for key, spelling in known.counted:
                counts.setdefault(key, Counter())[spelling] += 1
        return counts

    def append(self, lines: Iterable[Record], mode: int = FILE_MODE) -> None:
        """Writes lines and syncs them, all or none."""
        encoded = [(record, encode(record)) for record in lines]
        if not encoded:
            return
        try:
            self._write(b"".join(data for _, data in encoded), mode)
        except OSError as problem:
            raise from_os(problem, "writing", self.path) from problem
        for record, data in encoded:
            self._take(record, self._end)
            self._end += len(data)

    def _write(self, data: bytes, mode: int) -> None:
        new = not self.path.exists()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, mode)
        try:
            # What is behind the last whole line was torn by a crash; we hold the lock.
            os.ftruncate(descriptor, self._end)
            view = memoryview(data)
            while view:
                view = view[os.pwrite(descriptor, view, self._end + len(data) - len(view)) :]
            os.fsync(descriptor)
        except OSError:
            with suppress(OSError):
                os.ftruncate(descriptor, self._end)
            raise
        finally:
            os.close(descriptor)
        if new:
            self.path.chmod(mode)
            fsync_folder(self.path.parent)

    def _scan(self) -> None:
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                with suppress(ValueError):
                    self._take(decode(line), self._end)
                self._end += len(line)

    def _take(self, record: Record, offset: int) -> None:
        known = self._known.setdefault(str(record.get("study")), _Known())
        if record.get("type") == "file":
            known.files.append(offset)
        elif study := _study_of(record):
            known.line = offset
            known.counted = tuple(zip(study.keys, study.spellings, strict=False))
            self._owners[study.folder.casefold()] = str(record.get("study"))

    def _lines(self, offsets: Iterable[int]) -> Iterator[Record]:
        with self.path.open("rb") as file:
            for offset in offsets:
                file.seek(offset)
                yield decode(file.readline())


def source_keys(source: str, key: str = "source") -> Record:
    """The keys for a path under another name than `path`."""
    return {name.replace("path", key, 1): value for name, value in path_keys(source).items()}


def _placed_of(line: Record) -> Placed | None:
    source = path_of({name.replace("source", "path", 1): line[name] for name in line if name.startswith("source")})
    try:
        numbers = (int(line["size"]), int(line["mtime_ns"]), int(line["placed_ns"]))
        if source is None or not _is_below(line["path"]):
            return None
        more = (line.get("series"), line.get("instance"), bool(line.get("moved")))
        return Placed(line["path"], os.fspath(source), *numbers, *more)
    except (KeyError, TypeError, ValueError):
        return None


def _study_of(line: Record) -> SortedStudy | None:
    try:
        votes = {str(series): (str(name), str(identifier)) for series, (name, identifier) in line["votes"].items()}
        study = SortedStudy(line["folder"], tuple(line["keys"]), tuple(line["spellings"]), votes)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return study if is_component(study.folder) else None


def _is_below(path: str) -> bool:
    """Whether a path leads to a place in the tree: whoever else may write to the folder names no other file to us."""
    return all(map(is_component, path.split("/")))
