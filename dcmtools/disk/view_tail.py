"""The newest lines of an index, which its view does not have yet, for who asks after each line that is written.

To bring a view up to date takes as long as to make a line durable; a receiver, which asks for one instance at a time,
needs to do that for some hundred lines together only.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from dcmtools.disk.index_line import TOMBSTONE, parse
from dcmtools.disk.view_fill import stored, whole_lines
from dcmtools.disk.view_lookup import Place, everywhere

LONGEST = 1 << 20  # bytes, some hundred lines

_AT_PATHS = (
    "SELECT path, study, series, offset, length FROM instance LEFT JOIN part ON part.id = instance.part"
    " WHERE uid = ? ORDER BY offset"
)


class _Step(NamedTuple):
    path: str | bytes
    place: Place | None


class Tail:
    """The lines from the byte up to which the view goes."""

    def __init__(self, key_of: Callable[[str], str]) -> None:
        self._key_of = key_of
        self._start = self._end = 0
        self._steps: dict[str, list[_Step]] = {}

    def follow(self, descriptor: int, start: int, end: int) -> None:
        """Takes in what lies between two offsets, as far as it is not known."""
        if start != self._start or end < self._end:
            self._start = self._end = start
            self._steps = {}
        for raw in whole_lines(descriptor, self._end, end):
            self._take(raw)
            self._end += len(raw)

    def everywhere(self, view: sqlite3.Connection, uids: Iterable[str]) -> Iterator[Place]:
        """Where these instances are, at all their paths."""
        wanted = set(uids)
        yield from everywhere(view, wanted - self._steps.keys())
        for uid in wanted & self._steps.keys():
            places: dict[str | bytes, Place] = {}
            for path, study, series, offset, length in view.execute(_AT_PATHS, (uid,)):
                places[path if path is not None else stored(f"{study}/{series}/{uid}.dcm")] = (offset, length)
            for step in self._steps[uid]:
                places.pop(step.path, None)
                if step.place:
                    places[step.path] = step.place
            yield from places.values()

    def _take(self, raw: bytes) -> None:
        try:
            line = parse(raw, self._key_of)
        except ValueError:
            return
        if line.kind <= TOMBSTONE:
            place = None if line.kind == TOMBSTONE else (self._end, len(raw) - 1)
            self._steps.setdefault(line.uid, []).append(_Step(stored(line.path), place))
