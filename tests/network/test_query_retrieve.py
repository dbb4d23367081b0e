"""Our own query/retrieve, asked by DCMTK, by pynetdicom and by hand."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dcmtools.disk.archive import Archive
from dcmtools.disk.index import Index
from dcmtools.model.errors import ConfigurationError
from dcmtools.model.node import Local, Node
from dcmtools.model.record import Record
from dcmtools.model.uids import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    PATIENT_ROOT_FIND,
    STUDY_ROOT_FIND,
    STUDY_ROOT_GET,
    STUDY_ROOT_MOVE,
)
from dcmtools.network import command, identifier
from dcmtools.network.association import Association, Message
from dcmtools.network.listen import Listener
from dcmtools.network.query_retrieve import QueryRetrieve
from dcmtools.network.requestor import request
from tests.builders import uid, write_instance, write_series
from tests.network.pacs import OurPacs, archive_of, node, our_pacs, write_studies
from tests.network.storing import answering
from tests.peers.processes import RunTool, StartStorescp

MR = "1.2.840.10008.5.1.4.1.1.4"
SYNTAX = (EXPLICIT_VR_LITTLE_ENDIAN,)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return archive_of(tmp_path / "archive", write_studies(tmp_path / "studies"))


@pytest.fixture
def pacs(archive: Archive) -> Iterator[OurPacs]:
    with our_pacs(archive) as running:
        yield running


def values(text: str, keyword: str) -> list[str]:
    """The values of one keyword in DCMTK's dumps."""
    return [value.strip() for value in re.findall(rf"\[([^\]]*)\].*{keyword}\s", text)]


def keys(*pairs: str) -> list[str]:
    return [word for pair in pairs for word in ("-k", pair)]


@pytest.mark.parametrize(
    ("model", "asked", "keyword", "wanted"),
    [
        ("-P", ["QueryRetrieveLevel=PATIENT", "PatientID"], "PatientID", ["P1", "P2", "P3"]),
        (
            "-S",
            ["QueryRetrieveLevel=STUDY", "StudyInstanceUID", "PatientID=P1", "StudyDate=20240102-"],
            "StudyInstanceUID",
            [uid(1, 2)],
        ),
        (
            "-S",
            ["QueryRetrieveLevel=STUDY", "ModalitiesInStudy=CT", "StudyInstanceUID"],
            "StudyInstanceUID",
            [uid(1, 2)],
        ),
        (
            "-S",
            ["QueryRetrieveLevel=SERIES", f"StudyInstanceUID={uid(1, 1)}", "SeriesInstanceUID"],
            "SeriesInstanceUID",
            [uid(1, 1, 1), uid(1, 1, 2)],
        ),
        (
            "-S",
            ["QueryRetrieveLevel=IMAGE", f"SeriesInstanceUID={uid(1, 1, 1)}", "SOPInstanceUID"],
            "SOPInstanceUID",
            [uid(1, 1, 1, number) for number in (1, 2, 3)],
        ),
        (
            "-S",
            ["QueryRetrieveLevel=STUDY", "NumberOfStudyRelatedInstances", f"StudyInstanceUID={uid(1, 1)}"],
            "NumberOfStudyRelatedInstances",
            ["6"],
        ),
    ],
)
def test_findscu_finds_at_every_level(
    pacs: OurPacs, tool: RunTool, model: str, asked: list[str], keyword: str, wanted: list[str]
) -> None:
    found = tool("findscu", model, "-aec", "PACS", *keys(*asked), "127.0.0.1", pacs.port)

    answers = found.stderr.partition("Find Response: 1")[2]
    assert found.returncode == 0, found.stderr
    assert sorted(values(answers, keyword)) == wanted


def test_a_level_that_the_model_does_not_have_is_refused(pacs: OurPacs, tool: RunTool) -> None:
    found = tool(
        "findscu", "-S", "-v", *keys("QueryRetrieveLevel=PATIENT", "PatientID"), "127.0.0.1", pacs.port
    )  # fmt: skip

    assert "DataSetDoesNotMatchSOPClass" in found.stderr


def test_movescu_is_sent_a_study_and_told_how_it_went(
    archive: Archive, tool: RunTool, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    port, out = free_port(), tmp_path / "out"
    out.mkdir()
    with our_pacs(archive, {"DEST": port}) as pacs:
        moved = tool(
            "movescu", "-S", "-v", "-aet", "DEST", "-aem", "DEST", "-aec", "PACS", "+P", port, "-od", out,
            *keys("QueryRetrieveLevel=STUDY", f"StudyInstanceUID={uid(1, 1)}"), "127.0.0.1", pacs.port,
        )  # fmt: skip

    assert moved.returncode == 0, moved.stderr
    assert len(list(out.iterdir())) == 6
    assert "Final Move Response (Success)" in moved.stderr


def test_an_unknown_move_destination_is_answered_with_a801(pacs: OurPacs, tool: RunTool) -> None:
    moved = tool(
        "movescu", "-S", "-aem", "NOBODY",
        *keys("QueryRetrieveLevel=STUDY", f"StudyInstanceUID={uid(1, 1)}"), "127.0.0.1", pacs.port,
    )  # fmt: skip

    assert moved.returncode == 69
    assert "MoveDestinationUnknown" in moved.stderr


def test_getscu_gets_a_series_over_its_own_association(pacs: OurPacs, tool: RunTool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    got = tool(
        "getscu", "-S", "-v", "-aec", "PACS", "-od", out,
        *keys("QueryRetrieveLevel=SERIES", f"StudyInstanceUID={uid(1, 1)}", f"SeriesInstanceUID={uid(1, 1, 2)}"),
        "127.0.0.1", pacs.port,
    )  # fmt: skip

    assert got.returncode == 0, got.stderr
    assert len(list(out.iterdir())) == 3


def test_pynetdicom_finds_and_gets(pacs: OurPacs) -> None:
    from pydicom.dataset import Dataset
    from pynetdicom import AE, build_role, evt
    from pynetdicom.sop_class import MRImageStorage  # type: ignore[attr-defined]

    received: list[str] = []

    def store(event: Any) -> int:
        received.append(event.request.AffectedSOPInstanceUID)
        return 0

    entity = AE()
    for model in (STUDY_ROOT_FIND, STUDY_ROOT_GET, MRImageStorage):
        entity.add_requested_context(model)
    association = entity.associate(
        "127.0.0.1",
        pacs.port,
        ext_neg=[build_role(MRImageStorage, scp_role=True)],
        evt_handlers=[(evt.EVT_C_STORE, store)],
    )
    asked = Dataset()
    asked.QueryRetrieveLevel = "STUDY"
    asked.StudyInstanceUID = uid(2, 3)
    asked.PatientName = ""
    (_, answer), (end, _) = association.send_c_find(asked, STUDY_ROOT_FIND)
    got = [status.Status for status, _ in association.send_c_get(asked, STUDY_ROOT_GET)]
    association.release()

    assert answer is not None
    assert str(answer.PatientName) == "Wang^XiaoDong=王^小东"
    assert end.Status == 0
    assert got[-1] == 0
    assert sorted(received) == [uid(2, 3, 1, number) for number in (1, 2, 3)]


def asks(association: Association, context: Any, field: int, identifiers: dict[str, Any], **more: Any) -> None:
    rq = {"AffectedSOPClassUID": context.abstract, "CommandField": field, "MessageID": 7, "Priority": 0, **more}
    association.send(context, rq, identifier.encode(identifiers, context.syntax, "ISO_IR 192"))


def answers(association: Association) -> Iterator[tuple[int, Record]]:
    """The responses to a request, each with its status, up to the final one."""
    while True:
        message = association.receive()
        data = association.read_data() if message.has_data else b""
        record = identifier.decode(data, message.context.syntax) if data else {}
        yield message.command["Status"], {**message.command, **record}
        if message.command["Status"] not in {0xFF00, 0xFF01}:
            return


def test_a_cancelled_query_ends_with_fe00(archive: Archive, tmp_path: Path) -> None:
    write_series(tmp_path / "many", 300, 9)
    many = archive_of(tmp_path / "other", tmp_path / "many")
    with our_pacs(many) as pacs, request(node(pacs.port), Local(), [(STUDY_ROOT_FIND, SYNTAX)]) as association:
        context = association.require(STUDY_ROOT_FIND, "")
        asks(association, context, command.C_FIND_RQ, {"QueryRetrieveLevel": "IMAGE", "StudyInstanceUID": uid(9, 1)})
        association.send(context, {"CommandField": command.C_CANCEL_RQ, "MessageIDBeingRespondedTo": 7})
        statuses = [status for status, _ in answers(association)]

    assert statuses[-1] == 0xFE00
    assert len(statuses) < 300


@pytest.mark.parametrize(
    ("field", "model", "identifiers", "status"),
    [
        (command.C_FIND_RQ, STUDY_ROOT_FIND, {"PatientID": "P1"}, 0xA900),
        (command.C_FIND_RQ, STUDY_ROOT_FIND, {"QueryRetrieveLevel": "NONSENSE"}, 0xA900),
        (command.C_MOVE_RQ, STUDY_ROOT_MOVE, {"QueryRetrieveLevel": "STUDY", "PatientID": "P1"}, 0xA900),
        (command.C_MOVE_RQ, STUDY_ROOT_MOVE, {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": "*"}, 0xA900),
        (command.C_MOVE_RQ, STUDY_ROOT_MOVE, {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": "1.2*"}, 0xA900),
        (command.C_GET_RQ, STUDY_ROOT_GET, {"QueryRetrieveLevel": "SERIES", "StudyInstanceUID": "1.2"}, 0xA900),
    ],
)
def test_an_identifier_that_means_nothing_is_refused_and_nothing_else_happens(
    pacs: OurPacs, field: int, model: str, identifiers: dict[str, str], status: int
) -> None:
    with request(node(pacs.port), Local(), [(model, SYNTAX)]) as association:
        asks(association, association.require(model, ""), field, identifiers, MoveDestination="NOBODY")

        assert [code for code, _ in answers(association)] == [status]


def test_bytes_that_are_no_identifier_are_refused_and_the_association_goes_on(pacs: OurPacs) -> None:
    with request(node(pacs.port), Local(), [(STUDY_ROOT_FIND, SYNTAX)]) as association:
        context = association.require(STUDY_ROOT_FIND, "")
        rq = {"AffectedSOPClassUID": STUDY_ROOT_FIND, "CommandField": command.C_FIND_RQ, "MessageID": 1, "Priority": 0}
        association.send(context, rq, b"\x08\x00\x20\x00DA\xff\x00short!")
        ((first, _),) = answers(association)
        asks(association, context, command.C_FIND_RQ, {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": ""})

        assert first == 0xC000
        assert len(list(answers(association))) == 5


def test_only_what_was_asked_for_is_told_and_what_names_it(pacs: OurPacs) -> None:
    with request(node(pacs.port), Local(), [(PATIENT_ROOT_FIND, SYNTAX)]) as association:
        context = association.require(PATIENT_ROOT_FIND, "")
        asks(association, context, command.C_FIND_RQ, {"QueryRetrieveLevel": "STUDY", "PatientID": "P2", "StudyID": ""})
        (_, answer), _ = answers(association)

    assert set(answer) >= {"PatientID", "StudyID", "StudyInstanceUID"}
    assert "StudyDate" not in answer
    assert answer["RetrieveAETitle"] == ["PACS"]


def test_instances_that_cannot_be_sent_are_named_in_the_final_response(tmp_path: Path, storescp: StartStorescp) -> None:
    files = [write_instance(tmp_path / "files" / f"{number}.dcm", 1, 1, 1, number) for number in (1, 2, 3)]
    archive = archive_of(tmp_path / "archive", tmp_path / "files")
    files[1].unlink()
    peer = storescp()
    with (
        our_pacs(archive, {"DEST": peer.port}) as pacs,
        request(node(pacs.port), Local(), [(STUDY_ROOT_MOVE, SYNTAX)]) as association,
    ):
        asks(
            association, association.require(STUDY_ROOT_MOVE, ""), command.C_MOVE_RQ,
            {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": uid(1, 1)}, MoveDestination="DEST",
        )  # fmt: skip
        *_, (status, final) = answers(association)

    assert status == 0xB000
    assert final["NumberOfCompletedSuboperations"] == 2
    assert final["NumberOfFailedSuboperations"] == 1
    assert final["FailedSOPInstanceUIDList"] == [uid(1, 1, 1, 2)]


def test_a_destination_that_cannot_be_reached_fails_the_retrieval(
    archive: Archive, free_port: Callable[[], int]
) -> None:
    with (
        our_pacs(archive, {"DEST": free_port()}) as pacs,
        request(node(pacs.port), Local(), [(STUDY_ROOT_MOVE, SYNTAX)]) as association,
    ):
        asks(
            association, association.require(STUDY_ROOT_MOVE, ""), command.C_MOVE_RQ,
            {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": uid(1, 1)}, MoveDestination="DEST",
        )  # fmt: skip
        ((status, final),) = answers(association)

    assert status == 0xA702
    assert "cannot reach" in final["ErrorComment"]


def test_the_destination_is_told_who_asked_for_the_move(archive: Archive) -> None:
    stores = list[dict[str, Any]]()

    def note(_association: Association, message: Message) -> int:
        stores.append(message.command)
        return 0

    with (
        answering(note) as (dest, _),
        our_pacs(archive, {"DEST": dest.port}) as pacs,
        request(node(pacs.port), Local("ASKER"), [(STUDY_ROOT_MOVE, SYNTAX)]) as association,
    ):
        asks(
            association, association.require(STUDY_ROOT_MOVE, ""), command.C_MOVE_RQ,
            {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": uid(2, 3)}, MoveDestination="DEST",
        )  # fmt: skip
        list(answers(association))

    assert [one["MoveOriginatorApplicationEntityTitle"] for one in stores] == ["ASKER"] * 3
    assert [one["MoveOriginatorMessageID"] for one in stores] == [7] * 3


def test_a_cancelled_retrieval_tells_what_remains(archive: Archive, tmp_path: Path) -> None:
    write_series(tmp_path / "many", 200, 9)
    many = archive_of(tmp_path / "other", tmp_path / "many")
    with (
        our_pacs(many) as pacs,
        request(
            node(pacs.port), Local(), [(STUDY_ROOT_GET, SYNTAX), (MR, SYNTAX)], roles={MR: (False, True)}
        ) as association,
    ):
        context = association.require(STUDY_ROOT_GET, "")
        asks(association, context, command.C_GET_RQ, {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": uid(9, 1)})
        stored, cancelled = 0, False
        while (message := association.receive()).field == command.C_STORE_RQ:
            association.read_data()
            stored += 1
            if not cancelled:
                cancelled = True
                association.send(context, {"CommandField": command.C_CANCEL_RQ, "MessageIDBeingRespondedTo": 7})
            association.send(
                message.context,
                {
                    "AffectedSOPClassUID": MR,
                    "CommandField": command.C_STORE_RSP,
                    "MessageIDBeingRespondedTo": message.command["MessageID"],
                    "Status": 0,
                },
            )

    assert message.command["Status"] == 0xFE00
    assert message.command["NumberOfRemainingSuboperations"] > 150
    assert stored < 50


def test_what_the_requestor_takes_in_no_context_counts_as_failed(archive: Archive) -> None:
    with (
        our_pacs(archive) as pacs,
        request(node(pacs.port), Local(), [(STUDY_ROOT_GET, SYNTAX)]) as association,
    ):
        context = association.require(STUDY_ROOT_GET, "")
        asks(association, context, command.C_GET_RQ, {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": uid(2, 3)})
        ((status, final),) = answers(association)

    assert status == 0xA702
    assert final["NumberOfFailedSuboperations"] == 3


def test_a_file_that_was_cut_short_is_not_sent_over_c_get(archive: Archive) -> None:
    first, *others = [Path(record["path"]) for record in archive.index.by_study(uid(2, 3))]
    os.truncate(first, first.stat().st_size - 10)
    with (
        our_pacs(archive) as pacs,
        request(
            node(pacs.port), Local(), [(STUDY_ROOT_GET, SYNTAX), (MR, SYNTAX)], roles={MR: (False, True)}
        ) as association,
    ):
        context = association.require(STUDY_ROOT_GET, "")
        asks(association, context, command.C_GET_RQ, {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": uid(2, 3)})
        stored = 0
        while (message := association.receive()).field == command.C_STORE_RQ:
            association.read_data()
            stored += 1
            number = message.command["MessageID"]
            rsp = {"CommandField": command.C_STORE_RSP, "MessageIDBeingRespondedTo": number, "Status": 0}
            association.send(message.context, rsp)
        failed = identifier.decode(association.read_data(), message.context.syntax)

    assert stored == len(others) == 2
    assert message.command["Status"] == 0xB000
    assert message.command["NumberOfFailedSuboperations"] == 1
    assert failed["FailedSOPInstanceUIDList"] == [uid(2, 3, 1, 1)]


def serving(index: Index, destination: Callable[[str], Node | None], archive: Archive) -> Listener:
    handlers = QueryRetrieve(index, destination, Local("PACS")).handlers
    return Listener(archive, Local("PACS", 0, "127.0.0.1"), lambda _: None, services=handlers)


def test_a_destination_that_several_nodes_may_be_is_refused(archive: Archive) -> None:
    def several(title: str) -> Node | None:
        raise ConfigurationError(f"{title} is the AE title of several nodes")

    with (
        serving(archive.index, several, archive) as pacs,
        request(node(pacs.port), Local(), [(STUDY_ROOT_MOVE, SYNTAX)]) as association,
    ):
        wanted = {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": uid(2, 3)}
        context = association.require(STUDY_ROOT_MOVE, "")
        asks(association, context, command.C_MOVE_RQ, wanted, MoveDestination="TWICE")
        ((status, answer),) = answers(association)

    assert status == 0xA801
    assert answer["ErrorComment"] == "Move Destination TWICE ambiguous"


@pytest.mark.parametrize(
    ("field", "model"), [(command.C_FIND_RQ, STUDY_ROOT_FIND), (command.C_MOVE_RQ, STUDY_ROOT_MOVE)]
)
@pytest.mark.parametrize(("is_there", "code"), [(True, 0xA700), (False, 0xC000)])
def test_an_index_that_cannot_be_read_is_a_failure_status(
    archive: Archive, tmp_path: Path, field: int, model: str, is_there: bool, code: int
) -> None:
    index = Index(tmp_path / "other" / "index.jsonl")
    if is_there:
        index.file.mkdir(parents=True)  # reading it fails
    else:
        index.file.parent.write_text("no folder")
    with (
        serving(index, lambda _: None, archive) as pacs,
        request(node(pacs.port), Local(), [(model, SYNTAX)]) as association,
    ):
        for _ in range(2):
            wanted = {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": uid(2, 3)}
            asks(association, association.require(model, ""), field, wanted)
            ((status, answer),) = answers(association)
            assert (status, answer["ErrorComment"]) == (code, "The index cannot be read")
