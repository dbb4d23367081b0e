r"""Attribute matching as C-FIND does it (PS3.4 C.2.2.2), on records instead of data sets.

Text is compared without regard to case, because people type names; peers differ (facts: some fold, some do not), so
that the same query gives the same answers everywhere. Several values (`MR\CT`) match when one of them does.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from dcmtools.model.keys import QUERY_BY_KEYWORD

Test = Callable[[Any], bool]

_REMEMBERED = 4096  # texts: many instances have the same


@lru_cache(maxsize=_REMEMBERED)
def fold(text: str) -> str:
    """The text as it is compared: NFKC, case folded, white space at its ends dropped."""
    return unicodedata.normalize("NFKC", text).casefold().strip()


@lru_cache(maxsize=_REMEMBERED)
def fold_name(text: str) -> str:
    """A person name as it is compared: folded, no trailing carets or equals signs, no spaces around components."""
    return re.sub(r"\s*\^\s*", "^", fold(text)).rstrip("^= ")


def without_accents(text: str) -> str:
    """The text with every accented letter as its plain one."""
    if text.isascii():
        return text
    plain = (one for one in unicodedata.normalize("NFD", text) if unicodedata.category(one) != "Mn")
    return unicodedata.normalize("NFC", "".join(plain))


def matches(keyword: str, wanted: str, value: Any, *, ignore_accents: bool = False) -> bool:
    """Whether a record's value under a keyword answers what is wanted; a list matches when one of its values does.

    `ignore_accents` is about person names alone: Muller is then Müller.
    """
    if wanted in {"", "*"}:
        return True
    if value is None or value == []:
        return False
    test = _test(keyword, wanted, ignore_accents)
    return any(test(one) for one in value) if isinstance(value, list) else test(value)


@lru_cache(maxsize=256)
def _test(keyword: str, wanted: str, ignore_accents: bool) -> Test:  # noqa: FBT001  # by position, for the cache
    key = QUERY_BY_KEYWORD.get(keyword)
    kind = key.vr if key else "LO"
    spelling = without_accents if ignore_accents else str
    tests = [_person(one, spelling) if kind == "PN" else _single(kind, one) for one in wanted.split("\\")]
    return tests[0] if len(tests) == 1 else lambda value: any(test(value) for test in tests)


def _single(vr: str, wanted: str) -> Test:
    if vr == "UI":
        return lambda value: str(value).rstrip("\0 ") == wanted.strip()
    if vr in {"DA", "TM", "DT"} and not _has_wildcard(wanted):
        return _range(vr, wanted)
    if vr in {"IS", "DS", "US"} and _number(wanted) is not None:
        number = _number(wanted)
        return lambda value: _number(value) == number
    return _text(wanted)


def _range(vr: str, wanted: str) -> Test:
    clean: Callable[[str], str] = (
        (lambda text: text.replace(".", "")) if vr == "DA" else (lambda text: text.replace(":", ""))
    )
    first, dash, last = clean(wanted).partition("-")
    if not dash:
        return lambda value: (
            clean(str(value)).startswith(first.strip()) if vr != "DA" else clean(str(value)) == first.strip()
        )
    low, high = first.strip(), last.strip()
    return lambda value: (not low or clean(str(value)) >= low) and (not high or clean(str(value))[: len(high)] <= high)


def _person(wanted: str, spelling: Callable[[str], str]) -> Test:
    pattern = _pattern(spelling(fold_name(wanted)))

    def test(value: Any) -> bool:
        groups = str(value).split("=")
        return any(pattern.match(spelling(fold_name(group))) for group in (str(value), *groups) if group)

    return test


def _text(wanted: str) -> Test:
    pattern = _pattern(fold(wanted))
    return lambda value: pattern.match(fold(str(value))) is not None


def _pattern(folded: str) -> re.Pattern[str]:
    """The expression for a text with wildcards. Atomic groups never look back, so that no text takes long to refuse."""
    first, *rest = ("".join("." if char == "?" else re.escape(char) for char in part) for part in folded.split("*"))
    if not rest:
        return re.compile(first + r"\Z", re.DOTALL)
    middle = "".join(f"(?>.*?{part})" for part in rest[:-1] if part)
    return re.compile(f"{first}{middle}.*{rest[-1]}\\Z", re.DOTALL)


def _has_wildcard(text: str) -> bool:
    return "*" in text or "?" in text


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
