"""The bytes of encapsulated pixel data: comments and application segments of JPEG, boxes of JPEG 2000, and samples.

Identity has been found in all of them. Samples are bytes that may be any, in which only a long text is no chance: what
they show, no search of bytes can tell.
"""

import re
from collections.abc import Iterator
from struct import Struct

from dcmtools.disk.inflated import Read

RLE = "1.2.840.10008.1.2.5"
_HEAD = Struct("<HHI")
_BLOCK = 1 << 20
_OVERLAP = 512  # no text that is searched for is longer
_SMALL = 64 << 20
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
_SOS, _EOI, _SOI = 0xDA, 0xD9, 0xD8
_BARE = frozenset({_SOI, 0x01, *range(0xD0, 0xD8)})
_JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"


def beside_samples(read: Read, position: int, end: int) -> Iterator[tuple[bytes, bool]]:
    """The parts of encapsulated pixel data (PS3.5 A.4) to be searched, each with whether its bytes may be any.

    `position` is that of the first item: the offset table, which is searched whole. Fragments are joined to frames.
    """
    parts: list[bytes] = []
    size, known = 0, False
    for number, (start, length) in enumerate(_items(read, position, end)):
        if number == 0 or length > _SMALL:
            yield from _beside(b"".join(parts))
            parts, size = [], 0
            yield from ((part, number > 0) for part, _ in _blocks(read, start, start + length))
            continue
        fragment = bytes(read(start, length))
        begins = _begins_frame(fragment)
        if not parts:
            known = begins
        elif begins or not known or size > _SMALL:
            frame = b"".join(parts)
            yield from _beside(frame)
            # What goes on in the next fragment may be a text that begins in this one.
            parts, size, known = ([] if begins else [frame[-_OVERLAP:]]), 0, begins
        parts.append(fragment)
        size += length
    yield from _beside(b"".join(parts))


def _items(read: Read, position: int, end: int) -> Iterator[tuple[int, int]]:
    """The position and the length of each item's value."""
    while position + 8 <= end:
        _, element, length = _HEAD.unpack(bytes(read(position, 8)))
        if element != 0xE000:
            return
        yield position + 8, length
        position += 8 + length


def excess(read: Read, position: int, end: int) -> Iterator[tuple[bytes, bool]]:
    """The bytes between two positions that are more than the samples need."""
    yield from _blocks(read, position, end)


def _begins_frame(fragment: bytes) -> bool:
    return fragment.startswith((b"\xff\xd8", b"\xff\x4f", _JP2))


def _beside(frame: bytes) -> Iterator[tuple[bytes, bool]]:
    if frame.startswith(b"\xff\xd8"):
        yield from _of_jpeg(frame)
    elif frame.startswith(b"\xff\x4f"):
        yield from _of_codestream(frame)
    elif frame.startswith(_JP2):
        yield from _of_boxes(frame)
    else:  # RLE, a film
        yield frame, True


def _of_jpeg(data: bytes) -> Iterator[tuple[bytes, bool]]:
    """Segments as texts; as any bytes the entropy-coded ones, which follow that of a scan (ISO/IEC 10918-1 B.1.1)."""
    pos, is_scan = 2, False
    while match := _MARKER.search(data, pos):
        yield data[pos : match.start()], is_scan
        pos, marker = match.end(), data[match.end() - 1]
        is_scan = marker == _SOS
        if marker == _EOI:
            break
        if marker in _BARE:
            continue
        stop = pos + max(2, int.from_bytes(data[pos : pos + 2], "big"))
        yield data[pos:stop], False
        pos = stop
    yield data[pos:], is_scan


def _of_codestream(data: bytes) -> Iterator[tuple[bytes, bool]]:
    """The headers of a JPEG 2000 codestream and of its tile-parts, their packets as any bytes, and what follows it.

    Within packets no marker above FF8F can stand (ISO/IEC 15444-1 B.10.1): the first end of the codestream is the end,
    whatever a tile-part says of its length.
    """
    start = data.find(b"\xff\x90")
    if start < 0:
        yield data, True
        return
    yield data[:start], False
    while data[start : start + 2] == b"\xff\x90":
        size = int.from_bytes(data[start + 6 : start + 10], "big")
        stop = min(start + size if size else len(data), len(data))
        body = data.find(b"\xff\x93", start, stop)
        if body < 0 or stop < start + 12:
            break
        if (end := data.find(b"\xff\xd9", body, stop)) >= 0:
            stop = end
        yield data[start:body], False
        yield data[body:stop], True
        start = stop
    yield data[start:], False


def _of_boxes(data: bytes) -> Iterator[tuple[bytes, bool]]:
    """All boxes; of a codestream's what `_of_codestream` tells (ISO/IEC 15444-1 I)."""
    pos = 0
    while pos + 8 <= len(data):
        size, kind, head = int.from_bytes(data[pos : pos + 4], "big"), data[pos + 4 : pos + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[pos + 8 : pos + 16], "big"), 16
        stop = len(data) if size == 0 else pos + max(size, head)
        if kind == b"jp2c":
            yield from _of_codestream(data[pos + head : stop])
        else:
            yield data[pos:stop], False
        pos = stop
    yield data[pos:], False


def _blocks(read: Read, position: int, end: int) -> Iterator[tuple[bytes, bool]]:
    before = b""
    while position < end:
        block = bytes(read(position, min(_BLOCK, end - position)))
        if not block:
            return
        yield before + block, True
        before = block[-_OVERLAP:]
        position += len(block)
