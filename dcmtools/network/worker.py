"""One of several processes that receive for one archive; `crew` starts it and hands it connections.

It gets its orders on stdin, and a line of JSON on stdout is all that it ever says: the records of what arrives, each
written before its sender gets the answer, so that what was acknowledged is told even if we are killed then; and what
the crew must know of us.
"""

import os
import pickle
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcmtools.disk.archive import Archive, OnDuplicate
from dcmtools.model.errors import DcmtoolsError
from dcmtools.model.node import Local
from dcmtools.model.record import Record, encode
from dcmtools.network.door import Handed
from dcmtools.network.listen import GRACE, Listener, Options, Services, Share
from dcmtools.network.seats import SharedSeats

if TYPE_CHECKING:
    from ssl import SSLContext

# The type of a line that is no record but a word to the crew.
WORD = "worker"
# Seconds between two signs of life.
ALIVE = 0.5


@dataclass(frozen=True, slots=True)
class Orders:
    """What a worker needs to know, as values that can be pickled.

    `tls` are certificate, key and CA, in place of the context in the options; with `query_retrieve` it answers
    C-FIND, C-MOVE and C-GET too, and knows the nodes of `nodes_file`.
    """

    archive: Path
    local: Local
    options: Options
    on_duplicate: OnDuplicate = "first"
    tls: tuple[Path, Path | None, Path | None] | None = None
    query_retrieve: bool = False
    nodes_file: Path | None = None
    grace: float = GRACE


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker stands among the others: the descriptors that it inherits, and its row of the seats."""

    channel: int
    seats: int
    row: int


class _Voice:
    """Our stdout; whoever reads it has died when it cannot be written, and then we are of no use."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._descriptor = os.dup(1)
        os.dup2(2, 1)  # what a library prints by itself goes to stderr

    def say(self, record: Record) -> None:
        """Writes one line, whole."""
        left = memoryview(encode(record))
        try:
            with self._guard:
                while left:
                    left = left[os.write(self._descriptor, left) :]
        except OSError:
            os._exit(1)

    def word(self, word: str, **keys: object) -> None:
        """Tells the crew something."""
        self.say({"type": WORD, "word": word, **keys})

    def notice(self, problem: DcmtoolsError) -> None:
        """Passes on what is wrong with a peer."""
        self.word("notice", reason=problem.reason, advice=problem.advice, cause=problem.cause)


def main() -> None:
    """Receives until SIGTERM; then what associations have in hand is finished."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the crew says when to end
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    orders, place = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the process that started us
    voice = _Voice()
    channel = socket.socket(fileno=place.channel)
    threading.Thread(target=_end_with, args=(channel,), daemon=True).start()
    try:
        _receive(orders, place, channel, voice, stop)
    except DcmtoolsError as problem:
        voice.word("failed", reason=problem.reason, advice=problem.advice)
        sys.exit(problem.exit_code)


def _end_with(channel: socket.socket) -> None:
    """Ends this process when the one at the other end of the channel is no more, as it would have ended with it."""
    poll = select.poll()
    poll.register(os.dup(channel.fileno()), 0)
    poll.poll()
    os._exit(1)


def _receive(orders: Orders, place: Place, channel: socket.socket, voice: _Voice, stop: threading.Event) -> None:
    options = orders.options
    share = Share(
        door=Handed(channel, lambda: voice.word("taken"), lambda: voice.word("ended")),
        seats=SharedSeats(options.max_associations, options.max_per_host, place.seats, place.row),
        ended=lambda: voice.word("ended"),
        released=lambda has_stored: voice.word("released", stored=has_stored),
    )
    keys, outdate = listener_keys(orders, voice.notice)
    signal.signal(signal.SIGHUP, lambda *_: outdate())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # blocked by the crew: it would have ended us
    with Listener(**keys, on_record=voice.say, notice=voice.notice, given=share) as listener:
        voice.word("ready")
        while not stop.wait(ALIVE):
            voice.word("alive")
        voice.word("leaving")
        listener.drain(orders.grace)


def listener_keys(orders: Orders, notice: Callable[[DcmtoolsError], None]) -> tuple[dict[str, Any], Callable[[], None]]:
    """What a listener that has these orders is made with, and what has it read the nodes again.

    ConfigurationError or Refused when the nodes or the files of TLS cannot be used.
    """
    archive = Archive(orders.archive, on_duplicate=orders.on_duplicate)
    services, outdate = _services(orders, archive, notice)
    options = replace(orders.options, tls=_tls(orders))
    return {"archive": archive, "local": orders.local, "options": options, "services": services}, outdate


def _services(
    orders: Orders, archive: Archive, notice: Callable[[DcmtoolsError], None]
) -> tuple[Services, Callable[[], None]]:
    if not orders.query_retrieve:
        return {}, lambda: None
    from dcmtools.network.destinations import Destinations
    from dcmtools.network.query_retrieve import QueryRetrieve

    nodes = Destinations(orders.nodes_file, notice)
    return QueryRetrieve(archive.index, nodes.by_ae_title, orders.local).handlers, nodes.outdate


def _tls(orders: Orders) -> "SSLContext | None":
    if not orders.tls:
        return None
    from dcmtools.network.tls import server_context

    return server_context(*orders.tls)
