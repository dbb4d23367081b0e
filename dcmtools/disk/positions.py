"""Where the lines of an index file stand, and which of them are answers: all that a reader keeps in memory."""

import base64
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec

# The bytes before the place up to which a file was read; when they change, another file has taken its place.
_TAIL = 64

_IN_ARCHIVE, _ELSEWHERE, _ALIAS, _CONFLICT = range(4)


class Position(NamedTuple):
    """A line, without its newline."""

    offset: int
    length: int


class _Line(msgspec.Struct):
    """What must be known of a line to know whether it is an answer."""

    SOPInstanceUID: str | None = None
    SeriesInstanceUID: str | None = None
    StudyInstanceUID: str | None = None
    path: str | None = None
    path_b64: str | None = None
    type: str = "instance"
    state: str | None = None
    duplicate_of: str | None = None


class _Entry(NamedTuple):
    position: Position
    rank: int
    study: str
    series: str


_decode = msgspec.json.Decoder(_Line).decode


class Positions:
    """The lines of one index file up to the byte `consumed`.

    Several files may hold one instance. The answer is the first in the archive, else the first elsewhere, else an
    alias (the same data set once more); a conflict (other content under the same UID) never is.
    """

    def __init__(self, identity: tuple[int, int] | None = None) -> None:
        self.consumed = 0
        self.bad_lines = 0
        self.events: list[Position] = []
        self._identity = identity
        self._tail = b""
        self._instances: dict[str, dict[str, _Entry]] = {}
        self._series: dict[str, dict[str, None]] = {}
        self._studies: dict[str, dict[str, None]] = {}
        self._paths: dict[str, str] = {}

    def go_on_in(self, identity: tuple[int, int], size: int, descriptor: int) -> bool:
        """Whether this is the file that was read, and has only grown since."""
        if identity != self._identity or size < self.consumed:
            return False
        return os.pread(descriptor, len(self._tail), self.consumed - len(self._tail)) == self._tail

    def remember_end(self, descriptor: int) -> None:
        """Notes by what the file can be recognised."""
        length = min(_TAIL, self.consumed)
        self._tail = os.pread(descriptor, length, self.consumed - length)

    def take(self, raw: bytes, offset: int, key_of: Callable[[str], str]) -> None:
        """Takes in the line at an offset; a bad one is counted."""
        self.consumed = offset + len(raw) + 1
        try:
            line = _decode(raw)
            path = key_of(line.path or "" if line.path_b64 is None else os.fsdecode(base64.b64decode(line.path_b64)))
        except ValueError:  # msgspec's and base64's errors are among them
            self.bad_lines += 1
            return
        uid = line.SOPInstanceUID
        if line.type == "event":
            self.events.append(Position(offset, len(raw)))
        elif line.type not in {"instance", "tombstone"}:
            return
        elif not uid or not path:
            self.bad_lines += 1
        elif line.type == "tombstone":
            self._remove(uid, path)
        else:
            self._put(uid, path, _entry(line, path, Position(offset, len(raw))))

    def keys(self) -> frozenset[tuple[str, str]]:
        """All instances at all paths."""
        return frozenset((uid, path) for uid, entries in self._instances.items() for path in entries)

    def all(self) -> Iterator[Position]:
        """The answer for each instance."""
        return self.of_instances(self._instances)

    def all_but(self, known: Collection[tuple[str, str]]) -> Iterator[Position]:
        """The instances at paths that are not known."""
        for uid, entries in self._instances.items():
            yield from (entry.position for path, entry in entries.items() if (uid, path) not in known)

    def of_instances(self, uids: Iterable[str]) -> Iterator[Position]:
        """The answers for these instances."""
        yield from (entry.position for uid in uids if (entry := self._answer(uid)))

    def everywhere(self, uids: Iterable[str]) -> Iterator[Position]:
        """These instances at all their paths."""
        yield from (entry.position for uid in uids for entry in self._instances.get(uid, {}).values())

    def of_series(self, series: str) -> Iterator[Position]:
        """The answers in a series."""
        for uid in self._series.get(series, ()):
            if (entry := self._answer(uid)) and entry.series == series:
                yield entry.position

    def of_study(self, study: str) -> Iterator[Position]:
        """The answers in a study."""
        uids = {uid for series in self._studies.get(study, ()) for uid in self._series.get(series, ())}
        for uid in uids:
            if (entry := self._answer(uid)) and entry.study == study:
                yield entry.position

    def of_studies_with(self, named: Mapping[str, Iterable[str]]) -> Iterator[Position]:
        """The answers in the studies to which the named instances, else series, else studies belong."""
        uids = set(named["instance"]) or {uid for series in named["series"] for uid in self._series.get(series, ())}
        studies = {entry.study for uid in uids if (entry := self._answer(uid))} if uids else set(named["study"])
        for study in studies:
            yield from self.of_study(study)

    def at_paths(self, paths: Iterable[str]) -> Iterator[Position]:
        """What is at these paths."""
        for path in paths:
            if uid := self._paths.get(path):
                yield self._instances[uid][path].position

    def _answer(self, uid: str) -> _Entry | None:
        entries = self._instances.get(uid)
        if not entries:
            return None
        best = min(entries.values(), key=lambda entry: entry.rank)
        return best if best.rank < _CONFLICT else None

    def _put(self, uid: str, path: str, entry: _Entry) -> None:
        self._instances.setdefault(uid, {})[path] = entry
        self._series.setdefault(entry.series, {})[uid] = None
        self._studies.setdefault(entry.study, {})[entry.series] = None
        self._paths[path] = uid

    def _remove(self, uid: str, path: str) -> None:
        entries = self._instances.get(uid, {})
        entries.pop(path, None)
        if not entries:
            self._instances.pop(uid, None)
        if self._paths.get(path) == uid:
            del self._paths[path]


def _entry(line: _Line, path: str, position: Position) -> _Entry:
    if line.state == "conflict":
        rank = _CONFLICT
    elif line.duplicate_of is not None:
        rank = _ALIAS
    else:
        rank = _ELSEWHERE if path.startswith("/") else _IN_ARCHIVE
    return _Entry(position, rank, line.StudyInstanceUID or "", line.SeriesInstanceUID or "")
