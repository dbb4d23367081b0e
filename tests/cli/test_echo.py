"""`dcmtools echo` against DCMTK, Orthanc and ourselves."""

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from dcmtools.disk.archive import Archive
from dcmtools.model.node import Local
from dcmtools.network.listen import Listener, Options
from tests.conftest import RunDcmtools
from tests.peers.processes import StartDcmqrscp, StartOrthanc, StartStorescp


def records(stdout: str) -> dict[str, dict[str, object]]:
    """The records by node."""
    return {record["node"]: record for record in map(json.loads, stdout.splitlines())}


def test_all_nodes_tell_how_fast_they_are_and_who(
    dcmtools: RunDcmtools, storescp: StartStorescp, dcmqrscp: StartDcmqrscp, orthanc: StartOrthanc
) -> None:
    peers = [storescp(), dcmqrscp(), orthanc()]

    done = dcmtools("echo", *(peer.node for peer in peers))

    told = records(done.stdout)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert set(told) == {peer.node for peer in peers}
    for record in told.values():
        assert record["ok"] is True
        assert float(str(record["ms"])) > 0
        assert "OFFIS_DCMTK" in str(record["peer"]) or "ORTHANC" in str(record["peer"])


def test_a_dead_node_does_not_hide_a_live_one_and_the_exit_code_is_3(
    dcmtools: RunDcmtools, storescp: StartStorescp, free_port: Callable[[], int]
) -> None:
    live, dead = storescp().node, f"DEAD@127.0.0.1:{free_port()}"

    done = dcmtools("echo", dead, live, "TYPO")

    told = records(done.stdout)
    assert done.returncode == 3
    assert told[live]["ok"] is True
    assert (told[dead]["ok"], told[dead]["exit_code"]) == (False, 69)
    assert (told["TYPO"]["ok"], told["TYPO"]["exit_code"]) == (False, 78)
    assert f"cannot reach {dead}: Connection refused" in done.stderr


def test_several_echoes_go_over_one_association(dcmtools: RunDcmtools, storescp: StartStorescp) -> None:
    done = dcmtools("echo", "--repeat", 5, storescp().node)

    record = json.loads(done.stdout)
    assert done.returncode == 0
    assert record["echoes"] == 5
    assert record["ms_min"] <= record["ms"] + 0.01 <= record["ms_max"] + 0.02


def test_a_refused_ae_title_is_told_in_words_and_ends_with_77(dcmtools: RunDcmtools, tmp_path: Path) -> None:
    options = Options(check_called=True)
    with Listener(Archive(tmp_path / "a"), Local("RIGHT", 0, "127.0.0.1"), lambda _: None, options=options) as listener:
        done = dcmtools("echo", f"WRONG@127.0.0.1:{listener.port}")

    assert done.returncode == 77
    assert "called AE title 'WRONG' not recognized; correct ae_title of the node; case counts" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "missing argument 'NODE...'"),
        (["NOBODY"], 78, "no node NOBODY"),
        (["A@B@C:104"], 78, "is not a host"),
        (["PACS@no-such-host.invalid:104"], 69, "cannot find the host"),
    ],
)
def test_what_is_wrong_with_the_call_is_said_with_its_exit_code(
    dcmtools: RunDcmtools, arguments: list[str], code: int, words: str
) -> None:
    done = dcmtools("echo", *arguments)

    assert done.returncode == code
    assert words in done.stderr
    assert json.loads(done.stdout)["exit_code"] == code


def test_a_port_that_speaks_no_dicom_ends_with_76(dcmtools: RunDcmtools) -> None:
    from tests.network.pacs import in_thread

    with socket.create_server(("127.0.0.1", 0)) as server:

        def say_hello() -> None:
            peer, _ = server.accept()
            peer.sendall(b"220 mail.example.org ESMTP\r\n")
            peer.recv(4096)
            peer.close()

        in_thread(say_hello)
        done = dcmtools("echo", f"PACS@127.0.0.1:{server.getsockname()[1]}")

    assert done.returncode == 76
    assert "no DICOM PDU" in done.stderr
