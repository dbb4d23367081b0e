"""Several indexes asked as one: an instance that more than one of them has is told, and counted, once."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from dcmtools.disk.index import Index
from dcmtools.disk.ordering import ordered
from dcmtools.model.levels import Share, size_of, summary
from dcmtools.model.query import Query
from dcmtools.model.record import UNIQUE_KEY, Record


class Indexes:
    """Indexes in the order in which they are believed: the first that has an instance is the one that tells of it."""

    def __init__(self, indexes: Sequence[Index]) -> None:
        self._indexes = indexes

    def find(self, query: Query) -> Iterator[Record]:
        """The records at the query's level to which a matching instance belongs, in the query's order."""
        return ordered(self._answers(query), query)

    def _answers(self, query: Query) -> Iterator[Record]:
        asked = replace(query, where=(), sort=(), limit=None)
        for number, index in enumerate(self._indexes):
            for found in index.find(asked):
                record = self._told(number, found, asked)
                if record is not None and query.passes(record):
                    yield record

    def _told(self, number: int, found: Record, query: Query) -> Record | None:
        """What all of them together tell of an answer of one; None where it is another that has to tell it."""
        name = str(found.get(UNIQUE_KEY[query.level]) or "")
        if query.level == "instance":
            return None if any(index.lookup([name]) for index in self._indexes[:number]) else found
        instances: dict[str, tuple[int, Record]] = {}
        for teller, index in enumerate(self._indexes):
            for one in index.belonging_to(query.level, name):
                instances.setdefault(str(one["SOPInstanceUID"]), (teller, one))
        if {teller for teller, _ in instances.values()} == {number}:
            return found
        if number != min((teller for teller, one in instances.values() if query.matches(one)), default=None):
            return None
        shares = (Share(one, 1, size_of(one)) for _, one in instances.values())
        return summary(shares, query.level, query.returns)
