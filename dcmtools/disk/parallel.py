"""One function over many items, in processes or on a cluster, with the results in the order of the items (DESIGN §10).

An item is what the function is called with, and whatever shall stand beside its result. Items are taken as they are
needed, a few ahead of the results, so that memory stays bounded. The processes are forked, which takes two milliseconds
where new interpreters take a hundred: they call functions that hold no lock and start no thread. They ignore SIGINT and
SIGTERM, which end the source of the items in the process that owns the command.
"""

import gc
import os
import pickle
import select
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO, Self, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

T = TypeVar("T")
R = TypeVar("R")
C = TypeVar("C")

# How many items for each worker are under way or done and not yet asked for.
_AHEAD = 3


class Lost(Exception):
    """Stands for the result of an item whose process was killed while it worked."""


def serially(function: Callable[[T], R], items: Iterable[tuple[T, C]]) -> Iterator[tuple[C, R | Lost]]:
    """The results, one after the other, made here."""
    for item, context in items:
        yield context, function(item)


def in_processes(jobs: int, function: Callable[[T], R], items: Iterable[tuple[T, C]]) -> Iterator[tuple[C, R | Lost]]:
    """The results, made in so many processes at once; the first one here, for there may be no second.

    A function's exception is raised here. An item whose process dies is Lost, and the others go on in a new one.
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
    with _Crew(function, jobs) as crew:
        crew.take(*second)
        yield first[1], function(first[0])
        yield from crew.through(source)


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

    def __init__(self, context: Any) -> None:
        self.context = context
        self.result: Any = None
        self.done = False


class _Crew:
    """Forked workers, each with one item at a time, and the items in their order."""

    def __init__(self, function: Callable[[Any], Any], jobs: int) -> None:
        self._function = function
        self._jobs = jobs
        self._workers: list[_Worker] = []
        self._order: deque[_Slot] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()

    def through(self, source: Iterator[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        """All results, those of items taken before first."""
        more = True
        while more or self._order:
            while more and len(self._order) < _AHEAD * self._jobs and self._has_room():
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
                if more and self._has_room():
                    break
            else:
                if self._order:
                    self._collect(None)

    def take(self, item: Any, context: Any) -> None:
        """Gives an item to a worker that is idle, or to a new one."""
        slot = _Slot(context)
        self._order.append(slot)
        worker = next((one for one in self._workers if one.slot is None), None)
        if worker is None:
            worker = _Worker(self._function, self._workers)
            self._workers.append(worker)
        worker.give(item, slot)

    def _has_room(self) -> bool:
        return len(self._workers) < self._jobs or any(one.slot is None for one in self._workers)

    def _collect(self, patience: float | None) -> None:
        """Takes in the results that are there; waits for one when told to."""
        busy = {one.results.fileno(): one for one in self._workers if one.slot is not None}
        poll = select.poll()
        for descriptor in busy:
            poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll(patience) if busy else ():
            if not busy[descriptor].receive():
                self._workers.remove(busy[descriptor])


class _Worker:
    """One forked process; its pipes close with us, however we end, and then it ends too."""

    def __init__(self, function: Callable[[Any], Any], others: Iterable["_Worker"]) -> None:
        self.slot: _Slot | None = None
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside a thread: ours only writes out
            self._pid = os.fork()
        if not self._pid:
            _serve(function, theirs_in, theirs_out, [ours_in, ours_out, *(one for o in others for one in o.pipes)])
        os.close(theirs_in)
        os.close(theirs_out)
        self.results: BinaryIO = open(ours_in, "rb")  # noqa: SIM115 - closed by end
        self._items: BinaryIO = open(ours_out, "wb")  # noqa: SIM115 - closed by end

    @property
    def pipes(self) -> tuple[int, int]:
        """Our ends, which no other worker may keep open."""
        return self.results.fileno(), self._items.fileno()

    def give(self, item: Any, slot: _Slot) -> None:
        """Sends an item; it waits in the pipe for nobody, since the worker is idle."""
        self.slot = slot
        with suppress(BrokenPipeError):  # it has died meanwhile: its silence will tell
            pickle.dump(item, self._items, pickle.HIGHEST_PROTOCOL)
            self._items.flush()

    def receive(self) -> bool:
        """Puts the result in its slot; False when the process died instead."""
        slot, self.slot = self.slot, None
        alive = True
        try:
            result = pickle.load(self.results)  # noqa: S301 - from our own child
        except (EOFError, pickle.UnpicklingError):
            result, alive = Lost(), False
            self.end()
        if slot is not None:
            slot.result, slot.done = result, True
        return alive

    def end(self) -> None:
        """Ends the process; what it was doing is wanted no more."""
        with suppress(BrokenPipeError):
            self._items.close()
        self.results.close()
        if self._pid:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0


def _serve(function: Callable[[Any], Any], items: int, results: int, others: list[int]) -> None:
    """The life of a worker."""
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        gc.disable()  # looking for circles among thousands of records costs a tenth, and there are none
        for descriptor in others:
            os.close(descriptor)
        with open(items, "rb") as incoming, open(results, "wb") as outgoing:
            while True:
                try:
                    item = pickle.load(incoming)  # noqa: S301 - from our own parent
                except EOFError:
                    break
                outgoing.write(_answer(function, item))
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
