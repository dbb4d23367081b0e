"""What a node holds of a study, and what of that is here: the two sides that a retrieval compares (DESIGN §5.4).

They are compared by UID where the node answers at IMAGE level. Where its own figure says that this list is short, or
there is no list, what has come must reach that figure.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from dcmtools.model.errors import Incomplete, ProtocolError
from dcmtools.model.names import is_uid
from dcmtools.model.node import Node
from dcmtools.model.record import Record, path_of, type_of
from dcmtools.network.levels import Levels

# Series UID -> the instances that are wanted of it, None for all; without any series the whole study is wanted.
Selection = Mapping[str, frozenset[str] | None]


@dataclass(slots=True)
class Series:
    """One series as the node tells it, and what of it is here.

    `uids` are the instances that it lists, or those alone that are wanted (`picked`); `count` is its own figure. What
    is `aside` has come and is in quarantine, for the archive has other content under the same UID.
    """

    uid: str
    record: Record
    uids: frozenset[str]
    count: int = 0
    picked: bool = False
    here: set[str] = field(default_factory=set)
    told: bool = False
    moved_whole: bool = False
    aside: set[str] = field(default_factory=set)
    _left: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._left = set(self.uids)

    @property
    def expected(self) -> int:
        """How many instances there are to be, as far as the node tells."""
        return max(len(self.uids), self.count)

    @property
    def missing(self) -> list[str]:
        """The instances that are known by UID and not here, or not as the node has them."""
        return sorted(self._left | self.aside)

    @property
    def to_fetch(self) -> list[str]:
        """Those of the missing that may come when they are asked for."""
        return sorted(self._left - self.aside)

    @property
    def complete(self) -> bool:
        """Whether all is here that the node tells of; where it tells nothing, whether it says that it has sent all."""
        if self.aside:
            return False
        if not self.expected:
            return self.moved_whole and bool(self.here)
        return not self._left and len(self.here) >= self.expected

    @property
    def lacks(self) -> int:
        """How many instances are not here, as far as that is known."""
        return max(len(self.missing), self.expected - len(self.here), 0)

    @property
    def can_grow(self) -> bool:
        """Whether more of it may still come: not when all that it lacks has come already and is aside."""
        return not self.complete and not (self.aside and self.lacks <= len(self.aside))

    def wants(self, uid: str) -> bool:
        """Whether an instance is one of those that were asked for; a list that is too short cannot tell."""
        return uid in self.uids or (not self.picked and self.count > len(self.uids)) or not self.uids

    def land(self, uid: str) -> bool:
        """Notes that an instance is here now; whether it was asked for, and was not here before."""
        if uid in self.here or (self.picked and uid not in self.uids):
            return False
        self.here.add(uid)
        self._left.discard(uid)
        return True

    def set_aside(self, uid: str) -> bool:
        """Notes that an instance has come and cannot take its place; whether that is news of what was asked for."""
        if uid in self.aside or (self.picked and uid not in self.uids):
            return False
        self.aside.add(uid)
        return True


class Holdings:
    """The series of one study."""

    def __init__(self, study: str, selection: Selection) -> None:
        self.study, self.selection = study, selection
        self.series: dict[str, Series] = {}
        self.unusable = 0

    def ask(self, levels: Levels) -> Iterator[Record]:
        """Asks the node what it has; error records of answers that cannot be read. Incomplete when it has nothing."""
        self.unusable = 0
        self.series = {
            uid: Series(
                uid, {"type": "series", "StudyInstanceUID": self.study, "SeriesInstanceUID": uid}, uids, picked=True
            )
            for uid, uids in self.selection.items()
            if uids is not None
        }
        if not self.selection or None in self.selection.values():
            yield from self._ask_for_series(levels)
        if not self.series and not self.unusable and not levels.stop():
            raise Incomplete(
                f"{levels.node.where} does not have {self._name}",
                "ask it again with find; it may have been deleted there",
                cause="not-found",
            )

    def missing_series(self) -> list[str]:
        """The series that are wanted and of which the node knows nothing."""
        return [uid for uid in self.selection if uid not in self.series]

    def present(self, records: Iterable[Record]) -> Iterator[Record]:
        """Those of an index's records that were asked for and are really there, each once."""
        for record in records:
            series = self.series.get(str(record.get("SeriesInstanceUID")))
            uid = str(record.get("SOPInstanceUID"))
            if series and uid not in series.here and series.wants(uid) and _is_there(record):
                series.land(uid)
                yield record

    def series_of(self, record: Record) -> Series | None:
        """The series of an instance that has come, None when it was not asked for.

        A node may have got a series since it was asked what it has; then it belongs to a study that is wanted whole.
        """
        uid = str(record.get("SeriesInstanceUID"))
        if uid not in self.series and not self.selection:
            found = {"type": "series", "StudyInstanceUID": self.study, "SeriesInstanceUID": uid}
            self.series[uid] = Series(uid, found, frozenset())
        return self.series.get(uid)

    def wanting(self) -> list[Series]:
        """The series that are not complete."""
        return [series for series in self.series.values() if not series.complete]

    def unfinished(self) -> list[Series]:
        """The series of which more may still come."""
        return [series for series in self.series.values() if series.can_grow]

    def unlisted(self, told: object) -> int:
        """How many series the node has by its own figure, and does not list."""
        return max(told - len(self.series) - self.unusable, 0) if isinstance(told, int) and not self.selection else 0

    @property
    def received(self) -> int:
        """How many instances are here."""
        return sum(len(series.here) for series in self.series.values())

    @property
    def expected(self) -> int:
        """How many instances there are to be."""
        return sum(series.expected or len(series.here) for series in self.series.values())

    @property
    def _name(self) -> str:
        if len(self.selection) == 1:
            return f"series {next(iter(self.selection))}"
        return f"{len(self.selection)} series of study {self.study}" if self.selection else f"study {self.study}"

    def _ask_for_series(self, levels: Levels) -> Iterator[Record]:
        keys = {"StudyInstanceUID": self.study}
        whole = [uid for uid, uids in self.selection.items() if uids is None]
        if whole:
            keys["SeriesInstanceUID"] = "\\".join(whole)
        for answer in list(levels.level("series", keys)):
            checked = _checked(answer, "SeriesInstanceUID", levels.node, StudyInstanceUID=self.study)
            if type_of(checked) == "error":
                self.unusable += 1
                yield checked
                continue
            uid = str(answer["SeriesInstanceUID"])
            where = {"StudyInstanceUID": self.study, "SeriesInstanceUID": uid}
            answers = [_checked(one, "SOPInstanceUID", levels.node, **where) for one in self._instances(levels, uid)]
            bad = [one for one in answers if type_of(one) == "error"]
            yield from bad
            self.series[uid] = self._counted(answer, uid, answers, unread=len(bad))

    def _counted(self, answer: Record, uid: str, answers: list[Record], *, unread: int) -> Series:
        uids = frozenset(str(one["SOPInstanceUID"]) for one in answers if type_of(one) != "error")
        count = answer.get("NumberOfSeriesRelatedInstances")
        count = max(count if isinstance(count, int) else 0, len(uids) + unread)
        return Series(uid, {**answer, "StudyInstanceUID": self.study}, uids, count)

    def _instances(self, levels: Levels, series: str) -> list[Record]:
        """What the node lists; nothing when it does not answer at IMAGE level: then its figure must do."""
        try:
            return list(levels.level("instance", {"StudyInstanceUID": self.study, "SeriesInstanceUID": series}))
        except ProtocolError as problem:
            if problem.cause != "status":
                raise
            return []


def _checked(answer: Record, unique: str, node: Node, **uids: str) -> Record:
    """The answer, or an error record in its place when it names what it is about by no usable UID."""
    if type_of(answer) == "error" or is_uid(answer.get(unique)):
        return answer
    reason = f"{node.where} names something by a {unique} that is no UID, and it cannot be kept"
    return ProtocolError(reason, "have it corrected there", cause="bad-uid").record(node=node.name, **uids)


def _is_there(record: Record) -> bool:
    """Whether the file of an index's record is on the disk in its full size."""
    path = path_of(record)
    try:
        return path is not None and os.stat(path).st_size == record.get("size", os.stat(path).st_size)
    except OSError:
        return False
