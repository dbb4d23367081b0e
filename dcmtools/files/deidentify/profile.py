"""What becomes of an element: the Basic Profile with the options that were asked for (PS3.15 E.2, E.3), then one's own.

An action is one letter, as in Table E.1-1 (X, Z, D, U, K), or one of ours for what the letter C means where it stands:

    S  dates moved                   W  harmless words only        P  private block, safe ones stay
    R  another value                 N  a pseudonym                G  graphics, without bitmaps that may be text
    H  kept unless it holds identity                    L  kept if it is a date, a time or a UID
    Q  a sequence: its items are treated element by element, in one of three moods
           keep    by the rules           dummy   and what no rule names gets a dummy       clean   only harmless words
       and, of a content item of a report, clean with its value  told  as it is  or  veiled  by a dummy
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

from dcmtools import __version__
from dcmtools.files.deidentify import table
from dcmtools.files.deidentify.content import VALUES
from dcmtools.files.deidentify.dictionary import ELEMENTS
from dcmtools.files.deidentify.table import Row

Mood = Literal["keep", "dummy", "clean", "told", "veiled"]
Dates = Literal["none", "full", "modified"]

TEXT = frozenset({"LO", "LT", "SH", "ST", "UC", "UT"})
WRITTEN = TEXT | {"AE", "AS", "CS", "PN", "UR"}
_BULK = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
_TIMES = frozenset({"DA", "DT", "TM"})

PATIENT_NAME, PATIENT_ID, ACCESSION, STUDY_ID = 0x00100010, 0x00100020, 0x00080050, 0x00200010
_LENGTH_TO_END = 0x00080001
_URN_CODE, _SCHEME_URL, _CODE_MEANING = 0x00080120, 0x0008010E, 0x00080104
# Of content items: their names, codes that are their values, and units.
_CONCEPTS = frozenset({0x0040A043, 0x0040A168, 0x004008EA})
# What the engine itself writes, whatever stood there.
STATEMENT = (0x00120062, 0x00120063, 0x00120064, 0x00280303)
# Of these what is there in any case: codes are not where pixels may show identity.
SAID = (0x00120062, 0x00120063, 0x00280303)

METHOD = f"dcmtools {__version__}, PS3.15 {table.EDITION}"
# Defined terms of CID 7050 (PS3.16).
CODES = {
    "113100": "Basic Application Confidentiality Profile",
    "113101": "Clean Pixel Data Option",
    "113103": "Clean Graphics Option",
    "113104": "Clean Structured Content Option",
    "113105": "Clean Descriptors Option",
    "113106": "Retain Longitudinal Temporal Information Full Dates Option",
    "113107": "Retain Longitudinal Temporal Information Modified Dates Option",
    "113108": "Retain Patient Characteristics Option",
    "113109": "Retain Device Identity Option",
    "113110": "Retain UIDs Option",
    "113111": "Retain Safe Private Option",
    "113112": "Retain Institution Identity Option",
}


class Action(NamedTuple):
    """What becomes of an element; `mood` is for sequences, `value` for R."""

    letter: str
    mood: Mood = "keep"
    value: str = ""


KEEP, REMOVE, EMPTY, DUMMY = Action("K"), Action("X"), Action("Z"), Action("D")
_RECURSE = Action("Q")
_SEARCHED = Action("H")  # a number, or what should be text and is not written as such


@dataclass(frozen=True)
class Profile:
    """The Basic Profile and its options by the standard's names; `own` is what the user says of single tags."""

    retain_uids: bool = False
    retain_device_identity: bool = False
    retain_institution_identity: bool = False
    retain_patient_characteristics: bool = False
    retain_dates: Dates = "none"
    clean_descriptors: bool = False
    clean_structured_content: bool = False
    clean_graphics: bool = False
    retain_safe_private: bool = False
    pseudonyms: tuple[str, ...] = ()
    own: Mapping[int, Action] = field(default_factory=dict)
    searches_numbers: bool = False  # for a look at a result in which nothing but a number can be identity

    @cached_property
    def columns(self) -> frozenset[str]:
        """The columns of Table E.1-1 that count."""
        asked = {
            "UID": self.retain_uids,
            "DEV": self.retain_device_identity,
            "INS": self.retain_institution_identity,
            "PAT": self.retain_patient_characteristics,
            "FUL": self.retain_dates == "full",
            "MOD": self.retain_dates == "modified",
            "DES": self.clean_descriptors,
            "STR": self.clean_structured_content,
            "GRA": self.clean_graphics,
            "PRI": self.retain_safe_private,
        }
        return frozenset(column for column, is_asked in asked.items() if is_asked)

    @cached_property
    def codes(self) -> tuple[str, ...]:
        """The codes of CID 7050 that say what was done; without 113100 when something was kept that it removes."""
        of_columns = {
            "UID": "113110", "DEV": "113109", "INS": "113112", "PAT": "113108", "FUL": "113106", "MOD": "113107",
            "DES": "113105", "STR": "113104", "GRA": "113103", "PRI": "113111",
        }  # fmt: skip
        basic = () if self.weakened else ("113100",)
        return (*basic, *sorted(of_columns[column] for column in self.columns))

    def codes_of(self, flags: str) -> tuple[str, ...]:
        """The codes for one instance, by what is known of its pixels: YES (no identity), CLEANED, or NO."""
        cleaned = ("113101",) if flags == "CLEANED" else ()
        return tuple(sorted(code for code in (*self.codes, *cleaned) if flags != "NO" or code != "113100"))

    @cached_property
    def weakened(self) -> bool:
        """Whether the user keeps or sets something that the Basic Profile protects."""
        return any(
            action.letter in "KR" and (tag in table.rows() or tag >> 16 & 1 or _vr_of(tag) in {"PN", "UI", *_TIMES, ""})
            for tag, action in self.own.items()
        )

    @cached_property
    def must_go(self) -> frozenset[int]:
        """The tags that cannot be in a result at any place."""
        return frozenset(
            tag for tag, row in table.rows().items() if row.basic == "X" and not self.columns & row.options.keys()
        )

    @property
    def temporal(self) -> str:
        """Longitudinal Temporal Information Modified (0028,0303)."""
        return {"none": "REMOVED", "full": "UNMODIFIED", "modified": "MODIFIED"}[self.retain_dates]

    def action(self, tag: int, vr: str, parent: int, sop_class: str, mood: Mood = "keep") -> Action:
        """What becomes of an element with this VR as it is written ("" where none is) in this sequence (0: in none)."""
        if own := self.own.get(tag):
            return _RECURSE if own.letter == "K" and vr == "SQ" else own
        if mood in {"told", "veiled"}:
            if tag in VALUES:
                return KEEP if mood == "told" else Action("U") if vr == "UI" else DUMMY
            mood = "clean"
        if tag == _CODE_MEANING and mood == "clean" and parent in _CONCEPTS and self.clean_structured_content:
            return _SEARCHED  # codes of content items tell of nobody (PS3.15 E.3.4)
        action = self._action(tag, vr, parent, sop_class, mood)
        if action != KEEP or vr in WRITTEN:
            return action
        is_number = self.searches_numbers and vr in {"DS", "IS"}
        return _SEARCHED if is_number or _vr_of(tag) in WRITTEN else action

    def _action(self, tag: int, vr: str, parent: int, sop_class: str, mood: Mood) -> Action:
        group, element = tag >> 16, tag & 0xFFFF
        if group < 8 or element == 0 or tag == _LENGTH_TO_END:
            return REMOVE  # commands, file meta and directories belong elsewhere; lengths are not true any more
        if group & 1:
            return Action("P") if self.keeps_private(group) else REMOVE
        if group >> 8 in {0x50, 0x60}:
            return Action("G") if "GRA" in self.columns else REMOVE
        known = _vr_of(tag)
        if not known or (known == "SQ") != ((vr or known) == "SQ"):
            return REMOVE  # nobody knows what it is, or a sequence is not written as one
        row = table.rows().get(tag)
        if row is None:
            return self._unlisted(tag, vr or known, known, mood)
        return self._listed(row, tag, vr or known, parent, sop_class, mood)

    def keeps_private(self, group: int) -> bool:
        """Whether something of a private group may stay."""
        return "PRI" in self.columns or any(tag >> 16 == group and own.letter == "K" for tag, own in self.own.items())

    def _listed(self, row: Row, tag: int, vr: str, parent: int, sop_class: str, mood: Mood) -> Action:
        asked = {column: code for column, code in row.options.items() if column in self.columns}
        if "C" in asked.values():
            return self._cleaned(next(column for column, code in asked.items() if code == "C"), vr)
        if "K" in asked.values():
            return Action("Q", mood) if vr == "SQ" else KEEP
        letter = table.resolved(row.basic, tag, parent, sop_class)
        if tag in {PATIENT_NAME, PATIENT_ID} or (tag in _CODED and _CODED[tag] in self.pseudonyms):
            return Action("N")
        if vr == "SQ" and letter in "DU":
            return Action("Q", "dummy" if letter == "D" else mood)
        return Action("U") if vr == "UI" and letter == "D" else Action(letter)

    def _cleaned(self, column: str, vr: str) -> Action:
        """What C means in a column for a VR."""
        if vr == "SQ":
            return Action("Q", "clean")
        if column == "MOD":
            return KEEP if vr == "TM" else Action("S")
        return Action("W") if vr in TEXT or vr == "CS" else DUMMY

    def _unlisted(self, tag: int, vr: str, known: str, mood: Mood) -> Action:  # noqa: PLR0911 - one line a VR
        """What becomes of an element that the table does not have: by its VR, as written and as it should be."""
        vrs = {vr, known}
        if vr == "SQ":
            return Action("Q", mood)
        if tag in table.naming_uids():
            return KEEP
        if "UI" in vrs:
            return KEEP if self.retain_uids else Action("U")
        if "PN" in vrs:
            return DUMMY if mood == "dummy" else EMPTY
        if _TIMES & vrs:
            return self._time(vr, mood)
        if "AE" in vrs or ("UR" in vrs and tag not in {_URN_CODE, _SCHEME_URL}):
            return REMOVE
        return self._in_mood(vr, mood)

    def _time(self, vr: str, mood: Mood) -> Action:
        if self.retain_dates == "full" or (self.retain_dates == "modified" and vr == "TM"):
            return KEEP
        if self.retain_dates == "modified":
            return Action("S")
        return DUMMY if mood == "dummy" else REMOVE

    def _in_mood(self, vr: str, mood: Mood) -> Action:
        if mood == "dummy":
            return REMOVE if vr in _BULK else DUMMY if vr in TEXT or vr in {"AS", "DS", "UR"} else KEEP
        if mood == "clean":
            return REMOVE if vr in _BULK else Action("W") if vr in TEXT - {"SH"} else KEEP
        return KEEP


_CODED = {ACCESSION: "accession", STUDY_ID: "study-id"}


def _vr_of(tag: int) -> str:
    """The VR that the dictionary gives a tag, the first where it gives several; nothing for an unknown tag."""
    entry = ELEMENTS.get(tag)
    return entry[0].split(" or ")[0] if entry else ""


def vr_of(tag: int) -> str:
    """The VR of an element that is written without one."""
    if tag >> 16 & 1:
        return "LO" if 0x10 <= tag & 0xFFFF <= 0xFF else "UN"
    return _vr_of(tag)
