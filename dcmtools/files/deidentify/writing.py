"""Writes a de-identified instance: new bytes as they are, stretches of the source copied in the kernel where it can."""

import os
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from dcmtools.disk.atomic import FILE_MODE
from dcmtools.disk.inflated import Read
from dcmtools.files.deidentify.regions import Raster, Region, blanked
from dcmtools.files.deidentify.spliced import Piece, Stretch
from dcmtools.model.errors import Refused

_BLOCK = 1 << 20
_UNDEFINED = b"\xff\xff\xff\xff"

Blank = tuple[Raster, tuple[Region, ...]]


class Original(NamedTuple):
    """What stretches are copied from: a way to read it, its descriptor, and how long the head of its pixels is."""

    read: Read
    descriptor: int | None
    pixel_head: int
    deflated: bool


def write(target: Path, meta: bytes, pieces: list[Piece], original: Original, blank: Blank | None) -> None:
    """Makes a new file of the pieces, which is not fsynced; pixels get zeros in the regions that are to be blank.

    Refused where there are none of which that could be done: the pieces say already that it was.
    """
    if blank and not any(isinstance(piece, Stretch) and piece.pixels for piece in pieces):
        raise Refused("it has no pixels in which regions could be blanked", "change the rule", cause="burned-in")
    parts = _parts(pieces, original, blank)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        if original.deflated:
            _write_all(descriptor, meta)
            for packed in _deflated(_read(parts, original)):
                _write_all(descriptor, packed)
            return
        held = meta
        for part in parts:
            if isinstance(part, bytes):
                held += part
                continue
            _write_all(descriptor, held)
            held = b""
            _copy(original, descriptor, part)
        _write_all(descriptor, held)
    finally:
        os.close(descriptor)


def _parts(pieces: list[Piece], original: Original, blank: Blank | None) -> Iterator[Piece]:
    """The pieces, short stretches as bytes; long ones stay what they are."""
    for piece in pieces:
        if isinstance(piece, bytes):
            yield piece
        elif blank and piece.pixels:
            start = piece.position + original.pixel_head
            head = bytes(original.read(piece.position, original.pixel_head))
            if head.endswith(_UNDEFINED):
                raise Refused("its pixels are encapsulated, and its transfer syntax is native", cause="burned-in")
            yield head
            yield from blanked(original.read, start, piece.position + piece.size, *blank)
        elif piece.size <= _BLOCK:
            yield bytes(original.read(piece.position, piece.size))
        else:
            yield piece


def _read(parts: Iterator[Piece], original: Original) -> Iterator[bytes]:
    for part in parts:
        if isinstance(part, bytes):
            yield part
        else:
            yield from _blocks(original.read, part.position, part.position + part.size)


def _blocks(read: Read, position: int, end: int) -> Iterator[bytes]:
    while position < end:
        block = bytes(read(position, min(_BLOCK, end - position)))
        if not block:
            return
        yield block
        position += len(block)


def _copy(original: Original, descriptor: int, stretch: Stretch) -> None:
    """Copies a stretch without bringing it into this process, as far as the system can."""
    position, end = stretch.position, stretch.position + stretch.size
    if original.descriptor is not None and hasattr(os, "copy_file_range"):
        with suppress(OSError):
            while position < end:
                count = os.copy_file_range(original.descriptor, descriptor, end - position, offset_src=position)
                if not count:
                    break
                position += count
    for block in _blocks(original.read, position, end):
        _write_all(descriptor, block)


def _deflated(parts: Iterator[bytes]) -> Iterator[bytes]:
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    size = 0
    for part in parts:
        packed = deflate.compress(part)
        size += len(packed)
        yield packed
    last = deflate.flush()
    yield last + b"\0" * ((size + len(last)) % 2)


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
