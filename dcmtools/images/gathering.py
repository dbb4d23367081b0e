"""Series gathered from a stream: a series is handed on as soon as the stream says that it is complete (DESIGN §3).

Records without events count as complete at the end of input; of a series that was cut off, an `incomplete` tells.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from dcmtools.images.series import Key, Series, answering
from dcmtools.model.record import Record, type_of

_FAILED = frozenset({"failed", "refused"})


@dataclass(frozen=True, slots=True)
class Passing:
    """A record that is not ours: it goes on once the work that it speaks of is done."""

    record: Record
    after: Literal["nothing", "series", "study"] = "nothing"

    @property
    def study(self) -> str:
        """The study that it speaks of."""
        return str(self.record.get("StudyInstanceUID"))

    @property
    def key(self) -> Key:
        """The series that it speaks of."""
        return self.study, str(self.record.get("SeriesInstanceUID"))


class Gathering:
    """The series of a stream."""

    def __init__(self) -> None:
        self._known: dict[Key, Series] = {}
        self._open: dict[Key, None] = {}  # those with instances that nobody has been handed yet, oldest first
        self._spoiled: set[Key] = set()

    def take(self, record: Record) -> Iterator[Series | Passing]:
        """What a record sets free: series that are complete now, and records that go on."""
        kind = type_of(record)
        if kind == "instance":
            self._add(record)
        elif kind == "event":
            yield from self._event(record)
        else:
            if kind == "error":
                self._spoil(record)
            yield Passing(record)

    def finish(self) -> Iterator[Series]:
        """What is left at the end of input."""
        yield from map(self._close, list(self._open))

    def _add(self, record: Record) -> None:
        record = answering(record)
        if record.get("state") in _FAILED:
            self._spoil(record)
            return
        key = str(record.get("StudyInstanceUID")), str(record.get("SeriesInstanceUID"))
        if self._known.setdefault(key, Series()).take(record):
            self._open[key] = None

    def _event(self, record: Record) -> Iterator[Series | Passing]:
        match record.get("event"):
            case "series-complete":
                passing = Passing(record, "series")
                if passing.key in self._open:
                    yield self._close(passing.key, complete=True)
                yield passing
            case "study-complete":
                passing = Passing(record, "study")
                yield from self._close_study(passing.study)
                yield passing
            case "incomplete":
                yield from self._incomplete(Passing(record, "series" if record.get("SeriesInstanceUID") else "study"))
            case _:
                yield Passing(record)

    def _incomplete(self, passing: Passing) -> Iterator[Series | Passing]:
        """Refuses the series that the event names, or all open ones of its study: whose part is missing is unknown."""
        keys = [passing.key] if passing.after == "series" else [key for key in self._open if key[0] == passing.study]
        for key in keys:
            self._series(key).incomplete = _counted(passing.record)
            self._open[key] = None
        yield from map(self._close, keys)
        yield passing

    def _spoil(self, record: Record) -> None:
        """An error about an instance of a series means that this series lacks it.

        One about a study means that any of its series that are under way may, unless their `series-complete` follows.
        """
        study = str(record.get("StudyInstanceUID"))
        if record.get("SeriesInstanceUID"):
            key = study, str(record["SeriesInstanceUID"])
            self._series(key).incomplete = "an instance of it failed at an earlier stage"
            self._spoiled.add(key)
        elif record.get("StudyInstanceUID"):
            for key in self._open:
                if key[0] == study and not self._known[key].incomplete:
                    self._known[key].incomplete = "something of its study failed at an earlier stage"

    def _close_study(self, study: str) -> Iterator[Series]:
        yield from map(self._close, [key for key in self._open if key[0] == study])

    def _close(self, key: Key, *, complete: bool = False) -> Series:
        del self._open[key]
        series = self._known[key]
        if complete and key not in self._spoiled:
            series.incomplete = ""  # the last word wins: what was missing has come meanwhile
        return series.as_it_is()

    def _series(self, key: Key) -> Series:
        uids = dict(zip(("StudyInstanceUID", "SeriesInstanceUID"), key, strict=True))
        return self._known.setdefault(key, Series(uids))


def _counted(event: Record) -> str:
    expected, received = event.get("expected"), event.get("received")
    if expected is None or received is None:
        return "the PACS has more instances of it than arrived"
    return f"{received} of {expected} instances arrived"
