"""Holds a de-identified folder against the files that it came from: whether any of their identity is in it anywhere.

It shares no step with the export but the texts that count as identity and the search for them: sources and results are
read by pydicom, and results are searched as plain bytes.
"""

import csv
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from dcmtools.disk.atomic import TEMPORARY_PREFIX
from dcmtools.disk.part10 import OpenFile, encoding_in, meta_of, opened
from dcmtools.disk.tree import INDEX_NAME
from dcmtools.disk.values import quiet
from dcmtools.files.deidentify import frames
from dcmtools.files.deidentify.identity import Identity, identity_of, kind_of
from dcmtools.files.deidentify.profile import CODES, METHOD
from dcmtools.files.deidentify.table import naming_uids
from dcmtools.model.errors import BadData, ConfigurationError, DcmtoolsError, Refused
from dcmtools.model.record import Record, decode, encode, path_keys

_RETAINED_UIDS, _RETAINED_INSTITUTION = "113110", "113112"
_INSTITUTION = frozenset({0x00080080, 0x00080081, 0x00081040})
_STANDARD = "1.2.840.10008."
_PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_BLOCK, _OVERLAP = 1 << 20, 512


class _Sources:
    """The identity of all sources."""

    def __init__(self) -> None:
        self.values: set[tuple[str, str]] = set()
        self.of_institutions: set[tuple[str, str]] = set()
        self.uids: set[bytes] = set()

    def take(self, path: Path) -> None:
        """Adds the identity of one file; BadData when it cannot be read."""
        try:
            with quiet():
                self._take(dcmread(path, stop_before_pixels=True, force=False))
        except Exception as problem:
            reason = f"{path}: its identity cannot be read ({type(problem).__name__})"
            raise BadData(reason, cause="not-dicom", **path_keys(path)) from problem

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
    """A record for each file below `out`: verified, or an error that tells where identity is left, but not which.

    With a crosswalk each result must be in it, too. Sources that are no DICOM are passed over.
    """
    known = _Sources()
    for source in sources:
        if stop():
            return
        try:
            if isinstance(source, Path):
                known.take(source)
        except BadData:
            continue
    listed = known.add_crosswalk(crosswalk) if crosswalk else None
    if not (known.values or known.uids):
        raise ConfigurationError("there is no identity in the sources to search for", "name the folder of the sources")
    for path in _files(out):
        if stop():
            return
        try:
            _verify(path, out, known, listed)
        except DcmtoolsError as problem:
            yield problem.record(**path_keys(path))
        else:
            yield {"type": "file", "state": "verified", **path_keys(path)}


def _files(out: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(out):
        folders[:] = sorted(name for name in folders if not name.startswith(TEMPORARY_PREFIX))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith(TEMPORARY_PREFIX))


def _verify(path: Path, out: Path, known: _Sources, listed: set[str] | None) -> None:
    name = os.fsencode(path.relative_to(out))
    codes: frozenset[str] = frozenset()
    with opened(path) as (file, _):
        is_dicom = bytes(file.first[128:132]) == b"DICM" and not name.endswith(b"DICOMDIR")
        if is_dicom:
            codes = _statement(path, file, listed)
        identity, uids = known.identity(codes)
        if identity.is_in(name, uids):
            raise _left("its name")
        for part, dense in _beside_pixels(path, file) if is_dicom else _other(path, file):
            if identity.is_in(_less_own_words(part), uids, dense=dense and is_dicom):
                raise _left("it")


def _statement(path: Path, file: OpenFile, listed: set[str] | None) -> frozenset[str]:
    """The codes by which an instance was made, after a look at what else must be true of it."""
    with quiet():
        data_set = dcmread(path, stop_before_pixels=True)
    if any(file.first[:128]):
        raise _left("its preamble")
    if data_set.get("PatientIdentityRemoved") != "YES" or "LongitudinalTemporalInformationModified" not in data_set:
        raise Refused("it does not say that identity was removed", cause="verify")
    if listed is not None and str(data_set.SOPInstanceUID) not in listed:
        raise Refused("it is not in the crosswalk", cause="verify")
    return frozenset(str(code.CodeValue) for code in data_set.get("DeidentificationMethodCodeSequence") or ())


def _beside_pixels(path: Path, file: OpenFile) -> Iterator[tuple[bytes, bool]]:
    """All bytes of an instance but the samples of its pixels; where pydicom says that they begin."""
    meta = meta_of(file)
    if encoding_in(file, meta).deflated:
        with quiet():
            yield _plain(dcmread(path, stop_before_pixels=True)), False
        return
    with quiet():
        data_set = dcmread(path, defer_size=1024)
    pixels = next((data_set.get_item(tag) for tag in sorted(_PIXELS) if tag in data_set), None)
    if pixels is None:
        yield from ((part, False) for part, _ in frames.excess(file.read, 0, file.size))
        return
    start = int(getattr(pixels, "value_tell", 0) or pixels.file_tell or 0)
    yield bytes(file.read(0, start)), False
    if getattr(pixels, "is_undefined_length", False):
        yield from frames.beside_samples(file.read, start, file.size)


def _other(path: Path, file: OpenFile) -> Iterator[tuple[bytes, bool]]:
    """The bytes of a file that is no instance; of an index the values, since its keys are the standard's words."""
    if path.name != INDEX_NAME:
        yield from frames.excess(file.read, 0, file.size)
        return
    for line in bytes(file.read(0, file.size)).splitlines():
        try:
            yield encode({str(number): value for number, value in enumerate(decode(line).values())}), False
        except ValueError:
            yield line, False


def _less_own_words(data: bytes) -> bytes:
    """Without what an export says of itself: a patient may be called Basic."""
    for words in (METHOD, *CODES.values()):
        data = data.replace(words.encode(), b"")
    return data


def _plain(data_set: Dataset) -> bytes:
    return "\n".join(str(element.value) for element in data_set.iterall() if element.VR != "SQ").encode()


def _texts(element: DataElement) -> list[str]:
    value: Any = element.value
    values = value if element.VM > 1 else [value]
    return [str(one) for one in values if one not in {None, ""}]


def _is_own(uid: str) -> bool:
    return bool(uid) and not uid.startswith(_STANDARD)


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
