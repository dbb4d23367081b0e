"""What the sources of an export say of persons; and of their words, which are those of others, too, and tell of nobody.

The sources of many patients are held against each result. One of them may be called Philips, and have an identifier of
five digits which is a repetition time of another: what a file has in the same element that is not of its own patient
tells of nobody. Texts that people write (those of Clean Descriptors) are never excused so.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from struct import pack
from typing import Any

from pydicom import dcmread
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset

from dcmtools.disk.dataset import LONG_VRS
from dcmtools.disk.part10 import meta_of, opened
from dcmtools.disk.values import quiet
from dcmtools.files.deidentify.identity import Identity, identity_of, kind_of
from dcmtools.files.deidentify.profile import WRITTEN, vr_of
from dcmtools.files.deidentify.pseudonyms import is_registered
from dcmtools.files.deidentify.table import naming_uids, rows
from dcmtools.model.errors import BadData, ConfigurationError
from dcmtools.model.keys import BY_KEYWORD
from dcmtools.model.record import decode, path_keys

RETAINED_UIDS, RETAINED_INSTITUTION, RETAINED_DATES = "113110", "113112", frozenset({"113106", "113107"})
_INSTITUTION = frozenset(tag for tag, row in rows().items() if "INS" in row.options)
_TIMES = frozenset({"DA", "DT", "TM"})
_CONTENT = 0x0040A730
_NUMBERS = frozenset({"DS", "IS"})

_KEYWORDS = tuple(keyword.encode() for keyword in BY_KEYWORD)

Text = tuple[int, str]  # the tag of an element and one of its values


class Sources:
    """The identity of all sources."""

    def __init__(self) -> None:
        self.values: set[tuple[str, str]] = set()
        self.of_institutions: set[tuple[str, str]] = set()
        self.of_sites: set[Text] = set()  # as they stand in their elements
        self.uids: set[bytes] = set()
        self._paths: list[Path] = []
        self._of_others: frozenset[Text] | None = None
        self._codes: frozenset[str] | None = None
        self._passed: set[bytes] = set()

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
        self._paths.append(path)

    def _take(self, data_set: Dataset) -> None:
        for element in data_set:
            if element.VR == "SQ":
                for item in element.value:
                    self._take(item)
            elif element.VR == "UI":
                if int(element.tag) not in naming_uids():
                    self.uids |= {uid.encode("latin_1", "replace") for uid in texts_of(element) if _is_own(uid)}
                continue
            if int(element.tag) in _INSTITUTION:
                self.of_sites |= {(int(element.tag), text) for text in texts_of(element)}
            if (kind := kind_of(int(element.tag), element.VR)) and kind != "overlay":
                values = self.of_institutions if int(element.tag) in _INSTITUTION else self.values
                values |= {(kind, text) for text in texts_of(element)}

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
        values = self.values if RETAINED_INSTITUTION in codes else self.values | self.of_institutions
        return identity_of(frozenset(values)), frozenset(() if RETAINED_UIDS in codes else self.uids)

    def less_excused(self, data_set: Dataset, codes: frozenset[str], header: bytes) -> tuple[frozenset[Text], bytes]:
        """The texts of a result that tell of nobody, and its bytes without their elements."""
        is_implicit, is_little = data_set.original_encoding
        texts, elements = set(), []
        for raw, element in _with_texts(data_set):
            found = {(int(element.tag), text) for text in texts_of(element)}
            if all(self._is_excused(element, text, codes) for text in found):
                texts |= found
                self._passed |= {text.encode() for _, text in found if element.VR != "UI" and len(text) > 3}
                elements.append(_written(raw, is_implicit=bool(is_implicit), big=not is_little))
        for one in sorted(elements, key=len, reverse=True):
            header = header.replace(one, b"")
        return frozenset(texts), header

    def _is_excused(self, element: DataElement, text: Text, codes: frozenset[str]) -> bool:
        if element.VR in _TIMES:
            return bool(RETAINED_DATES & codes)
        if element.VR == "UI":
            return RETAINED_UIDS in codes
        if text[0] in _INSTITUTION and RETAINED_INSTITUTION in codes:
            return text in self.of_sites
        return text in self.of_others

    def note(self, codes: frozenset[str]) -> None:
        """Notes what a result says that it retains."""
        self._codes = codes if self._codes is None else self._codes & codes

    @property
    def codes(self) -> frozenset[str]:
        """What all results that were looked at say that they retain: so do those that list them."""
        return self._codes or frozenset()

    def less_passed(self, data: bytes) -> bytes:
        """Bytes that list results, without the values that tell of nobody in these, and without names of attributes."""
        for one in sorted((*self._passed, *_KEYWORDS), key=len, reverse=True):
            data = data.replace(one, b"")
        return data

    def is_excused_value(self, keyword: str, value: object) -> bool:
        """Whether a value of an index tells of nobody."""
        key = BY_KEYWORD.get(keyword)
        if key is None or not isinstance(value, str) or kind_of(key.tag, key.vr) == "birth":
            return False
        if key.vr in _TIMES:
            return bool(RETAINED_DATES & self.codes)
        if key.vr == "UI":
            return RETAINED_UIDS in self.codes
        if key.tag in _INSTITUTION and RETAINED_INSTITUTION in self.codes:
            return (key.tag, value) in self.of_sites
        return (key.tag, value) in self.of_others

    @property
    def of_others(self) -> frozenset[Text]:
        """Words of some identity that a source of another patient has in an element: sources are read again for it."""
        if self._of_others is None:
            everybody, _ = self.identity(frozenset())
            with quiet():
                self._of_others = frozenset(one for path in self._paths for one in _words_of(path, everybody))
        return self._of_others


def _words_of(path: Path, everybody: Identity) -> Iterator[Text]:
    """The texts of a file that have somebody's words or numbers, but not its own patient's."""
    data_set = dcmread(path, stop_before_pixels=True, force=True)
    texts = [
        (int(element.tag), text)
        for element in written_in(data_set, _NUMBERS)
        if not kind_of(int(element.tag), element.VR) and "DES" not in _options(int(element.tag))
        for text in texts_of(element)
    ]
    if not any(_holds(everybody, text) for _, text in texts):
        return
    own = Sources()
    own._take(data_set)  # noqa: SLF001 - of the same kind
    of_patient, _ = own.identity(frozenset())
    yield from (one for one in texts if _holds(everybody, one[1]) and not _holds(of_patient, one[1]))


def _holds(identity: Identity, text: str) -> bool:
    return identity.is_in_value(text.encode("utf-8", "surrogatepass"), text)


def _options(tag: int) -> set[str]:
    row = rows().get(tag)
    return set(row.options) if row else set()


def written_in(data_set: Dataset, more: frozenset[str] = frozenset()) -> Iterator[DataElement]:
    """The elements with text, at any depth; others may have values that pydicom cannot convert."""
    for tag in data_set.keys():  # noqa: SIM118 - to iterate converts
        vr = data_set.get_item(tag).VR or vr_of(int(tag))
        if vr == "SQ":
            for item in data_set[tag].value:
                yield from written_in(item, more)
        elif vr in WRITTEN or vr in more:
            yield data_set[tag]


def _with_texts(data_set: Dataset) -> Iterator[tuple[RawDataElement, DataElement]]:
    """The elements whose value is a text or a number in letters, as they were read, and converted."""
    for tag in data_set.keys():  # noqa: SIM118
        raw: DataElement | RawDataElement | None = data_set.get_item(tag)
        vr = (raw and raw.VR) or vr_of(int(tag))
        if vr == "SQ":
            if int(tag) != _CONTENT:  # where a date may be said to be that of the birth
                for item in data_set[tag].value:
                    yield from _with_texts(item)
        elif (vr in WRITTEN or vr in _NUMBERS or vr in _TIMES or vr == "UI") and isinstance(raw, RawDataElement):
            yield raw, data_set[tag]


def _written(raw: RawDataElement, *, is_implicit: bool, big: bool) -> bytes:
    """An element as it stands in the file."""
    order, value, vr = ">" if big else "<", raw.value or b"", (raw.VR or "").encode()
    head = pack(order + "HH", int(raw.tag) >> 16, int(raw.tag) & 0xFFFF)
    if is_implicit or raw.is_implicit_VR:
        return head + pack(order + "I", len(value)) + value
    if vr in LONG_VRS:
        return head + vr + b"\0\0" + pack(order + "I", len(value)) + value
    return head + vr + pack(order + "H", len(value)) + value


def texts_of(element: DataElement) -> list[str]:
    """The values of an element as texts, without empty ones."""
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
