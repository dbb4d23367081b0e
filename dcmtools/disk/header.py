"""Headers of DICOM files (PS3.10 7.1): what the index holds of an instance, and what a sender must know of its file.

One open, one read and one close a file where it is made as most are. A record is only given for a file that is whole:
its data set ends where the file ends.
"""

import os
from dataclasses import replace
from struct import Struct
from typing import Any

from dcmtools.disk.dataset import Encoding, Odd, Walk, encoding_of
from dcmtools.disk.inflated import Read
from dcmtools.disk.part10 import Changed, Meta, OpenFile, encode_meta, encoding_in, meta_of, opened, source_of, uid_in
from dcmtools.disk.runs import Runs
from dcmtools.disk.values import Element, decoder_for, quiet
from dcmtools.model.errors import BadData
from dcmtools.model.keys import BY_KEYWORD, BY_TAG, LAST_TAG
from dcmtools.model.names import is_uid
from dcmtools.model.record import Record, path_keys
from dcmtools.model.uids import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, MEDIA_STORAGE_DIRECTORY

__all__ = ["Meta", "check_received", "encode_meta", "read_header", "read_meta"]

# What names an instance among all others; without them it has no place in an archive.
_IDENTITY = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_IDENTITY_TAGS = {keyword: BY_KEYWORD[keyword].tag for keyword in _IDENTITY}
_CHARSET, _SOP_CLASS, _SOP_INSTANCE = 0x00080005, 0x00080016, 0x00080018
# pydicom takes what a file says of its lengths for granted, and reads it at once.
_MAX_FOR_PYDICOM = 64 << 20
_ELEMENT = Struct("<HH2sH")
_LENGTH = Struct("<I")
_PIXEL_DATA = b"\xe0\x7f\x10\0"
_USUAL = Encoding(explicit=True)
_RUNS = Runs(BY_TAG)
_NATIVE = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)


def read_header(path: str | os.PathLike[str], *, follow: bool = False) -> Record:
    """The instance record of a DICOM file: index keys, TransferSyntaxUID, path, size and mtime_ns.

    BadData with a cause when it has none: not-dicom, dicomdir, truncated, bad-length, too-deep, bad-uid, changed,
    unreadable or vanished. A symbolic link is read only when told to `follow` it.
    """
    for tries_left in (True, False):
        try:
            with opened(path, follow=follow) as (file, state):
                record = _instance(file)
            return _placed(record, path, state)
        except Changed:
            if not tries_left:
                raise
    raise AssertionError


def read_meta(path: str | os.PathLike[str]) -> Meta:
    """What a sender must know of a file; BadData when that cannot be told.

    The UIDs are those of the data set, where it has them: they are what the receiver compares with the command.
    """
    with opened(path, follow=True) as (file, _):
        meta = meta_of(file)
        encoding = encoding_in(file, meta)
        read, start, end = source_of(file, meta, encoding)
        found = Walk(start, end, encoding, (_SOP_CLASS, _SOP_INSTANCE), last=_SOP_INSTANCE).through(read)
        uids = [uid_in(found[tag][1]) if tag in found else "" for tag in (_SOP_CLASS, _SOP_INSTANCE)]
        meta = replace(meta, sop_class=uids[0] or meta.sop_class, sop_instance=uids[1] or meta.sop_instance)
        _check_uids({"SOPClassUID": meta.sop_class, "SOPInstanceUID": meta.sop_instance})
        return meta


def check_received(path: str | os.PathLike[str], sop_class: str, sop_instance: str, syntax: str, offset: int) -> Record:
    """The instance record of a file that was just received, after a walk through the whole of its data set.

    BadData when the data set does not end with an element (cause truncated, bad-length, too-deep), has no usable UIDs
    (bad-uid), or is another instance than the command said (mismatch; PS3.4 B.2.3). So it is when elements of group
    0002 begin it, which would read as more meta information ever after (bad-length; PS3.10 7.1).
    """
    with opened(path) as (file, state):
        meta = meta_of(file)
        if (meta.offset, meta.syntax) != (offset, syntax):
            raise BadData("the data set begins with elements that belong before it", cause="bad-length")
        encoding = encoding_of(syntax)
        read, start, end = source_of(file, Meta(sop_class, sop_instance, syntax, offset), encoding)
        walk = Walk(start, end, encoding, BY_TAG, deep=True)
        record = _record(walk.through(read), encoding, syntax)
        _check_uids({key: record.get(key) for key in _IDENTITY})
        if (record.get("SOPClassUID"), record["SOPInstanceUID"]) != (sop_class, sop_instance):
            raise BadData("the data set is not the instance that the command named", cause="mismatch")
        return _placed(record, path, state)


def _placed(record: Record, path: str | os.PathLike[str], state: os.stat_result) -> Record:
    return {"type": "instance", **record, **path_keys(path), "size": state.st_size, "mtime_ns": str(state.st_mtime_ns)}


def _instance(file: OpenFile) -> Record:
    """The record of what is in a file, without its place."""
    meta = meta_of(file)
    if meta.sop_class == MEDIA_STORAGE_DIRECTORY:
        raise BadData("it is a DICOMDIR, which lists files and is no instance", cause="dicomdir")
    if meta.offset >= file.size:
        raise BadData("it ends after its meta information", cause="truncated")
    encoding = encoding_in(file, meta)
    read, start, end = source_of(file, meta, encoding)
    walk = Walk(start, end, encoding, BY_TAG, last=LAST_TAG, runs=_RUNS if encoding == _USUAL else None)
    try:
        return _walked(file, walk, read, encoding, meta)
    except BadData as problem:  # whose instance is missing then is known, as far as the walk came
        problem.where |= _identity(walk.found)
        raise


def _walked(file: OpenFile, walk: Walk, read: Read, encoding: Encoding, meta: Meta) -> Record:
    try:
        if not encoding.deflated:
            walk.feed(file.first, 0)
        record = _record(walk.through(read), encoding, meta.syntax)
    except Odd as odd:
        return _by_pydicom(file, meta, odd)
    if not all(record.get(key) for key in _IDENTITY) or not _is_whole(file, walk, record):
        walk.go_on()
        record = _record(walk.through(read), encoding, meta.syntax)
    _check_uids({key: record.get(key) for key in _IDENTITY})
    return record


def _identity(found: dict[int, Element]) -> Record:
    """The UIDs of study, series and instance among the elements found."""
    uids = {keyword: uid_in(found[tag][1]) for keyword, tag in _IDENTITY_TAGS.items() if tag in found}
    return {keyword: uid for keyword, uid in uids.items() if is_uid(uid)}


def _record(found: dict[int, Element], encoding: Encoding, syntax: str) -> Record:
    """The index keys of the elements found."""
    decoder = decoder_for(found.get(_CHARSET, (b"", b""))[1], big=encoding.big)
    return {**decoder.record(found), "TransferSyntaxUID": syntax}


def _check_uids(uids: Record) -> None:
    for keyword, uid in uids.items():
        if not is_uid(uid):
            raise BadData(f"its {keyword} is {'missing' if not uid else 'no UID'}", cause="bad-uid")


def _is_whole(file: OpenFile, walk: Walk, record: Record) -> bool:
    """Whether the file ends with just the pixels that its header announces; if not, only a walk to the end can tell.

    Three files in four do, and an fMRI series has as many elements behind the last index key as before it.
    """
    if walk.position == walk.end:
        return True
    if walk.encoding.big or record["TransferSyntaxUID"] not in _NATIVE or not (size := _pixel_bytes(record)):
        return False
    head = _ELEMENT if walk.encoding.explicit else None
    at = file.size - size - (12 if head else 8)
    if at < walk.position:
        return False
    tail = file.first[at : at + 12] if at + 12 <= len(file.first) else file.read(at, 12)
    if head is None:
        return bytes(tail[:8]) == _PIXEL_DATA + _LENGTH.pack(size)
    return bytes(tail) in {_PIXEL_DATA + vr + b"\0\0" + _LENGTH.pack(size) for vr in (b"OW", b"OB")}


def _pixel_bytes(record: Record) -> int:
    """The length of native Pixel Data (PS3.5 8.1.1) below 4 GiB, 0 when the header does not tell."""
    counts = [record.get(key) for key in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")]
    counts.append(record.get("NumberOfFrames") or 1)
    bits = 1
    for count in counts:
        if not isinstance(count, int) or not 0 < count < 1 << 32:
            return 0
        bits *= count
    size = (bits + 7) // 8
    return size + size % 2 if size < 0xFFFFFFFE else 0


def _by_pydicom(file: OpenFile, meta: Meta, odd: Odd) -> Record:
    """The record that pydicom makes of a file which is not written as the standard says; else what is odd about it."""
    from io import BytesIO

    from pydicom import dcmread
    from pydicom.dataelem import RawDataElement

    if file.size > _MAX_FOR_PYDICOM:
        raise odd
    elements: dict[int, Any]
    try:
        with quiet():
            data_set = dcmread(BytesIO(bytes(file.read(0, file.size))), force=True)
            elements = {int(tag): data_set.get_item(tag) for tag in sorted(data_set.keys())}
    except Exception:  # noqa: BLE001 - it raises at least nine kinds, and each says that it cannot read the file either
        raise odd from None
    last = elements[max(elements)] if elements else None
    if not isinstance(last, RawDataElement) or last.value_tell + last.length != file.size:
        raise odd  # it takes what is left for a value, however long that should be
    found = {
        tag: ((element.VR or "").encode(), element.value or b"")
        for tag, element in elements.items()
        if tag in BY_TAG and isinstance(element, RawDataElement)
    }
    record = _record(found, encoding_of(meta.syntax), meta.syntax)
    _check_uids({key: record.get(key) for key in _IDENTITY})
    return record
