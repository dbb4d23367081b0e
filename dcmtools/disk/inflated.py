"""A deflated data set as a source of windows (PS3.5 A.5)."""

import zlib
from collections.abc import Callable
from typing import TypeAlias

from dcmtools.model.errors import BadData

Buffer: TypeAlias = "bytes | bytearray | memoryview"
Read = Callable[[int, int], Buffer]

MAX_INFLATED = 1 << 30
# zlib packs zeros 1032 to 1: a black image reaches that honestly, so that the ratio only counts above a size.
MAX_RATIO = 1000
RATIO_COUNTS_FROM = 64 << 20
_PACKED = 64 << 10
_PIECE = 1 << 20


class Inflated:
    """A data set that is inflated twice and never held: once for its size, once for its windows.

    BadData when it ends early, is damaged, or is made to fill the memory.
    """

    def __init__(self, read: Read, start: int, end: int) -> None:
        self._read = read
        self._start = start
        self._stop = end
        # What is held of the data set, and its position there.
        self._held = b""
        self._base = 0
        self._rewind()
        self.size = self._measure()
        self._rewind()

    def read(self, position: int, size: int) -> bytes:
        """The bytes from `position`; never from before an earlier call's."""
        while (end := self._base + len(self._held)) < position + size and (piece := self._piece()):
            kept = self._held[max(0, position - self._base) :]
            self._base, self._held = end - len(kept), kept + piece
        skip = position - self._base
        return self._held[skip : skip + size]

    def _rewind(self) -> None:
        self._zip = zlib.decompressobj(-zlib.MAX_WBITS)
        self._next = self._start
        self._held = b""
        self._base = 0

    def _measure(self) -> int:
        size = 0
        while piece := self._piece():
            size += len(piece)
            allowed = max(RATIO_COUNTS_FROM, MAX_RATIO * (self._next - self._start))
            if size > min(MAX_INFLATED, allowed):
                raise BadData("the data set inflates to far more than it should", cause="unreadable")
        return size

    def _piece(self) -> bytes:
        """The next inflated bytes, at most 1 MiB; none at the end."""
        while not self._zip.eof:
            packed = self._zip.unconsumed_tail or bytes(self._read(self._next, min(_PACKED, self._stop - self._next)))
            self._next += 0 if self._zip.unconsumed_tail else len(packed)
            try:
                piece = self._zip.decompress(packed, _PIECE)
            except zlib.error as problem:
                raise BadData("the deflated data set is damaged", cause="unreadable") from problem
            if piece:
                return piece
            if not packed and not self._zip.eof:
                raise BadData("the deflated data set ends early", cause="truncated")
        return b""
