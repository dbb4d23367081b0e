"""The listener as a server: what it accepts, from whom, and how it ends."""

import contextlib
import os
import queue
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dcmtools.disk.archive import Archive
from dcmtools.disk.lock import holder
from dcmtools.model.errors import Locked, ProtocolError, Refused, TryLater, Unavailable, UsageError
from dcmtools.model.node import Local
from dcmtools.model.uids import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    STUDY_ROOT_FIND,
    TRANSFER_SYNTAXES,
    VERIFICATION,
)
from dcmtools.network import command
from dcmtools.network.association import Association, Message, Timeouts
from dcmtools.network.echo import verify
from dcmtools.network.hosts import among
from dcmtools.network.listen import LOCK_NAME, Listener, Until, listen
from dcmtools.network.requestor import request
from tests.builders import uid
from tests.network.storing import (
    MR,
    ask,
    begin,
    client,
    encoded,
    finish,
    left_behind,
    listening,
    node,
    send,
    takes_connections,
)
from tests.waiting import wait_until

JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"
PRIVATE = "1.2.826.0.1.3680043.10.999.1.1"


def syntax_for(listener: Listener, abstract: str, *syntaxes: str) -> str | None:
    with client(listener.port, (abstract, syntaxes), (VERIFICATION, (IMPLICIT_VR_LITTLE_ENDIAN,))) as association:
        context = association.context_for(abstract)
        return context.syntax if context else None


# What is accepted


@pytest.mark.parametrize("syntax", TRANSFER_SYNTAXES)
def test_every_transfer_syntax_is_accepted_for_storage(tmp_path: Path, syntax: str) -> None:
    with listening(tmp_path) as (listener, _):
        assert syntax_for(listener, MR, syntax) == syntax


def test_of_several_transfer_syntaxes_explicit_comes_before_implicit_and_else_the_senders_first(tmp_path: Path) -> None:
    with listening(tmp_path) as (listener, _):
        assert (
            syntax_for(listener, MR, IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN) == EXPLICIT_VR_LITTLE_ENDIAN
        )
        assert syntax_for(listener, MR, "1.2.3", JPEG_LOSSLESS, EXPLICIT_VR_BIG_ENDIAN) == JPEG_LOSSLESS
        assert syntax_for(listener, MR, "1.2.3") is None


def test_our_compression_comes_before_the_senders_order(tmp_path: Path) -> None:
    with listening(tmp_path, compression=(JPEG_LOSSLESS,)) as (listener, _):
        assert syntax_for(listener, MR, EXPLICIT_VR_LITTLE_ENDIAN, JPEG_LOSSLESS) == JPEG_LOSSLESS


def test_private_classes_come_in_by_option_only(tmp_path: Path) -> None:
    with listening(tmp_path / "one") as (listener, _):
        assert syntax_for(listener, PRIVATE, EXPLICIT_VR_LITTLE_ENDIAN) is None
    with (
        listening(tmp_path / "two", private_classes=True) as (listener, _),
        client(listener.port, (PRIVATE, (EXPLICIT_VR_LITTLE_ENDIAN,))) as association,
    ):
        assert send(association, encoded(SOPClassUID=PRIVATE), AffectedSOPClassUID=PRIVATE)["Status"] == 0


def test_queries_are_accepted_only_where_somebody_answers_them(tmp_path: Path) -> None:
    asked: list[int] = []

    def find(association: Association, message: Message) -> None:
        asked.append(message.field)
        association.read_data()
        rsp = {"CommandField": command.C_FIND_RSP, "MessageIDBeingRespondedTo": message.command["MessageID"]}
        association.send(message.context, {**rsp, "Status": 0})

    with listening(tmp_path / "without") as (listener, _):
        assert syntax_for(listener, STUDY_ROOT_FIND, IMPLICIT_VR_LITTLE_ENDIAN) is None
    with (
        listening(tmp_path / "with", services={command.C_FIND_RQ: find}) as (listener, _),
        client(listener.port, (STUDY_ROOT_FIND, (IMPLICIT_VR_LITTLE_ENDIAN,))) as association,
    ):
        rq = {"CommandField": command.C_FIND_RQ, "AffectedSOPClassUID": STUDY_ROOT_FIND}
        assert ask(association, rq, b"\x08\0\x52\0\0\0\0\0")["Status"] == 0
    assert asked == [command.C_FIND_RQ]


def test_an_unknown_operation_is_answered_0211_and_the_association_lives_on(tmp_path: Path) -> None:
    with listening(tmp_path) as (listener, _), client(listener.port) as association:
        answer = ask(association, {"CommandField": 0x0130, "RequestedSOPClassUID": MR}, bytes(64))
        association.send(association.contexts[1], {"CommandField": command.C_CANCEL_RQ, "MessageIDBeingRespondedTo": 1})
        verify(association)

    assert answer["Status"] == 0x0211
    assert answer["CommandField"] == 0x8130


# Who may come in


def test_only_those_allowed_come_in_and_only_by_our_name(tmp_path: Path) -> None:
    with listening(tmp_path, peers=frozenset({"SENDER"}), check_called=True) as (listener, _):
        with client(listener.port) as association:
            verify(association)
        with pytest.raises(Refused, match="calling AE title 'OTHER' not recognized"):
            request(node(listener.port), Local(ae_title="OTHER"), [(VERIFICATION, (IMPLICIT_VR_LITTLE_ENDIAN,))])
        wrong = node(listener.port, ae_title="WRONG")
        with pytest.raises(Refused, match="called AE title 'WRONG' not recognized"):
            request(wrong, Local(ae_title="SENDER"), [(VERIFICATION, (IMPLICIT_VR_LITTLE_ENDIAN,))])
        wait_until(lambda: listener.counts["rejections"] == 2)
        assert listener.counts["connections"] == 3
        assert listener.counts["associations"] == 1


def test_beyond_the_limit_of_associations_comes_a_transient_rejection(tmp_path: Path) -> None:
    with listening(tmp_path, max_associations=2) as (listener, _):
        refused = pytest.raises(TryLater, match="local limit exceeded")
        with client(listener.port), client(listener.port), refused, client(listener.port):
            pass
        wait_until(lambda: listener.active == 0)
        with client(listener.port) as association:
            verify(association)


def test_one_host_has_only_its_share_of_the_associations(tmp_path: Path) -> None:
    with listening(tmp_path, max_associations=8, max_per_host=2) as (listener, _):
        refused = pytest.raises(TryLater, match="local limit exceeded")
        with client(listener.port), client(listener.port), refused, client(listener.port):
            pass


def test_this_machine_may_have_all_associations_unless_told_otherwise(tmp_path: Path) -> None:
    with listening(tmp_path, max_associations=8) as (listener, _), contextlib.ExitStack() as stack:
        for _number in range(8):
            verify(stack.enter_context(client(listener.port)))


@pytest.mark.parametrize(
    ("allowed", "host", "expected"),
    [
        ([], "203.0.113.9", True),
        (["127.0.0.1"], "127.0.0.1", True),
        (["127.0.0.1"], "127.0.0.2", False),
        (["10.1.2.0/24", "::1"], "10.1.2.77", True),
        (["10.1.2.0/24"], "10.1.3.1", False),
        (["fe80::/10"], "fe80::1%eth0", True),
        (["10.0.0.0/8"], "::1", False),
    ],
)
def test_hosts_are_let_in_by_address_or_network(allowed: list[str], host: str, expected: bool) -> None:
    assert among(allowed)(host) is expected


def test_what_is_no_address_is_refused_as_one() -> None:
    with pytest.raises(UsageError, match="'pacs' is not an address"):
        among(["pacs"])


def test_a_host_that_is_not_allowed_is_hung_up_on(tmp_path: Path) -> None:
    with listening(tmp_path, hosts=among(["192.0.2.0/24"])) as (listener, _):
        # The reset may come before the client knows that it was connected.
        with pytest.raises((ProtocolError, Unavailable)), client(listener.port):
            pass
        assert listener.counts["associations"] == 0


def test_a_sender_that_only_drips_is_cut_off(tmp_path: Path) -> None:
    timeouts = Timeouts(acse=5, pdu=5, idle=0.5)
    with listening(tmp_path, timeouts=timeouts) as (listener, records), client(listener.port) as association:
        begin(association, encoded()[:20])
        end = time.monotonic() + 20
        while not association.wait(0.05) and time.monotonic() < end:  # never idle, and never done
            association.connection.write(association._fragments(1, memoryview(b"\0\0"), last=False), 5)
        wait_until(lambda: records)

        assert records[0]["cause"] == "no-answer"
        association.open = False
        association.connection.close()


def test_silent_connections_do_not_hold_up_who_has_something_to_say(tmp_path: Path) -> None:
    with listening(tmp_path, max_associations=16, timeouts=Timeouts(acse=30)) as (listener, _):
        silent = [socket.create_connection(("127.0.0.1", listener.port)) for _ in range(60)]
        begun = time.monotonic()
        with client(listener.port) as association:
            assert send(association, encoded())["Status"] == 0
        assert time.monotonic() - begun < 5
        for one in silent:
            one.close()


def test_what_is_no_dicom_is_hung_up_on(tmp_path: Path) -> None:
    with listening(tmp_path) as (listener, _):
        for garbage in (
            b"GET / HTTP/1.0\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01",
            b"\x04\0\0\0\0\4abcd",
            b"\x01\0\xff\xff\xff\xff",
        ):
            with socket.create_connection(("127.0.0.1", listener.port), timeout=10) as peer:
                peer.sendall(garbage)
                with contextlib.suppress(ConnectionError):
                    while peer.recv(4096):
                        pass
        with client(listener.port) as association:
            verify(association)


# One listener an archive and a port


def test_a_second_listener_on_the_archive_is_told_who_has_it(tmp_path: Path) -> None:
    with listening(tmp_path) as (listener, _):
        told = holder(tmp_path / LOCK_NAME)
        words = f"listen, process {os.getpid()}, PEER on port {listener.port}"
        with pytest.raises(Locked, match=words), listening(tmp_path):
            pass
    assert told is not None
    assert (told["pid"], told["ae_title"], told["port"]) == (os.getpid(), "PEER", listener.port)
    with listening(tmp_path):  # and when it is gone, the archive is free
        pass


def test_a_port_that_is_held_gives_75_and_leaves_the_archive_free(tmp_path: Path) -> None:
    with listening(tmp_path / "one") as (listener, _):
        local = Local(ae_title="PEER", port=listener.port, bind="127.0.0.1")
        with pytest.raises(TryLater, match="held by another program") as caught:
            Listener(Archive(tmp_path / "two"), local, print).__enter__()
        assert caught.value.exit_code == 75
    with listening(tmp_path / "two"):
        pass


@pytest.mark.skipif(os.getuid() == 0, reason="root may have any port")
def test_a_privileged_port_gives_77(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="privileges"):
        Listener(Archive(tmp_path), Local(port=1), print).__enter__()


# How it ends


@pytest.mark.parametrize(
    ("until", "stored"),
    [(Until(once=True), 3), (Until(count=2), 2), (Until(idle=0.5), 0)],
    ids=["once", "count", "idle"],
)
def test_it_ends_by_itself_when_told_so(tmp_path: Path, until: Until, stored: int) -> None:
    records = listen(Archive(tmp_path), Local(port=0, bind="127.0.0.1"), until=until)
    first = next(records)
    assert first["event"] == "listening"

    def sender() -> None:
        with client(first["port"]) as association:
            for number in range(1, stored + 1):
                send(association, encoded(1, 1, 1, number), uid(1, 1, 1, number))

    thread = threading.Thread(target=sender)
    thread.start()
    rest = list(records)
    thread.join()

    assert [record["state"] for record in rest] == ["received"] * stored


def test_a_drain_finishes_the_object_in_hand_and_takes_no_other(tmp_path: Path) -> None:
    half = threading.Event()
    go_on = threading.Event()
    answers: list[Any] = []

    def sender(port: int) -> None:
        with client(port) as association:
            begin(association, encoded()[:200])
            half.set()
            go_on.wait(20)
            answers.append(finish(association, encoded()[200:])["Status"])
            with pytest.raises(ProtocolError):
                send(association, encoded(1, 1, 1, 2), uid(1, 1, 1, 2))

    with listening(tmp_path) as (listener, records), client(listener.port) as idle:
        thread = threading.Thread(target=sender, args=(listener.port,))
        thread.start()
        half.wait(20)
        wait_until(lambda: left_behind(tmp_path))
        drained: queue.SimpleQueue[bool] = queue.SimpleQueue()
        draining = threading.Thread(target=lambda: drained.put(listener.drain(20)))
        draining.start()
        wait_until(lambda: not takes_connections(listener.port))
        go_on.set()
        thread.join(20)
        draining.join(20)
        idle.open = False
        idle.connection.close()

    assert drained.get() is True
    assert answers == [0x0000]
    assert [record["state"] for record in records] == ["received"]
