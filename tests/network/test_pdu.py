"""The PDU codec against itself, against garbage, and against pynetdicom's."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcmtools.model.errors import ProtocolError
from dcmtools.network import pdu

UIDS = st.from_regex(r"[12](\.[1-9][0-9]{0,6}){1,6}", fullmatch=True)
TITLES = st.text(st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789-"), min_size=1, max_size=16)
PROPOSALS = st.lists(st.tuples(UIDS, st.lists(UIDS, min_size=1, max_size=5, unique=True)), min_size=1, max_size=20)


@st.composite
def requests(draw: st.DrawFn) -> pdu.Request:
    proposed = draw(PROPOSALS)
    return pdu.Request(
        called=draw(TITLES),
        calling=draw(TITLES),
        max_pdu=draw(st.integers(0, 2**32 - 1)),
        implementation_class=draw(UIDS),
        implementation_version=draw(TITLES),
        window=draw(st.tuples(st.integers(0, 65535), st.integers(0, 65535))),
        roles=draw(st.dictionaries(UIDS, st.tuples(st.booleans(), st.booleans()), max_size=3)),
        contexts=tuple(
            pdu.Proposal(2 * number + 1, abstract, tuple(syntaxes))
            for number, (abstract, syntaxes) in enumerate(proposed)
        ),
    )


@given(requests())
def test_a_request_comes_back_as_it_was(request: pdu.Request) -> None:
    assert pdu.decode_request(pdu.encode_request(request)[6:]) == request


@given(requests())
def test_pynetdicom_reads_our_request_as_we_meant_it(request: pdu.Request) -> None:
    from pynetdicom.pdu import A_ASSOCIATE_RQ
    from pynetdicom.pdu_items import AsynchronousOperationsWindowSubItem

    theirs = A_ASSOCIATE_RQ()
    theirs.decode(pdu.encode_request(request))

    assert str(theirs.called_ae_title).strip() == request.called
    assert theirs.user_information
    assert theirs.user_information.maximum_length == request.max_pdu
    assert [
        (one.context_id, str(one.abstract_syntax), tuple(str(uid) for uid in one.transfer_syntax))
        for one in theirs.presentation_context
    ] == [(one.id, one.abstract, one.syntaxes) for one in request.contexts]
    windows = [one for one in theirs.user_information.user_data if isinstance(one, AsynchronousOperationsWindowSubItem)]
    assert [(one.max_operations_invoked, one.max_operations_performed) for one in windows] == (
        [request.window] if request.window != pdu.SYNCHRONOUS else []
    )
    assert theirs.encode() == pdu.encode_request(request)


@given(st.binary(max_size=400))
def test_garbage_is_a_protocol_error_and_nothing_else(body: bytes) -> None:
    for decode in (pdu.decode_request, pdu.decode_accept):
        with suppress(ProtocolError):
            decode(body)


@given(requests(), st.data())
def test_a_request_with_a_flipped_byte_never_raises_anything_but_a_protocol_error(
    request: pdu.Request, data: st.DataObject
) -> None:
    body = bytearray(pdu.encode_request(request)[6:])
    position = data.draw(st.integers(0, len(body) - 1))
    body[position] ^= data.draw(st.integers(1, 255))

    with suppress(ProtocolError):
        pdu.decode_request(bytes(body))


@given(st.lists(st.tuples(st.integers(1, 255), st.integers(0, 3), st.binary(max_size=50)), max_size=6))
def test_several_values_in_one_pdu_are_told_apart(values: list[tuple[int, int, bytes]]) -> None:
    body = b"".join(pdu.PDV_HEADER.pack(len(data) + 2, context, flags) + data for context, flags, data in values)

    found = [(context, flags, bytes(data)) for context, flags, data in pdu.presentation_data(memoryview(body))]

    assert found == values


@pytest.mark.parametrize("body", [b"\0\0\0", b"\0\0\0\1\1\0", b"\0\0\0\x09\1\0abc", b"\xff\xff\xff\xff\1\3abcd"])
def test_a_value_that_lies_about_its_length_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(pdu.presentation_data(memoryview(body)))


def test_two_contexts_with_one_id_are_refused() -> None:
    twice = pdu.Request("A", "B", contexts=(pdu.Proposal(1, "1.2", ("1.2",)), pdu.Proposal(1, "1.3", ("1.2",))))

    with pytest.raises(ProtocolError, match="one id"):
        pdu.decode_request(pdu.encode_request(twice)[6:])
