"""From instances to series, studies and patients: what belongs together is counted and told as one record."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from dcmtools.model.keys import BY_KEYWORD
from dcmtools.model.query import Query, rank
from dcmtools.model.record import LEVELS, UNIQUE_KEY, Level, Record

_SUMMARY: dict[str, tuple[str, ...]] = {
    level: tuple(key.keyword for key in BY_KEYWORD.values() if LEVELS.index(key.level) <= LEVELS.index(level))
    for level in LEVELS
}
# The date of what a record of the level holds, from whose first and last its `date_range` is made.
_DATE = {"patient": "StudyDate", "study": "SeriesDate"}


class Share(NamedTuple):
    """What a group has of one kind: the values that so many instances have in common, and their bytes."""

    record: Record
    instances: int
    size: int


class Sum:
    """The sum of one patient, study or series; shares are added in the order of their lines."""

    __slots__ = (
        "_dates",
        "_instances",
        "_level",
        "_missing",
        "_modalities",
        "_more",
        "_series",
        "_size",
        "_studies",
        "_values",
    )

    def __init__(self, level: Level, returns: Sequence[str] = ()) -> None:
        self._level = level
        self._values: Record = {}
        self._missing: Sequence[str] = _SUMMARY[level]
        self._more: dict[str, dict[Any, None]] = {keyword: {} for keyword in deeper(returns, level)}
        self._studies: set[str] = set()
        self._series: set[str] = set()
        self._modalities: set[str] = set()
        self._dates: set[str] = set()
        self._instances = self._size = 0

    def add(self, share: Share) -> None:
        """Takes a share in."""
        record, values = share.record, self._values
        values |= {keyword: record[keyword] for keyword in self._missing if keyword in record}
        self._missing = [keyword for keyword in self._missing if values.get(keyword) is None]
        for keyword, several in self._more.items():
            several.update(dict.fromkeys(_several(record.get(keyword))))
        self._studies.add(str(record.get("StudyInstanceUID")))
        self._series.add(str(record.get("SeriesInstanceUID")))
        self._modalities.add(str(record.get("Modality") or ""))
        self._dates.add(str(record.get(_DATE.get(self._level, "")) or ""))
        self._instances += share.instances
        self._size += share.size

    def record(self) -> Record:
        """The record of the group.

        A value is that of the first share that has one; of keys of lower levels that were asked for there are all
        values. `size` is in bytes; `date_range` is from the first date to the last, as C-FIND writes it.
        """
        told = {keyword: self._values[keyword] for keyword in _SUMMARY[self._level] if keyword in self._values}
        more = {keyword: sorted(several, key=rank) for keyword, several in self._more.items()}
        return {"type": self._level, **told, **more, **self._counts(), "size": self._size, **self._span()}

    def _counts(self) -> Record:
        """How much belongs to it, under the names that C-FIND has for that (PS3.4 C.3.4)."""
        studies, series, instances = len(self._studies), len(self._series), self._instances
        match self._level:
            case "patient":
                counts = {"Studies": studies, "Series": series, "Instances": instances}
                return {f"NumberOfPatientRelated{name}": count for name, count in counts.items()}
            case "study":
                modalities = {"ModalitiesInStudy": sorted(self._modalities - {""})}
                counts = {"Series": series, "Instances": instances}
                return {**modalities, **{f"NumberOfStudyRelated{name}": count for name, count in counts.items()}}
            case _:
                return {"NumberOfSeriesRelatedInstances": instances}

    def _span(self) -> Record:
        dates = sorted(self._dates - {""})
        return {"date_range": "-".join(dict.fromkeys((dates[0], dates[-1])))} if dates else {}


def summary(shares: Iterable[Share], level: Level, returns: Sequence[str] = ()) -> Record:
    """The record of one patient, study or series, from the shares of its instances in the order of their lines."""
    found = Sum(level, returns)
    for share in shares:
        found.add(share)
    return found.record()


def group(instances: Iterable[Record], query: Query) -> Iterator[Record]:
    """The records at the query's level to which at least one matching instance belongs, in order of first sight.

    Counts are of all instances of the group and not only of those that match: they tell what is there. The keys are
    matched on instances and the filters on the answers, as they are where a node is asked.
    """
    if query.level == "instance":
        yield from ({"type": "instance", **one} for one in instances if query.matches(one) and query.passes(one))
        return
    groups: dict[str, Sum] = {}
    matched: set[str] = set()
    for instance in instances:
        name = str(instance.get(UNIQUE_KEY[query.level]) or "")
        groups.setdefault(name, Sum(query.level, query.returns)).add(Share(instance, 1, size_of(instance)))
        if name not in matched and query.matches(instance):
            matched.add(name)
    found = (one.record() for name, one in groups.items() if name in matched)
    yield from (record for record in found if query.passes(record))


def deeper(keywords: Iterable[str], level: Level) -> list[str]:
    """Those of the keywords that belong to a lower level."""
    depth = LEVELS.index(level)
    return [one for one in keywords if one in BY_KEYWORD and LEVELS.index(BY_KEYWORD[one].level) > depth]


def size_of(instance: Record) -> int:
    """The bytes of an instance's file, 0 where its record does not tell."""
    size = instance.get("size")
    return size if type(size) is int and 0 <= size < 1 << 60 else 0


def _several(value: Any) -> list[Any]:
    """The values of an attribute, something that can be compared."""
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, str | int | float)]
