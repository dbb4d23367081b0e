"""Draws a frame in a process of its own, with limits: decoders of compressed pixels crash on hostile files.

What the child writes to its stdout is a PNG, or the error record that tells why there is none.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from dcmtools.model.errors import BadData, DcmtoolsError, TryLater
from dcmtools.model.record import decode, encode

MEMORY = 4 << 30  # bytes of address space
SECONDS = 60  # of CPU, and as many again by the clock
_PNG = b"\x89PNG\r\n\x1a\n"
_PROGRAM = (
    "import sys; sys.path.append(sys.argv.pop(1)); from dcmtools.images import preview_child as c; sys.exit(c.main())"
)
_PACKAGES = Path(__file__).resolve().parents[2]
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH")


def draw_apart(path: Path, frame: int, syntax: str, size: int | None, source: str) -> bytes:
    """The PNG of a frame, drawn by a child that sees no setting of the user's and cannot take more than its limits.

    Raises:
        BadData: the pixels cannot be decoded, or the decoder crashed (cause decoder-crashed).
        TryLater: it took too long (cause time-limit).
    """
    arguments = [os.fspath(path), str(frame), syntax, str(size or 0), source]
    child = subprocess.Popen(
        [sys.executable, "-I", "-c", _PROGRAM, os.fspath(_PACKAGES), *arguments],
        env={name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ} | {"OPENBLAS_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for us: the picture in hand is finished
    )
    try:
        answer, _ = child.communicate(timeout=2 * SECONDS)
    except subprocess.TimeoutExpired:
        raise _too_slow() from None
    finally:
        _end(child)
    return _checked(answer, child.returncode)


def main() -> int:
    """The child: draws what its arguments name."""
    _limit()
    path, frame, syntax, size, source = sys.argv[1:6]
    try:
        answer = _drawn(Path(path), int(frame), syntax, int(size) or None, source)
    except DcmtoolsError as problem:
        answer = encode(problem.record())
    except MemoryError:
        answer = encode(BadData("there is not enough memory to decode its pixels", cause="too-large").record())
    sys.stdout.buffer.write(answer)
    return 0


def _drawn(path: Path, frame: int, syntax: str, size: int | None, source: str) -> bytes:
    from dcmtools.images.preview_frame import draw
    from dcmtools.images.preview_paper import png

    return png(draw(path, frame, syntax, size), source)


def _limit() -> None:
    import resource

    for kind, most in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_CORE, 0)):
        with suppress(OSError, ValueError):  # a stricter limit of the system's stays; macOS knows no RLIMIT_AS
            resource.setrlimit(kind, (most, most))


def _end(child: subprocess.Popen[bytes]) -> None:
    """Leaves no process behind, whatever happened."""
    if child.poll() is None:
        with suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if child.stdout:
        child.stdout.close()


def _checked(answer: bytes, code: int) -> bytes:
    if code in {-signal.SIGXCPU, -signal.SIGKILL}:
        raise _too_slow()
    if code < 0:
        raise BadData(f"the decoder crashed ({_signal(-code)})", "the file may be damaged", cause="decoder-crashed")
    if code == 0 and answer.startswith(_PNG):
        return answer
    try:
        told = decode(answer)
    except ValueError:
        told = {}
    reason = told.get("reason") or f"the decoder failed (exit code {code})"
    raise BadData(str(reason), str(told.get("advice") or ""), cause=str(told.get("cause") or "undecodable"))


def _too_slow() -> TryLater:
    advice = "the file may be damaged, or made to do so"
    return TryLater(f"decoding took more than {SECONDS} seconds and was ended", advice, cause="time-limit")


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
