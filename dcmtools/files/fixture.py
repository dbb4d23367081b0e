"""Changed copies of DICOM files for fixtures: attributes set, UIDs replaced; the originals stay as they are.

This is no de-identification: what is not named stays in the copy.
"""

import hmac
import secrets
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dcmtools.model.errors import BadData, UsageError
from dcmtools.model.record import path_keys

if TYPE_CHECKING:
    from pydicom import Dataset

# UIDs of the standard name classes and syntaxes, and mean the same everywhere (PS3.6 A).
_STANDARD = "1.2.840.10008."
_UTF_8 = "ISO_IR 192"


class Fixture:
    """Makes the changed copies of one run; the same UID is replaced by the same new one in all of them.

    `values` are texts by keyword: backslashes between several values, an empty text for none.
    """

    def __init__(self, values: Mapping[str, str], *, new_uids: bool = False) -> None:
        """Raises UsageError for a keyword that is not in the dictionary, or a value that it cannot have."""
        self._values = values
        self._key = secrets.token_bytes(16) if new_uids else b""
        from pydicom import Dataset

        self._set(Dataset())

    def __call__(self, source: Path, copy: Path) -> None:
        """Writes the changed copy of a file; BadData when it cannot be read as a whole."""
        from pydicom import dcmread, dcmwrite

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made = dcmread(source, force=True)
                if self._key:
                    self._replace_uids(made)
                self._set(made)
                made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
                made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
                dcmwrite(copy, made, enforce_file_format=True)
        except (OSError, UsageError):
            raise
        except Exception as problem:
            name = path_keys(source)["path"]
            reason = f"{name}: it cannot be changed ({type(problem).__name__})"
            raise BadData(reason, "see whether it is damaged", cause="not-changed") from problem

    def new_uid(self, uid: str) -> str:
        """The UID that stands for this one in the copies (PS3.5 B.2)."""
        digest = hmac.digest(self._key, uid.encode(), "sha256")[:16]
        return f"2.25.{int.from_bytes(digest, 'big')}"

    def _replace_uids(self, made: "Dataset") -> None:
        for element in made.iterall():
            if element.VR == "UI" and element.value:
                several = element.value if element.VM > 1 else [element.value]
                new = [uid if uid.startswith(_STANDARD) else self.new_uid(uid) for uid in several]
                element.value = new if len(new) > 1 else new[0]

    def _set(self, made: "Dataset") -> None:
        if not all(text.isascii() for text in self._values.values()) and made.get("SpecificCharacterSet") != _UTF_8:
            made.decode()
            made.SpecificCharacterSet = _UTF_8
        for keyword, text in self._values.items():
            _set(made, keyword, text)


def parse(texts: Sequence[str]) -> dict[str, str]:
    """The values by keyword of texts such as PatientID=TEST; UsageError for one that is not written so."""
    values = {}
    for text in texts:
        keyword, equals, value = text.partition("=")
        if not (equals and keyword):
            raise UsageError(f"--set {text[:40]} has no value", "write KEYWORD=VALUE; KEYWORD= empties it")
        values[keyword] = value
    return values


def _set(made: "Dataset", keyword: str, text: str) -> None:
    from pydicom import config
    from pydicom.datadict import dictionary_VR, tag_for_keyword
    from pydicom.dataelem import DataElement

    tag = tag_for_keyword(keyword)
    if tag is None or tag >> 16 in {0, 2}:
        raise UsageError(f"--set {keyword[:64]}: there is no such attribute", "use a keyword such as PatientID")
    vr = dictionary_VR(tag)
    if vr not in _TEXTUAL:
        raise UsageError(f"--set {keyword} cannot be written as a text (its VR is {vr})", "leave it out")
    several = text.split("\\") if "\\" in text and vr not in {"LT", "ST", "UT"} else text
    try:
        number = _TEXTUAL[vr]
        value = several if number is str or several == "" else _numbers(several, number)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            made[tag] = DataElement(tag, vr, value, validation_mode=config.RAISE)
    except (ValueError, TypeError, OverflowError, Warning):
        raise UsageError(f"--set {keyword}: its VR {vr} cannot have that value", "see PS3.5 6.2") from None


def _numbers(text: str | list[str], number: type) -> object:
    return [number(one) for one in text] if isinstance(text, list) else number(text)


# The representations that have a text, and what a value is made into.
_TEXTUAL: dict[str, type] = {
    **dict.fromkeys(
        ("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"), str
    ),
    **dict.fromkeys(("SL", "SS", "SV", "UL", "US", "UV"), int),
    **dict.fromkeys(("FL", "FD"), float),
}
