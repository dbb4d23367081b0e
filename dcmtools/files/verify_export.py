"""Holds a de-identified folder against the files that it came from: whether any of their identity is in it anywhere.

It shares no step with the export but the texts that count as identity and the search for them: sources and results are
read by pydicom, and results are searched as plain bytes.
"""

import os
import re
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from struct import unpack

from pydicom import dcmread
from pydicom.dataset import Dataset

from dcmtools.disk.atomic import TEMPORARY_PREFIX
from dcmtools.disk.part10 import OpenFile, encode_meta, encoding_in, meta_of
from dcmtools.disk.tree import INDEX_NAME
from dcmtools.disk.values import quiet
from dcmtools.files.deidentify import frames
from dcmtools.files.deidentify.identity import Identity, kind_of
from dcmtools.files.deidentify.profile import CODES, METHOD
from dcmtools.files.sources import Sources, Text, texts_of, written_in
from dcmtools.files.unpacked import MAX_EXPANDED, ZIPPED, Found, lists_others, look_into, names_below
from dcmtools.model.errors import BadData, ConfigurationError, DcmtoolsError, NoInput, Refused
from dcmtools.model.record import Record, decode, encode, path_keys
from dcmtools.model.uids import EXPLICIT_VR_LITTLE_ENDIAN

_OURS = "dcmtools "  # with what a De-identification Method of ours begins
_PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_UNDEFINED = 0xFFFFFFFF
_BLOCK, _FEW, _LETTERS = 1 << 20, 4096, 3


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
    known = Sources()
    yield from _learned(known, sources, stop)
    listed = known.add_crosswalk(crosswalk) if crosswalk else None
    if not (known.values or known.uids):
        raise ConfigurationError("there is no identity in the sources to search for", "name the folder of the sources")
    seen = 0
    for path in _listing_last(names_below(out)):
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


def _listing_last(paths: Iterable[Path | OSError]) -> Iterator[Path | OSError]:
    """The paths, with those behind that list others."""
    last = []
    for path in paths:
        if isinstance(path, Path) and lists_others(path.name):
            last.append(path)
        else:
            yield path
    yield from last


def _learned(known: Sources, sources: Iterable[Path | Record], stop: Callable[[], bool]) -> Iterator[Record]:
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


def _looked_at(path: Path, out: Path, known: Sources, listed: set[str] | None) -> Iterator[Record]:
    """The records of a file and of what is packed in it."""
    try:
        for found in look_into(path, out):
            try:
                more = _verify(found, known, listed)
            except DcmtoolsError as problem:
                yield problem.record(**found.keys)
            except Exception as problem:  # noqa: BLE001 - pydicom raises whatever comes of a damaged file
                reason = f"it cannot be read ({type(problem).__name__})"
                yield BadData(reason, cause="unreadable").record(**found.keys)
            else:
                yield {"type": "file", "state": "verified", **found.keys, **more}
    except DcmtoolsError as problem:
        yield problem.record(**path_keys(path))


def _verify(found: Found, known: Sources, listed: set[str] | None) -> Record:
    """What is to be said of a file beside that it is verified; Refused for identity in it."""
    if found.read(128, 4) != b"DICM" or found.name.rpartition(b"/")[2] == b"DICOMDIR":
        lists = lists_others(os.fsdecode(found.name)) or found.read(0, 4).startswith(ZIPPED)
        identity, uids = known.identity(known.codes if lists else frozenset())
        parts = ((known.less_passed(part) if lists else part, dense) for part, dense in _other(found, known))
        _check_bytes(parts, found.name, identity, uids)
        return {}
    with _inflated(found) as (plain, beside):
        data_set, position = _read(plain)
        codes = _statement(data_set, found, listed)
        known.note(codes)
        identity, uids = known.identity(codes)
        _check_bytes(chain(((beside, False),), _beside_pixels(plain, data_set, position)), found.name, identity, uids)
        header = plain.read(0, position)
        if not _is_clean(header, data_set, identity, uids, frozenset()):
            data_set, _ = _read(plain)  # the elements as they are written: to look at them converts them
            with quiet():
                excused, header = known.less_excused(data_set, codes, header)
            if not _is_clean(header, data_set, identity, uids, excused):
                raise _left("it")
    return {} if data_set.PatientIdentityRemoved == "YES" else {"pixels": "unchecked"}


def _read(found: Found) -> tuple[Dataset, int]:
    """The data set before its pixels, and where these begin."""
    found.file.seek(0)
    with quiet():
        return dcmread(found.file, stop_before_pixels=True), found.file.tell()


def _is_clean(
    header: bytes, data_set: Dataset, identity: Identity, uids: frozenset[bytes], excused: AbstractSet[Text]
) -> bool:
    if identity.is_in(_less_own_words(header), uids):
        return False
    with quiet():
        return not _is_in_values(data_set, identity, excused)


def _check_bytes(parts: Iterable[tuple[bytes, bool]], name: bytes, identity: Identity, uids: frozenset[bytes]) -> None:
    if identity.is_in(name, uids):
        raise _left("its name")
    if any(identity.is_in(_less_own_words(part), uids, dense=dense) for part, dense in parts):
        raise _left("it")


def _is_in_values(data_set: Dataset, identity: Identity, excused: AbstractSet[Text]) -> bool:
    """Whether identity stands in decoded texts, or short texts of it are a whole value.

    Those of one patient can be another's plain words: beside elements for identity they count from three letters on.
    """
    texts = []
    for element in written_in(data_set):
        is_own = bool(kind_of(int(element.tag), element.VR))
        for text in texts_of(element):
            if (int(element.tag), text) in excused:
                continue
            texts.append(text)
            whole = text.strip().casefold()
            words = {whole, *(re.split(r"[\^=\s]+", whole) if element.VR == "PN" else ())}
            shorts = words & identity.short
            if shorts and (is_own or (element.VR != "CS" and max(map(len, shorts)) >= _LETTERS)):
                return True
    return identity.is_in(_less_own_words("\n".join(texts).encode("utf-8", "surrogatepass")))


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
    if "LongitudinalTemporalInformationModified" not in data_set or not _says_how(data_set):
        raise Refused("it does not say that identity was removed", cause="verify")
    if listed is not None and str(data_set.SOPInstanceUID) not in listed:
        raise Refused("it is not in the crosswalk", cause="verify")
    return frozenset(str(code.CodeValue) for code in data_set.get("DeidentificationMethodCodeSequence") or ())


def _says_how(data_set: Dataset) -> bool:
    """Whether identity was removed by its own words; or all but what pixels may show, which the user allowed."""
    methods = data_set.get("DeidentificationMethod") or ""
    is_ours = any(str(one).startswith(_OURS) for one in ([methods] if isinstance(methods, str) else methods))
    return data_set.get("PatientIdentityRemoved") == "YES" or (
        data_set.get("PatientIdentityRemoved") == "NO" and is_ours
    )


def _beside_pixels(found: Found, data_set: Dataset, position: int) -> Iterator[tuple[bytes, bool]]:
    """The bytes of an instance beside the samples of its pixels, which begin where pydicom says."""
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


def _other(found: Found, known: Sources) -> Iterator[tuple[bytes, bool]]:
    """The bytes of a file that is no instance; of an index the values, since its keys are the standard's words."""
    if found.name.rpartition(b"/")[2] != os.fsencode(INDEX_NAME):
        yield from ((part, False) for part, _ in frames.excess(found.read, 0, found.size))
        return
    for line in found.read(0, found.size).splitlines():
        try:
            record = decode(line)
            values = (value for key, value in record.items() if not known.is_excused_value(key, value))
            yield encode({str(number): value for number, value in enumerate(values)}), False
        except ValueError:
            yield line, False


def _less_own_words(data: bytes) -> bytes:
    """Without what an export says of itself: a patient may be called Basic."""
    for words in (METHOD, *CODES.values()):
        data = data.replace(words.encode(), b"")
    return data


def _left(where: str) -> Refused:
    return Refused(f"identity of the source is left in {where}", "do not give it away", cause="residue")
