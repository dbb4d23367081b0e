"""The DICOM file format: a preamble, the file meta information, a data set (PS3.10 7.1)."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from struct import Struct
from struct import error as StructError  # noqa: N812 - it is an exception's name everywhere else

from dcmtools.disk.dataset import LONG_VRS, SHORT_VRS, WINDOW, Encoding, encoding_of
from dcmtools.disk.inflated import Buffer, Inflated, Read
from dcmtools.model.errors import BadData, from_os
from dcmtools.model.record import path_keys
from dcmtools.model.uids import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION,
    IMPLICIT_VR_LITTLE_ENDIAN,
)

PREAMBLE = 128
_MAX_META = 1 << 20
_BLOCK = 1 << 20
_ELEMENT = Struct("<HH2sH")
_LENGTH = Struct("<I")
_STATE = ("st_ino", "st_dev", "st_size", "st_mtime_ns")


@dataclass(frozen=True, slots=True)
class Meta:
    """What the file meta information says, and the offset at which the data set begins."""

    sop_class: str
    sop_instance: str
    syntax: str
    offset: int


@dataclass(frozen=True, slots=True)
class OpenFile:
    """An open file: a way to read from it, its size, its first bytes, and its descriptor where it has one."""

    read: Read
    size: int
    first: Buffer
    descriptor: int | None = None


class Changed(BadData):
    """The file was not the same before and after it was read."""

    cause = "changed"


@contextmanager
def opened(path: str | os.PathLike[str], *, follow: bool = False) -> Iterator[tuple[OpenFile, os.stat_result]]:
    """A regular file, open, and its state; whatever fails within is told of this path."""
    name = path_keys(path)["path"]
    try:
        before = os.stat(path, follow_symlinks=follow)
        if not stat.S_ISREG(before.st_mode):
            raise BadData("it is not a regular file")  # noqa: TRY301 - it gets its path below, as all do
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
        descriptor = os.open(path, flags)
        try:
            first = os.pread(descriptor, WINDOW, 0)
            yield (
                OpenFile(
                    lambda position, size: os.pread(descriptor, size, position), before.st_size, first, descriptor
                ),
                before,
            )
            after = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        if any(getattr(before, part) != getattr(after, part) for part in _STATE):
            raise Changed("it changes while it is read", "run the same command again")
    except BadData as problem:
        if "path" in problem.where:
            raise
        told = (f"{name}: {problem.reason}", problem.advice)
        where = {**problem.where, **path_keys(path)}
        raise type(problem)(*told, cause=problem.cause, **where) from problem.__cause__
    except OSError as problem:
        if problem.errno in {errno.EMFILE, errno.ENFILE}:
            raise from_os(problem, "reading", path) from problem
        cause = "vanished" if isinstance(problem, FileNotFoundError) else "unreadable"
        raise BadData(f"{name}: {problem.strerror}", cause=cause, **path_keys(path)) from problem


def meta_of(file: OpenFile) -> Meta:
    """The file meta information; without it the data set is taken to begin where it would (PS3.10 7.1)."""
    start = PREAMBLE + 4 if file.first[PREAMBLE : PREAMBLE + 4] == b"DICM" else 0
    if start == 0 and not _looks_bare(file):
        raise BadData("it is not a DICOM file", cause="not-dicom")
    try:
        found, offset = _group_two(file.first, start)
    except StructError:
        try:
            found, offset = _group_two(file.read(0, _MAX_META), start)
        except StructError:
            raise BadData("it ends within its meta information", cause="truncated") from None
    syntax = uid_in(found.get(0x10, b"")) or _guess(file, offset)
    return Meta(uid_in(found.get(0x02, b"")), uid_in(found.get(0x03, b"")), syntax, offset)


def _group_two(data: Buffer, start: int) -> tuple[dict[int, bytes], int]:
    """The elements of group 0002 and the position behind them; StructError when `data` ends before they do."""
    found: dict[int, bytes] = {}
    position, told = start, 0
    # Who deflates may begin the data set with any bytes, these two among them: there the group length must be trusted.
    while data[position : position + 2] == b"\2\0" and not (told == position and _is_deflated(found)):
        _, element, vr, length = _ELEMENT.unpack_from(data, position)
        position += 8
        if vr in LONG_VRS:
            (length,) = _LENGTH.unpack_from(data, position)
            position += 4
        elif vr not in SHORT_VRS:
            raise BadData("its meta information is damaged", cause="bad-length")
        if position + length > len(data):
            raise StructError
        found[element] = bytes(data[position : position + length])
        position += length
        if element == 0 and length == 4:
            told = position + _LENGTH.unpack(found[0])[0]
    return found, position


def _is_deflated(found: dict[int, bytes]) -> bool:
    return encoding_of(uid_in(found.get(0x10, b""))).deflated


def uid_in(value: bytes) -> str:
    """The UID that a value holds, without what pads it."""
    return value.decode("ascii", "replace").strip("\0 ")


def _looks_bare(file: OpenFile) -> bool:
    """Whether a file without a preamble begins as a data set or its meta information does."""
    if len(file.first) < 16:
        return False
    group, element, vr, length = _ELEMENT.unpack_from(file.first)
    if vr not in SHORT_VRS:
        length = _LENGTH.unpack_from(file.first, 8 if vr in LONG_VRS else 4)[0]
    return element <= {2: 0x02, 8: 0x60}.get(group, -1) and bool(length < min(file.size, _MAX_META))


def _head(file: OpenFile, offset: int) -> bytes:
    return bytes(file.first[offset : offset + 6] if offset + 6 <= len(file.first) else file.read(offset, 6))


def _has_vr(head: bytes) -> bool:
    return head[4:6].isalpha() and head[4:6].isupper()


def _guess(file: OpenFile, offset: int) -> str:
    """The transfer syntax of a data set whose file does not tell it."""
    head = _head(file, offset)
    if not _has_vr(head):
        return IMPLICIT_VR_LITTLE_ENDIAN
    first_group_is_big = head[0] == 0 and head[1] > 0
    return EXPLICIT_VR_BIG_ENDIAN if first_group_is_big else EXPLICIT_VR_LITTLE_ENDIAN


def encoding_in(file: OpenFile, meta: Meta) -> Encoding:
    """How the data set is written: some say that they write VRs and do not, and the other way round."""
    encoding = encoding_of(meta.syntax)
    head = _head(file, meta.offset)
    if encoding.deflated or len(head) < 6:
        return encoding
    return encoding._replace(explicit=_has_vr(head))


def source_of(file: OpenFile, meta: Meta, encoding: Encoding) -> tuple[Read, int, int]:
    """Where the data set is read: a way to read it, its begin and its end."""
    if not encoding.deflated:
        return file.read, meta.offset, file.size
    inflated = Inflated(file.read, meta.offset, file.size)
    return inflated.read, 0, inflated.size


def same_data_set(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Whether two files hold the same data set, byte for byte; their meta information may differ.

    BadData when one of them cannot be read.
    """
    with opened(one) as (first, _), opened(other) as (second, _):
        meta, others = meta_of(first), meta_of(second)
        size = first.size - meta.offset
        if meta.syntax != others.syntax or second.size - others.offset != size:
            return False
        return all(
            first.read(meta.offset + at, _BLOCK) == second.read(others.offset + at, _BLOCK)
            for at in range(0, size, _BLOCK)
        )


def data_set_hash(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of the data set in a file, in hex; of the whole file when it is not made as DICOM files are."""
    from hashlib import sha256  # whoever only sends need not load OpenSSL

    with opened(path) as (file, _):
        try:
            offset = meta_of(file).offset
        except BadData:
            offset = 0
        digest = sha256()
        for at in range(offset, file.size, _BLOCK):
            digest.update(file.read(at, _BLOCK))
        return digest.hexdigest()


def encode_meta(sop_class: str, sop_instance: str, syntax: str, source_ae: str = "") -> bytes:
    """A preamble and the file meta information for a data set to follow (PS3.10 7.1)."""
    group = b"".join(
        (
            _ELEMENT.pack(2, 1, b"OB", 0) + _LENGTH.pack(2) + b"\0\1",
            _short(0x02, b"UI", sop_class, b"\0"),
            _short(0x03, b"UI", sop_instance, b"\0"),
            _short(0x10, b"UI", syntax, b"\0"),
            _short(0x12, b"UI", IMPLEMENTATION_CLASS_UID, b"\0"),
            _short(0x13, b"SH", IMPLEMENTATION_VERSION, b" "),
            _short(0x16, b"AE", source_ae, b" ") if source_ae else b"",
        )
    )
    return bytes(PREAMBLE) + b"DICM" + _ELEMENT.pack(2, 0, b"UL", 4) + _LENGTH.pack(len(group)) + group


def _short(element: int, vr: bytes, text: str, padding: bytes) -> bytes:
    value = text.encode("ascii", "replace")
    value += padding * (len(value) % 2)
    return _ELEMENT.pack(2, element, vr, len(value)) + value
