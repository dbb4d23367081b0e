"""Sending: to real peers, past what cannot be sent, and through what peers and networks do."""

import contextlib
import hashlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dcmtools.disk.archive import Archive
from dcmtools.disk.header import read_header, read_meta
from dcmtools.model.errors import BadData, Refused, TryLater, Unavailable
from dcmtools.model.node import Local, node_from_address
from dcmtools.model.record import Record, event, path_keys
from dcmtools.model.uids import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, TRANSFER_SYNTAXES
from dcmtools.network.association import Association, Message, Released
from dcmtools.network.parcel import look_at
from dcmtools.network.store import plan, store
from tests.builders import uid, write_instance, write_series
from tests.network.storing import MR, answering, client, data_set, files, listening, node
from tests.peers.processes import StartDcmqrscp, StartOrthanc, StartStorescp
from tests.waiting import wait_until

LOCAL = Local(ae_title="SENDER")


def records_of(*paths: Path) -> list[Record]:
    return [{"type": "instance", **path_keys(path)} for path in paths]


def success(_association: Association, _message: Message) -> int:
    return 0x0000


def states(records: list[Record]) -> list[str]:
    return [str(record.get("state") or record["type"]) for record in records]


def sums(folder: Path) -> dict[Path, tuple[str, int]]:
    return {path: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files(folder)}


# To real peers


def test_storescp_gets_every_byte_of_every_kind_of_data_set(storescp: StartStorescp, data: Path) -> None:
    """One association for many SOP classes and transfer syntaxes; nothing is transcoded on the way."""
    peer = storescp()
    candidates = [*sorted((data / "odd").glob("*.dcm")), *sorted((data / "vendors" / "generic").rglob("*.dcm"))]
    metas = {path: meta for path in candidates if (meta := _meta(path)) and meta.syntax in TRANSFER_SYNTAXES}
    chosen = list({meta.sop_instance: path for path, meta in metas.items()}.values())
    before = {path: path.stat().st_mtime_ns for path in chosen}

    records = list(store(records_of(*chosen), node_from_address(peer.node), LOCAL))

    sent = [record for record in records if record.get("state") == "sent"]
    assert len(sent) > 60
    assert {record.get("cause") for record in records if record not in sent} <= {"truncated", "not-accepted"}
    assert len({(record["SOPClassUID"], record["TransferSyntaxUID"]) for record in sent}) > 12
    assert len({record["association"] for record in sent}) == 1
    came = {read_meta(path).sop_instance: data_set(path) for path in files(peer.folder)}
    for record in sent:
        wanted = data_set(Path(record["path"]))
        assert came[record["SOPInstanceUID"]] == wanted + bytes(len(wanted) % 2), record["path"]
    assert before == {path: path.stat().st_mtime_ns for path in chosen}


def _meta(path: Path) -> Any:
    with contextlib.suppress(Exception):
        return read_meta(path)
    return None


def test_orthanc_and_dcmqrscp_have_afterwards_what_was_sent(
    orthanc: StartOrthanc, dcmqrscp: StartDcmqrscp, tmp_path: Path
) -> None:
    sent = [*write_series(tmp_path / "sent", 12), *write_series(tmp_path / "sent", 12, 2)]
    pacs, archive = orthanc(), dcmqrscp()

    for peer, jobs in ((pacs, 2), (archive, 1)):  # dcmqrscp overwrites files of its own when two senders come at once
        records = list(store(records_of(*sent), node_from_address(peer.node), LOCAL, jobs=jobs))
        assert states(records) == ["sent"] * 24
        assert [record["path"] for record in records] == list(map(str, sent))

    assert pacs.instances() == 24
    assert len([path for path in files(archive.folder) if path.suffix == ".dcm"]) == 24


def test_our_own_receiver_gets_every_byte_and_the_inputs_stay_as_they_are(tmp_path: Path) -> None:
    sent = [*write_series(tmp_path / "sent", 5), write_instance(tmp_path / "sent" / "large.dcm", 2, side=2048)]
    before = sums(tmp_path / "sent")

    with listening(tmp_path / "archive") as (listener, _):
        records = list(store(records_of(*sent), node(listener.port), LOCAL))

    assert states(records) == ["sent"] * 6
    stored = {record["SOPInstanceUID"]: record["path"] for record in Archive(tmp_path / "archive").index.instances()}
    for record in records:
        assert data_set(Path(stored[record["SOPInstanceUID"]])) == data_set(Path(record["path"]))
    assert sums(tmp_path / "sent") == before


@pytest.mark.parametrize("max_pdu", [4096, 16384, 0])
def test_large_files_leave_in_pieces_that_fit_the_peer(tmp_path: Path, max_pdu: int) -> None:
    path = write_instance(tmp_path / "large.dcm", side=1801, PixelData=bytes(range(256)) * 51_000 + b"x" * 102)

    with answering(success, max_pdu=max_pdu or 1 << 20) as (acceptor, came):
        if not max_pdu:
            acceptor.policy = acceptor.policy.__class__(
                **{**{name: getattr(acceptor.policy, name) for name in acceptor.policy.__slots__}, "max_pdu": 1 << 22}
            )
        (record,) = store(records_of(path), node(acceptor.port), LOCAL)

    assert record["state"] == "sent"
    assert came == [(record["SOPInstanceUID"], data_set(path))]


def test_a_record_is_the_input_with_what_became_of_it(tmp_path: Path) -> None:
    (path,) = write_series(tmp_path, 1)
    before = {"type": "instance", "PatientID": "P1", "mine": 1, **path_keys(path)}
    failed = {"state": "failed", "status": "A700", "reason": "of an earlier try", "exit_code": 75}

    with answering(success) as (acceptor, _):
        (record,) = store([{**before, **failed}], node(acceptor.port), LOCAL)

    assert {key: record[key] for key in before} == before
    assert record["state"] == "sent"
    assert record["status"] == "0000"
    assert record["node"] == "PEER"
    assert record["SOPInstanceUID"] == uid(1, 1, 1, 1)
    assert record["SOPClassUID"] == MR
    assert record["TransferSyntaxUID"] == EXPLICIT_VR_LITTLE_ENDIAN
    assert record["tries"] == 1
    assert record["ms"] > 0
    assert "reason" not in record


# What cannot be sent


def test_what_cannot_be_read_becomes_an_error_record_and_the_rest_is_sent(tmp_path: Path) -> None:
    good = write_series(tmp_path, 3)
    text, cut, empty = tmp_path / "notes.txt", tmp_path / "cut.dcm", tmp_path / "empty.dcm"
    text.write_text("no DICOM at all, but a longer text that says so\n" * 10)
    cut.write_bytes(good[0].read_bytes()[:-10])
    empty.write_bytes(b"")
    tail = tmp_path / "tail.dcm"
    tail.write_bytes(write_instance(tmp_path / "x.dcm", 5).read_bytes() + b"odd tail")
    told = event("series-complete", SeriesInstanceUID="1.2")
    items = [
        *records_of(good[0], text, cut, tmp_path / "gone.dcm", empty, good[1]),
        told,
        {"type": "instance", "SOPInstanceUID": "1.2.3"},
        {"type": "error", "cause": "before", "reason": "from before"},
        {"type": "volume", "path": str(tmp_path / "v.nii.gz"), "state": "converted"},
        *records_of(tail, good[2]),
    ]

    with answering(success) as (acceptor, came):
        records = list(store(items, node(acceptor.port), LOCAL))

    causes = [record.get("cause") or record.get("state") or record.get("event") for record in records]
    assert causes[:6] == ["sent", "not-dicom", "truncated", "vanished", causes[4], "sent"]
    assert causes[6:] == ["series-complete", "missing", "before", "converted", "sent", "sent"]
    assert len(came) == 4
    assert records[6] is told
    assert records[2]["path"] == str(cut)
    assert records[2]["exit_code"] == 65


def test_a_syntax_that_the_peer_does_not_take_fails_with_what_it_would_take(tmp_path: Path) -> None:
    jpeg = write_instance(tmp_path / "a.dcm", syntax=EXPLICIT_VR_LITTLE_ENDIAN)

    def choose(abstract: str, syntaxes: tuple[str, ...]) -> str | None:
        return IMPLICIT_VR_LITTLE_ENDIAN if IMPLICIT_VR_LITTLE_ENDIAN in syntaxes else ""

    with answering(success, choose=choose) as (acceptor, came):
        (record,) = store(records_of(jpeg), node(acceptor.port), LOCAL)
    with answering(success, choose=lambda *_: None) as (acceptor, _):
        (other,) = store(records_of(jpeg), node(acceptor.port), LOCAL)

    assert record["state"] == other["state"] == "failed"
    assert record["reason"].endswith(
        "does not take MR Image Storage as Explicit VR Little Endian, but as Implicit VR Little Endian"
    )
    assert other["reason"].endswith("does not take MR Image Storage")
    assert record["exit_code"] == 69
    assert record["tries"] == 1
    assert not came


@pytest.mark.parametrize(
    ("code", "state", "words"),
    [
        (0xB000, "warning", "B000 (Warning: Coercion of Data Elements"),
        (0xB007, "warning", "B007"),
        (0xA900, "failed", "A900"),
        (0xC000, "failed", "C000"),
        (0x0111, "failed", "0111"),
        (0x0122, "failed", "0122"),
    ],
)
def test_what_the_peer_answers_is_said_in_words_and_not_tried_again(
    tmp_path: Path, code: int, state: str, words: str
) -> None:
    with answering(lambda *_: code) as (acceptor, came):
        (record,) = store(records_of(*write_series(tmp_path, 1)), node(acceptor.port), LOCAL)

    assert record["state"] == state
    assert record["status"] == f"{code:04X}"
    assert words in record["reason"]
    assert record["type"] == "instance"
    assert len(came) == 1


def test_more_kinds_than_an_association_takes_are_sent_over_several(tmp_path: Path) -> None:
    paths = [
        write_instance(tmp_path / f"{number}.dcm", instance=number, SOPClassUID=uid(7, number), side=2)
        for number in range(1, 151)
    ]

    with answering(success) as (acceptor, came):
        records = list(store(records_of(*paths), node(acceptor.port), LOCAL))
        opened = acceptor.counts["associations"]

    assert states(records) == ["sent"] * 150
    assert len(came) == 150
    assert opened == 2


# What peers and networks do


def test_a_node_that_cannot_be_reached_or_refuses_is_said_once(tmp_path: Path, free_port: Callable[[], int]) -> None:
    items = records_of(*write_series(tmp_path, 5))

    with pytest.raises(Unavailable, match="cannot reach"):
        list(store(items, node(free_port()), LOCAL))
    with answering(success, peers=frozenset({"OTHER"})) as (acceptor, _), pytest.raises(Refused, match="'SENDER'"):
        list(store(items, node(acceptor.port), LOCAL, jobs=3))


def test_each_instance_fails_for_a_node_that_cannot_be_reached_where_that_is_wanted(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    items = records_of(*write_series(tmp_path, 5))

    records = list(store(items, node(free_port()), LOCAL, jobs=2, each=True))

    assert states(records) == ["failed"] * 5
    assert [record["path"] for record in records] == [item["path"] for item in items]
    assert [record["tries"] for record in records] == [1, 0, 0, 0, 0]


def test_a_busy_node_is_tried_again_before_it_is_given_up(tmp_path: Path) -> None:
    items = records_of(*write_series(tmp_path, 2))

    with answering(success, max_associations=1) as (acceptor, _):
        with client(acceptor.port), pytest.raises(TryLater, match="local limit exceeded"):
            list(store(items, node(acceptor.port), LOCAL, retries=1))
        assert acceptor.counts["rejections"] == 2
        wait_until(lambda: acceptor.active == 0)
        assert states(list(store(items, node(acceptor.port), LOCAL))) == ["sent", "sent"]


def test_a_lost_connection_is_opened_again_from_the_first_instance_without_an_answer(tmp_path: Path) -> None:
    lost: list[str] = []

    def break_off_at_the_third(association: Association, message: Message) -> int | None:
        if message.command["MessageID"] == 3 and not lost:
            lost.append(message.command["AffectedSOPInstanceUID"])
            association.connection.close()
            return None
        return 0

    with answering(break_off_at_the_third) as (acceptor, came):
        records = list(store(records_of(*write_series(tmp_path, 6)), node(acceptor.port), LOCAL))

    assert states(records) == ["sent"] * 6
    assert [record["tries"] for record in records] == [1, 1, 2, 1, 1, 1]
    assert [instance for instance, _ in came] == [uid(1, 1, 1, n) for n in (1, 2, 3, 3, 4, 5, 6)]


def test_an_instance_at_which_the_peer_always_breaks_off_does_not_stop_the_others(tmp_path: Path) -> None:
    poison = uid(1, 1, 1, 2)

    def answer(association: Association, message: Message) -> int | None:
        if message.command["AffectedSOPInstanceUID"] == poison:
            association.abort()
            return None
        return 0

    with answering(answer) as (acceptor, _):
        records = list(store(records_of(*write_series(tmp_path, 4)), node(acceptor.port), LOCAL, retries=1))

    assert states(records) == ["sent", "failed", "sent", "sent"]
    assert records[1]["cause"] == "aborted"
    assert records[1]["exit_code"] == 76
    assert records[1]["tries"] == 2


def test_a_node_that_goes_away_for_good_fails_the_rest_at_once(tmp_path: Path) -> None:
    gone = threading.Event()

    def answer(association: Association, message: Message) -> int | None:
        if message.command["MessageID"] == 2:
            gone.set()
            acceptor.stop_accepting()
            association.connection.close()
            return None
        return 0

    with answering(answer) as (acceptor, _):
        records = list(store(records_of(*write_series(tmp_path, 40)), node(acceptor.port), LOCAL, retries=1))

    assert states(records) == ["sent"] + ["failed"] * 39
    assert {record["exit_code"] for record in records[1:]} == {69}
    assert {record["tries"] for record in records[2:]} == {0}
    assert records[2]["reason"].startswith("not tried, for cannot reach PEER")


def test_a_peer_out_of_resources_is_asked_again_on_the_same_association(tmp_path: Path) -> None:
    answers = iter([0xA700, 0, 0])

    with answering(lambda *_: next(answers)) as (acceptor, came):
        records = list(store(records_of(*write_series(tmp_path, 2)), node(acceptor.port), LOCAL))
        assert acceptor.counts["associations"] == 1

    assert states(records) == ["sent", "sent"]
    assert records[0]["tries"] == 2
    assert len(came) == 3


def test_a_peer_that_stays_out_of_resources_fails_with_75(tmp_path: Path) -> None:
    with answering(lambda *_: 0xA701) as (acceptor, _):
        (record,) = store(records_of(*write_series(tmp_path, 1)), node(acceptor.port), LOCAL, retries=0)

    assert (record["state"], record["status"], record["exit_code"]) == ("failed", "A701", 75)


def test_a_release_instead_of_an_answer_is_a_lost_connection(tmp_path: Path) -> None:
    def answer(association: Association, message: Message) -> int | None:
        if message.command["MessageID"] == 1 and len(came) == 1:
            association.release()
            raise Released
        return 0

    with answering(answer) as (acceptor, came):
        (record,) = store(records_of(*write_series(tmp_path, 1)), node(acceptor.port), LOCAL)

    assert (record["state"], record["tries"]) == ("sent", 2)


def test_the_first_file_does_not_wait_for_a_slow_input(tmp_path: Path) -> None:
    paths = write_series(tmp_path, 3)
    go_on = threading.Semaphore(0)

    def slowly() -> Iterator[Record]:
        for record in records_of(*paths):
            yield record
            assert go_on.acquire(timeout=20)

    with answering(success) as (acceptor, came):
        records = store(slowly(), node(acceptor.port), LOCAL)
        for number in (1, 2, 3):
            assert next(records)["state"] == "sent"
            assert len(came) == number
            go_on.release()
        assert list(records) == []
        assert acceptor.counts["associations"] == 1


@pytest.mark.parametrize("way", ["release", "abort", "close"])
def test_an_association_that_the_peer_closed_while_it_was_idle_is_opened_again(tmp_path: Path, way: str) -> None:
    paths = write_series(tmp_path, 2)
    ended = threading.Event()

    def answer(association: Association, message: Message) -> int | None:
        if len(came) > 1:
            return 0
        rsp = {"CommandField": 0x8001, "MessageIDBeingRespondedTo": message.command["MessageID"], "Status": 0}
        association.send(message.context, rsp)
        time.sleep(0.1)  # the sender has taken the answer by then; else it would be another test
        ended.set()
        association.connection.close() if way == "close" else getattr(association, way)()
        return None

    def slowly() -> Iterator[Record]:
        yield from records_of(paths[0])
        assert ended.wait(20)
        time.sleep(0.6)  # so long an association counts as idle
        yield from records_of(paths[1])

    with answering(answer) as (acceptor, came):
        records = list(store(slowly(), node(acceptor.port), LOCAL))

    assert states(records) == ["sent", "sent"]
    assert [record["tries"] for record in records] == [1, 1]
    assert len(came) == 2


def test_several_associations_send_everything_once_and_the_records_keep_their_order(tmp_path: Path) -> None:
    paths = write_series(tmp_path, 120)
    seen: set[int] = set()
    both = threading.Event()

    def answer(association: Association, _message: Message) -> int:
        seen.add(id(association))
        if len(seen) > 1:
            both.set()
        assert both.wait(20)
        return 0

    with answering(answer) as (acceptor, came):
        records = list(store(records_of(*paths), node(acceptor.port), LOCAL, jobs=4))
        opened = acceptor.counts["associations"]

    assert [record["path"] for record in records] == list(map(str, paths))
    assert states(records) == ["sent"] * 120
    assert len(came) == 120
    assert 1 < opened <= 4
    assert 1 < len({record["association"] for record in records}) <= opened  # the last may have come too late


def test_a_node_that_grants_fewer_associations_than_jobs_gets_everything_all_the_same(tmp_path: Path) -> None:
    paths = write_series(tmp_path, 60)

    with answering(success, max_associations=1) as (acceptor, came):
        records = list(store(records_of(*paths), node(acceptor.port), LOCAL, jobs=4))

    assert states(records) == ["sent"] * 60
    assert len(came) == 60


def test_stop_finishes_the_instance_in_hand_and_releases(tmp_path: Path) -> None:
    stop = threading.Event()

    def answer(_association: Association, message: Message) -> int:
        if message.command["MessageID"] == 3:
            stop.set()
        return 0

    with answering(answer) as (acceptor, came):
        records = list(store(records_of(*write_series(tmp_path, 50)), node(acceptor.port), LOCAL, stop=stop.is_set))
        wait_until(lambda: acceptor.active == 0)

    assert states(records) == ["sent"] * len(came)
    assert 3 <= len(came) <= 4


def test_a_caller_that_goes_away_leaves_no_association_open(tmp_path: Path) -> None:
    with answering(success) as (acceptor, _):
        records = store(records_of(*write_series(tmp_path, 50)), node(acceptor.port), LOCAL)
        next(records)
        records.close()
        wait_until(lambda: acceptor.active == 0)


def test_an_error_of_the_input_reaches_the_caller_after_what_came_before_it(tmp_path: Path) -> None:
    def broken() -> Iterator[Record]:
        yield from records_of(*write_series(tmp_path, 2))
        raise RuntimeError("the input broke")

    with answering(success) as (acceptor, _):
        records = store(broken(), node(acceptor.port), LOCAL)
        assert [next(records)["state"], next(records)["state"]] == ["sent", "sent"]
        with pytest.raises(RuntimeError, match="the input broke"):
            next(records)


def test_nobody_waits_for_who_reads_the_records(tmp_path: Path) -> None:
    paths = write_series(tmp_path, 30)

    with answering(success) as (acceptor, came):
        records = store(records_of(*paths), node(acceptor.port), LOCAL)
        next(records)
        wait_until(lambda: len(came) == 30, what="all are sent, though nobody reads")
        assert len(list(records)) == 29


def test_the_move_that_it_is_done_for_stands_in_the_request(tmp_path: Path) -> None:
    asked: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def answer(_association: Association, message: Message) -> int:
        asked.put(message.command)
        return 0

    with answering(answer) as (acceptor, _):
        list(store(records_of(*write_series(tmp_path, 1)), node(acceptor.port), LOCAL, priority=1, origin=("PACS", 7)))

    command = asked.get()
    assert command["MoveOriginatorApplicationEntityTitle"] == "PACS"
    assert command["MoveOriginatorMessageID"] == 7
    assert command["Priority"] == 1


def test_a_plan_asks_nobody(tmp_path: Path, free_port: Callable[[], int]) -> None:
    (path,) = write_series(tmp_path, 1)
    records = list(plan([*records_of(path, tmp_path / "gone"), event("x")], node(free_port())))

    assert states(records) == ["planned", "error", "event"]
    assert records[0]["node"] == "PEER"


def test_a_file_that_becomes_shorter_while_it_is_sent_fails_alone(tmp_path: Path) -> None:
    large = write_instance(tmp_path / "large.dcm", side=3000)
    small = write_series(tmp_path, 1)[0]

    def cut(_association: Association, _message: Message) -> int:
        return 0

    with answering(cut, max_pdu=4096) as (acceptor, came):
        original = Association.send_file

        def send_file(self: Association, context: Any, command: Any, file: int, offset: int, length: int) -> None:
            large.write_bytes(large.read_bytes()[: 6 << 20])
            original(self, context, command, file, offset, length)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Association, "send_file", send_file)
            records = list(store(records_of(large, small), node(acceptor.port), LOCAL))

    assert states(records) == ["failed", "sent"]
    assert records[0]["cause"] == "changed"
    assert len(came) == 1


def test_a_file_that_is_not_the_one_of_its_record_is_not_sent(tmp_path: Path) -> None:
    path = write_instance(tmp_path / "x.dcm")
    record = read_header(path)
    path.write_bytes(path.read_bytes() + bytes(64))

    with pytest.raises(BadData, match="its record says") as caught:
        look_at(0, record)

    assert caught.value.cause == "damaged"


def test_a_node_that_cannot_be_reached_is_asked_once_and_not_by_each_association(tmp_path: Path) -> None:
    items = records_of(*write_series(tmp_path, 5))

    with answering(success, peers=frozenset({"OTHER"})) as (acceptor, _):
        records = list(store(items, node(acceptor.port), LOCAL, jobs=4, each=True))
        assert acceptor.counts["rejections"] == 1

    assert states(records) == ["failed"] * 5
