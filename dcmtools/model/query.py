"""What is asked for: matching keys, a level, an order and a limit; the same for an index and for a node."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dcmtools.model.errors import UsageError
from dcmtools.model.keys import BY_KEYWORD, QUERY_BY_KEYWORD
from dcmtools.model.matching import matches
from dcmtools.model.record import LEVELS, Level, Record

# At study level the modality of the series is asked for by this key (PS3.4 C.6.2.1.2); either answers the other.
_TWINS = {"Modality": "ModalitiesInStudy", "ModalitiesInStudy": "Modality"}


@dataclass(frozen=True, slots=True)
class Query:
    """A query of PS3.4 C.2.2: `keys` match as in C-FIND, `where` filters the answers, `sort` and `limit` shape them."""

    level: Level = "study"
    keys: Mapping[str, str] = field(default_factory=dict)
    where: Mapping[str, str] = field(default_factory=dict)
    sort: tuple[tuple[str, bool], ...] = ()
    limit: int | None = None
    returns: tuple[str, ...] = ()

    @property
    def selects(self) -> bool:
        """Whether the query restricts anything at all."""
        return any(value not in {"", "*"} for value in (*self.keys.values(), *self.where.values()))

    def __post_init__(self) -> None:
        """Raises UsageError for a filter on what the answers do not tell, wherever they come from."""
        for keyword in self.where:
            if not _is_told(keyword, self.level):
                level = QUERY_BY_KEYWORD[keyword].level
                reason = f"a {self.level} does not tell {keyword}, which belongs to the {level}"
                raise UsageError(reason, f"match it with --key, or ask at {level} level")

    def matches(self, record: Record) -> bool:
        """Whether a record answers all keys; one that the record cannot tell of does not match."""
        return all(_answers(record, key, wanted) for key, wanted in self.keys.items())

    def passes(self, record: Record) -> bool:
        """Whether an answer, at the query's level, passes the filters."""
        return all(_answers(record, key, wanted) for key, wanted in self.where.items())

    def at(self, level: Level) -> "Query":
        """The same query at another level."""
        return replace(self, level=level)


def level_of(text: str) -> Level:
    """The level that a word means; `image` is understood as instance."""
    word = "instance" if text.lower() == "image" else text.lower()
    for level in LEVELS:
        if level == word:
            return level
    raise UsageError(f"'{text}' is not a level", "use patient, study, series or instance")


def parse_key(text: str) -> tuple[str, str]:
    """The keyword and the value of KEYWORD=VALUE; UsageError when the keyword is not one that queries know."""
    keyword, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"'{text}' is not KEYWORD=VALUE", "write for example StationName=MR1")
    keyword = keyword.strip()
    if keyword not in QUERY_BY_KEYWORD:
        raise UsageError(f"'{keyword}' is not a key that queries know", _nearest(keyword))
    return keyword, value.strip()


def parse_sort(text: str) -> tuple[tuple[str, bool], ...]:
    """The order that `KEY,-KEY` asks for: pairs of key and whether it descends."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    return tuple((word.lstrip("+-"), word.startswith("-")) for word in words)


def _is_told(keyword: str, level: Level) -> bool:
    """Whether records of a level hold a key: those of it and above; but counts and the like are of their level only."""
    if keyword not in QUERY_BY_KEYWORD or (level == "study" and keyword in _TWINS):
        return True
    own = QUERY_BY_KEYWORD[keyword].level
    return own == level or (keyword in BY_KEYWORD and LEVELS.index(own) < LEVELS.index(level))


def _answers(record: Record, keyword: str, wanted: str) -> bool:
    value = record.get(keyword)
    if value is None and keyword in _TWINS:
        value = record.get(_TWINS[keyword])
    return matches(keyword, wanted, value)


def rank(value: Any) -> tuple[int, float, str]:
    """An order over all values that records hold: empty first, then numbers, then text."""
    if value is None or value == []:
        return (0, 0.0, "")
    if isinstance(value, list):
        return rank(value[0])
    if isinstance(value, int | float):
        return (1, float(value), "")
    return (2, 0.0, str(value).casefold())


def _nearest(keyword: str) -> str:
    import difflib

    near = difflib.get_close_matches(keyword, QUERY_BY_KEYWORD, n=1)
    return f"did you mean {near[0]}?" if near else "use a DICOM keyword such as StudyDescription"
