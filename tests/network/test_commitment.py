"""Storage commitment: with Orthanc, which reports on an association of its own, and with an SCP that obeys the test."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from dcmtools.model.node import Local, node_from_address
from dcmtools.model.record import Record, event
from dcmtools.network import command
from dcmtools.network.acceptor import Acceptor, Policy
from dcmtools.network.association import Association
from dcmtools.network.commitment import COMMITMENT, committed
from dcmtools.network.door import Port
from dcmtools.network.requestor import request
from dcmtools.network.store import store
from tests.builders import uid, write_series
from tests.network.storing import MR, node
from tests.network.test_store import records_of, states
from tests.peers.processes import StartOrthanc

EXPLICIT = "1.2.840.10008.1.2.1"
Report = Callable[[Association, Dataset], None]


def sent(count: int) -> list[Record]:
    return [
        {"type": "instance", "SOPClassUID": MR, "SOPInstanceUID": uid(number), "state": "sent"}
        for number in range(1, count + 1)
    ]


def report_of(asked: Dataset, failed: dict[str, int]) -> bytes:
    """The N-EVENT-REPORT's data set for a request, in explicit little endian."""
    made = Dataset()
    made.TransactionUID = asked.TransactionUID
    good = [one for one in asked.ReferencedSOPSequence if one.ReferencedSOPInstanceUID not in failed]
    bad = [one for one in asked.ReferencedSOPSequence if one.ReferencedSOPInstanceUID in failed]
    for one in bad:
        one.FailureReason = failed[one.ReferencedSOPInstanceUID]
    made.ReferencedSOPSequence = good
    if bad:
        made.FailedSOPSequence = bad
    out = DicomBytesIO()
    out.is_little_endian, out.is_implicit_VR = True, False
    write_dataset(out, made)
    return bytes(out.getvalue())


def send_report(association: Association, data: bytes) -> command.Command:
    rq = {
        "AffectedSOPClassUID": COMMITMENT, "AffectedSOPInstanceUID": "1.2.840.10008.1.20.1.1", "EventTypeID": 1,
        "CommandField": command.N_EVENT_REPORT_RQ, "MessageID": 7,
    }  # fmt: skip
    association.send(association.require(COMMITMENT, "commitment"), rq, data)
    return association.receive().command


@contextmanager
def archive(report: Report, code: int = 0, **policy: Any) -> Iterator[tuple[Acceptor, list[Dataset]]]:
    """An SCP of storage commitment that answers each request with a status, and then does what `report` does."""
    asked: list[Dataset] = []

    def serve(association: Association) -> None:
        while True:
            message = association.receive(idle=20)
            asked.append(read_dataset(BytesIO(association.read_data()), False, True))
            rsp = {"CommandField": message.field | 0x8000, "MessageIDBeingRespondedTo": message.command["MessageID"]}
            association.send(message.context, {**rsp, "Status": code})
            report(association, asked[-1])

    def choose(_abstract: str, syntaxes: tuple[str, ...]) -> str:
        return EXPLICIT if EXPLICIT in syntaxes else ""

    keys = {"ae_title": "PEER", "choose": choose, **policy}
    acceptor = Acceptor(Port("127.0.0.1", 0), Policy(**keys), serve, lambda _: None)
    acceptor.start()
    try:
        yield acceptor, asked
    finally:
        acceptor.drain(0.5)


def test_orthanc_commits_what_it_has_and_names_what_it_lacks(
    orthanc: StartOrthanc, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    port = free_port()
    pacs = node_from_address(orthanc({"SENDER": port}).node)
    local = Local(ae_title="SENDER", port=port, bind="127.0.0.1")
    stored = store(records_of(*write_series(tmp_path, 3)), pacs, local)

    records = list(committed([*stored, *sent(1)], pacs, local, seconds=30))

    assert states(records) == ["sent", "sent", "sent", "failed"]
    assert [record["committed"] for record in records] == [True, True, True, False]
    assert records[3]["cause"] == "not-committed"
    assert "it has no such instance" in records[3]["reason"]
    assert len({record["TransactionUID"] for record in records}) == 1


def test_a_report_on_the_association_of_the_request_is_taken_and_answered(free_port: Callable[[], int]) -> None:
    answers: list[command.Command] = []

    def report(association: Association, asked: Dataset) -> None:
        answers.append(send_report(association, report_of(asked, {uid(2): 0x0213})))

    told = event("series-complete", SeriesInstanceUID="1.2")
    before = [{"type": "instance", "state": "failed"}, *sent(3), told]
    with archive(report) as (acceptor, asked):
        records = list(committed(before, node(acceptor.port), Local(port=free_port()), seconds=20))

    assert states(records) == ["failed", "sent", "failed", "sent", "event"]
    assert records[0] == before[0]
    assert records[4] == told
    assert records[2]["exit_code"] == 75
    assert "it has no room for it" in records[2]["reason"]
    assert answers[0]["Status"] == 0
    assert answers[0]["MessageIDBeingRespondedTo"] == 7
    assert [one.ReferencedSOPInstanceUID for one in asked[0].ReferencedSOPSequence] == [uid(1), uid(2), uid(3)]


@pytest.mark.parametrize("end", ["release", "abort"])
def test_a_report_on_another_association_is_taken_too(end: str, free_port: Callable[[], int]) -> None:
    local = Local(ae_title="SENDER", port=free_port(), bind="127.0.0.1")
    threads: list[threading.Thread] = []

    def report(association: Association, asked: Dataset) -> None:
        threads.append(threading.Thread(target=call_back, args=(report_of(asked, {}),)))
        threads[-1].start()
        getattr(association, end)()

    def call_back(data: bytes) -> None:
        wanted, roles = [(COMMITMENT, (EXPLICIT,))], {COMMITMENT: (False, True)}
        with request(node(local.port), Local(ae_title="PEER"), wanted, roles=roles) as association:
            assert send_report(association, data)["Status"] == 0

    with archive(report) as (acceptor, _):
        records = list(committed(sent(2), node(acceptor.port), local, seconds=20))
        for thread in threads:
            thread.join(20)

    assert [record["committed"] for record in records] == [True, True]


@pytest.mark.parametrize(
    ("code", "policy", "cause", "words"),
    [
        (0, {}, "no-report", "did not report within 0.3 s"),
        (0x0213, {}, "out-of-resources", "N-ACTION status 0213"),
        (0x0110, {}, "status", "N-ACTION status 0110 (Failure: Processing Failure"),
        (0, {"choose": lambda *_: None}, "not-offered", "does not offer storage commitment"),
    ],
)
def test_what_is_not_committed_has_failed_and_says_why(
    free_port: Callable[[], int], code: int, policy: dict[str, Any], cause: str, words: str
) -> None:
    with archive(lambda *_: None, code, **policy) as (acceptor, _):
        records = list(committed(sent(2), node(acceptor.port), Local(port=free_port()), seconds=0.3))

    assert states(records) == ["failed", "failed"]
    assert {record["cause"] for record in records} == {cause}
    assert words in records[0]["reason"]
    assert records[0]["committed"] is False


def test_a_port_that_another_program_holds_is_named_when_no_report_comes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held, archive(lambda *_: None) as (acceptor, _):
        local = Local(port=held.getsockname()[1], bind="127.0.0.1")
        (record,) = committed(sent(1), node(acceptor.port), local, seconds=0.2)

    assert f"port {local.port} is held by another program" in record["reason"]


def test_what_left_under_another_uid_is_committed_under_that(free_port: Callable[[], int]) -> None:
    def report(association: Association, asked: Dataset) -> None:
        send_report(association, report_of(asked, {}))

    (before,) = sent(1)
    with archive(report) as (acceptor, asked):
        items = [{**before, "sent_as": {"SOPInstanceUID": uid(99)}}]
        (record,) = committed(items, node(acceptor.port), Local(port=free_port()), seconds=20)

    assert asked[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == uid(99)
    assert record["committed"] is True


def test_many_instances_are_committed_in_several_requests(free_port: Callable[[], int]) -> None:
    def report(association: Association, asked: Dataset) -> None:
        send_report(association, report_of(asked, {}))

    with archive(report) as (acceptor, asked):
        records = list(committed(sent(1100), node(acceptor.port), Local(port=free_port()), seconds=20))

    assert all(record["committed"] for record in records)
    assert [len(one.ReferencedSOPSequence) for one in asked] == [500, 500, 100]
    assert len({one.TransactionUID for one in asked}) == 3
