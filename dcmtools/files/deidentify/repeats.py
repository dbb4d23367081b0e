"""Elements that were treated before: the files of a series repeat most of theirs, byte for byte.

What becomes of an element depends on its bytes, the rules of its place, and what holds for a whole file: the key, the
patient, the character set, the identity that is searched for. Where all these are the same, so is what becomes of it;
elements of which more would have to be known are never remembered. An element that was seen with another value is
treated anew each time, and ends what is remembered before it.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

from dcmtools.files.deidentify.spliced import Piece, Spliced

_MOST = 32 << 10  # bytes that are remembered together
_TRIES = 256  # of remembering: where files have nothing in common it is of no use
_BUDGET = 4 << 20
_OVERHEAD = 2 << 10  # bytes that one costs beside those of its elements


class Known(NamedTuple):
    """Elements that stood behind one another, and what became of them."""

    raw: bytes
    first: int  # the tags between which they all are
    last: int
    heads: tuple[tuple[int, bytes], ...]  # where each begins, and its tag and VR
    pieces: tuple[Piece, ...]
    met: Spliced

    def differs(self, data: bytes, pos: int) -> bytes:
        """The tag and VR of the first element that is not the same here."""
        stops = [*(start for start, _ in self.heads[1:]), len(self.raw)]
        return next(
            key
            for (start, key), stop in zip(self.heads, stops, strict=True)
            if self.raw[start:stop] != data[pos + start : pos + stop]
        )


@dataclass(slots=True)
class Trail:
    """Elements that are treated now, from a position on, behind so many pieces; `before` has met what was before."""

    start: int
    mark: int
    before: Spliced
    heads: list[tuple[int, bytes]]
    first: int
    last: int

    def add(self, pos: int, key: bytes, tag: int) -> None:
        """Adds the element at a position."""
        self.heads.append((pos, key))
        if tag < self.first:
            self.first = tag
        elif tag > self.last:
            self.last = tag

    def known(self, data: bytes, stop: int, out: list[Piece], met: Spliced) -> Known:
        """What is to be remembered of it."""
        heads = tuple((pos - self.start, key) for pos, key in self.heads)
        return Known(data[self.start : stop], self.first, self.last, heads, tuple(out[self.mark :]), met)


class Repeats:
    """What is remembered where all is the same that counts for a whole file."""

    def __init__(self, memory: "Memory") -> None:
        self.tries = _TRIES
        self._memory = memory
        self._places: dict[int, dict[bytes, Known]] = {}

    def at(self, place: int) -> dict[bytes, Known]:
        """What is remembered at a place, by the first eight bytes."""
        if (found := self._places.get(place)) is None:
            found = self._places[place] = {}
        return found

    def keep(self, place: int, known: Known) -> None:
        """Remembers elements, unless they are too many."""
        if len(known.raw) <= _MOST:
            self.tries -= 1
            self.at(place)[known.raw[:8]] = known
            self._memory.grow(2 * len(known.raw) + _OVERHEAD)


class Memory:
    """What is remembered, by all that counts for a whole file; as much as fits into a few megabytes."""

    def __init__(self) -> None:
        self._contexts: dict[Hashable, Repeats] = {}
        self._size = 0

    def of(self, context: Hashable) -> Repeats:
        """What is remembered in a context."""
        if (found := self._contexts.get(context)) is None:
            self.grow(_OVERHEAD)
            found = self._contexts[context] = Repeats(self)
        return found

    def grow(self, size: int) -> None:
        """Counts bytes that are remembered; when there are too many all are forgotten."""
        self._size += size
        if self._size > _BUDGET:
            self._contexts.clear()
            self._size = 0
