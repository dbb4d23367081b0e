"""What C-STORE sends: an instance, its file and what that says of itself, ready to leave (PS3.10 7.1)."""

import os
from dataclasses import dataclass
from pathlib import Path

from dcmtools.disk.dataset import Walk
from dcmtools.disk.header import read_meta
from dcmtools.disk.part10 import Meta, OpenFile, encoding_in, source_of
from dcmtools.model.errors import BadData, DcmtoolsError, NoInput, from_os
from dcmtools.model.record import Record, path_keys, path_of, type_of

# Files up to this size are read at once, and ahead; larger ones leave piece by piece.
READ_WHOLE = 4 << 20
# So far into a data set Pixel Data are looked for.
_HEADER = 64 << 10
_PIXEL_DATA = b"\xe0\x7f\x10\0"
_SENDABLE = frozenset({"instance", "file"})
# What an earlier command may have said of an item that did not go well.
_FATE = frozenset({"advice", "cause", "exit_code", "reason", "status"})


@dataclass(frozen=True, slots=True)
class Item:
    """An instance to be sent: its place in the input, its record, its file, and what the file says of itself."""

    number: int
    record: Record
    path: Path
    meta: Meta


def sendable(record: Record) -> bool:
    """Whether a record stands for a file that can be sent; others pass through."""
    return type_of(record) in _SENDABLE


def look_at(number: int, record: Record) -> Item:
    """The item that a record names; DcmtoolsError when its file is missing, no DICOM, or not the one of the record."""
    path = path_of(record)
    if path is None:
        raise NoInput("a record names no file", "give it to store from find or index of this archive")
    _check_size(path, record)
    meta = read_meta(path)
    if not (meta.sop_class and meta.sop_instance):
        raise BadData("the file has no SOP class or instance UID", cause="no-uid")
    return Item(number, record, path, meta)


def _check_size(path: Path, record: Record) -> None:
    """Refuses a file that is longer or shorter than its record says: cut between two elements it still looks whole."""
    told = record.get("size")
    if isinstance(told, int) and path.is_file() and (size := path.stat().st_size) != told:
        name = path_keys(path)["path"]
        reason = f"{name} has {size} bytes, and its record says {told}: it was damaged or changed since"
        raise BadData(reason, "index it again, or retrieve it again", cause="damaged", **path_keys(path))


def named(item: Item) -> Record:
    """The item's record, with the UIDs that its file has where it lacks them, without the fate of an earlier try."""
    meta = item.meta
    uids = {"SOPClassUID": meta.sop_class, "SOPInstanceUID": meta.sop_instance, "TransferSyntaxUID": meta.syntax}
    record = {key: value for key, value in item.record.items() if key not in _FATE}
    return record | {key: uid for key, uid in uids.items() if key not in record}


class Parcel:
    """A file that is open, whole and, unless it is large, read: ready to leave. DcmtoolsError when it is not so."""

    def __init__(self, item: Item) -> None:
        self.item = item
        try:
            self.file = os.open(item.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self.length = max(0, os.fstat(self.file).st_size - item.meta.offset)
                self.data = os.pread(self.file, self.length, item.meta.offset) if self.length <= READ_WHOLE else None
                self._check()
            except BaseException:
                os.close(self.file)
                raise
        except OSError as problem:
            raise unread(problem, item) from None

    def close(self) -> None:
        """Closes the file."""
        os.close(self.file)

    def _check(self) -> None:
        """Raises BadData for a file that was cut short; what else may be odd about it is for the peer to judge."""
        head = os.pread(self.file, _HEADER, self.item.meta.offset) if self.data is None else self.data
        if _ends_with_pixels(head, self.length):
            return
        file = OpenFile(self._read, self.item.meta.offset + self.length, b"")
        encoding = encoding_in(file, self.item.meta)
        try:
            read, start, end = source_of(file, self.item.meta, encoding)
            Walk(start, end, encoding, ()).through(read)
        except BadData as problem:
            if problem.cause == "truncated":
                raise

    def _read(self, position: int, size: int) -> bytes | memoryview:
        if self.data is None:
            return os.pread(self.file, size, position)
        return memoryview(self.data)[position - self.item.meta.offset :]


def _ends_with_pixels(data: bytes, length: int) -> bool:
    """Whether native Pixel Data, found by its tag, ends where a data set of this length ends (PS3.5 A.1, A.2).

    So it is in most files, and to see it costs a hundredth of a walk through all elements. Each place at which the
    bytes of the tag stand is tried; what follows them must be a length that fits to the byte.
    """
    at = data.find(_PIXEL_DATA, 0, _HEADER)
    while at >= 0:
        for start, told in ((at + 12, data[at + 8 : at + 12]), (at + 8, data[at + 4 : at + 8])):
            if len(told) == 4 and start + int.from_bytes(told, "little") == length > start:
                return True
        at = data.find(_PIXEL_DATA, at + 4, _HEADER)
    return False


def unread(problem: OSError, item: Item) -> DcmtoolsError:
    """The error of an item whose file cannot be read."""
    return from_os(problem, "reading", path_keys(item.path)["path"])
