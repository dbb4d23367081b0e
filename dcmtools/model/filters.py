"""Filters on answers: KEYWORD=VALUE as C-FIND matches it, and the comparisons that C-FIND does not have."""

import operator
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from dcmtools.model.errors import UsageError
from dcmtools.model.keys import OTHER_KEYS, QUERY_BY_KEYWORD
from dcmtools.model.matching import fold, matches

_FORM = re.compile(r"\s*(\w+)\s*(!=|<=|>=|=|<|>)\s*(.*?)\s*\Z", re.DOTALL)
_PRIVATE = re.compile(r"[0-9A-Fa-f]{8}\Z")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Filter(NamedTuple):
    """A condition on the value under a key; `!=` is also fulfilled by a record that has none."""

    keyword: str
    sign: str
    value: str

    def passes(self, value: Any) -> bool:
        """Whether the value of a record fulfils it; of several values one must, for `!=` all."""
        if self.sign == "=":
            return matches(self.keyword, self.value, value)
        if self.sign == "!=":
            return not matches(self.keyword, self.value, value)
        values = value if isinstance(value, list) else [value]
        return any(_COMPARE[self.sign](*_alike(one, self.value)) for one in values if one is not None)


def parse_filter(text: str) -> Filter:
    """The filter that KEYWORD=VALUE means, with =, !=, <, <=, > or >=; UsageError when it means none."""
    match = _FORM.match(text)
    if not match:
        raise UsageError(f"'{text}' is not KEYWORD=VALUE", "write for example Rows=512 or 'SliceThickness<=1.5'")
    return Filter(checked_keyword(match[1]), match[2], match[3])


def checked_keyword(keyword: str) -> str:
    """The name of a key that records can have; UsageError otherwise."""
    if keyword in QUERY_BY_KEYWORD or keyword in OTHER_KEYS or _PRIVATE.match(keyword):
        return keyword
    raise UsageError(f"'{keyword}' is not a key that records have", nearest(keyword))


def nearest(keyword: str) -> str:
    """Advice for a keyword that is not known."""
    import difflib

    near = difflib.get_close_matches(keyword, (*QUERY_BY_KEYWORD, *OTHER_KEYS), n=1)
    return f"did you mean {near[0]}?" if near else "use a DICOM keyword such as StudyDescription"


def _alike(value: Any, wanted: str) -> tuple[Any, Any]:
    """Both as numbers where both are, else as texts; dates and times compare as texts."""
    try:
        return float(value), float(wanted)
    except (TypeError, ValueError):
        return fold(str(value)), fold(wanted)
