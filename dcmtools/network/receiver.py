"""C-STORE as SCP, into the archive: what is acknowledged is stored (PS3.4 B.2, PS3.7 9.1.1, DESIGN §5).

The data set goes from the wire to a temporary file as it comes, the sender's bytes kept, and is walked to its exact end
while it does; its UIDs are held against the command, it is committed, and only then the peer gets its answer. What can
be done after the answer is done then: the sender prepares its next object meanwhile.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from dcmtools.disk.archive import Archive
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
from dcmtools.network.association import Association, Message
from dcmtools.network.command import Command
from dcmtools.network.upper_layer import TimedOut

_MAX_COMMENT = 64
# Bytes a second: who moves, however slowly, may go on; who drips only holds the place of others.
_SLOWEST = 256
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


class Receiver:
    """Stores into one archive what comes in over any number of associations.

    `on_record` gets the instance record of each object (state received, present or conflict), or an error record; it
    is called by the association, which it must not hold up. `min_free` bytes are left free on the archive's disk.
    Without `fsync` what is acknowledged survives our end, but not the machine's.
    """

    def __init__(
        self, archive: Archive, on_record: Callable[[Record], None], *, min_free: int = 0, fsync: bool = True
    ) -> None:
        self.archive, self.min_free, self.fsync = archive, min_free, fsync
        self._on_record = on_record
        self._stack = ExitStack()
        self._desks: dict[str, Desk] = {}
        self._outlines: OutlinesBySyntax = {}

    def __enter__(self) -> Self:
        self._incoming = self._stack.enter_context(self.archive.incoming())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def store(self, association: Association, message: Message) -> None:
        """Receives the object of a C-STORE request, and answers when it is stored or when it cannot be."""
        request = _requested(association, message)
        desk = self._desk(association)
        with ExitStack() as after:
            try:
                verdict = self._verdict(request, association, message, desk, after)
            except ProtocolError as problem:  # the peer is gone, and with it what it had sent
                after.close()
                self._on_record(problem.record(**request.keys))
                raise
            self._on_record(verdict.record)
            for _ in association.fragments():  # of an object that was refused before its end
                pass
            association.send(message.context, _response(message, request, verdict))

    def end(self, association: Association) -> None:
        """Gives back what was kept for an association, which is over."""
        if desk := self._desks.pop(association.id, None):
            desk.close()

    def _desk(self, association: Association) -> Desk:
        desk = self._desks.get(association.id)
        if desk is None:
            desk = self._desks[association.id] = Desk(self.archive, self._incoming, fsync=self.fsync)
        return desk

    def _verdict(
        self, request: _Request, association: Association, message: Message, desk: Desk, after: ExitStack
    ) -> _Verdict:
        """What becomes of the object; of one that is refused a part may still be unread."""
        abstract = message.context.abstract
        if not stores(abstract):
            problem = BadData(f"{abstract} is not a storage SOP class", cause="not-storage")
            return _refused(request, status.SOP_CLASS_NOT_SUPPORTED, problem)
        if not message.has_data:
            return _refused(request, status.CANNOT_UNDERSTAND, BadData("no data set came", cause="truncated"))
        try:
            self._check_room()
            file = desk.temporary()
            after.callback(desk.clear, file)
            arrival = self._arrived(file, request, association)
            return self._kept(file, arrival, request, abstract, desk)
        except OSError as problem:
            return _refused(request, status.OUT_OF_RESOURCES, from_os(problem, "storing in", self.archive.root))
        except _NO_RESOURCES as problem:
            return _refused(request, status.OUT_OF_RESOURCES, problem)

    def _check_room(self) -> None:
        if self.min_free:
            self.archive.require_free(self.min_free)

    def _arrived(self, file: Temporary, request: _Request, association: Association) -> Arriving:
        """The object after it was written to a file, and walked, as it came."""
        arriving = Arriving(request.syntax, self._outlines)
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

    def _kept(self, file: Temporary, arrival: Arriving, request: _Request, abstract: str, desk: Desk) -> _Verdict:
        """Commits a file that is what its sender says; others may be the only copy, and are kept in quarantine."""
        try:
            record = _checked(file, arrival, request, abstract)
            committed = desk.admit(file, {**record, "node": request.node})
        except BadData as problem:
            kept = self.archive.quarantine(file.path, request.keys, problem.cause)
            code = status.IDENTIFIER_MISMATCH if problem.cause == "mismatch" else status.CANNOT_UNDERSTAND
            reason = problem.reason.removeprefix(f"{path_keys(file.path)['path']}: ")
            return _refused(request, code, BadData(reason, _ADVICE, cause=problem.cause), **path_keys(kept))
        record = {**committed.record, "association": request.association}
        if committed.state == "conflict":
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


def _response(message: Message, request: _Request, verdict: _Verdict) -> Command:
    """The C-STORE-RSP (PS3.7 9.3.1.2)."""
    command: Command = {
        "AffectedSOPClassUID": request.sop_class,
        "AffectedSOPInstanceUID": request.sop_instance,
        "CommandField": commands.C_STORE_RSP,
        "MessageIDBeingRespondedTo": message.command.get("MessageID") or 0,
        "Status": verdict.code,
    }
    if verdict.comment:
        command["ErrorComment"] = verdict.comment[:_MAX_COMMENT]
    return {key: value for key, value in command.items() if value != ""}
