"""What stands around every command: settings, lock, deadline, signals, progress, events, summary and exit code."""

import os
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import date
from functools import cached_property
from io import RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from dcmtools import __version__
from dcmtools.cli import signals
from dcmtools.cli.options import Common, Selectors, duration, query_of
from dcmtools.cli.progress import Progress
from dcmtools.cli.signals import Stop
from dcmtools.cli.streams import STDIN, Stream
from dcmtools.cli.talk import Talk, defect, keep_quiet
from dcmtools.cli.tally import FAILED, PARTLY, UNCHANGED, Tally
from dcmtools.model.errors import DcmtoolsError, IOFailure, ReaderGone, TryLater, UsageError, from_os
from dcmtools.model.query import Query
from dcmtools.model.record import NOT_TRIED, Level, Record, event, is_event, type_of

if TYPE_CHECKING:
    from dcmtools.cli.output import Output
    from dcmtools.disk.config import Settings
    from dcmtools.disk.index import Index
    from dcmtools.disk.lock import Lock

INDEX_NAME = "index.jsonl"

Work = Callable[["Frame"], Iterable[Record]]

_DEFAULTED = ("deadline", "format", "jobs", "log_format", "progress")
_GRACE = 3.0  # seconds that a reader has after the deadline to take what is there
_KEPT = frozenset({0, PARTLY})  # exit codes with which a file of --output takes its name


def run(
    command: str,
    common: Common,
    work: Work,
    *,
    effects: bool = True,
    events: bool | None = None,
    listing: bool = True,
    fail_if_empty: bool = False,
    drains: bool = False,
) -> NoReturn:
    """Runs a command's work inside a frame, and leaves with its exit code.

    Args:
        command: its name, as it is typed
        common: the shared options
        work: the generator of its records; it gets the frame, and does everything that can fail
        effects: whether it changes anything; then a reader that goes away ends it with 75, else quietly with 0
        events: whether `begin` and `end` frame its stream; default: as `effects`
        listing: whether its records are shown on a terminal, and not only the summary
        fail_if_empty: whether it ends with 3 when there was no record
        drains: whether SIGTERM is how it usually ends, with 0
    """
    frame = Frame(command, common, effects=effects, events=effects if events is None else events)
    raise typer.Exit(frame.run(work, listing=listing, fail_if_empty=fail_if_empty, drains=drains))


class Frame:
    """What a command's work is given: settings, archive, index, input, and whether to stop."""

    def __init__(self, command: str, common: Common, *, effects: bool, events: bool) -> None:
        self.command = command
        self.common = common
        self.stop = Stop()
        self.tally = Tally()
        self._effects, self._events = effects, events
        self._stream: Stream | None = None
        self._output: Output | None = None  # opened, and its module loaded, when there is work: --help is quick
        self._framed = False
        self._failures = 0
        self._alike: Counter[tuple[str, str]] = Counter()
        self._indexes: list[Index] = []
        self._begun = time.monotonic()
        self._speak()

    def _speak(self, *, rows_on_terminal: bool = False) -> None:
        """Finds the voice and the bar that the options want; rows of a table and a bar would disturb each other."""
        common = self.common
        self.talk = Talk(self.command, quiet=common.quiet, verbose=common.verbose, as_json=common.log_format == "json")
        when = common.progress or ("never" if rows_on_terminal else "auto")
        self.progress = Progress(self.command, when, quiet=common.quiet)
        self.talk.show = self.progress.around(self.talk.show)

    # For the work

    @cached_property
    def settings(self) -> "Settings":
        """The settings from the files that the options, the environment and the places of DESIGN §7 name."""
        from dcmtools.disk.config import load_settings

        return load_settings(self.common.config, self.common.nodes)

    @cached_property
    def archive(self) -> Path:
        """The archive's folder, absolute; it need not be there."""
        return (self.common.archive or self.settings.archive).expanduser().absolute()

    @property
    def index_file(self) -> Path:
        """The index: that of --index, or the archive's own."""
        given = self.common.index
        return given.expanduser().absolute() if given else self.archive / INDEX_NAME

    def index(self, *, must_exist: bool = False) -> "Index":
        """The index; a missing one is empty, or NoInput when it must exist.

        One that --index names belongs to its own folder: its paths are relative to that, wherever the archive is.
        """
        from dcmtools.disk.index import Index

        index = Index(self.index_file, must_exist=must_exist)
        self._indexes.append(index)
        return index

    @property
    def today(self) -> date:
        """The calendar day in the zone of the settings."""
        from dcmtools.model.dates import today

        return today(self.settings.zone)

    def query(self, selectors: Selectors, level: Level | None = None, returns: tuple[str, ...] = ()) -> Query:
        """The query that the selectors mean; `level` is the one where --level was not given."""
        dated = selectors.date or selectors.since or selectors.until
        return query_of(selectors, self.today if dated else date.min, level, returns)

    @property
    def jobs(self) -> int:
        """How much may be done at once: as --jobs says, else by the processors that we may use."""
        return self.common.jobs or _processors()

    def default(self, name: str) -> Any:
        """An option of every command: as the call or the environment gives it, else as the configuration does."""
        given = getattr(self.common, name)
        return self.settings.defaults.get(name) if given is None else given

    def records(self) -> Iterator[Record]:
        """The records on stdin, lazily; they end early when there is a reason to stop."""
        if self._stream is not None:
            raise UsageError("stdin was given twice", "use - once")
        if os.isatty(STDIN):
            self.talk.info("reading records from the terminal; end them with Ctrl-D")
        self._stream = Stream(self.stop)
        return self._stream.records()

    def lines(self, source: Path) -> Iterator[bytes]:
        """The lines of a list, lazily, or what zero bytes part in it; `-` is stdin. NoInput when it is not there."""
        if source == Path("-"):
            if self._stream is not None:
                raise UsageError("stdin was given twice", "use - once")
            self._stream = Stream(self.stop)
            return self._stream.lines()
        try:
            file = source.expanduser().open("rb", buffering=0)
        except OSError as problem:
            raise from_os(problem, "reading the list", source) from problem
        return self._lines_of(file)

    def _lines_of(self, file: RawIOBase) -> Iterator[bytes]:
        with file:
            yield from Stream(self.stop, file.fileno()).lines()

    def tell_skipped(self, skipped: Mapping[str, int]) -> None:
        """Says, to whom wants to know more, what a scan passed over."""
        if told := ", ".join(f"{count} {kind}" for kind, count in skipped.items() if count):
            self.talk.info(f"passed over: {told}")

    def reader_gone(self) -> bool:
        """Whether nobody reads our output any more."""
        return self.stop.reader_gone

    # Around the work

    def run(self, work: Work, *, listing: bool, fail_if_empty: bool, drains: bool) -> int:
        """Does the work and returns the exit code."""
        with signals.handled(self.stop):
            try:
                with ExitStack() as stack:
                    self._prepare(stack, listing=listing)
                    self._take_all(work)
            except DcmtoolsError as problem:
                self._refuse(problem)
            except OSError as problem:
                self._refuse(from_os(problem, f"running {self.command}", problem.filename or ""))
            except Exception as problem:  # noqa: BLE001  # the one error boundary: a defect of ours
                self._refuse(self._defect(problem))
            return self._finish(fail_if_empty=fail_if_empty, drains=drains)

    def _prepare(self, stack: ExitStack, *, listing: bool) -> None:
        keep_quiet(debug=self.common.debug, logs=self._effects)
        self.common = replace(self.common, **{name: self.default(name) for name in _DEFAULTED})
        on_terminal = _stdout_is_terminal() and not self.common.output
        self._output = self._open_output(listing=listing)
        self._speak(rows_on_terminal=on_terminal and self._output is not None)
        if self.common.deadline:
            self.stop.until(duration(self.common.deadline))
        if self.common.lock:
            stack.enter_context(self._locked(self.common.lock))
        if self._events:
            self._put(event("begin", command=self.command, version=__version__, time=_now()))
            self._framed = True

    def _open_output(self, *, listing: bool) -> "Output | None":
        from dcmtools.cli.output import to_file, to_stdout

        common = self.common
        fields = [word.strip() for word in common.fields.split(",") if word.strip()] if common.fields else None
        if common.output:
            return to_file(common.format, fields, common.output.expanduser())
        if not listing and common.format is None and _stdout_is_terminal():
            return None
        return to_stdout(common.format, fields, self.stop.by_reader)

    def _locked(self, name: str) -> "Lock":
        from dcmtools.disk.atomic import make_folders
        from dcmtools.disk.lock import Lock
        from dcmtools.disk.places import state_folder
        from dcmtools.model.names import safe_name

        folder = state_folder() / "locks"
        make_folders(folder)
        return Lock(folder / f"{safe_name(name)}.lock", f"dcmtools {self.command}")

    def _take_all(self, work: Work) -> None:
        records = iter(work(self))
        try:
            for record in records:
                self._take(record)
                if not self._effects and self.stop():  # nothing of ours is in the works
                    return
        finally:
            if close := getattr(records, "close", None):
                close()

    def _take(self, record: Record) -> None:
        """Counts a record, says what failed, and passes it on."""
        kind = type_of(record)
        if kind == "error" or is_event(record, "incomplete"):
            if not (self._stream and self._stream.has_told(record)):
                self._fail(record)
        elif kind != "event":
            self.progress.step()
            self.tally.add(record)
            if record.get("state") in FAILED:
                self._say(record)
            if self.common.new and record.get("state") in UNCHANGED:
                return
        elif is_event(record, "listening"):  # with this word `listen` begins, which tells its port too
            self._framed = True
        self._put(record)

    def _fail(self, record: Record) -> None:
        self.tally.fail(record)
        self._say(record)

    def _say(self, record: Record) -> None:
        """Says a failure; of what a node does to thousands of instances alike, only the first."""
        self._failures += 1
        if "node" in record and "state" in record:
            alike = (str(record["node"]), str(record.get("reason")).removeprefix(NOT_TRIED))
            self._alike[alike] += 1
            if self._alike[alike] > 1:
                return
        self.talk.error(record)

    def _put(self, record: Record) -> None:
        if self._output is not None:
            self._output.put(record)

    def _refuse(self, problem: DcmtoolsError) -> None:
        """What ends the whole command: said once, on both ways."""
        record = problem.record()
        self._fail(record)
        with suppress(DcmtoolsError):  # the output itself may be what failed
            if self._output is None and not (self.common.output or _stdout_is_terminal()):
                from dcmtools.cli.output import to_stdout

                self._output = to_stdout(self.common.format, None, self.stop.by_reader)
            self._put(record)

    def _defect(self, problem: Exception) -> DcmtoolsError:
        if self.common.debug:
            traceback.print_exception(problem)
        return defect(problem)

    def _finish(self, *, fail_if_empty: bool, drains: bool) -> int:
        """Ends the stream, waits for its reader, says the summary; the exit code."""
        self.progress.close()
        if self.stop.late:
            reason = "the deadline passed before all was done"
            self._refuse(TryLater(reason, self._again, cause="deadline"))
        code = self._exit_code(fail_if_empty=fail_if_empty, drains=drains)
        try:
            if self._framed:
                self._put(event("end", command=self.command, exit_code=code, counts=self.tally.by_type(), time=_now()))
            self._drain(keep=code in _KEPT)
        except DcmtoolsError as problem:
            self._fail(problem.record())
        code = self._exit_code(fail_if_empty=fail_if_empty, drains=drains)
        self._tell_bad_lines()
        self._summarize(code, drains=drains)
        return code

    def _tell_bad_lines(self) -> None:
        """Says which indexes have lines that are no records: what they were is not found any more."""
        for index in {index.file: index for index in self._indexes}.values():
            with suppress(DcmtoolsError):
                if bad := index.bad_lines_seen:
                    lines = "1 line of {} is no record" if bad == 1 else f"{bad:,} lines of {{}} are no records"
                    self.talk.warning(f"{lines.format(index.file)}; see dcmtools index check")

    def _drain(self, *, keep: bool) -> None:
        left = self.stop.seconds_left
        seconds = None if left is None else max(left, _GRACE)
        if self._output is not None and not self._output.close(seconds, keep=keep):
            raise TryLater("nobody read all of our output before the deadline", "run it again", cause="deadline")

    def _exit_code(self, *, fail_if_empty: bool, drains: bool) -> int:
        self.tally.upstream_failed = self._stream is not None and self._stream.failed
        code = self.tally.exit_code()
        if self.stop.signal and not self._drained(drains=drains):
            return signals.exit_code(self.stop.signal)
        if code in {IOFailure.exit_code, DcmtoolsError.exit_code}:
            return code
        if self._drained(drains=drains):  # what was refused was said, and is the peers' to send again
            return 0
        if self.stop.late:
            return TryLater.exit_code
        if self.stop.reader_gone:
            return ReaderGone.exit_code if self._effects else 0
        return PARTLY if fail_if_empty and not (code or self.tally.items) else code

    def _drained(self, *, drains: bool) -> bool:
        """Whether it was ended as it usually is."""
        return drains and self.stop.signal == signal.SIGTERM

    @property
    def _again(self) -> str:
        """What to do after a run that was cut short; one that only reads begins anew."""
        return "run it again: it resumes" if self._effects else "run it again"

    def _summarize(self, code: int, *, drains: bool) -> None:
        for (_, reason), count in self._alike.items():
            if count > 1:
                self.talk.error({"reason": f"{count - 1:,} more failed in the same way: {reason}"})
        if self.stop.reader_gone:
            if self._effects:
                self._say(ReaderGone("nobody reads our output any more", self._again).record())
            return
        if self.stop.signal and not self._drained(drains=drains):
            self.talk.warning(f"stopped by {signal.Signals(self.stop.signal).name}; {self._again}")
        if self._stream is not None and self._stream.died:
            self.talk.error({"reason": "the command before this one broke off", "advice": "see what it said"})
        if self.tally.items or not self._failures:  # else the failures have said it all
            words = self.tally.in_words(self._failures)
            self.talk.summary(f"{words} in {time.monotonic() - self._begun:.1f} s", failed=bool(code))


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _stdout_is_terminal() -> bool:
    return os.isatty(1)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
