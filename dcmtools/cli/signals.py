"""When to stop: a signal, a deadline, or nobody left to read; asked between items, and able to end a wait."""

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_EXITS = 128  # a shell's code for a process ended by signal n is 128 + n


class Stop:
    """False until there is a reason to stop, then true for good; a wait that watches `fileno()` ends at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.reader_gone = False
        self._until: float | None = None
        self._readable, self._waker = os.pipe()
        os.set_blocking(self._waker, False)

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.signal is not None or self.reader_gone or self.late

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self._until is not None and time.monotonic() >= self._until

    @property
    def seconds_left(self) -> float | None:
        """The seconds until the deadline, None without one."""
        return None if self._until is None else max(0.0, self._until - time.monotonic())

    def until(self, seconds: float) -> None:
        """Sets the deadline, so many seconds from now."""
        self._until = time.monotonic() + seconds

    def fileno(self) -> int:
        """A descriptor that becomes readable when a signal came or the reader went."""
        return self._readable

    def by_signal(self, number: int) -> None:
        """Notes a signal; the second one ends the process where it stands."""
        if self.signal is not None:
            os._exit(_EXITS + number)
        self.signal = number
        self._wake()

    def by_reader(self) -> None:
        """Notes that nobody reads our output any more."""
        self.reader_gone = True
        self._wake()

    def wait(self, seconds: float) -> bool:
        """Waits that long, or shorter when there is a reason to stop; whether there is one."""
        left = self.seconds_left
        seconds = seconds if left is None else min(seconds, left)
        if not self():
            select.select([self._readable], [], [], seconds)
        return self()

    def wait_for(self, descriptor: int) -> bool:
        """Waits until the descriptor can be read; False when there is a reason to stop instead."""
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.register(self._readable, select.POLLIN)
        while not self():
            left = self.seconds_left
            ready = {number for number, _ in poll.poll(None if left is None else left * 1000 + 1)}
            if descriptor in ready and self._readable not in ready:
                return True
        return False

    def _wake(self) -> None:
        with suppress(BlockingIOError):  # full: whoever waits is awake
            os.write(self._waker, b"!")


@contextmanager
def handled(stop: Stop) -> Iterator[None]:
    """Within the block SIGINT and SIGTERM stop gently, and a second one at once; one that was ignored stays so."""

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # the signature that signal wants
        stop.by_signal(number)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code(number: int) -> int:
    """The exit code of a process that stopped because of a signal."""
    return _EXITS + number
