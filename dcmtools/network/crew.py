"""Several processes that receive for one archive through one port, for when one core is the limit.

This process holds the port and the archive's lock, and hands each connection to the worker that has the fewest; it
serves no association itself. So connections spread evenly, which SO_REUSEPORT (a hash of addresses) and a common
accept (whoever wakes up first) do not promise; a connection that waits outlives the worker that should have taken it;
and a socket that a service manager opened for us serves as well. Records of all come together here, so that hooks,
counts and the output are those of one receiver.
"""

import fcntl
import os
import pickle
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from dcmtools.disk.archive import INCOMING, Archive
from dcmtools.model.errors import DcmtoolsError, TryLater
from dcmtools.model.record import Record, decode, event, type_of
from dcmtools.network.door import hand_on
from dcmtools.network.listen import GRACE, LISTENS, STORED, opened
from dcmtools.network.seats import SharedSeats, seats_file
from dcmtools.network.worker import ALIVE, WORD, Orders, Place

# A worker's stdout takes so much while we are busy: some hundred records.
_PIPE = 1 << 20
_READ = 1 << 20
# Lines are looked at a batch at a time: to wake up for each costs the workers their processors.
_BATCH = 0.02
# Seconds: for all to be ready, for the last words after the grace, without a sign of life, and before the next is
# started where one after the other dies young.
_START, _LAST, _SILENCE, _YOUNG = 30.0, 10.0, 10.0, 5.0
_BACK_OFF = (0.0, 0.5, 1.0, 2.0, 5.0)
_AGAIN = 0.1
_LOOK = 200  # milliseconds


@dataclass(slots=True, eq=False)
class _Worker:
    """A process, and what we know of it; `waiting` are connections that were handed to it, and not yet taken."""

    row: int
    process: subprocess.Popen[bytes]
    channel: socket.socket
    waiting: deque[socket.socket] = field(default_factory=deque)
    connections: int = 0
    is_ready: bool = False
    begun: float = field(default_factory=time.monotonic)
    heard: float = field(default_factory=time.monotonic)
    said: bytes = b""
    last_words: str = ""

    @property
    def is_silent(self) -> bool:
        """Whether it gave no sign of life of late: whoever else can take a connection takes it."""
        return time.monotonic() - self.heard > 4 * ALIVE

    @property
    def out(self) -> int:
        """The descriptor on which we hear it."""
        assert self.process.stdout is not None  # noqa: S101 - it was started with a pipe
        return self.process.stdout.fileno()


class Crew:
    """A port, and so many workers that serve it, from `with` to its end.

    Records of what arrives go to `on_record`; it hears of a worker that died by an error record, and another one takes
    its place. Locked, TryLater and Refused as for a `Listener`.
    """

    def __init__(
        self,
        size: int,
        orders: Orders,
        on_record: Callable[[Record], None],
        notice: Callable[[DcmtoolsError], None],
        *,
        sock: socket.socket | None = None,
    ) -> None:
        self.size, self.orders, self._socket = size, orders, sock
        self._on_record, self._notice = on_record, notice
        self._notices: queue.SimpleQueue[DcmtoolsError | None] = queue.SimpleQueue()
        self.counts: Counter[str] = Counter()
        self._workers: dict[int, _Worker] = {}  # by the descriptor on which we hear them
        self._due = dict.fromkeys(range(size), 0.0)  # row -> when the next worker is to take it
        self._died_young = [0] * size
        self._left: deque[socket.socket] = deque()  # connections whose worker died before it took them
        self._hindrance = ""
        self._defect: Exception | None = None
        self._news = threading.Condition()
        self._accepting, self._closing = threading.Event(), threading.Event()
        self._last = time.monotonic()
        self._stack = ExitStack()
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), daemon=True)
            for work in (self._attend, self._accept, self._tell)
        ]

    def __enter__(self) -> Self:
        orders = self.orders
        with ExitStack() as stack:
            place = opened(Archive(orders.archive), orders.local, self._socket, LISTENS, workers=self.size)
            self._door = stack.enter_context(place)
            self._seats = stack.enter_context(_shared_seats(orders, self.size))
            stack.callback(self.drain)
            self._threads[0].start()
            self._wait_until_ready()
            self._accepting.set()
            for thread in self._threads[1:]:
                thread.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        archive = Archive(self.orders.archive)
        if (archive.root / INCOMING).is_dir():  # else it is away, and not to be made anew
            with suppress(DcmtoolsError, OSError), archive.incoming():
                pass  # which sweeps away what workers left that were killed, and not replaced any more

    @property
    def port(self) -> int:
        """The port, chosen by the system where ours is 0."""
        return self._door.port

    @property
    def quiet(self) -> float:
        """The seconds since there was an association with any worker."""
        if self._seats.taken:
            self._last = time.monotonic()
        return time.monotonic() - self._last

    @property
    def is_well(self) -> bool:
        """Whether every worker gave a sign of life of late; DcmtoolsError when nobody is there to hear it."""
        self._check()
        now = time.monotonic()
        return all(now - one.heard < _SILENCE for one in list(self._workers.values()))

    def _check(self) -> None:
        if self._defect:
            reason = f"{type(self._defect).__name__} while workers were attended to"
            raise DcmtoolsError(reason, "start it again, and report this") from self._defect

    def listening(self) -> Record:
        """The event that says where we can be reached, and how many workers there are."""
        ae_title = self.orders.local.ae_title
        return event("listening", port=self.port, ae_title=ae_title, pid=os.getpid(), workers=self.size)

    def reload(self) -> None:
        """Has every worker read the nodes again."""
        self._signal(signal.SIGHUP)

    def drain(self, grace: float = GRACE) -> bool:
        """Closes the port and lets the workers finish what they have in hand; whether none had to be cut short."""
        self._closing.set()
        self._door.shut()
        attending, accepting, telling = self._threads
        if accepting.ident:
            accepting.join()
        self._door.close()
        self._signal(signal.SIGTERM)
        attending.join(grace + _LAST)
        is_late = attending.is_alive()
        self._signal(signal.SIGKILL)
        attending.join()
        for worker in list(self._workers.values()):  # where a defect ended who attends to them
            self._bury(worker)
        self._notices.put(None)
        if telling.ident:
            telling.join(1)  # who does not read what we say is not waited for
        for sock in self._left:
            sock.close()
        return not is_late

    def _guarded(self, work: Callable[[], None]) -> None:
        """Does the work of a thread; a defect of ours in it ends the whole, and is not left to itself."""
        try:
            work()
        except Exception as problem:  # noqa: BLE001 - the door of a thread
            with self._news:
                self._defect = problem
                self._news.notify_all()

    # Workers

    def _attend(self) -> None:
        """Starts workers, hears what they say, and buries them; all that is done with them is done in this thread."""
        while self._workers or not self._closing.is_set():
            self._start_due()
            while self._left and self._hand_on(self._left[0]):
                self._left.popleft()
            poll = select.poll()
            for descriptor in self._workers:
                poll.register(descriptor, select.POLLIN)
            heard = [self._workers[descriptor] for descriptor, _ in poll.poll(_LOOK)]
            for worker in heard:
                self._hear(worker)
            if heard and not self._closing.is_set():
                time.sleep(_BATCH)

    def _start_due(self) -> None:
        now = time.monotonic()
        for row in [row for row, at in self._due.items() if at <= now and not self._closing.is_set()]:
            try:
                worker = self._started(row)
            except OSError as problem:
                self._come_again(row, f"no worker could be started: {problem.strerror}")
            else:
                del self._due[row]
                with self._news:
                    self._workers[worker.out] = worker
                if self._closing.is_set():  # whoever closes may not have seen it
                    worker.process.terminate()

    def _started(self, row: int) -> _Worker:
        """A new process. It is no copy of this one, in which threads run, but finds its modules where we do."""
        ours, theirs = socket.socketpair()
        ours.settimeout(0)
        place = Place(theirs.fileno(), self._seats.file, row)
        program = f"import sys; sys.path[:] = {sys.path!r}; from dcmtools.network.worker import main; main()"
        try:
            with theirs, _without_hangup():
                process = subprocess.Popen(
                    [sys.executable, "-c", program],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    pass_fds=(place.channel, place.seats),
                )
        except OSError:
            ours.close()
            raise
        worker = _Worker(row, process, ours)
        with suppress(OSError):  # as much as the system lets us have
            fcntl.fcntl(worker.out, getattr(fcntl, "F_SETPIPE_SZ", 0), _PIPE)
        assert process.stdin is not None  # noqa: S101 - it was started with a pipe
        with suppress(BrokenPipeError), process.stdin as orders:  # it has died already: that is seen elsewhere
            orders.write(pickle.dumps((self.orders, place)))
        return worker

    def _hear(self, worker: _Worker) -> None:
        data = os.read(worker.out, _READ)
        if not data:
            self._bury(worker)
            return
        worker.heard = time.monotonic()
        *lines, worker.said = (worker.said + data).split(b"\n")
        for line in lines:
            record = decode(line)
            if type_of(record) == WORD:
                self._heed(worker, record)
            else:
                self.counts["stored"] += record.get("state") in STORED
                self._on_record(record)

    def _heed(self, worker: _Worker, word: Record) -> None:
        with self._news:
            match word["word"]:
                case "ready":
                    worker.is_ready = True
                    self._news.notify_all()
                case "leaving":
                    worker.is_ready = False
                case "taken":
                    worker.waiting.popleft().close()
                case "ended":
                    worker.connections -= 1
                case "released":
                    self._last = time.monotonic()
                    self.counts["storing associations"] += word["stored"]
                case "failed":
                    worker.last_words = word["reason"]
                case "notice":
                    self._notices.put(DcmtoolsError(word["reason"], word["advice"], cause=word["cause"]))

    def _tell(self) -> None:
        """Passes on what workers have to say of peers; whoever does not listen holds up nothing but this."""
        while problem := self._notices.get():
            self._notice(problem)

    def _bury(self, worker: _Worker) -> None:
        """Puts away what a worker left, and has another one take its place."""
        with self._news:
            del self._workers[worker.out]
            self._left += worker.waiting
        code = worker.process.wait()
        self._seats.clear(worker.row)
        worker.channel.close()
        assert worker.process.stdout is not None  # noqa: S101 - it was started with a pipe
        worker.process.stdout.close()
        if self._closing.is_set():
            return
        if time.monotonic() - worker.begun > _YOUNG:
            self._died_young[worker.row] = 0
        if code:
            self._come_again(worker.row, f"worker process {worker.process.pid} {worker.last_words or _end(code)}")
        else:  # somebody told it to end, and so it did
            self._due[worker.row] = 0.0

    def _come_again(self, row: int, reason: str) -> None:
        """Says what became of a worker, and when there will be another."""
        pause = _BACK_OFF[min(self._died_young[row], len(_BACK_OFF) - 1)]
        self._died_young[row] += 1
        self._due[row] = time.monotonic() + pause
        if not self._accepting.is_set():
            with self._news:
                self._hindrance = reason
                self._news.notify_all()
            return
        problem = TryLater(reason, "what it acknowledged is stored; another one takes its place", cause="worker-died")
        self._on_record(problem.record())

    def _wait_until_ready(self) -> None:
        def all_are_ready() -> bool:
            return len(self._workers) == self.size and all(one.is_ready for one in list(self._workers.values()))

        with self._news:
            self._news.wait_for(lambda: self._defect or self._hindrance or all_are_ready(), _START)
            self._check()
            if not all_are_ready():
                reason = self._hindrance or f"the workers were not ready within {_START:g} s"
                raise TryLater(reason, "see what it said before", cause="no-start")

    def _signal(self, number: int) -> None:
        for worker in list(self._workers.values()):
            worker.process.send_signal(number)

    # Connections

    def _accept(self) -> None:
        for sock, _ in self._door.connections(lambda: None):
            while not self._hand_on(sock):
                with self._news:
                    self._news.wait(_AGAIN)
                if self._closing.is_set():
                    sock.close()
                    return

    def _hand_on(self, sock: socket.socket) -> bool:
        """Gives a connection to the worker that has the fewest; whether one could take it."""
        with self._news:
            ready = (one for one in self._workers.values() if one.is_ready)
            for worker in sorted(ready, key=lambda one: (one.is_silent, one.connections)):
                if hand_on(sock, worker.channel):
                    worker.waiting.append(sock)
                    worker.connections += 1
                    return True
        return False


@contextmanager
def _shared_seats(orders: Orders, rows: int) -> Iterator[SharedSeats]:
    total, per_host = orders.options.max_associations, orders.options.max_per_host
    file = seats_file(total, rows)
    try:
        yield SharedSeats(total, per_host, file)
    finally:
        os.close(file)


@contextmanager
def _without_hangup() -> Iterator[None]:
    """Blocks SIGHUP, also in what is started within the block, until that knows what to do with it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
