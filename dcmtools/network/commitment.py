"""Storage commitment, push model: the node takes over the responsibility for what it was sent (PS3.4 Annex J).

The request goes over an association of its own. The report may come on it, or on one that the node opens to us: then
it comes to the port at which the node knows us, where we listen as long as we wait; or, when the `listen` of our
archive has that port, to that, which leaves it for us.
"""

import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dcmtools.disk.lock import holder
from dcmtools.disk.reports import Reports
from dcmtools.model.errors import DcmtoolsError, ProtocolError, TryLater
from dcmtools.model.node import Local, Node
from dcmtools.model.record import Record, type_of
from dcmtools.model.uids import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    STORAGE_COMMITMENT,
    VERIFICATION,
)
from dcmtools.network import command as commands
from dcmtools.network import status
from dcmtools.network.acceptor import Acceptor, Policy
from dcmtools.network.association import Association, Message, Released
from dcmtools.network.commitment_report import REASONS, Report, Results, results_of, take
from dcmtools.network.door import Port
from dcmtools.network.listen import LISTENS, LOCK_NAME, echo, unrecognized
from dcmtools.network.requestor import request
from dcmtools.network.response import Stop, never, response

if TYPE_CHECKING:
    from pydicom import Dataset

    from dcmtools.network.command import Command

_WELL_KNOWN = "1.2.840.10008.1.20.1.1"  # PS3.4 J.3.5
_SYNTAXES = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)
_REQUEST = 1
# Instances in one request, and seconds after which those that wait for the others are asked for all the same.
_AT_ONCE, _PATIENCE = 500, 10.0
# Seconds for which the association of the request is kept for the report; many nodes report on another one.
_KEPT = 5.0
_LOOK = 0.1
_STORED = frozenset({"sent", "warning", "skipped"})


def committed(
    records: Iterable[Record],
    node: Node,
    local: Local,
    *,
    seconds: float,
    archive: Path | None = None,
    stop: Stop = never,
) -> Generator[Record]:
    """The records of `store`, in their order, each stored instance after the node has taken it over or has not.

    `committed` tells which, beside the TransactionUID; what is not committed within so many seconds has failed. Where
    the `listen` of the archive holds the port to which the node reports, that takes the reports for us.
    """
    with ExitStack() as stack:
        desk = _Desk(node, local, archive)
        stack.callback(desk.close)
        waiting: list[Record] = []
        since = time.monotonic()
        for record in records:
            since = since if waiting else time.monotonic()
            waiting.append(record)
            if len(waiting) >= _AT_ONCE or time.monotonic() - since > _PATIENCE:
                yield from desk.settle(waiting, seconds, stop)
                waiting = []
        yield from desk.settle(waiting, seconds, stop)


class _Desk:
    """Where requests go out and reports come in."""

    def __init__(self, node: Node, local: Local, archive: Path | None) -> None:
        self.node, self.local, self._archive = node, local, archive
        self._news = threading.Condition()
        self._reports: dict[str, Results] = {}
        self._asked = ""  # the Transaction UID of the request whose report is waited for
        self._acceptor: Acceptor | None = None
        self._shut: DcmtoolsError | None = None
        self._left: Reports | None = None  # where the listen of the archive leaves them, which has the port

    def close(self) -> None:
        """Takes no more reports."""
        if self._acceptor:
            self._acceptor.drain(1.0)

    def settle(self, records: Sequence[Record], seconds: float, stop: Stop) -> Generator[Record]:
        """The records after the node was asked to commit those that are stored."""
        stored = {_uid(one, "SOPInstanceUID"): _uid(one, "SOPClassUID") for one in records if _is_stored(one)}
        transaction, problem = _new_uid(), None
        results: Results = {}
        if stored:
            try:
                results = self._ask(transaction, stored, seconds, stop)
            except DcmtoolsError as one:
                problem = one
        for record in records:
            yield self._told(record, transaction, results, problem) if _is_stored(record) else record

    def _ask(self, transaction: str, stored: Mapping[str, str], seconds: float, stop: Stop) -> Results:
        self._asked = transaction
        self._open()
        deadline = time.monotonic() + seconds
        with self._expected(transaction):
            with request(self.node, self.local, [(STORAGE_COMMITMENT, _SYNTAXES)]) as association:
                self._request(association, transaction, stored, stop)
                until = min(deadline, time.monotonic() + _KEPT)
                while not self._has(transaction) and time.monotonic() < until and not stop():
                    if association.wait(_LOOK) and not self._take_here(association):
                        break
            with self._news:
                while not self._has(transaction) and time.monotonic() < deadline and not stop():
                    self._news.wait(_LOOK)
        if transaction not in self._reports:
            raise _stopped() if stop() else self._silent(seconds)
        return self._reports.pop(transaction)

    @contextmanager
    def _expected(self, transaction: str) -> Iterator[None]:
        """Has a report kept for us within the block, where another process takes it."""
        if self._left is None:
            yield
            return
        self._left.expect(transaction)
        try:
            yield
        finally:
            self._left.forget(transaction)

    def _has(self, transaction: str) -> bool:
        """Whether the report has come."""
        if self._left and (found := self._left.get(transaction)):
            self._reports[transaction] = results_of(found)
        return transaction in self._reports

    def _request(self, association: Association, transaction: str, stored: Mapping[str, str], stop: Stop) -> None:
        """Sends the N-ACTION (PS3.7 10.1.4, PS3.4 J.3.2)."""
        context = association.require(STORAGE_COMMITMENT, "storage commitment")
        rq: Command = {
            "RequestedSOPClassUID": STORAGE_COMMITMENT,
            "CommandField": commands.N_ACTION_RQ,
            "MessageID": association.next_message_id(),
            "RequestedSOPInstanceUID": _WELL_KNOWN,
            "ActionTypeID": _REQUEST,
        }
        association.send(context, rq, _encoded(transaction, stored, context.syntax))
        answer = response(association, rq, stop)
        if answer is None:
            raise _stopped()
        if answer.command["Status"] != status.SUCCESS:
            raise status.failure(answer.command, "N-ACTION", association.where)

    def _take_here(self, association: Association) -> bool:
        """Takes what came on the association of the request; whether it is still open: the report may need none."""
        try:
            self._take(association, association.receive())
        except Released:
            association.answer_release()
            return False
        except ProtocolError:
            association.abort()
            return False
        return True

    def _take(self, association: Association, message: Message) -> None:
        """Takes a report; answers an echo, too."""
        if message.field == commands.N_EVENT_REPORT_RQ:
            take(association, message, self._keep)
        elif message.field == commands.C_ECHO_RQ:
            echo(association, message)
        else:
            unrecognized(association, message)

    def _keep(self, report: Report) -> None:
        """Keeps the report that is waited for; others come too late, or from somebody else."""
        with self._news:
            if report.transaction == self._asked:
                self._reports[report.transaction] = report.results
                self._news.notify_all()

    def _serve(self, association: Association) -> None:
        while True:
            self._take(association, association.receive(idle=association.timeouts.idle))

    def _open(self) -> None:
        """Listens for reports, once; where that cannot be, they may still come on the association of the request."""
        if self._acceptor or self._shut or self._left:
            return
        policy = Policy(ae_title=self.local.ae_title, choose=_choose, max_associations=8)
        port = self.node.listen_port or self.local.port
        try:
            self._acceptor = Acceptor(Port(self.local.bind, port), policy, self._serve, _ignore)
        except DcmtoolsError as problem:
            self._left = self._left_by_listen(port)
            self._shut = None if self._left else problem
        else:
            self._acceptor.start()

    def _left_by_listen(self, port: int) -> Reports | None:
        """Where the listen of our archive leaves reports, if it is that which has the port."""
        if self._archive is None or not (note := holder(self._archive / LOCK_NAME)):
            return None
        is_theirs = note.get("purpose") == LISTENS and note.get("port") == port
        return Reports(self._archive) if is_theirs else None

    def _silent(self, seconds: float) -> DcmtoolsError:
        port = self.node.listen_port or self.local.port
        reason = f"{self.node.where} did not report within {seconds:g} s whether it commits what it was sent"
        if self._shut:
            reason += f"; {self._shut.reason}, so that it could not report there"
        advice = f"see that it knows {self.local.ae_title} at this machine's port {port}, or wait longer"
        return TryLater(reason, advice, cause="no-report")

    def _told(self, record: Record, transaction: str, results: Results, problem: DcmtoolsError | None) -> Record:
        told = {**record, "committed": False, "TransactionUID": transaction}
        code = results.get(_uid(record, "SOPInstanceUID"))
        if not problem and code == 0:
            return {**told, "committed": True}
        if not problem:
            words = "its report says nothing of it" if code is None else REASONS.get(code, f"reason {code:04X}")
            kind = TryLater if code == 0x0213 else ProtocolError
            problem = kind(f"{self.node.where} did not commit it: {words}", "send it again", cause="not-committed")
        failed = {"state": "failed", "cause": problem.cause, "reason": problem.reason, "exit_code": problem.exit_code}
        return {**told, **failed, **({"advice": problem.advice} if problem.advice else {})}


def _stopped() -> TryLater:
    return TryLater("stopped before the node had answered", "run it again")


def _is_stored(record: Record) -> bool:
    return type_of(record) in {"instance", "file"} and record.get("state") in _STORED


def _uid(record: Record, key: str) -> str:
    """A UID of an instance as it was sent."""
    return str((record.get("sent_as") or {}).get(key) or record.get(key) or "")


def _new_uid() -> str:
    import uuid

    return f"2.25.{uuid.uuid4().int}"  # PS3.5 B.2


def _choose(abstract: str, syntaxes: tuple[str, ...]) -> str | None:
    if abstract not in {STORAGE_COMMITMENT, VERIFICATION}:
        return None
    return next((one for one in _SYNTAXES if one in syntaxes), "")


def _ignore(_problem: DcmtoolsError) -> None:
    """Who else knocks at the port is nothing to the user."""


def _encoded(transaction: str, stored: Mapping[str, str], syntax: str) -> bytes:
    from pydicom import Dataset
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset

    made = Dataset()
    made.TransactionUID = transaction
    made.ReferencedSOPSequence = [_reference(sop_class, instance) for instance, sop_class in stored.items()]
    out = DicomBytesIO()
    out.is_little_endian, out.is_implicit_VR = True, syntax == IMPLICIT_VR_LITTLE_ENDIAN
    write_dataset(out, made)
    return bytes(out.getvalue())


def _reference(sop_class: str, instance: str) -> "Dataset":
    from pydicom import Dataset

    made = Dataset()
    made.ReferencedSOPClassUID, made.ReferencedSOPInstanceUID = sop_class, instance
    return made
