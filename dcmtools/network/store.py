"""C-STORE to a node: records with a path in, one record an instance out (PS3.4 B, PS3.7 9.1.1).

A feeder looks at the files, senders with an association each send them, and the caller takes the records in the order
of the input. Nobody waits longer than needed: neither the first file for the last line of a slow input, nor an
association for whoever reads the records.
"""

import heapq
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from dcmtools.model.errors import DcmtoolsError
from dcmtools.model.node import Local, Node
from dcmtools.model.record import Record
from dcmtools.network.inbox import Inbox
from dcmtools.network.parcel import Change, Item, Parcel, look_at, named, sendable
from dcmtools.network.proposal import Pair
from dcmtools.network.sender import Sender, Settings

if TYPE_CHECKING:
    from dcmtools.network.present import Present

Stop = Callable[[], bool]
MakeSender = Callable[[Callable[[], list[Pair]], Stop], Sender]

# How far the feeder looks ahead: enough to find what there is to propose, and soon there.
_AHEAD = 512
# Seconds: to gather what is at hand before an association is opened, and between two looks at it.
_GATHER, _LOOK = 0.25, 0.005
# After so many files of which none was of a new kind, the next is not expected to be.
_ALIKE = 64
_POLL = 0.2
# Records are handed on a batch at a time: to wake up for each takes the processor away from the senders.
_BATCH = 0.01


def store(
    items: Iterable[Record],
    node: Node,
    local: Local,
    *,
    jobs: int = 1,
    stop: Stop = lambda: False,
    present: "Present | None" = None,
    sender: type[Sender] = Sender,
    **how: Any,
) -> Generator[Record]:
    """One record for each item, in their order: the item with its state sent, warning or failed, and why.

    What cannot be read becomes an error record; what names no file, such as an event, passes through. When no
    association can be opened at all the DcmtoolsError is raised, once, or with `each` every item fails for it.

    Args:
        items: records with a path
        node: where to
        local: who we are
        jobs: how many associations at once; the node's max_associations is the limit
        stop: whether to stop after the instances in hand
        present: tells of which instances the node has; they are skipped
        sender: the class of those who send, for another upper layer
        **how: the fields of `Settings`
    """
    settings = Settings(**how)
    jobs = max(1, min(jobs, node.max_associations))
    run = _Run(
        items, lambda pairs, quit_: sender(node, local, settings, pairs, quit_), jobs, stop, settings.change, present
    )
    try:
        yield from run.records()
    finally:
        run.end()


def plan(items: Iterable[Record], node: Node) -> Iterator[Record]:
    """What `store` would send: each item whose file can be sent as planned; nobody is asked."""
    for number, record in enumerate(items):
        if not sendable(record):
            yield record
            continue
        try:
            yield {**named(look_at(number, record)), "state": "planned", "node": node.name}
        except DcmtoolsError as problem:
            yield {**record, **problem.record()}


class _Run:
    """One call of `store`: its threads and the queues between them."""

    def __init__(
        self,
        items: Iterable[Record],
        sender: MakeSender,
        jobs: int,
        stop: Stop,
        change: Change | None,
        present: "Present | None",
    ) -> None:
        self._items, self._stop, self._change, self._present = items, stop, change, present
        self._seen: dict[Pair, None] = {}
        self._inbox: Inbox[Item] = Inbox(_AHEAD, self._stopped)
        self._outbox: queue.SimpleQueue[tuple[int, Record] | Exception | None] = queue.SimpleQueue()
        self._fed, self._opened = threading.Event(), threading.Event()
        self._quit, self._over = threading.Event(), threading.Event()
        self._looked_at = self._newest = 0
        self._broken: Exception | None = None
        self._senders = [
            threading.Thread(
                target=self._help if number else self._work,
                args=(sender(lambda: list(self._seen), self._stopped),),
                name="sender",
                daemon=True,
            )
            for number in range(jobs)
        ]

    def records(self) -> Iterator[Record]:
        """The records in the order of the items, each as soon as it is its turn."""
        threading.Thread(target=self._feed, name="feeder", daemon=True).start()
        for thread in self._senders:
            thread.start()
        waiting: list[tuple[int, Record]] = []
        due, working = 0, len(self._senders)
        while working:
            said = self._outbox.get()
            if isinstance(said, Exception):
                raise said
            if said is None:
                working -= 1
                continue
            heapq.heappush(waiting, said)
            while waiting and waiting[0][0] == due:
                yield heapq.heappop(waiting)[1]
                due += 1
            if self._outbox.empty():
                self._over.wait(_BATCH)
        while waiting:  # after a stop some are missing
            yield heapq.heappop(waiting)[1]
        if self._broken:
            raise self._broken

    def end(self) -> None:
        """Lets the senders finish what they have in hand, and waits for that."""
        self._quit.set()
        for thread in self._senders:
            if thread.ident:
                thread.join()

    def _stopped(self) -> bool:
        return self._quit.is_set() or self._stop()

    # The feeder

    def _feed(self) -> None:
        """Looks at each item's file and hands it on; what cannot be sent goes straight to the caller."""
        try:
            for number, record in enumerate(self._items):
                if self._stopped():
                    break
                self._looked_at = number
                self._look_at(number, record)
        except Exception as problem:  # noqa: BLE001 - the door of a thread: the caller hears of it after the records
            self._broken = problem
        self._fed.set()
        self._inbox.close()

    def _look_at(self, number: int, record: Record) -> None:
        if not sendable(record):
            self._outbox.put((number, record))
            return
        try:
            item = look_at(number, record)
        except DcmtoolsError as problem:
            self._outbox.put((number, {**record, **problem.record()}))
            return
        if self._present and self._present(item):
            reason = f"{self._present.node.where} has it already"
            record = {**named(item), "state": "skipped", "node": self._present.node.name, "reason": reason}
            self._outbox.put((number, record))
            return
        pair = item.meta.sop_class, item.meta.syntax
        if pair not in self._seen:
            self._seen[pair], self._newest = None, number
        self._inbox.put(item)

    # The senders

    def _work(self, sender: Sender) -> None:
        """Sends until nothing is left; the first error of a node that cannot be reached ends the run."""
        try:
            self._send_all(sender)
        except Exception as problem:  # noqa: BLE001 - the door of a thread: the caller of the generator hears of it
            self._outbox.put(problem)
        self._over.set()
        sender.release()
        self._outbox.put(None)

    def _help(self, sender: Sender) -> None:
        """Works beside the first sender, if the node grants one association more and there is enough to do."""
        while not (self._opened.wait(_POLL) or self._stopped() or self._over.is_set()):
            pass
        try:
            if len(self._inbox) and not self._stopped():
                sender.open(next(iter(self._seen)))
        except DcmtoolsError:
            pass
        if not sender.opened:
            self._outbox.put(None)
            return
        self._work(sender)

    def _send_all(self, sender: Sender) -> None:
        """Sends one parcel after the other; while the peer has some in hand, the next is made ready."""
        parcel = self._next(wait=True)
        if parcel:
            self._gather()
        try:
            while parcel or sender.busy:
                while parcel and sender.takes(parcel):
                    sender.send(parcel)
                    if sender.opened:
                        self._opened.set()
                    if not sender.busy:  # it failed at once, as all do at a node that was given up
                        self._tell(sender)
                    parcel = self._next(wait=False)
                self._tell(sender)
                if parcel:
                    sender.prepare(parcel)
                sender.settle()
                if parcel is None:
                    parcel = self._following(sender)
                elif self._stopped():
                    parcel.close()
                    parcel = None
        finally:
            self._tell(sender)
            sender.close()
            if parcel:
                parcel.close()

    def _following(self, sender: Sender) -> Parcel | None:
        """The next parcel, for which there is time to wait when nothing is on its way."""
        if not sender.busy:
            self._tell(sender)
        return self._next(wait=not sender.busy)

    def _tell(self, sender: Sender) -> None:
        """Hands records on to the caller."""
        for one in sender.records():
            self._outbox.put(one)

    def _gather(self) -> None:
        """Waits a moment for the feeder, so that one association does for all that is at hand."""
        end = time.monotonic() + _GATHER
        before = -1
        while before != self._looked_at and not (self._fed.is_set() or self._inbox.full or time.monotonic() > end):
            before = self._looked_at
            if before - self._newest >= _ALIKE:
                break
            self._fed.wait(_LOOK)

    def _next(self, *, wait: bool) -> Parcel | None:
        """The next file, opened; None at the end, and when it would have to be waited for."""
        while item := self._inbox.get(wait=wait):
            try:
                return Parcel(item, self._change)
            except DcmtoolsError as problem:
                self._outbox.put((item.number, {**item.record, **problem.record()}))
        return None
