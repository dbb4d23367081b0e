from collections.abc import Callable
from pathlib import Path

from tests.peers.processes import RunTool, StartDcmqrscp, StartOrthanc, StartStorescp
from tests.waiting import is_listening


def test_storescp_answers_and_is_gone_when_stopped(storescp: StartStorescp, tool: RunTool) -> None:
    peer = storescp()

    assert tool("echoscu", "127.0.0.1", peer.port).returncode == 0
    peer.stop()

    assert not is_listening(peer.port)
    assert tool("echoscu", "127.0.0.1", peer.port).returncode != 0


def test_dcmqrscp_answers_to_its_ae_title_only(dcmqrscp: StartDcmqrscp, tool: RunTool) -> None:
    peer = dcmqrscp({"DEST": 12900})

    assert tool("echoscu", "-aec", "QRSCP", "127.0.0.1", peer.port).returncode == 0
    assert tool("echoscu", "-aec", "NOBODY", "127.0.0.1", peer.port).returncode != 0


def test_two_orthancs_run_beside_each_other_and_are_empty(orthanc: StartOrthanc, tool: RunTool) -> None:
    one, two = orthanc({"DEST": 12900}), orthanc()

    assert [tool("echoscu", "127.0.0.1", peer.port).returncode for peer in (one, two)] == [0, 0]
    assert (one.instances(), two.instances()) == (0, 0)
    assert one.rest("/modalities") == ["dest"]


def test_storescp_keeps_what_storescu_sends(storescp: StartStorescp, tool: RunTool, data: Path) -> None:
    peer = storescp()
    sent = next(path for path in sorted((data / "vendors" / "ge" / "anatomical" / "001").iterdir()))

    answer = tool("storescu", "127.0.0.1", peer.port, sent)

    assert answer.returncode == 0, answer.stderr
    assert len(list(peer.folder.iterdir())) == 1


def test_free_ports_are_all_different(free_port: Callable[[], int]) -> None:
    ports = [free_port() for _ in range(50)]

    assert len(set(ports)) == 50
    assert not any(map(is_listening, ports))
