"""What all studies of one move share: where things land, what has gone wrong for good, and what was told already."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from dcmtools.disk.index import Index
from dcmtools.model.errors import DcmtoolsError
from dcmtools.model.node import Local, Node
from dcmtools.model.record import Record, type_of
from dcmtools.network import command
from dcmtools.network.arrivals import Arrivals
from dcmtools.network.response import Stop, never

# Seconds for which a node that could not be reached is not asked again.
_REST = 60.0
# What arrives cannot be kept: to go on would be a storm of failures.
_HALTS = frozenset({73, 74})


@dataclass(frozen=True, slots=True)
class Options:
    """How a move behaves.

    `retries` are the tries after the first one; `grace` is the silence, in seconds, after which nothing more is
    expected once the node says that it is done.
    """

    retries: int = 2
    grace: float = 10.0
    priority: int = command.MEDIUM
    dry_run: bool = False


@dataclass(slots=True)
class Run:
    """One move; only a dry run does without `arrivals`."""

    index: Index
    arrivals: Arrivals | None
    local: Local
    options: Options
    stop: Stop = never
    landed: int = 0
    halted: bool = False
    blocked: dict[str, DcmtoolsError] = field(default_factory=dict)
    _asked: set[str] = field(default_factory=set)
    _resting: dict[str, tuple[DcmtoolsError, float]] = field(default_factory=dict)
    _noted: dict[str, tuple[str, ...]] | None = None

    @property
    def must_end(self) -> bool:
        """Whether there is a reason to end after what is in hand."""
        return self.stop() or self.halted

    def begin(self, node: Node, study: str) -> None:
        """Notes that a study is asked for; raises the error of a node that could not be reached a moment ago."""
        self._asked.add(study)
        problem, until = self._resting.get(node.name, (None, 0.0))
        if problem and time.monotonic() < until:
            raise problem

    def rest(self, node: Node, problem: DcmtoolsError) -> None:
        """Leaves a node alone for a while: other studies would only wait for the same failure."""
        self._resting[node.name] = (problem, time.monotonic() + _REST)

    @staticmethod
    def clock() -> float:
        """Seconds that only go forward."""
        return time.monotonic()

    def pause(self, seconds: float) -> None:
        """Waits, but not for longer than it takes to be told to end."""
        end = time.monotonic() + seconds
        while not self.must_end and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))

    def take(self) -> Iterator[Record]:
        """What has landed since the last look and belongs to a study that was asked for; and what went wrong."""
        for record in self.arrivals.take() if self.arrivals else ():
            if type_of(record) == "error":
                yield self.heed(record)
            elif record.get("StudyInstanceUID") in self._asked:
                self.landed += 1
                yield record

    def heed(self, problem: Record) -> Record:
        """The same error record; notes when it is one after which nothing more can be kept."""
        self.halted = self.halted or _halts(problem)
        return problem

    @property
    def came(self) -> bool:
        """Whether anybody has ever sent to us, as far as that can be told."""
        connections = self.arrivals.connections if self.arrivals else 0
        return bool(self.landed if connections is None else connections)

    def note(self, record: Record) -> None:
        """Keeps an event of a series in the index, for jobs that come later, unless it says so already (DESIGN §4)."""
        if self._noted is None:
            self._noted = {str(one.get("SeriesInstanceUID")): _meaning(one) for one in self.index.events()}
        series = str(record["SeriesInstanceUID"])
        if self._noted.get(series) != _meaning(record):
            self.index.append([record])
            self._noted[series] = _meaning(record)


def _halts(record: Record) -> bool:
    return record.get("exit_code") in _HALTS or record.get("cause") == "listener-gone"


def _meaning(record: Record) -> tuple[str, ...]:
    return tuple(str(record.get(key)) for key in ("event", "expected", "received", "missing"))
