"""The other side: real DICOM programs on free ports of 127.0.0.1 with clean folders, killed when the test is over.

Each fixture is a function that starts one; call it twice for two.
"""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.waiting import is_listening, wait_until

PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])  # Debian's Orthanc is in /usr/sbin
PROGRAMS = {
    "storescp": "dcmtk",
    "Orthanc": "orthanc",
    "gdcmscanner": "libgdcm-tools",
    "dciodvfy": "dicom3tools",
    "strace": "strace",
}
# DCMTK leaves Nagle's algorithm on, which costs 44 ms a message; a test that is about that says environment={}.
QUICK = {"TCP_NODELAY": "1"}

Destinations = dict[str, int]  # AE title -> port on 127.0.0.1: whom a peer may send to


@dataclass(frozen=True, slots=True)
class Peer:
    """A running peer."""

    ae_title: str
    port: int
    folder: Path
    log: Path
    process: subprocess.Popen[str]

    @property
    def node(self) -> str:
        """The peer as dcmtools wants a node on its command line."""
        return f"{self.ae_title}@127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Kills the peer and all of its children, as a power cut would."""
        end(self.process)


@dataclass(frozen=True, slots=True)
class Orthanc(Peer):
    """A running Orthanc, which also answers over HTTP."""

    http_port: int

    def rest(self, path: str) -> Any:
        """The JSON that GET returns, for example of `/statistics` or `/instances`."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=30) as answer:
            return json.load(answer)

    def instances(self) -> int:
        """How many instances it holds."""
        return int(self.rest("/statistics")["CountInstances"])


class StartStorescp(Protocol):
    """Starts DCMTK's storescp, which takes any called AE title; `options` are its own, such as `--fork`."""

    def __call__(self, *options: str, environment: dict[str, str] | None = None) -> Peer: ...


class StartDcmqrscp(Protocol):
    """Starts DCMTK's dcmqrscp, which knows the `destinations`; others it answers with A801."""

    def __call__(
        self,
        destinations: Destinations | None = None,
        *,
        ae_title: str = "QRSCP",
        environment: dict[str, str] | None = None,
    ) -> Peer: ...


class StartOrthanc(Protocol):
    """Starts Orthanc, which knows the `destinations` (others get C000); `settings` are added to its configuration."""

    def __call__(
        self, destinations: Destinations | None = None, *, ae_title: str = "ORTHANC", **settings: Any
    ) -> Orthanc: ...


class RunTool(Protocol):
    """Runs a peer's command, such as `storescu`, to its end."""

    def __call__(self, *args: object, timeout: float = 120) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture(scope="session")
def peers() -> None:
    """The peers' programs; a test that asks for them fails, and is not skipped, where they are missing."""
    if missing := sorted({package for program, package in PROGRAMS.items() if not shutil.which(program, path=PATH)}):
        pytest.fail(f"needs real DICOM peers; run: sudo apt-get install {' '.join(missing)}", pytrace=False)


@pytest.fixture
def tool(peers: None, tmp_path: Path) -> RunTool:
    """A function that runs a command of DCMTK or GDCM in tmp_path."""

    def run(*args: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            list(map(str, args)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            env={**os.environ, **QUICK, "PATH": PATH},
            cwd=tmp_path,
        )

    return run


@pytest.fixture
def storescp(peers: None, tmp_path: Path, free_port: Callable[[], int]) -> Iterator[StartStorescp]:
    """A function that starts a storescp; what it receives lies in the peer's folder, bit for bit as it was sent."""
    with _running(tmp_path, "storescp") as start:

        def begin(*options: str, environment: dict[str, str] | None = None) -> Peer:
            port = free_port()

            def command(folder: Path) -> list[str]:
                return ["storescp", "+xa", "+B", *options, "-od", str(folder), str(port)]

            return Peer("STORESCP", port, *start(command, port, environment))

        yield begin


@pytest.fixture
def dcmqrscp(peers: None, tmp_path: Path, free_port: Callable[[], int]) -> Iterator[StartDcmqrscp]:
    """A function that starts a dcmqrscp."""
    with _running(tmp_path, "dcmqrscp") as start:

        def begin(
            destinations: Destinations | None = None,
            *,
            ae_title: str = "QRSCP",
            environment: dict[str, str] | None = None,
        ) -> Peer:
            port = free_port()

            def command(folder: Path) -> list[str]:
                configuration = folder.with_suffix(".cfg")
                configuration.write_text(_dcmqrscp_configuration(ae_title, port, folder, destinations or {}))
                return ["dcmqrscp", "-c", str(configuration)]

            return Peer(ae_title, port, *start(command, port, environment))

        yield begin


@pytest.fixture
def orthanc(peers: None, tmp_path: Path, free_port: Callable[[], int]) -> Iterator[StartOrthanc]:
    """A function that starts an Orthanc."""
    with _running(tmp_path, "orthanc") as start:

        def begin(destinations: Destinations | None = None, *, ae_title: str = "ORTHANC", **settings: Any) -> Orthanc:
            port, http_port = free_port(), free_port()

            def command(folder: Path) -> list[str]:
                configuration = folder.with_suffix(".json")
                whole = _orthanc_configuration(ae_title, port, http_port, folder, destinations or {}) | settings
                configuration.write_text(json.dumps(whole))
                return ["Orthanc", str(configuration)]

            running = start(command, port)
            wait_until(lambda: is_listening(http_port), what="Orthanc's HTTP server")
            return Orthanc(ae_title, port, *running, http_port)

        yield begin


def end(process: subprocess.Popen[str]) -> None:
    """Kills the process and its children, and closes its pipes. It must lead a process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe:
            with contextlib.suppress(BrokenPipeError):  # what was still to be written to the dead
                pipe.close()


Running = tuple[Path, Path, subprocess.Popen[str]]  # folder, log, process


class _Start(Protocol):
    def __call__(
        self, command: Callable[[Path], Sequence[str]], port: int, environment: dict[str, str] | None = None
    ) -> Running: ...


@contextlib.contextmanager
def _running(tmp_path: Path, name: str) -> Iterator[_Start]:
    """A starter of processes that returns when they listen, and their end."""
    started: list[subprocess.Popen[str]] = []
    number = itertools.count(1)

    def start(
        command: Callable[[Path], Sequence[str]], port: int, environment: dict[str, str] | None = None
    ) -> Running:
        folder = tmp_path / f"{name}-{next(number)}"
        folder.mkdir()
        log = folder.with_suffix(".log")
        own = QUICK if environment is None else environment
        with log.open("wb") as out:
            process = subprocess.Popen(
                command(folder),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                text=True,
                env={**os.environ, **own, "PATH": PATH},
                start_new_session=True,
            )
        started.append(process)
        wait_until(lambda: is_listening(port) or process.poll() is not None, timeout=60, what=f"{name} listens")
        assert process.poll() is None, f"{name} ended: {log.read_text(errors='replace')}"
        return folder, log, process

    try:
        yield start
    finally:
        for process in started:
            end(process)


def _dcmqrscp_configuration(ae_title: str, port: int, folder: Path, destinations: Destinations) -> str:
    # Larger quotas than 500 studies of 1 GB are refused with a warning.
    hosts = "\n".join(f"host{n} = ({aet}, 127.0.0.1, {at})" for n, (aet, at) in enumerate(destinations.items()))
    return f"""
NetworkTCPPort = {port}
MaxPDUSize = 131072
MaxAssociations = 16

HostTable BEGIN
{hosts}
HostTable END

VendorTable BEGIN
VendorTable END

AETable BEGIN
{ae_title} {folder} RW (500, 1024mb) ANY
AETable END
"""


def _orthanc_configuration(
    ae_title: str, port: int, http_port: int, folder: Path, destinations: Destinations
) -> dict[str, Any]:
    return {
        "Name": ae_title,
        "DicomAet": ae_title,
        "DicomPort": port,
        "HttpPort": http_port,
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "Plugins": [],
        "DicomCheckCalledAet": False,
        "DicomAlwaysAllowEcho": True,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowGet": True,
        "DicomAlwaysAllowMove": True,
        "UnknownSopClassAccepted": True,
        "OverwriteInstances": True,
        "StableAge": 1,
        "DicomModalities": {
            aet.lower(): {"AET": aet, "Host": "127.0.0.1", "Port": at, "AllowMove": True}
            for aet, at in destinations.items()
        },
    }
