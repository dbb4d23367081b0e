"""What lands in the archive while a move runs.

It comes through a receiver of our own, or through the `listen` that serves the archive already (DESIGN §8).
"""

import os
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from select import POLLIN, poll
from types import TracebackType
from typing import Any, Self

from dcmtools.disk.archive import Archive
from dcmtools.disk.lock import holder
from dcmtools.model.errors import DcmtoolsError, Locked, TryLater
from dcmtools.model.node import Local
from dcmtools.model.record import Record, type_of
from dcmtools.network.listen import LISTENS, LOCK_NAME, Listener, Options
from dcmtools.network.receiver import CONFLICT
from dcmtools.network.response import Stop, never

_RECEIVES = "move"
# Seconds between two looks at the index of a listener that is followed, at whether it lives, and at a held port.
_LOOK, _LIVES, _AGAIN = 0.05, 1.0, 0.5


class Arrivals(ABC):
    """Records of instances as they are committed to the archive, whoever receives them.

    `wake` is a descriptor that can be read while something is there, for a wait on it beside a socket. What will not
    come any more, because the disk is full or the listener has ended, is said by an error record.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Record] = queue.SimpleQueue()
        self.wake, self._bell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._ringing, self._hushed = threading.Lock(), False

    def __enter__(self) -> Self:
        try:
            self.open()
        except BaseException:
            self._hush()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        self._hush()

    @abstractmethod
    def open(self) -> None:
        """Begins to receive; whatever cannot be had (a lock, a port) raises its own error."""

    @abstractmethod
    def close(self) -> None:
        """Lets what is arriving finish, and ends."""

    @property
    @abstractmethod
    def port(self) -> int:
        """The port to which nodes send."""

    @property
    @abstractmethod
    def connections(self) -> int | None:
        """How many connections came in so far; None when that cannot be told from here."""

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether somebody may be sending now."""

    def put(self, record: Record) -> None:
        """Takes in a record, from any thread; never waits."""
        self._queue.put(record)
        with self._ringing, suppress(BlockingIOError):  # a full pipe is bell enough
            if not self._hushed:
                os.write(self._bell, b"\0")

    def take(self) -> list[Record]:
        """What has arrived since the last look."""
        with suppress(BlockingIOError):
            while os.read(self.wake, 4096):
                pass
        records: list[Record] = []
        with suppress(queue.Empty):
            while True:
                records.append(self._queue.get_nowait())
        return records

    def wait(self, seconds: float) -> None:
        """Waits until something is there, but not for longer."""
        bell = poll()
        bell.register(self.wake, POLLIN)
        bell.poll(seconds * 1000)

    def _hush(self) -> None:
        """Closes the bell; a thread that did not end in time may still put, and must not write to what is not ours."""
        with self._ringing:
            if not self._hushed:
                self._hushed = True
                os.close(self.wake)
                os.close(self._bell)


class Receiving(Arrivals):
    """The arrivals of a receiver of our own, which is open as long as this is."""

    def __init__(
        self, archive: Archive, local: Local, options: Options, notice: Callable[[DcmtoolsError], None]
    ) -> None:
        super().__init__()
        self._listener = Listener(archive, local, self.put, options=options, notice=notice, purpose=_RECEIVES)

    def open(self) -> None:
        """Opens the port; Locked or TryLater when another has the archive or the port."""
        self._listener.__enter__()

    def close(self) -> None:
        """Closes the port after what is arriving has been finished."""
        self._listener.__exit__(None, None, None)

    @property
    def port(self) -> int:
        """The port that is open."""
        return self._listener.port

    @property
    def connections(self) -> int:
        """How many connections came in so far."""
        return self._listener.counts["connections"]

    @property
    def busy(self) -> bool:
        """Whether an association is open."""
        return self._listener.active > 0


class Following(Arrivals):
    """The arrivals of a running `listen` on the same archive, read off the index that it writes."""

    def __init__(self, archive: Archive, port: int) -> None:
        super().__init__()
        # An index of our own, for each gives out what is new only once.
        self._archive = Archive(archive.root)
        self._port = port
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="following", daemon=True)

    def open(self) -> None:
        """Begins behind the last line that the index has now."""
        self._archive.index.skip()
        self._thread.start()

    def close(self) -> None:
        """Stops to look."""
        self._ended.set()
        self._thread.join()

    @property
    def port(self) -> int:
        """The port of the `listen` that is followed."""
        return self._port

    @property
    def connections(self) -> None:
        """None: what connects to another process cannot be counted here."""
        return

    @property
    def busy(self) -> bool:
        """Always: it cannot be told from here."""
        return True

    def _follow(self) -> None:
        seen = time.monotonic()
        while not self._ended.wait(_LOOK):
            try:
                for record in self._archive.index.catch_up():
                    if type_of(record) == "instance" and (told := _told_by(record)):
                        self.put(told)
                if time.monotonic() - seen > _LIVES:
                    seen = time.monotonic()
                    self._check_that_it_lives()
            except DcmtoolsError as problem:
                self.put(problem.record())
                return

    def _check_that_it_lives(self) -> None:
        note = listener_of(self._archive)
        if note is None or note.get("purpose") != LISTENS:
            raise TryLater(
                f"the listen on port {self._port} has ended", "start it again, or run this again", cause="listener-gone"
            )


def _told_by(line: Record) -> Record | None:
    """What a line of the index says has arrived, in the receiver's words; None for a second path of an instance."""
    if line.get("state") == "conflict":
        return {**line, **CONFLICT.record(), "type": "instance"}
    return None if "duplicate_of" in line else {"type": "instance", **line, "state": "received"}


def listener_of(archive: Archive) -> dict[str, Any] | None:
    """What the one who receives for an archive says of itself: purpose, pid, ae_title, port; None when nobody does."""
    return holder(archive.root / LOCK_NAME)


@contextmanager
def arrivals_for(
    archive: Archive,
    local: Local,
    *,
    options: Options | None = None,
    wait: float = 0.0,
    stop: Stop = never,
    notice: Callable[[DcmtoolsError], None] = lambda _: None,
) -> Iterator[Arrivals]:
    """The arrivals of an archive within a block: those of its `listen`, else of a receiver of our own.

    TryLater when the port is held by another program, or the archive by another move or by a `listen` under another
    AE title, and still is after `wait` seconds.
    """
    end = time.monotonic() + wait
    with ExitStack() as stack:
        while True:
            try:
                arrivals = stack.enter_context(_candidate(archive, local, options or Options(), notice))
                break
            except TryLater:
                if stop() or time.monotonic() >= end:
                    raise
            time.sleep(_AGAIN)
        yield arrivals


def _candidate(archive: Archive, local: Local, options: Options, notice: Callable[[DcmtoolsError], None]) -> Arrivals:
    note = listener_of(archive)
    if note is None:
        return Receiving(archive, local, options, notice)
    if note.get("purpose") != LISTENS:
        who = f"process {note.get('pid', '?')} ({note.get('purpose', 'unknown')})"
        raise Locked(f"{archive.root} is being filled by {who}", "wait for its end, or give --wait", holder=note)
    if note.get("ae_title") != local.ae_title:
        raise TryLater(
            f"{archive.root} is served by a listen as '{note.get('ae_title')}', and we are '{local.ae_title}'",
            "give both the same ae_title, or stop the listen",
            cause="other-ae-title",
        )
    return Following(archive, int(note.get("port") or local.port))
