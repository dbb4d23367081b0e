"""What a splice gives: the pieces of a new data set, and what was met on the way."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple


class Stretch(NamedTuple):
    """A part of the source that is copied as it is: an element with its head, or pixel data."""

    position: int
    size: int
    pixels: bool


Piece = bytes | Stretch


@dataclass(slots=True)
class Spliced:
    """The pieces of the new data set in their order, and what was met on the way."""

    pieces: list[Piece] = field(default_factory=list)
    values: set[tuple[str, str]] = field(default_factory=set)  # identity that went: kind, text
    kept: set[tuple[str, str]] = field(default_factory=set)  # identity that was to stay
    uids: set[bytes] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    cleaned: list[str] = field(default_factory=list)  # tags whose text held identity of another element
    spoiled: list[str] = field(default_factory=list)  # tags whose dates could not be moved
    has_overlay_in_pixels: bool = False
    own: list[bytes] = field(default_factory=list)  # what the engine says of itself, which is no identity
    mentioned: set[bytes] = field(default_factory=set)  # UIDs in texts that were searched, of whomever they are

    def join(self) -> None:
        """Makes one piece of those that stand together and are bytes."""
        self.pieces = [
            piece
            for is_bytes, pieces in groupby(self.pieces, lambda piece: isinstance(piece, bytes))
            for piece in ([b"".join(pieces)] if is_bytes else pieces)  # type: ignore[arg-type]
        ]

    def meet(self, other: "Spliced") -> None:
        """Takes in what was met in a part, whose pieces have their place already."""
        if other.values or other.kept:
            self.values |= other.values
            self.kept |= other.kept
        if other.uids or other.mentioned:
            self.uids |= other.uids
            self.mentioned |= other.mentioned
        for letter, count in other.counts.items():
            self.counts[letter] += count
        if other.cleaned or other.spoiled or other.own or other.has_overlay_in_pixels:
            self.cleaned += other.cleaned
            self.spoiled += other.spoiled
            self.own += other.own
            self.has_overlay_in_pixels |= other.has_overlay_in_pixels
