"""A second reader of encoded data sets, for the check of results: it shares no code with what wrote them (PS3.5 7).

The splicer copies what it need not change, and knows elements again that it has met. This one reads each element of
each item from the bytes alone and remembers nothing. What it cannot read to the last byte, as the standard has it, is
no result.
"""

from struct import Struct

from dcmtools.files.deidentify.dictionary import ELEMENTS

# VRs whose length has 32 bits, behind two bytes that are reserved, and those with one of 16 (PS3.5 Table 7.1-1, 7.1-2).
_WIDE = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_NARROW = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_PIXELS, _NOT_TOLD = frozenset({b"OB", b"OW"}), frozenset({b"", b"UN"})
_OPEN = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_DEEPEST = 100


class Unreadable(Exception):
    """The bytes are no data set; says where that is seen."""


# Tag, VR (empty where none is written), value, and the items of a sequence: an element as it was read.
Found = tuple[int, bytes, bytes, "list[DataSet] | None"]
DataSet = list[Found]


def reread(data: bytes, *, explicit: bool, big: bool = False) -> DataSet:
    """The elements of a data set in their order, at any depth; Unreadable when these bytes are none."""
    return _Reader(data, big=big).elements(0, len(data), explicit=explicit, is_open=False, depth=0)[0]


class _Reader:
    """Reads parts of some bytes, each from a position on; what stands behind it is found that way."""

    def __init__(self, data: bytes, *, big: bool) -> None:
        order = ">" if big else "<"
        self._data = data
        self._head = Struct(f"{order}HH2sH").unpack_from
        self._tag_and_length = Struct(f"{order}HHI").unpack_from
        self._length = Struct(f"{order}I").unpack_from

    def elements(  # noqa: C901 - the hot loop
        self, pos: int, end: int, *, explicit: bool, is_open: bool, depth: int
    ) -> tuple[DataSet, int]:
        """The elements up to a position; those of an item that is open up to its end, which stands before that."""
        if depth > _DEEPEST:
            raise Unreadable(f"sequences are nested more than {_DEEPEST} deep")
        data, head, bare, wide = self._data, self._head, self._tag_and_length, self._length
        found: DataSet = []
        while pos + 8 <= end:
            if explicit:
                group, number, vr, length = head(data, pos)
                start = pos + 8
                if vr in _WIDE and start + 4 <= end:
                    length, start = wide(data, start)[0], start + 4
                elif vr not in _NARROW and group != 0xFFFE:
                    raise Unreadable(f"there is no VR at {pos}")
            else:
                group, number, length = bare(data, pos)
                vr, start = b"", pos + 8
            tag = group << 16 | number
            if group == 0xFFFE:
                if tag == _ITEM_END and is_open and not any(data[pos + 4 : start]):
                    return found, start
                raise Unreadable(f"there is no element at {pos}")
            if length == _OPEN or vr == b"SQ" or (vr in _NOT_TOLD and _is_sequence(tag)):
                one, pos = self._sequence(tag, vr, start, length, end, depth)
                found.append(one)
                continue
            pos = start + length
            if pos > end:
                raise Unreadable(f"the element at {start} ends behind {end}")
            found.append((tag, vr, data[start:pos], None))
        if pos != end or is_open:
            raise Unreadable(f"there is no end at {end}")
        return found, pos

    def _sequence(self, tag: int, vr: bytes, pos: int, length: int, end: int, depth: int) -> tuple[Found, int]:
        """A sequence, or fragments of pixels; inside of one without a VR, or with UN, none is written (PS3.5 6.2.2)."""
        is_open = length == _OPEN
        stop = end if is_open else pos + length
        if stop > end:
            raise Unreadable(f"the sequence at {pos} ends behind {end}")
        start, items = pos, []
        while is_open or pos < stop:
            if pos + 8 > stop:
                raise Unreadable(f"the sequence at {start} has no end")
            group, number, size = self._tag_and_length(self._data, pos)
            mark, pos = group << 16 | number, pos + 8
            if mark == _SEQUENCE_END and is_open and not size:
                break
            if mark != _ITEM:
                raise Unreadable(f"there is no item at {pos - 8}")
            if vr in _PIXELS:
                pos += size
                continue
            upto = stop if size == _OPEN else pos + size
            if upto > stop:
                raise Unreadable(f"the item at {pos} ends behind {stop}")
            item, pos = self.elements(pos, upto, explicit=vr == b"SQ", is_open=size == _OPEN, depth=depth + 1)
            items.append(item)
        return (tag, vr, self._data[start:pos], None if vr in _PIXELS else items), pos


def _is_sequence(tag: int) -> bool:
    return tag in ELEMENTS and ELEMENTS[tag][0] == "SQ"
