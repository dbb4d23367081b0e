"""Converts the series of a stream to NIfTI: several at a time, each as soon as it is complete, results as they come."""

import os
import queue
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dcmtools.disk.atomic import make_folders
from dcmtools.disk.lock import Lock
from dcmtools.disk.tree import INDEX_NAME
from dcmtools.images.conversion import Workshop, convert_series, failure
from dcmtools.images.conversions import NAME, Conversions
from dcmtools.images.engine import Limits, make_engine
from dcmtools.images.gathering import Gathering, Passing
from dcmtools.images.naming import DEFAULT_TEMPLATE, Template
from dcmtools.images.placement import Placement
from dcmtools.images.series import Key, Series, completed
from dcmtools.images.staging import LOCK_NAME, sweep
from dcmtools.model.errors import CannotCreate, DcmtoolsError, TryLater, from_os
from dcmtools.model.record import Record, path_keys, type_of

_AHEAD = 10_000  # records that may wait between the reader of the input and us
_PAUSE = 0.2  # seconds between two looks at stop


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """How to convert."""

    engine: str = "dcm2niix"
    jobs: int = field(default_factory=lambda: os.cpu_count() or 1)
    template: str = DEFAULT_TEMPLATE
    allow_incomplete: bool = False
    force: bool = False  # convert again what is unchanged
    overwrite_edited: bool = False  # replace files that a person changed
    dry_run: bool = False
    time_limit: float = 1800  # seconds a series
    memory_limit: int | None = None  # bytes of address space a series; None: by the size of its pixels
    mode: int | None = None  # of new and of kept files; None: new ones are their owner's, kept ones stay as they are
    dcm2niix: Path | None = None  # another binary than the installed one


def convert(
    stream: Iterable[Record],
    out: Path,
    options: ConvertOptions | None = None,
    *,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Record]:
    """Converts the series to which the instance records of a stream belong, and yields a record for each volume.

    A series starts at its `series-complete`, or at the end of the stream when it has none; one that is `incomplete`, or
    of which an earlier stage failed to handle an instance, is refused. Events come out after the volumes of what they
    speak of; all other records pass. After `stop` the series in hand are finished, no other is begun.

    Raises:
        Locked: another run converts into this folder.
        ConfigurationError: the engine cannot be used.
        UsageError: the template is none.
        CannotCreate: the folder cannot be made, or is an archive.
    """
    options = options or ConvertOptions()
    out = Path(os.path.abspath(out))  # a link in it stays one
    with _workshop(out, options) as shop:
        yield from _Run(shop, max(1, options.jobs), stop).records(stream)


@contextmanager
def _workshop(out: Path, options: ConvertOptions) -> Iterator[Workshop]:
    template, engine = Template(options.template), make_engine(options.engine, options.dcm2niix)
    if os.path.lexists(out / INDEX_NAME):
        reason = "the output folder is an archive: it holds an index of DICOM files"
        raise CannotCreate(reason, "give volumes a folder of their own", **path_keys(out))
    with ExitStack() as stack:
        if not options.dry_run:
            _make(out)
            stack.enter_context(Lock(out / LOCK_NAME, "convert-nifti"))
            sweep(out)
        conversions = Conversions(out / NAME)
        yield Workshop(
            out=out,
            engine=engine,
            template=template,
            limits=Limits(options.time_limit, options.memory_limit),
            conversions=conversions,
            placement=Placement(out, conversions, mode=options.mode, overwrite_edited=options.overwrite_edited),
            allow_incomplete=options.allow_incomplete,
            force=options.force,
            overwrite_edited=options.overwrite_edited,
            dry_run=options.dry_run,
        )


def _make(out: Path) -> None:
    try:
        make_folders(out)
    except OSError as problem:
        raise from_os(problem, "making the output folder", out) from problem


@dataclass(slots=True)
class _Held:
    """A record that waits for series to be done."""

    record: Record
    for_: set[Key]


@dataclass(frozen=True, slots=True)
class _End:
    """The end of the input, and what ended it."""

    problem: BaseException | None = None


class _Run:
    """One run: a thread reads the input, a few convert, and this one hands out what is ready.

    Whatever waits, waits here: a slow conversion keeps nobody upstream waiting, a slow reader of ours no conversion.
    """

    def __init__(self, shop: Workshop, jobs: int, stop: Callable[[], bool]) -> None:
        self._shop, self._jobs, self._stop = shop, jobs, stop
        self._mail: queue.SimpleQueue[Record | _End | tuple[Series, list[Record]]] = queue.SimpleQueue()
        self._room = threading.Semaphore(_AHEAD)
        self._closed = False
        self._gathering = Gathering()
        self._waiting: deque[Series] = deque()
        self._running: dict[Key, Series] = {}
        self._held: deque[_Held] = deque()
        self._input_ended = False
        self._problem: BaseException | None = None

    def records(self, stream: Iterable[Record]) -> Iterator[Record]:
        """All records of the run."""
        threading.Thread(target=self._read, args=(stream,), name="input", daemon=True).start()
        with ThreadPoolExecutor(self._jobs, "convert") as pool:
            try:
                while not (self._input_ended and not self._running and not self._waiting):
                    yield from self._next()
                    if self._stop():
                        yield from self._abandon()
                    self._begin(pool)
            finally:
                self._closed = True
                self._room.release()
        yield from self._released()
        if self._problem is not None:
            raise self._problem

    # The reading thread

    def _read(self, stream: Iterable[Record]) -> None:
        end = _End()
        try:
            for record in stream:
                self._room.acquire()
                if self._closed:
                    return
                self._mail.put(record)
        except BaseException as problem:  # noqa: BLE001 - it is raised again, where somebody listens
            end = _End(problem)
        self._mail.put(end)

    # The converting threads

    def _convert(self, series: Series) -> None:
        try:
            records = convert_series(series, self._shop)
        except Exception as problem:  # noqa: BLE001 - a worker's door: a defect in one series stops no other
            records = [failure(series, self._shop.engine, _defect(problem))]
        self._mail.put((series, records))

    # This one

    def _next(self) -> Iterator[Record]:
        """What the next piece of mail gives; nothing when none comes for a moment."""
        try:
            mail = self._mail.get(timeout=_PAUSE)
        except queue.Empty:
            return
        if isinstance(mail, _End):
            self._input_ended = True
            self._problem = mail.problem
            if not self._problem and not self._stop():  # a stream that ends because we stop has not said all
                self._waiting.extend(self._gathering.finish())
        elif isinstance(mail, tuple):
            series, records = mail
            del self._running[series.key]
            yield from records
            yield from self._released()
        else:
            self._room.release()
            yield from self._sorted(mail)

    def _sorted(self, record: Record) -> Iterator[Record]:
        if type_of(record) == "instance":
            try:
                record = completed(record)
            except DcmtoolsError as problem:
                record = problem.record()
        for item in self._gathering.take(record):
            if isinstance(item, Series):
                self._waiting.append(item)
            else:
                self._held.append(_Held(item.record, self._blockers(item)))
        yield from self._released()

    def _blockers(self, passing: Passing) -> set[Key]:
        """The series on which a record waits."""
        keys = {*self._running, *(series.key for series in self._waiting)}
        if passing.after == "series":
            return keys & {passing.key}
        return {key for key in keys if key[0] == passing.study} if passing.after == "study" else set()

    def _released(self) -> Iterator[Record]:
        """The records that wait for nothing any more."""
        busy = {*self._running, *(series.key for series in self._waiting)}
        still: deque[_Held] = deque()
        while self._held:
            held = self._held.popleft()
            if held.for_ & busy:
                still.append(held)
            else:
                yield held.record
        self._held = still

    def _begin(self, pool: ThreadPoolExecutor) -> None:
        """Begins what there is room for; a series that is running already is converted again when that is done."""
        for _ in range(len(self._waiting)):
            if len(self._running) >= self._jobs:
                return
            series = self._waiting.popleft()
            if series.key in self._running:
                self._waiting.append(series)
                continue
            self._running[series.key] = series
            pool.submit(self._convert, series)

    def _abandon(self) -> Iterator[Record]:
        """Gives up what was not begun, and the events that speak of it."""
        self._input_ended = True
        waiting, self._waiting = self._waiting, deque()
        given_up = {series.key for series in waiting}
        self._held = deque(held for held in self._held if not held.for_ & given_up)
        for series in waiting:
            reason = "the run was stopped before this series was begun"
            yield failure(series, self._shop.engine, TryLater(reason, "run it again: it resumes", cause="stopped"))


def _defect(problem: Exception) -> DcmtoolsError:
    """What can be told of a defect: its kind and place, and not its text, which may quote a header."""
    trace = traceback.extract_tb(problem.__traceback__)
    where = f" in {Path(trace[-1].filename).name}, line {trace[-1].lineno}" if trace else ""
    return DcmtoolsError(f"a defect of dcmtools: {type(problem).__name__}{where}", "please report it")
