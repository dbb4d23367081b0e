"""Runs of elements that all stay, or all go: the files of a series repeat them, and one look then does for many.

A run is told by the heads of its elements, lengths included. Where these are the same, so is what becomes of them.
"""

import re
from dataclasses import dataclass, field
from typing import NamedTuple

_LEAST, _MOST = 4, 200  # elements in a run
_TRIES = 128  # runs that are learnt at one place: files that are all different have none


class Run(NamedTuple):
    """Elements that stand behind one another: what becomes of them, the last tag, and how to know them."""

    pattern: re.Pattern[bytes]
    letter: str
    last: int
    elements: int
    heads: tuple[tuple[bytes, int, bytes], ...]


@dataclass(slots=True)
class Trail:
    """The elements since the last that was treated otherwise: head, length and key of each."""

    heads: list[tuple[bytes, int, bytes]] = field(default_factory=list)
    letter: str = ""
    last: int = 0

    def clear(self) -> None:
        """Forgets them."""
        self.heads = []


@dataclass(slots=True)
class Runs:
    """The runs that are known at a place, by the first eight bytes of each."""

    known: dict[bytes, Run] = field(default_factory=dict)
    _varying: set[bytes] = field(default_factory=set)
    _tries: int = _TRIES

    def add(self, trail: Trail, head: bytes, length: int, key: bytes, tag: int, letter: str) -> None:
        """Adds an element to a trail, which ends before elements whose length was seen to vary."""
        if letter != trail.letter or key in self._varying or tag <= trail.last or len(trail.heads) >= _MOST:
            self.close(trail)
        if key not in self._varying:
            trail.heads.append((head, length, key))
            trail.letter, trail.last = letter, tag

    def close(self, trail: Trail) -> None:
        """Makes a run of a trail that is long enough."""
        heads = trail.heads
        if len(heads) >= _LEAST and self._tries and heads[0][0][:8] not in self.known:
            self._tries -= 1
            pattern = b"".join(re.escape(head) + b".{%d}" % length for head, length, _ in heads)
            run = Run(re.compile(pattern, re.DOTALL), trail.letter, trail.last, len(heads), tuple(heads))
            self.known[heads[0][0][:8]] = run
        if heads:
            trail.heads = []
        trail.last = 0

    def missed(self, data: bytes, pos: int, run: Run) -> None:
        """Learns from a run that did not match which element was another one, or had another length."""
        for head, length, key in run.heads:
            if data[pos : pos + len(head)] != head:
                self._varying.add(key)
                break
            pos += len(head) + length
        del self.known[run.heads[0][0][:8]]
