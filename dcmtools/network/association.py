"""An association: two application entities that agreed on contexts, and DIMSE messages between them (PS3.7 6, PS3.8 7).

One blocking thread drives one association. Data sets are bytes that nobody here looks into: they leave as they lie
in their file, and they arrive as a run of fragments, so that memory does not grow with the object.
"""

import contextlib
import os
import secrets
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from dcmtools.model.errors import BadData, ProtocolError, Refused, TryLater, Unavailable
from dcmtools.network import command as commands
from dcmtools.network import pdu
from dcmtools.network.command import Command
from dcmtools.network.upper_layer import IOV_MAX, Connection, Part, TimedOut

MAX_CONTEXTS = 128
MAX_COMMAND = 64 * 1024
_PDV = struct.Struct(">BxIIBB")
_PIECE = 4 << 20
# Large data sets leave through a buffer that stays in the processor's cache.
_BUFFER = 256 << 10
_UNLIMITED_FRAGMENT = 1 << 20

SERVICE_USER, SERVICE_PROVIDER = 0, 2
_ABORT_REASONS = {
    1: "unrecognized PDU",
    2: "unexpected PDU",
    4: "unrecognized PDU parameter",
    5: "unexpected PDU parameter",
    6: "invalid PDU parameter value",
}


class Aborted(ProtocolError):
    """The peer aborted the association."""

    cause = "aborted"


class Released(Exception):
    """The peer asked for the release of the association: its orderly end, no failure."""


@dataclass(frozen=True, slots=True)
class Context:
    """An accepted presentation context; `scu` and `scp` are the roles of the requestor in it (PS3.7 D.3.3.4)."""

    id: int
    abstract: str
    syntax: str
    scu: bool = True
    scp: bool = False


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds: for A-ASSOCIATE and A-RELEASE, for a DIMSE response, for a PDU that has begun, without any traffic."""

    acse: float = 30.0
    dimse: float = 60.0
    pdu: float = 60.0
    idle: float = 60.0


@dataclass(frozen=True, slots=True)
class Message:
    """A command that has arrived; with `has_data` its data set is still to be read from the association."""

    context: Context
    command: Command
    has_data: bool

    @property
    def field(self) -> int:
        """The Command Field (PS3.7 E.1)."""
        return int(self.command["CommandField"])


class Association:
    """An open association, on either side of it.

    `window` is how many operations its requestor may have invoked before the first is answered (PS3.7 D.3.3.3).
    """

    def __init__(
        self,
        connection: Connection,
        contexts: Sequence[Context],
        ours: pdu.Negotiation,
        theirs: pdu.Negotiation,
        where: str,
        timeouts: Timeouts = Timeouts(),
    ) -> None:
        self.connection = connection
        self.contexts: Mapping[int, Context] = {one.id: one for one in contexts}
        self.ours, self.theirs, self.where, self.timeouts = ours, theirs, where, timeouts
        self.id = secrets.token_hex(6)
        self.window = _window(ours.window[0], theirs.window[0])
        self.open = True
        self.busy = False  # set by a server from the arrival of a message until it was answered
        self._fragment = (theirs.max_pdu - 6) & ~1 if theirs.max_pdu > 8 else _UNLIMITED_FRAGMENT
        self._values: deque[tuple[int, int, memoryview]] = deque()
        self._data_of: int | None = None
        self._message_id = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.release()
        else:
            self.abort()

    # Contexts

    def context_for(self, abstract: str, syntax: str | None = None) -> Context | None:
        """The accepted context for an abstract syntax, and for this transfer syntax where one is named."""
        for context in self.contexts.values():
            if context.abstract == abstract and syntax in {None, context.syntax}:
                return context
        return None

    def require(self, abstract: str, service: str) -> Context:
        """The accepted context for an abstract syntax; Unavailable when the peer does not offer the service."""
        if context := self.context_for(abstract):
            return context
        raise Unavailable(f"{self.where} does not offer {service}", "ask its administrator", cause="not-offered")

    def next_message_id(self) -> int:
        """A message ID that is not in use (PS3.7 9.1)."""
        self._message_id = self._message_id % 65535 + 1
        return self._message_id

    # Sending

    def send(self, context: Context, command: Command, data: bytes | memoryview | None = None) -> None:
        """Sends one message in one write."""
        self.connection.write(self._message(context, command, data), self.timeouts.pdu)

    def send_each(self, messages: Iterable[tuple[Context, Command]]) -> None:
        """Sends several messages without data sets in one write."""
        parts = (part for context, command in messages for part in self._message(context, command, None))
        self.connection.write(parts, self.timeouts.pdu)

    def prepared(self, context: Context, command: Command, data: bytes | memoryview) -> list[Part]:
        """The message as `send_prepared` sends it: made while the peer is busy, it leaves at once afterwards."""
        return list(self._message(context, command, data))

    def send_prepared(self, parts: Sequence[Part]) -> None:
        """Sends a message that was prepared on this association."""
        self.connection.write(parts, self.timeouts.pdu)

    def send_file(self, context: Context, command: Command, file: int, offset: int, length: int) -> None:
        """Sends a message whose data set is the part of an open file; large ones go in pieces through one buffer.

        BadData when the file is too short: of a large one the peer has a part by then, so the association must end.
        """
        if length <= _PIECE:
            data = os.pread(file, length, offset)
            if len(data) < length:
                raise _became_shorter()
            self.send(context, command, data)
            return
        self.connection.write(self._message(context, command, None, follows=True), self.timeouts.pdu)
        buffer, places = self._framed(context.id)
        room = len(places) * self._fragment
        while length > room:
            if os.preadv(file, places, offset) < room:
                raise _became_shorter()
            self.connection.write([buffer], self.timeouts.pdu)
            length, offset = length - room, offset + room
        rest = os.pread(file, length, offset)
        if len(rest) < length:
            raise _became_shorter()
        self.connection.write(self._fragments(context.id, memoryview(rest)), self.timeouts.pdu)

    def _framed(self, context: int) -> tuple[memoryview, list[memoryview]]:
        """A buffer with some P-DATA-TF PDUs of full length, and the places in it for their data.

        It leaves again and again, filled anew: neither is a PDU put together each time, nor is its data copied.
        """
        size = _PDV.size + self._fragment
        count = min(max(1, _BUFFER // size), IOV_MAX)
        header = _PDV.pack(pdu.P_DATA, self._fragment + 6, self._fragment + 2, context, 0)
        buffer = memoryview(bytearray((header + bytes(self._fragment)) * count))
        return buffer, [buffer[start + _PDV.size : start + size] for start in range(0, len(buffer), size)]

    def _message(
        self, context: Context, command: Command, data: bytes | memoryview | None, *, follows: bool = False
    ) -> Iterator[Part]:
        present = follows or data is not None
        command = {**command, "CommandDataSetType": commands.DATA_SET if present else commands.NO_DATA_SET}
        yield from self._fragments(context.id, memoryview(commands.encode(command)), flag=pdu.COMMAND_FLAG)
        if data is not None:
            yield from self._fragments(context.id, memoryview(data))

    def _fragments(self, context: int, data: memoryview, *, flag: int = 0, last: bool = True) -> Iterator[Part]:
        """The data as P-DATA-TF PDUs with one presentation data value each; an odd end is padded (PS3.5 7.1)."""
        size, length = self._fragment, len(data)
        padding = length % 2 if last else 0
        position = 0
        while position < length or not position:
            piece = data[position : position + size]
            position += size
            final = position >= length
            count = len(piece) + (padding if final else 0)
            flags = flag | (pdu.LAST_FLAG if final and last else 0)
            yield _PDV.pack(pdu.P_DATA, count + 6, count + 2, context, flags)
            yield piece
        if padding:
            yield b"\0"

    # Receiving

    def receive(self, seconds: float | None = None, *, idle: float | None = None) -> Message:
        """The next message's command. Its data set, if any, must then be read with `fragments` or `read_data`.

        Released when the peer asks for release instead, Aborted when it aborts, TimedOut when it stays silent.
        """
        if self._data_of is not None:
            for _ in self.fragments():
                pass
        limit = self.timeouts.dimse if seconds is None else seconds
        raw, context, end = bytearray(), 0, 0.0
        while True:
            one, flags, fragment = self._next(
                max(0.001, end - time.monotonic()) if raw else limit, None if raw else idle
            )
            end = end or time.monotonic() + limit  # for all of the command, in however many pieces
            if not flags & pdu.COMMAND_FLAG or (raw and one != context):
                raise self._broken("a data set where a command was due")
            context = one
            raw += fragment
            if len(raw) > MAX_COMMAND:
                raise self._broken(f"a command of more than {MAX_COMMAND} bytes")
            if flags & pdu.LAST_FLAG:
                return self._arrived(context, commands.decode(bytes(raw)))

    def fragments(self) -> Iterator[memoryview]:
        """The data set of the message just received, as it arrives; each fragment holds until the next is asked for."""
        while self._data_of is not None:
            context, flags, fragment = self._next(self.timeouts.pdu, self.timeouts.idle)
            if flags & pdu.COMMAND_FLAG or context != self._data_of:
                raise self._broken("a command where a data set was due")
            if flags & pdu.LAST_FLAG:
                self._data_of = None
            yield fragment

    @property
    def came_whole(self) -> bool:
        """Whether the last fragment of the data set has been given."""
        return self._data_of is None

    def read_data(self, limit: int = 1 << 20) -> bytes:
        """The data set of the message just received, as bytes; ProtocolError when it is longer than `limit`."""
        data = bytearray()
        for fragment in self.fragments():
            data += fragment
            if len(data) > limit:
                raise self._broken(f"an identifier of more than {limit} bytes")
        return bytes(data)

    def wait(self, seconds: float = 0, wake: int | None = None) -> bool:
        """Whether something of the peer's can be read, such as a C-CANCEL; waits for it or for `wake` that long."""
        return bool(self._values) or self.connection.wait(seconds, wake)

    @property
    def holds_more(self) -> bool:
        """Whether something of the peer's was read already that nobody has received yet."""
        return bool(self._values) or self.connection.holds_more

    def _arrived(self, context: int, command: Command) -> Message:
        agreed = self.contexts.get(context)
        if agreed is None:
            raise self._broken(f"a message in context {context}, which was not agreed on")
        has_data = commands.has_data_set(command)
        self._data_of = context if has_data else None
        return Message(agreed, command, has_data)

    def _next(self, seconds: float, idle: float | None) -> tuple[int, int, memoryview]:
        """The next presentation data value, whichever way the peer packed it."""
        while not self._values:
            kind, body = self.connection.read(seconds, idle)
            if kind == pdu.P_DATA:
                self._values.extend(pdu.presentation_data(body))
            elif kind == pdu.RELEASE_RQ:
                raise Released
            elif kind == pdu.ABORT:
                self._close()
                raise Aborted(f"{self.where} aborted the association ({_abort_words(body)})", "see the log of the peer")
            else:
                raise self._broken(f"a PDU of type {kind:02x} in the middle of an association")
        return self._values.popleft()

    def _broken(self, what: str) -> ProtocolError:
        return ProtocolError(f"{self.where} sent {what}", "its DICOM implementation is broken")

    # The end

    def release(self) -> None:
        """Ends the association in order, reading over what the peer still sends; never fails, all messages are done."""
        if not self.open:
            return
        with contextlib.suppress(ProtocolError):
            self.connection.write([pdu.RELEASE_REQUEST], self.timeouts.acse)
            deadline = time.monotonic() + self.timeouts.acse
            while (left := deadline - time.monotonic()) > 0:
                kind, _ = self.connection.read(left)
                if kind in {pdu.RELEASE_RP, pdu.ABORT}:
                    break
                if kind == pdu.RELEASE_RQ:  # both asked at once (PS3.8 7.2.2.7): answer, then wait for ours
                    self.connection.write([pdu.RELEASE_REPLY], left)
        self._close()

    def answer_release(self) -> None:
        """Answers the peer's request for release and closes."""
        if self.open:
            with contextlib.suppress(ProtocolError):
                self.connection.write([pdu.RELEASE_REPLY], self.timeouts.acse)
            self._close()

    def abort(self, source: int = SERVICE_USER, reason: int = 0) -> None:
        """Ends the association at once (PS3.8 7.3)."""
        if self.open:
            with contextlib.suppress(ProtocolError):
                self.connection.write([pdu.encode_abort(source, reason)], 1.0)
            self._close()

    def _close(self) -> None:
        self.open = False
        self.connection.close()


def establish(connection: Connection, request: pdu.Request, where: str, timeouts: Timeouts) -> Association:
    """The association that the acceptor grants to a request; Refused, TryLater or ProtocolError when it does not."""
    try:
        connection.write([pdu.encode_request(request)], timeouts.acse)
        kind, body = connection.read(timeouts.acse)
    except TimedOut:
        raise TimedOut(
            f"{where} did not answer the association request in {timeouts.acse:g} s", "see whether it hangs"
        ) from None
    except ProtocolError as problem:
        raise type(problem)(f"{where}: {problem.reason}", problem.advice, cause=problem.cause) from problem
    if kind == pdu.ASSOCIATE_RJ:
        raise rejected(bytes(body), request, where)
    if kind == pdu.ABORT:
        raise Aborted(f"{where} aborted the association request ({_abort_words(body)})", "see the log of the peer")
    if kind != pdu.ASSOCIATE_AC:
        raise ProtocolError(f"{where} answered an association request with a PDU of type {kind:02x}", "see its log")
    accept = pdu.decode_accept(bytes(body))
    return Association(connection, agreed(request, accept), request, accept, where, timeouts)


def agreed(request: pdu.Request, accept: pdu.Accept) -> list[Context]:
    """The contexts that both sides agreed on, with the requestor's roles in them."""
    proposed = {one.id: one for one in request.contexts}
    contexts = []
    for answer in accept.contexts:
        proposal = proposed.get(answer.id)
        if proposal is None or answer.result != pdu.ACCEPTED:
            continue
        if answer.syntax not in proposal.syntaxes:
            raise ProtocolError(f"the peer accepted {answer.syntax}, which was not proposed for {proposal.abstract}")
        scu, scp = accept.roles.get(proposal.abstract, (True, False))
        asked_scu, asked_scp = request.roles.get(proposal.abstract, (True, False))
        contexts.append(Context(answer.id, proposal.abstract, answer.syntax, scu and asked_scu, scp and asked_scp))
    return contexts


def proposals(wanted: Sequence[tuple[str, Sequence[str]]]) -> tuple[pdu.Proposal, ...]:
    """The presentation contexts, with their odd ids, for at most 128 pairs of abstract and transfer syntaxes."""
    if len(wanted) > MAX_CONTEXTS:
        raise ValueError(f"{len(wanted)} presentation contexts, {MAX_CONTEXTS} are possible")
    return tuple(
        pdu.Proposal(2 * number + 1, abstract, tuple(syntaxes)) for number, (abstract, syntaxes) in enumerate(wanted)
    )


def _window(ours: int, theirs: int) -> int:
    """How many operations are agreed on; 0 means no limit on its side, and one is what none of us goes below."""
    return min(ours or theirs, theirs or ours) or 1


def _became_shorter() -> BadData:
    return BadData("the file became shorter while it was sent", "run the same command again", cause="changed")


def _abort_words(body: memoryview | bytes) -> str:
    source, reason = (body[2], body[3]) if len(body) >= 4 else (0, 0)
    if source == SERVICE_USER:
        return "by its application"
    return _ABORT_REASONS.get(reason, "reason not given")


# Source and reason of A-ASSOCIATE-RJ (PS3.8 9.3.4): words, advice.
_REJECTIONS: dict[tuple[int, int], tuple[str, str]] = {
    (1, 2): ("application context name not supported", "see whether it is a DICOM node"),
    (1, 3): ("calling AE title '{calling}' not recognized", "have its administrator register our AE title and address"),
    (1, 7): ("called AE title '{called}' not recognized", "correct ae_title of the node; case counts"),
    (2, 2): ("protocol version not supported", "see whether it is a DICOM node"),
    (3, 1): ("temporary congestion", "try again later"),
    (3, 2): ("local limit exceeded: it serves no more associations now", "try again later"),
}


def rejected(body: bytes, request: pdu.Request, where: str) -> Refused | TryLater:
    """What the body of an A-ASSOCIATE-RJ means."""
    result, source, reason = body[1:4] if len(body) >= 4 else (1, 1, 1)
    words, advice = _REJECTIONS.get((source, reason), ("no reason given", "ask its administrator"))
    words = words.format(calling=request.calling, called=request.called)
    kind: Callable[..., Any] = TryLater if result == 2 else Refused
    cause = {(1, 3): "calling-ae-title", (1, 7): "called-ae-title"}.get((source, reason), "rejected")
    error: Refused | TryLater = kind(f"{where} rejected the association: {words}", advice, cause=cause)
    return error
