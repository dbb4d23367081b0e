"""A listen in the background: started, looked at, started anew and stopped."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from dcmtools.network.echo import verify
from tests.builders import write_series
from tests.conftest import RunDcmtools, StartDcmtools
from tests.network.storing import client, files
from tests.peers.processes import RunTool
from tests.waiting import wait_until


@pytest.fixture
def archive(tmp_path: Path, dcmtools: RunDcmtools) -> Iterator[Path]:
    yield tmp_path / "archive"
    dcmtools("listen", "stop", "--archive", "archive")


def first(done: CompletedProcess[str]) -> dict[str, object]:
    told: dict[str, object] = json.loads(done.stdout.splitlines()[0])
    return told


def test_it_starts_receives_and_stops(archive: Path, dcmtools: RunDcmtools, tool: RunTool, tmp_path: Path) -> None:
    before = dcmtools("listen", "status", "--archive", "archive")
    begun = dcmtools("listen", "start", "--archive", "archive", "--port", 0, "--aet", "OURS")
    port = first(begun)["port"]
    sent = tool("storescu", "127.0.0.1", port, *write_series(tmp_path / "in", 3))
    status = dcmtools("listen", "status", "--archive", "archive")
    planned = dcmtools("listen", "stop", "--archive", "archive", "--dry-run")
    stopped = dcmtools("listen", "stop", "--archive", "archive")
    after = dcmtools("listen", "status", "--archive", "archive")

    assert (before.returncode, begun.returncode, sent.returncode) == (69, 0, 0), begun.stderr
    assert (status.returncode, planned.returncode, stopped.returncode, after.returncode) == (0, 2, 0, 69)
    assert first(status)["ae_title"] == "OURS"
    assert first(status)["pid"] == first(begun)["pid"] == first(stopped)["pid"]
    assert first(stopped)["event"] == "stopped"
    assert len([path for path in files(archive) if path.suffix == ".dcm"]) == 3


def test_restart_makes_a_new_one_with_the_options_beside_it(archive: Path, dcmtools: RunDcmtools) -> None:
    begun = first(dcmtools("listen", "start", "--archive", "archive", "--port", 0))

    again = dcmtools("listen", "restart", "--archive", "archive", "--port", 0, "--aet", "NEW").stdout.splitlines()

    stopped, now = json.loads(again[0]), json.loads(again[1])
    assert stopped["pid"] == begun["pid"] != now["pid"]
    assert now["ae_title"] == "NEW"
    with client(now["port"]) as association:
        verify(association)


def test_what_hinders_a_start_is_said_with_its_exit_code(archive: Path, dcmtools: RunDcmtools) -> None:
    assert dcmtools("listen", "start", "--archive", "archive", "--port", 0).returncode == 0

    second = dcmtools("listen", "start", "--archive", "archive", "--port", 0)
    wrong = dcmtools("listen", "start", "--archive", "other", "--port", 0, "--compression", "none-such")

    assert (second.returncode, wrong.returncode) == (75, 78)
    assert "has a receiver already" in second.stderr
    assert "is not a transfer syntax" in wrong.stderr


def test_to_stop_what_does_not_run_is_no_mistake(dcmtools: RunDcmtools) -> None:
    done = dcmtools("listen", "stop", "--archive", "archive")

    assert (done.returncode, first(done)["event"]) == (0, "stopped")


def test_sighup_has_the_nodes_read_again_and_harms_nobody(
    start_dcmtools: StartDcmtools, dcmtools: RunDcmtools, tool: RunTool, tmp_path: Path
) -> None:
    write_series(tmp_path / "in", 2)
    assert dcmtools("import", "in", "--archive", "archive").returncode == 0
    process = start_dcmtools("listen", "--port", 0, "--archive", "archive", "--query-retrieve")
    assert process.stdout
    port = json.loads(process.stdout.readline())["port"]
    key = ("-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=1.2.826.0.1.3680043.10.999.1.1")

    def moved() -> bool:
        (tmp_path / "moved").mkdir(exist_ok=True)
        words = ("movescu", "-S", "-aet", "DEST", "+P", back, "-od", "moved", "127.0.0.1", port, *key)
        return tool(*words).returncode == 0 and len(list((tmp_path / "moved").iterdir())) == 2

    back = 31999
    assert not moved()
    assert dcmtools("nodes", "add", "DEST", f"DEST@127.0.0.1:{back}").returncode == 0
    os.kill(process.pid, signal.SIGHUP)

    wait_until(moved, what="the destination is known")
    process.terminate()
    assert process.wait(30) == 0


def test_sighup_does_not_end_a_plain_receiver(start_dcmtools: StartDcmtools) -> None:
    process = start_dcmtools("listen", "--port", 0, "--archive", "archive")
    assert process.stdout
    port = json.loads(process.stdout.readline())["port"]

    os.kill(process.pid, signal.SIGHUP)

    with client(port) as association:
        verify(association)
    process.terminate()
    assert process.wait(30) == 0
