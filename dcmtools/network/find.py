"""Finding on nodes: what they have, asked level by level (PS3.4 C.4.1.2.1).

Each level is asked with the keys that belong to it and the unique keys above it: no relational queries, which few
nodes answer. So a query gives the same records from a node as from an index.
"""

import itertools
import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

from dcmtools.disk.ordering import ordered
from dcmtools.model.errors import DcmtoolsError, ProtocolError, UsageError
from dcmtools.model.keys import QUERY_BY_KEYWORD
from dcmtools.model.matching import matches
from dcmtools.model.node import Local, Node
from dcmtools.model.query import Query
from dcmtools.model.record import LEVELS, UNIQUE_KEY, Level, Record, pick, type_of
from dcmtools.model.uids import PATIENT_ROOT_FIND, STUDY_ROOT_FIND
from dcmtools.network.levels import PATIENT_IN_STUDY, Levels
from dcmtools.network.response import Stop, never


def find_on(
    nodes: Sequence[Node], local: Local, query: Query, *, stop: Stop = never, stack: str = "own"
) -> Iterator[Record]:
    """What one node has, or several; `stack` is whose upper layer asks: "own" or "pynetdicom"."""
    ask: type[Levels] = Levels
    if stack != "own":
        from dcmtools.network.second_stack import SecondLevels

        ask = SecondLevels
    if len(nodes) == 1:
        return find(nodes[0], local, query, stop=stop, ask=ask)
    return find_all(nodes, local, query, stop=stop, ask=ask)


def find(node: Node, local: Local, query: Query, *, stop: Stop = never, ask: type[Levels] = Levels) -> Iterator[Record]:
    """The records at the query's level that a node has, held against the query again, each unique key once.

    Raises what `request` raises, and the error of a failure status; an answer that cannot be read is an error record.
    `limit` ends the query early with a C-CANCEL.
    """
    with (
        ask(node, local, stop, ignore_accents=query.ignore_accents) as levels,
        closing(_Search(levels, query).records()) as found,
    ):
        yield from _shaped(query, found)


def find_all(
    nodes: Sequence[Node], local: Local, query: Query, *, stop: Stop = never, ask: type[Levels] = Levels
) -> Iterator[Record]:
    """What several nodes have, all asked at once; each record says which, and a node that fails is an error record.

    No node waits for whoever takes the records.
    """
    answers: queue.SimpleQueue[Record | Exception | None] = queue.SimpleQueue()
    enough = threading.Event()

    def ask_one(node: Node) -> None:
        try:
            for record in find(node, local, query, stop=lambda: enough.is_set() or stop(), ask=ask):
                answers.put(record)
        except DcmtoolsError as problem:
            answers.put(problem.record(node=node.name))
        except Exception as problem:  # noqa: BLE001 - the door of a thread: the caller of the generator hears of it
            answers.put(problem)
        answers.put(None)

    threads = [threading.Thread(target=ask_one, args=(node,), name=f"find {node.name}", daemon=True) for node in nodes]
    for thread in threads:
        thread.start()
    try:
        yield from _shaped(query, _gathered(answers, len(threads)))
    finally:
        enough.set()
        for thread in threads:
            thread.join()


def _gathered(answers: "queue.SimpleQueue[Record | Exception | None]", running: int) -> Iterator[Record]:
    while running:
        answer = answers.get()
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            running -= 1
        else:
            yield answer


def _shaped(query: Query, found: Iterable[Record]) -> Iterator[Record]:
    """The records that pass the query's filters in its order, up to its limit, and then the errors.

    Without an order the limit ends the search itself, and not only what is seen of it.
    """
    errors: list[Record] = []

    def good() -> Iterator[Record]:
        for record in found:
            if type_of(record) == "error":
                errors.append(record)
            elif query.passes(record):
                yield record

    yield from ordered(good() if query.sort else itertools.islice(good(), query.limit), query)
    yield from errors


class _Search:
    """One query on one association."""

    def __init__(self, levels: Levels, query: Query) -> None:
        self._levels, self._stop = levels, levels.stop
        self._patient_root = STUDY_ROOT_FIND not in levels.roots
        self._query = replace(query, keys=_plain(query.keys))

    def records(self) -> Generator[Record]:
        """The matching records at the query's level; neither sorted nor limited."""
        if self._query.level == "patient":
            yield from self._patients()
            return
        if self._anchored():
            yield from self._below(self._top, self._query.level, {}, eager=False)

    @property
    def _top(self) -> Level:
        """Where a search begins: in the study root the patient's attributes are the study's."""
        return "patient" if self._patient_root else "study"

    def _patients(self) -> Iterator[Record]:
        """The patients that match; through their studies where a key belongs to a lower level."""
        own, lower = self._at("patient"), self._under("patient")
        if not lower and PATIENT_ROOT_FIND in self._levels.roots:
            yield from self._levels.level("patient", own, self._also("patient"))
            return
        by_id: dict[str, Record] = {}
        for study in self._below(self._top, "study", {}, eager=True):
            if type_of(study) == "error":
                yield study
            elif (patient := str(study.get("PatientID") or "")) not in by_id:
                by_id[patient] = study
        for patient, study in by_id.items():
            yield from self._patient(patient, study)

    def _patient(self, patient: str, study: Record) -> Iterator[Record]:
        """The patient of this ID as the node tells it, else as the study does; and what of it cannot be read."""
        if patient and PATIENT_ROOT_FIND in self._levels.roots:
            for record in list(self._levels.level("patient", {"PatientID": patient}, self._also("patient"))):
                if type_of(record) == "error":
                    yield record
                elif record.get("PatientID") == patient:
                    yield record
                    return
        yield {"type": "patient", **pick(study, *PATIENT_IN_STUDY, "node")}

    def _below(self, level: Level, target: Level, above: Record, *, eager: bool) -> Generator[Record]:
        """The records of the target level below one parent; `eager` when more will be asked meanwhile."""
        lower = self._under(level)
        answers: Iterable[Record] = self._level(level, above)
        if eager or level != target:
            answers = list(answers)
        untold = []
        for answer in answers:
            if self._stop():
                return
            if type_of(answer) == "error":
                yield answer
                continue
            record = {**above, **answer, **{key: value for key, value in above.items() if answer.get(key) is None}}
            record["type"] = level
            if level != target:
                yield from self._below(_next(level), target, record, eager=eager)
            elif (told := _tells(record, lower)) is None:
                untold.append(record)
            elif told:
                yield record
        for record in untold:  # now that nothing is open on this association
            if not self._stop():
                yield from self._if_below(record, level, lower)

    def _if_below(self, record: Record, level: Level, lower: Mapping[str, str]) -> Iterator[Record]:
        """A record, if something below it answers the keys of lower levels; and what could not be read on the way."""
        deepest = max((_level(keyword) for keyword in lower), key=LEVELS.index)
        for one in self._below(_next(level), deepest, record, eager=True):
            if type_of(one) != "error":
                yield record
                return
            yield one

    def _level(self, level: Level, above: Record) -> Generator[Record]:
        """What one C-FIND gives at a level below a parent."""
        own, lower = self._at(level), self._under(level)
        parents = {key: str(above[key]) for key in self._unique_above(level) if above.get(key)}
        modalities = {"ModalitiesInStudy": lower["Modality"]} if level == "study" and "Modality" in lower else {}
        return self._levels.level(level, {**modalities, **own, **parents}, self._also(level))

    def _unique_above(self, level: Level) -> tuple[str, ...]:
        first = LEVELS.index(self._top)
        return tuple(UNIQUE_KEY[one] for one in LEVELS[first : LEVELS.index(level)])

    def _at(self, level: Level) -> dict[str, str]:
        """The keys that are matched at a level: in the study root those of the patient at that of the study."""
        levels = {"patient", "study"} if level == self._top == "study" else {level}
        return {key: value for key, value in self._query.keys.items() if _level(key) in levels}

    def _under(self, level: Level) -> dict[str, str]:
        """The keys that only what lies below a level can answer."""
        depth = LEVELS.index(level)
        return {key: value for key, value in self._query.keys.items() if LEVELS.index(_level(key)) > depth}

    def _also(self, level: Level) -> list[str]:
        """What is wanted back at a level because the query filters, sorts or shows it."""
        query = self._query
        known = (
            key
            for key in (*(one.keyword for one in query.where), *dict(query.sort), *query.returns)
            if key in QUERY_BY_KEYWORD
        )
        return [key for key in known if _level(key) == level]

    def _anchored(self) -> bool:
        """Adds the study to a query that names a series or an instance alone; False when the node does not have it.

        Asked level by level it would go through every study of the node. Nodes that answer relational queries
        (PS3.4 C.4.1.2.2.1) tell the study; of others the caller must name it.
        """
        keys = self._query.keys
        uid = next((one for one in ("SeriesInstanceUID", "SOPInstanceUID") if one in keys), None)
        if uid is None or any(_level(keyword) in {"patient", "study"} for keyword in keys):
            return True
        found = self._relational(_level(uid), {uid: keys[uid]})
        above = [key for key in ("StudyInstanceUID", "SeriesInstanceUID") if key != uid]
        told = {key: "\\".join(sorted({str(one[key]) for one in found if one.get(key)})) for key in above}
        self._query = replace(self._query, keys={**{key: value for key, value in told.items() if value}, **keys})
        return bool(found)

    def _relational(self, level: Level, keys: Mapping[str, str]) -> list[Record]:
        try:
            found = list(self._levels.level(level, {**keys, "StudyInstanceUID": "", "SeriesInstanceUID": "", **keys}))
        except ProtocolError as problem:
            if problem.cause != "status":
                raise
            found = [{}]
        if found and not any(one.get("StudyInstanceUID") for one in found):
            raise UsageError(
                f"{self._levels.node.where} does not find a {level} by its UID alone", "give --study-uid as well"
            )
        return found


def _plain(keys: Mapping[str, str]) -> dict[str, str]:
    """The keys that restrict; ModalitiesInStudy as the Modality of the series, as which it is matched in an index."""
    plain = {keyword: value for keyword, value in keys.items() if value not in {"", "*"}}
    if "ModalitiesInStudy" in plain and "Modality" not in plain:
        plain["Modality"] = plain.pop("ModalitiesInStudy")
    return plain


def _level(keyword: str) -> Level:
    return QUERY_BY_KEYWORD[keyword].level


def _next(level: Level) -> Level:
    return LEVELS[LEVELS.index(level) + 1]


def _tells(record: Record, lower: Mapping[str, str]) -> bool | None:
    """Whether something below a record answers the keys of lower levels; None when the record cannot tell."""
    if not lower:
        return True
    modalities = record.get("ModalitiesInStudy")
    if set(lower) == {"Modality"} and modalities:
        return matches("Modality", lower["Modality"], modalities)
    return None
