"""What C-STORE sends: an instance, its file and what that says of itself, ready to leave (PS3.10 7.1)."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from dcmtools.disk.atomic import TEMPORARY_PREFIX
from dcmtools.disk.dataset import Walk
from dcmtools.disk.header import read_meta
from dcmtools.disk.part10 import Meta, OpenFile, encoding_in, source_of
from dcmtools.model.errors import BadData, DcmtoolsError, NoInput, from_os
from dcmtools.model.record import Record, path_keys, path_of, type_of

# Makes a changed copy of the first file under the second name; DcmtoolsError when that cannot be done.
Change = Callable[[Path, Path], None]

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
    """A file that is open, whole and, unless it is large, read: ready to leave. DcmtoolsError when it is not so.

    With `change` it is a changed copy that leaves, and the file itself stays as it is. `item` is what leaves.
    """

    def __init__(self, item: Item, change: Change | None = None) -> None:
        self.asked = self.item = item
        self._copy: Path | None = None
        if change:
            self.replace(change)
        else:
            self._open()

    def replace(self, change: Change) -> None:
        """Puts the copy that `change` makes of the file into its place; DcmtoolsError when there can be none."""
        copy = _temporary()
        try:
            change(self.item.path, copy)
            item = replace(self.item, path=copy, meta=read_meta(copy))
        except OSError as problem:
            copy.unlink()
            raise from_os(problem, "copying", path_keys(self.asked.path)["path"]) from None
        except BaseException:
            copy.unlink()
            raise
        self.close()
        self.item, self._copy = item, copy
        self._open()

    def close(self) -> None:
        """Closes the file; a changed copy goes."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self._copy:
            self._copy.unlink(missing_ok=True)

    @property
    def sent_as(self) -> Record:
        """What is different in what leaves: the UIDs and transfer syntax of the changed copy, where they differ."""
        rows = (("SOPClassUID", "sop_class"), ("SOPInstanceUID", "sop_instance"), ("TransferSyntaxUID", "syntax"))
        pairs = ((key, getattr(self.item.meta, name), getattr(self.asked.meta, name)) for key, name in rows)
        return {key: now for key, now, before in pairs if now != before}

    _file = -1

    def _open(self) -> None:
        try:
            self._file = os.open(self.item.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self.length = max(0, os.fstat(self._file).st_size - self.item.meta.offset)
                self.data = os.pread(self._file, self.length, self.item.meta.offset) if self._is_small else None
                self._check()
            except BaseException:
                self.close()
                raise
            if self.data is not None:  # many of them may be on their way at once
                os.close(self._file)
                self._file = -1
        except OSError as problem:
            raise unread(problem, self.asked) from None

    @property
    def file(self) -> int:
        """The descriptor of a large file, which is open; of what was read at once none is left."""
        return self._file

    @property
    def _is_small(self) -> bool:
        return self.length <= READ_WHOLE

    def _check(self) -> None:
        """Raises BadData for a file that was cut short; what else may be odd about it is for the peer to judge."""
        head = os.pread(self._file, _HEADER, self.item.meta.offset) if self.data is None else self.data
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
            return os.pread(self._file, size, position)
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


def _temporary() -> Path:
    """A new empty file that only we can read."""
    descriptor, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, suffix=".dcm")
    os.close(descriptor)
    return Path(name)


def unread(problem: OSError, item: Item) -> DcmtoolsError:
    """The error of an item whose file cannot be read."""
    return from_os(problem, "reading", path_keys(item.path)["path"])
