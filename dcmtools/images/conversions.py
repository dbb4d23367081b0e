"""`conversions.jsonl`: what became of each series, so that a later run knows its own work.

Append-only JSON lines, the last good one of a series wins; paths are relative to the folder, which can be moved.

    {"type":"conversion","StudyInstanceUID":..,"SeriesInstanceUID":..,"state":"converted","digest":..,"engine":..,
     "engine_version":..,"options":{..},"seconds":..,"volumes":[{..,"files":{"image":{"path":..,"sha256":..,..}}}],
     "instances":[..]}
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from dcmtools.disk.journal import Journal
from dcmtools.images.series import Key
from dcmtools.model.errors import from_os
from dcmtools.model.record import Record, decode, encode

NAME = "conversions.jsonl"
KIND = "conversion"
# Only these say what lies in the folder; a failure leaves what was there before.
_STANDING = frozenset({"converted", "suspect", "skipped"})


class _File(msgspec.Struct):
    path: str


class _Volume(msgspec.Struct):
    files: dict[str, _File] = {}


class _Line(msgspec.Struct):
    """What is held in memory of a line: decoding this much skips the rest."""

    type: str = ""
    state: str = ""
    study: str = msgspec.field(name="StudyInstanceUID", default="")
    series: str = msgspec.field(name="SeriesInstanceUID", default="")
    volumes: list[_Volume] = []


@dataclass(frozen=True, slots=True)
class Kept:
    """A file of a volume as we left it."""

    path: str  # below the output folder, with slashes
    sha256: str
    size: int
    mtime_ns: int

    def line(self) -> Record:
        """The part of a conversion's line that is about it."""
        return {"path": self.path, "sha256": self.sha256, "size": self.size, "mtime_ns": str(self.mtime_ns)}


@dataclass(frozen=True, slots=True)
class Conversion:
    """What became of a series."""

    state: str
    digest: str  # of the input
    engine: str
    engine_version: str
    options: Record
    volumes: list[Record] = field(default_factory=list)
    record: Record = field(default_factory=dict)  # of a series that was skipped

    def is_of(self, digest: str, engine: str, version: str, options: Record) -> bool:
        """Whether the same input would be converted in the same way again."""
        return (self.digest, self.engine, self.engine_version, self.options) == (digest, engine, version, options)

    def files(self) -> Iterator[Kept]:
        """All files of all its volumes."""
        for volume in self.volumes:
            yield from files_of(volume).values()


class Conversions:
    """The file of one output folder. Thread-safe; memory holds a few hundred bytes a series."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._journal = Journal(file)
        self._lines: dict[Key, tuple[int, int]] = {}
        self._owners: dict[str, Key] = {}
        self._new: dict[Key, bytes] = {}
        try:
            self._scan()
        except FileNotFoundError:
            pass
        except OSError as problem:
            raise from_os(problem, "reading", file) from problem

    def last(self, key: Key) -> Conversion | None:
        """What stands of a series."""
        line = self._new.get(key) or self._read(key)
        return _conversion(decode(line)) if line else None

    def owner(self, path: str) -> Key | None:
        """The series to which a file of this relative path belongs, as far as we wrote it."""
        return self._owners.get(path)

    def add(self, key: Key, record: Record) -> None:
        """Notes what became of a series; on the disk when this returns."""
        uids = dict(zip(("StudyInstanceUID", "SeriesInstanceUID"), key, strict=True))
        line = encode({"type": KIND, **uids, **record})
        self._journal.append(line)
        if record.get("state") in _STANDING:
            self._new[key] = line
            self._own(key, [one["path"] for volume in record.get("volumes", []) for one in volume["files"].values()])

    def _scan(self) -> None:
        decoder = msgspec.json.Decoder(_Line)
        with self.file.open("rb") as lines:
            start = 0
            for line in lines:
                try:
                    told = decoder.decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError):
                    told = _Line()  # torn by a power cut, or somebody's own
                if told.type == KIND and told.state in _STANDING:
                    key = told.study, told.series
                    self._lines[key] = start, len(line)
                    self._own(key, [one.path for volume in told.volumes for one in volume.files.values()])
                start += len(line)

    def _own(self, key: Key, paths: list[str]) -> None:
        self._owners.update(dict.fromkeys(paths, key))

    def _read(self, key: Key) -> bytes:
        if key not in self._lines:
            return b""
        start, length = self._lines[key]
        descriptor = os.open(self.file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(descriptor, length, start)
        finally:
            os.close(descriptor)


def files_of(volume: Record) -> dict[str, Kept]:
    """The files of a volume in a conversion's line, by kind: image, sidecar, bval, bvec."""
    files: dict[str, Record] = volume["files"]
    return {
        kind: Kept(one["path"], one["sha256"], int(one["size"]), int(one["mtime_ns"])) for kind, one in files.items()
    }


def _conversion(line: Record) -> Conversion:
    keys = ("state", "digest", "engine", "engine_version")
    state, digest, engine, version = (str(line.get(key)) for key in keys)
    options, volumes, record = line.get("options") or {}, line.get("volumes") or [], line.get("record") or {}
    return Conversion(state, digest, engine, version, options, volumes, record)
