"""Writes a de-identified instance: new bytes as they are, stretches of the source copied in blocks."""

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
    """What stretches are copied from: a way to read it, and how long the head of its pixels is."""

    read: Read
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
    """Copies a stretch block by block.

    Its place in the result is another within a page than in the source, so that to copy it in the kernel
    (copy_file_range) takes up to three times as long.
    """
    for block in _blocks(original.read, stretch.position, stretch.position + stretch.size):
        _write_all(descriptor, block)
        _begin_to_store(descriptor, len(block))


def _begin_to_store(descriptor: int, size: int) -> None:
    """Lets the disk take in what was written last while more is copied: with its fsync 1 GB takes a fifth less."""
    if hasattr(os, "posix_fadvise"):
        start = os.lseek(descriptor, 0, os.SEEK_CUR) - size
        with suppress(OSError):
            os.posix_fadvise(descriptor, start, size, os.POSIX_FADV_DONTNEED)


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
