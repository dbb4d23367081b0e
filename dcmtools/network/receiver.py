"""C-STORE as SCP, into the archive: what is acknowledged is stored (PS3.4 B.2, PS3.7 9.1.1, DESIGN §5).

The data set goes from the wire to a temporary file as it comes, the sender's bytes kept; then it is walked to its exact
end, its UIDs are held against the command, it is committed, and only then the peer gets its answer.
"""

import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dcmtools.disk.archive import Archive
from dcmtools.disk.atomic import FILE_MODE
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

_BUFFER = 128 * 1024
_MAX_COMMENT = 64
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
    """

    def __init__(self, archive: Archive, on_record: Callable[[Record], None], *, min_free: int = 0) -> None:
        self.archive, self.min_free = archive, min_free
        self._on_record = on_record
        self._stack = ExitStack()

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
        try:
            verdict = self._verdict(request, association, message)
        except ProtocolError as problem:  # the peer is gone, and with it what it had sent
            self._on_record(problem.record(**request.keys))
            raise
        self._on_record(verdict.record)
        for _ in association.fragments():  # of an object that was refused before its end
            pass
        association.send(message.context, _response(message, request, verdict))

    def _verdict(self, request: _Request, association: Association, message: Message) -> _Verdict:
        """What becomes of the object; of one that is refused a part may still be unread."""
        abstract = message.context.abstract
        if not stores(abstract):
            problem = BadData(f"{abstract} is not a storage SOP class", cause="not-storage")
            return _refused(request, status.SOP_CLASS_NOT_SUPPORTED, problem)
        if not message.has_data:
            return _refused(request, status.CANNOT_UNDERSTAND, BadData("no data set came", cause="truncated"))
        path = self._incoming.new_path()
        try:
            self._check_room()
            offset = self._write(path, request, association)
            return self._kept(path, offset, request, abstract)
        except OSError as problem:
            return _refused(request, status.OUT_OF_RESOURCES, from_os(problem, "storing in", self.archive.root))
        except _NO_RESOURCES as problem:
            return _refused(request, status.OUT_OF_RESOURCES, problem)
        finally:
            with suppress(OSError):
                path.unlink()

    def _check_room(self) -> None:
        if self.min_free:
            self.archive.require_free(self.min_free)

    def _write(self, path: Path, request: _Request, association: Association) -> int:
        """Writes the object to a file as it arrives; returns where its data set begins."""
        meta = encode_meta(request.sop_class, request.sop_instance, request.syntax, request.node)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        with open(descriptor, "wb", buffering=_BUFFER) as out:
            out.write(meta)
            out.writelines(association.fragments())
        return len(meta)

    def _kept(self, path: Path, offset: int, request: _Request, abstract: str) -> _Verdict:
        """Commits a file that is what its sender says; others may be the only copy, and are kept in quarantine."""
        try:
            record = _checked(path, offset, request, abstract)
            committed = self.archive.commit(path, {**record, "node": request.node})
        except BadData as problem:
            kept = self.archive.quarantine(path, request.keys, problem.cause)
            code = status.IDENTIFIER_MISMATCH if problem.cause == "mismatch" else status.CANNOT_UNDERSTAND
            reason = problem.reason.removeprefix(f"{path_keys(path)['path']}: ")
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


def _checked(path: Path, offset: int, request: _Request, abstract: str) -> Record:
    """The record of what came; BadData when it is no whole instance, or another one than the command says."""
    if request.sop_class != abstract:
        raise BadData("the command's SOP class is not that of its context", cause="mismatch")
    if not is_uid(request.sop_instance):
        raise BadData("Affected SOP Instance UID is not a UID", cause="bad-uid")
    return check_received(path, request.sop_class, request.sop_instance, request.syntax, offset)


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
