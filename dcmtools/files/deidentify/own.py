"""What the user says of single elements: --keep TAG, --remove TAG, --replace TAG=VALUE."""

import re
from collections.abc import Iterable

from dcmtools.files.deidentify.dictionary import ELEMENTS
from dcmtools.files.deidentify.profile import STATEMENT, Action
from dcmtools.model.errors import UsageError

_TAG = re.compile(r"\(?([0-9A-Fa-f]{4}),?([0-9A-Fa-f]{4})\)?\Z")
# What an instance cannot be without, or what is the engine's own to say.
_FIXED = frozenset({*STATEMENT, 0x00080005, 0x00080016, 0x00080018, 0x0020000D, 0x0020000E, 0x7FE00010})


def own_actions(keep: Iterable[str], remove: Iterable[str], replace: Iterable[str]) -> dict[int, Action]:
    """Tag -> action, in the order of the tags; UsageError for what names no element, or one twice."""
    found: dict[int, Action] = {}
    for option, texts, letter in (("--keep", keep, "K"), ("--remove", remove, "X"), ("--replace", replace, "R")):
        for text in texts:
            name, equals, value = text.partition("=")
            if bool(equals) != (letter == "R"):
                raise UsageError(f"{option} {text[:60]}: is not {'TAG=VALUE' if letter == 'R' else 'a TAG'}", _EXAMPLES)
            tag = tag_of(name.strip())
            if tag in found:
                raise UsageError(f"{option} {name[:60]}: this element was named before", "name each once")
            if tag in _FIXED and letter != "K":
                raise UsageError(
                    f"{option} {name[:60]}: this element is not yours to change", "see the conformance statement"
                )
            if not value.isascii() or len(value) > 64:
                raise UsageError(f"{option} {name[:60]}: the value must be ASCII, of 64 characters at most", _EXAMPLES)
            found[tag] = Action(letter, value=value)
    return dict(sorted(found.items()))


_EXAMPLES = "write for example --keep PatientSex, --remove 0018,1030 or --replace ClinicalTrialProtocolID=TRIAL-1"


def tag_of(text: str) -> int:
    """The tag that a keyword or two groups of four hex digits name."""
    if match := _TAG.match(text):
        return int(match[1] + match[2], 16)
    for tag, (*_, keyword) in ELEMENTS.items():
        if keyword and keyword == text:
            return tag
    raise UsageError(f"'{text[:60]}' is no tag and no keyword", _EXAMPLES)
