"""One connection of the upper layer: whole PDUs in, whole messages out (PS3.8 9).

Two things make it fast against any peer. Nagle's algorithm is off and a message leaves in one write; and
TCP_QUICKACK is armed again before every receive, because the kernel forgets it, so that a peer that waits for our
acknowledgement (Nagle on its side, 40 ms a message) does not wait. Buffers are allocated once and used again;
nothing is copied that need not be.
"""

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeGuard

from dcmtools.model.errors import ProtocolError
from dcmtools.network import pdu

if TYPE_CHECKING:
    import ssl

MAX_ASSOCIATE = 1 << 20
MAX_PDU = 131072
_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)
_KINDS = frozenset(range(pdu.ASSOCIATE_RQ, pdu.ABORT + 1))
# So many pieces of memory the kernel takes in one system call, and so many bytes we let leave in one.
IOV_MAX, _STRETCH = 1024, 512 << 10
# Some peers count the headers into the length that they were told; that much more is let pass.
_SLACK = 1024
_TLS_ALERT = 0x15


Part = bytes | bytearray | memoryview


class Closed(ProtocolError):
    """The peer closed the connection, or the network broke."""

    cause = "connection-lost"


class TimedOut(ProtocolError):
    """The peer gave no answer within the time that it is given."""

    cause = "no-answer"


class Connection:
    """A connected socket that speaks in PDUs. Not safe for two threads at once.

    `limit` is the longest P-DATA-TF that we announced; longer ones are an error.
    """

    def __init__(self, sock: socket.socket, limit: int = MAX_PDU) -> None:
        self.socket = sock
        self.limit = limit
        self._buffer = bytearray(2 * (limit + 4096))
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._reminder: tuple[float, Callable[[], None]] | None = None
        self._plain = not _is_tls(sock)
        if self._plain:
            sock.settimeout(0)  # so that its descriptor does not block: whoever waits has a deadline
        tcp = sock.family in {socket.AF_INET, socket.AF_INET6}  # and not a socket pair in a test
        self._quick = _QUICKACK is not None and tcp
        if tcp:
            with contextlib.suppress(OSError):  # the peer has gone already: the first read says so
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def read(self, seconds: float, idle: float | None = None) -> tuple[int, memoryview]:
        """The next PDU: its type and its body, which holds until the next read.

        `seconds` are given to the whole PDU; with `idle` that time is given to its first byte instead.
        """
        deadline = time.monotonic() + (seconds if idle is None else idle)
        self._fill(6, deadline)
        if idle is not None:
            deadline = time.monotonic() + seconds
        kind, length = pdu.HEADER.unpack_from(self._buffer, self._start)
        self._check(kind, length)
        self._fill(6 + length, deadline)
        body = self._view[self._start + 6 : self._start + 6 + length]
        self._start += 6 + length
        return kind, body

    @property
    def is_silent(self) -> bool:
        """Whether the peer has not said a byte so far."""
        return self._end == 0

    @property
    def holds_more(self) -> bool:
        """Whether bytes were read from the socket that no `read` has given yet."""
        return self._end > self._start

    def write(self, parts: Iterable[Part], seconds: float) -> None:
        """Sends all the parts as one stretch of bytes; however many they are, few are held at a time."""
        try:
            self._send(parts, seconds)
        except TimeoutError:
            raise TimedOut(f"the peer took no data for {seconds:g} s", "see whether it hangs") from None
        except OSError as problem:
            raise Closed(f"the connection broke while sending: {_words(problem)}", "try again") from problem

    def wait(self, seconds: float = 0, wake: int | None = None) -> bool:
        """Whether something of the peer's can be read; waits that long for it, or for the descriptor `wake`."""
        if self._end > self._start or (_is_tls(self.socket) and self.socket.pending()):
            return True
        poll = select.poll()  # select() ends at descriptor 1024
        for descriptor in (self.socket.fileno(), *(() if wake is None else (wake,))):
            poll.register(descriptor, select.POLLIN)
        return any(found == self.socket.fileno() for found, _ in poll.poll(seconds * 1000))

    def close(self) -> None:
        """Closes the socket, whatever state it is in."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def _send(self, parts: Iterable[Part], seconds: float) -> None:
        every = iter(parts)
        if self._plain:
            self._send_plain(every, seconds)
            return
        self.socket.settimeout(seconds)
        while stretch := _stretch(every):
            self.socket.sendall(stretch[0] if len(stretch) == 1 else b"".join(stretch))

    def _send_plain(self, every: Iterator[Part], seconds: float) -> None:
        """Writes to the descriptor, which never blocks: one system call a message where the socket would make three."""
        descriptor = self.socket.fileno()
        while left := _stretch(every):
            while left:
                try:
                    sent = os.writev(descriptor, left)
                except BlockingIOError:
                    _wait_for(descriptor, select.POLLOUT, seconds)
                    continue
                left = _less(left, sent)

    def _check(self, kind: int, length: int) -> None:
        if kind not in _KINDS:
            advice = "it speaks TLS: set tls = yes" if kind == _TLS_ALERT else "see whether this is its DICOM port"
            raise ProtocolError(f"the peer sent no DICOM PDU (type {kind:02x})", advice)
        limit = {pdu.P_DATA: self.limit + _SLACK, pdu.ASSOCIATE_RQ: MAX_ASSOCIATE, pdu.ASSOCIATE_AC: MAX_ASSOCIATE}.get(
            kind, 1024
        )
        if length > limit:
            raise ProtocolError(f"the peer sent a PDU of {length} bytes where {limit} are allowed (type {kind:02x})")

    def remind(self, at: float, call: Callable[[], None]) -> None:
        """Has something done, once, when we wait for the peer at this time (of time.monotonic())."""
        self._reminder = at, call

    def _fill(self, wanted: int, deadline: float) -> None:
        if self._end - self._start >= wanted:
            return
        self._make_room(wanted)
        while self._end - self._start < wanted:
            try:
                count = self._received(deadline)
            except TimeoutError:
                raise TimedOut(
                    "the peer gave no answer in time", "see whether it hangs, or raise the timeout"
                ) from None
            except OSError as problem:
                raise Closed(f"the connection broke: {_words(problem)}", "try again") from problem
            if not count:
                raise Closed("the peer closed the connection", "see the log of the peer")
            self._end += count

    def _received(self, deadline: float) -> int:
        """How many bytes were read, 0 at the end; TimeoutError when none came until then."""
        receive = self._receive_plain if self._plain else self._receive_secured
        while True:
            due = deadline
            if self._reminder is not None:
                at, call = self._reminder
                if time.monotonic() >= at:
                    self._reminder = None
                    call()
                    continue
                due = min(deadline, at)
            try:
                return receive(due)
            except TimeoutError:
                if time.monotonic() >= deadline:
                    raise

    def _receive_plain(self, due: float) -> int:
        """Reads what is there: one system call where something is, and only else more of them."""
        descriptor, view = self.socket.fileno(), self._view[self._end :]
        while True:
            try:
                return os.readv(descriptor, [view])
            except BlockingIOError:
                self._acknowledge_soon()
                _wait_for(descriptor, select.POLLIN, due - time.monotonic())

    def _receive_secured(self, due: float) -> int:
        self.socket.settimeout(max(due - time.monotonic(), 0.001))
        self._acknowledge_soon()
        return self.socket.recv_into(self._view[self._end :])

    def _acknowledge_soon(self) -> None:
        if self._quick:
            self.socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)  # type: ignore[arg-type]

    def _make_room(self, wanted: int) -> None:
        """Moves what is left to the front of the buffer, which grows only for an association PDU."""
        left = self._end - self._start
        if (self._start and self._start + wanted > len(self._buffer)) or left == 0:
            self._buffer[:left] = self._buffer[self._start : self._end]
            self._start, self._end = 0, left
        if wanted > len(self._buffer):
            grown = bytearray(wanted + 4096)
            grown[:left] = self._buffer[self._start : self._end]
            self._start, self._end = 0, left
            self._buffer, self._view = grown, memoryview(grown)


def _wait_for(descriptor: int, event: int, seconds: float) -> None:
    """Waits until a descriptor is ready; TimeoutError when it is not in time."""
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(max(seconds, 0.001) * 1000):
        raise TimeoutError


def _stretch(every: Iterator[Part]) -> list[Part]:
    """The next parts that are to leave in one system call."""
    stretch: list[Part] = []
    size = 0
    for part in every:
        stretch.append(part)
        size += len(part)
        if size >= _STRETCH or len(stretch) == IOV_MAX:
            break
    return stretch


def _less(parts: list[Part], sent: int) -> list[Part]:
    """What is left of the parts after so many bytes of them."""
    for number, part in enumerate(parts):
        if sent < len(part):
            return [memoryview(part)[sent:], *parts[number + 1 :]]
        sent -= len(part)
    return []


def reset(sock: socket.socket) -> None:
    """Closes a socket so that the peer notices at once (RST instead of FIN)."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def _is_tls(sock: socket.socket) -> "TypeGuard[ssl.SSLSocket]":
    """Whether a socket speaks TLS; without loading the library for one that does not."""
    return hasattr(sock, "pending")


def _words(problem: OSError) -> str:
    return problem.strerror or str(problem)
