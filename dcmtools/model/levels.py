"""From instances to series, studies and patients: one pass over records that counts what belongs together."""

from collections.abc import Iterable, Iterator

from dcmtools.model.keys import BY_KEYWORD
from dcmtools.model.query import Query
from dcmtools.model.record import LEVELS, UNIQUE_KEY, Level, Record

_SUMMARY: dict[str, tuple[str, ...]] = {
    level: tuple(key.keyword for key in BY_KEYWORD.values() if LEVELS.index(key.level) <= LEVELS.index(level))
    for level in LEVELS
}


class _Group:
    """What is known of one patient, study or series so far."""

    __slots__ = ("instances", "matched", "modalities", "record", "series", "studies")

    def __init__(self, record: Record) -> None:
        self.record = record
        self.matched = False
        self.studies: set[str] = set()
        self.series: set[str] = set()
        self.instances: set[str] = set()
        self.modalities: dict[str, None] = {}

    def take(self, instance: Record, keywords: tuple[str, ...]) -> None:
        for keyword in keywords:
            value = instance.get(keyword)
            if value is not None and self.record.get(keyword) is None:
                self.record[keyword] = value
            elif keyword in instance:
                self.record.setdefault(keyword, None)
        self.studies.add(str(instance.get("StudyInstanceUID")))
        self.series.add(str(instance.get("SeriesInstanceUID")))
        self.instances.add(str(instance.get("SOPInstanceUID")))
        if modality := instance.get("Modality"):
            self.modalities[str(modality)] = None

    def summary(self, level: Level) -> Record:
        counts: Record = {}
        if level == "patient":
            counts = {
                "NumberOfPatientRelatedStudies": len(self.studies),
                "NumberOfPatientRelatedSeries": len(self.series),
                "NumberOfPatientRelatedInstances": len(self.instances),
            }
        elif level == "study":
            counts = {
                "ModalitiesInStudy": sorted(self.modalities),
                "NumberOfStudyRelatedSeries": len(self.series),
                "NumberOfStudyRelatedInstances": len(self.instances),
            }
        elif level == "series":
            counts = {"NumberOfSeriesRelatedInstances": len(self.instances)}
        return {"type": level, **self.record, **counts}


def group(instances: Iterable[Record], query: Query) -> Iterator[Record]:
    """The records at the query's level to which at least one matching instance belongs, in order of first sight.

    Counts are of all instances of the group and not only of those that match: they tell what is there. The keys are
    matched on instances and the filters on the answers, as they are where a node is asked.
    """
    if query.level == "instance":
        yield from ({"type": "instance", **one} for one in instances if query.matches(one) and query.passes(one))
        return
    keywords, unique = _SUMMARY[query.level], UNIQUE_KEY[query.level]
    groups: dict[str, _Group] = {}
    for instance in instances:
        known = groups.setdefault(str(instance.get(unique) or ""), _Group({}))
        known.take(instance, keywords)
        known.matched = known.matched or query.matches(instance)
    found = (known.summary(query.level) for known in groups.values() if known.matched)
    yield from (record for record in found if query.passes(record))
