"""What a service manager is told, and the socket that it may hand over: systemd's two protocols, without its library.

sd_notify(3) is a datagram to $NOTIFY_SOCKET; sd_listen_fds(3) are descriptors from 3 on, counted in $LISTEN_FDS.
"""

import contextlib
import os
import socket
import time

_FIRST_DESCRIPTOR = 3


def inherited_socket() -> socket.socket | None:
    """The listening socket that the service manager opened for us, None when it opened none."""
    is_for_us = os.environ.get("LISTEN_PID") == str(os.getpid())
    count = os.environ.get("LISTEN_FDS", "")
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):  # not for our children
        os.environ.pop(name, None)
    if not (is_for_us and count.isdigit() and int(count)):
        return None
    os.set_inheritable(_FIRST_DESCRIPTOR, False)  # noqa: FBT003 - as the standard library has it
    return socket.socket(fileno=_FIRST_DESCRIPTOR)


class Supervisor:
    """Whoever started us and wants to know how we are; nobody, where $NOTIFY_SOCKET is not set."""

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        watchdog = os.environ.get("WATCHDOG_USEC", "")
        is_ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._every = int(watchdog) / 2e6 if watchdog.isdigit() and is_ours else None
        self._last = 0.0

    def ready(self, port: int) -> None:
        """Tells that the port is open."""
        self._tell(f"READY=1\nSTATUS=listening on port {port}\nMAINPID={os.getpid()}")

    def alive(self) -> None:
        """Tells that we are alive, as often as is wanted."""
        if self._every is not None and time.monotonic() - self._last >= self._every:
            self._last = time.monotonic()
            self._tell("WATCHDOG=1")

    def stopping(self) -> None:
        """Tells that the port is closed and what is in hand is being finished."""
        self._tell("STOPPING=1")

    def _tell(self, words: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(words.encode(), address)
