"""What waits between two threads: one fills it ahead of the others, who empty it."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

_POLL = 0.2


class Inbox(Generic[T]):
    """A queue of limited length that wakes nobody without need.

    The one who fills it sleeps from the moment at which it is full until it is half empty, and not until there is
    room for one more: a change of threads for every item costs as much as sending it.
    """

    def __init__(self, limit: int, stop: Callable[[], bool]) -> None:
        self._limit, self._stop = limit, stop
        self._items: deque[T] = deque()
        self._closed = False
        self._room, self._filled = threading.Event(), threading.Condition()
        self._room.set()
        self._waiting = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def full(self) -> bool:
        """Whether it holds as much as it may."""
        return len(self._items) >= self._limit

    def put(self, item: T) -> None:
        """Adds an item, when there is room for it; drops it when all is to stop."""
        if self.full:
            self._room.clear()
            while len(self._items) > self._limit // 2 and not self._stop():
                self._room.wait(_POLL)
        self._items.append(item)
        self._wake()

    def close(self) -> None:
        """Tells those who empty it that nothing comes any more."""
        self._closed = True
        self._wake()

    def get(self, *, wait: bool) -> T | None:
        """The next item; None at the end, when all is to stop, and when it would have to be waited for."""
        while not self._stop():
            closed = self._closed  # asked first: what was put before it was closed is still there
            try:
                item = self._items.popleft()
            except IndexError:
                if closed or not wait:
                    return None
                self._sleep()
                continue
            if len(self._items) <= self._limit // 2 and not self._room.is_set():
                self._room.set()
            return item
        return None

    def _wake(self) -> None:
        if self._waiting:
            with self._filled:
                self._filled.notify_all()

    def _sleep(self) -> None:
        with self._filled:
            self._waiting += 1
            if not (self._items or self._closed):
                self._filled.wait(_POLL)
            self._waiting -= 1
