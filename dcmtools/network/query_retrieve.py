"""The query/retrieve SCP: C-FIND, C-MOVE and C-GET answered from an index (PS3.4 C.4.1.3, C.4.2.3, C.4.3.3).

Keys of any level are matched at any level, whether relational queries were negotiated or not: an index can tell.
"""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field

from dcmtools.disk.index import Index
from dcmtools.model.errors import BadData, ConfigurationError, DcmtoolsError, IOFailure, ProtocolError, TryLater
from dcmtools.model.keys import BY_KEYWORD
from dcmtools.model.node import Local, Node
from dcmtools.model.query import Query
from dcmtools.model.record import UNIQUE_KEY, Level, Record
from dcmtools.model.uids import PATIENT_ROOT_FIND, PATIENT_ROOT_GET, PATIENT_ROOT_MOVE
from dcmtools.network import command, identifier, status
from dcmtools.network.association import Association, Context, Message
from dcmtools.network.parcel import Parcel, look_at
from dcmtools.network.store import store

_PATIENT_ROOT = frozenset({PATIENT_ROOT_FIND, PATIENT_ROOT_GET, PATIENT_ROOT_MOVE})
_PENDING = 0xFF00
# Seconds between two words on how a retrieval goes.
_TELL_EVERY = 0.25
# What is computed for each answer, and never matched.
_COMPUTED = frozenset({"QueryRetrieveLevel", "RetrieveAETitle", "InstanceAvailability", "SpecificCharacterSet"})
_MATCHED = frozenset({*BY_KEYWORD, "ModalitiesInStudy"}) - _COMPUTED
_UNIQUE = frozenset(UNIQUE_KEY.values())

Handler = Callable[[Association, Message], None]
Destination = Callable[[str], Node | None]


class _Refusal(Exception):
    """A request that is answered with a failure status and a comment, and nothing else."""

    def __init__(self, code: int, comment: str) -> None:
        super().__init__(comment)
        self.code, self.comment = code, comment


class _Cancelled(Exception):
    """The peer has asked to cancel."""


@dataclass(slots=True)
class _Counts:
    """The sub-operations of one retrieval (PS3.7 9.1.3, 9.1.4)."""

    remaining: int
    completed: int = 0
    failed: int = 0
    warning: int = 0
    failed_uids: list[str] = field(default_factory=list)

    def note(self, record: Record) -> None:
        self.remaining -= 1
        state = record.get("state")
        if state in {"sent", "warning"}:
            self.completed += state == "sent"
            self.warning += state == "warning"
        else:
            self.failed += 1
            self.failed_uids.append(str(record.get("SOPInstanceUID")))

    def keys(self, *, remaining: bool) -> dict[str, int]:
        return {
            **({"NumberOfRemainingSuboperations": self.remaining} if remaining else {}),
            "NumberOfCompletedSuboperations": self.completed,
            "NumberOfFailedSuboperations": self.failed,
            "NumberOfWarningSuboperations": self.warning,
        }

    @property
    def code(self) -> int:
        """The final status (PS3.4 C.4.2.1.5)."""
        if self.failed and not (self.completed or self.warning):
            return status.UNABLE_TO_PERFORM
        return status.SUBOPERATIONS_FAILED if self.failed or self.warning else status.SUCCESS


class QueryRetrieve:
    """Answers queries and retrievals from one index; `destination` finds the node behind an AE title."""

    def __init__(self, index: Index, destination: Destination, local: Local) -> None:
        self.index, self.destination, self.local = index, destination, local

    @property
    def handlers(self) -> Mapping[int, Handler]:
        """The service of each command."""
        return {command.C_FIND_RQ: self.find, command.C_MOVE_RQ: self.move, command.C_GET_RQ: self.get}

    def find(self, association: Association, message: Message) -> None:
        """Answers a C-FIND: one pending response a match, then the final one."""
        try:
            wanted, query = _asked(association, message)
            for record in self._found(query):
                answer = self._answer(record, wanted, query.level)
                charset = "" if all(str(value).isascii() for value in answer.values()) else "ISO_IR 192"
                data = identifier.encode(answer, message.context.syntax, charset)
                association.send(message.context, _response(message, _PENDING), data)
                _look_for_cancel(association)
            association.send(message.context, _response(message, status.SUCCESS))
        except _Refusal as refusal:
            association.send(message.context, _refused(message, refusal))
        except _Cancelled:
            association.send(message.context, _response(message, status.CANCEL))

    def move(self, association: Association, message: Message) -> None:
        """Answers a C-MOVE: sends the instances to their destination over an association of our own."""
        try:
            instances = self._instances(association, message)
            node = self._destination(message)
            origin = (association.theirs.calling, int(message.command.get("MessageID") or 0))
            self._retrieve(association, message, instances, _to(node, self.local, instances, origin))
        except _Refusal as refusal:
            association.send(message.context, _refused(message, refusal))

    def get(self, association: Association, message: Message) -> None:
        """Answers a C-GET: sends the instances over the same association, in the contexts in which the peer is SCP."""
        try:
            instances = self._instances(association, message)
            self._retrieve(association, message, instances, _over(association, instances))
        except _Refusal as refusal:
            association.send(message.context, _refused(message, refusal))

    def _answer(self, record: Record, wanted: Iterable[str], level: Level) -> Record:
        """What the peer asked for of a record, and what names it."""
        keywords = [*(keyword for keyword in wanted if keyword not in _COMPUTED), UNIQUE_KEY[level]]
        return {
            **{keyword: record.get(keyword) for keyword in keywords},
            "QueryRetrieveLevel": identifier.LEVEL_WORD[level],
            "RetrieveAETitle": self.local.ae_title,
            "InstanceAvailability": "ONLINE",
        }

    def _destination(self, message: Message) -> Node:
        title = str(message.command.get("MoveDestination") or "")
        try:
            node = self.destination(title)
        except ConfigurationError as problem:
            raise _Refusal(status.MOVE_DESTINATION_UNKNOWN, f"Move Destination {title} ambiguous") from problem
        if node is None:
            raise _Refusal(status.MOVE_DESTINATION_UNKNOWN, f"Move Destination {title} unknown")
        return node

    def _instances(self, association: Association, message: Message) -> list[Record]:
        """The instances that a retrieval's unique keys name, and nothing but these (PS3.4 C.4.2.2.1)."""
        _, query = _asked(association, message)
        uids = {keyword: value for keyword, value in query.keys.items() if keyword in _UNIQUE}
        unique = UNIQUE_KEY[query.level]
        if unique not in uids or any(char in value for value in uids.values() for char in "*?"):
            raise _Refusal(status.IDENTIFIER_MISMATCH, f"No {unique} in the identifier")
        return list(self._found(Query("instance", uids)))

    def _found(self, query: Query) -> Iterator[Record]:
        """What the index finds; an index that cannot be read is a refusal, which tells the peer no path of ours."""
        try:
            yield from self.index.find(query)
        except (DcmtoolsError, OSError) as problem:
            passing = isinstance(problem, IOFailure | TryLater | OSError)
            code = status.OUT_OF_RESOURCES if passing else status.CANNOT_UNDERSTAND
            raise _Refusal(code, "The index cannot be read") from problem

    def _retrieve(
        self, association: Association, message: Message, instances: list[Record], sending: Generator[Record]
    ) -> None:
        """Runs the sub-operations and tells the peer how they go, now and then and at the end."""
        counts, told = _Counts(len(instances)), time.monotonic()
        with closing(sending):
            try:
                for record in sending:
                    counts.note(record)
                    _look_for_cancel(association)
                    if counts.remaining and time.monotonic() - told > _TELL_EVERY:
                        told = time.monotonic()
                        pending = {**_response(message, _PENDING), **counts.keys(remaining=True)}
                        association.send(message.context, pending)
            except _Cancelled:
                association.send(message.context, {**_response(message, status.CANCEL), **counts.keys(remaining=True)})
                return
        final = {**_response(message, counts.code), **counts.keys(remaining=False)}
        failed = {"FailedSOPInstanceUIDList": counts.failed_uids}
        data = identifier.encode(failed, message.context.syntax, "") if counts.failed else None
        association.send(message.context, final, data)


def _to(node: Node, local: Local, instances: list[Record], origin: tuple[str, int]) -> Generator[Record]:
    """Sends instances to a node; what keeps all of them from it is a refusal of the retrieval."""
    try:
        yield from store(instances, node, local, origin=origin)
    except DcmtoolsError as problem:
        raise _Refusal(status.UNABLE_TO_PERFORM, problem.reason) from None


def _over(association: Association, instances: Iterable[Record]) -> Generator[Record]:
    """Sends instances over the requestor's own association, each with the state of what came of it."""
    for record in instances:
        yield {**record, "state": _sent(association, record)}


def _sent(association: Association, record: Record) -> str:
    """The state of an instance after it was sent, or could not be; to break off in the middle ends the association."""
    try:
        item = look_at(0, record)
        context = _as_scp(association, item.meta.sop_class, item.meta.syntax)
        if context is None:
            return "failed"
        parcel = Parcel(item)  # which is whole, or an error
    except DcmtoolsError:
        return "failed"
    try:
        _send(association, context, parcel)
    finally:
        parcel.close()
    code = _answered(association)
    return "sent" if code == status.SUCCESS else "warning" if status.is_warning(code) else "failed"


def _send(association: Association, context: Context, parcel: Parcel) -> None:
    """Sends the C-STORE request of one sub-operation (PS3.7 9.1.1)."""
    meta = parcel.item.meta
    rq: command.Command = {
        "AffectedSOPClassUID": meta.sop_class,
        "CommandField": command.C_STORE_RQ,
        "MessageID": association.next_message_id(),
        "Priority": command.MEDIUM,
        "AffectedSOPInstanceUID": meta.sop_instance,
    }
    if parcel.data is None:
        association.send_file(context, rq, parcel.file, meta.offset, parcel.length)
    else:
        association.send(context, rq, parcel.data)


def _as_scp(association: Association, sop_class: str, syntax: str) -> Context | None:
    """The context in which the peer takes such an instance: it must have asked for the SCP's role in it."""
    for context in association.contexts.values():
        if context.scp and (context.abstract, context.syntax) == (sop_class, syntax):
            return context
    return None


def _answered(association: Association) -> int:
    """The status of the peer's answer to a C-STORE; it may send a C-CANCEL instead, or before."""
    answer = association.receive()
    if answer.field == command.C_CANCEL_RQ:
        association.receive()
        raise _Cancelled
    if answer.field != command.C_STORE_RSP:
        raise ProtocolError(f"{association.where} answered something else than a C-STORE", "see its log")
    return int(answer.command["Status"])


def _asked(association: Association, message: Message) -> tuple[list[str], Query]:
    """The keywords that the peer wants back, and the query that its identifier means."""
    if not message.has_data:
        raise _Refusal(status.IDENTIFIER_MISMATCH, "No identifier")
    try:
        asked = identifier.decode(association.read_data(), message.context.syntax)
    except BadData as problem:
        raise _Refusal(status.CANNOT_UNDERSTAND, problem.reason) from None
    level = identifier.LEVEL_OF.get(str(asked.get("QueryRetrieveLevel") or "").strip().upper())
    if level is None or (level == "patient" and message.context.abstract not in _PATIENT_ROOT):
        raise _Refusal(status.IDENTIFIER_MISMATCH, "Query/Retrieve Level missing or not of this model")
    keys = {keyword: _text(value) for keyword, value in asked.items() if keyword in _MATCHED}
    return list(asked), Query(level, {keyword: value for keyword, value in keys.items() if value not in {"", "*"}})


def _text(value: object) -> str:
    if isinstance(value, list):
        return "\\".join(str(one) for one in value)
    return "" if value is None else str(value)


def _response(message: Message, code: int) -> command.Command:
    return {
        "AffectedSOPClassUID": message.context.abstract,
        "CommandField": message.field | 0x8000,
        "MessageIDBeingRespondedTo": message.command.get("MessageID") or 0,
        "Status": code,
    }


def _refused(message: Message, refusal: _Refusal) -> command.Command:
    return {**_response(message, refusal.code), "ErrorComment": refusal.comment[:64]}


def _look_for_cancel(association: Association) -> None:
    """Raises _Cancelled when the peer has asked to cancel (PS3.7 9.3.2.3); it may say nothing else while it waits."""
    if association.wait():
        if association.receive().field != command.C_CANCEL_RQ:
            raise ProtocolError(f"{association.where} asks again before it was answered", "see its log")
        raise _Cancelled
