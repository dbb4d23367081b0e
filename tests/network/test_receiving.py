"""Our receiver at the other end of any sender: however that cuts, packs or dawdles, what arrives is what left."""

import itertools
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pynetdicom import AE
from pynetdicom.pdu_primitives import (
    AsynchronousOperationsWindowNegotiation,
    SCP_SCU_RoleSelectionNegotiation,
    SOPClassCommonExtendedNegotiation,
    SOPClassExtendedNegotiation,
    UserIdentityNegotiation,
)

from dcmtools.disk.archive import Archive
from dcmtools.model.node import Local
from dcmtools.model.uids import EXPLICIT_VR_LITTLE_ENDIAN, VERIFICATION
from dcmtools.network import command, pdu
from dcmtools.network.acceptor import Policy
from dcmtools.network.listen import Listener
from tests.builders import encode_element, make_instance, uid, write_instance, write_series
from tests.network.bad_peers import p_data, pieces, read, request, store_rq, unit, value
from tests.network.storing import MR, data_set, encoded, listening
from tests.peers.processes import RunTool

number = itertools.count(1)
CONTEXTS = (
    pdu.Proposal(1, MR, (EXPLICIT_VR_LITTLE_ENDIAN,)),
    pdu.Proposal(3, VERIFICATION, (EXPLICIT_VR_LITTLE_ENDIAN,)),
)
ECHO = command.encode(
    {
        "AffectedSOPClassUID": VERIFICATION, "CommandField": command.C_ECHO_RQ, "MessageID": 77,
        "CommandDataSetType": command.NO_DATA_SET,
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listener]:
    """One receiver for all examples."""
    with listening(tmp_path_factory.mktemp("receiving") / "archive") as (listener, _):
        yield listener


class Wire:
    """A raw socket with an association on it."""

    def __init__(self, port: int, asked: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(asked)
        kind, body = read(self.socket)
        assert kind == pdu.ASSOCIATE_AC
        self.accept = pdu.decode_accept(body)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def write(self, data: bytes, cuts: Sequence[int] = ()) -> None:
        """Sends bytes in as many writes as there are cuts, and one more."""
        for piece in cut(data, cuts):
            self.socket.sendall(piece)

    def answers(self, count: int, max_pdu: int = 0) -> list[command.Command]:
        """So many responses, however many PDUs each takes; none of them is longer than what we take."""
        found: list[command.Command] = []
        raw = b""
        while len(found) < count:
            kind, body = read(self.socket)
            assert kind == pdu.P_DATA, (kind, body)
            assert not max_pdu or len(body) <= max_pdu
            for _, flags, fragment in pdu.presentation_data(memoryview(body)):
                raw += bytes(fragment)
                if flags & pdu.LAST_FLAG:
                    found.append(command.decode(raw))
                    raw = b""
        return found

    def release(self) -> None:
        """Ends in order, which shows that nothing was left over."""
        self.socket.sendall(pdu.RELEASE_REQUEST)
        assert read(self.socket)[0] == pdu.RELEASE_RP


def cut(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    """The data in pieces, cut at these places; some may be empty."""
    places = [0, *sorted(place % (len(data) + 1) for place in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places)]


def values(message: bytes, flag: int, cuts: Sequence[int], context: int = 1) -> list[bytes]:
    """A command or a data set in presentation data values."""
    fragments = cut(message, cuts)
    last = len(fragments) - 1
    return [value(flag | (pdu.LAST_FLAG if at == last else 0), one, context) for at, one in enumerate(fragments)]


def packed(items: Sequence[bytes], ends: Sequence[int]) -> bytes:
    """Presentation data values in PDUs, each of which ends after one of these places."""
    groups = [list(items[start:end]) for start, end in itertools.pairwise([0, *sorted(ends), len(items)])]
    return b"".join(unit(pdu.P_DATA, b"".join(group)) for group in groups if group)


def stored(receiver: Listener, instance: str) -> bytes:
    """The data set that the archive has of an instance."""
    (record,) = receiver.archive.index.lookup((instance,)).values()
    return data_set(Path(record["path"]))


places = st.lists(st.integers(0, 1 << 16), max_size=8)
objects = st.lists(
    st.tuples(st.binary(max_size=2000), places, places, st.booleans()),  # pixels, cuts of command and data, an echo
    min_size=1, max_size=4,
)  # fmt: skip


@given(sent=objects, ends=places, writes=places, pipelined=st.booleans())
@example(sent=[(b"", [], [0], False)], ends=[], writes=[], pipelined=False)  # an empty fragment comes first
@settings(max_examples=50)
def test_every_way_to_cut_and_pack_a_message_brings_the_same_bytes(
    receiver: Listener,
    sent: list[tuple[bytes, list[int], list[int], bool]],
    ends: list[int],
    writes: list[int],
    pipelined: bool,
) -> None:
    """Fragments of any size, several values in a PDU, command and data in one, several messages in one, at once."""
    messages: list[list[bytes]] = []
    expected: dict[str, bytes] = {}
    for pixels, of_command, of_data, asks in sent:
        instance = uid(9, 1, 1, next(number))
        data = encoded(9, 1, 1, int(instance.rpartition(".")[2]), PixelData=pixels + bytes(len(pixels) % 2))
        expected[instance] = data
        message = values(store_rq(instance), pdu.COMMAND_FLAG, of_command) + values(data, 0, of_data)
        messages.append(message)
        if asks:
            messages.append(values(ECHO, pdu.COMMAND_FLAG, of_command, 3))
    runs = [list(itertools.chain(*messages))] if pipelined else messages

    with Wire(receiver.port, request(contexts=CONTEXTS)) as wire:
        answers = []
        for run in runs:
            wire.write(packed(run, [end % (len(run) + 1) for end in ends]), writes)
            answers += wire.answers(len(messages) if pipelined else 1)
        wire.release()

    assert [one["Status"] for one in answers] == [0] * len(messages)
    told = [one["AffectedSOPInstanceUID"] for one in answers if one["CommandField"] == command.C_STORE_RSP]
    assert told == list(expected)
    assert {instance: stored(receiver, instance) for instance in expected} == expected


@given(max_pdu=st.sampled_from([0, 10, 12, 1 << 31, (1 << 32) - 1]) | st.integers(10, 300))
@settings(max_examples=30)
def test_our_answers_fit_what_a_sender_takes(receiver: Listener, max_pdu: int) -> None:
    instance = uid(9, 2, 1, next(number))
    data = encoded(9, 2, 1, int(instance.rpartition(".")[2]))

    with Wire(receiver.port, request(contexts=CONTEXTS, max_pdu=max_pdu)) as wire:
        wire.write(p_data(3, store_rq(instance)) + pieces(data))
        (answer,) = wire.answers(1, max_pdu)
        wire.release()

    assert (answer["Status"], answer["AffectedSOPInstanceUID"]) == (0, instance)
    assert stored(receiver, instance) == data


class Narrow(Listener):
    """A receiver that announces another maximum length."""

    max_pdu = 0

    def _policy(self) -> Policy:
        return replace(super()._policy(), max_pdu=self.max_pdu)


@given(max_pdu=st.sampled_from([16, 128, 4096]) | st.integers(16, 20000), pixels=st.binary(min_size=2, max_size=3000))
@settings(max_examples=10)
def test_pynetdicom_reaches_us_whatever_length_we_take(
    tmp_path_factory: pytest.TempPathFactory, max_pdu: int, pixels: bytes
) -> None:
    made = make_instance(1, 1, 1, 1, PixelData=pixels + bytes(len(pixels) % 2))
    entity = AE(ae_title="SENDER")
    entity.add_requested_context(MR, EXPLICIT_VR_LITTLE_ENDIAN)
    archive = Archive(tmp_path_factory.mktemp("narrow") / "archive")
    Narrow.max_pdu = max_pdu

    with Narrow(archive, Local(ae_title="PEER", port=0, bind="127.0.0.1"), lambda _: None) as listener:
        theirs = entity.associate("127.0.0.1", listener.port)
        status = theirs.send_c_store(made).Status
        theirs.release()

    assert status == 0
    (record,) = archive.index.instances()
    assert dcmread(record["path"]).PixelData == made.PixelData


@pytest.mark.parametrize("size", [16, 4096, 16384])
def test_storescu_and_dcmsend_reach_us_whatever_length_we_take(tool: RunTool, tmp_path: Path, size: int) -> None:
    sent = [*write_series(tmp_path / "in", 2), write_instance(tmp_path / "in" / "large.dcm", 2, side=301)]
    archive = Archive(tmp_path / "archive")
    Narrow.max_pdu = size

    with Narrow(archive, Local(ae_title="PEER", port=0, bind="127.0.0.1"), lambda _: None) as listener:
        done = tool("storescu", "127.0.0.1", listener.port, *sent[:2])
        also = tool("dcmsend", "127.0.0.1", listener.port, sent[2])

    assert (done.returncode, also.returncode) == (0, 0), done.stderr + also.stderr
    assert sorted(data_set(Path(one["path"])) for one in archive.index.instances()) == sorted(map(data_set, sent))


def test_a_sender_that_says_one_byte_at_a_time_is_served(receiver: Listener) -> None:
    instance = uid(9, 3, 1, next(number))
    data = encoded(9, 3, 1, int(instance.rpartition(".")[2]))
    asked = request(contexts=CONTEXTS)

    with socket.create_connection(("127.0.0.1", receiver.port), timeout=20) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in asked + p_data(3, store_rq(instance)) + pieces(data, 100) + pdu.RELEASE_REQUEST:
            peer.sendall(bytes((byte,)))
        kinds = [read(peer)[0] for _ in range(3)]

    assert kinds == [pdu.ASSOCIATE_AC, pdu.P_DATA, pdu.RELEASE_RP]
    assert stored(receiver, instance) == data


def test_a_data_set_of_which_every_fragment_has_one_byte_is_stored(receiver: Listener) -> None:
    instance = uid(9, 4, 1, next(number))
    data = encoded(9, 4, 1, int(instance.rpartition(".")[2]))

    with Wire(receiver.port, request(contexts=CONTEXTS)) as wire:
        wire.write(p_data(3, store_rq(instance)) + pieces(data, 1))
        (answer,) = wire.answers(1)
        wire.release()

    assert answer["Status"] == 0
    assert stored(receiver, instance) == data


@given(end=st.integers(0, 1 << 16), cuts=places)
@settings(max_examples=100)
def test_what_ends_too_early_is_acknowledged_only_if_it_reads_to_its_end(
    receiver: Listener, end: int, cuts: list[int]
) -> None:
    instance = uid(9, 5, 1, next(number))
    whole = encoded(9, 5, 1, int(instance.rpartition(".")[2]))
    data = whole[: end % len(whole) // 2 * 2]

    with Wire(receiver.port, request(contexts=CONTEXTS)) as wire:
        wire.write(packed(values(store_rq(instance), 1, ()) + values(data, 0, cuts), ()))
        (answer,) = wire.answers(1)
        wire.write(packed(values(ECHO, pdu.COMMAND_FLAG, (), 3), ()))
        assert wire.answers(1)[0]["Status"] == 0
        wire.release()

    is_there = bool(receiver.archive.index.lookup((instance,)))
    assert is_there == (answer["Status"] == 0)
    if is_there:
        found = dcmread(next(iter(receiver.archive.index.lookup((instance,)).values()))["path"])
        assert found.SOPInstanceUID == instance
        assert stored(receiver, instance) == data
        assert _begins_element(whole, len(data))


def _begins_element(data: bytes, place: int) -> bool:
    """Whether an element of an explicit little endian data set begins at a place; walked here on its own."""
    at = 0
    while at < place:
        vr = data[at + 4 : at + 6]
        is_long = vr in {b"OB", b"OW", b"SQ", b"UN", b"UT", b"UC", b"UR", b"OF", b"OD", b"OL", b"OV"}
        length = struct.unpack_from("<I", data, at + 8)[0] if is_long else struct.unpack_from("<H", data, at + 6)[0]
        at += (12 if is_long else 8) + length
    return at == place


# What is negotiated beside the contexts (PS3.7 D.3.3)


def user_item(kind: int, payload: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(payload)) + payload


def with_user_items(asked: bytes, items: bytes, *, first: bool) -> bytes:
    """An association request with more items in its user information, which is its last item."""
    body = asked[6:]
    start = body.index(b"\x50\0", 68 + 25)
    length = struct.unpack_from(">H", body, start + 2)[0]
    assert start + 4 + length == len(body)
    old = body[start + 4 :]
    new = items + old if first else old + items
    return unit(pdu.ASSOCIATE_RQ, body[:start] + user_item(0x50, new))


user_items = st.lists(
    st.tuples(st.sampled_from([0x53, 0x56, 0x57, 0x58, 0x5A, 0x60, 0xFF]), st.binary(max_size=60)), max_size=6
)


@given(items=user_items, first=st.booleans())
@settings(max_examples=60)
def test_user_items_that_we_do_not_read_keep_nobody_out(
    receiver: Listener, items: list[tuple[int, bytes]], first: bool
) -> None:
    """Window, extended and common extended negotiation, identity, and what nobody knows; whatever is in them."""
    more = b"".join(user_item(kind, payload) for kind, payload in items if kind != 0x53 or len(payload) == 4)
    instance = uid(9, 6, 1, next(number))
    data = encoded(9, 6, 1, int(instance.rpartition(".")[2]))

    with Wire(receiver.port, with_user_items(request(contexts=CONTEXTS), more, first=first)) as wire:
        wire.write(p_data(3, store_rq(instance)) + pieces(data))
        assert wire.answers(1)[0]["Status"] == 0
        wire.release()

    assert stored(receiver, instance) == data


@pytest.mark.parametrize("scu", [True, False])
@pytest.mark.parametrize("scp", [True, False])
def test_roles_are_answered_for_what_we_serve_and_for_nothing_else(receiver: Listener, scu: bool, scp: bool) -> None:
    asked = request(contexts=CONTEXTS, roles={MR: (scu, scp), "1.2.3": (True, True)})

    with Wire(receiver.port, asked) as wire:
        wire.release()

    assert wire.accept.roles == {MR: (scu, scp)}


@pytest.mark.parametrize("identity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("wants_answer", [True, False])
def test_all_that_pynetdicom_can_negotiate_does_not_keep_its_objects_out(
    receiver: Listener, identity: int, wants_answer: bool
) -> None:
    user = UserIdentityNegotiation()
    user.user_identity_type, user.primary_field = identity, b"user or ticket"
    user.positive_response_requested = wants_answer
    if identity == 2:
        user.secondary_field = b"secret"
    extended = SOPClassExtendedNegotiation()
    extended.sop_class_uid, extended.service_class_application_information = MR, b"\2\0\0\0\1\0"
    common = SOPClassCommonExtendedNegotiation()
    common.sop_class_uid, common.service_class_uid = MR, "1.2.840.10008.4.2"
    window = AsynchronousOperationsWindowNegotiation()
    window.maximum_number_operations_invoked, window.maximum_number_operations_performed = 5, 1
    role = SCP_SCU_RoleSelectionNegotiation()
    role.sop_class_uid, role.scu_role, role.scp_role = MR, True, True
    entity = AE(ae_title="SENDER")
    entity.add_requested_context(MR, EXPLICIT_VR_LITTLE_ENDIAN)
    made: Any = make_instance(9, 7, 1, instance := next(number))

    theirs = entity.associate("127.0.0.1", receiver.port, ext_neg=[user, extended, common, window, role])
    assert theirs.is_established
    status = theirs.send_c_store(made).Status
    theirs.release()

    assert status == 0
    assert stored(receiver, uid(9, 7, 1, instance)).endswith(made.PixelData)


@given(
    lengths=st.lists(st.integers(0, 5000), min_size=1, max_size=12),
    cuts=places,
)
@settings(max_examples=40)
def test_objects_of_any_shape_that_share_a_beginning_are_each_walked_to_their_own_end(
    receiver: Listener, lengths: list[int], cuts: list[int]
) -> None:
    """What was learnt of one object must not be believed of the next."""
    with Wire(receiver.port, request(contexts=CONTEXTS)) as wire:
        for length in lengths:
            instance = uid(9, 8, 1, next(number))
            body = encoded(9, 8, 1, int(instance.rpartition(".")[2]))
            data = body + encode_element(0x7FE10010 + 0x10, "OB", bytes(length // 2 * 2))
            torn = data[:-2] if length > 2 else data
            wire.write(p_data(3, store_rq(instance)) + packed(values(torn, 0, cuts), ()))
            assert (wire.answers(1)[0]["Status"] == 0) == (torn == data)
            wire.write(p_data(3, store_rq(instance)) + packed(values(data, 0, cuts), ()))
            assert wire.answers(1)[0]["Status"] == 0
            assert stored(receiver, instance) == data
        wire.release()
