"""`listen start`, `stop`, `restart` and `status`: a receiver in the background, where no systemd looks after it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dcmtools.disk.atomic import FILE_MODE, make_folders
from dcmtools.disk.lock import holder
from dcmtools.model.errors import DcmtoolsError, Refused, TryLater, Unavailable, from_os
from dcmtools.model.record import Record, event
from dcmtools.network.listen import GRACE, LOCK_NAME

LOG_NAME = ".dcmtools-listen.log"
# Seconds for a start, and between two looks.
_START, _LOOK = 30.0, 0.1
_TOLD = 4096


def control(word: str, archive: Path, stop: Callable[[], bool]) -> Iterator[Record]:
    """Does what the word says with the `listen` of an archive; the record tells how it is now."""
    if word == "status":
        yield _listening(_required(archive))
        return
    if word in {"stop", "restart"}:
        yield from _stopped(archive, stop)
    if word in {"start", "restart"}:
        yield _started(archive, _own_words(word))


def _required(archive: Path) -> Mapping[str, Any]:
    note = holder(archive / LOCK_NAME)
    if note is None or note.get("purpose") != "listen":
        raise Unavailable(f"no listen serves {archive}", "start it: dcmtools listen start", cause="not-running")
    return note


def _listening(note: Mapping[str, Any]) -> Record:
    workers = {key: note[key] for key in ("workers",) if key in note}
    return event("listening", **{key: note.get(key) for key in ("port", "ae_title", "pid", "since")}, **workers)


def _stopped(archive: Path, stop: Callable[[], bool]) -> Iterator[Record]:
    """Ends a listen in order: what arrives is finished first. That there is none is no mistake."""
    lock = archive / LOCK_NAME
    note = holder(lock) or {}
    if note.get("purpose") != "listen":
        yield event("stopped")
        return
    pid, host = int(note["pid"]), note.get("host")
    if host != socket.gethostname():
        raise Refused(f"the listen of {archive} runs on {host}", "stop it there", cause="other-host")
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass
    except PermissionError as problem:
        raise Refused(f"process {pid} is another user's", "stop it as that user", cause="other-user") from problem
    end = time.monotonic() + GRACE + _START
    while (now := holder(lock)) and now.get("pid") == pid:
        if stop() or time.monotonic() > end:
            raise TryLater(f"process {pid} still finishes what it has in hand", "try again", cause="still-running")
        time.sleep(_LOOK)
    yield event("stopped", **{key: note.get(key) for key in ("port", "ae_title", "pid")})


def _own_words(word: str) -> list[str]:
    """The command line that we were called with, without the word."""
    words = sys.argv[1:]
    words.remove(word)
    return words


def _started(archive: Path, words: Sequence[str]) -> Record:
    """Starts a listen in a session of its own and waits until its port is open; it survives us and our terminal."""
    address = f"@dcmtools-{os.getpid()}-{os.urandom(6).hex()}"
    log = archive / LOG_NAME
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind("\0" + address[1:])
        told.settimeout(_LOOK)
        begin = _length(log)
        process = _spawned(log, words, {**os.environ, "NOTIFY_SOCKET": address})
        end = time.monotonic() + _START
        while not _is_ready(told):
            if (code := process.poll()) is not None:
                raise _failed(code, log, begin)
            if time.monotonic() > end:
                process.kill()
                raise TryLater(f"no port was open within {_START:g} s", f"see {log}", cause="no-start")
    return _listening(_required(archive))


def _spawned(log: Path, words: Sequence[str], environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """The process; its records stand in the index, so that only what it says is kept."""
    try:
        make_folders(log.parent)
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    except OSError as problem:
        raise from_os(problem, "writing to", log) from problem
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "dcmtools", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=descriptor,
            start_new_session=True,
            env=dict(environment),
        )
    finally:
        os.close(descriptor)


def _is_ready(told: socket.socket) -> bool:
    try:
        return told.recv(_TOLD).startswith(b"READY=1")
    except TimeoutError:
        return False


def _length(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def _failed(code: int, log: Path, begin: int) -> DcmtoolsError:
    """The error with which the process ended, in its own last words."""
    said = log.read_bytes()[begin:].decode("utf-8", "replace").strip().splitlines()
    reason = said[-1][:500].removeprefix("dcmtools listen: ") if said else f"it ended with {code} and said nothing"
    kinds = {kind.exit_code: kind for kind in _kinds(DcmtoolsError)}
    return kinds.get(code, DcmtoolsError)(f"listen did not start: {reason}", f"see {log}", cause="no-start")


def _kinds(kind: type[DcmtoolsError]) -> Iterator[type[DcmtoolsError]]:
    for one in kind.__subclasses__():
        yield from _kinds(one)
        yield one
