"""Asks the index or nodes, once or for the records of a stream; what fails is told, and the rest goes on."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from dcmtools.cli.frame import INDEX_NAME, Frame
from dcmtools.disk.atomic import TEMPORARY_PREFIX
from dcmtools.model.errors import BadData, DcmtoolsError, UsageError
from dcmtools.model.keys import QUERY_BY_KEYWORD
from dcmtools.model.levels import deeper
from dcmtools.model.query import Query
from dcmtools.model.record import UNIQUE_KEY, Record, encode, pick, type_of

if TYPE_CHECKING:
    from dcmtools.disk.index import Index
    from dcmtools.disk.indexes import Indexes
    from dcmtools.model.node import Node

_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_AT_ONCE = 64  # records that one question is about: C-FIND takes a list of UIDs (PS3.4 C.2.2.2.2)
_TOLD = frozenset({"error", "event"})
_BATCH = 1000
_NOWHERE = "-"


@dataclass(slots=True)
class Question:
    """Records about which one query can ask: of the same node, known by the same UID; or one record with other keys."""

    node: str
    unique: str
    records: list[Record] = field(default_factory=list)

    def takes(self, node: str, unique: str) -> bool:
        """Whether a record of this node, known by this UID, can be asked for along with the others."""
        return bool(unique) and (node, unique) == (self.node, self.unique) and len(self.records) < _AT_ONCE

    def query(self, query: Query) -> Query:
        """The query for what belongs to the records."""
        if self.unique in _UIDS:
            depth = _UIDS.index(self.unique) + 1
            uids = {key: [str(one.get(key) or "") for one in self.records] for key in _UIDS[:depth]}
            keys = {key: "\\".join(dict.fromkeys(values)) for key, values in uids.items() if all(values)}
        else:
            only = self.records[0]
            keys = {key: str(only[key]) for key in ([self.unique] if self.unique else only) if _is_key(key, only[key])}
        if not keys:
            raise BadData("a record has nothing that could be asked for", "give it keys such as StudyInstanceUID")
        return replace(query, keys={**query.keys, **keys}, sort=(), limit=None)


def ask(frame: Frame, nodes: Sequence[str], query: Query, stack: str = "own") -> Iterator[Record]:
    """The answers of the nodes, all asked at once; without nodes, of the index."""
    if not nodes:
        yield from frame.index(must_exist=True).find(query)
        return
    if lower := deeper(query.returns, query.level):
        raise UsageError(f"nodes tell nothing of {lower[0]} at {query.level} level", "ask at its own level")
    from dcmtools.network.find import find_on

    yield from find_on(_known(frame, nodes), frame.settings.local, query, stop=frame.stop, stack=stack)


def several(names: Sequence[str]) -> "Indexes":
    """The indexes of these names, asked as one."""
    from dcmtools.disk.indexes import Indexes

    return Indexes(indexes_named(names))


def indexes_named(names: Sequence[str]) -> "list[Index]":
    """The indexes of these names, each a file or the folder of an archive; NoInput when one is not there."""
    from dcmtools.disk.index import Index

    files = [Path(name).expanduser() for name in names]
    return [Index(file / INDEX_NAME if file.is_dir() else file, must_exist=True) for file in files]


def from_stdin(frame: Frame, query: Query) -> Iterator[Record]:
    """The answers of the index that the records on stdin make; what else is there passes through."""
    from tempfile import TemporaryDirectory

    from dcmtools.disk.index import Index

    with TemporaryDirectory(prefix=TEMPORARY_PREFIX) as folder:
        index = Index(Path(folder) / INDEX_NAME)
        records = frame.records()
        while batch := list(islice(records, _BATCH)):
            index.append(_with_path(record) for record in batch if type_of(record) == "instance")
            yield from (record for record in batch if type_of(record) in _TOLD)
        yield from (_as_it_came(record, f"{index.root}/") for record in index.find(query))


def _with_path(record: Record) -> Record:
    """An instance as an index can hold it: those of a node have no path."""
    return {"path": _NOWHERE, **record, "type": "instance"}


def _as_it_came(record: Record, root: str) -> Record:
    """An answer of the index that stdin was, whose paths below its folder are those that came."""
    if "path_b64" not in record and str(record.get("path")).startswith(root):
        record["path"] = record["path"].removeprefix(root)
        if record["path"] == _NOWHERE:
            del record["path"]
    return record


def counted(frame: Frame, found: Iterable[Record], query: Query, nodes: Sequence[str]) -> Iterator[Record]:
    """How many records were found, of each node when nodes were asked; errors among them are told."""
    counts = Counter({node.name: 0 for node in _known(frame, nodes)} or {"": 0})
    for record in found:
        if type_of(record) in _TOLD:
            yield record
        else:
            counts[str(record.get("node") or "")] += 1
    for node, count in counts.items():
        yield {"type": "count", "level": query.level, "count": count, **({"node": node} if node else {})}


def ask_for_each(
    frame: Frame, records: Iterable[Record], nodes: Sequence[str], query: Query, stack: str = "own"
) -> Iterator[Record]:
    """The answers for each record: of these nodes, else of the node that it came from, else of the index; each once."""
    return _ordered(_once(_answers(frame, records, nodes, query, stack)), query)


def _answers(
    frame: Frame, records: Iterable[Record], nodes: Sequence[str], query: Query, stack: str
) -> Iterator[Record]:
    failed: dict[str, DcmtoolsError] = {}
    for question in _questions(records, with_nodes=not nodes):
        if isinstance(question, dict):
            yield question
            continue
        for node in nodes or [question.node]:
            try:
                if node in failed:  # to wait for it again at each question helps nobody
                    raise failed[node]
                yield from ask(frame, [node] if node else [], question.query(query), stack)
            except BadData as problem:
                yield problem.record()
            except DcmtoolsError as problem:
                if not node:
                    raise
                failed[node] = problem
                yield problem.record(node=node)


def _questions(records: Iterable[Record], *, with_nodes: bool) -> Iterator[Question | Record]:
    """The records gathered into questions; what is no record of a level passes through."""
    waiting: Question | None = None
    for record in records:
        if type_of(record) in _TOLD:
            yield record
            continue
        unique = UNIQUE_KEY.get(type_of(record), "")
        unique = unique if record.get(unique) else ""
        node = str(record.get("node") or "") if with_nodes else ""
        if waiting is None or not (unique in _UIDS and waiting.takes(node, unique)):
            if waiting:
                yield waiting
            waiting = Question(node, unique)
        waiting.records.append(record)
    if waiting:
        yield waiting


def _once(answers: Iterable[Record]) -> Iterator[Record]:
    """Each answer once, however many records led to it."""
    seen: set[bytes] = set()
    for answer in answers:
        key = encode(pick(answer, "type", "node", UNIQUE_KEY.get(type_of(answer), "reason")))
        if type_of(answer) in _TOLD or key not in seen:
            seen.add(key)
            yield answer


def _ordered(answers: Iterable[Record], query: Query) -> Iterator[Record]:
    """The answers in the order asked for and up to its limit; errors and events among them are not counted."""
    aside: list[Record] = []

    def good() -> Iterator[Record]:
        for record in answers:
            if type_of(record) in _TOLD:
                aside.append(record)
            else:
                yield record

    from dcmtools.disk.ordering import ordered

    for record in ordered(good(), query):
        yield from aside
        aside.clear()
        yield record
    yield from aside


def _known(frame: Frame, names: Sequence[str]) -> "list[Node]":
    return [frame.settings.registry.get(name) for name in names]


def _is_key(key: str, value: object) -> bool:
    return key in QUERY_BY_KEYWORD and isinstance(value, str | int | float) and value != ""
