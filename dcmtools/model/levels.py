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


def summary(shares: Iterable[Share], level: Level, returns: Sequence[str] = ()) -> Record:
    """The record of one patient, study or series, from the shares of its instances in the order of their lines.

    A value is that of the first share that has one; of keys of lower levels among `returns` there are all values.
    `size` is in bytes; `date_range` is from the first date to the last, as C-FIND writes it.
    """
    values: Record = {}
    studies: set[str] = set()
    series: set[str] = set()
    modalities: set[str] = set()
    dates: set[str] = set()
    instances = size = 0
    missing: Sequence[str] = _SUMMARY[level]
    more: dict[str, dict[Any, None]] = {keyword: {} for keyword in deeper(returns, level)}
    for share in shares:
        instances, size = instances + share.instances, size + share.size
        values |= {keyword: share.record[keyword] for keyword in missing if keyword in share.record}
        missing = [keyword for keyword in missing if values.get(keyword) is None]
        for keyword, several in more.items():
            several.update(dict.fromkeys(_several(share.record.get(keyword))))
        studies.add(str(share.record.get("StudyInstanceUID")))
        series.add(str(share.record.get("SeriesInstanceUID")))
        modalities.add(str(share.record.get("Modality") or ""))
        dates.add(str(share.record.get(_DATE.get(level, "")) or ""))
    told = {keyword: sorted(several, key=rank) for keyword, several in more.items()}
    record = {"type": level, **{keyword: values[keyword] for keyword in _SUMMARY[level] if keyword in values}}
    counts = {"studies": len(studies), "series": len(series), "instances": instances}
    return record | told | _counted(level, counts, sorted(modalities - {""})) | _extent(size, sorted(dates - {""}))


def group(instances: Iterable[Record], query: Query) -> Iterator[Record]:
    """The records at the query's level to which at least one matching instance belongs, in order of first sight.

    Counts are of all instances of the group and not only of those that match: they tell what is there. The keys are
    matched on instances and the filters on the answers, as they are where a node is asked.
    """
    if query.level == "instance":
        yield from ({"type": "instance", **one} for one in instances if query.matches(one) and query.passes(one))
        return
    groups: dict[str, list[Share]] = {}
    matched: set[str] = set()
    for instance in instances:
        name = str(instance.get(UNIQUE_KEY[query.level]) or "")
        groups.setdefault(name, []).append(Share(instance, 1, size_of(instance)))
        if name not in matched and query.matches(instance):
            matched.add(name)
    found = (summary(shares, query.level, query.returns) for name, shares in groups.items() if name in matched)
    yield from (record for record in found if query.passes(record))


def deeper(keywords: Iterable[str], level: Level) -> list[str]:
    """Those of the keywords that belong to a lower level."""
    depth = LEVELS.index(level)
    return [one for one in keywords if one in BY_KEYWORD and LEVELS.index(BY_KEYWORD[one].level) > depth]


def size_of(instance: Record) -> int:
    """The bytes of an instance's file, 0 where its record does not tell."""
    size = instance.get("size")
    return size if type(size) is int and 0 <= size < 1 << 60 else 0


def _counted(level: Level, counts: dict[str, int], modalities: list[str]) -> Record:
    """How much belongs to a record, under the names that C-FIND has for it (PS3.4 C.3.4)."""
    if level == "patient":
        return {f"NumberOfPatientRelated{name.capitalize()}": count for name, count in counts.items()}
    if level == "study":
        below = {f"NumberOfStudyRelated{name.capitalize()}": counts[name] for name in ("series", "instances")}
        return {"ModalitiesInStudy": modalities, **below}
    return {"NumberOfSeriesRelatedInstances": counts["instances"]}


def _several(value: Any) -> list[Any]:
    """The values of an attribute, something that can be compared."""
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, str | int | float)]


def _extent(size: int, dates: list[str]) -> Record:
    span = {"date_range": dates[0] if dates[0] == dates[-1] else f"{dates[0]}-{dates[-1]}"} if dates else {}
    return {"size": size, **span}
