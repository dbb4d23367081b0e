"""The door by which connections come in: a port, or another process that holds the port and hands them on to us."""

import contextlib
import errno
import os
import select
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

from dcmtools.model.errors import CannotCreate, DcmtoolsError, Refused, TryLater

_BACKLOG = 128
# No descriptors or memory: those inside must finish first.
_SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})
_PAUSE, _AGAIN = 0.1, 0.01


class Door(ABC):
    """Where connections come in, one after the other, until it is closed."""

    port = 0

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        # Several processes may wait for the same connection: who comes too late must not be held.
        sock.settimeout(0)
        self._wake, self._waker = os.pipe()
        self._shut = threading.Event()

    def connections(self, when_short: Callable[[], None]) -> Iterator[tuple[socket.socket, str]]:
        """Each connection with its peer's address; `when_short` is called where there is no descriptor for the next.

        Waiting for one costs nothing then, where asking for it again and again would cost a core.
        """
        poll = select.poll()
        for descriptor in (self._socket.fileno(), self._wake):
            poll.register(descriptor, select.POLLIN)
        while not self._shut.is_set():
            poll.poll()
            if self._shut.is_set():
                return
            try:
                yield self._taken()
            except OSError as problem:
                is_short = problem.errno in _SHORT
                if is_short:
                    when_short()
                time.sleep(_PAUSE if is_short else _AGAIN)

    def shut(self) -> None:
        """Ends `connections`, in whichever thread that waits."""
        if not self._shut.is_set():
            self._shut.set()
            os.write(self._waker, b"!")

    def close(self) -> None:
        """Gives the socket back; to be called when nobody waits any more.

        It is closed and not shut down: a service manager that has it too keeps who comes meanwhile waiting.
        """
        self.shut()
        if self._socket.fileno() >= 0:
            self._socket.close()
            os.close(self._wake)
            os.close(self._waker)

    @abstractmethod
    def _taken(self) -> tuple[socket.socket, str]:
        """The connection that is there; OSError when there is none after all."""


class Port(Door):
    """A listening socket, on IPv6 and IPv4 alike where the machine allows it, or one that was opened for us.

    TryLater (75) when a program holds the port, Refused (77) when we may not have it.
    """

    def __init__(self, bind: str, port: int, sock: socket.socket | None = None) -> None:
        super().__init__(sock or _listening(bind, port))
        self.port: int = self._socket.getsockname()[1]

    def _taken(self) -> tuple[socket.socket, str]:
        sock, address = self._socket.accept()
        return sock, _host(address)


class Handed(Door):
    """One end of a pair of sockets at whose other end `hand_on` is called.

    `taken` hears of each connection before it is looked at, `lost` of one whose peer has gone since.
    """

    def __init__(self, channel: socket.socket, taken: Callable[[], None], lost: Callable[[], None]) -> None:
        super().__init__(channel)
        self._told, self._lost = taken, lost

    def _taken(self) -> tuple[socket.socket, str]:
        os.close(os.dup(self._wake))  # without a descriptor it is better left where it is: else the kernel drops it
        _, descriptors, _, _ = socket.recv_fds(self._socket, 1, 1)
        if not descriptors:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        sock = socket.socket(fileno=descriptors[0])
        self._told()
        try:
            return sock, _host(sock.getpeername())
        except OSError:
            sock.close()
            self._lost()
            raise


def hand_on(sock: socket.socket, channel: socket.socket) -> bool:
    """Whether a connection could be given to the process at the other end of a channel."""
    with contextlib.suppress(OSError):
        socket.send_fds(channel, [b"\0"], [sock.fileno()])
        return True
    return False


def _host(address: tuple[str, int]) -> str:
    return address[0].removeprefix("::ffff:")  # IPv4 on a socket that takes both


def _listening(bind: str, port: int) -> socket.socket:
    try:
        if bind:
            family = socket.AF_INET6 if ":" in bind else socket.AF_INET
            return socket.create_server((bind, port), family=family, backlog=_BACKLOG)
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)
        return socket.create_server(("", port), backlog=_BACKLOG)
    except OSError as problem:
        raise _cannot_listen(problem, bind, port) from None


def _cannot_listen(problem: OSError, bind: str, port: int) -> DcmtoolsError:
    match problem.errno:
        case errno.EADDRINUSE:
            return TryLater(
                f"port {port} is held by another program", "stop it, or choose another with --port", cause="port-in-use"
            )
        case errno.EACCES | errno.EPERM:
            return Refused(
                f"port {port} needs privileges",
                "use 11112, or give CAP_NET_BIND_SERVICE (see etc/)",
                cause="privileged-port",
            )
        case _:
            return CannotCreate(f"cannot listen on {bind or 'any address'} port {port}: {problem.strerror or problem}")
