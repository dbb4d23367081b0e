"""The same services on pynetdicom's upper layer: the same records, and the same errors, as on our own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dcmtools.model.errors import DcmtoolsError, Refused, TryLater, Unavailable
from dcmtools.model.node import Local, node_from_address
from dcmtools.model.query import Query
from dcmtools.network.echo import echo_all
from dcmtools.network.find import find_on
from dcmtools.network.second_stack import SecondSender, request
from dcmtools.network.store import store
from tests.builders import uid, write_series
from tests.network.storing import answering, client, data_set, listening, node
from tests.network.test_store import records_of, states, success
from tests.peers.processes import StartOrthanc, StartStorescp

LOCAL = Local(ae_title="SENDER")
VERIFICATION = "1.2.840.10008.1.1"
ECHO = [(VERIFICATION, ["1.2.840.10008.1.2"])]


def test_both_stacks_get_the_same_from_orthanc(orthanc: StartOrthanc, tmp_path: Path) -> None:
    pacs = node_from_address(orthanc().node)
    paths = [*write_series(tmp_path, 3), *write_series(tmp_path, 2, 2)]

    (echo,) = echo_all([pacs], LOCAL, repeat=3, stack="pynetdicom")
    sent = list(store(records_of(*paths), pacs, LOCAL, sender=SecondSender))
    queries = [
        Query("study", {}),
        Query("series", {"StudyDate": "20240101-"}),
        Query("instance", {"SeriesInstanceUID": uid(1, 1, 1), "StudyInstanceUID": uid(1, 1)}),
    ]
    found = [[list(find_on([pacs], LOCAL, one, stack=stack)) for one in queries] for stack in ("own", "pynetdicom")]

    assert (echo["ok"], echo["echoes"], echo["stack"]) == (True, 3, "pynetdicom")
    assert states(sent) == ["sent"] * 5
    assert [len(one) for one in found[0]] == [2, 2, 3]
    assert found[0] == found[1]


def test_storescp_gets_every_byte_from_pynetdicom_too(storescp: StartStorescp, tmp_path: Path) -> None:
    peer = storescp()
    paths = write_series(tmp_path / "in", 4)

    records = list(store(records_of(*paths), node_from_address(peer.node), LOCAL, sender=SecondSender, jobs=2))

    assert states(records) == ["sent"] * 4
    assert sorted(map(data_set, paths)) == sorted(data_set(path) for path in peer.folder.iterdir())


def test_our_own_receiver_and_pynetdicom_get_on(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "in", 3)

    with listening(tmp_path / "archive") as (listener, came):
        peer = node(listener.port)
        (echo,) = echo_all([peer], LOCAL, stack="pynetdicom")
        records = list(store(records_of(*paths), peer, LOCAL, sender=SecondSender))

    assert echo["ok"] is True
    assert states(records) == ["sent"] * 3
    assert len([record for record in came if record.get("state") == "received"]) == 3


@pytest.mark.parametrize(("code", "state"), [(0xB000, "warning"), (0xA900, "failed"), (0x0122, "failed")])
def test_statuses_are_told_in_the_same_words(tmp_path: Path, code: int, state: str) -> None:
    items = records_of(*write_series(tmp_path, 1))
    with answering(lambda *_: code) as (acceptor, _):
        peer = node(acceptor.port)
        told = [next(store(items, peer, LOCAL)), next(store(items, peer, LOCAL, sender=SecondSender))]

    assert [one["state"] for one in told] == [state] * 2
    assert told[0]["reason"] == told[1]["reason"]
    assert told[0]["status"] == told[1]["status"]


@pytest.mark.parametrize(
    ("policy", "kind"),
    [
        ({"peers": frozenset({"OTHER"})}, Refused),
        ({"choose": lambda *_: None}, Unavailable),
        ({"max_associations": 1}, TryLater),
    ],
)
def test_a_refusal_has_the_same_words(policy: dict[str, Any], kind: type[DcmtoolsError]) -> None:
    with answering(success, **policy) as (acceptor, _):
        peer = node(acceptor.port)
        if "max_associations" in policy:
            with client(acceptor.port), pytest.raises(kind):
                request(peer, LOCAL, ECHO)
        else:
            with pytest.raises(kind):
                request(peer, LOCAL, ECHO)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pynetdicom forgets its socket
def test_a_node_that_is_away_is_unreachable(tmp_path: Path, free_port: Callable[[], int]) -> None:
    peer = node(free_port())

    (echo,) = echo_all([peer], LOCAL, stack="pynetdicom")
    records = list(store(records_of(*write_series(tmp_path, 3)), peer, LOCAL, sender=SecondSender, each=True))

    assert (echo["ok"], echo["exit_code"]) == (False, 69)
    assert states(records) == ["failed"] * 3
    assert {record["exit_code"] for record in records} == {69}


def test_a_lost_association_is_opened_again(tmp_path: Path) -> None:
    lost: list[str] = []

    def break_off_once(association: Any, message: Any) -> int | None:
        if not lost:
            lost.append(message.command["AffectedSOPInstanceUID"])
            association.abort()
            return None
        return 0

    with answering(break_off_once) as (acceptor, _):
        records = list(store(records_of(*write_series(tmp_path, 2)), node(acceptor.port), LOCAL, sender=SecondSender))

    assert states(records) == ["sent", "sent"]
    assert records[0]["tries"] == 2
