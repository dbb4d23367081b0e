"""Storage commitment: with Orthanc, which reports on an association of its own, and with an SCP that obeys the test."""

import json
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

from dcmtools.disk.archive import Archive
from dcmtools.disk.reports import Reports
from dcmtools.model.node import Local, node_from_address
from dcmtools.model.record import Record, event
from dcmtools.model.uids import STORAGE_COMMITMENT as COMMITMENT
from dcmtools.network import command
from dcmtools.network.acceptor import Acceptor, Policy
from dcmtools.network.association import Association
from dcmtools.network.commitment import committed
from dcmtools.network.door import Port
from dcmtools.network.listen import Listener
from dcmtools.network.requestor import request
from dcmtools.network.store import store
from tests.builders import uid, write_series
from tests.conftest import RunDcmtools, StartDcmtools
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


def test_a_node_that_answers_twice_fails_its_instances_and_nothing_else(free_port: Callable[[], int]) -> None:
    def once_more(association: Association, _asked: Dataset) -> None:
        rsp = {"CommandField": command.N_ACTION_RSP, "MessageIDBeingRespondedTo": 1, "Status": 0}
        association.send(association.require(COMMITMENT, "commitment"), rsp)

    with archive(once_more) as (acceptor, _):
        records = list(committed(sent(2), node(acceptor.port), Local(port=free_port()), seconds=0.5))

    assert states(records) == ["failed", "failed"]
    assert {record["cause"] for record in records} == {"no-report"}
    assert {record["exit_code"] for record in records} == {75}


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


# The port is that of a listen


@contextmanager
def listener_at(folder: Path, port: int) -> Iterator[list[Record]]:
    """The listen of an archive, and the records that it tells."""
    records: list[Record] = []
    with Listener(Archive(folder), Local(ae_title="SENDER", port=port, bind="127.0.0.1"), records.append):
        yield records


def test_the_listen_of_the_archive_takes_the_report_for_who_waits(tmp_path: Path, free_port: Callable[[], int]) -> None:
    local, codes = Local(ae_title="SENDER", port=free_port(), bind="127.0.0.1"), []

    def report(association: Association, asked: Dataset) -> None:
        association.abort()
        codes.append(report_to(local.port, report_of(asked, {uid(2): 0x0112})))

    with listener_at(tmp_path, local.port) as told, archive(report) as (acceptor, _):
        records = list(committed(sent(2), node(acceptor.port), local, seconds=20, archive=tmp_path))

    assert [record["committed"] for record in records] == [True, False]
    assert "it has no such instance" in records[1]["reason"]
    assert codes == [0]
    assert told == [
        {
            "type": "event", "event": "commitment-report", "node": "PACS",
            "TransactionUID": records[0]["TransactionUID"],
            "ReferencedSOPSequence": [{"ReferencedSOPInstanceUID": uid(1)}],
            "FailedSOPSequence": [
                {"ReferencedSOPInstanceUID": uid(2), "FailureReason": "0112", "reason": "it has no such instance"}
            ],
        }
    ]  # fmt: skip
    assert not list((tmp_path / ".dcmtools-reports").iterdir())


def report_to(port: int, data: bytes) -> int:
    """The status with which a report is answered that comes on an association of its own."""
    wanted, roles = [(COMMITMENT, (EXPLICIT,))], {COMMITMENT: (False, True)}
    with request(node(port), Local(ae_title="PACS"), wanted, roles=roles) as association:
        assert association.require(COMMITMENT, "commitment").scp
        return int(send_report(association, data)["Status"])


def test_orthanc_and_pynetdicom_report_to_a_listen(
    orthanc: StartOrthanc,
    start_dcmtools: StartDcmtools,
    dcmtools: RunDcmtools,
    tmp_path: Path,
    free_port: Callable[[], int],
) -> None:
    """As a user has it: `listen` runs, and `store --commit` to a node that reports on an association of its own."""
    port = free_port()
    write_series(tmp_path / "in", 3)
    (tmp_path / "config.ini").write_text(f"[local]\nae_title = SENDER\nport = {port}\n")
    ours = ("--config", "config.ini", "--archive", "archive")
    process = start_dcmtools("listen", *ours, "--workers", 2)
    assert process.stdout
    process.stdout.readline()

    done = {}
    with second_scp(port) as peer:
        for name, address in (("orthanc", orthanc({"SENDER": port}).node), ("pynetdicom", f"PEER@127.0.0.1:{peer}")):
            done[name] = dcmtools("store", "in", "--to", address, "--commit", "--commit-wait", "20s", *ours)
    process.terminate()
    told = [json.loads(line) for line in process.stdout]

    for one in done.values():
        assert one.returncode == 0, one.stderr
        records = [json.loads(line) for line in one.stdout.splitlines()]
        assert [record["committed"] for record in records if record["type"] == "instance"] == [True] * 3
    assert [one["event"] for one in told] == ["commitment-report", "commitment-report", "end"]


@contextmanager
def second_scp(port: int) -> Iterator[int]:
    """An SCP made with pynetdicom: it takes all it is sent, and reports to a port on an association of its own."""
    from pynetdicom import AE, build_role, evt

    reporting: list[threading.Thread] = []

    def action(event: Any) -> tuple[int, None]:
        asked = event.action_information
        reporting.append(threading.Thread(target=report, args=(asked,)))
        reporting[-1].start()
        return 0x0000, None

    def report(asked: Dataset) -> None:
        client = AE("PEER")
        client.add_requested_context(COMMITMENT)
        association = client.associate("127.0.0.1", port, ext_neg=[build_role(COMMITMENT, scp_role=True)])
        association.send_n_event_report(asked, 1, COMMITMENT, "1.2.840.10008.1.20.1.1")
        association.release()

    server = AE("PEER")
    server.add_supported_context(MR)
    server.add_supported_context(COMMITMENT)
    handlers: list[Any] = [(evt.EVT_C_STORE, lambda _: 0x0000), (evt.EVT_N_ACTION, action)]
    running = server.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    assert running
    try:
        yield running.server_address[1]
    finally:
        for thread in reporting:
            thread.join(20)
        running.shutdown()


def test_a_report_that_nobody_waits_for_is_told_and_not_kept(tmp_path: Path, free_port: Callable[[], int]) -> None:
    asked = Dataset()
    asked.TransactionUID, asked.ReferencedSOPSequence = "1.2.3", []
    port = free_port()
    with listener_at(tmp_path, port) as told:
        codes = [report_to(port, report_of(asked, {})), report_to(port, b"\x08\0")]

    assert codes == [0x0000, 0x0110]
    assert [one["TransactionUID"] for one in told] == ["1.2.3"]
    assert not (tmp_path / ".dcmtools-reports").exists()


def test_a_report_that_cannot_be_kept_is_not_acknowledged(
    tmp_path: Path, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Dataset()
    asked.TransactionUID, asked.ReferencedSOPSequence = "1.2.3", []
    Reports(tmp_path).expect("1.2.3")
    (tmp_path / ".dcmtools-reports" / "1.2.3.json").unlink()
    (tmp_path / ".dcmtools-reports" / "1.2.3.json").mkdir()  # what cannot be replaced by a file
    port = free_port()
    with listener_at(tmp_path, port) as told:
        assert report_to(port, report_of(asked, {})) == 0x0213
    assert not told


def test_the_listen_of_another_archive_is_of_no_use_to_us(tmp_path: Path, free_port: Callable[[], int]) -> None:
    local = Local(ae_title="SENDER", port=free_port(), bind="127.0.0.1")
    with listener_at(tmp_path / "theirs", local.port), archive(lambda *_: None) as (acceptor, _):
        items = committed(sent(1), node(acceptor.port), local, seconds=0.2, archive=tmp_path / "ours")
        (record,) = items

    assert f"port {local.port} is held by another program" in record["reason"]
