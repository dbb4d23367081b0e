"""Another transfer syntax for a DICOM file, for a peer that does not take that of the file (PS3.5 10, A).

Nothing is lost: pixels are decompressed to the values that they stand for, or compressed so that they come back; only
where `lossy` is allowed, and nothing else is taken, JPEG 2000 is written with a loss, under a new SOP Instance UID.
Decoders run in a process of their own, for they crash on hostile files; it is kept for the next file.
"""

import os
import selectors
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from dcmtools.images.preview_child import MEMORY
from dcmtools.model.errors import BadData, TryLater
from dcmtools.model.record import Record, decode, encode, path_keys

SECONDS = 120
_PROGRAM = "import sys; sys.path.append(sys.argv.pop(1)); from dcmtools.images import transcode_child as c; c.main()"
_PACKAGES = Path(__file__).resolve().parents[2]
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH")


class Transcoder:
    """Transcodes files, for any number of threads; each uses a child that is idle, or a new one."""

    def __init__(self, *, lossy: bool = False) -> None:
        self._lossy = lossy
        self._idle: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            for child in self._idle:
                _end(child)
            self._idle.clear()

    def __call__(self, source: Path, copy: Path, syntaxes: Sequence[str]) -> None:
        """Writes the source under the name of the copy, in the best of these transfer syntaxes that is possible.

        Raises:
            BadData: its pixels cannot be decoded, or none of the transfer syntaxes will do (cause not-transcoded).
            TryLater: it took too long (cause time-limit).
        """
        asked = {**path_keys(source), "copy": os.fspath(copy), "syntaxes": list(syntaxes), "lossy": self._lossy}
        child = self._child()
        answer = _ask(child, asked)
        if answer is None:
            crashed = child.poll() is not None
            _end(child)
            raise _broken(source) if crashed else _too_slow(source)
        with self._lock:
            self._idle.append(child)
        if answer.get("type") == "error":
            raise BadData(str(answer["reason"]), str(answer.get("advice") or ""), cause=str(answer["cause"]))

    def _child(self) -> "subprocess.Popen[bytes]":
        with self._lock:
            if self._idle:
                return self._idle.pop()
        kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        return subprocess.Popen(
            [sys.executable, "-I", "-c", _PROGRAM, os.fspath(_PACKAGES), str(MEMORY)],
            env=kept | {"OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us: the instance in hand is finished
            bufsize=0,
        )


def _ask(child: "subprocess.Popen[bytes]", asked: Record) -> Record | None:
    """What the child answers; None when it crashed or took too long."""
    with suppress(BrokenPipeError):
        child.stdin.write(encode(asked))  # type: ignore[union-attr]
    line = b""
    with selectors.DefaultSelector() as waiting:
        waiting.register(child.stdout, selectors.EVENT_READ)  # type: ignore[arg-type]
        while waiting.select(SECONDS):
            got = os.read(child.stdout.fileno(), 1 << 16)  # type: ignore[union-attr]
            line += got
            if line.endswith(b"\n"):
                return decode(line)
            if not got:
                child.wait()
                return None
    return None


def _end(child: "subprocess.Popen[bytes]") -> None:
    if child.poll() is None:
        child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe:
            pipe.close()


def _broken(source: Path) -> BadData:
    name = path_keys(source)["path"]
    return BadData(f"{name}: the decoder crashed", "the file may be damaged", cause="decoder-crashed")


def _too_slow(source: Path) -> TryLater:
    name, advice = path_keys(source)["path"], "the file may be damaged, or made to do so"
    return TryLater(f"{name}: decoding took more than {SECONDS} seconds and was ended", advice, cause="time-limit")
