"""What is asked for: matching keys, a level, an order and a limit; the same for an index and for a node."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dcmtools.model.errors import UsageError
from dcmtools.model.filters import Filter, checked_keyword, nearest
from dcmtools.model.keys import BY_KEYWORD, QUERY_BY_KEYWORD
from dcmtools.model.matching import matches
from dcmtools.model.record import LEVELS, Level, Record

# At study level the modality of the series is asked for by this key (PS3.4 C.6.2.1.2); either answers the other.
_TWINS = {"Modality": "ModalitiesInStudy", "ModalitiesInStudy": "Modality"}


# The order in which patients, studies and series stand below each other.
TREE_ORDER = tuple(
    (key, False)
    for key in ("PatientID", "StudyDate", "StudyTime", "StudyInstanceUID", "SeriesNumber", "SeriesInstanceUID")
)


@dataclass(frozen=True, slots=True)
class Query:
    """A query of PS3.4 C.2.2: `keys` match as in C-FIND, `where` filters the answers, `sort` and `limit` shape them.

    `returns` are keys that the answers shall have beside those of their level: of lower levels all values there are.
    `ignore_accents` lets names match that differ in their accents only.
    """

    level: Level = "study"
    keys: Mapping[str, str] = field(default_factory=dict)
    where: tuple[Filter, ...] = ()
    sort: tuple[tuple[str, bool], ...] = ()
    limit: int | None = None
    returns: tuple[str, ...] = ()
    ignore_accents: bool = False

    @property
    def selects(self) -> bool:
        """Whether the query restricts anything at all."""
        return bool(self.where) or any(value not in {"", "*"} for value in self.keys.values())

    def __post_init__(self) -> None:
        """Raises UsageError for a filter on what the answers do not tell, wherever they come from."""
        for keyword, *_ in self.where:
            if keyword not in self.returns and not _is_told(keyword, self.level):
                level = QUERY_BY_KEYWORD[keyword].level
                reason = f"a {self.level} does not tell {keyword}, which belongs to the {level}"
                raise UsageError(reason, f"match it with --key, ask for it with --return, or at {level} level")

    def matches(self, record: Record) -> bool:
        """Whether a record answers all keys; one that the record cannot tell of does not match."""
        return all(
            matches(key, wanted, _value(record, key), ignore_accents=self.ignore_accents)
            for key, wanted in self.keys.items()
        )

    def passes(self, record: Record) -> bool:
        """Whether an answer, at the query's level, passes the filters."""
        return all(one.passes(_value(record, one.keyword)) for one in self.where)

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
        raise UsageError(f"'{keyword}' is not a key that queries know", nearest(keyword))
    return keyword, value.strip()


def parse_sort(text: str) -> tuple[tuple[str, bool], ...]:
    """The order that `KEY,-KEY` asks for: pairs of key and whether it descends; UsageError for what is no key."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    return tuple((checked_keyword(word.lstrip("+-")), word.startswith("-")) for word in words)


def parse_returns(text: str) -> tuple[str, ...]:
    """The keywords of `KEY,KEY`; UsageError for one that queries do not know."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        parse_key(f"{word}=")
    return tuple(words)


def _is_told(keyword: str, level: Level) -> bool:
    """Whether records of a level hold a key: those of it and above; but counts and the like are of their level only."""
    if keyword not in QUERY_BY_KEYWORD or (level == "study" and keyword in _TWINS):
        return True
    own = QUERY_BY_KEYWORD[keyword].level
    return own == level or (keyword in BY_KEYWORD and LEVELS.index(own) < LEVELS.index(level))


def _value(record: Record, keyword: str) -> Any:
    value = record.get(keyword)
    return record.get(_TWINS[keyword]) if value is None and keyword in _TWINS else value


def rank(value: Any) -> tuple[int, float, str]:
    """An order over all values that records hold: empty first, then numbers, then text."""
    if value is None or value == []:
        return (0, 0.0, "")
    if isinstance(value, list):
        return rank(value[0])
    if isinstance(value, int | float):
        return (1, float(value), "")
    return (2, 0.0, str(value).casefold())
