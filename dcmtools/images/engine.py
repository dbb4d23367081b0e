"""What every conversion engine is: a program that turns the files of one staged series into uncompressed NIfTI volumes.

An engine runs in a process of its own, with limits: whatever a file does to it, it does not do to us.
"""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from dcmtools.images.staging import Staged
from dcmtools.model.errors import BadData, ConfigurationError, DiskFull, TryLater
from dcmtools.model.record import Record

_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT")
_MEMORY_FLOOR = 4 << 30  # bytes of address space; numpy and its threads reserve 1 GiB before they do anything
_MEMORY_FACTOR = 16  # times the uncompressed pixels; the worst that was measured is 1.6 GB for 70 MB


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one series may cost."""

    seconds: float = 1800
    memory: int | None = None  # bytes of address space; None: estimated from the pixels


@dataclass(frozen=True, slots=True)
class Output:
    """One volume as an engine wrote it."""

    image: Path
    suffix: str = ""  # what the engine adds to tell several volumes of a series apart: _e2, _ph, _Tilt_1
    header: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))  # its sidecar's fields
    gradients: Mapping[str, Path] = field(default_factory=lambda: MappingProxyType({}))  # bval, bvec
    derived: bool = False  # resampled or drawn by the engine: none of its slices is one of the scanner's


@dataclass(frozen=True, slots=True)
class Run:
    """What came out of one run, and what the engine said."""

    outputs: tuple[Output, ...] = ()
    warnings: tuple[str, ...] = ()
    cause: str = ""  # why there is no output, or why the outputs are in doubt
    reason: str = ""


class Engine(Protocol):
    """A conversion program."""

    @property
    def name(self) -> str:
        """The word that selects it."""

    @property
    def version(self) -> str:
        """Its version, found without starting it where that can be."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """What it is told besides the series: a change of these is a reason to convert again."""

    def run(self, staged: Staged, source: Record, limits: Limits) -> Run:
        """Converts the staged series; `source` has what the index knows of it.

        Raises:
            BadData: the program crashed.
            TryLater: it took too long.
            DiskFull: it could not write.
        """


@dataclass(frozen=True, slots=True)
class Finished:
    """A child process that ended by itself."""

    code: int
    text: str


def make_engine(name: str, dcm2niix: Path | None = None) -> Engine:
    """The engine of this name; `dcm2niix` is a binary to use instead of the installed one.

    Raises:
        ConfigurationError: it is not installed, too old, or there is no such engine.
    """
    if name == "dcm2niix":
        from dcmtools.images.dcm2niix import Dcm2niix

        return Dcm2niix.found(dcm2niix)
    if name == "dicom2nifti":
        from dcmtools.images.dicom2nifti_ import Dicom2nifti

        return Dicom2nifti.found()
    raise ConfigurationError(f"there is no engine '{name}'", "use dcm2niix or dicom2nifti")


def memory_limit(pixel_bytes: int, limits: Limits) -> int:
    """How much address space a child may have for a series with so many bytes of pixels, never more than there is."""
    if limits.memory:
        return limits.memory
    wanted = _MEMORY_FLOOR + _MEMORY_FACTOR * pixel_bytes
    return max(_MEMORY_FLOOR, min(wanted, _physical_memory()))


def run_child(command: Sequence[str], staged: Staged, limits: Limits) -> Finished:
    """Runs a program in the staging folder, in a session of its own: Ctrl-C lets it finish the series in hand.

    Raises:
        BadData: killed by a signal (cause engine-crashed).
        TryLater: over its time (cause time-limit).
        DiskFull: over the file size that the system allows.
    """
    child = subprocess.Popen(
        command,
        cwd=staged.folder,
        env=_environment(staged),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        _limit(child.pid, limits)
        said, _ = child.communicate(timeout=limits.seconds)
    except subprocess.TimeoutExpired:
        raise _too_slow(limits) from None
    finally:
        _end(child)
    if child.returncode < 0:
        raise _killed(-child.returncode, Path(command[0]).name, limits)
    return Finished(child.returncode, said.decode("utf-8", "replace"))


def _environment(staged: Staged) -> dict[str, str]:
    """No setting of the user's, and temporaries where they are swept."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**kept, **one_thread, "HOME": str(staged.folder), "TMPDIR": str(staged.folder), "LC_ALL": "C.UTF-8"}


def _limit(pid: int, limits: Limits) -> None:
    """Sets the limits from outside: code between fork and exec is not safe in a program with threads (Linux only)."""
    import resource

    if not hasattr(resource, "prlimit"):
        return
    seconds = int(limits.seconds) + 60  # on top of the clock: an orphan of a killed run ends some day
    with suppress(OSError, ValueError):
        resource.prlimit(pid, resource.RLIMIT_CPU, (seconds, seconds))
        if limits.memory:
            resource.prlimit(pid, resource.RLIMIT_AS, (limits.memory, limits.memory))


def _end(child: subprocess.Popen[bytes]) -> None:
    """Leaves no process behind, whatever happened."""
    if child.poll() is None:
        with suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if child.stdout:
        child.stdout.close()


def _too_slow(limits: Limits) -> TryLater:
    return TryLater(
        f"the conversion took more than {limits.seconds:g} seconds and was ended",
        "allow it more time, or look at what is special about this series",
        cause="time-limit",
    )


def _killed(number: int, program: str, limits: Limits) -> BadData | TryLater | DiskFull:
    if number == signal.SIGXCPU:
        return _too_slow(limits)
    if number == signal.SIGXFSZ:
        reason = f"{program} wrote more than a file may hold here"
        return DiskFull(reason, "raise the limit of the file size (ulimit -f)")
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = str(number)
    advice = "try the other --engine; the series' files may be damaged"
    return BadData(f"{program} crashed (signal {name})", advice, cause="engine-crashed")


def _physical_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 1 << 62
