"""Moving from Orthanc, dcmqrscp and ourselves into an archive, and what happens when they fail or lie."""

import os
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pydicom
import pytest

from dcmtools.disk.archive import Archive
from dcmtools.disk.header import read_header
from dcmtools.disk.index import Index
from dcmtools.model.errors import DcmtoolsError, DiskFull, Locked
from dcmtools.model.node import Local, Node
from dcmtools.model.record import Record, is_event, pick, type_of
from dcmtools.model.uids import EXPLICIT_VR_LITTLE_ENDIAN
from dcmtools.network import command, identifier
from dcmtools.network.arrivals import Receiving, arrivals_for
from dcmtools.network.association import Association, Message, Released
from dcmtools.network.listen import Listener
from dcmtools.network.move import move
from dcmtools.network.move_run import Options
from dcmtools.network.requestor import request
from tests.builders import uid, write_series
from tests.network.pacs import archive_of, fill, in_thread, node, node_of, our_pacs, scripted, write_studies
from tests.network.storing import encoded
from tests.peers.processes import Peer, RunTool, StartDcmqrscp, StartOrthanc, StartStorescp
from tests.waiting import wait_until

MR = "1.2.840.10008.5.1.4.1.1.4"
QUICK = Options(retries=1, grace=0.5)
STUDY = {"type": "study", "StudyInstanceUID": uid(1, 1)}


class Station:
    """Our side: an archive, and the port that PACS know of it."""

    def __init__(self, root: Path, port: int) -> None:
        self.archive = Archive(root)
        self.local = Local("DEST", port, "127.0.0.1")
        self.stored = 0
        self.connections = 0

    def move(self, there: Node, *wanted: Record, options: Options = QUICK, **keys: Any) -> list[Record]:
        return list(self.moving(there, *wanted, options=options, **keys))

    def moving(self, there: Node, *wanted: Record, options: Options = QUICK, **keys: Any) -> Generator[Record]:
        with arrivals_for(self.archive, self.local) as arrivals:
            assert isinstance(arrivals, Receiving)
            pairs = [(there, record) for record in wanted]
            yield from move(pairs, self.archive.index, arrivals, self.local, options=options, **keys)
            self.stored = arrivals._listener.counts["stored"]
            self.connections = arrivals.connections

    @property
    def uids(self) -> set[str]:
        return {record["SOPInstanceUID"] for record in self.archive.index.instances()}


class StartPacs(Protocol):
    def __call__(self, files: Path, port: int) -> Node: ...


@pytest.fixture
def station(tmp_path: Path, free_port: Callable[[], int]) -> Station:
    return Station(tmp_path / "archive", free_port())


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    return write_studies(tmp_path / "studies")


@pytest.fixture(params=["orthanc", "dcmqrscp", "ours"])
def start_pacs(request: pytest.FixtureRequest, tool: RunTool, tmp_path: Path) -> Iterator[StartPacs]:
    """A function that starts each kind of PACS, with these files, and DEST at this port."""
    if request.param == "ours":
        with _ours(tmp_path) as start:
            yield start
        return
    start_peer = request.getfixturevalue(request.param)

    def start_it(files: Path, port: int) -> Node:
        peer = start_peer({"DEST": port})
        fill(peer, files, tool)
        return node_of(peer)

    yield start_it


@contextmanager
def _ours(tmp_path: Path) -> Iterator[StartPacs]:
    with ExitStack() as stack:

        def start(files: Path, port: int) -> Node:
            pacs = stack.enter_context(our_pacs(archive_of(tmp_path / "pacs", files), {"DEST": port}))
            return node(pacs.port)

        yield start


def states(records: Iterable[Record]) -> dict[str, int]:
    """How many records there are of each state or event."""
    counts: dict[str, int] = {}
    for record in records:
        word = str(record.get("state") or record.get("event") or record.get("type"))
        counts[word] = counts.get(word, 0) + 1
    return counts


def events(records: Iterable[Record], name: str) -> list[Record]:
    return [record for record in records if is_event(record, name)]


def errors(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if type_of(record) == "error"]


def test_a_study_comes_whole_and_a_second_run_transfers_nothing(
    start_pacs: StartPacs, station: Station, studies: Path
) -> None:
    there = start_pacs(studies, station.local.port)

    first = station.move(there, STUDY)
    assert states(first) == {"received": 6, "series-complete": 2, "study-complete": 1}
    assert station.stored == 6
    assert station.uids == {uid(1, 1, series, number) for series in (1, 2) for number in (1, 2, 3)}
    for record in first[:6]:
        if type_of(record) == "instance":
            assert record["node"] == "PACS"
            assert Path(record["path"]).is_file()
    assert pick(events(first, "study-complete")[0], "expected", "received", "series") == {
        "expected": 6, "received": 6, "series": 2
    }  # fmt: skip

    second = station.move(there, STUDY)
    assert states(second) == {"present": 6, "series-complete": 2, "study-complete": 1}
    assert station.connections == 0
    assert [one["event"] for one in station.archive.index.events()] == ["series-complete"] * 2


def test_only_what_is_missing_is_moved(start_pacs: StartPacs, station: Station, studies: Path) -> None:
    there = start_pacs(studies, station.local.port)
    station.move(there, STUDY)
    lost = next(record for record in station.archive.index.instances() if record["InstanceNumber"] == 2)
    Path(lost["path"]).unlink()

    records = station.move(there, STUDY)

    assert states(records) == {"present": 5, "received": 1, "series-complete": 2, "study-complete": 1}
    assert station.stored == 1


def test_series_instances_and_patients_are_moved_and_nothing_beside_them(
    start_pacs: StartPacs, station: Station, studies: Path
) -> None:
    there = start_pacs(studies, station.local.port)
    series = {"type": "series", "StudyInstanceUID": uid(1, 1), "SeriesInstanceUID": uid(1, 1, 1)}
    one = {
        "type": "instance", "StudyInstanceUID": uid(1, 2), "SeriesInstanceUID": uid(1, 2, 1),
        "SOPInstanceUID": uid(1, 2, 1, 3),
    }  # fmt: skip
    two = {**one, "SOPInstanceUID": uid(1, 2, 1, 1)}

    assert states(station.move(there, series)) == {"received": 3, "series-complete": 1}
    assert states(station.move(there, one, two)) == {"received": 2, "series-complete": 1}
    assert station.uids == {*(uid(1, 1, 1, number) for number in (1, 2, 3)), uid(1, 2, 1, 3), uid(1, 2, 1, 1)}
    assert states(station.move(there, {"type": "patient", "PatientID": "P1"})) == {
        "present": 5, "received": 7, "series-complete": 4, "study-complete": 2
    }  # fmt: skip


def test_several_series_of_a_study_are_moved_together(start_pacs: StartPacs, station: Station, studies: Path) -> None:
    there = start_pacs(studies, station.local.port)
    wanted = [
        {"type": "series", "StudyInstanceUID": study, "SeriesInstanceUID": f"{study}.{number}"}
        for study in (uid(1, 1), uid(1, 2))
        for number in (1, 2)
    ]

    records = station.move(there, *wanted)

    assert states(records) == {"received": 12, "series-complete": 4}


def test_a_series_is_complete_while_its_study_still_moves(station: Station, tmp_path: Path) -> None:
    write_series(tmp_path / "files", 2, 1, 1, 1)
    write_series(tmp_path / "files", 40, 1, 1, 2, side=64)
    with our_pacs(archive_of(tmp_path / "pacs", tmp_path / "files"), {"DEST": station.local.port}) as pacs:
        names = [record.get("event") or "instance" for record in station.moving(node(pacs.port), STUDY)]

    assert names.index("series-complete") < 30
    assert names[-2:] == ["series-complete", "study-complete"]


def test_an_unknown_destination_is_told_by_dcmqrscp(
    dcmqrscp: StartDcmqrscp, tool: RunTool, station: Station, studies: Path
) -> None:
    peer = dcmqrscp({"OTHER": 4242})
    fill(peer, studies, tool)
    wanted = [STUDY, {**STUDY, "StudyInstanceUID": uid(2, 3)}]

    records = station.move(node_of(peer), *wanted)

    assert [record["exit_code"] for record in errors(records)] == [77, 77]
    assert "A801" in errors(records)[0]["reason"]
    assert (
        f"register AE title DEST, this machine's address and port {station.local.port}" in errors(records)[0]["advice"]
    )
    assert len(events(records, "incomplete")) == 3
    assert type_of(records[-1]) == "error"


def test_an_unknown_destination_is_told_by_orthanc(
    orthanc: StartOrthanc, tool: RunTool, station: Station, studies: Path
) -> None:
    peer = orthanc()
    fill(peer, studies, tool)

    records = station.move(node_of(peer), STUDY)

    assert [record["exit_code"] for record in errors(records)] == [77]
    assert "does not know 'DEST', or cannot reach it" in errors(records)[0]["advice"]


@pytest.mark.parametrize("kind", ["orthanc", "dcmqrscp"])
def test_a_destination_at_another_port_is_told(
    kind: str,
    request: pytest.FixtureRequest,
    tool: RunTool,
    station: Station,
    studies: Path,
    free_port: Callable[[], int],
) -> None:
    peer: Peer = request.getfixturevalue(kind)({"DEST": free_port()})
    fill(peer, studies, tool)

    (problem,) = errors(station.move(node_of(peer), STUDY))

    assert problem["exit_code"] in {69, 77}
    assert f"no connection came back to port {station.local.port}" in problem["reason"]


def test_a_node_that_sends_to_somebody_else_is_told(
    dcmqrscp: StartDcmqrscp, storescp: StartStorescp, tool: RunTool, station: Station, studies: Path
) -> None:
    peer = dcmqrscp({"DEST": storescp().port})
    fill(peer, studies, tool)

    records = station.move(node_of(peer), STUDY, {**STUDY, "StudyInstanceUID": uid(2, 3)})

    assert [problem["exit_code"] for problem in errors(records)] == [69, 69]
    assert "says that it has sent 6 instances, and no connection came" in errors(records)[0]["reason"]
    assert "it has another address for 'DEST'" in errors(records)[0]["advice"]


def test_an_unreachable_node_ends_with_69_and_is_not_asked_again_for_each_study(
    station: Station, free_port: Callable[[], int]
) -> None:
    wanted = [{"type": "study", "StudyInstanceUID": f"1.2.{number}"} for number in range(50)]
    begun = time.monotonic()

    records = station.move(node(free_port()), *wanted)

    assert [record["exit_code"] for record in errors(records)] == [69] * 50
    assert time.monotonic() - begun < 5


def test_a_refused_ae_title_ends_with_77(station: Station, tmp_path: Path, studies: Path) -> None:
    local = Local("PACS", 0, "127.0.0.1")
    from dcmtools.network.listen import Options as ListenOptions

    with Listener(Archive(tmp_path / "pacs"), local, lambda _: None, options=ListenOptions(check_called=True)) as pacs:
        (problem,) = station.move(node(pacs.port, ae_title="WRONG"), STUDY)

    assert problem["exit_code"] == 77
    assert "called AE title 'WRONG' not recognized" in problem["reason"]


def test_a_node_without_retrieval_is_told(station: Station, tmp_path: Path) -> None:
    with Listener(Archive(tmp_path / "pacs"), Local("PACS", 0, "127.0.0.1"), lambda _: None) as pacs:
        (problem,) = station.move(node(pacs.port), STUDY)

    assert problem["exit_code"] == 69
    assert "does not offer" in problem["reason"]


def test_a_study_that_the_node_does_not_have_is_told(start_pacs: StartPacs, station: Station, studies: Path) -> None:
    there = start_pacs(studies, station.local.port)

    (problem,) = station.move(there, {"type": "study", "StudyInstanceUID": "1.2.3.4"})

    assert problem["exit_code"] == 3
    assert "does not have study 1.2.3.4" in problem["reason"]


@pytest.mark.parametrize("kind", ["orthanc", "dcmqrscp"])
def test_a_pacs_that_is_killed_in_the_middle_leaves_a_move_that_the_next_run_completes(
    kind: str, request: pytest.FixtureRequest, tool: RunTool, station: Station, tmp_path: Path
) -> None:
    count = 60
    write_series(tmp_path / "files", count, side=256)
    start = request.getfixturevalue(kind)
    peer: Peer = start({"DEST": station.local.port})
    fill(peer, tmp_path / "files", tool)

    records: list[Record] = []
    for record in station.moving(node_of(peer), STUDY, options=Options(retries=0, grace=0.5)):
        records.append(record)
        if len(records) == 5:
            peer.stop()

    (incomplete,) = events(records, "incomplete")
    received = [record for record in records if record.get("state") == "received"]
    assert incomplete["expected"] == count
    assert incomplete["received"] == len(received) < count
    assert len(incomplete["missing"]) == count - len(received)
    assert errors(records)[-1]["exit_code"] in {69, 76}
    assert not events(records, "study-complete")

    again: Peer = start({"DEST": station.local.port})
    fill(again, tmp_path / "files", tool)
    records = station.move(node_of(again), STUDY)
    assert states(records) == {
        "present": len(received), "received": count - len(received), "series-complete": 1, "study-complete": 1
    }  # fmt: skip
    last = {one["SeriesInstanceUID"]: one["event"] for one in station.archive.index.events()}
    assert last == {uid(1, 1, 1): "series-complete"}


def test_a_stop_in_the_middle_cancels_and_names_what_is_missing(
    start_pacs: StartPacs, station: Station, tmp_path: Path
) -> None:
    write_series(tmp_path / "files", 100, side=256)
    there = start_pacs(tmp_path / "files", station.local.port)
    stop = threading.Event()

    records: list[Record] = []
    for record in station.moving(there, STUDY, {"type": "study", "StudyInstanceUID": "1.2"}, stop=stop.is_set):
        records.append(record)
        stop.set()

    (incomplete,) = events(records, "incomplete")
    assert 0 < incomplete["received"] < 100
    assert states(station.move(there, STUDY))["study-complete"] == 1


def test_a_reader_that_has_enough_ends_the_association(station: Station, tmp_path: Path) -> None:
    write_series(tmp_path / "files", 100, side=128)
    with our_pacs(archive_of(tmp_path / "pacs", tmp_path / "files"), {"DEST": station.local.port}) as pacs:
        moving = station.moving(node(pacs.port), STUDY)
        next(moving)
        moving.close()
        wait_until(lambda: pacs.listener.active == 0, what="the end of the association")

    assert len(station.uids) < 100


def test_a_full_disk_ends_it_all_at_once(station: Station, tmp_path: Path) -> None:
    write_series(tmp_path / "files", 200)
    from dcmtools.network.listen import Options as ListenOptions

    with our_pacs(archive_of(tmp_path / "pacs", tmp_path / "files"), {"DEST": station.local.port}) as pacs:
        full = ListenOptions(min_free=1 << 60)
        with arrivals_for(station.archive, station.local, options=full) as arrivals:
            wanted = [(node(pacs.port), STUDY), (node(pacs.port), {**STUDY, "StudyInstanceUID": "1.2"})]
            records = list(move(wanted, station.archive.index, arrivals, station.local, options=QUICK))

        moves = [one for one in pacs.commands if one["CommandField"] == command.C_MOVE_RQ]
    assert 74 in {record["exit_code"] for record in errors(records)}
    assert len(moves) == 1
    assert len(errors(records)) < 200


def test_a_dry_run_tells_the_plan_and_moves_nothing(start_pacs: StartPacs, station: Station, studies: Path) -> None:
    there = start_pacs(studies, station.local.port)
    station.move(there, {"type": "series", "StudyInstanceUID": uid(1, 1), "SeriesInstanceUID": uid(1, 1, 1)})

    plan = list(
        move(
            [(there, STUDY)], station.archive.index, None, station.local, options=replace(QUICK, dry_run=True)
        )
    )  # fmt: skip

    rows = {record["SeriesInstanceUID"]: pick(record, "type", "state", "present", "missing") for record in plan}
    assert rows == {
        uid(1, 1, 1): {"type": "series", "state": "present", "present": 3, "missing": 0},
        uid(1, 1, 2): {"type": "series", "state": "planned", "present": 0, "missing": 3},
    }
    assert len(station.uids) == 3


@pytest.mark.parametrize(
    "record",
    [
        {"type": "study", "StudyInstanceUID": "../../etc"},
        {"type": "study"},
        {"type": "series", "StudyInstanceUID": "1.2"},
        {"type": "instance", "StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.2.3"},
        {"type": "patient", "PatientID": ""},
        {"type": "patient"},
        {"type": "volume", "StudyInstanceUID": "1.2"},
    ],
)
def test_a_record_that_names_nothing_is_an_error_and_asks_nothing(station: Station, record: Record) -> None:
    (problem,) = station.move(node(1), record)

    assert problem["exit_code"] == 65


# A PACS that lies


Answer = Callable[[Record], list[Record]]


class Liar:
    """A PACS that answers queries from a list and a C-MOVE with whatever `on_move` does."""

    def __init__(
        self,
        uids: list[str],
        on_move: Callable[["Liar", Association, Message], None],
        *,
        others: Iterable[str] = (),
        **series: Any,
    ) -> None:
        self.uids, self.on_move, self.series, self.others = uids, on_move, series, others
        self.moves: list[Record] = []

    def __call__(self, association: Association) -> None:
        try:
            while True:
                message = association.receive(idle=20)
                asked = identifier.decode(association.read_data(), message.context.syntax) if message.has_data else {}
                if message.field == command.C_FIND_RQ:
                    self._find(association, message, asked)
                elif message.field == command.C_MOVE_RQ:
                    self.moves.append(asked)
                    self.on_move(self, association, message)
        except Released:
            association.answer_release()

    def _find(self, association: Association, message: Message, asked: Record) -> None:
        level = asked["QueryRetrieveLevel"]
        common = {"StudyInstanceUID": uid(1, 1), "QueryRetrieveLevel": level}
        if level == "SERIES":
            others = [{**common, "SeriesInstanceUID": one} for one in self.others]
            found = [{**common, "SeriesInstanceUID": uid(1, 1, 1), **self.series}, *others]
        else:
            found = [{**common, "SeriesInstanceUID": uid(1, 1, 1), "SOPInstanceUID": one} for one in self.uids]
        for one in found:
            data = identifier.encode(one, message.context.syntax, "")
            association.send(message.context, response(message, 0xFF00), data)
        association.send(message.context, response(message, 0))


def response(message: Message, status: int, **more: Any) -> dict[str, Any]:
    field, number = message.field | 0x8000, message.command["MessageID"]
    return {"CommandField": field, "MessageIDBeingRespondedTo": number, "Status": status, **more}


def send_to(port: int, *numbers: int, as_uid: str | None = None, **keys: Any) -> int:
    """Stores instances of the one series at a port; the last status."""
    code = 0
    with request(node(port, ae_title="DEST"), Local("PACS"), [(MR, (EXPLICIT_VR_LITTLE_ENDIAN,))]) as association:
        for number in numbers:
            rq = {
                "AffectedSOPClassUID": MR, "CommandField": command.C_STORE_RQ, "Priority": 0, "MessageID": number,
                "AffectedSOPInstanceUID": as_uid or uid(1, 1, 1, number),
            }  # fmt: skip
            association.send(association.require(MR, ""), rq, encoded(1, 1, 1, number, **keys))
            code = association.receive().command["Status"]
    return code


UIDS = [uid(1, 1, 1, number) for number in (1, 2, 3)]


def test_a_pacs_that_answers_before_it_has_sent_is_waited_for(station: Station) -> None:
    def on_move(_pacs: Liar, association: Association, message: Message) -> None:
        association.send(message.context, response(message, 0, NumberOfCompletedSuboperations=3))
        in_thread(lambda: later(lambda: send_to(station.local.port, 1, 2, 3)))

    with scripted(Liar(UIDS, on_move)) as port:
        records = station.move(node(port), STUDY, options=Options(retries=0, grace=5))

    assert states(records) == {"received": 3, "series-complete": 1, "study-complete": 1}


def later(function: Callable[[], Any]) -> None:
    time.sleep(0.7)  # the point of it: nothing is under way when the answer comes
    function()


def test_a_pacs_that_says_it_has_sent_and_has_not_is_found_out(station: Station) -> None:
    def on_move(_pacs: Liar, association: Association, message: Message) -> None:
        send_to(station.local.port, 1)
        association.send(message.context, response(message, 0, NumberOfCompletedSuboperations=3))

    pacs = Liar(UIDS, on_move)
    with scripted(pacs) as port:
        records = station.move(node(port), STUDY)

    (incomplete,) = events(records, "incomplete")
    assert (incomplete["expected"], incomplete["received"]) == (3, 1)
    assert incomplete["missing"] == UIDS[1:]
    assert [one.get("SOPInstanceUID") for one in pacs.moves] == [None, "\\".join(UIDS[1:])]
    assert not errors(records)


def test_a_list_that_is_shorter_than_its_figure_is_not_believed(station: Station) -> None:
    def on_move(_pacs: Liar, association: Association, message: Message) -> None:
        send_to(station.local.port, 1, 2, 3, 4, 5)
        association.send(message.context, response(message, 0, NumberOfCompletedSuboperations=5))

    pacs = Liar(UIDS, on_move, NumberOfSeriesRelatedInstances=5)
    with scripted(pacs) as port:
        first = station.move(node(port), STUDY)
        second = station.move(node(port), STUDY)

    assert states(first) == {"received": 5, "series-complete": 1, "study-complete": 1}
    assert states(second) == {"present": 5, "series-complete": 1, "study-complete": 1}
    assert len(pacs.moves) == 1


def test_a_figure_that_is_never_reached_does_not_make_the_series_come_again_and_again(station: Station) -> None:
    def on_move(_pacs: Liar, association: Association, message: Message) -> None:
        send_to(station.local.port, 1, 2, 3)
        association.send(message.context, response(message, 0, NumberOfCompletedSuboperations=3))

    pacs = Liar(UIDS, on_move, NumberOfSeriesRelatedInstances=9)
    with scripted(pacs) as port:
        records = station.move(node(port), STUDY, options=Options(retries=3, grace=0.2))

    (incomplete,) = events(records, "incomplete")
    assert (incomplete["expected"], incomplete["received"], incomplete["missing"]) == (9, 3, [])
    assert len(pacs.moves) == 1


def test_a_pacs_that_lists_no_instances_is_taken_by_its_figure(station: Station) -> None:
    def on_move(_pacs: Liar, association: Association, message: Message) -> None:
        send_to(station.local.port, 1, 2)
        association.send(message.context, response(message, 0))

    with scripted(Liar([], on_move, NumberOfSeriesRelatedInstances=2)) as port:
        records = station.move(node(port), STUDY)

    assert states(records) == {"received": 2, "series-complete": 1, "study-complete": 1}


def test_a_pacs_that_tells_nothing_of_its_instances_is_believed_when_it_says_that_it_is_done(station: Station) -> None:
    def on_move(_pacs: Liar, association: Association, message: Message) -> None:
        send_to(station.local.port, 1, 2)
        association.send(message.context, response(message, 0, NumberOfCompletedSuboperations=2))

    with scripted(Liar([], on_move)) as port:
        records = station.move(node(port), STUDY)

    assert states(records) == {"received": 2, "series-complete": 1, "study-complete": 1}


def test_a_series_that_is_new_at_the_pacs_comes_with_its_study(station: Station) -> None:
    def on_move(_pacs: Liar, association: Association, message: Message) -> None:
        send_to(station.local.port, 1, 2, 3)
        send_to(station.local.port, 4, SeriesInstanceUID=uid(1, 1, 2))
        association.send(message.context, response(message, 0, NumberOfCompletedSuboperations=4))

    with scripted(Liar(UIDS, on_move)) as port:
        records = station.move(node(port), STUDY)

    assert states(records) == {"received": 4, "series-complete": 2, "study-complete": 1}
    assert pick(records[-1], "expected", "received", "series") == {"expected": 4, "received": 4, "series": 2}


def test_a_busy_pacs_is_asked_again(station: Station) -> None:
    def on_move(pacs: Liar, association: Association, message: Message) -> None:
        if len(pacs.moves) == 1:
            association.send(message.context, response(message, 0xA701))
            return
        send_to(station.local.port, 1, 2, 3)
        association.send(message.context, response(message, 0, NumberOfCompletedSuboperations=3))

    with scripted(Liar(UIDS, on_move)) as port:
        records = station.move(node(port), STUDY)

    assert states(records) == {"received": 3, "series-complete": 1, "study-complete": 1}


def test_a_busy_pacs_that_stays_so_ends_with_75(station: Station) -> None:
    def on_move(_pacs: Liar, association: Association, message: Message) -> None:
        association.send(message.context, response(message, 0xA701))

    with scripted(Liar(UIDS, on_move)) as port:
        records = station.move(node(port), STUDY, options=Options(retries=0))

    assert [problem["exit_code"] for problem in errors(records)] == [75]
    assert "A701" in errors(records)[0]["reason"]


def test_endless_pending_without_progress_is_ended(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    def on_move(_pacs: Liar, association: Association, message: Message) -> None:
        while association.open:
            association.send(message.context, response(message, 0xFF00, NumberOfRemainingSuboperations=3))
            if association.wait(0.02):
                return

    with scripted(Liar(UIDS, on_move)) as port:
        records = station.move(node(port, dimse_timeout=0.1), STUDY, options=Options(retries=0, grace=0.2))

    (problem,) = errors(records)
    assert (problem["cause"], problem["exit_code"]) == ("no-progress", 76)


def test_a_silent_pacs_is_given_up(station: Station) -> None:
    def on_move(_pacs: Liar, association: Association, message: Message) -> None:
        association.wait(20)

    with scripted(Liar(UIDS, on_move)) as port:
        records = station.move(node(port, dimse_timeout=0.3), STUDY, options=Options(retries=0, grace=0.2))

    assert errors(records)[-1]["exit_code"] == 76
    assert "has been silent" in errors(records)[-1]["reason"]


def test_a_pacs_that_goes_on_after_a_cancel_is_left(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcmtools.network.retrieval._PATIENCE", 0.5)

    def on_move(_pacs: Liar, association: Association, message: Message) -> None:
        number = 0
        while association.open:
            number += 1
            counts = {"NumberOfCompletedSuboperations": number % 60000}
            association.send(message.context, response(message, 0xFF00, **counts))
            time.sleep(0.01)

    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    with scripted(Liar(UIDS, on_move)) as port:
        records = station.move(node(port), STUDY, stop=stop.is_set)

    assert "was cancelled" in errors(records)[-1]["reason"]


@pytest.mark.parametrize("hostile", ["../../../../tmp/x", "1.2/../3", "1" * 70, "", "1.2\x003"])
def test_hostile_uids_land_nowhere_and_the_good_ones_land(station: Station, hostile: str, tmp_path: Path) -> None:
    def on_move(_pacs: Liar, association: Association, message: Message) -> None:
        send_to(station.local.port, 9, as_uid=hostile, SOPInstanceUID=hostile)
        send_to(station.local.port, 1, 2, 3)
        association.send(message.context, response(message, 0, NumberOfCompletedSuboperations=3))

    with scripted(Liar([*UIDS, hostile], on_move)) as port:
        records = station.move(node(port), STUDY)

    assert states(records)["received"] == 3
    assert not events(records, "study-complete")
    assert "bad-uid" in {problem["cause"] for problem in errors(records)}
    assert [(one["expected"], one["received"]) for one in events(records, "incomplete")] == [(4, 3)]
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and station.archive.root not in path.parents]
    assert outside == []


def test_what_was_not_asked_for_is_kept_and_not_told(station: Station) -> None:
    def on_move(_pacs: Liar, association: Association, message: Message) -> None:
        send_to(station.local.port, 1, StudyInstanceUID="1.2.3", SOPInstanceUID="1.2.3.4", as_uid="1.2.3.4")
        send_to(station.local.port, 1, 2, 3)
        association.send(message.context, response(message, 0, NumberOfCompletedSuboperations=3))

    with scripted(Liar(UIDS, on_move)) as port:
        records = station.move(node(port), STUDY)

    assert states(records) == {"received": 3, "series-complete": 1, "study-complete": 1}
    assert len(station.uids) == 4


def test_a_truncated_object_is_told_and_fetched_again(station: Station) -> None:
    def on_move(pacs: Liar, association: Association, message: Message) -> None:
        send_to(station.local.port, 1, 2)
        if len(pacs.moves) == 1:
            with request(node(station.local.port), Local("PACS"), [(MR, (EXPLICIT_VR_LITTLE_ENDIAN,))]) as sending:
                rq = {
                    "AffectedSOPClassUID": MR, "CommandField": command.C_STORE_RQ, "Priority": 0, "MessageID": 1,
                    "AffectedSOPInstanceUID": UIDS[2],
                }  # fmt: skip
                sending.send(sending.require(MR, ""), rq, encoded(1, 1, 1, 3)[:-10])
                sending.receive()
        else:
            send_to(station.local.port, 3)
        association.send(message.context, response(message, 0, NumberOfCompletedSuboperations=3))

    pacs = Liar(UIDS, on_move)
    with scripted(pacs) as port:
        records = station.move(node(port), STUDY)

    assert [problem["cause"] for problem in errors(records)] == ["truncated"]
    assert states(records)["study-complete"] == 1
    assert pacs.moves[1]["SOPInstanceUID"] == UIDS[2]


def test_a_file_that_was_cut_short_on_our_disk_is_fetched_again_and_takes_its_place(
    station: Station, tmp_path: Path
) -> None:
    write_series(tmp_path / "files", 3)
    with our_pacs(archive_of(tmp_path / "pacs", tmp_path / "files"), {"DEST": station.local.port}) as pacs:
        station.move(node(pacs.port), STUDY)
        path = Path(next(station.archive.index.instances())["path"])
        os.truncate(path, 200)

        records = station.move(node(pacs.port), STUDY)

    assert states(records) == {"present": 2, "received": 1, "series-complete": 1, "study-complete": 1}
    assert read_header(path)["size"] > 200


@pytest.mark.parametrize("follows", [False, True])
def test_other_content_under_the_same_uid_leaves_the_series_incomplete_and_is_not_fetched_again(
    station: Station, tmp_path: Path, follows: bool
) -> None:
    write_series(tmp_path / "files", 3)
    with ExitStack() as stack:
        pacs = stack.enter_context(
            our_pacs(archive_of(tmp_path / "pacs", tmp_path / "files"), {"DEST": station.local.port})
        )
        station.move(node(pacs.port), STUDY)
        changed = station.archive.root / uid(1, 1) / uid(1, 1, 1) / f"{UIDS[1]}.dcm"
        instance = pydicom.dcmread(changed)
        instance.PatientComments = "somebody has been here"
        instance.save_as(changed)
        pacs.commands.clear()
        if follows:
            stack.enter_context(Listener(Archive(station.archive.root), station.local, lambda _: None))
        arrivals = stack.enter_context(arrivals_for(Archive(station.archive.root), station.local))
        there = node(pacs.port)
        records = list(move([(there, STUDY)], station.archive.index, arrivals, station.local, options=QUICK))

        assert [one["CommandField"] for one in pacs.commands].count(command.C_MOVE_RQ) == 1
    assert states(records) == {"present": 2, "conflict": 1, "incomplete": 1}
    (incomplete,) = events(records, "incomplete")
    assert pick(incomplete, "expected", "received", "missing") == {"expected": 3, "received": 2, "missing": [UIDS[1]]}
    assert "other content under the same UID is in the archive" in incomplete["reason"]


@pytest.mark.parametrize(("completed", "failed"), [(10, 0), (2, 8)])
def test_a_pacs_that_counts_more_than_came_is_not_believed(station: Station, completed: int, failed: int) -> None:
    def on_move(_pacs: Liar, association: Association, message: Message) -> None:
        send_to(station.local.port, 1, 2)
        counts = {"NumberOfCompletedSuboperations": completed, "NumberOfFailedSuboperations": failed}
        association.send(message.context, response(message, 0, **counts))

    with scripted(Liar([], on_move)) as port:
        records = station.move(node(port), STUDY)

    assert states(records) == {"received": 2, "incomplete": 1}
    assert pick(events(records, "incomplete")[0], "expected", "received") == {"expected": 10, "received": 2}


def test_a_series_without_a_usable_uid_withholds_the_study(station: Station) -> None:
    def on_move(_pacs: Liar, association: Association, message: Message) -> None:
        send_to(station.local.port, 1, 2, 3)
        association.send(message.context, response(message, 0, NumberOfCompletedSuboperations=3))

    with scripted(Liar(UIDS, on_move, others=["1.2.x"])) as port:
        records = station.move(node(port), STUDY)

    assert states(records) == {"error": 1, "received": 3, "series-complete": 1}
    assert pick(records[0], "cause", "StudyInstanceUID") == {"cause": "bad-uid", "StudyInstanceUID": uid(1, 1)}


def test_a_study_with_more_series_than_are_listed_is_not_complete(station: Station) -> None:
    def on_move(_pacs: Liar, association: Association, message: Message) -> None:
        send_to(station.local.port, 1, 2, 3)
        association.send(message.context, response(message, 0, NumberOfCompletedSuboperations=3))

    with scripted(Liar(UIDS, on_move)) as port:
        records = station.move(node(port), {**STUDY, "NumberOfStudyRelatedSeries": 2})

    assert states(records) == {"received": 3, "series-complete": 1, "error": 1}
    assert "has 1 series more" in errors(records)[0]["reason"]
    assert errors(records)[0]["exit_code"] == 3


def test_a_patient_that_the_node_does_not_have_is_told_and_not_named(
    start_pacs: StartPacs, station: Station, studies: Path
) -> None:
    there = start_pacs(studies, station.local.port)

    (problem,) = station.move(there, {"type": "patient", "PatientID": "NOBODY"})

    assert (problem["cause"], problem["exit_code"]) == ("not-found", 3)
    assert "NOBODY" not in str(problem)


class BadIndex(Index):
    """An index to which nothing can be added."""

    problem: DcmtoolsError

    def append(self, records: Iterable[Record]) -> None:
        raise self.problem


@pytest.mark.parametrize("problem", [DiskFull("the disk is full"), Locked("the index has been held for 60 s")])
def test_an_event_that_cannot_be_kept_is_no_fault_of_the_node(
    station: Station, tmp_path: Path, problem: DcmtoolsError
) -> None:
    write_series(tmp_path / "files", 2, 1, 1, 1)
    write_series(tmp_path / "files", 300, 1, 1, 2)
    index = BadIndex(station.archive.index.file, station.archive.root)
    index.problem = problem
    wanted = [STUDY, {**STUDY, "StudyInstanceUID": "1.2"}]
    with (
        our_pacs(archive_of(tmp_path / "pacs", tmp_path / "files"), {"DEST": station.local.port}) as pacs,
        arrivals_for(station.archive, station.local) as arrivals,
    ):
        there = [(node(pacs.port), record) for record in wanted]
        records = list(move(there, index, arrivals, station.local, options=QUICK))
        moves = [one for one in pacs.commands if one["CommandField"] == command.C_MOVE_RQ]
        wait_until(lambda: pacs.listener.active == 0, what="the end of the association")

    assert len(moves) == 1
    if isinstance(problem, DiskFull):
        assert [one["exit_code"] for one in errors(records)] == [74]
        assert states(records)["received"] < 302
    else:
        assert [one["cause"] for one in errors(records)] == ["locked", "locked", "not-found"]
        assert states(records)["series-complete"] == 2
        assert states(records)["study-complete"] == 1


def test_a_pacs_that_never_answers_is_not_waited_for_study_by_study(station: Station) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        there = node(silent.getsockname()[1], acse_timeout=0.3)
        wanted = [(there, {"type": "study", "StudyInstanceUID": uid(number)}) for number in range(1, 30)]
        options = Options(retries=0, dry_run=True)
        records = list(move(wanted, station.archive.index, None, station.local, options=options))
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):  # nobody else has called
            silent.accept()

    assert [record["cause"] for record in records] == ["no-answer"] * 29
