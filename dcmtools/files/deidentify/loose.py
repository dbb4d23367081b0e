"""Dates of birth and identifiers as people write them: other orders, names of months, other signs between the parts.

To look for each form would take longer than all else. So the bytes are searched without the signs that may stand
between parts, for a few numbers; only where one of them is found are the forms themselves looked for.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

BETWEEN = b" \t\r\n-/._,:;#+()'\\^"
# In UTF-8, what nobody sees between letters: soft hyphens, spaces without a width, marks of the order of bytes.
UNSEEN = ("\u00ad", "\u200b", "\u200c", "\u200d", "\u2060", "\ufeff")
# With what full-width letters and digits begin in UTF-8: they are looked at as what they stand for.
MARKS = (b"\xef\xbc", b"\xef\xbd", *(sign.encode() for sign in UNSEEN))
_NO_DATE = "19000101"  # what stands for no date, in results of this profile, too
SHORTEST = 5  # characters of an identifier that is searched for
_LONG_WORD = 7  # letters of a word that is searched for with signs between them
_PART = 2  # digits of an identifier of digits that stand together

# The beginnings of the names of months in English, German, French, Spanish, Italian and Dutch.
_NAMES = dict(
    enumerate(
        (
            "jan|ene|gen", "feb|fev|f\xe9v|f\xc3\xa9v", "mar|mrz|m\xe4r|m\xc3\xa4r|mrt|maa", "apr|avr|abr",
            "may|mai|mei|mag", "jun|juin|giu", "jul|juil|lug", "aug|ao\xfb|ao\xc3\xbb|aout|ago", "sep|set",
            "oct|okt|ott", "nov", "dec|dez|d\xe9c|d\xc3\xa9c|dic",
        ),
        start=1,
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Loose:
    """What is written in many ways: what is in each of them, and the ways.

    It need not be looked for where the bytes have no `year`, and without what stands between parts none of the `signs`.
    """

    signs: tuple[bytes, ...]
    form: str
    year: bytes = b""
    is_number: bool = False
    is_word: bool = False

    def is_in(self, low: bytes, *, lenient: bool = False) -> bool:
        """Whether it stands in bytes in lower case.

        `lenient` counts also what may be a part of another number, or may not: the bytes of a tag can be digits.
        """
        return any(self._counts(found[0]) for found in _compiled(self.form, lenient=lenient).finditer(low))

    def _counts(self, found: bytes) -> bool:
        """Whether a number stands in parts, and not in single digits: those of a list would be found by chance.

        A word does in single letters, or in two parts.
        """
        if self.is_word:
            gaps = len(re.findall(rb"[^a-z]+", found))
            return gaps in {1, len(self.signs[0]) - 1}
        if not self.is_number:
            return True
        parts = re.split(rb"[^0-9]+", found)
        return len(parts) > 1 and all(len(part) >= _PART for part in parts)


@lru_cache(maxsize=256)
def _compiled(form: str, *, lenient: bool) -> re.Pattern[bytes]:
    """A pattern in which « and » stand for where no other digit may be before and behind."""
    before, behind = ("", "") if lenient else (r"(?<![0-9])(?<![0-9]\.)", r"(?![0-9])(?!\.[0-9])")
    return re.compile(form.replace("«", before).replace("»", behind).encode("latin_1"))


def loose_of(kind: str, text: str) -> Iterator[Loose]:
    """What to look for beside the text of an identity as it is."""
    folded = unicodedata.normalize("NFKC", text).casefold().strip("\0 ")
    if kind == "birth":
        digits = "".join(filter(str.isdecimal, folded))
        if len(digits) == 8 and digits.isascii() and digits != _NO_DATE:
            yield _date(digits[:4], digits[4:6], digits[6:])
    elif kind == "name":
        words = {word for word in re.findall("[a-z]+", folded) if len(word) >= _LONG_WORD} if folded.isascii() else ()
        yield from (_word(word) for word in sorted(words))
    elif kind == "id":
        for value in folded.split("\\"):
            bare = "".join(filter(str.isalnum, value))
            if value.isascii() and len(bare) >= SHORTEST and bare.strip("0"):
                yield _identifier(bare)


def _word(word: str) -> Loose:
    """A word with signs between its letters, or with its end in another line or value."""
    pattern = r"[ \t\r\n./_,\\^-]{0,3}".join(word)
    return Loose((word.encode(),), f"(?<![a-z]){pattern}(?![a-z])", is_word=True)


def _identifier(bare: str) -> Loose:
    """An identifier with other signs between its letters and digits, or without those that it has."""
    if bare.isdecimal():
        return Loose((bare.encode(),), f"«{'[ /_-]?'.join(bare)}»", is_number=True)
    parts = [bare[:1]]
    for one, other in pairwise(bare):
        # A point between digits is of another number.
        parts += ["[ /_-]?" if one.isdecimal() and other.isdecimal() else r"[ \t./_,:;#+^-]{0,2}", other]
    before, behind = "«" * bare[0].isdecimal(), "»" * bare[-1].isdecimal()
    return Loose((bare.encode(),), before + "".join(parts) + behind)


def _date(year: str, month: str, day: str) -> Loose:
    """A date in any order of its parts, with a year of four digits or two."""
    short = year[2:]
    d, m = f"0?{int(day)}", f"0?{int(month)}"
    name = f"(?:{_NAMES.get(int(month), '(?!)')})[a-z\x80-\xff]{{0,9}}"
    sign, signs = r"[ ./_,-]{1,2}", r"[ ./_,-]{0,2}"
    th = r"(?:st|nd|rd|th|\.)?"
    forms = (
        _alike(signs, year, month, day), _alike(sign, year, m, d) + "»",
        _alike(signs, day, month, year) + "»", _alike(sign, d, m, year) + "»",
        _alike(signs, month, day, year) + "»", _alike(sign, m, d, year) + "»",
        f"{d}{th}{signs}{name}{signs}(?:{year}|{short})»", f"{name}{signs}{d}{th}{sign}(?:{year}|{short})»",
        f"{year}{signs}{name}{signs}{d}»",
        # With a year of two digits no part has one digit, and a sign stands between: else it is any number or version.
        _alike("[./-]", day, month, short) + "»", _alike("[./-]", month, day, short) + "»",
        _alike("[/-]", short, month, day) + "»",
    )  # fmt: skip
    numbered = (form.replace("sign", f"s{number}") for number, form in enumerate(forms))
    signs_of = [f"{day}{month}{short}", f"{month}{day}{short}", f"{short}{month}{day}"]
    if int(month) in _NAMES:
        signs_of.append(f"{int(day)}{_NAMES[int(month)].split('|')[0]}")
    return Loose(tuple(one.encode() for one in signs_of), f"«(?:{'|'.join(numbered)})", year=year.encode())


def _alike(sign: str, one: str, two: str, three: str) -> str:
    """Three parts with the same sign between them."""
    return f"{one}(?P<sign>{sign}){two}(?P=sign){three}"
