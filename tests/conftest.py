"""What all tests share: real data, free ports, and dcmtools as a process that sees nobody's configuration."""

import itertools
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import pytest
from hypothesis import settings

pytest_plugins = ["tests.network.certificates", "tests.peers.processes"]

# Whoever starts the tests in the background of a script has SIGINT ignored, and so would all processes that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Every chance is seeded, so that a failure comes again; no deadline, since the first example pays for the imports.
settings.register_profile("dcmtools", deadline=None, derandomize=True)
settings.load_profile("dcmtools")

# Below the kernel's range for outgoing connections, so that none of them takes a port between its choice and its use.
PORTS = range(20000, 32000)


class RunDcmtools(Protocol):
    """Runs `dcmtools ARGS` to its end; `env` is added to the isolated environment."""

    def __call__(
        self, *args: object, stdin: str | None = None, env: dict[str, str] | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]: ...


class StartDcmtools(Protocol):
    """Starts `dcmtools ARGS`; its stdout is a pipe, its stderr the file `stderr-N.txt` unless told otherwise.

    `prefix` are the words of another command that runs it, such as setpriv.
    """

    def __call__(
        self,
        *args: object,
        stdin: int | IO[Any] = subprocess.DEVNULL,
        stdout: int | IO[Any] = subprocess.PIPE,
        stderr: int | IO[Any] | None = None,
        env: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> subprocess.Popen[str]: ...


@pytest.fixture(autouse=True, scope="session")
def _no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps what the tests' own process caches out of the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder with real DICOM data."""
    if not (folder := os.environ.get("DCMTOOLS_TEST_DATA")):
        pytest.skip("needs real DICOM data: set DCMTOOLS_TEST_DATA to the folder that has them")
    return Path(folder)


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """A function that returns a TCP port of 127.0.0.1 which nobody uses, and another one at each call."""
    given: set[int] = set()

    def choose() -> int:
        while True:
            port = random.SystemRandom().choice(PORTS)
            if port not in given and _is_free(port):
                given.add(port)
                return port

    return choose


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment for dcmtools: no setting of the user's, all that it keeps below tmp_path, the command on PATH."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DCMTOOLS_", "XDG_"))}
    return {
        **kept,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "HOME": str(tmp_path / "home"),
        "XDG_CONFIG_HOME": str(tmp_path / "home" / "config"),
        "XDG_STATE_HOME": str(tmp_path / "home" / "state"),
        "XDG_CACHE_HOME": str(tmp_path / "home" / "cache"),
    }


@pytest.fixture
def dcmtools(tmp_path: Path, environment: dict[str, str]) -> RunDcmtools:
    """A function that runs the command to its end, in tmp_path, and returns exit code, stdout and stderr."""

    def run(
        *args: object, stdin: str | None = None, env: dict[str, str] | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "dcmtools", *map(str, args)],
            input=stdin or "",
            capture_output=True,
            check=False,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=timeout,
            env={**environment, **(env or {})},
            cwd=tmp_path,
        )

    return run


@pytest.fixture
def start_dcmtools(tmp_path: Path, environment: dict[str, str]) -> Iterator[StartDcmtools]:
    """A function that starts the command in tmp_path; whatever still runs after the test is killed."""
    from tests.peers.processes import end  # not above: pytest wants to load its plugin itself

    started: list[subprocess.Popen[str]] = []
    number = itertools.count(1)

    def start(
        *args: object,
        stdin: int | IO[Any] = subprocess.DEVNULL,
        stdout: int | IO[Any] = subprocess.PIPE,
        stderr: int | IO[Any] | None = None,
        env: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> subprocess.Popen[str]:
        with (tmp_path / f"stderr-{next(number)}.txt").open("wb") as talk:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "dcmtools", *map(str, args)],
                stdin=stdin,
                stdout=stdout,
                stderr=talk if stderr is None else stderr,
                encoding="utf-8",
                errors="surrogateescape",
                env={**environment, **(env or {})},
                cwd=tmp_path,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        end(process)
