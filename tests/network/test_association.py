"""Associations between us and us, us and pynetdicom, and us and a peer that cuts its bytes in every possible way."""

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcmtools.model.errors import DcmtoolsError, ProtocolError, Refused, TryLater, Unavailable
from dcmtools.model.node import Local, Node
from dcmtools.model.uids import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, VERIFICATION
from dcmtools.network import command, pdu
from dcmtools.network.acceptor import Acceptor, Policy
from dcmtools.network.association import Aborted, Association, Context, Released, Timeouts
from dcmtools.network.door import Port
from dcmtools.network.echo import echo_all, echo_one, verify
from dcmtools.network.requestor import request
from dcmtools.network.upper_layer import Closed, Connection, TimedOut

MR = "1.2.840.10008.5.1.4.1.1.4"
ECHO = [(VERIFICATION, (IMPLICIT_VR_LITTLE_ENDIAN,))]


def node(port: int, **keys: Any) -> Node:
    return Node(**{"name": "PEER", "ae_title": "PEER", "host": "127.0.0.1", "port": port, **keys})


def choose(_abstract: str, syntaxes: tuple[str, ...]) -> str:
    return syntaxes[0] if syntaxes else ""


def answer_echoes(association: Association) -> None:
    while True:
        message = association.receive(idle=20)
        data = association.read_data(1 << 24) if message.has_data else b""
        answer = {"CommandField": message.field | 0x8000, "MessageIDBeingRespondedTo": message.command["MessageID"]}
        association.send(message.context, {**answer, "Status": len(data) % 0x8000})


@contextmanager
def acceptor(
    serve: Callable[[Association], None] = answer_echoes, **policy: Any
) -> Iterator[tuple[Acceptor, list[DcmtoolsError]]]:
    notices: list[DcmtoolsError] = []
    server = Acceptor(
        Port("127.0.0.1", 0), Policy(**{"ae_title": "PEER", "choose": choose, **policy}), serve, notices.append
    )
    server.start()
    try:
        yield server, notices
    finally:
        server.drain(0.5)


def test_an_echo_tells_the_round_trip_and_who_answered() -> None:
    with acceptor() as (server, _):
        record = echo_one(node(server.port), Local())

    assert record["ok"] is True
    assert record["ms"] > 0
    assert record["peer"]["implementation_version"].startswith("DCMTOOLS")


def test_nodes_are_asked_at_once_and_a_dead_one_does_not_hold_the_others_up(free_port: Callable[[], int]) -> None:
    with acceptor() as (server, _):
        records = list(echo_all([node(free_port(), name="DEAD"), node(server.port, name="LIVE")], Local()))

    told = {record["node"]: record for record in records}
    assert told["LIVE"]["ok"] is True
    assert told["DEAD"]["ok"] is False
    assert told["DEAD"]["exit_code"] == 69
    assert "refused" in told["DEAD"]["reason"]


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"peers": frozenset({"OTHER"})}, "calling AE title 'DCMTOOLS' not recognized"),
        ({"check_called": True, "ae_title": "ELSE"}, "called AE title 'PEER' not recognized"),
    ],
)
def test_a_rejection_says_in_words_what_is_wrong(policy: dict[str, Any], words: str) -> None:
    with acceptor(**policy) as (server, _), pytest.raises(Refused, match=words):
        request(node(server.port), Local(), ECHO)


def test_a_full_acceptor_says_that_it_is_worth_to_try_later() -> None:
    with (
        acceptor(max_associations=1) as (server, _),
        request(node(server.port), Local(), ECHO),
        pytest.raises(TryLater, match="local limit exceeded"),
    ):
        request(node(server.port), Local(), ECHO)


def test_a_service_that_is_not_offered_is_named() -> None:
    with (
        acceptor(choose=lambda *_: None) as (server, _),
        request(node(server.port), Local(), ECHO) as association,
        pytest.raises(Unavailable, match=r"PEER \(PEER@127\.0\.0\.1:\d+\) does not offer verification"),
    ):
        verify(association)


def test_a_silent_connection_does_not_keep_a_good_peer_out() -> None:
    with acceptor(max_associations=2) as (server, _):
        silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(6)]
        record = echo_one(node(server.port), Local())
        for one in silent:
            one.close()

    assert record["ok"] is True


def test_a_port_that_speaks_something_else_is_told_from_dicom() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_say, args=(server, b"HTTP/1.1 400 Bad Request\r\n\r\n"), daemon=True).start()

        with pytest.raises(ProtocolError, match=r"PEER \(PEER@127\.0\.0\.1:\d+\): the peer sent no DICOM PDU"):
            request(node(server.getsockname()[1]), Local(), ECHO)


def _say(server: socket.socket, words: bytes) -> None:
    peer, _ = server.accept()
    peer.recv(4096)
    peer.sendall(words)
    peer.close()


def test_a_peer_that_never_answers_is_given_up_after_the_acse_timeout() -> None:
    words = r"did not answer .* in 0\.2 s"
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(TimedOut, match=words):
        request(node(server.getsockname()[1], acse_timeout=0.2), Local(), ECHO)


def test_a_peer_that_promises_a_giant_pdu_is_cut_off_at_once() -> None:
    with acceptor() as (server, notices), socket.create_connection(("127.0.0.1", server.port)) as peer:
        peer.sendall(struct.pack(">BxI", pdu.ASSOCIATE_RQ, 0xFFFFFFF0))

        assert peer.recv(100)[:1] in {b"", bytes((pdu.ABORT,))}

    assert any("PDU of 4294967280 bytes" in str(notice) for notice in notices)


def test_draining_waits_for_the_association_that_is_busy_and_aborts_one_that_is_idle_for_too_long() -> None:
    with acceptor() as (server, _):
        association = request(node(server.port), Local(), ECHO)
        begun = time.monotonic()
        assert server.drain(0.3) is False
        assert time.monotonic() - begun < 3

    with pytest.raises((Aborted, Closed)):
        association.receive(1)
    association.abort()


MESSAGES = st.lists(st.binary(max_size=700), min_size=1, max_size=4)


@given(messages=MESSAGES, cuts=st.lists(st.integers(1, 97), min_size=1, max_size=50), together=st.integers(1, 5))
@settings(max_examples=60)
def test_messages_arrive_whole_however_they_are_cut(messages: list[bytes], cuts: list[int], together: int) -> None:
    ours, theirs = socket.socketpair()
    wire = _wire(messages, cuts, together)
    threading.Thread(target=_drip, args=(theirs, wire, cuts), daemon=True).start()
    sides = pdu.Request("A", "B")
    context = Context(1, MR, EXPLICIT_VR_LITTLE_ENDIAN)
    association = Association(Connection(ours), [context], sides, sides, "peer")

    found = []
    try:
        while True:
            message = association.receive(10)
            found.append((message.command["MessageID"], association.read_data() if message.has_data else b""))
    except Released:
        association.answer_release()

    assert found == list(enumerate(messages))


def _wire(messages: list[bytes], cuts: list[int], together: int) -> bytes:
    """All messages as presentation data values of odd sizes, several of them in a PDU, and a release behind them."""
    values: list[bytes] = []
    for number, data in enumerate(messages):
        head = command.encode(
            {"CommandField": 1, "MessageID": number, "CommandDataSetType": 1 if data else command.NO_DATA_SET}
        )
        values += _values(head, 1, cuts) + (_values(data, 0, cuts[::-1]) if data else [])
    packed = [b"".join(values[first : first + together]) for first in range(0, len(values), together)]
    return b"".join(pdu.HEADER.pack(pdu.P_DATA, len(one)) + one for one in packed) + pdu.RELEASE_REQUEST


def _values(data: bytes, flag: int, cuts: list[int]) -> list[bytes]:
    pieces, number = [], 0
    while data:
        size = cuts[number % len(cuts)]
        pieces.append(data[:size])
        data, number = data[size:], number + 1
    flags = [flag] * (len(pieces) - 1) + [flag | 2]
    return [pdu.PDV_HEADER.pack(len(one) + 2, 1, flag) + one for one, flag in zip(pieces, flags, strict=True)]


def _drip(peer: socket.socket, wire: bytes, cuts: list[int]) -> None:
    number = 0
    while wire:
        size = cuts[number % len(cuts)] * 3
        peer.sendall(wire[:size])
        wire, number = wire[size:], number + 1
    peer.recv(100)
    peer.close()


@pytest.mark.parametrize("max_pdu", [0, 4096, 16384, 131072])
@pytest.mark.parametrize("size", [1, 2, 4090, 4091, 100_001, 9_000_000])
def test_a_data_set_of_any_size_fits_whatever_the_peer_takes(max_pdu: int, size: int, tmp_path: Path) -> None:
    received: list[int] = []

    def count(association: Association) -> None:
        while True:
            association.receive(idle=20)
            received.append(sum(len(fragment) for fragment in association.fragments()))

    file = tmp_path / "data"
    file.write_bytes(bytes(10) + b"\1" * size)
    with acceptor(count, max_pdu=max_pdu or 1 << 21) as (server, _), file.open("rb") as source:
        with request(node(server.port), Local(), [(MR, (EXPLICIT_VR_LITTLE_ENDIAN,))]) as association:
            association._fragment = association._fragment if max_pdu else 1 << 20
            context = association.require(MR, "storage")
            association.send_file(context, {"CommandField": 1, "MessageID": 1}, source.fileno(), 10, size)
        server.drain(5)

    assert received == [size + size % 2]


def test_a_peer_that_takes_only_crumbs_is_fed_with_crumbs() -> None:
    def count(association: Association) -> None:
        association.receive(idle=20)
        received.append(sum(len(fragment) for fragment in association.fragments()))
        association.receive(idle=20)

    received: list[int] = []
    with acceptor(count, max_pdu=16) as (server, _):
        with request(node(server.port), Local(), [(MR, (EXPLICIT_VR_LITTLE_ENDIAN,))]) as association:
            data = bytes(300_000)
            association.send(association.require(MR, "storage"), {"CommandField": 1, "MessageID": 1}, data)
        server.drain(5)

    assert received == [300_000]


def test_a_host_that_cannot_be_a_name_is_told_as_such() -> None:
    with pytest.raises(Unavailable, match="cannot find the host"):
        request(node(104, host="a" * 64 + ".example"), Local(), ECHO)


def test_pynetdicom_echoes_with_us_in_both_directions() -> None:
    from pynetdicom import AE

    theirs = AE(ae_title="PYNETDICOM")
    theirs.add_supported_context(VERIFICATION)
    theirs.add_requested_context(VERIFICATION)
    server = theirs.start_server(("127.0.0.1", 0), block=False)
    assert server is not None
    try:
        assert echo_one(node(server.server_address[1]), Local())["ok"] is True
    finally:
        server.shutdown()

    with acceptor() as (ours, _):
        association = theirs.associate("127.0.0.1", ours.port, ae_title="PEER")
        assert association.is_established
        assert association.send_c_echo().Status == 0
        association.release()


def test_an_association_that_breaks_is_told_as_such() -> None:
    def hang_up(association: Association) -> None:
        association.connection.close()

    with acceptor(hang_up) as (server, _):
        association = request(node(server.port), Local(), ECHO)
        with pytest.raises(ProtocolError, match="connection"):
            verify(association)
        association.abort()


def test_timeouts_are_of_the_association_and_a_silent_peer_is_named() -> None:
    def say_nothing(association: Association) -> None:
        association.receive(idle=20)
        time.sleep(1)

    with acceptor(say_nothing, timeouts=Timeouts(idle=20)) as (server, _):
        association = request(node(server.port, dimse_timeout=0.2), Local(), ECHO)
        with pytest.raises(TimedOut):
            verify(association)
        association.abort()
