"""Finding: the same question to Orthanc, dcmqrscp, pynetdicom and ourselves, and to an index."""

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dcmtools.disk.archive import Archive
from dcmtools.model.errors import DcmtoolsError, ProtocolError, Unavailable, UsageError
from dcmtools.model.filters import Filter
from dcmtools.model.node import Local, Node
from dcmtools.model.query import Query
from dcmtools.model.record import UNIQUE_KEY, Record
from dcmtools.model.uids import PATIENT_ROOT_FIND, STUDY_ROOT_FIND
from dcmtools.network import command, identifier
from dcmtools.network.association import Association, Released
from dcmtools.network.find import find, find_all
from dcmtools.network.query_retrieve import QueryRetrieve
from tests.builders import uid
from tests.network.pacs import archive_of, fill, node, node_of, our_pacs, scripted, write_studies
from tests.peers.processes import RunTool, StartDcmqrscp, StartOrthanc

LOCAL = Local()

QUERIES = [
    Query("patient"),
    Query("patient", {"PatientID": "P1"}),
    Query("patient", {"StudyDate": "20240102-20240103"}),
    Query("patient", {"PatientName": "m*", "Modality": "CT"}),
    Query("study"),
    Query("study", {"PatientName": "Müller*"}),
    Query("study", {"PatientName": "müller^jörg"}),
    Query("study", {"PatientName": "M?ller*"}),
    Query("study", {"PatientName": "*小东*"}),
    Query("study", {"PatientName": "doe*"}),
    Query("study", {"PatientID": "P?"}),
    Query("study", {"PatientID": "P1", "StudyDate": "20240102"}),
    Query("study", {"StudyDate": "20240102-"}),
    Query("study", {"StudyDate": "-20240102"}),
    Query("study", {"AccessionNumber": "A12"}),
    Query("study", {"ReferringPhysicianName": "weiß*"}),
    Query("study", {"ReferringPhysicianName": "HOUSE*\\Weiß*"}),
    Query("study", {"StudyDescription": "B*"}),
    Query("study", {"Modality": "CT"}),
    Query("study", {"Modality": "CT\\US"}),
    Query("study", {"ModalitiesInStudy": "CT"}),
    Query("study", {"Modality": "XA"}),
    Query("study", {"StudyInstanceUID": f"{uid(1, 1)}\\{uid(2, 3)}"}),
    Query("study", {"SeriesNumber": "2", "Modality": "MR"}),
    Query("study", {"InstanceNumber": "3", "PatientID": "P1"}),
    Query("study", {}, where=(Filter("PatientSex", "=", "F"),)),
    Query("study", {}, where=(Filter("Modality", "=", "US"),)),
    Query("series", {"PatientID": "P1"}),
    Query("series", {"Modality": "CT\\US"}),
    Query("series", {"StudyInstanceUID": uid(1, 2), "SeriesNumber": "1"}),
    Query("series", {"SeriesInstanceUID": uid(1, 1, 2)}),
    Query("instance", {"SeriesInstanceUID": uid(1, 1, 2)}),
    Query("instance", {"StudyInstanceUID": uid(2, 3), "InstanceNumber": "2"}),
    Query("instance", {"SOPInstanceUID": uid(1, 1, 2, 2), "StudyInstanceUID": uid(1, 1)}),
    Query("study", {}, sort=(("StudyDate", True), ("PatientID", False)), limit=2),
]
# What every node must tell alike; the rest is as each node has it.
SHARED = {
    "patient": ("PatientID",),
    "study": ("StudyInstanceUID", "StudyDate", "AccessionNumber", "PatientID", "ReferringPhysicianName"),
    "series": ("SeriesInstanceUID", "StudyInstanceUID", "Modality", "SeriesNumber", "PatientID", "StudyDate"),
    "instance": ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "InstanceNumber", "PatientID"),
}


def shown(records: Iterable[Record], query: Query) -> list[tuple[Any, ...]]:
    rows = [tuple(record.get(key) for key in SHARED[query.level]) for record in records]
    return rows if query.sort else sorted(rows, key=str)


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    return write_studies(tmp_path / "studies")


@pytest.fixture
def archive(tmp_path: Path, studies: Path) -> Archive:
    return archive_of(tmp_path / "archive", studies)


def assert_same_answers(there: Node, archive: Archive, *, untold: str = "") -> None:
    """All the queries, answered by the node as by the index of the same files.

    `untold` is a key that the node does not tell, so that its answers cannot be filtered by it.
    """
    for query in QUERIES:
        if any(one.keyword == untold for one in query.where):
            continue
        found = list(find(there, LOCAL, query))
        assert shown(found, query) == shown(archive.index.find(query), query), query
        assert all(record["node"] == "PACS" and record["type"] == query.level for record in found)


def test_orthanc_answers_as_the_index_does(
    orthanc: StartOrthanc, tool: RunTool, studies: Path, archive: Archive
) -> None:
    peer = orthanc()
    fill(peer, studies, tool)

    assert_same_answers(node_of(peer), archive)


def test_dcmqrscp_answers_as_the_index_does(
    dcmqrscp: StartDcmqrscp, tool: RunTool, studies: Path, archive: Archive
) -> None:
    peer = dcmqrscp()
    fill(peer, studies, tool)

    assert_same_answers(node_of(peer), archive, untold="Modality")
    with pytest.raises(Unavailable, match="does not tell SeriesDescription at series level"):
        list(find(node_of(peer), LOCAL, Query("series", {"SeriesDescription": "T1*"})))


def test_our_own_query_retrieve_answers_as_the_index_does(archive: Archive) -> None:
    with our_pacs(archive) as pacs:
        assert_same_answers(node(pacs.port), archive)


@pytest.mark.parametrize("charset", ["ISO_IR 100", "ISO_IR 192", ""])
def test_names_are_found_whatever_character_set_the_node_is_asked_in(archive: Archive, charset: str) -> None:
    with our_pacs(archive) as pacs:
        for name, count in {"Müller*": 2, "müller^JÖRG": 2, "*王*": 1, "Wang^XiaoDong": 1, "Žižka*": 0}.items():
            found = list(find(node(pacs.port, charset=charset), LOCAL, Query("study", {"PatientName": name})))

            assert len(found) == count, (name, charset)


@pytest.mark.parametrize("root", [STUDY_ROOT_FIND, PATIENT_ROOT_FIND])
def test_a_node_with_one_information_model_answers_at_every_level(archive: Archive, root: str) -> None:
    service = QueryRetrieve(archive.index, lambda _: None, Local("PACS"))

    def serve(association: Association) -> None:
        try:
            while True:
                message = association.receive(idle=20)
                assert message.context.abstract == root
                service.find(association, message)
        except Released:
            association.answer_release()

    with scripted(serve, *{STUDY_ROOT_FIND, PATIENT_ROOT_FIND} - {root}) as port:
        assert_same_answers(node(port), archive)


def pynetdicom_pacs(answers: list[dict[str, Any]]) -> Any:
    """A C-FIND SCP of pynetdicom that gives the same answers to every question, each three times."""
    from pydicom.dataset import Dataset
    from pynetdicom import AE, evt

    def handle(event: Any) -> Iterator[tuple[int, Dataset | None]]:
        level = str(event.identifier.QueryRetrieveLevel)
        for answer in [one for one in answers for _ in range(3)]:
            if event.is_cancelled:
                yield 0xFE00, None
                return
            data_set = Dataset()
            data_set.SpecificCharacterSet = "ISO_IR 192"
            data_set.QueryRetrieveLevel = level
            for keyword in event.identifier.dir():
                if keyword in answer:
                    setattr(data_set, keyword, answer[keyword])
            yield 0xFF00, data_set

    entity = AE(ae_title="PACS")
    for model in (STUDY_ROOT_FIND, PATIENT_ROOT_FIND):
        entity.add_supported_context(model)
    return entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, handle)])


STUDY = {"StudyInstanceUID": "1.2.3", "PatientName": "Müller^Jörg", "PatientID": "P1", "StudyDate": "20240131"}


def test_pynetdicom_is_asked_and_each_unique_key_is_told_once() -> None:
    server = pynetdicom_pacs([STUDY, {**STUDY, "StudyInstanceUID": "1.2.4"}])
    try:
        found = list(find(node(server.server_address[1]), LOCAL, Query("study", {"PatientName": "müller*"})))
    finally:
        server.shutdown()

    assert [record["StudyInstanceUID"] for record in found] == ["1.2.3", "1.2.4"]
    assert found[0]["PatientName"] == "Müller^Jörg"


def test_answers_that_do_not_match_are_left_out_although_the_node_sends_them() -> None:
    server = pynetdicom_pacs([STUDY, {**STUDY, "StudyInstanceUID": "1.2.4", "StudyDate": "20230131"}])
    try:
        found = list(find(node(server.server_address[1]), LOCAL, Query("study", {"StudyDate": "20240101-20241231"})))
    finally:
        server.shutdown()

    assert [record["StudyInstanceUID"] for record in found] == ["1.2.3"]


def test_a_key_of_which_the_node_knows_nothing_is_an_error_and_not_everything_it_has() -> None:
    server = pynetdicom_pacs([STUDY])
    try:
        with pytest.raises(Unavailable, match="does not tell AccessionNumber at study level") as caught:
            list(find(node(server.server_address[1]), LOCAL, Query("study", {"AccessionNumber": "A1"})))
    finally:
        server.shutdown()

    assert caught.value.exit_code == 69


def test_a_limit_ends_the_query_with_a_cancel(archive: Archive) -> None:
    received: list[int] = []

    def answer_for_ever(association: Association) -> None:
        message = association.receive(idle=20)
        asked = identifier.decode(association.read_data(), message.context.syntax)
        for number in range(100_000):
            answer = {**dict.fromkeys(asked), "StudyInstanceUID": f"1.2.{number}", "QueryRetrieveLevel": "STUDY"}
            association.send(
                message.context, rsp(message, 0xFF00), identifier.encode(answer, message.context.syntax, "")
            )
            if association.wait():
                break
        received.append(association.receive(idle=20).field)
        association.send(message.context, rsp(message, 0xFE00))
        serve_release(association)

    with scripted(answer_for_ever) as port:
        found = list(find(node(port), LOCAL, Query("study", limit=3)))

    assert len(found) == 3
    assert received == [command.C_CANCEL_RQ]


def test_a_node_that_ignores_the_cancel_is_left(archive: Archive) -> None:
    def answer_for_ever(association: Association) -> None:
        message = association.receive(idle=20)
        for number in range(10_000_000):
            answer = {"StudyInstanceUID": f"1.2.{number}", "QueryRetrieveLevel": "STUDY"}
            association.send(
                message.context, rsp(message, 0xFF00), identifier.encode(answer, message.context.syntax, "")
            )

    with scripted(answer_for_ever) as port:
        assert len(list(find(node(port), LOCAL, Query("study", limit=3)))) == 3


def rsp(message: Any, status: int) -> dict[str, Any]:
    return {
        "CommandField": message.field | 0x8000,
        "MessageIDBeingRespondedTo": message.command["MessageID"],
        "Status": status,
    }


def serve_release(association: Association) -> None:
    try:
        association.receive(idle=20)
    except Released:
        association.answer_release()


def test_an_answer_that_is_no_data_set_is_an_error_record_and_the_others_are_given() -> None:
    def answer(association: Association) -> None:
        message = association.receive(idle=20)
        association.read_data()
        good = identifier.encode({"StudyInstanceUID": "1.2.3"}, message.context.syntax, "")
        for data in (b"\x08\x00\x20\x00DA\xff\x00short", good):
            association.send(message.context, rsp(message, 0xFF00), data)
        association.send(message.context, rsp(message, 0))
        serve_release(association)

    with scripted(answer) as port:
        good, bad = find(node(port), LOCAL, Query("study"))

    assert good["StudyInstanceUID"] == "1.2.3"
    assert (bad["type"], bad["exit_code"], bad["node"]) == ("error", 76, "PACS")


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [(0xA700, 75, "Out of Resources"), (0xA900, 76, "A900"), (0xC001, 76, "C001"), (0x0122, 69, "0122")],
)
def test_a_failure_status_is_an_error_with_its_own_exit_code(status: int, code: int, words: str) -> None:
    def fail(association: Association) -> None:
        message = association.receive(idle=20)
        association.send(message.context, rsp(message, status))
        serve_release(association)

    with scripted(fail) as port, pytest.raises(DcmtoolsError, match=words) as caught:
        list(find(node(port), LOCAL, Query("study")))

    assert caught.value.exit_code == code


def release_at_once(association: Association) -> None:
    association.receive(idle=20)
    association.release()


def say_nothing(association: Association) -> None:
    association.receive(idle=20)
    association.receive(idle=20)


def answer_an_echo(association: Association) -> None:
    message = association.receive(idle=20)
    association.send(message.context, {**rsp(message, 0), "CommandField": command.C_ECHO_RSP})
    serve_release(association)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (release_at_once, "released the association instead of answering"),
        (say_nothing, r"no answer in 0\.3 s"),
        (answer_an_echo, "answered something else"),
        (lambda association: association.abort(), "aborted|closed|broke"),
    ],
)
def test_a_node_that_does_not_answer_is_told_by_name(script: Callable[[Association], None], words: str) -> None:
    with scripted(script) as port, pytest.raises(ProtocolError, match=words) as caught:
        list(find(node(port, dimse_timeout=0.3), LOCAL, Query("study")))

    assert f"PACS@127.0.0.1:{port}" in caught.value.reason


def test_a_series_alone_is_found_only_where_the_node_tells_its_study() -> None:
    def refuse(association: Association) -> None:
        message = association.receive(idle=20)
        association.send(message.context, rsp(message, 0xA900))
        serve_release(association)

    with scripted(refuse) as port, pytest.raises(UsageError, match="does not find a series by its UID alone"):
        list(find(node(port), LOCAL, Query("series", {"SeriesInstanceUID": "1.2.3.4"})))


def test_several_nodes_are_asked_at_once_and_a_dead_one_does_not_stop_the_others(
    archive: Archive, free_port: Callable[[], int]
) -> None:
    with our_pacs(archive) as pacs:
        live = node(pacs.port)
        nodes = [replace(live, name="DEAD", port=free_port()), replace(live, name="ONE"), replace(live, name="TWO")]

        records = list(find_all(nodes, LOCAL, Query("study")))

    by_node = {name: [record for record in records if record["node"] == name] for name in ("DEAD", "ONE", "TWO")}
    assert [record["exit_code"] for record in by_node["DEAD"]] == [69]
    assert len(by_node["ONE"]) == len(by_node["TWO"]) == 4


def test_order_and_limit_are_of_all_nodes_together(archive: Archive) -> None:
    query = Query("study", sort=(("StudyDate", True),), limit=3)
    with our_pacs(archive) as pacs:
        live = node(pacs.port)

        records = list(find_all([replace(live, name="ONE"), replace(live, name="TWO")], LOCAL, query))

    assert [record["StudyDate"] for record in records] == ["20240104", "20240104", "20240103"]


def test_a_stop_ends_a_query_whose_answers_never_end() -> None:
    def answer_for_ever(association: Association) -> None:
        message = association.receive(idle=20)
        for number in range(10_000_000):
            answer = {"StudyInstanceUID": f"1.2.{number}", "QueryRetrieveLevel": "STUDY"}
            data = identifier.encode(answer, message.context.syntax, "")
            association.send(message.context, rsp(message, 0xFF00), data)

    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    with scripted(answer_for_ever) as port:
        list(find(node(port), LOCAL, Query("series"), stop=stop.is_set))


def test_many_values_of_one_key_are_asked_for_one_by_one_and_too_many_are_told_apart_here(archive: Archive) -> None:
    with our_pacs(archive) as pacs:
        for count, queries in ((5, 5), (60, 1)):
            wanted = "\\".join(["A12", *(f"X{number}" for number in range(1, count))])
            found = list(find(node(pacs.port), LOCAL, Query("study", {"AccessionNumber": wanted})))

            assert [record["AccessionNumber"] for record in found] == ["A12"]
            assert len(pacs.commands) == queries
            pacs.commands.clear()


def test_what_is_to_be_filtered_sorted_or_shown_is_asked_back(archive: Archive) -> None:
    query = Query(
        "study", where=(Filter("PatientAge", "=", "030Y"),), sort=(("StudyTime", False),), returns=("PatientAge",)
    )
    with our_pacs(archive) as pacs:
        assert list(find(node(pacs.port), LOCAL, query)) == []
        found = list(find(node(pacs.port), LOCAL, replace(query, where=())))

    assert all("PatientAge" in record for record in found)


def test_a_stop_ends_a_query_that_waits(archive: Archive) -> None:
    with scripted(say_nothing) as port:
        assert list(find(node(port), LOCAL, Query("study"), stop=lambda: True)) == []


def test_more_than_a_thousand_uids_are_asked_for_in_several_queries(archive: Archive) -> None:
    wanted = "\\".join([*(f"1.2.{number}" for number in range(1200)), uid(2, 3)])
    with our_pacs(archive) as pacs:
        found = list(find(node(pacs.port), LOCAL, Query("study", {"StudyInstanceUID": wanted})))

        assert len(pacs.commands) == 19
    assert [record[UNIQUE_KEY["study"]] for record in found] == [uid(2, 3)]


def test_an_answer_that_cannot_be_read_on_the_way_down_is_told() -> None:
    def answer(association: Association) -> None:
        try:
            while True:
                message = association.receive(idle=20)
                asked = identifier.decode(association.read_data(), message.context.syntax)
                level = asked["QueryRetrieveLevel"]
                good = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4", "SeriesNumber": 2}
                data = identifier.encode({**good, "QueryRetrieveLevel": level}, message.context.syntax, "")
                for one in [b"\x08\x00\x20\x00DA\xff\x00short", data] if level == "SERIES" else [data]:
                    association.send(message.context, rsp(message, 0xFF00), one)
                association.send(message.context, rsp(message, 0))
        except Released:
            association.answer_release()

    with scripted(answer) as port:
        good, bad = find(node(port), LOCAL, Query("study", {"SeriesNumber": "2"}))

    assert good["StudyInstanceUID"] == "1.2.3"
    assert (bad["type"], bad["exit_code"]) == ("error", 76)


def test_an_answer_without_its_uid_is_an_error_record() -> None:
    def answer(association: Association) -> None:
        message = association.receive(idle=20)
        association.read_data()
        for found in ({"StudyDate": "20240101"}, {"StudyDate": ""}, {"StudyInstanceUID": "1.2.3"}):
            data = identifier.encode(found, message.context.syntax, "")
            association.send(message.context, rsp(message, 0xFF00), data)
        association.send(message.context, rsp(message, 0))
        serve_release(association)

    with scripted(answer) as port:
        good, bad = find(node(port), LOCAL, Query("study"))

    assert good["StudyInstanceUID"] == "1.2.3"
    assert (bad["type"], bad["cause"]) == ("error", "bad-uid")


def test_filters_pass_the_same_at_a_node_and_at_an_index(archive: Archive) -> None:
    query = Query("study", where=(Filter("NumberOfStudyRelatedSeries", "=", "2"),))
    with our_pacs(archive) as pacs:
        found = list(find(node(pacs.port), LOCAL, query))

    assert len(found) == 2
    assert shown(found, query) == shown(archive.index.find(query), query)
