"""One study on its way from a node into the archive (PS3.4 C.4.2; DESIGN §5.4).

What the archive holds of it is `present`; the rest is moved, at the coarsest level that moves nothing twice, and what
then is missing once more. A series is complete when all that the node told of it has arrived.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from dcmtools.model.errors import DcmtoolsError, Incomplete, Locked, ProtocolError, Refused, TryLater, Unavailable
from dcmtools.model.node import Node
from dcmtools.model.record import Record, event, pick, type_of
from dcmtools.network import status
from dcmtools.network.association import Association
from dcmtools.network.command import Command
from dcmtools.network.holdings import Holdings, Series
from dcmtools.network.levels import Levels
from dcmtools.network.move_run import Run
from dcmtools.network.retrieval import Destination, Retrieval, failure, not_sent, open_for_moves, sent, went_elsewhere

_UIDS_AT_ONCE = 64
# Seconds before the second, third... try.
_BACK_OFF = (1.0, 5.0, 15.0, 60.0)
_LOOK = 0.5
# Seconds for what is still under way when a node says that it failed.
_AFTER_FAILURE = 1.0
# What another try does not change.
_PERMANENT = frozenset({"not-offered", "status"})
# The keys of a C-MOVE, and the series that it moves whole.
_Request = tuple[dict[str, str], Iterable[Series]]
_SOURCE_KEYS = ("StudyDate", "AccessionNumber", "PatientID", "ReferringPhysicianName")


@dataclass(slots=True)
class Target:
    """What is wanted of one study at one node: all of it, or the series and instances of the selection."""

    node: Node
    study: str
    record: Record
    selection: dict[str, frozenset[str] | None] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether all of the study is wanted."""
        return not self.selection

    def has(self, node: Node, record: Record) -> bool:
        """Whether a record is a further part of the same study."""
        same = node.name == self.node.name and record.get("StudyInstanceUID") == self.study
        return same and type_of(record) in {"series", "instance"}

    def add(self, record: Record) -> None:
        """Takes in a series or an instance of the study."""
        series = str(record["SeriesInstanceUID"])
        if type_of(record) == "series":
            self.selection[series] = None
        elif (known := self.selection.get(series, frozenset())) is not None:
            self.selection[series] = known | {str(record["SOPInstanceUID"])}


class StudyMove:
    """The retrieval of one target."""

    def __init__(self, run: Run, target: Target) -> None:
        self.run, self.target, self.node = run, target, target.node
        self.holdings = Holdings(target.study, target.selection)
        port = run.arrivals.port if run.arrivals else run.local.port
        self.destination = Destination(self.node.calling_ae_title or run.local.ae_title, port)
        self.trouble: DcmtoolsError | None = None
        self._association: Association | None = None
        self._sample: Record = {}

    def records(self) -> Iterator[Record]:
        """Everything from the first question to the last event."""
        try:
            yield from self._ask()
            if self.run.must_end:  # perhaps not all was told
                return
            present = list(self.holdings.present(list(self.run.index.by_study(self.target.study))))
            if self.run.options.dry_run:
                yield from self._plan()
                return
            yield from self._present(present)
            if self.holdings.unfinished():
                yield from self._fetch()
            yield from self._verdict()
        except Incomplete:  # it was only asked what it has
            raise
        except BaseException:  # perhaps in the middle of a C-MOVE
            self._drop()
            raise
        finally:
            if self._association:
                self._association.release()

    # What there is

    def _ask(self) -> Iterator[Record]:
        """Asks the node what it has; one that is busy or away for a moment is asked again."""
        for pause in (*_BACK_OFF[: self.run.options.retries], None):
            try:
                levels = Levels(self.node, self.run.local, self.run.stop, self._open())
                yield from list(self.holdings.ask(levels))
            except (TryLater, Unavailable, ProtocolError) as problem:
                self._drop()
                if pause is None or problem.cause in _PERMANENT or self.run.must_end:
                    raise
                self.run.pause(pause)
            else:
                return

    def _open(self) -> Association:
        if not (self._association and self._association.open):
            self._association = open_for_moves(self.node, self.run.local)
        return self._association

    def _drop(self) -> None:
        if self._association:
            self._association.abort()

    def _present(self, records: list[Record]) -> Iterator[Record]:
        """What the archive has already, with the events of the series of which it has all."""
        for record in records:
            self._sample = self._sample or record
            yield {"type": "instance", **record, "state": "present", "node": self.node.name}
        for series in self.holdings.series.values():
            yield from self._completed(series)

    # Fetching

    def _fetch(self) -> Iterator[Record]:
        """Moves what is missing; then what is still missing, over a fresh association where the first one broke."""
        self.trouble = self.run.blocked.get(self.node.name)
        before = -1
        for number in range(self.run.options.retries + 1):
            requests = list(self._requests(number))
            if not requests or self.run.must_end or self._is_hopeless():
                break
            if self.holdings.received == before:
                self.run.pause(_BACK_OFF[min(number, len(_BACK_OFF)) - 1])
            before = self.holdings.received
            yield from self._round(requests, number)
        if isinstance(self.trouble, Unavailable) and not self._is_hopeless():
            self.run.rest(self.node, self.trouble)

    def _is_hopeless(self) -> bool:
        """Whether another try would end as the last one did; then other studies of this node need not try either."""
        trouble = self.trouble
        if isinstance(trouble, Refused) or (trouble and trouble.cause == "no-connection"):
            self.run.blocked[self.node.name] = trouble
            return True
        return False

    def _round(self, requests: list[_Request], number: int) -> Iterator[Record]:
        """One request after the other; `trouble` is what went wrong last."""
        trouble: DcmtoolsError | None = None
        for keys, series in requests:
            self.trouble = None
            try:
                yield from self._move(keys, series, first=number == 0)
            except (TryLater, Unavailable, ProtocolError) as problem:
                self._drop()
                self.trouble = problem
                yield from self._finish()
            trouble = self.trouble or trouble
            if self.run.must_end or self._is_hopeless() or isinstance(trouble, Unavailable):
                break
        self.trouble = trouble

    def _requests(self, number: int) -> Iterator[_Request]:
        """What to move by, and the series that are so moved whole: the study, else whole series, else instances."""
        patient = self.target.record.get("PatientID")
        study = {"StudyInstanceUID": self.target.study, **({"PatientID": patient} if isinstance(patient, str) else {})}
        if self.target.is_whole and number == 0 and not self.holdings.received:
            yield study, self.holdings.series.values()
            return
        at_once = _UIDS_AT_ONCE if number < 2 else 1  # not every node takes lists
        for series in self.holdings.unfinished():
            keys, missing = {**study, "SeriesInstanceUID": series.uid}, series.to_fetch
            if series.picked or (missing and (series.here or series.aside or series.moved_whole)):
                for first in range(0, len(missing), at_once):
                    yield {**keys, "SOPInstanceUID": "\\".join(missing[first : first + at_once])}, []
            elif not series.moved_whole:
                yield keys, [series]

    def _move(self, keys: Mapping[str, str], whole: Iterable[Series], *, first: bool) -> Iterator[Record]:
        """One C-MOVE: what lands while it runs, its final status, and what still lands after it."""
        run, before = self.run, self.run.landed
        if run.arrivals is None:
            return
        retrieval = Retrieval(self._open(), self.node, keys, self.destination.ae_title, run.options.priority)
        while retrieval.answer is None:
            for record in self._landed():
                retrieval.advance()
                yield record
            if run.must_end:
                retrieval.cancel()
            retrieval.listen(_LOOK, run.arrivals.wake)
        told = sent(retrieval.answer)
        yield from self._landed()
        self.trouble = failure(retrieval.answer, self.node, self.destination, came=run.came)
        if self.trouble:
            yield from self._finish()
            return
        yield from self._settle(None if told is None or (told == 0 and first) else before + told)
        self._judge(retrieval.answer, list(whole), before)
        if told and not run.came:
            self.trouble = went_elsewhere(told, self.node, self.destination)

    def _judge(self, answer: Command, whole: list[Series], before: int) -> None:
        """Notes of the series that were moved whole whether all came that the node has, by its own count."""
        told, failed = sent(answer), not_sent(answer)
        done = answer["Status"] == status.SUCCESS and not failed and self._arrived(before, whole) >= (told or 0)
        for series in whole:
            series.moved_whole = done
        if not done and len(whole) == 1 and not whole[0].expected:
            whole[0].count = (told or 0) + failed

    def _arrived(self, before: int, whole: Iterable[Series]) -> int:
        """How many instances have come, as far as that can be told.

        A `listen` that is followed says nothing of what the archive had already; what is here counts in its place.
        """
        landed = self.run.landed - before
        if self.run.arrivals and self.run.arrivals.connections is None:
            return max(landed, sum(len(series.here) for series in whole))
        return landed

    def _settle(self, landed: int | None) -> Iterator[Record]:
        """What still lands after the final response, for some nodes answer before they have sent.

        Until so many have landed as the node says it has sent, where it does; never longer than the grace in silence.
        """
        run, grace = self.run, self.run.options.grace
        end = run.clock() + grace
        while run.arrivals and self.holdings.unfinished() and not run.must_end and run.clock() < end:
            if landed is not None and run.landed >= landed:
                return
            run.arrivals.wait(min(_LOOK, grace))
            for record in self._landed():
                end = run.clock() + grace
                yield record

    def _finish(self) -> Iterator[Record]:
        """What is still under way when a node has failed or broken off."""
        arrivals, end = self.run.arrivals, self.run.clock() + min(_AFTER_FAILURE, self.run.options.grace)
        while arrivals and arrivals.busy and self.run.clock() < end:
            arrivals.wait(0.05)
            yield from self._landed()
        yield from self._landed()

    def _landed(self) -> Iterator[Record]:
        """What has arrived since the last look, with the events of the series that it completes."""
        for record in self.run.take():
            if type_of(record) == "error":
                yield record
                continue
            if record.get("StudyInstanceUID") != self.target.study:  # late, of a study before this one
                yield {**record, "node": self.node.name}
            elif series := self.holdings.series_of(record):
                uid, is_kept = str(record.get("SOPInstanceUID")), record.get("state") != "conflict"
                if series.land(uid) if is_kept else series.set_aside(uid):
                    self._sample = self._sample or record
                    yield {**record, "node": self.node.name}
                yield from self._completed(series)

    # Words at the end

    def _completed(self, series: Series) -> Iterator[Record]:
        if series.complete and not series.told:
            series.told = True
            yield from self._event("series-complete", series)

    def _verdict(self) -> Iterator[Record]:
        """What became of it: every series is complete, or named with what it lacks."""
        for series in self.holdings.series.values():
            yield from self._completed(series)
        wanting = self.holdings.wanting()
        for series in wanting:
            yield from self._incomplete(series)
        for uid in self.holdings.missing_series():
            yield self._not_there(uid)
        unlisted = self.holdings.unlisted(self.target.record.get("NumberOfStudyRelatedSeries"))
        if unlisted:
            yield self._not_listed(unlisted)
        if self.trouble and self.holdings.unfinished():  # else it is what came of instances that are aside
            yield self.trouble.record(level="study", node=self.node.name, StudyInstanceUID=self.target.study)
        elif self.target.is_whole and not (wanting or unlisted or self.holdings.unusable):
            yield self._study_complete()

    def _incomplete(self, series: Series) -> Iterator[Record]:
        reason, advice = self._what_is_missing(series)
        yield from self._event("incomplete", series, missing=series.missing, reason=reason, advice=advice)

    def _what_is_missing(self, series: Series) -> tuple[str, str]:
        """What did not come of a series, and what came and cannot take its place; and what to do about it."""
        aside, absent = len(series.aside), series.lacks - len(series.aside)
        reasons, advice = [], "run the same command again: it fetches only what is missing"
        if absent > 0 or not aside:
            lacks = f"{absent} of {series.expected}" if series.expected else "some"
            reasons = [f"{lacks} instances of series {series.uid} did not come from {self.node.where}"]
        if aside:
            why = "other content under the same UID is in the archive, the new one is in quarantine"
            of_all = f"{aside} of {max(series.expected, aside)} instances of series {series.uid}"
            reasons.append(f"{of_all} came from {self.node.where}, but {why}")
            advice = "compare the two; where the old one is damaged, remove it and run the same command again"
        return "; ".join(reasons), advice

    def _not_listed(self, count: int) -> Record:
        reason = f"{self.node.where} has {count} series more of study {self.target.study} than it lists"
        problem = Incomplete(reason, "ask it again with find; see its log", cause="not-listed")
        return problem.record(level="study", node=self.node.name, StudyInstanceUID=self.target.study)

    def _not_there(self, uid: str) -> Record:
        problem = Incomplete(
            f"{self.node.where} does not have series {uid}", "ask it again with find", cause="not-found"
        )
        return problem.record(node=self.node.name, StudyInstanceUID=self.target.study, SeriesInstanceUID=uid)

    def _study_complete(self) -> Record:
        keys = pick({**self._sample, **self.target.record}, *_SOURCE_KEYS)
        counts = {"expected": self.holdings.expected, "received": self.holdings.received}
        study = {"StudyInstanceUID": self.target.study, **keys, "series": len(self.holdings.series)}
        return event("study-complete", **study, **counts, node=self.node.name)

    def _event(self, name: str, series: Series, **more: object) -> Iterator[Record]:
        """An event of a series; that of one which was wanted whole is kept in the index.

        An index that is locked keeps nothing from being fetched, and is no fault of the node's.
        """
        uids = {"StudyInstanceUID": self.target.study, "SeriesInstanceUID": series.uid}
        expected = series.expected or len(series.here)
        counts = {"expected": expected, "received": len(series.here)}
        record = event(name, **uids, node=self.node.name, **counts, **more)
        try:
            if not series.picked:
                self.run.note(record)
        except Locked as problem:
            yield problem.record(**uids)
        yield record

    def _plan(self) -> Iterator[Record]:
        """A record for each series: what of it is here, and what would be moved."""
        for series in self.holdings.series.values():
            counts = {"present": len(series.here), "missing": series.lacks}
            state = "present" if series.complete else "planned"
            yield {**series.record, "node": self.node.name, "state": state, **counts}
