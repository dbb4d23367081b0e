"""The identity that a file came with, as texts to search for; and the search, over bytes of any encoding.

Strong texts are searched for anywhere: parts of names of four letters and more, whole names, identifiers of five
characters and more. Shorter ones would be found in any text; they count only where they are a whole value. UIDs count
when they are found whole. Case does not count. What is found is what was written: no misspelling, no translation, no
picture.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import permutations
from urllib.parse import quote

from dcmtools.files.deidentify.loose import BETWEEN, MARKS, SHORTEST, UNSEEN, Loose, loose_of

# Who and where the patient is: values of these, beside all of VR PN, are searched for in what is written.
_IDENTIFIERS = frozenset(
    {
        0x00080050,  # Accession Number
        0x00080094, 0x00102154, 0x00102155, 0x00401103,  # telephone numbers and addresses
        0x00100020, 0x00101000, 0x00101002, 0x00101090,  # Patient ID and others, Medical Record Locator
        0x00120040, 0x00120042,  # Clinical Trial Subject (Reading) ID
        0x00200010,  # Study ID
        0x00380010, 0x00380060,  # Admission ID, Service Episode ID
        0x00400009, 0x00400253, 0x00401001, 0x00402016, 0x00402017,  # of procedures, requests and orders
    }
)  # fmt: skip
_NAMES = frozenset(
    {
        0x00080080, 0x00080081, 0x00081040,  # institution, its address and department
        0x00080092, 0x00401102,  # addresses of physicians and persons
        0x00101040, 0x00102299,  # Patient's Address, Responsible Organization
        0x0038001E, 0x00380300, 0x00380400,  # where the patient lives and is
    }
)  # fmt: skip
_BIRTH_DATE = 0x00100030
_OVERLAY_BIT_POSITION = 0x0102

_LETTERS, _CHARACTERS = 4, 5
# Python's names of the character sets of PS3.3 C.12.1.1.2, and of two that are in use beside them.
_CODECS = (
    "latin_1", "iso8859_2", "iso8859_3", "iso8859_4", "iso8859_5", "iso8859_6", "iso8859_7", "iso8859_8", "iso8859_9",
    "iso8859_15", "tis_620", "gb18030", "euc_kr", "shift_jis", "euc_jp", "iso2022_jp", "iso2022_jp_2",
)  # fmt: skip
_ESCAPE = re.compile(rb"\x1b[$(.\-)]{1,2}[@-Za-z]")  # between character sets (ISO/IEC 2022)
_BLOCK, _OVERLAP = 4 << 20, 512  # no text that is searched for is longer
_IN_ANY_BYTES = 6  # of a text that is searched for among bytes that may be any
_BYTES = 3  # an encoded text of fewer would be found by chance
_ROOT = 12
_SEPARATORS = ("^", " ", "_", ", ", "")
_SHORT_WORDS = 4  # of one name, of which each two are searched for in either order
_PART = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")
_NUMBER = re.compile("[0-9]{6,}")  # of an identifier that has letters, too
_NO_DATE = "19000101"  # what stands for no date, in results of this profile, too
# How letters are written that have no other sign: in German, in Danish and Norwegian, and at airports.
_TWO_LETTERS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "å": "aa", "ø": "oe", "æ": "ae", "þ": "th", "ñ": "nn"})
_ONE_LETTER = str.maketrans({"ø": "o", "æ": "ae", "œ": "oe", "ł": "l", "đ": "d", "ð": "d", "ħ": "h", "\u0131": "i"})
_FIRST_OF_THE_EAST = "\u2e80"
_NOTHING = dict.fromkeys(map(ord, UNSEEN))
_LONG_NUMBER, _UID_LENGTH = 8, 64
_NUMBERS_BEFORE, _NUMBERS_BEHIND = re.compile(rb"[0-9.]*\Z"), re.compile(rb"[0-9.]*")
_SIGNS = frozenset([b"", b"\0", b"\\", b" ", b"-", b"+"])  # behind which a decimal fraction may begin with its point
_STANDARD = b"1.2.840.10008."
_UIDS = re.compile(rb"[0-9]+(?:\.[0-9]+)+")
# Parts of names and addresses that are in every text: they name nobody.
_COMMON = frozenset(
    [
        "anon",
        "anonymous",
        "anonymized",
        "anonymised",
        "patient",
        "unknown",
        "none",
        "null",
        "test",
        "phantom",
        "name",
        "doctor",
        "prof",
        "hospital",
        "clinic",
        "klinik",
        "klinikum",
        "university",
        "universitaet",
        "universität",
        "institute",
        "institut",
        "department",
        "radiology",
        "radiologie",
        "medical",
        "medicine",
        "center",
        "centre",
        "zentrum",
        "street",
        "strasse",
        "straße",
        "road",
        "avenue",
        "city",
        "saint",
        "santa",
        "north",
        "south",
        "east",
        "west",
        "general",
        "imaging",
        "health",
        "care",
        "school",
        "research",
        "removed",
        "head",
        "brain",
        "body",
        "neck",
        "chest",
        "abdomen",
        "spine",
        "pelvis",
        "knee",
        "male",
        "female",
        "left",
        "right",
        "service",
        # Before and behind names.
        "mr",
        "mrs",
        "ms",
        "miss",
        "dr",
        "herr",
        "frau",
        "mme",
        "mlle",
        "jr",
        "md",
        "phd",
    ]
)
# The defined terms of Modality (PS3.3 C.7.3.1.1.1) that are as short as names are which count as whole values only.
MODALITIES = frozenset(
    b"AR AU BDUS BI BMD CR CT DG DX DOC ECG EPS ES FID GM HC HD IO IOL IVUS KER KO LEN LS MG MR M3D NM OAM OCT OP OPM "
    b"OPT OPV OSS OT PR PT PX REG RF RG RWV SEG SM SMR SR SRF TG US VA XA XC".split()
)


def kind_of(tag: int, vr: str) -> str:
    """Whether the value of an element is identity: a name, an id, a date of birth, a uid, or nothing of these."""
    if vr == "PN" or tag in _NAMES:
        return "name"
    if tag in _IDENTIFIERS:
        return "id"
    if tag == _BIRTH_DATE:
        return "birth"
    return "overlay" if tag >> 24 == 0x60 and tag & 0xFFFF == _OVERLAY_BIT_POSITION else ""


@dataclass(frozen=True)
class Identity:
    """Texts of identity: `strong` ones are searched for anywhere, `short` ones as whole values.

    `kept` are whole values that the user wants kept; they count nowhere, while what they share with others does.
    """

    strong: frozenset[str] = frozenset()
    short: frozenset[str] = frozenset()
    kept: frozenset[str] = frozenset()
    loose: frozenset[Loose] = frozenset()

    @cached_property
    def words(self) -> frozenset[str]:
        """All single words of it, for texts that are cleaned word by word."""
        return frozenset(
            word for text in self.strong | self.short for word in (text, *_PART.findall(text)) if len(word) > 1
        )

    @cached_property
    def _needles(self) -> tuple[tuple[bytes, bool], ...]:
        """The strong texts as bytes in lower case, each with whether digits beside it make it another number."""
        return _fewest((needle, text.isdecimal()) for text in sorted(self.strong) for needle in _written(text))

    @cached_property
    def _long_needles(self) -> tuple[tuple[bytes, bool], ...]:
        return _fewest(
            (needle, text.isdecimal())
            for text in sorted(self.strong)
            for needle in _written(text)
            if len(needle) >= _IN_ANY_BYTES
        )

    @cached_property
    def _whole(self) -> frozenset[str]:
        return self.short | self.strong

    @cached_property
    def asks_for_decoded_values(self) -> bool:
        """Whether a search of plain bytes may miss some of it: whole values, and what may be in any character set."""
        return bool(self.short) or not all(map(str.isascii, self.strong))

    def is_in(
        self, data: bytes, uids: AbstractSet[bytes] = frozenset(), *, dense: bool = False, lenient: bool = False
    ) -> bool:
        """Whether a strong text or one of the UIDs stands anywhere in these bytes, in any case, as UTF-16 or escaped.

        `dense` are bytes that may be any: there a text of less than six bytes would be found by chance. `lenient`
        counts a number also where other digits are beside it: in a file those may be of the next tag, or of a length.
        """
        if len(data) > 2 * _BLOCK:  # in parts that overlap: each is copied more than once
            parts = (data[at : at + _BLOCK + _OVERLAP] for at in range(0, len(data), _BLOCK))
            return any(self.is_in(part, uids, dense=dense, lenient=lenient) for part in parts)
        low = data.lower()
        if self._is_in(low, uids, dense=dense, lenient=lenient):
            return True
        return b"\0" in low and self._is_in(low.replace(b"\0", b""), uids, dense=dense, lenient=lenient)

    def _is_in(self, low: bytes, uids: AbstractSet[bytes], *, dense: bool, lenient: bool) -> bool:
        needles = self._long_needles if dense else self._needles
        if _has(low, needles, lenient=lenient) or _has_uid(low, uids):
            return True
        return not dense and self._is_in_other_forms(low, lenient=lenient)

    def _is_in_other_forms(self, low: bytes, *, lenient: bool) -> bool:
        """Whether a date or an identifier stands there with other signs between its parts, or full-width letters do."""
        if not low.isascii() and any(mark in low for mark in MARKS):
            plain = _plain(low.decode("utf-8", "replace")).lower().encode("utf-8", "replace")
            if _has(plain, self._needles, lenient=lenient):
                return True
        if b"\x1b" in low and _has(_ESCAPE.sub(b"", low), self._needles, lenient=lenient):
            return True
        if not self.loose:
            return False
        bare = low.translate(None, BETWEEN)
        if len(bare) < SHORTEST:
            return False
        found = [one for one in self.loose for sign in one.signs if sign in bare]
        found += [one for one in self.loose if one.year and one.year in low]
        return any(one.is_in(low, lenient=lenient) for one in found)

    def is_in_value(self, raw: bytes, text: str, uids: AbstractSet[bytes] = frozenset()) -> bool:
        """Whether the value of a text element is, or holds, any of it."""
        if text.strip("\0 ") in self.kept:
            return False
        folded = _plain(text).casefold()
        parts = (part.strip(" \0\t\r\n") for part in folded.split("\\"))
        whole = any(part in self._whole or part.replace("^", " ").strip() in self._whole for part in parts)
        if whole or self.is_in(raw, uids):
            return True
        is_the_same = raw.isascii() and b"\x1b" not in raw
        return not is_the_same and self.is_in(folded.encode("utf-8", "surrogatepass"))


def _weight(text: str) -> int:
    """How many letters a text is worth: an ideograph, a kana or a syllable says as much as two."""
    return len(text) + sum(letter >= _FIRST_OF_THE_EAST for letter in text)


def _plain(text: str) -> str:
    """A text in letters of one width, without what nobody sees in it."""
    return unicodedata.normalize("NFKC", text).translate(_NOTHING)


@lru_cache(maxsize=256)
def identity_of(values: frozenset[tuple[str, str]], kept: frozenset[str] = frozenset()) -> Identity:
    """The identity that values of these kinds make; `kept` are whole values that the user wants kept."""
    strong: set[str] = set()
    short: set[str] = set()
    loose: set[Loose] = set()
    for kind, text in values:
        loose.update(loose_of(kind, text))
        for one in _texts(kind, text):
            is_strong = _weight(one) >= (_LETTERS if kind == "name" else _CHARACTERS)
            (strong if is_strong else short).add(one)
    return Identity(frozenset(strong), frozenset(short), kept, frozenset(loose))


def _texts(kind: str, text: str) -> Iterator[str]:
    text = unicodedata.normalize("NFC", text)
    # Folded for the comparison of texts; in lower case, too, for that of bytes: there is no way back from ss to ß.
    forms = {text.casefold()} if text.isascii() else {text.casefold(), text.lower(), *_plainer(kind, text)}
    for form in sorted(forms):
        yield from _of_form(kind, form)


def _plainer(kind: str, text: str) -> Iterator[str]:
    """A text as it is written where there are no such letters: full-width ones as others, names in ASCII."""
    yield (plain := unicodedata.normalize("NFKC", text).casefold())
    if kind != "name":
        return
    for table in ({}, _TWO_LETTERS):
        letters = unicodedata.normalize("NFD", plain.translate(table).translate(_ONE_LETTER))
        yield "".join(letter for letter in letters if not unicodedata.combining(letter))


def _of_form(kind: str, text: str) -> Iterator[str]:
    for value in text.split("\\"):
        folded = value.strip(" \0")
        if kind == "name":
            yield from _names(folded)
        elif kind == "birth":
            digits = "".join(filter(str.isdecimal, folded))
            if len(digits) == 8 and digits != _NO_DATE:
                yield from (
                    digits,
                    f"{digits[:4]}-{digits[4:6]}-{digits[6:]}",
                    f"{digits[6:]}.{digits[4:6]}.{digits[:4]}",
                )
        elif folded and folded not in _COMMON and folded.strip("0-. "):
            yield folded
            if (bare := "".join(filter(str.isalnum, folded))) != folded and bare.isdecimal() and bare.isascii():
                yield bare
            yield from _numbers(folded)


def _numbers(folded: str) -> Iterator[str]:
    """The long numbers in an identifier, also without the zeros before them; no dates, of which files are full."""
    for run in _NUMBER.findall(folded):
        bare = run.lstrip("0")
        if not _is_date(run) and len(bare) >= _CHARACTERS:
            yield run
            if len(bare) > _CHARACTERS:
                yield bare


def _is_date(digits: str) -> bool:
    """Whether digits are those of a date, of which files are full."""
    return (
        len(digits) == 8 and digits[:2] in {"19", "20"} and "01" <= digits[4:6] <= "12" and "01" <= digits[6:] <= "31"
    )


def _names(folded: str) -> Iterator[str]:
    """The parts of a name that name somebody, and the whole in the ways in which it is often written."""
    for group in folded.split("="):
        parts = [part for part in re.split(r"[\^,;/_\s]+", group) if part]
        words = [word for part in parts for word in _words(part)]
        yield from dict.fromkeys(words)
        if len(parts) > 1 and not _COMMON.issuperset(parts):
            yield from {separator.join(parts) for separator in _SEPARATORS}
        # Nothing else finds two words that are both too short to be searched for.
        short = [word for word in dict.fromkeys(words) if len(word) < _LETTERS]
        for one, other in permutations(short[:_SHORT_WORDS], 2):
            separators = _SEPARATORS if len(one + other) > _LETTERS else _SEPARATORS[:-1]
            yield from {separator.join((one, other)) for separator in separators}


def _words(part: str) -> Iterator[str]:
    """A part of a name without what surrounds it, and each run of letters in it: either half of a double name."""
    letters = "".join(char if unicodedata.category(char)[0] in "LM" else " " for char in part)
    for word in (part.strip(".'\"()-"), *letters.split()):
        if any(map(str.isalpha, word)) and word not in _COMMON and len(word) > 1:
            yield word


def _fewest(needles: Iterable[tuple[bytes, bool]]) -> tuple[tuple[bytes, bool], ...]:
    """Those of which no other is a part: where they are, that one is."""
    found = dict(needles)
    texts = [needle for needle, is_number in found.items() if not is_number]
    return tuple(
        (needle, is_number)
        for needle, is_number in found.items()
        if not any(text in needle and text != needle for text in texts)
    )


def _written(text: str) -> Iterator[bytes]:
    """A text in the encodings and escapes in which it may stand, in ASCII lower case."""
    forms = {text} if text.isascii() else {form for one in (text, text.upper(), text.title()) for form in _normal(one)}
    for form in forms:
        yield form.encode("utf-8", "surrogatepass").lower()
        if not form.isascii():
            yield from _encoded(form)
        if quote(form) != form:
            yield quote(form).lower().encode()


def _normal(text: str) -> tuple[str, str]:
    return unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)


def _encoded(text: str) -> Iterator[bytes]:
    yield json.dumps(text)[1:-1].lower().encode()
    yield "".join(char if char.isascii() else f"&#{ord(char)};" for char in text).lower().encode()
    yield "".join(char if char.isascii() else f"&#x{ord(char):x};" for char in text).lower().encode()
    yield text.encode("utf-16-le", "surrogatepass").lower()
    yield text.encode("utf-16-be", "surrogatepass").lower()
    for codec in _CODECS:
        try:
            raw = _ESCAPE.sub(b"", text.encode(codec))
        except UnicodeEncodeError:
            continue
        if len(raw) >= _BYTES:
            yield raw.lower()


def _has_uid(data: bytes, uids: AbstractSet[bytes]) -> bool:
    """Whether one of these UIDs stands there as a whole; to look for the roots first takes a tenth of the time."""
    roots = {uid[:_ROOT] for uid in uids}
    return any(root in data for root in roots) and not uids.isdisjoint(_UIDS.findall(data))


def uids_in(data: bytes) -> set[bytes]:
    """All that could be found there as a UID, whosoever it is."""
    return {*_UIDS.findall(data), *(_UIDS.findall(data.replace(b"\0", b"")) if b"\0" in data else ())}


def _has(data: bytes, needles: Iterable[tuple[bytes, bool]], *, lenient: bool = False) -> bool:
    for needle, is_number in needles:
        at = data.find(needle)
        while at >= 0:
            if lenient or not (is_number and _is_part_of_number(data, at, at + len(needle))):
                return True
            at = data.find(needle, at + 1)
    return False


def _is_part_of_number(data: bytes, start: int, end: int) -> bool:
    """Whether what stands there is only a part of another number, which holds these digits by chance.

    An identifier 12345 is not in 0.12345, 123456 or 2.25.12345678, but it is in No.12345 and 1.2.12345.6. One of eight
    digits and more, or a date, may have others behind it: a time, a number of a sample.
    """
    before, after, is_long = data[max(0, start - 2) : start], data[end : end + 2], end - start >= _LONG_NUMBER
    if before[-1:].isdigit():
        return True
    if before[-1:] == b"." and before[:-1].isdigit():
        return not _is_component(data, start, end)
    if is_long:
        return False
    if before[-1:] == b"." and before[:-1] in _SIGNS:
        return True
    return after[:1].isdigit() or (after[:1] == b"." and after[1:].isdigit() and not _is_component(data, start, end))


def _is_component(data: bytes, start: int, end: int) -> bool:
    """Whether digits are a whole component of a UID, and not of one of the standard's."""
    before = _NUMBERS_BEFORE.search(data[max(0, start - _UID_LENGTH) : start])
    after = _NUMBERS_BEHIND.match(data[end : end + _UID_LENGTH])
    left, right = before[0] if before else b"", after[0] if after else b""
    return not right[:1].isdigit() and (left + right).count(b".") > 1 and not left.startswith(_STANDARD)
