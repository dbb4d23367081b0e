"""Listening: what other nodes send goes into the archive, and what else they ask is answered (PS3.4 A, B; PS3.7 9).

One listener an archive. It is a command of its own, and a part of `move`, which brings its own receiver.
"""

import os
import queue
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType, TracebackType
from typing import Any, Protocol, Self

from dcmtools.disk.archive import Archive
from dcmtools.disk.atomic import make_folders
from dcmtools.disk.lock import Lock
from dcmtools.disk.reports import Reports
from dcmtools.model.errors import DcmtoolsError, Locked, ProtocolError, from_os
from dcmtools.model.node import Local
from dcmtools.model.record import Record, event
from dcmtools.model.uids import VERIFICATION
from dcmtools.network import command as commands
from dcmtools.network import status
from dcmtools.network.acceptance import chooser
from dcmtools.network.acceptor import COURTESY, Acceptor, Policy
from dcmtools.network.association import Association, Message, Timeouts
from dcmtools.network.commitment_report import Report, take
from dcmtools.network.door import Door, Port
from dcmtools.network.hosts import Hosts
from dcmtools.network.receiver import Receiver
from dcmtools.network.seats import Seats
from dcmtools.network.supervision import Supervisor, inherited_socket
from dcmtools.network.upper_layer import Closed, TimedOut

Handler = Callable[[Association, Message], None]
Services = Mapping[int, Handler]
Stop = Callable[[], bool]

LOCK_NAME = ".dcmtools-listen.lock"
LISTENS = "listen"
GRACE = 20.0
_POLL = 0.2
# Records are handed on a batch at a time: to wake up for each costs the associations a fifth of their speed.
_BATCH = 0.02
# Operations that a peer which asks for it may have outstanding: some come in while others are made durable.
_WINDOW = 32
STORED = frozenset({"received", "present"})
_RESPONSE = 0x8000
_NO_SERVICES: Services = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Options:
    """Whom a listener lets in, what it takes, and how long it waits.

    `peers` are the calling AE titles that may come in, empty for all; `hosts` says which addresses may. `compression`
    are transfer syntaxes in the order in which we like them. `min_free` are the bytes that stay free on the disk.
    Without `fsync` what was acknowledged is on the disk only some seconds later.
    """

    peers: frozenset[str] = frozenset()
    hosts: Callable[[str], bool] = field(default_factory=Hosts)
    check_called: bool = False
    max_associations: int = 64
    max_per_host: int | None = None
    tls: ssl.SSLContext | None = None
    compression: tuple[str, ...] = ()
    private_classes: bool = False
    min_free: int = 0
    fsync: bool = True
    timeouts: Timeouts = field(default_factory=lambda: Timeouts(acse=10, pdu=30, idle=60))


@dataclass(frozen=True, slots=True)
class Share:
    """What a listener is given that is one of several for one archive: its way in, and whom it tells what.

    `ended` hears of each connection that is over, `released` of each association, and whether it stored anything.
    """

    door: Door
    seats: Seats
    ended: Callable[[], None]
    released: Callable[[bool], None]


class Listener:
    """A port that is open for other nodes, from `with` to its end.

    Records of what arrives go to `on_record`, what is wrong with a peer to `notice`; neither may block, for both are
    called by the associations. Locked (75) when another listener has the archive, TryLater (75) when a program holds
    the port, Refused (77) when we may not have it. The port may be given as the socket that was opened for us; with a
    share in what another process has, neither port nor archive are taken.
    """

    def __init__(
        self,
        archive: Archive,
        local: Local,
        on_record: Callable[[Record], None],
        *,
        options: Options | None = None,
        services: Services = _NO_SERVICES,
        notice: Callable[[DcmtoolsError], None] = lambda _: None,
        purpose: str = LISTENS,
        given: socket.socket | Share | None = None,
    ) -> None:
        self.archive, self.local, self.options, self._purpose = archive, local, options or Options(), purpose
        self._on_record, self._notice = on_record, notice
        self._services = {**services, commands.N_EVENT_REPORT_RQ: self._take_report} if purpose == LISTENS else services
        self._socket = None if isinstance(given, Share) else given
        self._share = given if isinstance(given, Share) else None
        self._handlers: dict[int, Handler] = {}
        self._storing: set[str] = set()
        self._counting = threading.Lock()
        self._stack = ExitStack()
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._acceptor = self._opened(stack)
            options = self.options
            receiver = Receiver(
                self.archive,
                self._arrived,
                min_free=options.min_free,
                fsync=options.fsync,
                associations=options.max_associations,
            )
            self._receiver = stack.enter_context(receiver)
            self._handlers = {commands.C_ECHO_RQ: echo, commands.C_STORE_RQ: receiver.store, **self._services}
            stack.callback(self.drain)
            self._acceptor.start()
            self._stack = stack.pop_all()
        return self

    def _opened(self, stack: ExitStack) -> Acceptor:
        if (share := self._share) is not None:
            return Acceptor(share.door, self._policy(), self._serve, self._notice, seats=share.seats, ended=share.ended)
        door = stack.enter_context(opened(self.archive, self.local, self._socket, self._purpose))
        acceptor = Acceptor(door, self._policy(), self._serve, self._notice)
        stack.callback(acceptor.stop_accepting)
        return acceptor

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def port(self) -> int:
        """The port, chosen by the system where ours is 0."""
        return self._acceptor.port

    @property
    def active(self) -> int:
        """How many associations are open now."""
        return self._acceptor.active

    @property
    def counts(self) -> Counter[str]:
        """How many `connections`, `associations`, `rejections` (of associations), `stored` (instances) there were."""
        return self._acceptor.counts

    @property
    def quiet(self) -> float:
        """The seconds since there was an association."""
        return 0.0 if self.active else time.monotonic() - self._last

    @property
    def is_well(self) -> bool:
        """Whether all that serves associations is alive: here it is our own process."""
        return True

    def drain(self, grace: float = GRACE) -> bool:
        """Closes the port and lets the objects in hand be finished; whether none had to be cut short."""
        return self._acceptor.drain(grace)

    def listening(self) -> Record:
        """The event that says where we can be reached."""
        return event("listening", port=self.port, ae_title=self.local.ae_title, pid=os.getpid())

    # One association

    def _serve(self, association: Association) -> None:
        """Answers one message after the other, until the peer has enough or we close."""
        try:
            while message := self._next(association):
                association.busy = True
                if message.field != commands.C_STORE_RQ:  # whose answers may wait for one another
                    self._receiver.settle(association)
                self._handlers.get(message.field, unrecognized)(association, message)
                association.busy = False
        finally:
            self._receiver.end(association)
            self._last = time.monotonic()
            with self._counting:
                has_stored = association.id in self._storing
                self._storing.discard(association.id)
                self.counts["storing associations"] += has_stored
            if self._share:
                self._share.released(has_stored)

    def _next(self, association: Association) -> Message | None:
        """The next message; None when the peer says nothing, or says something more although we close."""
        draining = self._acceptor.draining
        timeouts = association.timeouts
        try:
            message = association.receive(timeouts.pdu, idle=COURTESY if draining else timeouts.idle)
        except TimedOut:
            return None
        except Closed:
            if self._acceptor.draining:
                return None
            raise
        return None if draining else message

    def _take_report(self, association: Association, message: Message) -> None:
        """Takes a report of storage commitment for whoever waits for it, and tells of it."""
        if problem := take(association, message, partial(self._keep, association.theirs.calling)):
            self._notice(problem)

    def _keep(self, node: str, report: Report) -> None:
        record = report.record(node)
        Reports(self.archive.root).put(report.transaction, record)
        self._on_record(record)

    def _arrived(self, record: Record) -> None:
        if record.get("state") in STORED:
            with self._counting:
                self.counts["stored"] += 1
                self._storing.add(str(record.get("association")))
        self._on_record(record)

    def _policy(self) -> Policy:
        options = self.options
        return Policy(
            ae_title=self.local.ae_title,
            choose=chooser(self._services, options.compression, private=options.private_classes),
            check_called=options.check_called,
            window=_WINDOW,
            peers=options.peers,
            hosts=options.hosts,
            max_associations=options.max_associations,
            max_per_host=options.max_per_host,
            tls=options.tls,
            timeouts=options.timeouts,
        )


@contextmanager
def opened(archive: Archive, local: Local, sock: socket.socket | None, purpose: str, **more: Any) -> Iterator[Port]:
    """Port and archive, both ours within the block; the lock tells others what has them."""
    try:
        make_folders(archive.root)
    except OSError as problem:
        raise from_os(problem, "making the archive", archive.root) from problem
    with ExitStack() as stack:
        port = None
        if sock or not local.port:  # what the system chose stands in the lock
            port = stack.enter_context(closing(Port(local.bind, local.port, sock)))
        details = {"ae_title": local.ae_title, "port": port.port if port else local.port, **more}
        try:
            stack.enter_context(Lock(archive.root / LOCK_NAME, purpose, **details))
        except Locked as problem:
            raise _held(archive, problem) from None
        yield port or stack.enter_context(closing(Port(local.bind, local.port)))


def _held(archive: Archive, problem: Locked) -> Locked:
    holder = problem.where.get("holder", {})
    what, pid, title, number = (holder.get(key, "?") for key in ("purpose", "pid", "ae_title", "port"))
    reason = f"{archive.root} has a receiver already: {what}, process {pid}, {title} on port {number}"
    return Locked(reason, "wait for its end, stop it, or use another archive", **problem.where)


class Reception(Protocol):
    """What receives: a listener, or several of them under one roof."""

    @property
    def port(self) -> int:
        """The port that is open."""

    @property
    def counts(self) -> Counter[str]:
        """How many `storing associations` and `stored` instances there were."""

    @property
    def quiet(self) -> float:
        """The seconds since there was an association."""

    @property
    def is_well(self) -> bool:
        """Whether all that serves associations is alive."""

    def listening(self) -> Record:
        """The event that says where it can be reached."""

    def drain(self, grace: float = GRACE) -> bool:
        """Closes the port and lets the objects in hand be finished; whether none had to be cut short."""


@dataclass(frozen=True, slots=True)
class Until:
    """When to stop by itself: after the first association that stored, so many instances, or so many idle seconds."""

    once: bool = False
    count: int | None = None
    idle: float | None = None

    def reached(self, reception: Reception) -> bool:
        """Whether it is time."""
        return (
            (self.once and reception.counts["storing associations"] > 0)
            or (self.count is not None and reception.counts["stored"] >= self.count)
            or (self.idle is not None and reception.quiet >= self.idle)
        )


FOR_EVER = Until()
# A reception that puts its records into a queue, at a port of its own or at the socket that was opened for it.
Open = Callable[["queue.SimpleQueue[Record]", socket.socket | None], AbstractContextManager[Reception]]


def listen(
    archive: Archive,
    local: Local,
    *,
    options: Options | None = None,
    services: Services = _NO_SERVICES,
    until: Until = FOR_EVER,
    stop: Stop = lambda: False,
    notice: Callable[[DcmtoolsError], None] = lambda _: None,
    grace: float = GRACE,
) -> Iterator[Record]:
    """The `listening` event, then a record for each instance that arrives, until told to stop.

    What associations have in hand then is finished within `grace` seconds.
    """

    def begin(arrived: "queue.SimpleQueue[Record]", sock: socket.socket | None) -> Listener:
        return Listener(archive, local, arrived.put, options=options, services=services, notice=notice, given=sock)

    return received(begin, until=until, stop=stop, grace=grace)


def received(begin: Open, *, until: Until, stop: Stop, grace: float) -> Iterator[Record]:
    """The records of a reception from its `listening` event to its end."""
    arrived: queue.SimpleQueue[Record] = queue.SimpleQueue()
    supervisor, sock = Supervisor(), inherited_socket()
    with begin(arrived, sock) as reception:
        supervisor.ready(reception.port)
        yield reception.listening()
        while not (stop() or until.reached(reception)):
            if reception.is_well:
                supervisor.alive()
            try:
                yield arrived.get(timeout=_POLL)
            except queue.Empty:
                continue
            yield from _waiting(arrived)
            time.sleep(_BATCH)
        supervisor.stopping()
        reception.drain(grace)
    yield from _waiting(arrived)


def _waiting(records: queue.SimpleQueue[Record]) -> Iterator[Record]:
    while not records.empty():
        yield records.get()


def echo(association: Association, message: Message) -> None:
    """Answers a C-ECHO (PS3.7 9.1.5)."""
    association.send(message.context, {**_response(message, status.SUCCESS), "AffectedSOPClassUID": VERIFICATION})


def unrecognized(association: Association, message: Message) -> None:
    """Answers a request for a service that is not offered here (PS3.7 C.5.23)."""
    if message.field & _RESPONSE:
        raise ProtocolError(f"{association.where} sent a response to nothing", "its DICOM implementation is broken")
    if message.field != commands.C_CANCEL_RQ:  # which comes late: what it is about has ended
        association.send(message.context, _response(message, status.UNRECOGNIZED_OPERATION))


def _response(message: Message, code: int) -> commands.Command:
    return {
        "CommandField": message.field | _RESPONSE,
        "MessageIDBeingRespondedTo": message.command.get("MessageID") or 0,
        "Status": code,
    }
