"""Where records go: stdout, or a file that appears whole. Data only; nothing waits for a reader."""

import errno
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from dcmtools.cli.formats import Lines, format_for
from dcmtools.cli.spool import Spool
from dcmtools.cli.talk import clean
from dcmtools.disk.atomic import atomic_file
from dcmtools.disk.places import state_folder
from dcmtools.model.errors import CannotCreate, DcmtoolsError, from_os
from dcmtools.model.record import Record

_STDOUT, _STDERR = 1, 2
_PATIENCE = 0.5
# What the end of a pipe, a socket or a terminal says when nobody is there any more.
_GONE = frozenset({errno.EPIPE, errno.ECONNRESET, errno.EIO, errno.EBADF})


class Sink(Protocol):
    """Takes bytes."""

    def put(self, data: bytes) -> None:
        """Takes bytes; DcmtoolsError when they cannot be kept."""

    def close(self, seconds: float | None, *, keep: bool) -> bool:
        """Waits until all is written, at most so many seconds; whether it is."""


class Output:
    """Takes records one by one, formats them, and sends them on at once."""

    def __init__(self, form: Lines, sink: Sink) -> None:
        self._form = form
        self._sink = sink
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    @property
    def says_everything(self) -> bool:
        """Whether the format has room for events and errors."""
        return self._form.says_everything

    def put(self, record: Record) -> None:
        """Writes a record."""
        with self._lock:
            if data := self._rendered(record):
                self._sink.put(data)
            if self._form.waiting and self._timer is None:  # a table waits for more rows, but not for ever
                self._timer = threading.Timer(_PATIENCE, self._flush)
                self._timer.daemon = True
                self._timer.start()

    def close(self, seconds: float | None = None, *, keep: bool = True) -> bool:
        """Ends the stream and waits until the reader has it all, at most so many seconds; whether it has.

        A file is written only to be kept; otherwise what stood there before stays.
        """
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            if data := self._form.end():
                self._sink.put(data)
        return self._sink.close(seconds, keep=keep)

    def _rendered(self, record: Record) -> bytes:
        try:
            return self._form.render(record)
        except UnicodeEncodeError:  # the name of a file that is not UTF-8 has got into a text
            return self._form.render(clean(record))

    def _flush(self) -> None:
        with self._lock:
            self._timer = None
            self._sink.put(self._form.flush())


def to_stdout(name: str | None, fields: Sequence[str] | None, when_gone: Callable[[], None]) -> Output:
    """Output to whoever reads stdout: a table on a terminal and JSON lines elsewhere, unless a format is named."""
    descriptor = os.dup(_STDOUT)
    # What a library or its child prints by itself would spoil the stream: it goes to stderr.
    os.dup2(_STDERR, _STDOUT)
    on_terminal = os.isatty(descriptor)
    form = format_for(name or ("table" if on_terminal else "jsonl"), fields, to_terminal=on_terminal)
    return Output(form, _Stdout(descriptor, when_gone))


def to_file(name: str | None, fields: Sequence[str] | None, path: Path) -> Output:
    """Output to a file that takes its name when it is whole."""
    return Output(format_for(name or "jsonl", fields, to_terminal=False), _File(path))


class _Stdout:
    def __init__(self, descriptor: int, when_gone: Callable[[], None]) -> None:
        self._when_gone = when_gone
        self._spool = Spool(descriptor, state_folder(), self._ended)

    def put(self, data: bytes) -> None:
        self._check()
        self._spool.put(data)

    def close(self, seconds: float | None, *, keep: bool) -> bool:  # noqa: ARG002  # what is written is written
        done = self._spool.close(seconds)
        self._check()
        return done

    def _ended(self, problem: OSError) -> None:
        if problem.errno in {None, *_GONE}:
            self._when_gone()

    def _check(self) -> None:
        if (problem := self._spool.problem) is not None and problem.errno not in {None, *_GONE}:
            raise from_os(problem, "writing to stdout") from problem


class _File:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._whole = atomic_file(path)
        try:
            self._out = self._whole.__enter__()
        except OSError as problem:
            raise _cannot(problem, path) from problem

    def put(self, data: bytes) -> None:
        try:
            self._out.write(data)
        except OSError as problem:
            raise from_os(problem, "writing", self._path) from problem

    def close(self, seconds: float | None, *, keep: bool) -> bool:  # noqa: ARG002  # a disk is waited for
        try:
            if keep:
                self._whole.__exit__(None, None, None)
            else:
                self._drop()
        except OSError as problem:
            raise from_os(problem, "writing", self._path) from problem
        return True

    def _drop(self) -> None:
        """Ends the block by an exception, upon which the temporary goes."""
        with suppress(_Dropped):
            self._whole.__exit__(_Dropped, _Dropped(), None)


class _Dropped(Exception):
    """The file is not to be kept."""


def _cannot(problem: OSError, path: Path) -> DcmtoolsError:
    if problem.errno == errno.ENOENT:
        return CannotCreate(f"cannot create {path}: its folder is not there", "make the folder first", path=str(path))
    return from_os(problem, "creating", path)
