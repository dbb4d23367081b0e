"""What systemd is told, and the socket that it hands over."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from subprocess import Popen

import pytest

from dcmtools.network.echo import verify
from dcmtools.network.supervision import Supervisor, inherited_socket
from tests.conftest import StartDcmtools
from tests.network.storing import client


@pytest.mark.parametrize("workers", [1, 2])
def test_it_tells_when_its_port_is_open_that_it_lives_and_when_it_ends(
    start_dcmtools: StartDcmtools, tmp_path: Path, workers: int
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "notify"))
        told.settimeout(30)
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
        words = ("listen", "--port", 0, "--archive", "archive", "--workers", workers)
        process = start_dcmtools(*words, env=env)
        ready = told.recv(4096).decode().splitlines()
        assert process.stdout
        port = json.loads(process.stdout.readline())["port"]
        with client(port) as association:
            verify(association)
        alive = {told.recv(4096) for _ in range(3)}
        process.terminate()
        while (last := told.recv(4096)) == b"WATCHDOG=1":
            pass

    assert ready == ["READY=1", f"STATUS=listening on port {port}", f"MAINPID={process.pid}"]
    assert alive == {b"WATCHDOG=1"}
    assert last == b"STOPPING=1"
    assert process.wait(30) == 0


def start_with(opened: socket.socket, environment: dict[str, str], tmp_path: Path, *options: str) -> Popen[bytes]:
    """A listen that a service manager starts, which has opened its port."""
    words = [sys.executable, "-m", "dcmtools", "listen", "--archive", str(tmp_path / "archive"), *options]
    script = f'export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@" 3<&{opened.fileno()}'
    return subprocess.Popen(
        ["bash", "-c", script, "bash", *words],
        stdout=subprocess.PIPE,
        pass_fds=[opened.fileno()],
        env=environment,
        cwd=tmp_path,
    )


@pytest.mark.parametrize("options", [(), ("--workers", "2")], ids=["alone", "workers"])
def test_a_socket_that_was_opened_for_it_is_the_one_it_listens_on_and_outlives_it(
    environment: dict[str, str], tmp_path: Path, options: tuple[str, ...]
) -> None:
    ports, codes = [], []
    with socket.create_server(("127.0.0.1", 0)) as opened:
        port = opened.getsockname()[1]
        for _ in range(2):
            # Who comes before the start, or between two of them, is not refused but served.
            with client_that_waits(port), start_with(opened, environment, tmp_path, *options) as process:
                try:
                    assert process.stdout
                    ports.append(json.loads(process.stdout.readline())["port"])
                    with client(port) as association:
                        verify(association)
                    process.terminate()
                    codes.append(process.wait(30))
                finally:
                    process.kill()

    assert ports == [port, port]
    assert codes == [0, 0]


def client_that_waits(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port))


@pytest.mark.parametrize(("is_ours", "count"), [(False, "1"), (True, "0"), (True, ""), (True, "x")])
def test_a_socket_for_somebody_else_is_left_alone(monkeypatch: pytest.MonkeyPatch, is_ours: bool, count: str) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() if is_ours else 1))
    monkeypatch.setenv("LISTEN_FDS", count)

    assert inherited_socket() is None
    assert "LISTEN_FDS" not in os.environ


def test_without_a_manager_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    supervisor = Supervisor()

    supervisor.ready(104)
    supervisor.alive()
    supervisor.stopping()


def test_a_manager_that_went_away_does_not_stop_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    supervisor = Supervisor()

    supervisor.ready(104)

    assert "NOTIFY_SOCKET" not in os.environ
