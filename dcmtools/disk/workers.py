"""Does one thing with many items in several processes at once, and gives the results in the order of the items."""

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain, islice
from typing import Any, TypeVar

_CHUNK = 32
# Chunks that wait for each worker: enough that none idles while the disk is synced, few enough for constant memory.
_AHEAD = 16

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_order(
    items: Iterable[_Item],
    make: Callable[..., Callable[[_Item], _Result]],
    given: tuple[Any, ...],
    jobs: int,
    *,
    modules: tuple[str, ...] = (),
) -> Iterator[_Result]:
    """What `make(*given)` returns, called on each item; in `jobs` processes where there are many items.

    `make` is called once in each process, and what it returns may remember things; it, `given`, the items and the
    results must be picklable. `modules` are loaded once, before the processes are made.
    """
    iterator = iter(items)
    first = list(islice(iterator, _CHUNK)) if jobs > 1 else []
    if jobs == 1 or len(first) < _CHUNK:
        yield from map(make(*given), chain(first, iterator))
        return
    context = _context(modules)
    with ProcessPoolExecutor(jobs, context, _begin, (make, given)) as pool:
        waiting: deque[Future[list[_Result]]] = deque()
        try:
            for chunk in _chunks(chain(first, iterator)):
                waiting.append(pool.submit(_all, chunk))
                while len(waiting) >= jobs * _AHEAD or (waiting and waiting[0].done()):
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _context(modules: tuple[str, ...]) -> Any:
    """How processes are made: from a clean one that has the modules already, since threads run in this one."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    return context


_work: Callable[[Any], Any] | None = None


def _begin(make: Callable[..., Callable[[Any], Any]], given: tuple[Any, ...]) -> None:
    global _work  # noqa: PLW0603 - what a process of the pool keeps from chunk to chunk
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started us ends us, after the chunk in hand
    _work = make(*given)


def _all(chunk: list[Any]) -> list[Any]:
    assert _work is not None  # noqa: S101 - the pool calls _begin first
    return [_work(item) for item in chunk]


def _chunks(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk
