"""Our upper layer against those of others: whatever they negotiate and however they cut, every byte arrives."""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pynetdicom import AE, evt
from pynetdicom.pdu_primitives import (
    AsynchronousOperationsWindowNegotiation,
    SCP_SCU_RoleSelectionNegotiation,
    SOPClassExtendedNegotiation,
    UserIdentityNegotiation,
)

from dcmtools.model.node import Local
from dcmtools.network import command, pdu
from dcmtools.network.association import Association, Message
from dcmtools.network.requestor import request
from dcmtools.network.store import store
from tests.builders import make_instance, write_instance, write_series
from tests.network.storing import (
    INSTANCE,
    MR,
    answering,
    client,
    data_set,
    encoded,
    files,
    listening,
    node,
    send,
)  # fmt: skip
from tests.network.test_store import records_of, states, success
from tests.peers.processes import RunTool, StartStorescp

EXPLICIT = "1.2.840.10008.1.2.1"
LOCAL = Local(ae_title="SENDER")


@contextmanager
def pynetdicom_scp(max_pdu: int) -> Iterator[tuple[int, list[bytes]]]:
    """pynetdicom's SCP, which takes PDUs of at most this length (0: of any), and the data sets that it got."""
    came: list[bytes] = []

    def take(event: Any) -> int:
        came.append(event.request.DataSet.getvalue())
        return 0x0000

    entity = AE(ae_title="PEER")
    entity.maximum_pdu_size = max_pdu
    entity.add_supported_context(MR, EXPLICIT)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, take)])
    assert server is not None
    try:
        yield server.server_address[1], came
    finally:
        server.shutdown()


@given(
    max_pdu=st.sampled_from([0, 20, 128, 4096, 16384, 131072]) | st.integers(16, 5000),
    tails=st.lists(st.binary(max_size=3000), min_size=1, max_size=3),
)
@settings(max_examples=12)
def test_pynetdicom_gets_every_byte_whatever_length_it_takes(max_pdu: int, tails: list[bytes]) -> None:
    data = [encoded() + encoded(PixelData=tail + bytes(len(tail) % 2)) for tail in tails]

    with pynetdicom_scp(max_pdu) as (port, came), request(node(port), LOCAL, [(MR, (EXPLICIT,))]) as association:
        answers = [send(association, one) for one in data]

    assert [answer["Status"] for answer in answers] == [0] * len(data)
    assert came == data


@pytest.mark.parametrize("identity", [1, 2, 3, 4, 5])
def test_what_pynetdicom_negotiates_beyond_us_does_not_keep_it_out(identity: int) -> None:
    """User identity of every kind, roles, extended negotiation, an asynchronous window (PS3.7 D.3.3)."""
    user = UserIdentityNegotiation()
    user.user_identity_type, user.primary_field = identity, b"user or ticket"
    if identity == 2:
        user.secondary_field = b"secret"
    extended = SOPClassExtendedNegotiation()
    extended.sop_class_uid, extended.service_class_application_information = MR, b"\2\0\0\0\1\0"
    window = AsynchronousOperationsWindowNegotiation()
    window.maximum_number_operations_invoked = window.maximum_number_operations_performed = 0
    role = SCP_SCU_RoleSelectionNegotiation()
    role.sop_class_uid, role.scu_role, role.scp_role = MR, True, True
    entity = AE(ae_title="SENDER")
    entity.add_requested_context(MR, EXPLICIT)

    with answering(success) as (acceptor, came):
        theirs = entity.associate("127.0.0.1", acceptor.port, ext_neg=[user, extended, window, role])
        assert theirs.is_established
        status = theirs.send_c_store(make_instance()).Status
        (role,) = theirs.acceptor.role_selection.values()
        theirs.release()

    assert status == 0
    assert came[0][0] == INSTANCE
    assert (role.sop_class_uid, role.scu_role, role.scp_role) == (MR, True, True)


@pytest.mark.parametrize("max_pdu", [0, 4096, 131072])
def test_pynetdicom_sends_in_the_lengths_that_we_take(max_pdu: int) -> None:
    entity = AE(ae_title="SENDER")
    entity.add_requested_context(MR, EXPLICIT)
    made = make_instance(side=200)

    with answering(success, max_pdu=max_pdu or 1 << 17) as (acceptor, came):
        theirs = entity.associate("127.0.0.1", acceptor.port, max_pdu=max_pdu)
        statuses = [theirs.send_c_store(made).Status for _ in range(3)]
        theirs.release()

    assert statuses == [0] * 3
    assert len({data for _, data in came}) == 1
    assert came[0][1].endswith(made.PixelData)


@pytest.mark.parametrize("options", [("-pdu", "4096"), ("-pdu", "131072"), ("-dhl",)])
def test_storescp_gets_every_byte_whatever_it_is_set_to(
    storescp: StartStorescp, tmp_path: Path, options: tuple[str, ...]
) -> None:
    peer = storescp(*options)
    sent = [*write_series(tmp_path / "in", 2), write_instance(tmp_path / "in" / "large.dcm", 2, side=1501)]

    records = list(store(records_of(*sent), node(peer.port), LOCAL))

    assert states(records) == ["sent"] * 3
    assert sorted(map(data_set, sent)) == sorted(data_set(path) for path in files(peer.folder))


@pytest.mark.parametrize("options", [("-pdu", "4096"), ("--max-send-pdu", "4096"), ("-pdu", "131072", "-R"), ("+C",)])
def test_storescu_reaches_us_whatever_it_is_set_to(tool: RunTool, tmp_path: Path, options: tuple[str, ...]) -> None:
    sent = [*write_series(tmp_path / "in", 2), write_instance(tmp_path / "in" / "large.dcm", 2, side=1501)]

    with listening(tmp_path / "archive") as (listener, came):
        done = tool("storescu", *options, "-aec", "PEER", "127.0.0.1", listener.port, *sent)

    assert done.returncode == 0, done.stderr
    stored = [Path(record["path"]) for record in came if record.get("state") == "received"]
    assert sorted(map(data_set, sent)) == sorted(map(data_set, stored))


def test_requests_that_do_not_wait_for_their_answers_are_answered_in_order() -> None:
    with answering(success) as (acceptor, came), client(acceptor.port) as association:
        context = association.contexts[1]
        for number in range(1, 21):
            rq = {"CommandField": command.C_STORE_RQ, "MessageID": number, "AffectedSOPInstanceUID": f"1.2.{number}"}
            association.send(context, {**rq, "AffectedSOPClassUID": MR}, bytes(number * 100))
        answered = [association.receive().command["MessageIDBeingRespondedTo"] for _ in range(20)]

    assert answered == list(range(1, 21))
    assert [len(data) for _, data in came] == [number * 100 for number in range(1, 21)]


def test_a_peer_that_says_one_byte_at_a_time_is_understood() -> None:
    def nothing(_association: Association, _message: Message) -> int:
        return 0

    asked = pdu.Request("PEER", "SLOW", 0, contexts=(pdu.Proposal(1, MR, (EXPLICIT,)),))
    head = command.encode(
        {
            "AffectedSOPClassUID": MR, "AffectedSOPInstanceUID": "1.2.3", "CommandField": command.C_STORE_RQ,
            "MessageID": 9, "CommandDataSetType": command.DATA_SET,
        }
    )  # fmt: skip
    values = pdu.PDV_HEADER.pack(len(head) + 2, 1, 3) + head + pdu.PDV_HEADER.pack(6, 1, 2) + b"data"
    wire = pdu.encode_request(asked) + pdu.HEADER.pack(pdu.P_DATA, len(values)) + values + pdu.RELEASE_REQUEST

    with answering(nothing) as (acceptor, came), socket.create_connection(("127.0.0.1", acceptor.port)) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in wire:
            peer.sendall(bytes((byte,)))
        kinds = []
        while head := _exactly(peer, 6):
            kind, length = struct.unpack(">BxI", head)
            kinds.append(kind)
            _exactly(peer, length)

    assert kinds == [pdu.ASSOCIATE_AC, pdu.P_DATA, pdu.RELEASE_RP]
    assert came == [("1.2.3", b"data")]


def _exactly(peer: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (got := peer.recv(size - len(data))):
        data += got
    return data
