"""What is acknowledged is stored, what cannot be stored is said, and nothing lands where it should not."""

import contextlib
import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from dcmtools.disk.archive import Archive
from dcmtools.model.errors import ProtocolError
from dcmtools.model.uids import EXPLICIT_VR_LITTLE_ENDIAN, VERIFICATION
from dcmtools.network import command, pdu
from tests.builders import uid
from tests.network.storing import (
    CT,
    INSTANCE,
    MR,
    ask,
    begin,
    client,
    data_set,
    encoded,
    files,
    left_behind,
    listening,
    send,
)
from tests.waiting import wait_until


def test_an_object_is_stored_byte_for_byte_and_indexed_before_it_is_acknowledged(tmp_path: Path) -> None:
    data = encoded() + bytes(7)  # what follows the last element belongs to the sender's bytes

    with listening(tmp_path) as (listener, records), client(listener.port) as association:
        answer = send(association, data)
        (indexed,) = Archive(tmp_path).index.instances()

    assert answer["Status"] == 0x0000
    assert (answer["AffectedSOPClassUID"], answer["AffectedSOPInstanceUID"]) == (MR, INSTANCE)
    (record,) = records
    path = tmp_path / uid(1, 1) / uid(1, 1, 1) / f"{INSTANCE}.dcm"
    assert record["path"] == indexed["path"] == str(path)
    assert data_set(path) == data + b"\0"  # of even length, as all data sets on the wire
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert record["state"] == "received"
    assert record["node"] == indexed["node"] == "SENDER"
    assert record["association"]
    assert record["SOPInstanceUID"] == INSTANCE


def test_the_same_object_again_is_success_without_a_write(tmp_path: Path) -> None:
    with listening(tmp_path) as (listener, records), client(listener.port) as association:
        send(association, encoded())
        (path,) = files(tmp_path / uid(1, 1))
        before, lines = path.stat(), (tmp_path / "index.jsonl").read_bytes()

        answer = send(association, encoded())

        assert answer["Status"] == 0x0000
        assert [record["state"] for record in records] == ["received", "present"]
        assert path.stat() == before
        assert (tmp_path / "index.jsonl").read_bytes() == lines


def test_other_bytes_under_the_same_uid_are_answered_0111_and_kept_beside_the_first(tmp_path: Path) -> None:
    with listening(tmp_path) as (listener, records), client(listener.port) as association:
        send(association, encoded())

        answer = send(association, encoded(PatientName="Corrected^Name"))

    assert answer["Status"] == 0x0111
    assert len(answer["ErrorComment"]) <= 64
    assert [record["state"] for record in records] == ["received", "conflict"]
    assert (records[1]["type"], records[1]["status"], records[1]["cause"]) == ("instance", "0111", "conflict")
    assert data_set(Path(records[0]["path"])) == encoded()
    assert data_set(Path(records[1]["path"])) == encoded(PatientName="Corrected^Name")
    assert Path(records[1]["path"]).parent == tmp_path / "quarantine"
    (found,) = Archive(tmp_path).index.instances()
    assert found["path"] == records[0]["path"]


@pytest.mark.parametrize("kept", [1, 30, 300, len(encoded()) - 1])
def test_a_data_set_that_was_cut_is_answered_c000_and_kept_in_quarantine(tmp_path: Path, kept: int) -> None:
    cut = encoded()[: kept - kept % 2]

    with listening(tmp_path) as (listener, records), client(listener.port) as association:
        refused = send(association, cut or b"\x08\0")
        stored = send(association, encoded())

    assert refused["Status"] == 0xC000
    assert 0 < len(refused["ErrorComment"]) <= 64
    assert stored["Status"] == 0x0000
    assert records[0]["type"] == "error"
    assert records[0]["status"] == "C000"
    assert records[0]["exit_code"] == 65
    assert records[0]["SOPInstanceUID"] == INSTANCE
    quarantined = Path(records[0]["path"])
    assert quarantined.parent == tmp_path / "quarantine"
    assert quarantined.read_bytes().endswith(cut)
    assert str(tmp_path) not in refused["ErrorComment"]


def test_an_object_that_is_not_what_the_command_says_is_answered_a900(tmp_path: Path) -> None:
    with listening(tmp_path) as (listener, records), client(listener.port) as association:
        other_instance = send(association, encoded(), uid(9))
        other_class = send(association, encoded(1, 1, 1, 2, SOPClassUID=CT), uid(1, 1, 1, 2))
        other_context = send(association, encoded(1, 1, 1, 3, SOPClassUID=CT), uid(1, 1, 1, 3), AffectedSOPClassUID=CT)

    assert [one["Status"] for one in (other_instance, other_class, other_context)] == [0xA900] * 3
    assert [record["cause"] for record in records] == ["mismatch"] * 3
    assert len(files(tmp_path / "quarantine")) == 3
    assert not list(Archive(tmp_path).index.instances())


def test_what_is_no_storage_is_answered_0122_and_kept_nowhere(tmp_path: Path) -> None:
    wanted = (VERIFICATION, (EXPLICIT_VR_LITTLE_ENDIAN,))
    with listening(tmp_path) as (listener, records), client(listener.port, wanted) as association:
        answer = send(association, encoded())
        echo = ask(association, {"CommandField": command.C_ECHO_RQ, "AffectedSOPClassUID": VERIFICATION})

    assert answer["Status"] == 0x0122
    assert records[0]["cause"] == "not-storage"
    assert echo["Status"] == 0x0000
    assert not files(tmp_path)


def test_a_request_without_a_data_set_is_answered_c000(tmp_path: Path) -> None:
    with listening(tmp_path) as (listener, _), client(listener.port) as association:
        answer = send(association, None)

    assert answer["Status"] == 0xC000


@pytest.mark.parametrize(
    "hostile",
    [
        "../../../../tmp/x",
        "/etc/passwd",
        "1.2.3/../../x",
        "1" * 65,
        "..",
        ".",
        "",
        "1.2\n3",
        "CON",
        "1.2;rm -rf .",
        "-1",
    ],
)
def test_nothing_lands_outside_the_archive_whatever_a_uid_says(tmp_path: Path, hostile: str) -> None:
    inside = tmp_path / "deep" / "archive"
    with listening(inside) as (listener, _), client(listener.port) as association:
        as_instance = send(association, encoded(SOPInstanceUID=hostile), hostile)
        as_study = send(association, encoded(StudyInstanceUID=hostile))
        as_series = send(association, encoded(SeriesInstanceUID=hostile))

    assert {one["Status"] for one in (as_instance, as_study, as_series)} <= {0xC000, 0xA900}
    assert all(path.is_relative_to(inside / "quarantine") for path in files(tmp_path))
    assert not list(Archive(inside).index.instances())


def test_a_peer_that_vanishes_in_the_middle_leaves_nothing_but_an_error_record(tmp_path: Path) -> None:
    with listening(tmp_path) as (listener, records):
        with client(listener.port) as association:
            begin(association, encoded()[:100])
            wait_until(lambda: left_behind(tmp_path), what="the temporary file")
            association.connection.close()
            association.open = False
        wait_until(lambda: records, what="the error record")

        assert records[0]["type"] == "error"
        assert records[0]["SOPInstanceUID"] == INSTANCE
        assert not left_behind(tmp_path)
    assert not files(tmp_path)


def test_a_disk_that_is_nearly_full_is_answered_a700_and_the_association_lives_on(tmp_path: Path) -> None:
    with listening(tmp_path, min_free=1 << 62) as (listener, records), client(listener.port) as association:
        answers = [send(association, encoded()) for _ in range(3)]

    assert [answer["Status"] for answer in answers] == [0xA700] * 3
    assert answers[0]["ErrorComment"] == "the disk is full"
    assert [(record["cause"], record["exit_code"]) for record in records] == [("disk-full", 74)] * 3
    assert not files(tmp_path)


def test_many_senders_of_one_instance_store_it_once(tmp_path: Path) -> None:
    answers: list[int] = []

    def sender(port: int) -> None:
        with client(port) as association:
            answers.append(send(association, encoded())["Status"])

    with listening(tmp_path) as (listener, records):
        threads = [threading.Thread(target=sender, args=(listener.port,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert answers == [0x0000] * 8
    assert sorted(record["state"] for record in records) == ["present"] * 7 + ["received"]
    assert len(list(Archive(tmp_path).index.instances())) == 1


def test_fragments_of_every_kind_make_the_same_file(tmp_path: Path) -> None:
    data = encoded()
    rq: command.Command = {"CommandField": command.C_STORE_RQ, "MessageID": 1, "CommandDataSetType": 1}
    rq |= {"AffectedSOPClassUID": MR, "AffectedSOPInstanceUID": INSTANCE}

    with listening(tmp_path) as (listener, _), client(listener.port) as association:
        values = [(3, command.encode(rq))]  # command and data in one PDU, in pieces of one byte
        values += [(0, data[at : at + 1]) for at in range(len(data) - 1)] + [(2, data[-1:])]
        body = b"".join(pdu.PDV_HEADER.pack(len(value) + 2, 1, flags) + value for flags, value in values)
        association.connection.write([pdu.HEADER.pack(pdu.P_DATA, len(body)), body], 5)
        answer = association.receive().command

    assert answer["Status"] == 0x0000
    (path,) = files(tmp_path)
    assert data_set(path) == data


def test_temporaries_of_a_killed_receiver_are_swept_by_the_next(tmp_path: Path) -> None:
    dead = tmp_path / ".dcmtools-incoming" / ".dcmtools-1-dead"
    dead.mkdir(parents=True)
    (dead / ".dcmtools-1-half").write_bytes(b"half an object")

    with listening(tmp_path):
        assert not left_behind(tmp_path)


def test_a_peer_that_reads_no_answer_does_not_undo_what_was_stored(tmp_path: Path) -> None:
    with listening(tmp_path) as (listener, records):
        with client(listener.port) as association, contextlib.suppress(ProtocolError):
            rq = {"CommandField": command.C_STORE_RQ, "MessageID": 1, "AffectedSOPClassUID": MR}
            association.send(association.contexts[1], {**rq, "AffectedSOPInstanceUID": INSTANCE}, encoded())
            association.connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            os.close(association.connection.socket.detach())
            association.open = False
        wait_until(lambda: records, what="the record")

    assert records[0]["state"] == "received"
    assert len(files(tmp_path)) == 1
