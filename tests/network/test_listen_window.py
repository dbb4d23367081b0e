"""Several operations outstanding on one association (PS3.7 D.3.3.3): the answers are those that come one at a time."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcmtools.disk import archive, journal
from dcmtools.disk.archive import Archive
from dcmtools.model.errors import BadData
from dcmtools.model.uids import EXPLICIT_VR_LITTLE_ENDIAN, VERIFICATION
from dcmtools.network import command, pdu
from dcmtools.network.association import Association, Timeouts, establish, proposals
from dcmtools.network.listen import Listener
from dcmtools.network.upper_layer import Connection
from tests.builders import uid
from tests.network.storing import MR, begin, client, encoded, files, finish, left_behind, listening, send
from tests.waiting import wait_until

if TYPE_CHECKING:
    from dcmtools.network.command import Command

# What may be sent: the instance that the command names, and the data set.
OBJECTS: list[tuple[str, bytes]] = [
    *((uid(1, 1, 1, number), encoded(1, 1, 1, number)) for number in range(1, 5)),
    (uid(1, 1, 1, 1), encoded(1, 1, 1, 1, PatientName="Other^One")),
    (uid(1, 1, 1, 2), encoded(1, 1, 1, 2, StudyInstanceUID=uid(7, 7))),
    (uid(1, 1, 1, 3), encoded(1, 1, 1, 3)[:-9]),
    (uid(1, 1, 1, 9), encoded(1, 1, 1, 4)),
    ("../up", encoded(1, 1, 1, 4)),
]
ECHO = -1


@contextmanager
def pipelining(port: int, window: int) -> Iterator[tuple[Association, pdu.Accept]]:
    """An association on which so many operations may be outstanding, if the acceptor likes that."""
    wanted = [(MR, (EXPLICIT_VR_LITTLE_ENDIAN,)), (VERIFICATION, (EXPLICIT_VR_LITTLE_ENDIAN,))]
    asked = pdu.Request(
        called="PEER",
        calling="SENDER",
        implementation_class="1.2.3",
        implementation_version="TEST",
        window=(window, 1),
        contexts=proposals(wanted),
    )
    connection = Connection(socket.create_connection(("127.0.0.1", port)))
    with establish(connection, asked, "PEER", Timeouts(10, 10, 10, 10)) as association:
        assert isinstance(association.theirs, pdu.Accept)
        yield association, association.theirs


def message(association: Association, number: int, which: int) -> list[bytes]:
    """The bytes of one request with this Message ID."""
    first, second = list(association.contexts.values())
    if which == ECHO:
        echo: Command = {"AffectedSOPClassUID": VERIFICATION, "CommandField": command.C_ECHO_RQ, "MessageID": number}
        return [bytes(part) for part in association._message(second, echo, None)]
    instance, data = OBJECTS[which]
    store: Command = {"AffectedSOPClassUID": MR, "AffectedSOPInstanceUID": instance, "MessageID": number}
    store |= {"CommandField": command.C_STORE_RQ, "Priority": command.MEDIUM}
    return [bytes(part) for part in association.prepared(first, store, data)]


def told_together(listener: Listener, plan: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """The statuses for a plan that was sent without waiting, in writes of these sizes, in the order of the plan."""
    with pipelining(listener.port, 32) as (association, _):
        wire = b"".join(part for number, which in enumerate(plan) for part in message(association, number + 1, which))
        position, turn = 0, 0
        while position < len(wire):
            size = sizes[turn % len(sizes)] if sizes else len(wire)
            association.connection.write([wire[position : position + size]], 5)
            position, turn = position + size, turn + 1
        answers = [association.receive(10).command for _ in plan]
    assert [answer["MessageIDBeingRespondedTo"] for answer in answers] == list(range(1, len(plan) + 1))
    return [answer["Status"] for answer in answers]


def told_alone(listener: Listener, plan: Sequence[int]) -> list[int]:
    with client(listener.port) as association:
        return [
            0 if which == ECHO else send(association, OBJECTS[which][1], OBJECTS[which][0])["Status"] for which in plan
        ]


def state_of(folder: Path) -> tuple[list[tuple[str, bytes]], list[str]]:
    """What an archive holds: names and bytes, and the answers of its index."""
    held = [(os.fspath(path.relative_to(folder)), path.read_bytes()) for path in files(folder)]
    # Each file that is refused is kept under a name of its own.
    return held, [record["path"].removeprefix(os.fspath(folder)) for record in Archive(folder).index.instances()]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(ECHO, len(OBJECTS) - 1), min_size=1, max_size=24),
    st.lists(st.integers(1, 5000), max_size=4),
)
def test_what_comes_without_waiting_is_answered_and_kept_as_what_comes_one_at_a_time(
    plan: list[int], sizes: list[int]
) -> None:
    with TemporaryDirectory() as one, TemporaryDirectory() as two:
        with listening(Path(one)) as (listener, _):
            together = told_together(listener, plan, sizes)
        with listening(Path(two)) as (listener, _):
            alone = told_alone(listener, plan)

        assert together == alone
        assert state_of(Path(one)) == state_of(Path(two))
        assert not left_behind(Path(one))


def test_the_window_is_granted_as_far_as_it_is_asked_for(tmp_path: Path) -> None:
    with listening(tmp_path) as (listener, _):
        granted = []
        for asked in (1, 2, 7, 32, 1000, 0):
            with pipelining(listener.port, asked) as (_, accept):
                granted.append(accept.window)

    assert granted == [(1, 1), (2, 1), (7, 1), (32, 1), (32, 1), (32, 1)]


def test_what_came_together_shares_the_syncs_of_folder_and_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(journal, "_sync", noted)
    series = os.path.realpath(tmp_path / uid(1, 1) / uid(1, 1, 1))

    with listening(tmp_path) as (listener, _):
        assert told_together(listener, [0, 1, 2, 3], []) == [0] * 4

    assert sum(".dcmtools-incoming" in path and not path.endswith(".lock") for path in synced) == 4
    assert synced.count(series) < 4
    assert sum(path.endswith("index.jsonl") for path in synced) < 4


def test_what_came_whole_is_answered_while_the_next_one_takes_its_time(tmp_path: Path) -> None:
    instance, data = OBJECTS[0]
    with listening(tmp_path) as (listener, _), pipelining(listener.port, 8) as (association, _):
        association.connection.write(message(association, 7, 0), 5)
        begin(association, OBJECTS[1][1][:40], OBJECTS[1][0])

        def drip() -> bool:
            association.connection.write(association._fragments(1, memoryview(b"\0\0"), last=False), 5)
            return association.wait(0.02)

        wait_until(drip)
        answer = association.receive(10).command
        slow = finish(association, b"\0\0")

    assert (answer["MessageIDBeingRespondedTo"], answer["Status"]) == (7, 0)
    assert (slow["MessageIDBeingRespondedTo"], slow["Status"] >> 12) == (1, 0xC)
    (stored,) = (path for path in files(tmp_path) if path.name == f"{instance}.dcm")
    assert stored.read_bytes().endswith(data)


def test_what_came_whole_before_the_peer_went_is_kept(tmp_path: Path) -> None:
    with listening(tmp_path) as (listener, records), pipelining(listener.port, 8) as (association, _):
        for which in range(3):
            association.connection.write(message(association, which + 1, which), 5)
        begin(association, OBJECTS[3][1][:40], OBJECTS[3][0])
        association.abort()
        wait_until(lambda: not listener.active)

    assert {path.name for path in files(tmp_path)} == {f"{OBJECTS[which][0]}.dcm" for which in range(3)}
    assert sorted(record["SOPInstanceUID"] for record in records if record.get("state") == "received") == sorted(
        OBJECTS[which][0] for which in range(3)
    )
    assert not left_behind(tmp_path)


@pytest.mark.parametrize("part", ["half a header", "a command without its data set"])
def test_what_came_whole_is_answered_while_the_peer_pauses_wherever_that_is(tmp_path: Path, part: str) -> None:
    with listening(tmp_path) as (listener, _), pipelining(listener.port, 8) as (association, _):
        head, *rest = message(association, 2, 1)
        begun = head[:3] if part == "half a header" else b"".join((head, rest[0]))
        association.connection.write([*message(association, 1, 0), begun], 5)
        answer = association.receive(5).command  # the idle time is longer
        association.abort()

    assert (answer["MessageIDBeingRespondedTo"], answer["Status"]) == (1, 0)


def test_an_object_that_cannot_be_kept_either_is_refused_without_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(path: Path) -> str:
        raise BadData(f"{path}: cannot be read", cause="unreadable")

    monkeypatch.setattr(archive, "data_set_hash", unreadable)
    with listening(tmp_path) as (listener, records):
        assert told_together(listener, [0, 6, 1], []) == [0, 0xA700, 0]
        with pipelining(listener.port, 8) as (association, _):
            association.connection.write(message(association, 1, 6), 5)
            answer = association.receive(5).command

    assert str(tmp_path) not in str(answer)
    assert [record.get("state", record["type"]) for record in records] == ["received", "error", "received", "error"]
    assert not left_behind(tmp_path)


def test_with_few_descriptors_what_waits_leaves_enough_for_all(tmp_path: Path, environment: dict[str, str]) -> None:
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (120, 120));"
        "from dcmtools.cli.main import main; main()"
    )
    words = [sys.executable, "-c", program, "listen", "--archive", str(tmp_path / "archive"), "--port", "0"]
    words += ["--max-associations", "8", "--bind", "127.0.0.1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path) as process:
        assert process.stdout
        port = json.loads(process.stdout.readline())["port"]
        reader = threading.Thread(target=process.stdout.read)
        reader.start()

        def send_all(study: int) -> list[int]:
            with pipelining(port, 32) as (association, _):
                context = next(iter(association.contexts.values()))
                for number in range(1, 33):
                    instance, data = uid(study, 1, 1, number), encoded(study, 1, 1, number)
                    told: Command = {"AffectedSOPClassUID": MR, "AffectedSOPInstanceUID": instance}
                    told |= {"MessageID": number, "CommandField": command.C_STORE_RQ, "Priority": command.MEDIUM}
                    association.send(context, told, data)
                return [association.receive(20).command["Status"] for _ in range(32)]

        try:
            with ThreadPoolExecutor(8) as threads:
                statuses = list(threads.map(send_all, range(1, 9)))
        finally:
            process.terminate()
            reader.join()

    assert statuses == [[0] * 32] * 8
