"""What lands while a move runs: through our own receiver, or through a listen that is there already."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dcmtools.disk.archive import Archive
from dcmtools.model.errors import Locked, TryLater
from dcmtools.model.node import Local
from dcmtools.model.record import Record, pick, type_of
from dcmtools.network.arrivals import Arrivals, Following, Receiving, arrivals_for
from dcmtools.network.listen import Listener
from dcmtools.network.move import move
from dcmtools.network.move_run import Options
from tests.builders import uid
from tests.network.pacs import archive_of, node, our_pacs, write_studies
from tests.network.storing import client, encoded, send
from tests.waiting import wait_until

INSTANCE = uid(1, 1, 1, 1)
STUDY = {"type": "study", "StudyInstanceUID": uid(1, 1)}


@pytest.fixture
def local(free_port: Callable[[], int]) -> Local:
    return Local("DEST", free_port(), "127.0.0.1")


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "archive")


@pytest.fixture
def listening(archive: Archive, local: Local) -> Iterator[Callable[[], None]]:
    """A `listen` on the same archive; the value ends it."""
    with ExitStack() as stack:
        stack.enter_context(Listener(Archive(archive.root), local, lambda _: None))
        yield stack.close


def taken(arrivals: Arrivals, count: int = 1) -> list[Record]:
    """The next records, waited for."""
    records: list[Record] = []

    def look() -> bool:
        records.extend(arrivals.take())
        return len(records) >= count

    wait_until(look, what=f"{count} arrivals")
    return records


def test_our_own_receiver_tells_what_arrives_and_wakes_who_waits(archive: Archive, local: Local) -> None:
    with arrivals_for(archive, local) as arrivals:
        assert isinstance(arrivals, Receiving)
        assert (arrivals.port, arrivals.connections, arrivals.busy) == (local.port, 0, False)
        with client(arrivals.port) as association:
            assert send(association, encoded())["Status"] == 0
            arrivals.wait(5)
            (record,) = arrivals.take()
            assert arrivals.busy
        assert (record["state"], record["SOPInstanceUID"], arrivals.connections) == ("received", INSTANCE, 1)
        assert arrivals.take() == []


def test_a_running_listen_is_followed_through_the_index(
    archive: Archive, local: Local, listening: Callable[[], None]
) -> None:
    with client(local.port) as association:
        send(association, encoded(1, 1, 1, 2), uid(1, 1, 1, 2))
        with arrivals_for(archive, local) as arrivals:
            assert isinstance(arrivals, Following)
            assert (arrivals.port, arrivals.connections, arrivals.busy) == (local.port, None, True)
            send(association, encoded(), INSTANCE)
            (record,) = taken(arrivals)

    assert (record["state"], record["SOPInstanceUID"]) == ("received", INSTANCE)
    assert Path(record["path"]).is_file()


def test_a_listen_that_ends_is_an_error_record(archive: Archive, local: Local, listening: Callable[[], None]) -> None:
    with arrivals_for(archive, local) as arrivals:
        listening()
        (record,) = taken(arrivals)

    assert (type_of(record), record["cause"], record["exit_code"]) == ("error", "listener-gone", 75)


def test_a_move_through_a_running_listen_tells_what_it_asked_for_and_nothing_else(
    archive: Archive, local: Local, listening: Callable[[], None], tmp_path: Path
) -> None:
    files = write_studies(tmp_path / "studies")
    pacs_archive = archive_of(tmp_path / "pacs", files)
    with (
        our_pacs(pacs_archive, {"DEST": local.port}) as pacs,
        arrivals_for(archive, local) as arrivals,
        client(local.port) as scanner,
    ):
        send(scanner, encoded(9, 9, 9, 9), uid(9, 9, 9, 9))
        options = Options(retries=0, grace=2)
        records = list(move([(node(pacs.port), STUDY)], archive.index, arrivals, local, options=options))

    assert sorted(str(record.get("state") or record["event"]) for record in records) == [
        *["received"] * 6, *["series-complete"] * 2, "study-complete"
    ]  # fmt: skip
    assert len(list(archive.index.instances())) == 7


def test_a_move_ends_when_the_listen_that_it_follows_ends(
    archive: Archive, local: Local, listening: Callable[[], None], tmp_path: Path
) -> None:
    pacs_archive = archive_of(tmp_path / "pacs", write_studies(tmp_path / "studies"))
    with our_pacs(pacs_archive, {"DEST": local.port}) as pacs, arrivals_for(archive, local) as arrivals:
        listening()
        wanted = [(node(pacs.port), {**STUDY, "StudyInstanceUID": uid(1, number)}) for number in (1, 2)]
        records = list(move(wanted, archive.index, arrivals, local, options=Options(retries=5, grace=2)))

    assert records[-1]["exit_code"] in {69, 75}


def test_another_move_on_the_archive_is_told_as_a_lock(archive: Archive, local: Local) -> None:
    with (
        arrivals_for(archive, local),
        pytest.raises(Locked, match=r"is being filled by process \d+ \(move\)") as caught,
        arrivals_for(archive, local),
    ):
        pass

    assert caught.value.exit_code == 75


def test_a_listen_under_another_name_is_not_followed(
    archive: Archive, local: Local, listening: Callable[[], None]
) -> None:
    with (
        pytest.raises(TryLater, match="is served by a listen as 'DEST', and we are 'OTHER'"),
        arrivals_for(archive, Local("OTHER", local.port)),
    ):
        pass


def test_a_port_that_another_program_holds_is_told(archive: Archive, local: Local) -> None:
    with (
        socket.create_server(("127.0.0.1", local.port)),
        pytest.raises(TryLater, match=f"port {local.port} is held"),
        arrivals_for(archive, local),
    ):
        pass


def test_a_held_port_is_waited_for(archive: Archive, local: Local) -> None:
    holder = socket.create_server(("127.0.0.1", local.port))
    threading.Timer(0.3, holder.close).start()

    with arrivals_for(archive, local, wait=20) as arrivals:
        assert arrivals.port == local.port


def test_a_stop_ends_the_waiting(archive: Archive, local: Local) -> None:
    with (
        socket.create_server(("127.0.0.1", local.port)),
        pytest.raises(TryLater),
        arrivals_for(archive, local, wait=60, stop=lambda: True),
    ):
        pass


def test_a_put_that_comes_too_late_writes_nowhere(archive: Archive, local: Local, tmp_path: Path) -> None:
    with arrivals_for(archive, local) as arrivals:
        bell = arrivals._bell
    files = [(tmp_path / str(number)).open("wb") for number in range(4)]  # one of them gets the bell's old number
    assert bell in [file.fileno() for file in files]

    arrivals.put({"type": "instance"})

    for file in files:
        file.close()
    assert [path.stat().st_size for path in sorted(tmp_path.glob("[0-3]"))] == [0] * 4


def test_other_content_under_the_same_uid_is_told_as_a_conflict_by_who_follows_and_who_receives(
    archive: Archive, local: Local
) -> None:
    told: list[Record] = []
    with ExitStack() as stack:
        for follows, side in ((False, 8), (True, 16)):
            if follows:
                stack.enter_context(Listener(Archive(archive.root), local, lambda _: None))
            with arrivals_for(archive, local) as arrivals, client(local.port) as association:
                assert isinstance(arrivals, Following) == follows
                if not told:
                    send(association, encoded(), INSTANCE)
                    taken(arrivals)
                send(association, encoded(side=side), INSTANCE)
                told += taken(arrivals)

    keys = ("type", "state", "cause", "reason", "advice", "exit_code", "SOPInstanceUID")
    receiving, following = (pick(record, *keys) for record in told)
    assert receiving == following
    assert (receiving["state"], receiving["exit_code"]) == ("conflict", 65)
