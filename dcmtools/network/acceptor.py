"""Accepting associations: one thread accepts, and each connection has a thread of its own under deadlines (PS3.8 7.1).

A connection that says nothing holds nobody up: it is counted apart from associations, its thread ends at the ACSE
deadline, and where there are too many of them the oldest goes first. The TLS handshake, where there is one, is done in
that thread as well. Running out of descriptors makes the accepting thread wait, not spin.
"""

import contextlib
import itertools
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import MappingProxyType

from dcmtools.model.errors import DcmtoolsError, ProtocolError, Refused, TryLater
from dcmtools.model.uids import APPLICATION_CONTEXT, IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION
from dcmtools.network import pdu
from dcmtools.network.association import SERVICE_PROVIDER, Association, Context, Released, Timeouts
from dcmtools.network.door import Door
from dcmtools.network.seats import Seats
from dcmtools.network.upper_layer import MAX_PDU, Connection, reset

PERMANENT, TRANSIENT = 1, 2
_SILENT_FACTOR = 4
# Seconds that a peer between two messages has for its release when we close.
COURTESY = 1.0
# The cause of the error of a peer that only looks whether the port is open, as monitors do: no cause for alarm.
NOTHING_SAID = "nothing-said"

Choose = Callable[[str, tuple[str, ...]], str | None]
Serve = Callable[[Association], None]
Notice = Callable[[DcmtoolsError], None]


@dataclass(frozen=True, slots=True)
class Policy:
    """Whom and what an acceptor accepts.

    `choose` names the transfer syntax for an abstract syntax out of those proposed, "" when none of them will do,
    None when the abstract syntax is not supported. `peers` are the calling AE titles that may come in, empty for all;
    `hosts` says which addresses may. One host has at most `max_per_host` of the associations; by default a quarter of
    them, but for this machine itself. `window` is how many operations a requestor that asks for it may have invoked
    before the first is answered (PS3.7 D.3.3.3).
    """

    ae_title: str
    choose: Choose
    check_called: bool = False
    peers: frozenset[str] = frozenset()
    max_pdu: int = MAX_PDU
    window: int = 1
    hosts: Callable[[str], bool] = lambda _: True
    max_associations: int = 64
    max_per_host: int | None = None
    timeouts: Timeouts = field(default_factory=Timeouts)
    tls: ssl.SSLContext | None = None


class Acceptor:
    """A door, and the associations that come in through it.

    `serve` is called in the association's thread and returns at its end; `notice` hears of what went wrong with a peer,
    `ended` of each connection that is over. `seats` are those of the policy, unless they are shared with others.
    """

    def __init__(
        self,
        door: Door,
        policy: Policy,
        serve: Serve,
        notice: Notice,
        *,
        seats: Seats | None = None,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self.policy, self._serve, self._notice, self._ended = policy, serve, notice, ended
        self._door, self.port = door, door.port
        self._seats = seats or Seats(policy.max_associations, policy.max_per_host)
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._numbers = itertools.count(1)
        self._connections: dict[int, socket.socket] = {}
        self._associations: dict[int, Association] = {}
        self.counts: Counter[str] = Counter()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._accept, name="acceptor", daemon=True)

    def start(self) -> None:
        """Begins to accept."""
        self._thread.start()

    def stop_accepting(self) -> None:
        """Closes the door; who is inside stays."""
        self._closing.set()
        self._door.shut()
        if self._thread.ident:
            self._thread.join(5)
        self._door.close()

    def drain(self, grace: float) -> bool:
        """Closes the door and lets those inside finish what they have in hand, for at most `grace` seconds.

        Peers that are between two messages have a moment for their release. Returns whether nobody was cut short.
        """
        self.stop_accepting()
        deadline = time.monotonic() + grace
        with self._idle:
            self._hang_up([sock for number, sock in self._connections.items() if number not in self._associations])
            self._idle.wait_for(lambda: not self._associations, min(COURTESY, grace))
            while self._associations and (left := deadline - time.monotonic()) > 0:
                waiting = {number for number, one in self._associations.items() if not one.busy}
                self._hang_up([self._connections[number] for number in waiting])
                self._idle.wait(min(left, 0.2))
            late = bool(self._associations)
            self._hang_up(self._connections.values())
            if not self._idle.wait_for(lambda: not self._connections, 1):
                self._hang_up(self._connections.values(), socket.SHUT_RDWR)  # it takes nothing of what we send
                self._idle.wait_for(lambda: not self._connections, 5)
        return not late

    @property
    def draining(self) -> bool:
        """Whether the door is closed: no message after the one in hand is taken."""
        return self._closing.is_set()

    @staticmethod
    def _hang_up(sockets: Iterable[socket.socket], how: int = socket.SHUT_RD) -> None:
        """Ends the reads of other threads, which then abort and close: a descriptor is closed by its own thread only.

        Under TLS too it is the plain socket that is shut, so that the abort can still be sent.
        """
        for sock in sockets:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, how)

    @property
    def active(self) -> int:
        """How many associations are open now."""
        return len(self._associations)

    def _accept(self) -> None:
        for sock, host in self._door.connections(self._make_room):
            self.counts["connections"] += 1
            if not self.policy.hosts(host):
                self._notice(Refused(f"{host} may not connect", "allow its address", cause="host"))
                reset(sock)
                self._ended()
                continue
            if len(self._connections) >= self.policy.max_associations * (1 + _SILENT_FACTOR):
                self._make_room()
            self._begin(sock, host)

    def _begin(self, sock: socket.socket, host: str) -> None:
        number = next(self._numbers)
        with self._lock:
            self._connections[number] = sock
        try:
            threading.Thread(target=self._attend, args=(number, sock, host), daemon=True).start()
        except RuntimeError:  # no more threads
            reset(sock)
            self._forget(number, host)

    def _make_room(self) -> None:
        """Hangs up on who has been here longest without an association, so that the next may have its place."""
        with self._lock:
            if oldest := next((number for number in self._connections if number not in self._associations), None):
                self._hang_up([self._connections[oldest]], socket.SHUT_RDWR)

    def _attend(self, number: int, sock: socket.socket, host: str) -> None:
        """The life of one connection; whatever a peer does ends here and harms nobody else."""
        try:
            connection = Connection(self._secured(number, sock), self.policy.max_pdu)
            if association := self._negotiate(number, connection, host):
                self._run(association)
        except DcmtoolsError as problem:
            self._notice(problem)
        except ssl.SSLError as problem:
            reason = f"{host}: the TLS handshake failed: {problem.reason or problem}"
            self._notice(ProtocolError(reason, "see whether it speaks TLS, with a certificate", cause="tls-handshake"))
        except OSError as problem:
            self._notice(ProtocolError(f"{host}: {problem.strerror or problem}"))
        except Exception as problem:  # noqa: BLE001 - the door of a worker: a defect of ours must not stop the server
            self._notice(DcmtoolsError(f"{host}: {type(problem).__name__} while serving an association"))
        finally:
            self._forget(number, host)

    def _forget(self, number: int, host: str) -> None:
        with self._idle:
            self._connections.pop(number).close()
            if self._associations.pop(number, None):
                self._seats.leave(host)
            self._idle.notify_all()
        self._ended()

    def _secured(self, number: int, sock: socket.socket) -> socket.socket:
        sock.settimeout(self.policy.timeouts.acse)
        if not self.policy.tls:
            return sock
        secured = self.policy.tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        with self._lock:
            self._connections[number] = secured
        secured.do_handshake()
        return secured

    def _run(self, association: Association) -> None:
        try:
            self._serve(association)
        except Released:
            association.answer_release()
        except ProtocolError as problem:
            self._notice(problem)
        finally:
            association.abort(SERVICE_PROVIDER)  # does nothing after an orderly end

    def _negotiate(self, number: int, connection: Connection, host: str) -> Association | None:
        request = self._requested(connection, host)
        with self._lock:
            rejection = self._rejection(request)
            if not rejection:
                accept, contexts = self._answer(request)
                where = f"{request.calling}@{host}"
                association = Association(connection, contexts, accept, request, where, self.policy.timeouts)
                if full := self._seats.take(host):
                    rejection = (TRANSIENT, 3, 2), TryLater(f"{_who(request)}: {full}")
                else:
                    self._associations[number] = association
            self.counts["rejections" if rejection else "associations"] += 1
        if rejection:
            connection.write([pdu.encode_reject(*rejection[0])], self.policy.timeouts.acse)
            _linger(connection)
            raise rejection[1]
        connection.write([pdu.encode_accept(accept)], self.policy.timeouts.acse)
        return association

    def _requested(self, connection: Connection, host: str) -> pdu.Request:
        try:
            return _decoded(*connection.read(self.policy.timeouts.acse))
        except ProtocolError as problem:
            with contextlib.suppress(ProtocolError):
                connection.write([pdu.encode_abort(SERVICE_PROVIDER, 2)], 1)
            cause = NOTHING_SAID if connection.is_silent else problem.cause
            raise ProtocolError(f"{host}: {problem.reason}", problem.advice, cause=cause) from None

    def _rejection(self, request: pdu.Request) -> tuple[tuple[int, int, int], DcmtoolsError] | None:
        """Result, source and reason of the rejection that a request deserves (PS3.8 9.3.4)."""
        who = _who(request)
        if request.application_context != APPLICATION_CONTEXT:
            return (PERMANENT, 1, 2), Refused(f"{who}: application context {request.application_context[:64]}")
        if self.policy.check_called and request.called != self.policy.ae_title:
            return (PERMANENT, 1, 7), Refused(
                f"{who}: it calls '{request.called}', we are '{self.policy.ae_title}'",
                "correct the AE title at the peer",
            )
        if self.policy.peers and request.calling not in self.policy.peers:
            return (PERMANENT, 1, 3), Refused(
                f"{who}: it is not among the nodes that may come in", "allow its AE title"
            )
        return None

    def _answer(self, request: pdu.Request) -> tuple[pdu.Accept, list[Context]]:
        answers, contexts = [], []
        for proposal in request.contexts:
            syntax = self.policy.choose(proposal.abstract, proposal.syntaxes)
            if syntax:
                answers.append(pdu.Answer(proposal.id, pdu.ACCEPTED, syntax))
                scu, scp = request.roles.get(proposal.abstract, (True, False))
                contexts.append(Context(proposal.id, proposal.abstract, syntax, scu, scp))
            else:
                why = pdu.ABSTRACT_SYNTAX_UNKNOWN if syntax is None else pdu.TRANSFER_SYNTAXES_UNKNOWN
                answers.append(pdu.Answer(proposal.id, why, proposal.syntaxes[0]))
        accept = pdu.Accept(
            called=request.called,
            calling=request.calling,
            max_pdu=self.policy.max_pdu,
            window=(min(request.window[0] or self.policy.window, self.policy.window), 1),
            implementation_class=IMPLEMENTATION_CLASS_UID,
            implementation_version=IMPLEMENTATION_VERSION,
            roles=MappingProxyType(
                {uid: roles for uid, roles in request.roles.items() if self.policy.choose(uid, ()) is not None}
            ),
            contexts=tuple(answers),
        )
        return accept, contexts


def _who(request: pdu.Request) -> str:
    return f"association from '{request.calling}' rejected"


def _decoded(kind: int, body: memoryview) -> pdu.Request:
    if kind != pdu.ASSOCIATE_RQ:
        raise ProtocolError(f"the peer sent a PDU of type {kind:02x} where an association request was due")
    return pdu.decode_request(bytes(body))


def _linger(connection: Connection) -> None:
    """Waits a moment for the peer to close first: closing at once could cost it our last words."""
    with contextlib.suppress(ProtocolError):
        connection.read(2)
