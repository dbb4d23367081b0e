"""Holds a de-identified folder against the files that it came from: whether any of their identity is in it anywhere.

It shares no step with the export but the texts that count as identity and the search for them: sources and results are
read by pydicom, and results are searched as plain bytes.
"""

import csv
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from struct import unpack
from typing import Any

from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from dcmtools.disk.atomic import TEMPORARY_PREFIX
from dcmtools.disk.part10 import OpenFile, encode_meta, encoding_in, meta_of, opened
from dcmtools.disk.tree import INDEX_NAME
from dcmtools.disk.values import quiet
from dcmtools.files.deidentify import frames
from dcmtools.files.deidentify.identity import Identity, identity_of, kind_of
from dcmtools.files.deidentify.profile import CODES, METHOD, WRITTEN, vr_of
from dcmtools.files.deidentify.pseudonyms import is_registered
from dcmtools.files.deidentify.table import naming_uids
from dcmtools.files.unpacked import MAX_EXPANDED, Found, look_into, names_below
from dcmtools.model.errors import BadData, ConfigurationError, DcmtoolsError, NoInput, Refused
from dcmtools.model.record import Record, decode, encode, path_keys
from dcmtools.model.uids import EXPLICIT_VR_LITTLE_ENDIAN

_RETAINED_UIDS, _RETAINED_INSTITUTION = "113110", "113112"
_INSTITUTION = frozenset({0x00080080, 0x00080081, 0x00081040})
_PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_UNDEFINED = 0xFFFFFFFF
_BLOCK, _FEW, _LETTERS = 1 << 20, 4096, 3


class _Sources:
    """The identity of all sources."""

    def __init__(self) -> None:
        self.values: set[tuple[str, str]] = set()
        self.of_institutions: set[tuple[str, str]] = set()
        self.uids: set[bytes] = set()

    def take(self, path: Path) -> None:
        """Adds the identity of one file; BadData when it cannot be read, with the cause not-dicom when it is none."""
        with opened(path, follow=True) as (file, _):
            meta_of(file)
        try:
            with quiet():  # many sources have no preamble
                self._take(dcmread(path, stop_before_pixels=True, force=True))
        except Exception as problem:
            reason = f"{path}: its identity cannot be read ({type(problem).__name__})"
            raise BadData(reason, cause="unreadable", **path_keys(path)) from problem

    def _take(self, data_set: Dataset) -> None:
        for element in data_set:
            if element.VR == "SQ":
                for item in element.value:
                    self._take(item)
            elif element.VR == "UI":
                if int(element.tag) not in naming_uids():
                    self.uids |= {uid.encode("latin_1", "replace") for uid in _texts(element) if _is_own(uid)}
            elif (kind := kind_of(int(element.tag), element.VR)) and kind != "overlay":
                values = self.of_institutions if int(element.tag) in _INSTITUTION else self.values
                values |= {(kind, text) for text in _texts(element)}

    def add_crosswalk(self, path: Path) -> set[str]:
        """Adds the old names of a crosswalk; its new SOP Instance UIDs."""
        new = set()
        for kind, old, now in _crosswalk(path):
            if kind == "patient" and old:
                self.values.add(("id", old))
            elif kind in {"study", "series", "instance"} and _is_own(old) and old != now:
                self.uids.add(old.encode())
            if kind == "instance":
                new.add(now)
        return new

    def identity(self, codes: frozenset[str]) -> tuple[Identity, frozenset[bytes]]:
        """What must not be in a result that says with these codes what it retains."""
        values = self.values if _RETAINED_INSTITUTION in codes else self.values | self.of_institutions
        return identity_of(frozenset(values)), frozenset(() if _RETAINED_UIDS in codes else self.uids)


def verify_export(
    out: Path, sources: Iterable[Path | Record], crosswalk: Path | None = None, *, stop: Callable[[], bool]
) -> Iterator[Record]:
    """A record for each file below `out`, or in the file `out`, and for each that is packed in one of them.

    It is verified, or an error tells where identity is left, but not which. With a crosswalk each result must be in it,
    too. Sources that are no DICOM are passed over; one whose identity cannot be read is an error.

    Raises:
        NoInput: `out` is not there, or there is nothing in it.
        ConfigurationError: no identity is known that could be searched for.
    """
    if not os.path.lexists(out):
        raise NoInput(f"{out} does not exist", "check the path", **path_keys(out))
    known = _Sources()
    yield from _learned(known, sources, stop)
    listed = known.add_crosswalk(crosswalk) if crosswalk else None
    if not (known.values or known.uids):
        raise ConfigurationError("there is no identity in the sources to search for", "name the folder of the sources")
    seen = 0
    for path in names_below(out):
        if stop():
            return
        if isinstance(path, OSError):
            place = Path(os.fsdecode(path.filename or out))
            yield BadData(f"{place}: {path.strerror}", "check its permissions", **path_keys(place)).record()
            continue
        seen += not path.name.startswith((TEMPORARY_PREFIX, "index."))
        yield from _looked_at(path, out, known, listed)
    if not seen:
        raise NoInput(f"there is nothing in {out} to look at", "check the path", **path_keys(out))


def _learned(known: _Sources, sources: Iterable[Path | Record], stop: Callable[[], bool]) -> Iterator[Record]:
    """Adds all sources to what is known; the errors of those that could not be read."""
    for source in sources:
        if stop():
            return
        if not isinstance(source, Path):
            yield source
            continue
        try:
            known.take(source)
        except BadData as problem:
            if problem.cause != "not-dicom":
                yield problem.record(**path_keys(source))


def _looked_at(path: Path, out: Path, known: _Sources, listed: set[str] | None) -> Iterator[Record]:
    """The records of a file and of what is packed in it."""
    try:
        for found in look_into(path, out):
            try:
                _verify(found, known, listed)
            except DcmtoolsError as problem:
                yield problem.record(**found.keys)
            except Exception as problem:  # noqa: BLE001 - pydicom raises whatever comes of a damaged file
                reason = f"it cannot be read ({type(problem).__name__})"
                yield BadData(reason, cause="unreadable").record(**found.keys)
            else:
                yield {"type": "file", "state": "verified", **found.keys}
    except DcmtoolsError as problem:
        yield problem.record(**path_keys(path))


def _verify(found: Found, known: _Sources, listed: set[str] | None) -> None:
    if found.read(128, 4) != b"DICM" or found.name.rpartition(b"/")[2] == b"DICOMDIR":
        identity, uids = known.identity(frozenset())
        _check_bytes(_other(found), found.name, identity, uids)
        return
    with _inflated(found) as (plain, beside):
        plain.file.seek(0)
        with quiet():
            data_set = dcmread(plain.file, stop_before_pixels=True)
            position = plain.file.tell()
        identity, uids = known.identity(_statement(data_set, found, listed))
        parts = chain(((beside, False),), _beside_pixels(plain, data_set, position))
        _check_bytes(parts, found.name, identity, uids)
        with quiet():
            _check_values(data_set, identity)


def _check_bytes(parts: Iterable[tuple[bytes, bool]], name: bytes, identity: Identity, uids: frozenset[bytes]) -> None:
    if identity.is_in(name, uids):
        raise _left("its name")
    if any(identity.is_in(_less_own_words(part), uids, dense=dense) for part, dense in parts):
        raise _left("it")


def _check_values(data_set: Dataset, identity: Identity) -> None:
    """Raises Refused for identity in decoded texts, and for short texts of it that are a whole value.

    Those of one patient can be another's plain words: beside elements for identity they count from three letters on.
    """
    texts = []
    for element in _written(data_set):
        is_own = bool(kind_of(int(element.tag), element.VR))
        for text in _texts(element):
            texts.append(text)
            whole = text.strip().casefold()
            words = {whole, *(re.split(r"[\^=\s]+", whole) if element.VR == "PN" else ())}
            shorts = words & identity.short
            if shorts and (is_own or (element.VR != "CS" and max(map(len, shorts)) >= _LETTERS)):
                raise _left("it")
    if identity.is_in(_less_own_words("\n".join(texts).encode("utf-8", "surrogatepass"))):
        raise _left("it")


def _written(data_set: Dataset) -> Iterator[DataElement]:
    """The elements with text, at any depth; others may have values that pydicom cannot convert."""
    for tag in data_set.keys():  # noqa: SIM118 - to iterate converts
        vr = data_set.get_item(tag).VR or vr_of(int(tag))
        if vr == "SQ":
            for item in data_set[tag].value:
                yield from _written(item)
        elif vr in WRITTEN:
            yield data_set[tag]


@contextmanager
def _inflated(found: Found) -> Iterator[tuple[Found, bytes]]:
    """An instance whose data set is not deflated, and the bytes of the file that are not in it."""
    file = OpenFile(found.read, found.size, found.read(0, _BLOCK))
    meta = meta_of(file)
    if not encoding_in(file, meta).deflated:
        yield found, b""
        return
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    data = inflater.decompress(found.read(meta.offset, found.size), MAX_EXPANDED)
    if not inflater.eof:
        raise BadData("its data set cannot be inflated to its end", cause="truncated")
    with tempfile.TemporaryFile() as held:
        held.write(encode_meta(meta.sop_class, meta.sop_instance, EXPLICIT_VR_LITTLE_ENDIAN) + data)
        held.flush()
        size = held.tell()
        yield Found(found.name, found.keys, held, size), found.read(0, meta.offset) + inflater.unused_data


def _statement(data_set: Dataset, found: Found, listed: set[str] | None) -> frozenset[str]:
    """The codes by which an instance was made, after a look at what else must be true of it."""
    if any(found.read(0, 128)):
        raise _left("its preamble")
    if data_set.get("PatientIdentityRemoved") != "YES" or "LongitudinalTemporalInformationModified" not in data_set:
        raise Refused("it does not say that identity was removed", cause="verify")
    if listed is not None and str(data_set.SOPInstanceUID) not in listed:
        raise Refused("it is not in the crosswalk", cause="verify")
    return frozenset(str(code.CodeValue) for code in data_set.get("DeidentificationMethodCodeSequence") or ())


def _beside_pixels(found: Found, data_set: Dataset, position: int) -> Iterator[tuple[bytes, bool]]:
    """All bytes of an instance but the samples of its pixels, which begin where pydicom says."""
    yield found.read(0, position), False
    is_implicit, is_little = data_set.original_encoding
    order, head = "<" if is_little else ">", 8 if is_implicit else 12
    while position + head <= found.size:
        group, element = unpack(order + "HH", found.read(position, 4))
        if (tag := group << 16 | element) not in _PIXELS:
            break
        (length,) = unpack(order + "I", found.read(position + head - 4, 4))
        start = position + head
        if length == _UNDEFINED:
            yield from frames.beside_samples(found.read, start, found.size)
            position = _behind_fragments(found, start)
            continue
        position = min(start + length, found.size)
        samples = _samples(data_set, tag)
        if samples > position - start:  # what they are is not known then
            samples = 0
        is_dense = not samples or position - start - samples > _FEW
        yield from ((part, is_dense) for part, _ in frames.excess(found.read, start + samples, position))
    yield from ((part, False) for part, _ in frames.excess(found.read, position, found.size))


def _behind_fragments(found: Found, position: int) -> int:
    """The position behind encapsulated pixel data (PS3.5 A.4), or where they are damaged."""
    while position + 8 <= found.size:
        group, element, length = unpack("<HHI", found.read(position, 8))
        if (group, element) != (0xFFFE, 0xE000):
            return position + 8 * ((group, element) == (0xFFFE, 0xE0DD))
        position += 8 + length
    return position


def _samples(data_set: Dataset, tag: int) -> int:
    """The bytes that the samples of native pixels take (PS3.5 8.1.1); 0 when the instance does not tell."""
    try:
        bits = {0x7FE00008: 32, 0x7FE00009: 64}.get(tag) or int(data_set.BitsAllocated)
        samples = 2 if data_set.get("PhotometricInterpretation") == "YBR_FULL_422" else int(data_set.SamplesPerPixel)
        count = int(data_set.Rows) * int(data_set.Columns) * samples * int(data_set.get("NumberOfFrames") or 1)
    except (AttributeError, ValueError, TypeError):
        return 0
    return (count * bits + 7) // 8


def _other(found: Found) -> Iterator[tuple[bytes, bool]]:
    """The bytes of a file that is no instance; of an index the values, since its keys are the standard's words."""
    if found.name.rpartition(b"/")[2] != os.fsencode(INDEX_NAME):
        yield from ((part, False) for part, _ in frames.excess(found.read, 0, found.size))
        return
    for line in found.read(0, found.size).splitlines():
        try:
            yield encode({str(number): value for number, value in enumerate(decode(line).values())}), False
        except ValueError:
            yield line, False


def _less_own_words(data: bytes) -> bytes:
    """Without what an export says of itself: a patient may be called Basic."""
    for words in (METHOD, *CODES.values()):
        data = data.replace(words.encode(), b"")
    return data


def _texts(element: DataElement) -> list[str]:
    value: Any = element.value
    values = value if element.VM > 1 else [value]
    return [str(one) for one in values if one not in {None, ""}]


def _is_own(uid: str) -> bool:
    return bool(uid) and not is_registered(uid)


def _crosswalk(path: Path) -> Iterator[tuple[str, str, str]]:
    try:
        lines = path.read_text("utf-8").splitlines()
        if path.suffix.lower() == ".csv":
            yield from ((row["kind"], row["old"], row["new"]) for row in csv.DictReader(lines))
        else:
            yield from ((row["kind"], row["old"], row["new"]) for row in map(decode, lines))
    except (OSError, ValueError, KeyError):
        raise ConfigurationError(f"{path} is no crosswalk", "give the file that --crosswalk wrote") from None


def _left(where: str) -> Refused:
    return Refused(f"identity of the source is left in {where}", "do not give it away", cause="residue")
