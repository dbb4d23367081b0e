"""One function over many items, in processes or on a cluster, with the results in the order of the items (DESIGN §10).

An item is what the function is called with, and whatever shall stand beside its result. Items are taken as they are
needed, a few ahead of the results, so that memory stays bounded. The processes are forked, which takes two milliseconds
where new interpreters take a hundred: they call functions that hold no lock and start no thread. They ignore SIGINT and
SIGTERM, which end the source of the items in the process that owns the command.
"""

import fcntl
import gc
import os
import pickle
import select
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from struct import Struct
from typing import TYPE_CHECKING, Any, BinaryIO, Self, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

T = TypeVar("T")
R = TypeVar("R")
C = TypeVar("C")

# How many items for each worker are under way or done and not yet asked for.
_AHEAD = 3
# What a pipe is to hold, and what the pipes of all systems do: a worker goes on while its results are written to the
# disk, with items that it has already.
_WIDE, _NARROW = 1 << 20, 4 << 10
_OBJECTS = 100_000
_SIZE = Struct("=Q")  # of a result, before it


class Lost(Exception):
    """Stands for the result of an item whose process was killed while it worked."""


def serially(function: Callable[[T], R], items: Iterable[tuple[T, C]]) -> Iterator[tuple[C, R | Lost]]:
    """The results, one after the other, made here."""
    for item, context in items:
        yield context, function(item)


def in_processes(
    jobs: int, function: Callable[[T], R], items: Iterable[tuple[T, C]], *, ahead: int = _AHEAD
) -> Iterator[tuple[C, R | Lost]]:
    """The results, made in so many processes at once; the first one here, for there may be no second.

    A function's exception is raised here. An item whose process dies is Lost, and the others go on in a new one. For
    each process `ahead` items at most are under way, or done and not yet asked for.
    """
    source = iter(items)
    first = next(source, None)
    if first is None:
        return
    second = next(source, None) if jobs > 1 else None
    if second is None:
        yield first[1], function(first[0])
        yield from serially(function, source)
        return
    with _Crew(function, jobs, ahead) as crew:
        crew.take(*second)
        yield first[1], function(first[0])
        yield from crew.through(source)


def each(
    jobs: int, function: Callable[[T], R], items: Iterable[T], *, at_once: int, ahead: int = _AHEAD
) -> Iterator[tuple[T, R | Lost]]:
    """Each item with its result, where one is too little to be sent by itself: `at_once` go to a process together.

    When a process dies, its items are given to another one by one, so that only the one at fault is Lost.
    """
    source = iter(items)
    chunks = iter(lambda: list(islice(source, at_once)), [])
    for chunk, results in in_processes(
        jobs, partial(_all, function), ((chunk, chunk) for chunk in chunks), ahead=ahead
    ):
        found: Iterable[R | Lost] = _singly(function, chunk) if isinstance(results, Lost) else results
        yield from zip(chunk, found, strict=True)


def _singly(function: Callable[[T], R], items: list[T]) -> Iterator[R | Lost]:
    # The first item of a map is worked on here, where nothing may die: an empty one takes its place.
    for _, results in in_processes(2, partial(_all, function), [([], None), *(([item], item) for item in items)]):
        if isinstance(results, Lost):
            yield results
        else:
            yield from results


def _all(function: Callable[[T], R], items: list[T]) -> list[R]:
    return [function(item) for item in items]


def on_executor(
    executor: "Executor",
    ahead: int,
    deaths: tuple[type[Exception], ...],
    function: Callable[[T], R],
    items: Iterable[tuple[T, C]],
) -> Iterator[tuple[C, R | Lost]]:
    """The results, made by any executor of concurrent.futures, such as a cluster's, with `ahead` items under way.

    An item is Lost when its future raises one of `deaths`, which tell that whoever worked on it is gone.
    """
    waiting: deque[tuple[C, Future[Any]]] = deque()
    try:
        for item, context in items:
            waiting.append((context, executor.submit(function, item)))
            if len(waiting) >= ahead:
                yield _settled(waiting, deaths)
        while waiting:
            yield _settled(waiting, deaths)
    finally:
        for _, future in waiting:
            future.cancel()


def _settled(waiting: "deque[tuple[C, Future[Any]]]", deaths: tuple[type[Exception], ...]) -> tuple[C, Any]:
    context, future = waiting.popleft()
    try:
        return context, future.result()
    except deaths:
        return context, Lost()


class _Slot:
    """An item's place in the order, and its result when it is there."""

    def __init__(self, item: Any, context: Any) -> None:
        self.packed = pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
        self.context = context
        self.result: Any = None
        self.done = False


class _Crew:
    """Forked workers, each with a few items to do, and the items in their order."""

    def __init__(self, function: Callable[[Any], Any], jobs: int, ahead: int) -> None:
        self._function = function
        self._jobs = jobs
        self._ahead = ahead
        self._workers: list[_Worker] = []
        self._order: deque[_Slot] = deque()
        self._held: _Slot | None = None  # an item that no worker has room for

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()

    def through(self, source: Iterator[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        """All results, those of items taken before first."""
        more = True
        while more or self._order:
            while more and len(self._order) < self._ahead * self._jobs and self._can_give():
                item = next(source, None)
                if item is None:
                    more = False
                else:
                    self.take(*item)
            while self._order and self._order[0].done:
                slot = self._order.popleft()
                if isinstance(slot.result, Exception) and not isinstance(slot.result, Lost):
                    raise slot.result
                yield slot.context, slot.result
                self._collect(0)
                if more and self._can_give():
                    break
            else:
                if self._order:
                    self._collect(None)

    def take(self, item: Any, context: Any) -> None:
        """Gives an item to a worker that has room for it, or to a new one; else it is held until one has."""
        self._held = _Slot(item, context)
        self._order.append(self._held)
        self._can_give()

    def _can_give(self) -> bool:
        """Whether no item is held any more, so that another one can be taken."""
        if self._held and (worker := self._least_busy(self._held)):
            worker.give(self._held)
            self._held = None
        return self._held is None

    def _least_busy(self, slot: _Slot) -> "_Worker | None":
        worker = min(self._workers, key=lambda one: len(one.slots), default=None)
        if worker is None or (worker.slots and len(self._workers) < self._jobs):
            return self._new_worker()
        return worker if worker.has_room(slot) else None

    def _new_worker(self) -> "_Worker":
        worker = _Worker(self._function, self._workers)
        self._workers.append(worker)
        return worker

    def _collect(self, patience: float | None) -> None:
        """Takes in the results that are there; waits for one when told to."""
        busy = {one.results: one for one in self._workers if one.slots}
        poll = select.poll()
        for descriptor in busy:
            poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll(patience) if busy else ():
            if not busy[descriptor].receive():
                self._replace(busy[descriptor])

    def _replace(self, dead: "_Worker") -> None:
        """Lets a new worker do what one had not begun when it died."""
        self._workers.remove(dead)
        if dead.slots:
            worker = self._new_worker()
            for slot in dead.slots:
                worker.give(slot)


class _Worker:
    """One forked process; its pipes close with us, however we end, and then it ends too."""

    def __init__(self, function: Callable[[Any], Any], others: Iterable["_Worker"]) -> None:
        self.slots: deque[_Slot] = deque()  # what it has to do, the one that it is at first
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        _widen(theirs_out)
        self._room = _widen(ours_out) // 2  # pages are not filled to the end
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside a thread: ours only writes out
            self._pid = os.fork()
        if not self._pid:
            _serve(function, theirs_in, theirs_out, [ours_in, ours_out, *(one for o in others for one in o.pipes)])
        os.close(theirs_in)
        os.close(theirs_out)
        self.results = ours_in
        self._items: BinaryIO = open(ours_out, "wb")  # noqa: SIM115 - closed by end

    @property
    def pipes(self) -> tuple[int, int]:
        """Our ends, which no other worker may keep open."""
        return self.results, self._items.fileno()

    def has_room(self, slot: _Slot) -> bool:
        """Whether an item can be sent without waiting: the process reads it at once, or the pipe holds it."""
        return not self.slots or sum(len(one.packed) for one in (*self.slots, slot)) <= self._room

    def give(self, slot: _Slot) -> None:
        """Sends an item."""
        self.slots.append(slot)
        with suppress(BrokenPipeError):  # it has died meanwhile: its silence will tell
            self._items.write(slot.packed)
            self._items.flush()

    def receive(self) -> bool:
        """Puts a result in its slot; False when the process died instead."""
        slot = self.slots.popleft()
        alive = True
        try:
            (size,) = _SIZE.unpack(_read(self.results, _SIZE.size))
            slot.result = pickle.loads(_read(self.results, size))  # noqa: S301 - from our own child
        except EOFError:
            slot.result, alive = Lost(), False
            self.end()
        slot.done = True
        return alive

    def end(self) -> None:
        """Ends the process; what it was doing is wanted no more."""
        with suppress(BrokenPipeError):
            self._items.close()
        if self._pid:
            os.close(self.results)
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0


def _read(pipe: int, size: int) -> bytes:
    """So many bytes and no more, since those behind them would not be waited for; EOFError when they do not come."""
    data = bytearray()
    while len(data) < size:
        block = os.read(pipe, size - len(data))
        if not block:
            raise EOFError
        data += block
    return bytes(data)


def _widen(pipe: int) -> int:
    """Lets a pipe hold more, where the system can; how many bytes it holds."""
    if not hasattr(fcntl, "F_SETPIPE_SZ"):
        return _NARROW
    with suppress(OSError):  # a user may have only so much in pipes
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _WIDE)
    return fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)


def _serve(function: Callable[[Any], Any], items: int, results: int, others: list[int]) -> None:
    """The life of a worker."""
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        # To look for circles among thousands of records costs a tenth, and there are few: errors make some.
        gc.freeze()
        gc.set_threshold(_OBJECTS)
        for descriptor in others:
            os.close(descriptor)
        with open(items, "rb") as incoming, open(results, "wb") as outgoing:
            while True:
                try:
                    item = pickle.load(incoming)  # noqa: S301 - from our own parent
                except EOFError:
                    break
                packed = _answer(function, item)
                outgoing.write(_SIZE.pack(len(packed)))
                outgoing.write(packed)
                outgoing.flush()
        code = 0
    finally:  # nothing of the parent's may run here: no exit handler, no buffer, no generator
        os._exit(code)


def _answer(function: Callable[[Any], Any], item: Any) -> bytes:
    try:
        return pickle.dumps(function(item), pickle.HIGHEST_PROTOCOL)
    except Exception as problem:  # noqa: BLE001 - the worker's door: it is raised where the results are read
        try:
            packed = pickle.dumps(problem)
            pickle.loads(packed)  # noqa: S301 - just made; some exceptions cannot be made again
        except Exception:  # noqa: BLE001 - whatever kind it is, its words can go
            packed = pickle.dumps(RuntimeError(f"{type(problem).__name__}: {problem}"))
        return packed
