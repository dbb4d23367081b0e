"""C-STORE as SCP, into the archive: what is acknowledged is stored (PS3.4 B.2, PS3.7 9.1.1, DESIGN §5).

The data set goes from the wire to a temporary file as it comes, the sender's bytes kept, and is walked to its exact end
while it does; its UIDs are held against the command, it is committed, and only then the peer gets its answer. What can
be done after the answer is done then: the sender prepares its next object meanwhile.
"""

import errno
import resource
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Self

from dcmtools.disk.archive import Archive, Committed
from dcmtools.disk.arriving import Arriving, OutlinesBySyntax
from dcmtools.disk.desk import Desk, Temporary
from dcmtools.disk.header import check_received, encode_meta
from dcmtools.model.errors import (
    BadData,
    CannotCreate,
    DcmtoolsError,
    DiskFull,
    IOFailure,
    NoInput,
    ProtocolError,
    TryLater,
    from_os,
)
from dcmtools.model.names import is_uid
from dcmtools.model.record import Record, path_keys
from dcmtools.network import command as commands
from dcmtools.network import status
from dcmtools.network.acceptance import stores
from dcmtools.network.association import Association, Context, Message
from dcmtools.network.command import Command
from dcmtools.network.upper_layer import TimedOut

_MAX_COMMENT = 64
# Bytes a second: who moves, however slowly, may go on; who drips only holds the place of others.
_SLOWEST = 256
# Objects of one association that are made durable together, and bytes; each keeps a descriptor until then.
_TOGETHER, _MUCH = 16, 64 << 20
# Descriptors that are left for all else, and for what each association opens beside them.
_RESERVED, _EACH = 64, 8
# Seconds that an object which came whole waits for the one behind it.
_PATIENCE = 0.05
CONFLICT = BadData(
    "another instance with this UID came first, and stays",
    "compare the two; this one is kept in quarantine",
    cause="conflict",
)
_ADVICE = "what came is kept in quarantine; look at it, and have it sent again"
# What we fail at is no fault of the object's: the sender may try again.
_NO_RESOURCES = (CannotCreate, IOFailure, NoInput, TryLater)


@dataclass(frozen=True, slots=True)
class _Request:
    """A C-STORE request, as far as the storing goes by it."""

    sop_class: str
    sop_instance: str
    syntax: str
    node: str
    association: str

    @property
    def keys(self) -> Record:
        """What a record says of it in any case."""
        uids = {"SOPClassUID": self.sop_class, "SOPInstanceUID": self.sop_instance}
        return {**uids, "node": self.node, "association": self.association}


@dataclass(frozen=True, slots=True)
class _Verdict:
    """How a request is answered, and the record of it."""

    code: int
    record: Record
    comment: str = ""


@dataclass(slots=True)
class _Object:
    """An object that has come: its file and record when it came whole, and what to answer, once that is known."""

    request: _Request
    message: Message
    file: Temporary | None = None
    record: Record = field(default_factory=dict)
    verdict: _Verdict | None = None

    @property
    def size(self) -> int:
        """The bytes of its file."""
        return self.file.size if self.file else 0


@dataclass(slots=True)
class _Work:
    """What has come over one association, and is not answered yet."""

    association: Association
    desk: Desk
    waiting: list[_Object] = field(default_factory=list)
    open: int = 0  # files

    def temporary(self) -> Temporary:
        """A file for an object."""
        made = self.desk.temporary()
        self.open += 1
        return made

    def clear(self, file: Temporary | None) -> None:
        """Puts the file of an object away, if it has one."""
        if file:
            self.open -= 1
            self.desk.clear(file)


class Receiver:
    """Stores into one archive what comes in over any number of associations.

    `on_record` gets the instance record of each object (state received, present or conflict), or an error record; it
    is called by the association, which it must not hold up. `min_free` bytes are left free on the archive's disk.
    Without `fsync` what is acknowledged survives our end, but not the machine's. At most so many `associations`
    are open at once.
    """

    def __init__(
        self,
        archive: Archive,
        on_record: Callable[[Record], None],
        *,
        min_free: int = 0,
        fsync: bool = True,
        associations: int = 1,
    ) -> None:
        self.archive, self.min_free, self.fsync = archive, min_free, fsync
        self._on_record = on_record
        self._stack = ExitStack()
        self._works: dict[str, _Work] = {}
        self._outlines: OutlinesBySyntax = {}
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        limit = limit if limit != resource.RLIM_INFINITY else sys.maxsize
        self._descriptors = limit - _RESERVED - _EACH * associations

    def __enter__(self) -> Self:
        self._incoming = self._stack.enter_context(self.archive.incoming())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def store(self, association: Association, message: Message) -> None:
        """Receives the object of a C-STORE request, and answers when it is stored or when it cannot be.

        A peer that may have several operations outstanding is answered when it has sent all that it can: what came
        meanwhile is made durable together, at the price of one.
        """
        work = self._work(association)
        request = _requested(association, message)
        try:
            received = self._received(request, message, work)  # meanwhile those that wait may be settled
        except ProtocolError as problem:  # the peer is gone, and with it what it had sent of this one
            self._on_record(problem.record(**request.keys))
            raise
        work.waiting.append(received)
        if self._is_full(work) or not association.wait():
            self._settle(work)
        elif len(work.waiting) == 1:  # it need not wait for one that takes its time
            association.connection.remind(time.monotonic() + _PATIENCE, partial(self._settle, work))

    def settle(self, association: Association) -> None:
        """Answers for all that has come over an association."""
        if work := self._works.get(association.id):
            self._settle(work)

    def end(self, association: Association) -> None:
        """Gives back what was kept for an association, which is over; what had come whole stays."""
        if work := self._works.pop(association.id, None):
            with suppress(ProtocolError):  # it is not there any more to be told
                self._settle(work)
            work.desk.close()

    def _work(self, association: Association) -> _Work:
        work = self._works.get(association.id)
        if work is None:
            desk = Desk(self.archive, self._incoming, fsync=self.fsync)
            work = self._works[association.id] = _Work(association, desk)
        return work

    def _is_full(self, work: _Work) -> bool:
        """Whether no more may wait: each has a descriptor, and those that are there must do for all associations."""
        left = self._descriptors - sum(one.open for one in list(self._works.values()))
        together = min(work.association.window, _TOGETHER)
        return left <= 0 or len(work.waiting) >= together or sum(one.size for one in work.waiting) > _MUCH

    def _settle(self, work: _Work) -> None:
        waiting, work.waiting = work.waiting, []
        if not waiting:
            return
        try:
            whole = [one for one in waiting if one.file and one.verdict is None]
            admitted = work.desk.admit([(one.file, one.record) for one in whole if one.file])
            for one, outcome in zip(whole, admitted, strict=True):
                one.verdict = self._told(one, outcome)
            for one in waiting:
                if one.verdict:
                    self._on_record(one.verdict.record)
            work.association.send_each([_response(one) for one in waiting])
        finally:
            for one in waiting:
                work.clear(one.file)

    def _received(self, request: _Request, message: Message, work: _Work) -> _Object:
        """The object, in a file if it can be stored, after all of it was read."""
        received = _Object(request, message)
        abstract = message.context.abstract
        if not stores(abstract):
            problem = BadData(f"{abstract} is not a storage SOP class", cause="not-storage")
            received.verdict = _refused(request, status.SOP_CLASS_NOT_SUPPORTED, problem)
        elif not message.has_data:
            nothing = BadData("no data set came", cause="truncated")
            received.verdict = _refused(request, status.CANNOT_UNDERSTAND, nothing)
        try:
            if received.verdict is None:
                self._take(received, abstract, work)
            for _ in work.association.fragments():  # of an object that was refused before its end
                pass
        except BaseException:  # the peer is gone, or asks for its release in the middle
            work.clear(received.file)
            raise
        return received

    def _take(self, received: _Object, abstract: str, work: _Work) -> None:
        request = received.request
        try:
            self._check_room()
            received.file = self._temporary(work)
            arrival = self._arrived(received.file, request, work)
            received.record = {**_checked(received.file, arrival, request, abstract), "node": request.node}
        except BadData as problem:
            received.verdict = self._kept(received.file, request, problem)
        except OSError as problem:
            told = from_os(problem, "storing in", self.archive.root)
            received.verdict = _refused(request, status.OUT_OF_RESOURCES, told)
        except _NO_RESOURCES as problem:
            received.verdict = _refused(request, status.OUT_OF_RESOURCES, problem)

    def _temporary(self, work: _Work) -> Temporary:
        try:
            return work.temporary()
        except OSError as problem:
            if problem.errno not in {errno.EMFILE, errno.ENFILE} or not work.waiting:
                raise
        self._settle(work)  # each of those has a descriptor
        return work.temporary()

    def _check_room(self) -> None:
        if self.min_free:
            self.archive.require_free(self.min_free)

    def _arrived(self, file: Temporary, request: _Request, work: _Work) -> Arriving:
        """The object after it was written to a file, and walked, as it came."""
        association, arriving = work.association, Arriving(request.syntax, self._outlines)
        meta = encode_meta(request.sop_class, request.sop_instance, request.syntax, request.node)
        begun, patience = time.monotonic(), association.timeouts.idle
        for fragment in association.fragments():
            if time.monotonic() - begun > patience + arriving.size / _SLOWEST:
                raise TimedOut(f"{association.where} sends less than {_SLOWEST} bytes a second", "see its network")
            if file.size:  # and not what came of the data set: its first fragment may be empty
                file.write(fragment)
            else:
                file.write(meta, fragment)
            arriving.take(fragment, last=association.came_whole)
        file.flush()
        return arriving

    def _kept(self, file: Temporary | None, request: _Request, problem: BadData) -> _Verdict:
        """Refuses what is not what its sender says; it may be the only copy, and is kept in quarantine."""
        where: Record = {}
        if file:
            try:
                where = path_keys(self.archive.quarantine(file.path, request.keys, problem.cause))
            except DcmtoolsError as failure:  # it could not be read again, or not be kept: the sender still has it
                lost = IOFailure(failure.reason, failure.advice, **failure.where)
                return _refused(request, status.OUT_OF_RESOURCES, lost)
            problem = BadData(
                problem.reason.removeprefix(f"{path_keys(file.path)['path']}: "), _ADVICE, cause=problem.cause
            )
        code = status.IDENTIFIER_MISMATCH if problem.cause == "mismatch" else status.CANNOT_UNDERSTAND
        return _refused(request, code, problem, **where)

    def _told(self, one: _Object, outcome: Committed | DcmtoolsError) -> _Verdict:
        """The answer for an object that came whole, after it was to be stored."""
        request = one.request
        if isinstance(outcome, BadData):
            return self._kept(one.file, request, outcome)
        if isinstance(outcome, DcmtoolsError):
            return _refused(request, status.OUT_OF_RESOURCES, outcome)
        record = {**outcome.record, "association": request.association}
        if outcome.state == "conflict":
            told = {**CONFLICT.record(), "type": "instance", "status": status.code(status.DUPLICATE_SOP_INSTANCE)}
            return _Verdict(status.DUPLICATE_SOP_INSTANCE, {**record, **told}, CONFLICT.reason)
        return _Verdict(status.SUCCESS, record)


def _requested(association: Association, message: Message) -> _Request:
    command = message.command
    return _Request(
        sop_class=str(command.get("AffectedSOPClassUID") or ""),
        sop_instance=str(command.get("AffectedSOPInstanceUID") or ""),
        syntax=message.context.syntax,
        node=association.theirs.calling,
        association=association.id,
    )


def _checked(file: Temporary, arrival: Arriving, request: _Request, abstract: str) -> Record:
    """The record of what came; BadData when it is no whole instance, or another one than the command says."""
    if request.sop_class != abstract:
        raise BadData("the command's SOP class is not that of its context", cause="mismatch")
    if not is_uid(request.sop_instance):
        raise BadData("Affected SOP Instance UID is not a UID", cause="bad-uid")
    if arrival.is_sure:
        return arrival.record(request.sop_class, request.sop_instance)
    offset = file.size - arrival.size
    return check_received(file.path, request.sop_class, request.sop_instance, request.syntax, offset)


def _refused(request: _Request, code: int, problem: DcmtoolsError, **where: Any) -> _Verdict:
    """The answer and the error record for an object that is not stored; the peer is told no path of ours."""
    record = {**problem.record(), **request.keys, **where, "status": status.code(code)}
    if isinstance(problem, BadData):
        return _Verdict(code, record, problem.reason)
    return _Verdict(code, record, "the disk is full" if isinstance(problem, DiskFull) else "cannot store at present")


def _response(one: _Object) -> tuple[Context, Command]:
    """The C-STORE-RSP (PS3.7 9.3.1.2)."""
    verdict, request = one.verdict, one.request
    command: Command = {
        "AffectedSOPClassUID": request.sop_class,
        "AffectedSOPInstanceUID": request.sop_instance,
        "CommandField": commands.C_STORE_RSP,
        "MessageIDBeingRespondedTo": one.message.command.get("MessageID") or 0,
        "Status": verdict.code if verdict else status.OUT_OF_RESOURCES,
    }
    if verdict and verdict.comment:
        command["ErrorComment"] = verdict.comment[:_MAX_COMMENT]
    return one.message.context, {key: value for key, value in command.items() if value != ""}
