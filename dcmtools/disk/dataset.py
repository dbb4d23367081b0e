"""Walks an encoded data set from element to element and keeps the values that are wanted (PS3.5 7).

Nothing is built and nothing recurses: a stack tells in which item of which sequence the walk stands, so that it can
stop at the end of a window of bytes and go on in the next one. Memory stays constant in the size of the data set,
whatever its lengths say.
"""

from collections.abc import Container
from struct import Struct
from typing import NamedTuple

from dcmtools.disk.inflated import Buffer, Inflated, Read
from dcmtools.disk.runs import Head, Run, Runs
from dcmtools.disk.values import Element
from dcmtools.model.errors import BadData
from dcmtools.model.uids import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)

WINDOW = 16 * 1024
MAX_DEPTH = 64
# No attribute that an index wants comes near; a length above it lies.
MAX_VALUE = 1 << 20
# Files are padded to blocks on some media; more zeros than this are a file that was made longer and never filled.
MAX_PADDING = 1 << 20

# VRs with a length of 16 bits, and those with two reserved bytes and 32 bits (PS3.5 7.1.2).
SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
# GE's private syntax with big endian pixels in a little endian data set.
_IMPLICIT_SYNTAXES = frozenset({IMPLICIT_VR_LITTLE_ENDIAN, "1.2.840.113619.5.2"})

_UNDEFINED = 0xFFFFFFFF
_PIXEL_DATA = 0x7FE00010
_ITEM = 0xFFFEE000
_ITEM_END = 0xFFFEE00D
_SEQUENCE_END = 0xFFFEE0DD
_NO_LIMIT = 1 << 40
_NOTHING: Container[int] = frozenset()
_NO_RUNS: dict[bytes, Run] = {}

_ELEMENTS, _ITEMS, _FRAGMENTS, _PADDING = range(4)


class _Forms(NamedTuple):
    """The head of an element with and without a VR, and a length of 32 bits."""

    explicit: Struct
    implicit: Struct
    length: Struct


_LITTLE, _BIG = (_Forms(Struct(f"{order}HH2sH"), Struct(f"{order}HHI"), Struct(f"{order}I")) for order in "<>")


class Odd(BadData):
    """Something that the standard does not foresee; another parser may make sense of it."""

    cause = "bad-length"


class Encoding(NamedTuple):
    """How a data set is written (PS3.5 A)."""

    explicit: bool
    big: bool = False
    deflated: bool = False


def encoding_of(syntax: str) -> Encoding:
    """The encoding that a transfer syntax asks for; all encapsulated ones are explicit little endian (PS3.5 A.4)."""
    return Encoding(
        explicit=syntax not in _IMPLICIT_SYNTAXES,
        big=syntax == EXPLICIT_VR_BIG_ENDIAN,
        deflated=syntax == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    )


def walk(data: Buffer, start: int, syntax: str, wanted: Container[int]) -> dict[int, Element]:
    """The wanted elements of a data set as tag -> (VR, value), after a walk to its exact end.

    The VR is empty where the syntax does not write one. BadData with the cause truncated, bad-length or too-deep when
    it does not end with an element; Odd when it is not made as the standard says.
    """
    encoding = encoding_of(syntax)
    view = memoryview(data)

    def read(position: int, size: int) -> Buffer:
        return view[position : position + size]

    if encoding.deflated:
        inflated = Inflated(read, start, len(view))
        read, start, end = inflated.read, 0, inflated.size
    else:
        end = len(view)
    return Walk(start, end, encoding, wanted, deep=True).through(read)


class Walk:
    """A walk from `position` to `end`, both counted in the bytes of the data set's source.

    It stops before the first element above `last`, and can go on from there. A `deep` walk looks into sequences of
    defined length too, where another one jumps over them. `runs` are those of earlier walks for the same tags in data
    sets of this encoding, little endian with VRs.
    """

    def __init__(
        self,
        position: int,
        end: int,
        encoding: Encoding,
        wanted: Container[int],
        *,
        last: int = _NO_LIMIT,
        deep: bool = False,
        runs: Runs | None = None,
    ) -> None:
        self.position = position
        self.end = end
        self.encoding = encoding
        self.wanted = wanted
        self.last = last
        self.deep = deep
        self.runs = runs
        self.found: dict[int, Element] = {}
        self.done = False
        self.needed = 0
        self._forms = _BIG if encoding.big else _LITTLE
        # The frame in which the walk stands: its kind, its end, and whether a length told the end and VRs are written.
        self._kind = _ELEMENTS
        self._end = end
        self._open = (True, encoding.explicit)
        self._stack: list[tuple[int, int, tuple[bool, bool]]] = []

    def through(self, read: Read) -> dict[int, Element]:
        """The wanted elements, after the walk has read what it needs; it asks for windows in ascending order."""
        while not self.done:
            asked = max(WINDOW, self.needed)
            window = read(self.position, asked)
            if len(window) < min(asked, self.end - self.position):
                raise BadData("the data set is shorter than its file was", cause="truncated")
            self.feed(window, self.position)
        return self.found

    def go_on(self) -> None:
        """Lets a walk that stopped before an element above `last` go on to the end."""
        self.last, self.done = _NO_LIMIT, False

    def feed(self, window: Buffer, base: int) -> bool:
        """Whether the walk is done, after it went as far as this window, which begins at position `base`, lets it."""
        self.needed = 0
        while not self.done:
            if self._kind == _ELEMENTS:
                on = self._explicit(window, base) if self._open[1] else self._implicit(window, base)
            elif self._kind == _PADDING:
                on = self._padding(window, base)
            else:
                on = self._items(window, base)
            if not on:
                return False
        return True

    def _explicit(self, data: Buffer, base: int) -> bool:  # noqa: C901, PLR0912, PLR0915 - the hot loop, see below
        """Reads elements with a VR until the frame changes (True) or the window ends (False).

        It is one loop because a call an element costs a third, and knows runs because they save half of the rest.
        """
        unpack, unpack_length = self._forms.explicit.unpack_from, self._forms.length.unpack_from
        top, deep = not self._stack, self.deep
        wanted = self.wanted if top else _NOTHING
        last = self.last if top else _NO_LIMIT
        end, size = self._end - base, len(data)
        pos, before = self.position - base, -1
        limit = min(size, end) - 8
        runs = self.runs if top and last != _NO_LIMIT else None
        known = runs.known if runs else _NO_RUNS
        new: list[Head] = []
        while pos <= limit:
            if runs:
                run = known.get(bytes(data[pos : pos + 8]))
                if run:
                    if new:
                        runs.learn(new)
                        new = []
                    if before < run.first and run.last <= last and pos + run.size <= limit + 8:
                        if run.heads.unpack_from(data, pos) == run.expected:
                            for tag, vr, start, stop in run.wanted:
                                self.found[tag] = (vr, bytes(data[pos + start : pos + stop]))
                            before = run.last
                            pos += run.size
                            continue
                        runs.cut(run, data, pos)
                        continue
            group, element, vr, length = unpack(data, pos)
            tag = group << 16 | element
            if tag > last:
                if runs and new:
                    runs.learn(new)
                self.position, self.done = base + pos, True
                return True
            if vr in SHORT_VRS:
                start = pos + 8
            elif vr in LONG_VRS:
                start = pos + 12
                if start > limit + 8:
                    break
                length = unpack_length(data, pos + 8)[0]
            else:
                self.position = base + pos
                return self._not_an_element(tag, data, pos)
            if tag <= before:  # out of order: what is wanted may come later than it should
                last = self.last = _NO_LIMIT
                runs = None
            before = tag
            stop = start + length
            if length == _UNDEFINED or (deep and vr == b"SQ"):
                if runs and new:
                    runs.learn(new)
                self.position = base + start
                self._enter(tag, vr, length)
                return True
            if stop > end:
                raise self._overrun(tag)
            if tag in wanted:
                if stop > size:
                    self.position = base + pos
                    return self._more(stop - pos)
                self.found[tag] = (vr, bytes(data[start:stop]))
            if runs and (new or start == pos + 8):
                new.append((tag, vr, bytes(data[pos:start]), length))
            pos = stop
        self.position = base + pos
        if runs and new:
            runs.learn(new)
        return self._at_the_edge(data, pos, size, 12)

    def _implicit(self, data: Buffer, base: int) -> bool:
        """Reads elements without a VR until the frame changes (True) or the window ends (False)."""
        unpack = self._forms.implicit.unpack_from
        top = not self._stack
        wanted = self.wanted if top else _NOTHING
        last = self.last if top else _NO_LIMIT
        end, size = self._end - base, len(data)
        pos, before = self.position - base, -1
        limit = min(size, end) - 8
        while pos <= limit:
            group, element, length = unpack(data, pos)
            tag = group << 16 | element
            if tag > last:
                self.position, self.done = base + pos, True
                return True
            if group in {0xFFFE, 0} and (group or not (element or length)):
                self.position = base + pos
                return self._not_an_element(tag, data, pos)
            if tag <= before:
                last = self.last = _NO_LIMIT
            before = tag
            stop = pos + 8 + length
            if length == _UNDEFINED:
                self.position = base + pos + 8
                self._enter(tag, b"", length)
                return True
            if stop > end:
                raise self._overrun(tag)
            if tag in wanted:
                if stop > size:
                    self.position = base + pos
                    return self._more(stop - pos)
                self.found[tag] = (b"", bytes(data[pos + 8 : stop]))
            pos = stop
        self.position = base + pos
        return self._at_the_edge(data, pos, size, 8)

    def _items(self, data: Buffer, base: int) -> bool:
        """Reads items of a sequence, or fragments of encapsulated pixels (PS3.5 7.5, A.4)."""
        unpack = self._forms.implicit.unpack_from
        end, size = self._end - base, len(data)
        pos = self.position - base
        limit = min(size, end) - 8
        while pos <= limit:
            group, element, length = unpack(data, pos)
            tag = group << 16 | element
            if tag == _SEQUENCE_END and not self._open[0]:
                self.position = base + pos + 8
                self._leave()
                return True
            if tag != _ITEM:
                raise Odd(f"({group:04X},{element:04X}) stands where an item must be")
            pos += 8
            if length != _UNDEFINED and pos + length > end:
                raise self._overrun(tag)
            if self._kind == _ITEMS and (length == _UNDEFINED or self.deep):
                self.position = base + pos
                self._push(_ELEMENTS, tag, length, explicit=self._open[1])
                return True
            if length == _UNDEFINED:
                raise BadData("a fragment of encapsulated pixel data has no length", cause="bad-length")
            pos += length
        self.position = base + pos
        return self._at_the_edge(data, pos, size, 8)

    def _padding(self, data: Buffer, base: int) -> bool:
        """Passes zeros at the end of the file, which is all that may stand there."""
        if self.end - self.position > MAX_PADDING or any(data[self.position - base : self.end - base]):
            raise Odd("something that is no element follows the data set")
        self.position = min(self.end, base + len(data))
        self.done = self.position == self.end
        return self.done

    def _not_an_element(self, tag: int, data: Buffer, pos: int) -> bool:
        """Ends an item at its delimiter, turns to zeros at the end; the rest is odd."""
        if tag == _ITEM_END and self._stack and not self._open[0]:
            self.position += 8
            self._leave()
            return True
        if not any(data[pos : pos + 8]) and not self._stack:
            self._kind = _PADDING
            return True
        raise Odd(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) has no value representation that is known")

    def _enter(self, tag: int, vr: bytes, length: int) -> None:
        """Opens the frame of a sequence or of encapsulated pixels."""
        explicit = self._open[1]
        if length == _UNDEFINED and (vr in {b"OB", b"OW"} or tag == _PIXEL_DATA):
            self._push(_FRAGMENTS, tag, length, explicit=explicit)
        elif vr in {b"SQ", b""}:
            self._push(_ITEMS, tag, length, explicit=explicit)
        elif vr == b"UN":  # implicit inside, whatever is around it (PS3.5 6.2.2)
            self._push(_ITEMS, tag, length, explicit=False)
        else:
            raise Odd(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) has no length")

    def _push(self, kind: int, tag: int, length: int, *, explicit: bool) -> None:
        if len(self._stack) >= 2 * MAX_DEPTH:  # a level is a sequence and its item
            raise BadData(f"sequences are nested more than {MAX_DEPTH} deep", cause="too-deep")
        end = self._end if length == _UNDEFINED else self.position + length
        if end > self._end:
            raise self._overrun(tag)
        self._stack.append((self._kind, self._end, self._open))
        self._kind, self._end, self._open = kind, end, (length != _UNDEFINED, explicit)

    def _leave(self) -> None:
        self._kind, self._end, self._open = self._stack.pop()

    def _at_the_edge(self, data: Buffer, pos: int, size: int, header: int) -> bool:
        """Tells the end of a frame from the end of the window."""
        left = self._end - self.position
        if left == 0 and self._open[0]:
            if self._stack:
                self._leave()
            else:
                self.done = True
            return True
        if left >= 8:
            # A header of 12 bytes may not fit any more where one of 8 does.
            if left < header and size - pos >= left:
                raise self._overrun(0)
            return self._more(min(header, left))
        if size - pos < left:
            return self._more(left)
        if not self._stack and not any(data[pos : pos + left]):
            self._kind = _PADDING
            return True
        raise self._overrun(0)

    def _more(self, needed: int) -> bool:
        if needed > MAX_VALUE:
            raise BadData("the value of an attribute is longer than any can be", cause="bad-length")
        self.needed = needed
        return False

    def _overrun(self, tag: int) -> BadData:
        where = f"({tag >> 16:04X},{tag & 0xFFFF:04X})" if tag else "the last element"
        if self._end == self.end:
            return BadData(f"the data set ends within {where}", cause="truncated")
        return BadData(f"{where} reaches beyond the item that holds it", cause="bad-length")
