"""Commands that are run for what arrives: for each instance, and for each series and study that has settled.

A command is run without a shell, with one JSON record on its stdin. Nothing on an association waits for it.
"""

import queue
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from dcmtools.model.errors import DcmtoolsError, Incomplete
from dcmtools.model.record import Record, encode, pick

Notice = Callable[[DcmtoolsError], None]
Command = Sequence[str]

_LOOK = 0.2
_STUDY = ("PatientID", "PatientName", "StudyInstanceUID", "StudyDate", "StudyDescription", "AccessionNumber")
_SERIES = (*_STUDY, "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality")
_LEVELS = {"series": ("SeriesInstanceUID", _SERIES), "study": ("StudyInstanceUID", _STUDY)}


@dataclass(frozen=True, slots=True)
class Commands:
    """What to run. A series or study has settled when nothing of it arrived for `settle` seconds."""

    instance: Command = ()
    series: Command = ()
    study: Command = ()
    settle: float = 60.0


class Hooks:
    """Runs commands, one after the other in a thread of its own; at its end what has arrived counts as settled.

    A command that fails, or cannot be run, is told to `notice`, and the others are run all the same.
    """

    def __init__(self, commands: Commands, notice: Notice) -> None:
        self._commands, self._notice = commands, notice
        self._jobs: queue.SimpleQueue[tuple[Command, Record] | None] = queue.SimpleQueue()
        self._guard = threading.Lock()
        self._open: dict[tuple[str, str], tuple[float, Record]] = {}
        self._ended = threading.Event()
        self._runner = threading.Thread(target=self._run, name="hooks", daemon=True)
        self._watcher = threading.Thread(target=self._watch, name="settling", daemon=True)

    def __enter__(self) -> Self:
        self._runner.start()
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._watcher.join()
        self._settle(float("inf"))
        self._jobs.put(None)
        self._runner.join()

    def arrived(self, record: Record) -> None:
        """Takes note of an instance; never waits."""
        if record.get("state") != "received":
            return
        if self._commands.instance:
            self._jobs.put((self._commands.instance, record))
        now = time.monotonic()
        for level, (key, keys) in _LEVELS.items():
            if getattr(self._commands, level):
                with self._guard:
                    _, known = self._open.get((level, str(record.get(key))), (now, {}))
                    count = int(known.get("instances", 0)) + 1
                    told = {"type": level, **pick(record, *keys), "instances": count}
                    self._open[level, str(record.get(key))] = (now, told)

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK):
            self._settle(time.monotonic() - self._commands.settle)

    def _settle(self, before: float) -> None:
        """Closes what got its last instance before this time, series before studies."""
        with self._guard:
            settled = sorted(key for key, (last, _) in self._open.items() if last <= before)
            closed = [(key[0], self._open.pop(key)[1]) for key in settled]
        for level, record in closed:
            self._jobs.put((getattr(self._commands, level), record))

    def _run(self) -> None:
        while job := self._jobs.get():
            self._call(*job)

    def _call(self, command: Command, record: Record) -> None:
        name = f"the command {command[0]} for a {record.get('type')}"
        try:
            done = subprocess.run(list(command), input=encode(record), stdout=subprocess.DEVNULL, check=False)
        except OSError as problem:
            reason = f"{name} cannot be run: {problem.strerror}"
            self._notice(Incomplete(reason, "check its path and that it may be executed", cause="hook"))
            return
        if done.returncode:
            self._notice(Incomplete(f"{name} ended with {done.returncode}", "see what it said", cause="hook"))
